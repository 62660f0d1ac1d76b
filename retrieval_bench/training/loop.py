"""The only training loop. Strategies steer it through their hooks; it counts everything that was computed."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from retrieval_bench.config import RunConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.errors import Diverged
from retrieval_bench.models.embedder import Embedder, freeze_batch_norms, set_training_mode
from retrieval_bench.progress import logger, track
from retrieval_bench.seeding import derive, random_states
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.trackers import Trackers
from retrieval_bench.training.checkpoint import Begun, Checkpoints
from retrieval_bench.training.criterion import Criterion
from retrieval_bench.training.distributed import ALONE, Group
from retrieval_bench.training.held_out import hold_out, recall_at_1
from retrieval_bench.training.interrupts import Interrupt, deferred
from retrieval_bench.training.optimisation import build_optimizer, parameter_groups, schedule_factor
from retrieval_bench.training.profile import Stopwatch
from retrieval_bench.training.step import Forward, backward, is_out_of_memory

CHECKED_EVERY = 10
"""Steps between looks at the loss on a GPU."""


class Training:
    """One run's training state: what a strategy sees as ``state`` (:class:`retrieval_bench.strategies.base.EpochState`).

    Args:
        model: the embedder on its device, not yet prepared by the strategy.
        make_criterion: the loss for embeddings of a given size, known once the strategy has prepared the model.
        batches: training batches.
        strategy: decides what is tuned and how.
        config: the run's configuration.
        checkpoints: where the training is kept after each epoch, and gone on with.
        group: the processes that train it together.
        profile: whether to note where the time goes.
        trackers: are told of every epoch.

    Attributes:
        images_seen: training images passed through the network, rejected attempts included.
        seconds: wall time of all passes.
        strategy_seconds: what the strategy took beside its passes, for snapshots, measures and decisions.
        history: mean loss of each epoch's accepted pass.
        skipped: (epoch, step) of batches that were left out, from 0; those of undone passes are undone with them.
        micro: most images that pass through the network at a time, 0 for the whole batch.
        begun: the pass that a checkpoint was made in the middle of, until it is gone on with.
        resumed: the epochs after which the training was gone on with from a checkpoint.
    """

    def __init__(
        self,
        model: Embedder,
        make_criterion: Callable[[int], Criterion],
        batches: Batches,
        strategy: Strategy,
        config: RunConfig,
        checkpoints: Checkpoints | None = None,
        group: Group = ALONE,
        profile: bool = False,
        trackers: Trackers | None = None,
    ):
        self.batches = batches
        self.strategy = strategy
        self.config = config
        self.epoch = 0
        self.epochs = config.train.epochs
        self.images_seen = 0
        self.seconds = 0.0
        self.strategy_seconds = 0.0
        self.started = time.perf_counter()
        self.history: list[float] = []
        self.resumed: list[int] = []
        self.skipped: list[list[int]] = []
        self.micro = config.train.micro_batch
        self.checkpoints = checkpoints
        self.group = group
        self.trackers = trackers or Trackers()
        self.interrupt: Interrupt | None = None
        self.begun: Begun | None = None
        self.watch = Stopwatch(profile, torch.cuda.synchronize if torch.cuda.is_available() else lambda: None)
        if config.train.freeze_bn:
            freeze_batch_norms(model)
        self.device = next(model.parameters()).device
        example_images = self._example_images()
        torch.manual_seed(derive(config.seed, "prepare"))
        self.model = strategy.prepare(model, example_images)
        self.make_criterion = make_criterion
        self.rebuild()

    def rebuild(self) -> None:
        """A fresh loss and a fresh optimiser for the model as it is now."""
        train = self.config.train
        self.criterion = self.make_criterion(self.model.dim).to(self.device)
        self.forward = Forward(self.model, train.precision == "bf16", train.compile)
        groups = parameter_groups(self.model, self.criterion, train, self.config.loss)
        self.optimizer = build_optimizer(train.optimizer, self.strategy.parameter_groups(self.model, groups))

    def fit(self) -> Embedder:
        """Trains all epochs and returns the finished model. A model with nothing to train is returned untouched, no image seen; but in a
        closed set its loss's classifier is trained.

        Raises:
            Diverged: the loss stopped being a number (and the strategy did not reject the pass).
        """
        if self.model.trainable() or (self.config.data.split == "closed_set" and self.criterion.classifies):
            with (
                deferred() if self.checkpoints is not None and self.group.size == 1 else nullcontext() as self.interrupt
            ):
                self._train()
        else:
            logger.info("nothing to train: the pretrained features are evaluated as they are")
        return self.strategy.finalize(self.model)

    def _train(self) -> None:
        if self.checkpoints is None or not self.checkpoints.restore(self):
            self.strategy.before_training(self.train_once, self)
        for epoch in range(len(self.history), self.config.train.epochs):
            self.epoch = epoch
            start, passes = time.perf_counter(), self.seconds
            self.history.append(self.strategy.run_epoch(self.train_once, self))
            self.strategy.end_epoch(self)
            self.strategy_seconds += time.perf_counter() - start - (self.seconds - passes)
            if self.checkpoints is not None and self.group.is_main_process:
                self.checkpoints.save(self)
            if self.interrupt is not None and self.interrupt.came:
                self.interrupt.deliver()
            self.trackers.log(
                {"loss": self.history[-1], **{f"rate/{name}": rate for name, rate in self.lrs().items()}}, epoch + 1
            )
            logger.info(
                f"epoch {epoch + 1}/{self.config.train.epochs}: loss {self.history[-1]:.4f}, {self.seconds:.0f} s so far"
            )

    def account(self) -> dict[str, Any]:
        """What the record says of the training; only what happened."""
        losses = self.history
        happened = {"resumed": self.resumed, "skipped_batches": self.skipped}
        if self.micro != self.config.train.micro_batch:
            happened["micro_batch"] = self.micro
        return {
            "loss_per_epoch": losses,
            "converged": losses[-1] < losses[0] if len(losses) > 1 else None,
            **{name: value for name, value in happened.items() if value},
        }

    def train_once(self, attempt: int = 0) -> float:
        """One pass over the training data; returns the mean loss. The same (seed, epoch, attempt) gives the same order and augmentation.

        Negative attempts are passes before the training, at the full rate.
        """
        seed, begun = self.config.seed, self.begun or Begun(0, torch.zeros((), dtype=torch.float64), 0)
        self.batches.reseed(seed, self.epoch, attempt, skip=begun.step)
        torch.manual_seed(derive(seed, "dropout", self.epoch, attempt))
        self.begun = None
        set_training_mode(self.model)
        self.criterion.train()
        self.pass_started = time.perf_counter()
        try:
            return self._pass(begun, attempt)
        finally:  # a pass that diverged was computed too
            self.seconds += time.perf_counter() - self.pass_started

    def _pass(self, begun: Begun, attempt: int) -> float:
        train = self.config.train
        total, images, steps = begun.total.to(self.device), begun.images, len(self.batches)
        title = "before the training" if attempt < 0 else f"epoch {self.epoch + 1}/{train.epochs}"
        batches = self.watch.each(self.batches, "data")
        for step, (pixels, labels) in enumerate(
            track(batches, title, self.batches.images, size=lambda batch: len(batch[1])), start=begun.step
        ):
            if step == begun.step:
                begun.go_on()  # here, since a DataLoader that is begun draws a number too
            factor = 1.0 if attempt < 0 else schedule_factor(train, (self.epoch + step / steps) / train.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            loss = self._step(pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True))
            self.images_seen += len(labels)
            if not self._is_checked(step) or self._is_sound(loss, step):
                total = total + loss.double() * len(labels)
                images += len(labels)
            if self.interrupt is not None and self.interrupt.came and step + 1 < steps:
                self._stop(Begun(step + 1, total.cpu(), images, *random_states()), attempt)
        self.group.agree(self.model, self.criterion)
        mean = total.item() / max(images, 1)
        if not math.isfinite(mean) or not images:
            raise self._diverged(mean, steps - 1)
        return mean

    def _stop(self, begun: Begun, attempt: int) -> None:
        """Keeps what a pass has done so far, if nothing else is needed to go on in the middle of it, and delivers the interrupt."""
        assert self.interrupt is not None
        if attempt == 0 and self.strategy.goes_on_within_epochs and self.checkpoints is not None:
            self.begun = begun
            self.checkpoints.save(self)
        self.interrupt.deliver()

    def _step(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step of the optimiser; the loss, unless it is no number (where that is looked at), in which case no weight is changed."""
        loss = self._gradients(pixels, labels)
        if self._is_checked(0) and not math.isfinite(loss.item()):
            return loss
        with self.watch("optimiser"):
            self.group.sum_gradients(self.model.parameters())
            self.optimizer.step()
            self.strategy.after_step(self.model)
        return loss

    def _gradients(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Backward pass, in smaller pieces where memory does not suffice and that is wished for."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return backward(
                    self.forward, self.criterion, self.strategy, pixels, labels, self.micro, self.group, self.watch
                )
            except RuntimeError as error:
                size = self.micro or len(pixels)
                if not is_out_of_memory(error) or self.config.train.out_of_memory != "halve" or size < 2:
                    raise
                self.micro = -(-size // 2)
            logger.info(
                f"out of memory with {size} images at a time: {self.micro} from here on, with the gradients of the whole batch"
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _is_checked(self, step: int) -> bool:
        """Whether the loss is looked at after this step: always, but on a GPU, which would have to be waited for, now and then."""
        return (
            self.device.type == "cpu" or self.config.train.skip_batches > 0 or step % CHECKED_EVERY == CHECKED_EVERY - 1
        )

    def _is_sound(self, loss: torch.Tensor, step: int) -> bool:
        """Whether a loss is a number; one that is not may be passed over as often as ``--skip-batches`` says."""
        if math.isfinite(value := loss.item()):
            return True
        if len(self.skipped) >= self.config.train.skip_batches:
            raise self._diverged(value, step)
        self.skipped.append([self.epoch, step])
        logger.info(f"the loss of epoch {self.epoch + 1}, step {step + 1} is {value}: the batch is left out")
        return False

    def _diverged(self, loss: float, step: int) -> Diverged:
        return Diverged(
            f"the loss became {loss} in epoch {self.epoch + 1}, step {step + 1}: lower --lr (now {self.config.train.lr:g}) "
            f"or --loss-lr (now {self.config.loss.loss_lr:g})"
        )

    def snapshot(self) -> dict[str, Any]:
        """A copy of weights, buffers and optimiser state of model and loss, and which batches were left out until now."""
        states = {name: getattr(self, name).state_dict() for name in ("model", "criterion", "optimizer")}
        return copy.deepcopy({**states, "skipped": self.skipped})

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Puts a snapshot back, bit for bit."""
        self.skipped = copy.deepcopy(snapshot["skipped"])
        for name in ("model", "criterion"):
            getattr(self, name).load_state_dict(snapshot[name])
        self.optimizer.load_state_dict(copy.deepcopy(snapshot["optimizer"]))

    @contextmanager
    def holding_out(self, share: float) -> Iterator[Callable[[], float]]:
        """Passes made inside leave out this share of the training classes; yields what scores the model on them (Recall@1)."""
        whole = self.batches
        self.batches, held = hold_out(whole, share, self.config.seed)

        def score() -> float:
            start = time.perf_counter()
            found = recall_at_1(self.model, held)
            self.seconds += time.perf_counter() - start
            self.images_seen += held.images
            return found

        try:
            yield score
        finally:
            self.batches = whole

    def lrs(self) -> dict[str, float]:
        """Learning rate per group name, before the schedule's factor."""
        return {group["name"]: group["initial_lr"] for group in self.optimizer.param_groups}

    def set_lrs(self, rates: dict[str, float]) -> None:
        """Sets the rate of the named groups, before the schedule's factor; an unknown name is a KeyError."""
        groups = {group["name"]: group for group in self.optimizer.param_groups}
        for name, rate in rates.items():
            groups[name]["initial_lr"] = rate

    def _example_images(self) -> torch.Tensor:
        self.batches.reseed(self.config.seed, "probe")
        return next(iter(self.batches))[0].to(self.device)
