"""The loop: what it counts, what it promises about randomness, snapshots, and non-finite losses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.training.checkpoint import Checkpoints
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


def test_proxies_are_warmed_up_before_the_training_with_a_backbone_that_stays(synthetic: Data, tmp_path: Path) -> None:
    """Cost counts; strategies and schedule see nothing of it; a resumed training does not repeat it."""

    def made(passes: int, epochs: int, model: Embedder, checkpoints: Checkpoints | None = None) -> Training:
        config = run_config(epochs=epochs, schedule="cosine")
        config = replace(config, loss=replace(config.loss, proxy_warmup=passes))
        return make_training(synthetic, None, config, model, checkpoints)

    model = tiny_embedder(8)
    training = made(2, 0, model)
    before, proxies = state_of(model.backbone), state_of(training.criterion)
    head = state_of(model.embedding)
    training.fit()
    assert not differing(before, state_of(model.backbone)), "batch norms too"
    assert differing(head, state_of(model.embedding)) == {"0.weight", "0.bias"}
    assert differing(proxies, state_of(training.criterion)) == {"0.loss.proxies"}
    assert (training.images_seen, training.history) == (2 * 64, [])
    assert all(parameter.requires_grad for parameter in model.parameters())
    whole = made(1, 3, tiny_embedder(8), Checkpoints(tmp_path, {}))
    whole.fit()
    assert whole.images_seen == 4 * 64
    (tmp_path / "epoch-0003.pt").unlink()
    resumed = made(1, 3, tiny_embedder(8), Checkpoints(tmp_path, {}))
    resumed.fit()
    assert (resumed.resumed, resumed.images_seen) == ([2], 4 * 64)
    assert not differing(state_of(whole.model), state_of(resumed.model))
    assert differing(state_of(whole.model), state_of(made(0, 3, tiny_embedder(8)).fit()))


def test_history_images_rates_and_log(synthetic: Data) -> None:
    recorder, logged = Recorder(), []
    config = run_config(schedule="cosine", lr=0.001)
    training = make_training(synthetic, recorder, config, log=lambda values, epochs: logged.append((values, epochs)))
    training.fit()
    assert recorder.lrs == pytest.approx([0.001 * 0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])
    assert training.images_seen == 2 * 64
    assert training.seconds > 0
    epochs = [(values, epoch) for values, epoch in logged if "loss" in values]
    assert [(values["loss"], values["rate/stem"], epoch) for values, epoch in epochs] == [
        (loss, 0.001, epoch) for epoch, loss in enumerate(training.history, 1)
    ]
    steps = [(values["step/loss"], step) for values, step in logged if "step/loss" in values]
    assert [step for _, step in steps] == list(range(1, 9))
    means = [sum(loss for loss, _ in steps[start : start + 4]) / 4 for start in (0, 4)]
    assert means == pytest.approx(training.history)


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


def drawn(synthetic: Data, epoch: int = 0, attempt: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The crops of a pass and what its dropout left out."""
    recorder, masks = Recorder(), []
    training = make_training(synthetic, recorder, run_config("softmax", head="autolr", seed=seed))
    dropout = next(module for module in training.criterion.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda module, inputs, output: masks.append(output.eq(0)))
    training.epoch = epoch
    torch.manual_seed(99 + epoch + attempt)
    training.train_once(attempt)
    return torch.cat(recorder.images), torch.cat(masks)


def test_pass_is_fixed_by_seed_epoch_and_attempt(synthetic: Data) -> None:
    crops, masks = drawn(synthetic, epoch=1, attempt=1)
    again = drawn(synthetic, epoch=1, attempt=1)
    assert torch.equal(crops, again[0])
    assert torch.equal(masks, again[1])
    assert 0.4 < masks.float().mean() < 0.6
    for other in ({"epoch": 1}, {"attempt": 1}, {"epoch": 1, "attempt": 1, "seed": 1}):
        others = drawn(synthetic, **other)
        assert not torch.equal(crops, others[0]), other
        assert not torch.equal(masks, others[1]), other


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


class TakesNothing(nn.Module):
    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return labels[:0], labels[:0], labels[:0]


@pytest.mark.parametrize("nothing", [False, True])
def test_a_loss_that_never_had_a_pair_is_said(
    synthetic: Data, nothing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    training = make_training(synthetic, config=run_config("triplet", micro_batch=4))
    if nothing:
        training.criterion.miner = TakesNothing()
    training.fit()
    assert (training.account().get("batches_without_pairs") == 1.0) == nothing
    assert ("no batch had a pair or triplet" in capsys.readouterr().err) == nothing


def test_skipped_batches_of_rejected_passes_are_taken_back(synthetic: Data) -> None:
    """One batch may be left out: that of the rejected pass does not count."""
    chain = Chain({"non_finite": NonFinite(1, 6), "attempts": Attempts(0, 1)})
    training = make_training(synthetic, chain, run_config(skip_batches=1, freeze_bn=True, epochs=1))
    training.fit()
    assert training.account()["skipped_batches"] == [[0, 2]]


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
