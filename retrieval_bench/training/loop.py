"""The only training loop. Strategies steer it through their hooks; it counts everything that was computed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.config import RunConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.errors import Diverged
from retrieval_bench.losses import Criterion
from retrieval_bench.models.embedder import Embedder, freeze_batch_norms, frozen, keep_statistics, set_training_mode
from retrieval_bench.progress import logger, time_left, track
from retrieval_bench.seeding import derive
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.aids import StrategyAids
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.distributed import SINGLE_PROCESS, ProcessGroup
from retrieval_bench.training.held_out import Validation
from retrieval_bench.training.optimizer import build_optimizer, parameter_groups, step_factor
from retrieval_bench.training.prefix import FrozenPrefix, Positions
from retrieval_bench.training.step import Step, Stopwatch

CHECKED_EVERY = 10
"""Steps between checks of the loss on a GPU, each of which has to wait for the GPU."""


PROXY_WARMUP = -1_000_000
"""Attempt of the first such pass; strategies' own passes before the training have -1, -2 and so on."""


class Training(StrategyAids):
    """One run's training: what strategies see as an :class:`~retrieval_bench.strategies.base.EpochState`.

    `model` is on its device and not yet prepared by the strategy, `make_criterion` gives the loss for embeddings of a
    size that is known only then. `log` is called with loss and learning rates after each epoch, and the number of
    epochs; and with ``step/loss`` and the number of steps in all passes. Features of a frozen prefix are kept in up to
    `feature_cache` bytes. Recall@1 on the `validation` images is measured after each epoch.

    Attributes:
        embedder: the finished model, once :meth:`fit` has returned.
    """

    embedder: Embedder

    def __init__(
        self,
        model: Embedder,
        make_criterion: Callable[[int], Criterion],
        batches: Batches,
        strategy: Strategy,
        config: RunConfig,
        checkpoints: Checkpoints | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        profile: bool = False,
        log: Callable[[Mapping[str, float], int], None] = lambda values, epochs: None,
        feature_cache: float = 0.0,
        validation: Batches | None = None,
    ):
        super().__init__(strategy, config.train.precision)
        self.batches, self.config = batches, config
        self.validation = Validation(validation, config.train.patience) if validation else None
        self.make_criterion, self.checkpoints, self.group, self.log = make_criterion, checkpoints, group, log
        self.watch = Stopwatch(profile)
        self.prefix = FrozenPrefix(0.0 if config.train.compile or group.size > 1 else feature_cache)
        self.epochs = config.train.epochs
        if config.train.freeze_bn:
            freeze_batch_norms(model)
        elif config.train.keep_statistics:
            keep_statistics(model)
        self.device = next(model.parameters()).device
        example_images = self._example_images()
        torch.manual_seed(derive(config.seed, "prepare"))
        self.model = strategy.prepare(model, example_images)
        self.rebuild()

    def rebuild(self) -> None:
        """Makes loss and optimiser anew for the model as it is now."""
        train = self.config.train
        if train.grad_checkpointing:
            self.model.backbone.set_grad_checkpointing(True)
        self.criterion = self.make_criterion(self.model.dim).to(self.device)
        self.step = Step(self.model, self.criterion, self.strategy, self.config, self.group, self.watch, self.prefix)
        self.step.precision = self.precision
        groups = parameter_groups(self.model, self.criterion, train, self.config.loss)
        groups = self.strategy.parameter_groups(self.model, groups)
        self.optimizer = build_optimizer(train.optimizer, groups, train.fused)

    def _example_images(self) -> Tensor:
        self.batches.reseed(self.config.seed, "probe")
        return next(iter(self.batches))[0].to(self.device)

    def fit(self) -> Embedder:
        """Trains all epochs and returns the finished model. A model with nothing to train is returned untouched, no
        image seen; but in a closed set its loss's classifier is trained.

        Raises :class:`Diverged` if the loss became non-finite (and the strategy did not reject the pass),
        :class:`UserError` if memory does not suffice.
        """
        if self._trains():
            self._train()
        if not self._trains():
            logger.info("nothing to train: the features are evaluated as they are")
        if self.watch.on and self.images_seen:
            logger.info(self.watch.report(self.seconds, self.images_seen))
        if self.config.train.grad_checkpointing:
            self.model.backbone.set_grad_checkpointing(False)
        self.embedder = self.strategy.finalize(self.model)
        return self.embedder

    def _trains(self) -> bool:
        return self.model.trainable() or (self.config.data.split == "closed_set" and self.criterion.classifies)

    def _train(self) -> None:
        if self.checkpoints is not None and (state := self.checkpoints.load()):
            self.load_state_dict(state)
        else:
            if self.precision == "auto":
                choose = lambda: self.step.faster_precision(self._example_images())  # noqa: E731
                self.precision = self.step.precision = self.group.from_main(choose)
            self.strategy.before_training(self.train_once, self)
            if self._trains():
                with frozen(self.model.backbone):
                    for number in range(self.config.loss.proxy_warmup):
                        self.train_once(PROXY_WARMUP - number)
        for epoch in range(len(self.history), self.epochs if self._trains() else 0):
            if self.validation and self.validation.is_over:
                break
            self.epoch = epoch
            start, passes = time.perf_counter(), self.seconds
            self.history.append(self.strategy.run_epoch(self.train_once, self))
            self.strategy.end_epoch(self)
            self.strategy_seconds += time.perf_counter() - start - (self.seconds - passes)
            text, shown = self._validate(self.validation) if self.validation else ("", {})
            if self.checkpoints is not None and self.group.is_main_process:
                self.checkpoints.save(epoch + 1, self.state_dict())
            loss, lrs = self.history[-1], {f"rate/{name}": lr for name, lr in self.lrs().items()}
            self.log({"loss": loss, **lrs, **shown}, epoch + 1)
            text += f", {self.seconds:.0f} s so far{self._time_left(1)}"
            logger.info(f"epoch {epoch + 1}/{self.epochs}: loss {loss:.4f}{text}")
        if self.validation and self.validation.best and (kept := self.validation.kept_epoch) < len(self.history):
            logger.info(f"epoch {kept} had the best R@1 on held-out classes: its weights are taken")
            for name, state in self.validation.best.items():
                getattr(self, name).load_state_dict(state)
        if self.criterion.share_without_pairs == 1:
            logger.info("no batch had a pair or triplet that the miner takes, so the loss was 0: try another --miner")

    def _validate(self, validation: Validation) -> tuple[str, dict[str, float]]:
        """Measures after an epoch; what the user and trackers see."""
        started = time.perf_counter()
        recall = self.group.from_main(partial(validation.measure, self.strategy, self.model))
        validation.add(recall, self.model, self.criterion)
        self._count(validation.batches, started)
        validation.images += validation.batches.images
        validation.seconds += time.perf_counter() - started
        return f", R@1 {100 * recall:.2f} on held-out classes", {"validation/recall_at_1": recall}

    def account(self) -> dict[str, Any]:
        """What the record says of the training; only what happened."""
        without_pairs = round(self.criterion.share_without_pairs, 6)
        events = {"resumed": self.resumed, "skipped_batches": self.skipped, "batches_without_pairs": without_pairs}
        if self.config.train.precision == "auto":
            events["precision"] = self.precision
        return {
            "loss_per_epoch": self.history,
            "converged": self.history[-1] < self.history[0] if len(self.history) > 1 else None,
            **(self.validation.account() if self.validation and self.history else {}),
            **{name: value for name, value in events.items() if value},
        }

    def train_once(self, attempt: int = 0, epochs: int = 0) -> float:
        """One pass over the training data; returns the mean loss. The same (seed, epoch, attempt) gives the same order
        and augmentation. Negative attempts are passes before the training, at the full rate, or with `epochs` at that
        of the schedule over so many."""
        seed = self.config.seed
        self.batches.reseed(seed, self.epoch, attempt)
        set_training_mode(self.model)
        self.criterion.train()
        started = time.perf_counter()
        try:
            batches = self._kept_features() if attempt >= 0 and self.prefix.limit else None
            torch.manual_seed(derive(seed, "dropout", self.epoch, attempt))
            return self._pass(attempt, epochs, batches or self.batches)
        finally:  # a pass that diverged was computed too
            self.seconds += time.perf_counter() - started

    def _kept_features(self) -> Batches | None:
        """The batches of the next pass by position, if features of their images are kept."""
        train = self.config.train
        with self.watch("prefix"):
            size = train.micro_batch or train.batch_size
            passed = self.prefix.fill(self.model, self.step.forward, self.batches, size)
        if passed is None:
            return None
        self.prefix_saved -= passed
        return self.prefix.positions(self.batches)

    def _pass(self, attempt: int, epochs: int, source: Batches) -> float:
        train, steps = self.config.train, len(source)
        done, scheduled = (self.epoch, self.epochs) if attempt >= 0 else (-1 - attempt, epochs)
        always_checked = self.device.type == "cpu" or train.skip_batches > 0
        total, images = torch.zeros((), dtype=torch.float64, device=self.device), 0
        title = "before the training" if attempt < 0 else f"epoch {self.epoch + 1}/{self.epochs}"
        batches, losses = self.watch.each(source, "data"), []
        left = self._time_left if attempt >= 0 else None
        shown = track(batches, title, source.images, size=lambda batch: len(batch[1]), left=left)
        for step, (pixels, labels) in enumerate(shown):
            factor = step_factor(train, done, step, steps, scheduled) if scheduled else 1.0
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            pixels, labels = pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.step(pixels, labels)
            self.images_seen += len(labels)
            self.prefix_saved += len(labels) if isinstance(source, Positions) else 0
            if (always_checked or step % CHECKED_EVERY == CHECKED_EVERY - 1) and not math.isfinite(loss.item()):
                if len(self.skipped) >= train.skip_batches:
                    raise self._diverged(loss.item(), step)
                self.skipped.append([self.epoch, step])
                logger.info(
                    f"the loss of epoch {self.epoch + 1}, step {step + 1} is {loss.item()}: the batch is left out"
                )
                continue
            with self.watch("optimiser"):
                self.group.sum_gradients(self.model.parameters())
                self.optimizer.step()
                self.strategy.after_step(self.model)
            total = total + loss.double() * len(labels)
            images += len(labels)
            losses.append(loss)
            if len(losses) == CHECKED_EVERY:
                self._log_steps(losses)
        self._log_steps(losses)
        self.group.synchronize(self.model, self.criterion)
        mean = total.item() / max(images, 1)
        if not math.isfinite(mean) or not images:
            raise self._diverged(mean, steps - 1)
        return mean

    def _time_left(self, share: float) -> str:
        """After this share of the present epoch."""
        return time_left(time.perf_counter() - self.started, (self.epoch + share) / self.epochs)

    def _log_steps(self, losses: list[Tensor]) -> None:
        """Shows the losses of the last steps to trackers; those of rejected passes too."""
        for loss in torch.stack(losses).tolist() if losses else ():
            self.steps += 1
            self.log({"step/loss": loss}, self.steps)
        losses.clear()

    def _diverged(self, loss: float, step: int) -> Diverged:
        train, place = self.config.train, f"epoch {self.epoch + 1}, step {step + 1}"
        return Diverged(
            f"the loss became {loss} in {place}: lower --lr (now {train.lr:g}) or --loss-lr (now "
            f"{self.config.loss.loss_lr:g})"
        )
