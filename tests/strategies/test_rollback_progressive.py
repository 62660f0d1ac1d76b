"""Rollback, random policy and progressive networks: what each promises beyond the shared suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.routing import RoutedBackbone, recorded_decisions
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.base import EpochState, TrainOnce
from retrieval_bench.strategies.progressive import Progressive
from retrieval_bench.strategies.random_policy import RandomPolicy
from retrieval_bench.strategies.rollback import Rollback
from tests.training.helpers import Data, make_training, random_images, run_config, state_of, tiny_embedder

IMAGES = random_images(6, seed=3)


def test_random_policy_tunes_the_last_blocks_always_and_half_of_the_others(synthetic: Data) -> None:
    strategy = RandomPolicy()
    model = make_training(synthetic, strategy, run_config(lr=0.01)).fit().eval()
    assert isinstance(model.backbone, RoutedBackbone)
    assert len(model.backbone.routed) == 5
    assert len(strategy.info()["tuned_blocks"]) == 3
    images = random_images(200, seed=1)
    with recorded_decisions(model) as decisions, torch.no_grad():
        first, again = model(images), model(images.flip(0)).flip(0)
    assert (decisions[0].float().mean(0) - 0.5).abs().max() < 0.15
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="0 to 7"):
        RandomPolicy(RandomPolicy.Options(last=8)).prepare(tiny_embedder(), IMAGES)


class Watched(Rollback):
    """Keeps the network's state, the rates and the size of the optimiser's state when each pass starts."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        self.seen: list[tuple[dict[str, Tensor], dict[str, float], int]] = getattr(self, "seen", [])

        def watched(attempt: int = 0) -> float:
            self.seen.append((state_of(state.model), state.lrs(), len(state.optimizer.state)))
            return train_once(attempt)

        return super().run_epoch(watched, state)


def test_rollback_returns_the_higher_blocks_to_their_start(synthetic: Data) -> None:
    """Eight blocks in four periods of two epochs: kept are the stem, then two blocks more in each period."""
    strategy = Watched()
    training = make_training(synthetic, strategy, run_config(epochs=8, lr=0.01, optimizer="sgd"), tiny_embedder(4))
    names = [block.name for block in training.model.backbone.body]
    training.fit()
    assert len(strategy.seen) == 8
    start, lrs, _ = strategy.seen[0]
    for epoch, kept in ((2, 0), (4, 2), (6, 4)):
        state, now, remembered = strategy.seen[epoch]
        before = strategy.seen[epoch - 1][0]
        same = {name for name in names if all(state[key].equal(start[key]) for key in state if f".{name}." in key)}
        assert same == set(names[kept:])
        assert not state["0.backbone.net.conv1.weight"].equal(start["0.backbone.net.conv1.weight"])
        assert not state["0.embedding.weight"].equal(start["0.embedding.weight"])
        assert now == {name: lr * (0.1 if name in ("stem", *names[:kept]) else 1) for name, lr in lrs.items()}
        assert remembered == 0, "momentum starts at zero"
        assert any(not before[key].equal(start[key]) for key in before), "it had moved"
    assert [entry["epoch"] for entry in strategy.info()["periods"]] == [2, 4, 6]


def test_progressive_starts_from_the_pretrained_features_and_keeps_its_first_column(synthetic: Data) -> None:
    expected = tiny_embedder()(IMAGES)
    model = Progressive().prepare(tiny_embedder(), random_images(2)).eval()
    torch.testing.assert_close(model(IMAGES), expected, rtol=1e-4, atol=1e-4)
    training = make_training(synthetic, Progressive(), run_config(lr=0.01))
    before = state_of(training.model)
    after = state_of(training.fit())
    frozen = {key for key in before if ".frozen." in key}
    assert len(frozen) == sum(".new." in key for key in before) > 0
    assert all(before[key].equal(after[key]) for key in frozen)
    assert all(not before[key].equal(after[key]) for key in before if key.endswith("adapter.2.weight"))


def test_progressive_carries_the_frozen_column_s_features_over() -> None:
    """A change of the frozen column reaches the output through the adapters alone."""
    model = Progressive().prepare(tiny_embedder(), random_images(2)).eval()
    block: Any = model.backbone.net.get_submodule(model.backbone.body[2].name)
    with torch.no_grad():
        before = model(IMAGES)
        for parameter in block.frozen.parameters():
            parameter += 0.1
        torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=0)
        block.adapter[2].weight += 0.1
        assert not torch.allclose(model(IMAGES), before)


def test_progressive_needs_feature_maps() -> None:
    model = build_embedder(ModelConfig(backbone="vit_tiny_patch16_224", weights="none"), 32)
    with pytest.raises(UserError, match="feature maps"):
        Progressive().prepare(model, random_images(1))
