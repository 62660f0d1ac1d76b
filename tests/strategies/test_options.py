"""How strategies declare options: flag help, bounds, search ranges, labels; and which options go with which."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.strategies import (
    STRATEGIES,
    StrategyOptions,
    label,
    only_used,
    refuse_unused_options,
    validate_options,
)
from retrieval_bench.strategies.autolr import AutoLR
from retrieval_bench.strategies.base import Categorical, Range, Strategy, check_options, option
from retrieval_bench.strategies.l2sp import L2SP
from retrieval_bench.strategies.last_k import LastK


class Example(Strategy):
    """A strategy with an option of every kind."""

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        rate: float = option(0.5, "a rate", above=0, high=1, search=Range(0.1, 1.0, log=True))
        share: float = option(0.0, "a share", low=0, below=1)
        blocks: int = option(2, "blocks", search=Range(1, 8, blocks=True), shown=True)
        form: str = option("ratio", "a form", choices=("ratio", "l1"), search=Categorical(("ratio", "l1")))

        def check(self) -> None:
            if self.form == "l1" and self.share:
                raise UserError("no share with l1")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, r"--an-example.rate 0.0: must be above 0 and at most 1"),
        ({"rate": 1.1}, r"--an-example.rate 1.1: must be above 0 and at most 1"),
        ({"share": -0.1}, r"--an-example.share -0.1: must be at least 0 and below 1"),
        ({"share": 1.0}, r"--an-example.share 1.0: must be at least 0 and below 1"),
        ({"rate": float("nan")}, r"--an-example.rate nan: must be"),
        ({"form": "rati"}, r"unknown value of --an-example.form 'rati': did you mean 'ratio'\?"),
        ({"form": "l1", "share": 0.5}, "no share with l1"),
    ],
)
def test_options_out_of_bounds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        check_options("an_example", Example.Options(**values))
    check_options("an_example", Example.Options(rate=1.0, share=0.0))


def test_search_space_comes_from_the_options() -> None:
    space = Example.space
    assert {name: str(values) for name, values in space.items()} == {
        "rate": "0.1 to 1, log",
        "blocks": "1 to 8",
        "form": "ratio, l1",
    }
    assert space["blocks"].within(5) == Range(1, 4, blocks=True)
    assert space["rate"].within(5) == space["rate"]
    assert (4 in space["blocks"], 1.5 in space["blocks"], 0.1 in space["rate"], 0.09 in space["rate"]) == (
        True,
        False,
        True,
        False,
    )
    assert ("l1" in space["form"], "l2" in space["form"]) == (True, False)
    counts = Categorical(("last:0", "last:1", "last:2"), blocks=True)
    assert counts.within(2).values == ("last:0", "last:1")


@pytest.mark.parametrize("name", STRATEGIES)
def test_options_of_each_strategy(name: str) -> None:
    """They have help, defaults that are JSON, within bounds and within what is searched."""
    options = STRATEGIES[name].Options()
    check_options(name, options)
    for part in fields(options):
        assert part.metadata["help"]
        assert json.dumps(part.default)
        assert part.name not in STRATEGIES[name].space or part.default in STRATEGIES[name].space[part.name]


@pytest.mark.parametrize(
    ("strategy", "option_name", "value", "message"),
    [
        *(
            ("autolr", option_name, 0, "must be (above 0|at least 1)")
            for option_name in ("max_trials", "max_ratio", "max_rise", "low", "high", "threshold_decay", "stem_factor")
        ),
        ("autolr", "threshold", 1.01, "must be at most 1"),
        ("autolr", "threshold_decay", 1.01, "must be above 0 and at most 1"),
        ("last_k", "k", 0, "must be at least 1"),
        ("l2sp", "alpha", -1, "must be at least 0"),
        ("l2sp", "beta", -1, "must be at least 0"),
        ("layerwise_decay", "decay", 0, "must be above 0"),
        ("low_high", "low", -1, "must be at least 0"),
        ("rollback", "periods", 1, "must be at least 2"),
        ("rollback", "kept_rate", -0.1, "must be at least 0"),
        ("progressive", "reduction", 0, "must be at least 1"),
        ("random_policy", "last", -1, "must be at least 0"),
    ],
)
def test_options_that_cannot_work(strategy: str, option_name: str, value: Any, message: str) -> None:
    options = StrategyOptions(**{strategy: STRATEGIES[strategy].Options(**{option_name: value})})
    flag = f"--{strategy}.{option_name} {value}".replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag}: {message}"):
        validate_options(f"standard+{strategy}", options, 10)
    validate_options("standard", options, 10)


def test_thresholds_that_no_pass_can_exceed() -> None:
    """Every epoch would be repeated until its limit; where nothing moves there would not even be a target."""
    kind = AutoLR.Options
    check_options("autolr", kind(threshold=1.0, threshold_decay=1.0))
    with pytest.raises(UserError, match="must be below 1 with --autolr"):
        check_options("autolr", kind(threshold=1.0, rules="paper"))


def test_epochs_needed() -> None:
    with pytest.raises(UserError, match="--epochs 3: rollback needs at least 4"):
        validate_options("rollback", StrategyOptions(), 3)
    validate_options("rollback", StrategyOptions(), 4)


def last_k(k: int) -> Any:
    return StrategyOptions(last_k=LastK.Options(k=k))


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("standard", last_k(2), "standard"),
        ("last_k", last_k(3), "last_k(k=3)"),
        ("standard + last_k", last_k(2), "standard+last_k(k=2)"),
        ("l2sp", StrategyOptions(), "l2sp"),
        ("l2sp", StrategyOptions(l2sp=L2SP.Options(beta=0.5)), "l2sp(beta=0.5)"),
    ],
)
def test_label(strategy: str, options: Any, expected: str) -> None:
    assert label(strategy, options) == expected


def test_options_of_a_strategy_that_takes_no_part() -> None:
    with pytest.raises(UserError, match="--last-k options are set but the strategy is standard"):
        refuse_unused_options(["standard"], last_k(1))
    refuse_unused_options(["standard"], last_k(3))
    refuse_unused_options(["standard"], last_k(1), default=last_k(1))
    refuse_unused_options(["standard+last_k"], last_k(1))
    assert only_used("standard", last_k(1)) == StrategyOptions()
    assert only_used("last_k", last_k(1)) == last_k(1)
