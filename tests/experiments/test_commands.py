"""``experiment``, ``bench``, ``study``, ``reality-check`` and ``tune``: from words to runs to tables."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from torch import Tensor

from retrieval_bench.cli import main, parse
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import worker
from retrieval_bench.experiments.strategy_table import COMPARED
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.records import Record
from retrieval_bench.run import run
from retrieval_bench.strategies import STRATEGIES
from retrieval_bench.strategies.frozen import Frozen
from tests.experiments.helpers import FLAGS
from tests.test_elsewhere import drawn_folder

SMALL = ["--backbone", "resnet10t", "--results"]
LITTLE = ["study", "learning_rates", "smoke", *SMALL]


def lines_of(table: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV that were run, by name."""
    lines = csv.DictReader(table.open(encoding="utf-8"))
    return {line["row"]: line for line in lines if line["seeds"] != "0"}


def test_words_for_the_same_command() -> None:
    assert parse(["experiment", "synthetic"]) == parse(["bench", "synthetic", "cpu"])
    assert parse(["experiment", "table_autolr", "smoke"]) == parse(["study", "table_autolr", "smoke"])
    check = parse(["reality-check", "smoke", "--jobs", "2"])
    assert check == parse(["experiment", "reality_check", "smoke", "--jobs", "2"])
    assert (check.trials, check.seed, check.strategy[0], check.workers.jobs) == (2, (0, 1), "frozen", 2)
    assert parse(["bench", "synthetic"]).runtime.keep_new, "benchmarks keep embedders"
    assert not parse(["study", "table_autolr"]).runtime.keep_new


@pytest.mark.parametrize(
    "words", [["bench", "--help"], ["study", "--help"], ["experiment", "--help"], ["reality-check", "--help"]]
)
def test_help_lists_names_and_profiles(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    is_bench = words[0] in ("bench", "experiment")
    assert ("cub_224" in printed, "smoke" in printed) == (is_bench, words[0] != "bench")


def test_a_benchmark_prints_the_leaderboard_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "synthetic", *SMALL, str(tmp_path), "--strategies", "frozen,standard", "--epochs", "1"]
    assert main(words) == 0
    first = capsys.readouterr()
    assert all(text in first.out for text in ("frozen", "standard", "R@1"))
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 3
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == 2
    assert main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert second.err.count("already recorded") == 2


def test_the_table_shows_all_recorded_runs_whichever_were_asked_for(tmp_path: Path) -> None:
    assert main([*LITTLE, str(tmp_path), "--rows", "1", "2"]) == 0
    assert main([*LITTLE, str(tmp_path), "--rows", "7", "--seeds", "0"]) == 0
    lines = lines_of(tmp_path / "studies" / "learning_rates-smoke.csv")
    seeds = {name: line["seeds"] for name, line in lines.items()}
    assert seeds == {"Single rate": "2", "Layer-wise decay": "2", "AutoLR": "1"}


def test_a_row_may_choose_on_validation_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = str(1 + COMPARED.index("layer_pruning"))
    words = ["study", "table_strategies", "smoke", "--rows", number, "--seeds", "0", *SMALL, str(tmp_path)]
    words += ["--epochs", "4", "--global-k.k", "1", "--last-k.k", "1", "--random-policy.last", "1"]
    words += ["--layer-pruning.drop", "auto:1"]
    assert main(words) == 0
    (table,) = (tmp_path / "studies").glob("*.csv")
    (line,) = lines_of(table).values()
    assert line["strategy"] == "layer_pruning(drop=auto:1)"
    assert float(line["images_seen"]) == 4 * (64 + 2 * 48), "what the choice took counts"
    capsys.readouterr()
    assert main([word.replace("auto:1", "auto:4") for word in words]) == 2
    assert "last:4: the backbone has 4 blocks" in capsys.readouterr().err


def test_all_strategies_are_measured_elsewhere_and_what_the_backbone_cannot_do_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unable(Frozen):
        def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
            raise UserError("frozen needs wings")

    numbers = [str(1 + COMPARED.index(name)) for name in ("frozen", "last_k", "layer_pruning")]
    words = ["study", "table_strategies", "smoke", "--rows", *numbers, "--seeds", "0", *SMALL, str(tmp_path)]
    words += ["--epochs", "4", "--also-test", f"folder:{drawn_folder(tmp_path / 'images')}"]
    assert main(words) == 0
    table = tmp_path / "studies" / "table_strategies-smoke-also-test-folder.md"
    text = table.read_text(encoding="utf-8")
    assert "| R@1 on folder" in text
    assert "Over frozen features" in text
    assert len(re.findall(r"^\| (frozen|last_k|layer_pruning) ", text, re.MULTILINE)) == 3, "rows that ran"
    assert "spottune" not in text
    assert table.with_suffix(".png").exists()
    capsys.readouterr()
    monkeypatch.setitem(STRATEGIES, "frozen", Unable)
    assert main([*words, "--force"]) == 0
    assert "left out: frozen: frozen needs wings" in capsys.readouterr().err


