"""Surgical fine-tuning: which blocks train, and learning rates by relative gradient norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import EpochState, TrainOnce
from retrieval_bench.strategies.surgical import Surgical, blocks_to_tune
from tests.training.helpers import Data, make_training, random_images, run_config, tiny_embedder

NAMES = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]


@pytest.mark.parametrize(
    ("tune", "numbers"),
    [
        ("first", [1, 2, 3]),
        ("middle", [4, 5, 6]),
        ("last", [7, 8]),
        ("2..4", [2, 3, 4]),
        ("layer4.0..8", [7, 8]),
        ("8,layer1.0, 3", [1, 3, 8]),
        ("1..8", [*range(1, 9)]),
    ],
)
def test_blocks_that_are_trained(tune: str, numbers: list[int]) -> None:
    """The stem with the first block; this network has no tail."""
    model, strategy = tiny_embedder(dim=4), Surgical(Surgical.Options(tune=tune))
    strategy.prepare(model, random_images(2))
    expected = [NAMES[number - 1] for number in numbers]
    assert strategy.info() == {"tuned_blocks": expected}
    parameters = {block.name: model.backbone.block_parameters(block) for block in model.backbone.blocks}
    trained = {name: {value.requires_grad for value in values} for name, values in parameters.items()}
    assert [name for name in NAMES if trained[name] == {True}] == expected
    assert trained["stem"] == {1 in numbers}
    assert all(value.requires_grad for value in model.embedding.parameters())


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ("0..3", "numbered from 1 to 8"),
        ("4..2", "none of the 8 blocks"),
        ("2..", "unknown block ''"),
        (",", "none of the 8 blocks"),
        ("layer1.2", "did you mean 'layer1"),
    ],
)
def test_blocks_that_there_are_not(tune: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        blocks_to_tune(tune, NAMES)


class Watched(Surgical):
    """Works the weights out anew, parameter by parameter with backward passes, before each epoch."""

    expected: list[dict[str, float]] = []  # noqa: RUF012

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        backbone: Any = state.model.backbone
        sums = dict.fromkeys((block.name for block in backbone.blocks), 0.0)
        for images, labels in state.example_batches(self.options.images):
            state.model.eval().zero_grad()
            state.criterion(state.model(images), labels).backward()
            for block in backbone.blocks:
                own = backbone.block_parameters(block)
                gradient = torch.cat([value.grad.flatten() for value in own])
                weight = torch.cat([value.detach().flatten() for value in own])
                sums[block.name] += float(gradient.norm() / weight.norm())
        state.model.zero_grad()
        state.criterion.zero_grad()
        self.expected.append({name: total / max(sums.values()) for name, total in sums.items()})
        return super().run_epoch(train_once, state)


def test_rates_follow_relative_gradient_norms(synthetic: Data) -> None:
    """Each epoch anew, from the rates at the start; embedding and loss keep theirs; the images count."""
    strategy = Watched(Surgical.Options(images=20))
    training = make_training(synthetic, strategy, run_config(lr=1e-2), tiny_embedder(4))
    training.fit()
    history = strategy.info()["epochs"]
    assert len(history) == len(strategy.expected) == 2
    for epoch, expected in zip(history, strategy.expected, strict=True):
        assert epoch["weights"] == pytest.approx(expected, rel=1e-4)
        assert max(epoch["weights"].values()) == 1
        norms, weights = epoch["relative_gradient_norms"], epoch["weights"]
        assert weights == pytest.approx({name: norm / max(norms.values()) for name, norm in norms.items()})
    assert history[0]["weights"] != history[1]["weights"]
    last = {name: 1e-2 * weight for name, weight in history[-1]["weights"].items()}
    assert training.lrs() == pytest.approx({**last, "embedding": 1e-2, "loss": 1e-2})
    passes, examples = 2 * 64, 2 * 2 * 32  # ours and the oracle's
    assert training.images_seen == passes + examples


def test_without_gradients_the_rates_stay(synthetic: Data) -> None:
    strategy = Surgical(Surgical.Options(images=1))
    training = make_training(synthetic, strategy, run_config(lr=0.0))
    training.criterion.forward = lambda embeddings, labels: 0 * embeddings.sum()  # type: ignore[method-assign]
    training.fit()
    assert {weight for epoch in strategy.info()["epochs"] for weight in epoch["weights"].values()} == {1.0}
