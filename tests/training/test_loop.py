"""The loop: what it counts, what it promises about randomness, what it does with a loss that is no number."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce
from retrieval_bench.strategies.frozen import Frozen
from tests.training.helpers import Data, differing, make_training, run_config, state_of, tiny_embedder


class Recorder(Strategy):
    """Notes the images and the rates of every step, and the loss of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []
        self.rates: list[float] = []
        self.state: EpochState | None = None

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        self.state = state
        return train_once()

    def regularization(self, model: Embedder, images: Tensor) -> None:
        self.images.append(images.clone())

    def after_step(self, model: Embedder) -> None:
        assert self.state is not None
        self.rates.append(self.state.optimizer.param_groups[0]["lr"])


def test_history_and_images(synthetic: Data) -> None:
    training = make_training(synthetic)
    training.fit()
    assert len(training.history) == 2
    assert training.images_seen == 2 * 64
    assert training.seconds > 0


def test_mean_loss_weighs_batches_by_their_images(synthetic: Data) -> None:
    """64 images in batches of 24 leave one of 16."""
    training = make_training(synthetic, Strategy(), run_config(batch_size=24))
    criterion, losses = training.criterion, []
    criterion.register_forward_hook(lambda module, inputs, output: losses.append((output.item(), len(inputs[1]))))
    mean = training.train_once()
    assert [count for _, count in losses] == [24, 24, 16]
    assert mean == pytest.approx(sum(loss * count for loss, count in losses) / 64)


def test_rates_follow_the_cosine_by_step(synthetic: Data) -> None:
    recorder = Recorder()
    make_training(synthetic, recorder, run_config(schedule="cosine", lr=0.001)).fit()
    assert recorder.rates == pytest.approx([0.001 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


def test_set_rates_changes_the_named_groups_only(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config(lr=0.001, loss_lr=0.01))
    before = training.lrs()
    assert before == {**{block.name: 0.001 for block in training.model.backbone.blocks}, "loss": 0.01}
    training.set_lrs({"layer2.0": 0.0})
    assert training.lrs() == {**before, "layer2.0": 0.0}
    with pytest.raises(KeyError, match="no such group"):
        training.set_lrs({"no such group": 1.0})


def test_rate_zero_freezes_a_block_and_a_rate_trains_it(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config(weight_decay=0.1))
    start = state_of(training.model.backbone.net)
    training.set_lrs({block.name: 0.0 for block in training.model.backbone.blocks if block.name != "layer3.1"})
    training.train_once()
    moved = {
        name
        for name in differing(start, state_of(training.model.backbone.net))
        if "running" not in name and "tracked" not in name
    }
    assert moved == {
        f"0.{name}" for name in dict(training.model.backbone.net.named_parameters()) if name.startswith("layer3.1.")
    }


def views_of(synthetic: Data, epoch: int = 0, attempt: int = 0, seed: int = 0) -> Tensor:
    recorder = Recorder()
    training = make_training(synthetic, recorder, run_config(seed=seed))
    training.epoch = epoch
    recorder.state = training
    training.train_once(attempt)
    return torch.cat(recorder.images)


def test_pass_is_fixed_by_seed_epoch_and_attempt(synthetic: Data) -> None:
    first = views_of(synthetic, epoch=1, attempt=1)
    torch.manual_seed(99)
    assert torch.equal(first, views_of(synthetic, epoch=1, attempt=1))


@pytest.mark.parametrize("other", [{"epoch": 1}, {"attempt": 1}, {"seed": 1}])
def test_another_epoch_attempt_or_seed_is_another_pass(synthetic: Data, other: dict[str, int]) -> None:
    assert not torch.equal(views_of(synthetic), views_of(synthetic, **other))


@pytest.mark.parametrize(
    ("loss", "head"), [("softmax", "autolr"), ("triplet", "linear"), ("multi_similarity", "linear")]
)
def test_training_twice_gives_the_same_bits(synthetic: Data, loss: str, head: str) -> None:
    """Dropout and miners included, whatever the state of the global generators."""
    results = []
    for disturbance in (1, 2):
        training = make_training(synthetic, config=run_config(loss, head=head))
        torch.manual_seed(disturbance)
        np.random.seed(disturbance)  # noqa: NPY002
        random.seed(disturbance)
        training.fit()
        results.append(state_of(training.model, training.criterion))
    assert not differing(*results)


def test_dropout_is_fixed_by_the_attempt(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config("softmax", head="autolr"))
    masks: list[Tensor] = []
    dropout = next(module for module in training.criterion.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda module, inputs, output: masks.append(output.eq(0)))
    for attempt in (0, 1, 0):
        training.train_once(attempt)
    first, other, again = masks[0:4], masks[4:8], masks[8:12]
    assert 0.4 < first[0].float().mean() < 0.6
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_frozen_run_sees_no_image(synthetic: Data) -> None:
    model = tiny_embedder()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = state_of(model)
    training = make_training(synthetic, Frozen(), model=model)
    finished = training.fit()
    assert (training.images_seen, training.history, calls) == (0, [], [])
    assert not differing(before, state_of(finished))


def test_frozen_backbone_with_embedding_layer_trains_the_layer_only(synthetic: Data) -> None:
    training = make_training(synthetic, Frozen(), model=tiny_embedder(dim=8))
    before = state_of(training.model)
    training.fit()
    assert differing(before, state_of(training.model)) == {"0.embedding.weight", "0.embedding.bias"}


def test_freeze_bn_keeps_statistics_scale_and_shift(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config(freeze_bn=True, weight_decay=0.1))
    before = state_of(training.model)
    training.fit()
    changed = differing(before, state_of(training.model))
    assert changed
    assert not [name for name in changed if ".bn" in name or "downsample.1" in name]


class Explosion(Strategy):
    """Makes the loss a NaN or infinite in the third step of the second epoch."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.steps = value, 0
        self.before: dict[str, Tensor] = {}

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        self.steps += 1
        if self.steps < 7:
            return None
        self.before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        return next(model.parameters()).sum() * self.value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number_stops_the_run(synthetic: Data, value: float) -> None:
    strategy = Explosion(value)
    training = make_training(synthetic, strategy)
    with pytest.raises(UserError, match="epoch 2, step 3") as caught:
        training.fit()
    assert "--lr" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(parameter, strategy.before[name]) for name, parameter in training.model.named_parameters())


def test_rate_that_is_far_too_high_is_reported_as_such(synthetic: Data) -> None:
    with pytest.raises(UserError, match="--lr"):
        make_training(synthetic, config=run_config("softmax", lr=1e30, loss_lr=1e30, optimizer="sgd")).fit()


def test_a_pass_that_diverges_is_counted_as_cost(synthetic: Data) -> None:
    training = make_training(synthetic)
    training.criterion.register_forward_hook(lambda module, inputs, output: torch.tensor(float("nan")))
    with pytest.raises(Diverged):
        training.train_once()
    assert training.images_seen == 16
    assert training.seconds > 0