def test_a_closed_set_has_accuracies_and_shares_runs_with_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["smoke", "--seeds", "0", *SMALL, str(tmp_path)]
    assert main(["study", "table_spottune", *words, "--rows", "2", "10", "12"]) == 0
    assert "top-1" in capsys.readouterr().out
    lines = lines_of(tmp_path / "studies" / "table_spottune-smoke.csv")
    assert lines.keys() == {"Standard", "SpotTune, tuned blocks only", "SpotTune"}
    assert all(line["accuracy"] for line in lines.values())
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert main(["study", "figure_routes", *words]) == 0
    printed = capsys.readouterr()
    assert "already recorded" in printed.err
    folder, stem = tmp_path / "studies", "figure_routes-smoke"
    assert {path.suffix for path in folder.glob(f"{stem}.*")} == {".csv", ".md", ".tex", ".png"}
    assert (folder / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / f"{stem}.md").read_text(encoding="utf-8").strip() == printed.out.strip()
    assert "measures nothing" in printed.out
    before = (folder / f"{stem}.md").read_text(encoding="utf-8")
    assert main(["experiment", "figure_routes", *words, "--rebuild"]) == 0
    assert (folder / f"{stem}.md").read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["figure_structure_similarity", "smoke", "--rows", "1", "5"],
        ["figure_weight_variation", "smoke", "--seeds", "0"],
        "curve_pruning smoke --seeds 0 --rows 1 3 4 10 11 12 31".split(),
        "curve_pruning paper --dataset synthetic --epochs 1 --seeds 0 --rows 8 9 --reader pil".split(),
    ],
)
def test_other_figures_of_papers(words: list[str], tmp_path: Path) -> None:
    assert main(["study", *words, "--results", str(tmp_path)]) == 0
    (picture,) = (tmp_path / "studies").glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


CHECK = ["reality-check", "smoke", "--epochs", "1", "--strategies", "frozen", "standard", "--trials", "2"]


def test_the_reality_check_from_search_to_table_and_once_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*CHECK, "--seeds", "0", "1", "--results", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr()
    stem = tmp_path / "studies" / "reality_check-smoke-epochs-1-frozen-standard"
    texts = {ending: stem.with_name(f"{stem.name}.{ending}").read_text() for ending in ("csv", "md", "tex")}
    assert texts["md"].strip() == first.out.strip()
    assert "2 trials or the images that 2 plain runs see (96)" in texts["md"]
    assert "classes were not used" in texts["md"]
    assert "measures nothing" in texts["tex"]
    lines = lines_of(stem.with_name(f"{stem.name}.csv"))
    effort = {name: (line["trials"], line["search_images_seen"], line["seeds"]) for name, line in lines.items()}
    assert effort == {"frozen": ("1", "0", "2"), "standard": ("2", "96", "2")}
    for folder, split, count in (("search/runs", "zero_shot_val", 3), ("runs", "zero_shot", 4)):
        records = [json.loads(path.read_text()) for path in (tmp_path / folder).iterdir()]
        assert [record["config"]["data"]["split"] for record in records] == [split] * count
    assert main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "trial" not in second.err
    assert second.err.count("already recorded") == 4
    assert main([*words, "--rebuild"]) == 0
    assert capsys.readouterr().out == first.out
    for path in (tmp_path / "search").glob("*.journal"):
        path.unlink()
    assert main(words) == 0
    third = capsys.readouterr()
    assert third.out == first.out
    assert third.err.count("already recorded") == 7, "trials are recorded too"


def test_a_strategy_whose_trials_all_fail_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: RunConfig, runtime: RuntimeConfig, wait: bool) -> Record:
        if config.strategy == "standard":
            raise RuntimeError("no")
        return run(config, runtime, wait=wait)

    monkeypatch.setattr(worker, "run", fail)
    assert main([*CHECK, "--seeds", "0", "--retries", "0", "--results", str(tmp_path)]) == 1
    assert "failed: every trial of standard" in capsys.readouterr().err


