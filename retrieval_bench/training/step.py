"""One step: the gradients of a batch, in the precision that is faster and the chunks that memory allows."""

from __future__ import annotations

import copy
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from retrieval_bench.config import RunConfig
from retrieval_bench.device import has_bfloat16
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.embedder import Embedder, batch_norm_momentum, set_training_mode
from retrieval_bench.models.folding import foldable, folded
from retrieval_bench.progress import logger
from retrieval_bench.seeding import random_states, set_random_states
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.distributed import ProcessGroup
from retrieval_bench.training.prefix import FrozenPrefix

T = TypeVar("T")


class Stopwatch:
    """Seconds per part of the training's steps, for ``--profile``; measures nothing unless it is `on`."""

    def __init__(self, on: bool = False):
        self.on = on
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """A block whose time counts as `part`'s."""
        started = self._now()
        yield
        if self.on:
            self.seconds[part] += self._now() - started  # pyright: ignore[reportArgumentType]

    def each(self, items: Iterable[T], part: str) -> Iterator[T]:
        """Passes `items` on; the waiting time for each counts as `part`'s."""
        iterator = iter(items)
        while True:
            with self(part):
                item = next(iterator, None)
            if item is None:
                return
            yield item

    def report(self, seconds: float, images: int) -> str:
        """A table of the parts in `seconds` of training on `images`."""
        parts = {**self.seconds, "the rest": seconds - sum(self.seconds.values())}
        lines = [f"{part:12}{taken:>9.2f} s{100 * taken / seconds:>7.1f} %" for part, taken in parts.items()]
        return "\n".join([*lines, f"{'together':12}{seconds:>9.2f} s{images / seconds:>9,.0f} images/s"])

    def _now(self) -> float:
        if self.on and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class Step:
    """Forward and backward pass of a batch: ``step(images, labels)`` adds to what is in ``.grad`` and returns the loss.

    The loss sees the embeddings of the whole batch, those of other processes included. Weights and losses are float32,
    also with bfloat16 passes. The model is put into channels-last layout, which convolutions are fastest in. Where
    ``torch.compile`` fails, a line says why and the network is run as it is.

    With ``--micro-batch`` no more images than that pass through the network at a time: once without a graph, for the
    embeddings, and once more for the gradients (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory
    Limited Setup, RepL4NLP 2021). The result is that of the whole batch, but for batch norms that are trained, which
    see the chunks, and for Global-k's regularization, which is that of each chunk.

    In place of images, int64 (B',) positions are taken of those whose features `prefix` keeps.
    """

    def __init__(
        self,
        model: Embedder,
        criterion: nn.Module,
        strategy: Strategy,
        config: RunConfig,
        group: ProcessGroup,
        watch: Stopwatch,
        prefix: FrozenPrefix,
    ):
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.criterion, self.strategy, self.group, self.watch = criterion, strategy, group, watch
        self.prefix = prefix
        train = config.train
        self.precision = train.precision
        self.folds = foldable(model.backbone, config.data.image_size) if train.fused else []
        self.compiled = torch.compile(self.model, dynamic=False) if train.compile else None
        self.micro_batch_size = train.micro_batch

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar without a graph, of this process's uint8 images (B', 3, H, W) and the int64 labels (B,) of
        the whole batch. Raises :class:`UserError` if memory does not suffice."""
        size = min(self.micro_batch_size or len(images), len(images))
        try:
            return self._whole(images, labels) if size == len(images) else self._chunked(images, labels)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"out of memory with {size} images at a time: add --micro-batch {max(1, size // 2)} (the loss still "
                "sees the whole batch), or lower --image-size or --batch-size"
            ) from None

    def _whole(self, images: Tensor, labels: Tensor) -> Tensor:
        with self.watch("forward"):
            embeddings = self.forward(images)
        with self.watch("loss"):
            loss = self.criterion(self.group.gather(embeddings, len(labels)), labels)
            regularization = self.strategy.regularization(self.model, images)
            total = _add(loss, regularization, 1 / self.group.size)
        with self.watch("backward"):
            if total.requires_grad:
                total.backward()
        return _add(loss, regularization, 1).detach()

    def _chunked(self, images: Tensor, labels: Tensor) -> Tensor:
        # even chunks, since batch norms that are trained refuse a rest of a single image
        chunks = images.tensor_split(-(-len(images) // self.micro_batch_size))
        states, parts = [], []
        with self.watch("forward"), torch.no_grad(), batch_norm_momentum(self.model, 0.0):
            for chunk in chunks:
                states.append(random_states())
                parts.append(self.forward(chunk))
        after = random_states()
        embeddings = torch.cat(parts).requires_grad_()
        with self.watch("loss"):
            loss = self.criterion(self.group.gather(embeddings, len(labels)), labels)
            loss.backward()
        assert embeddings.grad is not None
        total, gradients = loss.detach(), embeddings.grad.split([len(part) for part in parts])
        for chunk, state, gradient in zip(chunks, states, gradients, strict=True):
            set_random_states(state)  # the same dropout and decisions as before
            with self.watch("forward"):
                again, share = self.forward(chunk), len(chunk) / len(images)
                regularization = self.strategy.regularization(self.model, chunk)
            with self.watch("backward"):
                objective = _add((again * gradient).sum(), regularization, share / self.group.size)
                if objective.requires_grad:
                    objective.backward()
            total = total if regularization is None else total + share * regularization.detach()
        set_random_states(after)
        return total

    def forward(self, images: Tensor) -> Tensor:
        """Float32 (B, D) embeddings."""
        autocast = torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with self.prefix.reading(images) as images, folded(self.folds), autocast:
            if self.compiled is not None:
                try:
                    return self.compiled(images).float()
                except Exception as error:  # compilers fail in many ways; none may cost the run
                    if is_out_of_memory(error):
                        raise
                    logger.info(f"torch.compile failed, training continues without it: {first_line(error)}")
                    self.compiled = None
            return self.model(images).float()

    def faster_precision(self, images: Tensor) -> str:
        """``bf16`` if forward and backward passes of `images` take less than 0.9 times as long with it (the fastest of
        three), else ``float32``; not timed where the device has no such instructions. Leaves the weights and statistics
        of the model as they are."""
        if not has_bfloat16(images.device.type):
            return "float32"
        state, watch = copy.deepcopy(self.model.state_dict()), Stopwatch(on=True)
        fastest = dict.fromkeys(("float32", "bf16"), math.inf)
        set_training_mode(self.model)
        for trial in range(4):
            for name in fastest:
                self.precision = name
                with watch(name):
                    total = self.forward(images[: self.micro_batch_size or None]).sum()
                    if total.requires_grad:
                        total.backward()
                seconds = watch.seconds.pop(name)
                if trial:  # the first warms up
                    fastest[name] = min(seconds, fastest[name])
        self.model.zero_grad(set_to_none=True)
        self.model.load_state_dict(state)
        chosen = "bf16" if fastest["bf16"] < 0.9 * fastest["float32"] else "float32"
        times = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in fastest.items())
        logger.info(f"--precision auto: {times} for the passes of a batch, so {chosen}")
        return chosen


def _add(loss: Tensor, regularization: Tensor | None, weight: float) -> Tensor:
    if regularization is None:
        return loss
    return loss + (regularization if weight == 1 else weight * regularization)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or a CPU."""
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|can't allocate memory", str(error)))
