"""Batches with m images of each class; an epoch's order depends on nothing but the seed of its generator."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from retrieval_bench.errors import UserError


class BatchSampler(Sampler[list[int]]):
    """Yields lists of row numbers (0..N-1).

    With `per_class` m > 0 each batch holds ``batch_size / m`` different classes with m images each: classes come from a
    shuffled deck that is renewed when too few are left, images from one shuffled deck per class (so no image returns
    before its class is used up; a class with fewer than m images fills up with repeats). An epoch has ``N //
    batch_size`` such batches, at least one. With m = 0 the rows are shuffled and split into batches, the last one
    smaller; a last batch of a single image joins the one before it.

    `labels` are int64 (N,), `batch_size` is a multiple of `per_class`. Raises :class:`UserError` if there are fewer
    classes than one batch needs.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, per_class: int):
        self.batch_size = batch_size
        self.per_class = per_class
        self.count = len(labels)
        starts = np.unique(np.sort(labels), return_index=True)[1]
        self.rows = np.split(np.argsort(labels, kind="stable"), starts[1:])  # of each class, ascending
        self.generator = torch.Generator()
        if per_class and len(self.rows) < batch_size // per_class:
            way_out = "lower --batch-size or raise --samples-per-class" if len(self.rows) > 1 else "take more classes"
            raise UserError(
                f"a batch of {batch_size} with {per_class} images per class needs {batch_size // per_class} classes, "
                f"the training split has {len(self.rows)}: {way_out}"
            )

    def __len__(self) -> int:
        rest = 0 if self.per_class else self.count % self.batch_size
        return max(1, self.count // self.batch_size + (rest > 1))

    def __iter__(self) -> Iterator[list[int]]:
        if self.per_class:
            yield from self._balanced()
            return
        order = self._permutation(self.count)
        starts = [index * self.batch_size for index in range(len(self))]
        for start, end in zip(starts, [*starts[1:], self.count], strict=True):
            yield order[start:end]

    def _balanced(self) -> Iterator[list[int]]:
        classes_per_batch = self.batch_size // self.per_class
        deck: list[int] = []
        images: list[list[int]] = [[] for _ in self.rows]
        for _ in range(len(self)):
            if len(deck) < classes_per_batch:
                left = set(deck)
                deck += [index for index in self._permutation(len(self.rows)) if index not in left]
            classes, deck = deck[:classes_per_batch], deck[classes_per_batch:]
            batch: list[int] = []
            for index in classes:
                taken: list[int] = []
                while len(taken) < self.per_class:
                    if not images[index]:  # the end is taken first: no repeats in a batch if the class has enough
                        shuffled = self.rows[index][self._permutation(len(self.rows[index]))].tolist()
                        images[index] = sorted(shuffled, key=lambda row: row not in taken)
                    taken.append(images[index].pop())
                batch += taken
            yield batch

    def _permutation(self, count: int) -> list[int]:
        return torch.randperm(count, generator=self.generator).tolist()
