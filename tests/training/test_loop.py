"""The loop: what it counts, what it promises about randomness, snapshots, and non-finite losses."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.autolr import AutoLR
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.frozen import Frozen
from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, differing, flatten, make_training, run_config, state_of, tiny_embedder


class Recorder(Strategy):
    """Keeps the images and the learning rates of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []
        self.lrs: list[float] = []
        self.state: EpochState | None = None

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        self.state = state
        return train_once()

    def regularization(self, model: Embedder, images: Tensor) -> None:
        self.images.append(images.clone())

    def after_step(self, model: Embedder) -> None:
        if self.state is not None:
            self.lrs.append(self.state.optimizer.param_groups[0]["lr"])


def test_history_images_rates_and_log(synthetic: Data) -> None:
    recorder, logged = Recorder(), []
    config = run_config(schedule="cosine", lr=0.001)
    training = make_training(synthetic, recorder, config, log=lambda values, epochs: logged.append((values, epochs)))
    training.fit()
    assert recorder.lrs == pytest.approx([0.001 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])
    assert training.images_seen == 2 * 64
    assert training.seconds > 0
    assert [(values["loss"], values["rate/stem"], epochs) for values, epochs in logged] == [
        (loss, 0.001, epoch) for epoch, loss in enumerate(training.history, 1)
    ]


def test_mean_loss_weighs_batches_by_their_images(synthetic: Data) -> None:
    """64 images in batches of 24 leave one of 16."""
    training = make_training(synthetic, Strategy(), run_config(batch_size=24))
    losses: list[tuple[float, int]] = []
    training.criterion.register_forward_hook(lambda _, inputs, output: losses.append((output.item(), len(inputs[1]))))
    mean = training.train_once()
    assert [count for _, count in losses] == [24, 24, 16]
    assert mean == pytest.approx(sum(loss * count for loss, count in losses) / 64)


def test_learning_rates_of_groups(synthetic: Data) -> None:
    """A rate of 0 freezes a block also under weight decay."""
    training = make_training(synthetic, config=run_config(lr=0.001, loss_lr=0.01, weight_decay=0.1))
    before, net = training.lrs(), training.model.backbone.net
    assert before == {**{block.name: 0.001 for block in training.model.backbone.blocks}, "loss": 0.01}
    changes = {block.name: 0.0 for block in training.model.backbone.blocks if block.name != "layer3.1"}
    training.set_lrs(changes)
    assert training.lrs() == before | changes
    with pytest.raises(KeyError, match="no such group"):
        training.set_lrs({"no such group": 1.0})
    start = state_of(net)
    training.train_once()
    moved = {name for name in differing(start, state_of(net)) if "running" not in name and "tracked" not in name}
    assert moved == {f"0.{name}" for name, _ in net.named_parameters() if name.startswith("layer3.1.")}


def crops(synthetic: Data, epoch: int = 0, attempt: int = 0, seed: int = 0) -> Tensor:
    recorder = Recorder()
    training = make_training(synthetic, recorder, run_config(seed=seed))
    training.epoch = epoch
    training.train_once(attempt)
    return torch.cat(recorder.images)


def test_pass_is_fixed_by_seed_epoch_and_attempt(synthetic: Data) -> None:
    first = crops(synthetic, epoch=1, attempt=1)
    torch.manual_seed(99)
    assert torch.equal(first, crops(synthetic, epoch=1, attempt=1))
    for other in ({"epoch": 1}, {"attempt": 1}, {"seed": 1}):
        assert not torch.equal(first, crops(synthetic, **other)), other


@pytest.mark.parametrize(("loss", "head"), [("softmax", "autolr"), ("triplet", "linear")])
def test_training_twice_gives_the_same_bits(synthetic: Data, loss: str, head: str) -> None:
    """Dropout and miners included, whatever the state of the global generators."""
    results = []
    for seed in (1, 2):
        training = make_training(synthetic, config=run_config(loss, head=head))
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
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


@pytest.mark.parametrize("dim", [0, 8])
def test_frozen_backbone(synthetic: Data, dim: int) -> None:
    """Without an embedding layer no image is seen; with one, only the layer is trained."""
    training = make_training(synthetic, Frozen(), model=tiny_embedder(dim))
    before = state_of(training.model)
    after = state_of(training.fit())
    assert differing(before, after) == ({"0.embedding.weight", "0.embedding.bias"} if dim else set())
    assert (training.images_seen, len(training.history)) == ((2 * 64, 2) if dim else (0, 0))


