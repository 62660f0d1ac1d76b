"""The Reality Check: its table from records made by hand, and the commands from search to table."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from retrieval_bench.cli import main
from retrieval_bench.experiments import reality_report
from retrieval_bench.experiments.reality_check import CHECKS
from retrieval_bench.experiments.reality_table import check_for_people, check_table
from retrieval_bench.experiments.study import Row
from retrieval_bench.grid.carry_out import Outcome
from retrieval_bench.tables import latex_table, markdown_rows
from retrieval_bench.tune.search import search
from retrieval_bench.validation import validate
from tests.tune.fakes import Runs, record_of, searches_of

RECALLS = {"frozen": [0.5, 0.5, 0.5], "standard": [0.7, 0.72, 0.74], "l2sp": [0.71, 0.71, 0.74], "autolr": []}


@pytest.fixture
def table(tmp_path: Path) -> Any:
    """Four strategies whose search is a fake one; autolr's runs all failed."""
    searches = searches_of(tmp_path, *RECALLS)
    search(searches, 2, Runs({"autolr": 150}))
    rows = [Row(entry.config.strategy, config, more=("map_at_r",)) for entry in searches if (config := entry.chosen(2))]
    records = {
        row.name: [
            record_of(replace(row.config, seed=seed), recall, recall / 2, 400)
            for seed, recall in enumerate(RECALLS[row.name])
        ]
        for row in rows
    }
    return check_table(rows, searches, records, 2)


def test_ranks_differences_and_corrected_p_values(table: Any) -> None:
    assert list(table["row"]) == ["standard", "l2sp", "frozen", "autolr"]
    assert list(table["rank"].astype(object)) == [1, 1, 3, pd.NA]
    assert list(table["tied"]) == [None, True, False, None]
    p_frozen = stats.ttest_rel(RECALLS["frozen"], RECALLS["standard"]).pvalue
    assert table["p_value"][2] == pytest.approx(p_frozen)
    assert table["p_holm"][2] == pytest.approx(2 * p_frozen)
    assert table["p_holm"][1] == pytest.approx(1.0)
    assert table["difference"][2] == pytest.approx(-0.22)
    half = stats.t.ppf(0.975, 2) * 0.02 / 3**0.5
    assert table["recall_at_1_ci95"][0] == pytest.approx(half, abs=1e-6)
    assert list(table["trials"]) == [2, 2, 1, 1]
    assert list(table["search_images_seen"]) == [200, 200, 100, 150]
    assert not [name for name in table if "quoted" in name]


MARKDOWN = """\
| rank | strategy | chosen | R@1 | R@2 | R@4 | R@8 | MAP@R | R@1 difference | p (Holm) | validation R@1 | trials | images in search | \
params | MACs | images seen | train s | seeds |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | standard | CHOSEN | 72.00 ± 4.97 | 72.00 ± 4.97 | 72.00 ± 4.97 | 72.00 ± 4.97 | 36.00 ± 2.48 |  |  | SCORE | 2 | 200 | \
2.00 M | 3.000 G | 400 | 5 | 3 |
| 1 = | l2sp | CHOSEN | 72.00 ± 4.30 | 72.00 ± 4.30 | 72.00 ± 4.30 | 72.00 ± 4.30 | \
36.00 ± 2.15 | +0.00 ± 2.48 | 1.000 | SCORE | 2 | 200 | \
2.00 M | 3.000 G | 400 | 5 | 3 |
| 3 | frozen | - | 50.00 | 50.00 | 50.00 | 50.00 | 25.00 | -22.00 ± 4.97 | 0.005 | 50.00 | 1 | 100 | \
2.00 M | 3.000 G | 400 | 5 | 3 |
|  | autolr | CHOSEN |  |  |  |  |  |  |  | 50.00 | 1 | 150 |  |  |  |  | 0 |"""


def test_table_for_people(table: Any) -> None:
    shown = check_for_people(table, "recall_at_1")
    lines = markdown_rows(shown)
    values = re.compile(r"\| lr [^|]* \|"), re.compile(r"(\| [^|]*)\| [\d.]+ \| 2 \| 200")
    lines = [values[1].sub(r"\1| SCORE | 2 | 200", values[0].sub("| CHOSEN |", line)) for line in lines]
    assert "\n".join(lines) == MARKDOWN
    assert latex_table(shown, ["A note."]).count("\\\\\n") == 6, "a head, four rows, a note"


def test_profiles_say_what_they_are() -> None:
    assert set(CHECKS) == {"cpu", "paper", "smoke"}
    cpu = CHECKS["cpu"]
    assert len(cpu.strategies) >= 8
    assert len(cpu.seeds) == 5
    assert (cpu.base.data.dataset, cpu.base.data.split, cpu.base.data.classes) == ("emoji", "zero_shot", 100)
    assert CHECKS["paper"].trials == 50
    for check in CHECKS.values():
        validate(replace(check.base, options=type(check.base.options)()))


SMOKE = [
    "reality-check",
    "smoke",
    "--epochs",
    "1",
    "--strategies",
    "frozen",
    "standard",
    "--trials",
    "2",
    "--seeds",
    "0",
    "1",
]


