"""Strategies joined with +, and what the names of strategies may look like."""

from __future__ import annotations

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
    refuse_unused_options,
    split_names,
)
from retrieval_bench.strategies.base import EpochState, ParameterGroup, Strategy, TrainOnce
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.last_k import LastK
from tests.training.helpers import Data, make_training, random_images, run_config, tiny_embedder


class Spy(Strategy):
    """Notes every call of a hook that passes a model on; its penalty is a constant."""

    def __init__(self, name: str = "spy", calls: list[str] | None = None, term: float | None = None):
        super().__init__()
        self.name, self.calls, self.term = name, [] if calls is None else calls, term

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        assert example_images.dtype == torch.uint8
        self.calls.append(f"{self.name}.prepare")
        return model

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        self.calls.append(f"{self.name}.parameter_groups")
        return [{**group, "lr": group["lr"] * 10} for group in groups]

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        return None if self.term is None else torch.tensor(self.term)

    def after_step(self, model: Embedder) -> None:
        self.calls.append(f"{self.name}.after_step")

    def finalize(self, model: Embedder) -> Embedder:
        self.calls.append(f"{self.name}.finish")
        return model

    def info(self) -> dict[str, Any]:
        return {} if self.term is None else {"term": self.term}


class Owner(Strategy):
    """Decides how an epoch is run."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        return train_once(attempt=1)


class OtherOwner(Owner):
    """Inherits that from another strategy."""


def test_hooks_are_called_in_order_through_a_training(synthetic: Data) -> None:
    calls: list[str] = []
    training = make_training(
        synthetic, Chain({"a": Spy("a", calls), "b": Spy("b", calls)}), run_config(epochs=1, batch_size=64)
    )
    training.fit()
    hooks = ["prepare", "parameter_groups", "after_step", "finish"]
    assert calls == [f"{part}.{hook}" for hook in hooks for part in ("a", "b")]


def test_each_part_edits_the_groups_of_the_one_before() -> None:
    chain = Chain({"a": Spy("a"), "b": Spy("b")})
    assert chain.parameter_groups(tiny_embedder(), [{"name": "stem", "params": [], "lr": 0.01, "weight_decay": 0.0}])[
        0
    ]["lr"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("terms", "total"), [((1.5, 2.0), 3.5), ((None, 2.0), 2.0), ((None, None), None), ((1.0, None, 0.25), 1.25)]
)
def test_penalties_add_up(terms: tuple[float | None, ...], total: float | None) -> None:
    chain = Chain({str(index): Spy(term=term) for index, term in enumerate(terms)})
    penalty = chain.regularization(tiny_embedder(), random_images(1))
    assert (penalty if penalty is None else penalty.item()) == total


def test_penalty_is_part_of_the_loss(synthetic: Data) -> None:
    plain = make_training(synthetic, Chain({"a": Spy()}), run_config(batch_size=64)).train_once()
    raised = make_training(
        synthetic, Chain({"a": Spy(term=1.0), "b": Spy(term=2.0)}), run_config(batch_size=64)
    ).train_once()
    assert raised - plain == pytest.approx(3, abs=1e-3)


def test_facts_are_filed_under_the_parts_that_have_some() -> None:
    assert Chain({"a": Spy(term=1.0), "b": Spy(), "c": Spy(term=2.0)}).info() == {
        "a": {"term": 1.0},
        "c": {"term": 2.0},
    }


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_one_owner_runs_the_epoch_wherever_it_stands(position: int) -> None:
    parts: list[Strategy] = [Spy("a"), Spy("b")]
    parts.insert(position, Owner())
    attempts: list[int] = []

    def train_once(attempt: int = 0) -> float:
        attempts.append(attempt)
        return 0.0

    state: Any = None
    Chain({str(index): part for index, part in enumerate(parts)}).run_epoch(train_once, state)
    assert attempts == [1]


def test_two_owners_of_the_epoch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="one and two"):
        Chain({"one": Owner(), "between": Spy(), "two": OtherOwner()})
    monkeypatch.setitem(STRATEGIES, "one", Owner)
    monkeypatch.setitem(STRATEGIES, "two", OtherOwner)
    with pytest.raises(UserError, match="one and two") as caught:
        split_names("one+standard+two")
    assert "\n" not in str(caught.value)
    assert split_names("one+standard") == ["one", "standard"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("standard", ["standard"]),
        ("last_k + standard", ["last_k", "standard"]),
        ("standard+last_k", ["standard", "last_k"]),
    ],
)
def test_split_names(text: str, expected: list[str]) -> None:
    assert split_names(text) == expected
    assert list(build_strategy(text, StrategyOptions()).parts) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last_k+last_k", "twice"),
        ("last-k", "did you mean 'last_k'"),
        ("standart", "did you mean 'standard'"),
        ("standard+", "unknown strategy ''"),
        ("", "known: .*frozen"),
    ],
)
def test_names_that_cannot_be_used(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        split_names(text)
    assert "\n" not in str(caught.value)


def options(k: int) -> Any:
    return StrategyOptions(last_k=LastK.Options(k=k))


@pytest.mark.parametrize(
    ("text", "k", "expected"),
    [
        ("standard", 3, "standard"),
        ("last_k", 3, "last_k(k=3)"),
        ("last_k", 1, "last_k(k=1)"),
        ("standard+last_k", 2, "standard+last_k(k=2)"),
    ],
)
def test_label(text: str, k: int, expected: str) -> None:
    assert label(text, options(k)) == expected


def test_label_shows_options_that_differ_from_their_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LastK, "shown_options", ())
    assert label("last_k", options(3)) == "last_k"
    assert label("last_k", options(2)) == "last_k(k=2)"


def test_options_of_a_strategy_that_takes_no_part_are_refused() -> None:
    with pytest.raises(UserError, match="--last-k options are set but the strategy is standard"):
        refuse_unused_options(["standard"], options(1))
    refuse_unused_options(["standard"], options(3))
    refuse_unused_options(["standard+last_k"], options(1))


def test_options_reach_the_strategy() -> None:
    assert build_strategy("last_k", options(1)).parts["last_k"].options.k == 1