class Attempts(Strategy):
    """Runs the given attempts of each epoch and keeps the last; a rejected attempt also changes the rates."""

    def __init__(self, *attempts: int):
        super().__init__()
        self.attempts = attempts

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        loss, start = math.nan, state.snapshot()
        for attempt in self.attempts:
            state.restore(start)
            if attempt != self.attempts[-1]:
                state.set_lrs(dict.fromkeys(state.lrs(), 0.1))
            loss = train_once(attempt)
        return loss


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_rejected_attempt_leaves_no_trace_but_is_counted(synthetic: Data, optimizer: str) -> None:
    """Weights, BN statistics, optimiser and rates are put back bit for bit."""
    config = run_config("softmax", head="autolr", optimizer=optimizer, weight_decay=0.01)
    direct, retried = (make_training(synthetic, Attempts(*attempts), config) for attempts in ((1,), (0, 2, 1)))
    for training in (direct, retried):
        training.fit()
    assert not differing(state_of(direct.model, direct.criterion), state_of(retried.model, retried.criterion))
    assert (direct.history, direct.lrs()) == (retried.history, retried.lrs())
    assert (direct.images_seen, retried.images_seen) == (2 * 64, 6 * 64)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The numbers and tensors of a nested state dictionary, on one level."""
    if isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, item in entries for name, leaf in leaves(item, f"{path}/{key}").items()}
    return {} if value is None or isinstance(value, str) else {path: torch.as_tensor(value)}


def test_snapshot_shares_no_memory_with_the_training(synthetic: Data) -> None:
    training = make_training(synthetic)
    training.train_once()
    snapshot = training.snapshot()
    kept = leaves(copy.deepcopy(snapshot))
    training.train_once()
    training.restore(snapshot)
    training.train_once()
    assert not differing(kept, leaves(snapshot))


class NonFinite(Strategy):
    """Makes the loss of the given steps non-finite."""

    def __init__(self, *steps: int, value: float = math.nan):
        super().__init__()
        self.steps, self.step, self.value = steps, -1, value
        self.weights: list[Tensor] = []

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        self.step += 1
        self.weights.append(flatten(model))
        return next(model.parameters()).sum() * self.value if self.step in self.steps else None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_loss_stops_the_run_before_it_changes_a_weight(synthetic: Data, value: float) -> None:
    strategy = NonFinite(6, value=value)
    training = make_training(synthetic, strategy)
    with pytest.raises(Diverged, match=r"^the loss became \S+ in epoch 2, step 3: lower --lr \(now 0.001\) or .*$"):
        training.fit()
    assert torch.equal(flatten(training.model), strategy.weights[6])
    assert training.images_seen == 7 * 16, "the pass was computed too"


def test_learning_rate_that_is_far_too_high_is_reported_as_such(synthetic: Data) -> None:
    with pytest.raises(UserError, match="--lr"):
        make_training(synthetic, config=run_config("softmax", lr=1e30, loss_lr=1e30, optimizer="sgd")).fit()


def test_skipped_batches_change_nothing(synthetic: Data, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(skip_batches: int, *steps: int) -> tuple[Training, list[Tensor]]:
        strategy = NonFinite(*steps)
        training = make_training(synthetic, strategy, run_config(skip_batches=skip_batches, freeze_bn=True))
        training.fit()
        return training, strategy.weights

    training, weights = trained(2, 1, 6)
    assert training.account()["skipped_batches"] == [[0, 1], [1, 2]]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])
    assert "epoch 1, step 2 is nan: the batch is left out" in capsys.readouterr().err
    with pytest.raises(Diverged, match="epoch 2, step 3"):
        trained(1, 1, 6)
    with pytest.raises(Diverged):
        trained(8, *range(8))


class NonFiniteImages(Strategy):
    """Makes the loss of the first batch non-finite, whenever the same images come again."""

    first: Tensor | None = None

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        self.first = images.clone() if self.first is None else self.first
        return torch.tensor(math.nan) if torch.equal(images, self.first) else None


def test_skipped_batches_of_rejected_passes_are_taken_back(synthetic: Data) -> None:
    """No pass is sorted enough; the first is the best, skips a batch, and skips it again when it is repeated."""
    autolr = AutoLR(AutoLR.Options(max_trials=3, threshold=1.0, max_ratio=1.0))
    config = run_config("softmax", optimizer="sgd", lr=0.01, freeze_bn=True, skip_batches=1, epochs=1)
    training = make_training(synthetic, Chain({"non_finite": NonFiniteImages(), "autolr": autolr}), config)
    training.fit()
    info = autolr.info()
    assert info["passes"] == [4], "three, and the first once more"
    assert info["quality"][0] == info["qualities"][0][0]
    assert training.account()["skipped_batches"] == [[0, 0]]


def test_holding_out_classes(synthetic: Data) -> None:
    """Passes inside leave out a quarter of the 8 training classes, on which Recall@1 is measured; both are counted."""
    training = make_training(synthetic)
    labels: set[int] = set()
    training.criterion.register_forward_pre_hook(lambda _, inputs: labels.update(inputs[1].tolist()))
    with training.holding_out(0.25) as recall_at_1:
        training.train_once()
        assert len(labels) == 6
        assert 0 <= recall_at_1() <= 1
    assert training.images_seen == 48 + 16
    assert len(np.unique(training.batches.labels)) == 8
    with pytest.raises(UserError, match=r"0.1 of 8 training classes held out"), training.holding_out(0.1):
        pass
