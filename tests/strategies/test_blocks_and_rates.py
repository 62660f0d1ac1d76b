"""Strategies that choose which blocks train, how fast, and what holds them or puts them back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder, freeze_batch_norms
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce
from retrieval_bench.strategies.bitfit import BitFit
from retrieval_bench.strategies.l2sp import L2SP
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.strategies.layerwise_decay import LayerwiseDecay
from retrieval_bench.strategies.low_high import LowHigh
from retrieval_bench.strategies.norm_tuning import NormTuning
from retrieval_bench.strategies.rollback import Rollback
from tests.training.helpers import (
    Data,
    differing,
    flatten,
    make_training,
    random_images,
    run_config,
    state_of,
    tiny_embedder,
)
from tests.training.helpers import tiny_embedder as tiny


def trainable_blocks(model: Embedder) -> list[str]:
    """Names of the blocks that train; a block of which only a part does is an error."""
    trained = {
        block.name: {parameter.requires_grad for parameter in model.backbone.block_parameters(block)}
        for block in model.backbone.blocks
    }
    assert all(len(states) == 1 for states in trained.values())
    return [name for name, states in trained.items() if states == {True}]


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("resnet18", 1, ["layer4.1"]),
        ("resnet18", 8, [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]),
        ("efficientnet_lite0", 3, ["blocks.5.2", "blocks.5.3", "blocks.6.0", "tail"]),
    ],
)
def test_last_k_trains_the_last_k_blocks_and_the_tail(name: str, k: int, expected: list[str]) -> None:
    strategy = LastK(LastK.Options(k=k))
    model = build_embedder(ModelConfig(backbone=name, weights="none", embedding_dim=4), 32)
    assert trainable_blocks(strategy.prepare(model, random_images(2))) == expected
    assert strategy.info() == {"tuned_blocks": [block for block in expected if block != "tail"]}
    assert all(parameter.requires_grad for parameter in model.embedding.parameters())


@pytest.mark.parametrize(
    ("strategy", "factors"),
    [
        (LayerwiseDecay(LayerwiseDecay.Options(decay=0.5)), [0.5**power for power in range(8, -1, -1)]),
        (LowHigh(LowHigh.Options(low=0.1, high=3.0)), [0.1] * 5 + [3.0] * 4),
    ],
)
def test_learning_rates_by_block(synthetic: Data, strategy: Strategy, factors: list[float]) -> None:
    """Of the stem and eight blocks; embedding and loss keep theirs."""
    lrs = make_training(synthetic, strategy, run_config(lr=1.0, loss_lr=0.5), tiny(4)).lrs()
    assert list(lrs)[:2] == ["stem", "layer1.0"]
    assert list(lrs.values()) == [*factors, 1.0, 0.5]


def test_l2sp_is_half_the_squared_distance_and_pulls_to_the_start() -> None:
    model, images = tiny(dim=4), random_images(2)
    strategy = L2SP(L2SP.Options(alpha=0.5, beta=0.25))
    strategy.parameter_groups(strategy.prepare(model, images), [])
    new = 0.125 * float(flatten(model.embedding).square().sum())
    assert strategy.regularization(model, images).item() == pytest.approx(new, rel=1e-6), "nothing has moved"
    start = flatten(model.backbone).clone()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter += 0.01
    value = strategy.regularization(model, images)
    assert value.item() == pytest.approx(0.25 * len(start) * 1e-4 + new, rel=1e-4)
    value.backward()
    gradients = [parameter.grad for parameter in model.backbone.parameters() if parameter.grad is not None]
    gradient = torch.cat([value.flatten() for value in gradients])
    torch.testing.assert_close(gradient, 0.5 * (flatten(model.backbone) - start))


def test_l2sp_holds_the_network_near_its_start_in_place_of_weight_decay(synthetic: Data) -> None:
    distances = []
    for alpha in (0.0, 10.0):
        strategy = L2SP(L2SP.Options(alpha=alpha))
        training = make_training(synthetic, strategy, run_config(optimizer="sgd", lr=0.01, weight_decay=0.1))
        assert {group["weight_decay"] for group in training.optimizer.param_groups} == {0.0}
        training.fit()
        distances.append(strategy.info()["distance_to_start"])
    assert 0 < distances[1] < 0.5 * distances[0]


class Watched(Rollback):
    """Keeps the network's state, the rates and the size of the optimiser's state when each pass starts."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        self.seen: list[tuple[dict[str, Tensor], dict[str, float], int]] = getattr(self, "seen", [])

        def watched(attempt: int = 0, epochs: int = 0) -> float:
            self.seen.append((state_of(state.model), state.lrs(), len(state.optimizer.state)))
            return train_once(attempt, epochs)

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


@pytest.mark.parametrize(
    ("strategy", "kind", "names"),
    [(BitFit(), nn.Module, {"bias"}), (NormTuning(), (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm), {"weight", "bias"})],
)
@pytest.mark.parametrize("backbone", ["resnet10t", "test_vit", "test_convnext", "efficientnet_lite0"])
def test_only_biases_or_norms_are_trained(strategy: Strategy, kind: Any, names: set[str], backbone: str) -> None:
    """Beside the embedding layer; found by module here, whose classes are torch's own or derived from them."""
    model = build_embedder(ModelConfig(backbone=backbone, weights="none", embedding_dim=4), 64)
    expected = {
        id(parameter)
        for module in model.backbone.modules()
        if isinstance(module, kind)
        for name, parameter in module.named_parameters(recurse=False)
        if name in names
    }
    strategy.prepare(model, random_images(2))
    assert {id(parameter) for parameter in model.backbone.parameters() if parameter.requires_grad} == expected != set()
    assert all(parameter.requires_grad for parameter in model.embedding.parameters())


@pytest.mark.parametrize("strategy", [BitFit(), NormTuning()])
@pytest.mark.parametrize("fused", [False, True])
def test_norms_are_tuned_with_the_statistics_that_they_have(strategy: Strategy, fused: bool, synthetic: Data) -> None:
    training = make_training(synthetic, strategy, run_config(keep_statistics=True, fused=fused))
    before = state_of(training.model)
    training.train_once()
    moved = differing(before, state_of(training.model))
    assert {name.rpartition(".")[2] for name in moved} <= {"weight", "bias"}
    assert any(name.endswith("bn1.bias") for name in moved), moved


@pytest.mark.parametrize("strategy", [BitFit(), NormTuning()])
def test_frozen_norms_leave_nothing_to_train_and_say_so(strategy: Strategy, synthetic: Data) -> None:
    """A transformer has other norms and biases; what frozen norms keep is not trained there either."""
    with pytest.raises(UserError, match=r"would train nothing of this .* add --no-freeze-bn$"):
        make_training(synthetic, strategy, run_config(freeze_bn=True))
    model = build_embedder(ModelConfig(backbone="test_vit", weights="none"), 64)
    freeze_batch_norms(model)
    assert strategy.prepare(model, random_images(2)).trainable()
    bare = tiny_embedder()
    bare.backbone = Backbone(nn.Linear(2, 2, bias=False), (), (0.5,) * 3, (0.25,) * 3, 2)
    with pytest.raises(UserError, match=r"nothing of this backbone$"):
        strategy.prepare(bare, random_images(2))