def test_from_search_to_table_and_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMOKE, "--results", str(tmp_path)]
    assert main(words) == 0
    first = capsys.readouterr()
    stem = tmp_path / "studies" / "reality_check-smoke-epochs-1-frozen-standard"
    texts = {ending: stem.with_name(f"{stem.name}.{ending}").read_text() for ending in ("csv", "md", "tex")}
    assert texts["md"].strip() == first.out.strip()
    assert "2 trials or the images that 2 plain runs see (96)" in texts["md"]
    assert "test classes were not looked at" in texts["md"]
    assert "measures nothing" in texts["tex"]
    lines = {line["row"]: line for line in csv.DictReader(texts["csv"].splitlines())}
    assert {name: (line["trials"], line["search_images_seen"], line["seeds"]) for name, line in lines.items()} == {
        "frozen": ("1", "0", "2"),
        "standard": ("2", "96", "2"),
    }
    trials = [json.loads(path.read_text()) for path in (tmp_path / "search" / "runs").iterdir()]
    assert [record["config"]["data"]["split"] for record in trials] == ["zero_shot_val"] * 3
    finals = [json.loads(path.read_text()) for path in (tmp_path / "runs").iterdir()]
    assert [record["config"]["data"]["split"] for record in finals] == ["zero_shot"] * 4
    assert main(words) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "trial" not in second.err
    assert second.err.count("already recorded") == 4
    for path in (tmp_path / "search").glob("*.journal"):
        path.unlink()
    assert main(words) == 0
    third = capsys.readouterr()
    assert third.out == first.out
    assert third.err.count("already recorded") == 7, "trials are recorded too"


def test_a_strategy_that_always_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(searches: Any, trials: int, carry_out: Any) -> None:
        def make(configs: Any) -> list[Outcome]:
            made = iter(carry_out([config for config in configs if config.strategy == "frozen"]))
            return [
                next(made) if config.strategy == "frozen" else Outcome(config, "", error="nan") for config in configs
            ]

        search(searches, trials, make)

    monkeypatch.setattr(reality_report, "search", fail)
    assert main([*SMOKE, "--results", str(tmp_path)]) == 2
    assert "missing in" in (error := capsys.readouterr().err.splitlines()[-1])
    assert "every trial of standard" in error


def test_tune_writes_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--dataset",
        "synthetic",
        "--image-size",
        "32",
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--batch-size",
        "16",
    ]
    assert (
        main(
            [
                "tune",
                "--strategy",
                "last_k,frozen",
                "--trials",
                "1",
                *words,
                "--epochs",
                "1",
                "--results",
                str(tmp_path),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "Chosen: `python -m retrieval_bench run --strategy last_k --dataset synthetic" in printed
    texts = [path.read_text() for path in sorted((tmp_path / "search").glob("*.md"), reverse=True)]
    assert [line for text in texts for line in text.split()] == printed.split()
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reality-check", "cpus"], "did you mean 'cpu'"),
        (["reality-check", "smoke", "--strategy", "frozen"], "use --strategies and --seeds in place of"),
        (["reality-check", "smoke", "--seed", "3"], "use --strategies and --seeds in place of"),
        (["reality-check", "smoke", "--seeds", "1", "1"], "each once"),
        (["reality-check", "smoke", "--strategies", "frozen", "frozen"], "each once"),
        (["reality-check", "smoke", "--strategies", "frozn"], "did you mean 'frozen'"),
        (["reality-check", "smoke", "--trials", "0"], "--trials 0: must be at least 1"),
        (["reality-check", "smoke", "--objective", "mrr"], "--objective"),
        (
            ["reality-check", "smoke", "--split", "closed_set"],
            "--split closed_set: a search is scored on zero_shot_val",
        ),
        (["reality-check", "smoke", "--autolr.low", "3"], "--autolr options are set"),
        (
            ["reality-check", "smoke", "--l2sp.alpha", "7"],
            r"--l2sp.alpha 7.0 is not among the values that are searched \(0.001 to 1, log\)",
        ),
        (["reality-check", "smoke", "--jobs", "-1"], "--jobs -1"),
        (["reality-check", "smoke", "--resume", "here"], "--resume is for one run"),
        (["tune", "--dataset", "synthetic", "--strategy", "frozen,frozen"], "each once"),
        (["tune", "--dataset", "synthetic", "--strategy", "frozen,"], "unknown strategy ''"),
        (["tune", "--dataset", "synthetic", "--last-k.k", "2"], "--last-k options are set"),
        (["tune", "--dataset", "synthetic", "--strategy", "last_k", "--last-k.k", "99"], "--last-k.k 99"),
    ],
)
def test_wrong_words(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--backbone", "resnet10t", "--weights", "none"] if words[0] == "tune" else []
    assert main([*words, *small, "--results", str(tmp_path)] if len(words) > 2 else words) == 2
    assert not list(tmp_path.rglob("*.json")), "refused before anything is trained"
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["reality-check", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in CHECKS)
