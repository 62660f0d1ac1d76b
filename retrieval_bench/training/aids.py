"""What a training offers its strategy beside passes: searches that resume, images without a step, held-out classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from retrieval_bench.config import RunConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.distributed import ProcessGroup
from retrieval_bench.training.held_out import recall_at_1, split_batches
from retrieval_bench.training.state import TrainingState


class StrategyAids(TrainingState):
    """A training's state, and what strategies may ask for (documented in
    :class:`~retrieval_bench.strategies.base.EpochState`); all of it is counted as cost."""

    batches: Batches
    config: RunConfig
    checkpoints: Checkpoints | None
    group: ProcessGroup
    device: torch.device

    def search(self, kind: str, count: int, found: dict[str, list[Any]]) -> Iterator[int]:
        kept = self.checkpoints.load(kind) if self.checkpoints is not None else None
        if kept is not None:
            self.load_pass(kept)
            for name, values in kept["found"].items():
                found[name][:] = values
        for number in range(kept["passes"] if kept else 0, count):
            yield number
            if self.checkpoints is not None and self.group.is_main_process:
                state = {**self.pass_state(), "passes": number + 1, "found": found}
                self.checkpoints.save(number + 1, state, kind)

    def example_batches(self, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        batches = replace(self.batches, share=range)  # every process sees all of them, and computes the same
        batches.reseed(self.config.seed, "statistics")
        started, seen = time.perf_counter(), 0
        for images, labels in batches:
            self.images_seen += len(labels)
            seen += len(labels)
            yield images.to(self.device), labels.to(self.device)
            if seen >= count:
                break
        self.seconds += time.perf_counter() - started

    @contextmanager
    def holding_out(self, share: float) -> Iterator[Callable[[], float]]:
        """Raises :class:`UserError` for fewer than two classes on a side, or too few for a batch."""
        batches = self.batches
        self.batches, held_out = split_batches(batches, share, self.config.seed)

        def measured() -> float:
            started = time.perf_counter()
            recall = recall_at_1(self.model, held_out)
            self._count(held_out, started)
            return recall

        try:
            yield measured
        finally:
            self.batches = batches

    def _count(self, batches: Batches, started: float) -> None:
        """A pass over held-out images is cost as well."""
        self.seconds += time.perf_counter() - started
        self.images_seen += batches.images
