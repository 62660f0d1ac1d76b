"""One optimisation step: forward, loss, backward, in the precision and the pieces that memory allows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from retrieval_bench.errors import first_line
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import logger
from retrieval_bench.seeding import random_states, set_random_states
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.distributed import Group
from retrieval_bench.training.profile import Stopwatch

NO_MEMORY = r"out of memory|can't allocate memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and bool(re.search(NO_MEMORY, str(error)))
    )


class Forward:
    """The network's forward pass in training: float32 or bfloat16 (weights and losses stay float32), compiled if wished.

    Args:
        model: the embedder; is put into channels-last layout, which convolutions are fastest in.
        bf16: autocast to bfloat16.
        compiled: use ``torch.compile``; where it fails, a line says why and the network is run as it is.
    """

    def __init__(self, model: Embedder, bf16: bool, compiled: bool):
        self.model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.bf16 = bf16
        self.compiled = torch.compile(self.model, dynamic=False) if compiled else None

    def __call__(self, images: Tensor) -> Tensor:
        """Float32 (B, D) embeddings of uint8 (B, 3, H, W) images."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            return self._embeddings(images).float()

    def _embeddings(self, images: Tensor) -> Tensor:
        if self.compiled is not None:
            try:
                return self.compiled(images)
            except Exception as error:  # compilers fail in many ways; none may cost the run
                if is_out_of_memory(error):
                    raise
                logger.info(f"torch.compile failed, training goes on without it: {first_line(error)}")
                self.compiled = None
        return self.model(images)


def backward(
    forward: Forward,
    criterion: nn.Module,
    strategy: Strategy,
    images: Tensor,
    labels: Tensor,
    micro: int,
    group: Group,
    watch: Stopwatch,
) -> Tensor:
    """Gradients of one batch, added to what is in ``.grad``; returns the loss, a scalar without a graph.

    The loss sees the embeddings of the whole batch, those of other processes included. With `micro` > 0 no more images than that pass
    through the network at a time: once without a graph, for the embeddings, and once more for the gradients (Gao et al., Scaling Deep
    Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021). The result is that of the whole batch, but for batch norms
    that are trained, which see the pieces, and for Global-k's penalty, which is that of each piece.

    Args:
        forward: the network.
        criterion: the loss.
        strategy: may add a penalty.
        images: of this process.
        labels: int64, of the whole batch.
        micro: images at a time, 0 for all.
        group: the processes that share the batch.
        watch: notes where the time goes.
    """
    if not micro or micro >= len(images):
        with watch("forward"):
            embeddings = forward(images)
        with watch("loss"):
            loss = criterion(group.gather(embeddings, len(labels)), labels)
            penalty = strategy.regularization(forward.model, images)
            total = _plus(loss, penalty, 1 / group.size)
        if total.requires_grad:
            with watch("backward"):
                total.backward()
        return _plus(loss, penalty, 1).detach()
    pieces = images.tensor_split(
        -(-len(images) // micro)
    )  # even ones: batch norms that are trained refuse a rest of a single image
    return _in_pieces(forward, criterion, strategy, pieces, labels, group, watch)


def _in_pieces(
    forward: Forward,
    criterion: nn.Module,
    strategy: Strategy,
    pieces: tuple[Tensor, ...],
    labels: Tensor,
    group: Group,
    watch: Stopwatch,
) -> Tensor:
    states, parts = [], []
    with watch("forward"), torch.no_grad(), still_norms(forward.model):
        for piece in pieces:
            states.append(random_states())
            parts.append(forward(piece))
    after = random_states()
    embeddings = torch.cat(parts).requires_grad_()
    with watch("loss"):
        loss = criterion(group.gather(embeddings, len(labels)), labels)
        loss.backward()
    assert embeddings.grad is not None
    total, images = loss.detach(), sum(map(len, pieces))
    for piece, state, gradient in zip(
        pieces, states, embeddings.grad.split([len(part) for part in parts]), strict=True
    ):
        set_random_states(state)  # the same dropout and decisions as before
        with watch("forward"):
            again = forward(piece)
            share = len(piece) / images
            penalty = strategy.regularization(forward.model, piece)
        with watch("backward"):
            objective = _plus((again * gradient).sum(), penalty, share / group.size)
            if objective.requires_grad:
                objective.backward()
        total = total if penalty is None else total + share * penalty.detach()
    set_random_states(after)
    return total


def _plus(loss: Tensor, penalty: Tensor | None, weight: float) -> Tensor:
    return loss if penalty is None else loss + (penalty if weight == 1 else weight * penalty)


@contextmanager
def still_norms(model: nn.Module) -> Iterator[None]:
    """A block in which passes leave the statistics of batch norms alone."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
