"""One step: the gradients of a batch in the precision and chunks that memory allows, the optimiser, the schedule."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.embedder import Embedder, batch_norm_momentum
from retrieval_bench.progress import logger
from retrieval_bench.sections import LossConfig, TrainConfig
from retrieval_bench.seeding import random_states, set_random_states
from retrieval_bench.strategies.base import ParameterGroup, Strategy
from retrieval_bench.training.distributed import ProcessGroup

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
    """

    def __init__(
        self,
        model: Embedder,
        criterion: nn.Module,
        strategy: Strategy,
        train: TrainConfig,
        group: ProcessGroup,
        watch: Stopwatch,
    ):
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.criterion, self.strategy, self.group, self.watch = criterion, strategy, group, watch
        self.bf16 = train.precision == "bf16"
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
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            if self.compiled is not None:
                try:
                    return self.compiled(images).float()
                except Exception as error:  # compilers fail in many ways; none may cost the run
                    if is_out_of_memory(error):
                        raise
                    logger.info(f"torch.compile failed, training continues without it: {first_line(error)}")
                    self.compiled = None
            return self.model(images).float()


def _add(loss: Tensor, regularization: Tensor | None, weight: float) -> Tensor:
    if regularization is None:
        return loss
    return loss + (regularization if weight == 1 else weight * regularization)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or a CPU."""
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|can't allocate memory", str(error)))


OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def parameter_groups(
    model: Embedder, criterion: nn.Module, train: TrainConfig, loss: LossConfig
) -> list[ParameterGroup]:
    """One group per block, then ``embedding`` (whatever of the model is in no block), then ``loss``; frozen parameters
    and empty groups are left out, every trainable parameter is in exactly one group."""
    seen: set[nn.Parameter] = set()

    def group(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> ParameterGroup:
        new = [parameter for parameter in parameters if parameter.requires_grad and parameter not in seen]
        seen.update(new)
        return {"name": name, "params": new, "lr": lr, "weight_decay": weight_decay}

    parts = [(block.name, model.backbone.block_parameters(block)) for block in model.backbone.blocks]
    parts.append(("embedding", list(model.parameters())))
    groups = [group(name, parameters, train.lr, train.weight_decay) for name, parameters in parts]
    groups.append(group("loss", list(criterion.parameters()), loss.loss_lr, loss.loss_weight_decay))
    return [entry for entry in groups if entry["params"]]


def build_optimizer(name: str, groups: list[ParameterGroup]) -> torch.optim.Optimizer:
    """The optimiser over `groups` (which may be none); each group's rate before the schedule is kept as ``initial_lr``.

    On a GPU all parameters are updated in one kernel.
    """
    based: list[dict[str, Any]] = [{**group, "initial_lr": group["lr"]} for group in groups]
    fused = bool(groups) and all(parameter.is_cuda for group in groups for parameter in group["params"])
    return OPTIMIZERS[name](based or [{"params": []}], lr=0.0, fused=fused or None)


def schedule_factor(train: TrainConfig, progress: float) -> float:
    """Factor on every learning rate at `progress` in 0..1 of the training.

    ``constant`` 1; ``cosine`` half a cosine from 1 to 0; ``step`` 1, then ``decay_factor``, then its square;
    ``warm_restarts`` (Loshchilov and Hutter, SGDR, ICLR 2017, equation 5) one half cosine per cycle; ``triangular``
    (Smith, Cyclical Learning Rates, WACV 2017) up and down once per cycle, from ``low_rate`` to 1 and back. Cycles are
    of equal length.
    """
    cycle = progress * train.cycles % 1
    span = 1 - train.low_rate
    match train.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            decays = sum(progress >= start - 1e-9 for start in (train.decay_at, train.second_decay_at))
            return train.decay_factor**decays
        case "warm_restarts":
            return train.low_rate + span * 0.5 * (1 + math.cos(math.pi * cycle))
        case "triangular":
            return train.low_rate + span * (1 - abs(2 * cycle - 1))
        case _:
            return 1.0
