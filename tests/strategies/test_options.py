"""How strategies declare options, are named, and are joined with +."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import (
    STRATEGIES,
    StrategyOptions,
    build_strategy,
    label,
    only_used,
    refuse_unused_options,
    split_names,
    validate_options,
)
from retrieval_bench.strategies.base import (
    Categorical,
    EpochState,
    ParameterGroup,
    Range,
    Strategy,
    TrainOnce,
    check_options,
    option,
)
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.l2sp import L2SP
from retrieval_bench.strategies.last_k import LastK
from tests.training.helpers import Data, make_training, random_images, run_config, tiny_embedder


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
    for name, inside, outside in (("blocks", 4, 1.5), ("rate", 0.1, 0.09), ("form", "l1", "l2")):
        assert inside in space[name]
        assert outside not in space[name]
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
    ("strategy", "values", "message"),
    [
        ("autolr", {"max_trials": 0}, "--autolr.max-trials 0: must be at least 1"),
        ("autolr", {"threshold_decay": 1.01}, "--autolr.threshold-decay 1.01: must be above 0 and at most 1"),
        ("autolr", {"threshold": 1.0, "rules": "paper"}, "--autolr.threshold 1.0: must be below 1 with --autolr"),
        ("last_k", {"k": 0}, "--last-k.k 0: must be at least 1"),
        ("rollback", {"periods": 1}, "--rollback.periods 1: must be at least 2"),
        ("rollback", {"periods": 11}, "--epochs 10: rollback needs at least 11"),
        ("random_policy", {"last": -1}, "--random-policy.last -1: must be at least 0"),
        ("channel_pruning", {"budget": 0.0}, "--channel-pruning.budget 0.0: must be above 0"),
        ("channel_pruning", {"scores": "taylor"}, "unknown value of --channel-pruning.scores 'taylor'"),
        ("channel_gates", {"held_out": 0.2}, "--channel-gates.held-out 0.2: needs at least two"),
        ("channel_gates", {"expansion": 2.0}, "--channel-gates.expansion 2.0: must be 1 with"),
        ("spottune", {"eval_policy": "best"}, "--spottune.eval-policy best: choose from argmax"),
        ("spottune", {"eval_policy": "argmax,"}, "--spottune.eval-policy argmax,: choose from argmax"),
        ("spottune", {"eval_policy": "argmax,majority,majority"}, ".*, each once"),
        ("spottune", {"eval_policy": "sample,argmax"}, ".* one draw says little"),
        ("spottune", {"temperature": 0.0}, "--spottune.temperature 0.0: must be above 0"),
        ("spottune", {"policy_weights": "p.pth"}, "--policy-weights p.pth: the policy auto starts from"),
    ],
)
def test_options_that_cannot_work(strategy: str, values: dict[str, Any], message: str) -> None:
    options = StrategyOptions(**{strategy: STRATEGIES[strategy].Options(**values)})
    with pytest.raises(UserError, match=f"^{message}"):
        validate_options(f"{strategy}+standard", options, 10)
    validate_options("standard", options, 10)


def last_k(k: int) -> Any:
    return StrategyOptions(last_k=LastK.Options(k=k))


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("standard", last_k(2), "standard"),
        ("last_k", last_k(3), "last_k(k=3)"),
        ("standard + last_k", last_k(2), "standard+last_k(k=2)"),
        ("l2sp", StrategyOptions(l2sp=L2SP.Options(beta=0.5)), "l2sp(beta=0.5)"),
    ],
)
def test_label(strategy: str, options: Any, expected: str) -> None:
    assert label(strategy, options) == expected
    chain = build_strategy(strategy, options)
    assert list(chain.parts) == [name.strip() for name in strategy.split("+")]
    assert all(part.options == getattr(options, name) for name, part in chain.parts.items())


def test_options_of_a_strategy_that_takes_no_part() -> None:
    with pytest.raises(UserError, match="--last-k options are set but the strategy is standard"):
        refuse_unused_options(["standard"], last_k(1))
    refuse_unused_options(["standard"], last_k(3))
    refuse_unused_options(["standard"], last_k(1), default=last_k(1))
    refuse_unused_options(["standard+last_k"], last_k(1))
    assert only_used("standard", last_k(1)) == StrategyOptions()
    assert only_used("last_k", last_k(1)) == last_k(1)


HOOKS = ("prepare", "parameter_groups", "before_training", "after_step", "end_epoch", "finalize")


class Spy(Strategy):
    """Keeps the names of the hooks that were called; its regularization is a constant."""

    def __init__(self, name: str = "spy", calls: list[str] | None = None, term: float | None = None):
        super().__init__()
        noted, self.term = [] if calls is None else calls, term
        for hook in HOOKS:
            method = getattr(self, hook)
            spied = lambda *args, hook=hook, method=method: noted.append(f"{name}.{hook}") or method(*args)  # noqa: E731
            setattr(self, hook, spied)

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        return [{**group, "lr": group["lr"] * 10} for group in groups]

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        return None if self.term is None else torch.tensor(self.term)

    def info(self) -> dict[str, Any]:
        return {} if self.term is None else {"term": self.term}


class Owner(Strategy):
    """Decides how an epoch is run."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        return train_once(attempt=1)


