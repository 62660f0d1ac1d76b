"""Data parallel training by processes that ``torchrun`` started, with the loss of the whole batch.

Every process passes its share of each batch through its copy of the network. Embeddings are gathered, so that losses
see all pairs and all proxies as one process would; each process computes the same loss, and the gradients of the
network are summed. Proxies and classifiers so get the same gradients everywhere. Random numbers inside the network
(dropout, routes) are drawn by each for its own images. The batch size is that of all processes together.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")
TIMEOUT = datetime.timedelta(hours=12)
"""How long processes wait for the main one, which evaluates alone."""


@dataclass(frozen=True)
class ProcessGroup:
    """The `size` processes of a run, of which this is number `rank`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that evaluates, writes and logs."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of `count` things in order are this process's."""
        return range(self.rank, count, self.size)

    def gather(self, embeddings: Tensor, count: int) -> Tensor:
        """Float (count, D): the embeddings of all processes in batch order; gradients flow into this process's own.

        A process whose share is empty gives the embedding of an image that is not its own, which is left out.
        """
        if self.size == 1:
            return embeddings
        own = torch.tensor(list(self.share(count)), dtype=torch.int64, device=embeddings.device)
        padded = embeddings.new_zeros(-(-count // self.size), embeddings.shape[1])
        padded[: len(own)] = embeddings.detach()[: len(own)]
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        whole = torch.stack(parts, dim=1).flatten(0, 1)[:count]  # row r of process p is row r * size + p of the batch
        return whole.index_copy(0, own, embeddings[: len(own)])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces the gradients of `parameters` by their sums over the processes; a missing one counts as zero."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if self.size == 1 or not trained:
            return
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, total in zip(trained, flat.split([value.numel() for value in trained]), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(total.view_as(parameter))  # in the parameter's layout

    def synchronize(self, model: nn.Module, criterion: nn.Module) -> None:
        """Gives all processes the main one's buffers (batch norm statistics, which saw different images) and its loss's
        parameters, which GPUs may have rounded differently."""
        if self.size > 1:
            for value in (*model.buffers(), *criterion.parameters(), *criterion.buffers()):
                dist.broadcast(value.data, 0)

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns or raises in the main process, for all; the others wait."""
        if self.size == 1:
            return make()
        box: list[Any] = [None]
        if self.is_main_process:
            try:
                box = [make()]
            except Exception as error:
                dist.broadcast_object_list([error], 0)
                raise
        dist.broadcast_object_list(box, 0)
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


SINGLE_PROCESS = ProcessGroup()


def join(device: str) -> ProcessGroup:
    """The group that ``torchrun`` started this process in, joined on the first call; else :data:`SINGLE_PROCESS`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    if not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    return ProcessGroup(dist.get_rank(), dist.get_world_size())
