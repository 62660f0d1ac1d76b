"""Studies: their grids, the tables made of records, and the commands that carry them out."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import Diverged
from retrieval_bench.experiments import study_report
from retrieval_bench.experiments.autolr import PROFILES
from retrieval_bench.experiments.studies import STUDIES
from retrieval_bench.experiments.study import Row, changes, distinct_runs, grid, measured_table, readable_table
from retrieval_bench.figures.variation import histories
from retrieval_bench.run import run as run_one
from retrieval_bench.tables import latex_table
from retrieval_bench.validation import validate

SMALL = ["--backbone", "resnet26", "--image-size", "32", "--results"]


def record(seed: int, recall: float, images: int = 1000) -> dict[str, Any]:
    metrics = {f"recall_at_{k}": recall for k in (1, 2, 4, 8)}
    return {
        "seed": seed,
        "metrics": metrics,
        "cost": {"parameters": 2e6, "macs": 3e9, "images_seen": images, "train_seconds": 1.0},
    }


ROWS = [
    Row("first", RunConfig(), {"recall_at_1": 50.0, "recall_at_2": 60.0}),
    Row("second", RunConfig(strategy="frozen"), against="first"),
    Row("third", RunConfig(strategy="last_k"), against="first"),
]
RECORDS = {"first": [record(0, 0.5), record(1, 0.7)], "second": [record(1, 0.8, 0), record(0, 0.61, 0)]}


@pytest.mark.parametrize(
    ("study", "profile"), [(name, profile) for name, study in STUDIES.items() for profile in study.profiles]
)
def test_every_run_of_every_study_is_valid_and_its_own(study: str, profile: str) -> None:
    """Rows that use one trained network in several ways share their runs."""
    size = STUDIES[study].profiles[profile]
    rows = STUDIES[study].rows(size.base)
    names = [entry.name for entry in rows]
    assert len(set(names)) == len(names)
    assert {entry.against for entry in rows} <= {*names, ""}
    runs = grid(rows, size.seeds)
    assert (
        len(distinct_runs(runs))
        == len({repr(config) for _, config in runs})
        == sum(not entry.variant for entry in rows) * len(size.seeds)
    )
    assert len({(entry.variant, repr(config)) for entry, config in runs}) == len(runs) == len(rows) * len(size.seeds)
    for _, config in runs:
        validate(config)


def test_the_paper_s_setting() -> None:
    base = PROFILES["paper"].base
    assert (base.data.image_size, base.data.resize_to, base.data.preprocessing, base.evaluation.flip_sum) == (
        224,
        256,
        "squash",
        True,
    )
    train = base.train
    assert (train.epochs, train.batch_size, train.optimizer, train.lr, train.weight_decay) == (
        50,
        40,
        "sgd",
        0.001,
        5e-4,
    )
    assert (train.schedule, train.decay_at, train.decay_factor, train.freeze_bn) == ("step", 0.8, 0.2, False)
    assert (base.loss.loss, base.loss.head, base.loss.loss_lr, base.loss.loss_weight_decay) == (
        "softmax",
        "autolr",
        0.01,
        5e-4,
    )
    rows = STUDIES["ablation_pruning"].rows(base)
    assert [entry.quoted["recall_at_1"] for entry in rows] == [63.49, 66.95, 67.00, 51.00, 67.15, 67.29, 68.33]
    assert rows[2].quoted == {"recall_at_1": 67.00, "recall_at_2": 78.49, "recall_at_4": 86.85, "recall_at_8": 92.07}


def test_nothing_is_quoted_for_another_data_set() -> None:
    base = PROFILES["paper"].base
    rows = STUDIES["ablation_pruning"].rows(replace(base, data=replace(base.data, dataset="sop")))
    assert not any(entry.quoted for entry in rows)


def test_a_changed_profile_says_so() -> None:
    profile = PROFILES["paper"]
    base = replace(
        profile.base, train=replace(profile.base.train, epochs=1), data=replace(profile.base.data, dataset="cars")
    )
    assert changes(profile, base) == ["--epochs 1"]
    assert not changes(
        profile, replace(profile.base, model=replace(profile.base.model, backbone="resnet50_caffe", weights="w.pth"))
    )


def test_some_rows_can_be_run_alone() -> None:
    assert [(entry.name, config.seed) for entry, config in grid(ROWS, (3, 4), (1, 3))] == [
        ("first", 3),
        ("third", 3),
        ("first", 4),
        ("third", 4),
    ]


def test_means_intervals_and_differences_paired_by_seed() -> None:
    first, second, third = measured_table(ROWS, RECORDS).to_dict("records")
    assert (first["recall_at_1"], first["recall_at_1_quoted"], first["recall_at_2_quoted"]) == pytest.approx(
        (0.6, 0.5, 0.6)
    )
    assert first["recall_at_1_ci95"] == pytest.approx(12.7062 * 0.1, rel=1e-4), "t-interval of two values"
    assert second["difference"] == pytest.approx((0.11 + 0.10) / 2)
    assert second["difference_ci95"] == pytest.approx(12.7062 * 0.005, rel=1e-4)
    assert first["per_1000_images"] == pytest.approx(0.6)
    assert pd.isna(second["per_1000_images"]), "no image seen"
    assert third["seeds"] == 0
    assert pd.isna(third["recall_at_1"]), "a row that was not run stays empty"


def test_table_for_people() -> None:
    shown = readable_table(measured_table(ROWS, RECORDS))
    assert list(shown["R@1"]) == ["60.00 ± 127.06", "70.50 ± 120.71", ""]
    assert list(shown["quoted R@1"]) == ["50.00", "", ""]
    assert "quoted R@4" not in shown
    assert list(shown["R@1 difference"]) == ["", "+10.50 ± 6.35", ""]
    assert list(shown["MACs"]) == ["3.000 G", "3.000 G", ""]
    text = latex_table(shown, ["R@K in percent"])
    assert r"$\pm$" in text
    assert text.count("\\\\\n") == 5, "a head, three rows, a note"
    assert text.startswith("\\begin{tabular}{l" + "r" * (len(shown.columns) - 1) + "}")
    assert "R@K in percent" in text


def test_one_seed_shows_no_interval() -> None:
    shown = readable_table(measured_table(ROWS[:1], {"first": [record(0, 0.5)]}))
    assert list(shown["R@1"]) == ["50.00"]


LITTLE = ["study", "learning_rates", "smoke", "--backbone", "resnet10t", "--results"]


def seeds_of(folder: Path) -> dict[str, str]:
    table = folder / "studies" / "learning_rates-smoke.csv"
    return {line["row"]: line["seeds"] for line in csv.DictReader(table.open(encoding="utf-8")) if line["seeds"] != "0"}


def test_the_table_shows_all_recorded_runs_whichever_were_asked_for(tmp_path: Path) -> None:
    assert main([*LITTLE, str(tmp_path), "--rows", "1", "2"]) == 0
    assert main([*LITTLE, str(tmp_path), "--rows", "7", "--seeds", "0"]) == 0
    assert seeds_of(tmp_path) == {"Single rate": "2", "Layer-wise decay": "2", "AutoLR": "1"}


def test_a_run_that_diverges_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: RunConfig, machine: RuntimeConfig) -> dict[str, Any]:
        if config.strategy == "standard":
            raise Diverged("the loss became nan")
        return run_one(config, machine)

    monkeypatch.setattr(study_report, "run", run)
    assert main([*LITTLE, str(tmp_path), "--rows", "1", "2", "--seeds", "0"]) == 2
    assert "1 of 2 runs diverged" in capsys.readouterr().err
    assert seeds_of(tmp_path) == {"Layer-wise decay": "1"}


def test_a_row_may_choose_on_validation_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "study",
        "table_strategies",
        "smoke",
        "--rows",
        "11",
        "--seeds",
        "0",
        "--results",
        str(tmp_path),
        "--epochs",
        "4",
    ]
    words += ["--backbone", "resnet10t", "--global-k.k", "1", "--last-k.k", "1", "--random-policy.last", "1"]
    words += ["--layer-pruning.drop", "auto:1"]
    assert main(words) == 0
    (table,) = (tmp_path / "studies").glob("*.csv")
    (line,) = (line for line in csv.DictReader(table.open(encoding="utf-8")) if line["seeds"] == "1")
    assert line["strategy"] == "layer_pruning(drop=auto:1)"
    assert float(line["images_seen"]) == 4 * (64 + 2 * 48), "what the choice took counts"
    capsys.readouterr()
    assert main([word.replace("auto:1", "auto:4") for word in words]) == 2
    assert "last:4: the backbone has 4 blocks" in capsys.readouterr().err


def test_figure_study_writes_tables_and_a_picture_and_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "figure_weight_variation", "smoke", *SMALL, str(tmp_path), "--seeds", "0", "--image-size", "32"]
    words[words.index("resnet26")] = "resnet50"
    assert main(words) == 0
    printed = capsys.readouterr()
    folder = tmp_path / "studies"
    stem = "figure_weight_variation-smoke"
    assert {path.name for path in folder.iterdir()} == {f"{stem}.{kind}" for kind in ("csv", "md", "tex", "png")}
    assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / f"{stem}.md").read_text(encoding="utf-8").strip() == printed.out.strip()
    assert "measures nothing" in printed.out
    lines = list(csv.DictReader((folder / f"{stem}.csv").open(encoding="utf-8")))
    assert [line["row"] for line in lines] == ["One learning rate", "Pruning 15, 16 and AutoLR"]
    records = {path.name: [json.loads(path.read_text())] for path in (tmp_path / "runs").iterdir()}
    assert len(histories(records)) == 2
    assert main(words) == 0
    assert capsys.readouterr().err.count("already recorded") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "ablation"], "did you mean 'ablation_pruning'"),
        (["study", "ablation_pruning", "cpus"], "did you mean 'cpu'"),
        (["study", "ablation_pruning", "emoji"], "unknown profile 'emoji'"),
        (["study", "table_spottune", "smoke", "--strategy", "frozen"], "use --seeds in place of"),
        (["study", "table_spottune", "smoke", "--epochs", "3"], "rollback needs at least 4"),
        (["study", "ablation_pruning", "smoke", "--strategy", "frozen"], "use --seeds in place of"),
        (["study", "ablation_pruning", "smoke", "--seeds", "1", "1"], "each once"),
        (
            ["study", "ablation_pruning", "smoke", "--backbone", "resnet10t"],
            "the backbone has 4 blocks|numbered from 1 to 4",
        ),
        (["study", "ablation_pruning", "smoke", "--epoch", "1"], "--epoch"),
        (["study", "ablation_pruning", "smoke", "--rows", "1", "8"], "rows 1 to 7"),
        (["study", "table_autolr", "smoke", "--classes", "9"], "8 training classes"),
        (["study", "table_autolr", "smoke", "--classes", "3"], "needs 4 classes"),
        (["study", "table_autolr", "smoke", "--loss", "proxy_anchor"], "--loss changes nothing here"),
        (
            ["study", "figure_weight_variation", "smoke", "--layer-pruning.drop", "last:1"],
            r"--layer-pruning.\* changes nothing here",
        ),
        (["study", "figure_weight_variation", "smoke", "--last-k.k", "2"], r"--last-k.\* changes nothing here"),
        (["study", "figure_weight_variation", "smoke", "--autolr.max-trials", "0"], "--autolr.max-trials 0"),
        (
            ["study", "ablation_pruning", "paper", "--weights", "nowhere.pth", "--dataset", "synthetic"],
            "nowhere.pth: no such weight file",
        ),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--results", str(tmp_path)] if len(words) > 3 else words) == 2
    assert not list(tmp_path.rglob("*")), "refused before anything is trained or written"
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error)
    assert error.startswith("error: ")


def test_help_of_studies(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["study", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*STUDIES, *PROFILES))


def test_classes_bound_every_side(tmp_path: Path) -> None:
    base = PROFILES["smoke"].base
    config = replace(
        base, strategy="frozen", data=replace(base.data, classes=3), model=replace(base.model, backbone="resnet10t")
    )
    data = run_one(config, RuntimeConfig(results=tmp_path))["data"]
    assert (data["train_classes"], data["test_classes"], data["train_images"], data["test_images"]) == (3, 3, 24, 24)