def test_hooks_are_called_in_order_through_a_training(synthetic: Data) -> None:
    calls: list[str] = []
    chain = Chain({"a": Spy("a", calls), "b": Spy("b", calls)})
    training = make_training(synthetic, chain, run_config(epochs=1, batch_size=16, lr=0.001))
    assert training.lrs()["stem"] == pytest.approx(0.1), "each part edits the groups of the one before"
    training.fit()
    hooks = ["prepare", "parameter_groups", "before_training", *["after_step"] * 4, "end_epoch", "finalize"]
    assert calls == [f"{part}.{hook}" for hook in hooks for part in ("a", "b")]


@pytest.mark.parametrize(
    ("terms", "total"), [((1.5, 2.0), 3.5), ((None, 2.0), 2.0), ((None, None), None), ((1.0, None, 0.25), 1.25)]
)
def test_regularization_adds_up_and_is_part_of_the_loss(
    terms: tuple[float | None, ...], total: float | None, synthetic: Data
) -> None:
    chain = Chain({str(index): Spy(term=term) for index, term in enumerate(terms)})
    value = chain.regularization(tiny_embedder(), random_images(1))
    assert (value if value is None else value.item()) == total
    assert chain.info() == {str(index): {"term": term} for index, term in enumerate(terms) if term is not None}
    config = run_config(batch_size=64, lr=0.0)
    plain, more = (make_training(synthetic, strategy, config).train_once() for strategy in (Strategy(), chain))
    assert more - plain == pytest.approx(total or 0, abs=1e-3)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_one_owner_runs_the_epoch_wherever_it_stands(position: int) -> None:
    parts: list[Strategy] = [Spy("a"), Spy("b")]
    parts.insert(position, Owner())
    attempts: list[int] = []
    state: Any = None
    chain = Chain({str(index): part for index, part in enumerate(parts)})
    chain.run_epoch(lambda attempt=0, epochs=0: attempts.append(attempt) or 0.0, state)
    assert attempts == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last_k+last_k", "twice"),
        ("last-k", "did you mean 'last_k'"),
        ("standard+", "unknown strategy ''"),
        ("", "known: .*frozen"),
        ("spottune+progressive", "strategies spottune and progressive both rebuild the blocks"),
        ("random_policy+global_k", "both rebuild the blocks"),
        ("rollback+standard+autolr", "strategies rollback and autolr both decide how an epoch is run"),
        ("spottune+layer_pruning", r"layer_pruning must come first: --strategy layer_pruning\+spottune"),
    ],
)
def test_names_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        split_names(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("last_k", {"k": 9}, "^--last-k.k 9: the backbone has 8 blocks; 1 to 8"),
        ("global_k", {"k": 9}, "the backbone has 8 blocks; choose 1 to 8"),
        ("random_policy", {"last": 8}, "the backbone has 8 blocks; 0 to 7"),
        ("channel_pruning", {"budget": 0.1}, "cannot be met"),
        ("channel_gates", {"budget": 0.1}, "cannot be met"),
        ("channel_gates", {"regime": "from_scratch"}, "add --no-freeze-bn"),
        ("network_slimming", {}, "add --no-freeze-bn"),
        ("spottune", {"code_compat": True}, "add --no-freeze-bn"),
        ("spottune", {"policy": "resnet5"}, "unknown backbone 'resnet5'"),
    ],
)
def test_what_the_network_cannot_do(name: str, options: dict[str, Any], message: str, synthetic: Data) -> None:
    """Eight blocks, batch norms frozen."""
    strategy = STRATEGIES[name](STRATEGIES[name].Options(**options))
    with pytest.raises(UserError, match=message):
        make_training(synthetic, strategy, run_config(freeze_bn=True))
