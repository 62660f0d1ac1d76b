"""Strategies joined with +, and what the names of strategies may look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import StrategyOptions, build_strategy, split_names
from retrieval_bench.strategies.base import EpochState, ParameterGroup, Strategy, TrainOnce
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.last_k import LastK
from tests.training.helpers import Data, make_training, random_images, run_config, tiny_embedder


class Spy(Strategy):
    """Keeps the names of the hooks that were called; its regularization is a constant."""

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

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        self.calls.append(f"{self.name}.before_training")

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        return None if self.term is None else torch.tensor(self.term)

    def after_step(self, model: Embedder) -> None:
        self.calls.append(f"{self.name}.after_step")

    def end_epoch(self, state: EpochState) -> None:
        self.calls.append(f"{self.name}.end_epoch")

    def finalize(self, model: Embedder) -> Embedder:
        self.calls.append(f"{self.name}.finalize")
        return model

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
    chain.run_epoch(lambda attempt=0: attempts.append(attempt) or 0.0, state)
    assert attempts == [1]


def test_names_and_options_reach_the_strategies() -> None:
    assert split_names("last_k + standard") == ["last_k", "standard"]
    chain = build_strategy("standard+last_k", StrategyOptions(last_k=LastK.Options(k=1)))
    assert list(chain.parts) == ["standard", "last_k"]
    assert chain.parts["last_k"].options.k == 1


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
