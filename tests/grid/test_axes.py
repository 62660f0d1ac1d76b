"""Grids: which runs they hold, in which order, and how the command line says so."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.cli import parse
from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.grids import GRIDS
from retrieval_bench.grid.axes import Grid, run_flags, split_words
from retrieval_bench.identity import changed_flags
from retrieval_bench.sections import DataConfig, LossConfig, TrainConfig
from retrieval_bench.strategies import STRATEGIES

BASE = RunConfig(data=DataConfig(dataset="synthetic"))


def runs(*words: str) -> list[RunConfig]:
    return parse(["sweep", *words]).grid.runs()


def test_seed_by_seed_whatever_the_order_of_the_flags() -> None:
    found = runs(
        "--loss", "triplet,proxy_anchor", "--seed", "1,0", "--strategy", "frozen,standard", "--dataset", "synthetic"
    )
    told = [(config.seed, config.loss.loss, config.strategy) for config in found]
    assert told == list(itertools.product((1, 0), ("triplet", "proxy_anchor"), ("frozen", "standard")))
    assert {config.data.dataset for config in found} == {"synthetic"}


def test_one_value_everywhere_is_the_run_of_run() -> None:
    words = [
        "--lr",
        "1e-3",
        "--no-flip",
        "--k",
        "1",
        "2",
        "--strategy",
        "last_k",
        "--last_k.k=2",
        "--loss-options",
        "alpha",
        "16",
    ]
    assert runs(*words) == [parse(["run", *words]).config]


def test_options_reach_only_the_strategies_that_use_them() -> None:
    found = runs("--strategy", "standard,last_k,frozen", "--last-k.k", "1,2")
    assert [config.strategy_label for config in found] == ["standard", "last_k(k=1)", "last_k(k=2)", "frozen"]


def test_words_of_one_flag_are_combined_and_lists_are_left_whole() -> None:
    found = runs("--loss-options", "margin", "0.1,0.2", "--loss", "triplet")
    assert [config.loss.loss_options for config in found] == [(("margin", 0.1),), (("margin", 0.2),)]
    drop = "--layer-pruning.drop"
    found = runs("--strategy", "layer_pruning", drop, "15,16", drop, "last:2")
    assert [config.options.layer_pruning.drop for config in found] == ["15,16", "last:2"]


def test_flags_change_a_grid_that_has_a_name() -> None:
    whole = GRIDS["synthetic"][1]
    assert len(whole.runs()) == 8
    found = runs("synthetic", "--strategy", "standard", "--epochs", "1,2", "--freeze-bn")
    assert [(config.seed, config.loss.loss, config.train.epochs) for config in found] == list(
        itertools.product((0, 1), ("triplet", "proxy_anchor"), (1, 2))
    )
    assert all(config.train.freeze_bn and config.data == whole.base.data for config in found)


@pytest.mark.parametrize("name", GRIDS)
def test_grids_that_have_a_name_can_be_run(name: str) -> None:
    configs = GRIDS[name][1].runs()
    assert len(configs) == len(set(configs)) > 1


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"los": ("triplet",)}, "did you mean '--loss'"),
        ({"lr": (0.1, float("nan"))}, "--lr nan: must be finite .the run with --lr nan"),
        ({"strategy": ("standard", "frozen"), "last-k.k": (1, 2)}, "--last-k options are set"),
        ({"strategy": ("standard", "autolr+weight_variation+autolr")}, "twice"),
    ],
)
def test_the_first_run_that_cannot_work_is_refused_before_any(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Grid(BASE, axes).runs()


def test_every_choice_of_a_run_is_a_flag() -> None:
    every = replace(
        BASE,
        strategy="+".join(("layer_pruning", "last_k")),
        loss=LossConfig(loss="triplet", loss_lr=1.0, loss_options=(("margin", 0.3),)),
        train=TrainConfig(epochs=9, cycles=2),
        options=replace(RunConfig().options, last_k=STRATEGIES["last_k"].Options(k=7)),  # pyright: ignore[reportCallIssue]
    )
    flags = run_flags()
    assert {
        words[0].removeprefix("--").removeprefix("no-") for words in changed_flags(every, RunConfig())
    } <= flags.keys()
    assert len(set(flags.values())) == len(flags)


@given(
    st.dictionaries(
        st.sampled_from(("seed", "epochs", "cycles", "batch-size")), st.sets(st.integers(2, 99), min_size=1, max_size=4)
    )
)
def test_words_say_what_they_say(axes: dict[str, set[int]]) -> None:
    """Numbers joined by commas, after a space or an equals sign, are the same values; the last of a flag counts; other words stay."""
    values = {flag: [[str(number)] for number in numbers] for flag, numbers in axes.items()}
    joined = [word for flag, numbers in axes.items() for word in (f"--{flag}", ",".join(map(str, numbers)))]
    twice = ["--seed", "8,9", *joined] if "seed" in axes else joined
    equal = [f"--{flag}={','.join(map(str, numbers))}" for flag, numbers in axes.items()]
    for words in (joined, twice, equal):
        assert split_words(["--jobs", "2", *words, "--dry-run", "--results", "a,b"]) == (
            ["--jobs", "2", "--dry-run", "--results", "a,b"],
            values,
        )


@given(st.lists(st.sampled_from(("seed", "lr", "epochs", "strategy", "flip", "backbone")), unique=True), st.data())
def test_a_grid_is_the_product_of_its_axes(flags: list[str], data: st.DataObject) -> None:
    known = {
        "seed": (0, 1, 2),
        "lr": (0.1, 0.2),
        "epochs": (1, 2, 3),
        "strategy": ("frozen", "standard"),
        "flip": (True, False),
        "backbone": ("resnet18", "resnet34"),
    }
    axes = {flag: tuple(data.draw(st.lists(st.sampled_from(known[flag]), min_size=1, unique=True))) for flag in flags}
    found = Grid(BASE, axes).runs()
    seeds = [config.seed for config in found]
    assert [seed for seed, _ in itertools.groupby(seeds)] == list(axes.get("seed", (0,))), "each seed is one stretch"

    def told(config: RunConfig) -> dict[str, Any]:
        known = {"seed": config.seed, "lr": config.train.lr, "epochs": config.train.epochs, "strategy": config.strategy}
        return {**known, "flip": config.data.flip, "backbone": config.model.backbone}

    expected = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    found_values = [{flag: value for flag, value in told(config).items() if flag in axes} for config in found]
    assert sorted(map(repr, found_values)) == sorted(
        repr({flag: values[flag] for flag in told(BASE) if flag in axes}) for values in expected
    )
