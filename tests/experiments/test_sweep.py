"""``sweep``: from words to a grid, a plan, runs and a table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.cli import main, parse
from retrieval_bench.config import RunConfig
from retrieval_bench.experiments.plan import estimate
from retrieval_bench.experiments.sweep import split_words
from retrieval_bench.experiments.workers import Workers
from retrieval_bench.records import Record
from tests.experiments.helpers import FLAGS, QUICK, Answers, record_of


def configs(*words: str) -> list[RunConfig]:
    return parse(["sweep", *words]).configs


def test_a_sweep_goes_seed_by_seed_whatever_the_order_of_the_flags() -> None:
    flags = ["--loss", "triplet,proxy_anchor", "--seed", "1,0", "--strategy", "frozen,standard"]
    runs = [(config.seed, config.loss.loss, config.strategy) for config in configs(*flags, "--dataset", "synthetic")]
    assert runs == list(itertools.product((1, 0), ("triplet", "proxy_anchor"), ("frozen", "standard")))


def test_one_value_everywhere_is_the_run_of_run() -> None:
    words = "--lr 1e-3 --no-flip --k 1 2 --strategy last_k --last_k.k=2 --loss-options alpha 16 --seed 3".split()
    assert configs(*words) == [parse(["run", *words]).config]


def test_values_of_several_words_are_combined_and_lists_stay_whole() -> None:
    options = [
        config.loss.loss_options for config in configs("--loss-options", "margin", "0.1,0.2", "--loss", "triplet")
    ]
    assert options == [(("margin", 0.1),), (("margin", 0.2),)]
    drop = "--layer-pruning.drop"
    runs = configs("--strategy", "layer_pruning", drop, "15,16", drop, "last:2")
    assert [config.options.layer_pruning.drop for config in runs] == ["15,16", "last:2"]


def test_flags_change_a_grid_that_has_a_name() -> None:
    assert len(configs("synthetic")) == 8
    runs = configs("synthetic", "--strategy", "standard", "--epochs", "1,2", "--freeze-bn")
    values = [(config.seed, config.loss.loss, config.train.epochs) for config in runs]
    assert values == list(itertools.product((0, 1), ("triplet", "proxy_anchor"), (1, 2)))
    assert all(config.train.freeze_bn and config.data.dataset == "synthetic" for config in runs)
    assert {config.seed for config in configs("emoji_mini", "--seed", "7")} == {7}


@given(
    st.dictionaries(
        st.sampled_from(("seed", "train.epochs", "train.cycles", "train.batch_size")),
        st.sets(st.integers(2, 99), min_size=1, max_size=4),
    )
)
def test_words_mean_the_same_with_spaces_and_equals_signs(axes: dict[str, set[int]]) -> None:
    """Numbers joined by commas, after a space or an equals sign, are the same values; the last of a flag counts; other
    words stay."""
    values = {name: [[str(number)] for number in numbers] for name, numbers in axes.items()}
    flags = {f"--{name.split('.')[-1].replace('_', '-')}": numbers for name, numbers in axes.items()}
    joined = [word for name, numbers in flags.items() for word in (name, ",".join(map(str, numbers)))]
    twice = ["--seed", "8,9", *joined] if "seed" in axes else joined
    equal = [f"{name}={','.join(map(str, numbers))}" for name, numbers in flags.items()]
    for words in (joined, twice, equal):
        others, given_values = split_words(["--jobs", "2", *words, "--dry-run", "--results", "a,b"])
        assert others == ["--jobs", "2", "--dry-run", "--results", "a,b"]
        assert given_values == values


def test_a_sweep_prints_a_plan_then_a_table(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Workers, "pool", lambda *_: Answers())
    sweep = ["sweep", *FLAGS, "--epochs", "1", "--results", str(tmp_path), "--seed", "0,1"]
    assert main([*sweep, "--strategy", "frozen,standard", "--dry-run"]) == 0
    plan = capfd.readouterr().out.splitlines()
    assert "4 runs: 0 recorded, 4 to make, 1 at a time" in plan
    assert plan[0] == "--strategy frozen --seed 0: unknown time"
    assert plan[-1].startswith("time unknown for 4")
    assert not list(tmp_path.iterdir())
    assert main([*sweep, "--strategy", "frozen,last_k", "--last-k.k", "99"]) == 2
    assert "--last-k.k 99: the backbone has" in capfd.readouterr().err
    assert not list(tmp_path.iterdir()), "all runs are checked before the first"
    assert main([*sweep, "--strategy", "frozen"]) == 0
    printed = capfd.readouterr()
    assert all(text in printed.out for text in ("frozen", "R@1"))
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 2
    assert main([*sweep, "--strategy", "frozen", "--epochs", "3", "--dry-run"]) == 0
    plan = capfd.readouterr().out.splitlines()
    assert "2 runs: 0 recorded, 2 to make, 1 at a time" in plan
    assert sum(": about " in line for line in plan) == 2


@pytest.mark.usefixtures("own_cache")
def test_a_plan_downloads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "cub", "--dry-run", "--results", str(tmp_path), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "CUB_200_2011.tgz is not downloaded yet" in printed.out
    assert "3 runs: 0 recorded, 3 to make" in printed.out
    assert "downloading" not in printed.err


def test_time_is_the_median_of_like_runs_by_epoch() -> None:
    def record(seconds: float, **changes: Any) -> Record:
        made = record_of(QUICK.changed(**changes), 0.5)
        made.cost["total_seconds"] = seconds
        return made

    records = [record(10), *(record(seconds, train__epochs=2) for seconds in (60, 40))]
    records += [record(999, strategy="standard"), record(999, model__backbone="vit")]
    longer = QUICK.changed(train__epochs=4)
    assert estimate([longer, longer.changed(strategy="l2sp")], records, "cpu") == [80, None]
    assert estimate([longer], records, "cuda") == [None]