def test_tune_writes_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", "--strategy", "last_k,frozen", "--trials", "1", *FLAGS, "--epochs", "1", "--results"]
    assert main([*words, str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "Chosen: `python -m retrieval_bench run --strategy last_k --dataset synthetic" in printed
    texts = [path.read_text() for path in sorted((tmp_path / "search").glob("*.md"), reverse=True)]
    assert [word for text in texts for word in text.split()] == printed.split()
    assert len(texts) == 2


STUDY, CHECK_SMOKE, TUNE = ["study", "ablation_pruning", "smoke"], ["reality-check", "smoke"], ["tune", *FLAGS]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "cubb"], "did you mean 'cub'"),
        (["bench", "synthetic", "--strategies", "frozen", "standrad"], "did you mean 'standard'"),
        (["bench", "synthetic", "--strategy", "frozn"], "did you mean 'frozen'"),
        (["bench", "synthetic", "--strategy", "frozen", "--seed", "0", "0"], "each once"),
        (["bench", "synthetic", "--strategies", "frozen", "--last-k.k", "1"], "--last-k.k changes nothing"),
        (["study", "ablation"], "did you mean 'ablation_pruning'"),
        (["study", "ablation_pruning", "cpus"], "did you mean 'cpu'"),
        (["study", "table_spottune", "smoke", "--epochs", "3"], "rollback needs at least 4"),
        ([*STUDY, "--strategy", "frozen"], "rows of this experiment are its own"),
        ([*STUDY, "--strategies", "frozen"], "rows of this experiment are its own"),
        ([*STUDY, "--trials", "3"], "searches no options"),
        ([*STUDY, "--seeds", "1", "1"], "each once"),
        ([*STUDY, "--backbone", "resnet10t"], "the backbone has 4 blocks|numbered from 1 to 4"),
        ([*STUDY, "--epoch", "1"], "--epoch"),
        ([*STUDY, "--rows", "1", "11"], "rows 1 to 10"),
        (["study", "table_autolr", "smoke", "--classes", "9"], "8 training classes"),
        (["study", "table_autolr", "smoke", "--classes", "3"], "needs 4 classes"),
        (["study", "table_autolr", "smoke", "--loss", "proxy_anchor"], "--loss changes nothing here"),
        (["study", "figure_weight_variation", "smoke", "--layer-pruning.drop", "last:1"], "changes nothing here"),
        (["study", "figure_weight_variation", "smoke", "--autolr.max-trials", "0"], "--autolr.max-trials 0"),
        (["study", "ablation_pruning", "paper", "--weights", "x.pth", "--dataset", "synthetic"], "x.pth: no such"),
        (["reality-check", "cpus"], "did you mean 'cpu'"),
        ([*CHECK_SMOKE, "--seed", "3", "3"], "each once"),
        ([*CHECK_SMOKE, "--seeds", "1", "1"], "each once"),
        ([*CHECK_SMOKE, "--strategies", "frozen", "frozen"], "each once"),
        ([*CHECK_SMOKE, "--strategies", "frozn"], "did you mean 'frozen'"),
        ([*CHECK_SMOKE, "--trials", "0"], "--trials 0: must be at least 1"),
        ([*CHECK_SMOKE, "--objective", "mrr"], "--objective"),
        ([*CHECK_SMOKE, "--split", "closed_set"], "--split closed_set: a search is scored on zero_shot_val"),
        ([*CHECK_SMOKE, "--autolr.low", "3"], "--autolr.low changes nothing"),
        ([*CHECK_SMOKE, "--l2sp.alpha", "7"], r"--l2sp.alpha 7.0 is not among .* \(0.001 to 1, log\)"),
        ([*CHECK_SMOKE, "--jobs", "-1"], "--jobs -1"),
        ([*CHECK_SMOKE, "--dry-run"], "depend on what its trials give"),
        ([*TUNE, "--strategy", "frozen,frozen"], "each once"),
        ([*TUNE, "--strategy", "frozen,"], "a value is missing beside a comma"),
        ([*TUNE, "--last-k.k", "2"], "--last-k options are set"),
        ([*TUNE, "--strategy", "last_k", "--last-k.k", "99"], "--last-k.k 99"),
        ([*TUNE, "--trials", "0"], "--trials 0"),
        (["sweep", "synthetik"], "did you mean 'synthetic'"),
        (["sweep", "--strategy", "frozen,standrad"], "did you mean 'standard'"),
        (["sweep", "--seed", "0,,1"], "a value is missing beside a comma"),
        (["sweep", "--seed", "0,1,0"], "--seed 0 is given twice"),
        (["sweep", "--seed", "0,one"], "--seed"),
        (["sweep", "--lr", "1e-3,-1"], r"--lr -1.0: must be at least 0 \(the run with --lr -1.0\)"),
        (["sweep", *FLAGS, "--retries", "-1"], "--retries -1"),
        (["sweep", "--ray-address", "auto"], "belong to --engine ray"),
        (["sweep", "--engine", "ray", "--jobs", "2"], "belongs to --engine local"),
        (["sweep", "--dataset", "synthetic", "--resume", "x"], "--resume is for one run"),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--results", str(tmp_path)] if len(words) > 2 else words) == 2
    assert not list(tmp_path.rglob("*.*")), "refused before anything is trained or written"
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error)
