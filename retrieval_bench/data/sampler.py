"""Batches with m images of each class, drawn from a generator of their own, so that an epoch's order depends on nothing but its seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from retrieval_bench.errors import UserError


class BatchSampler(Sampler[list[int]]):
    """Yields lists of row numbers (0..N-1).

    With `per_class` m > 0 each batch holds ``batch_size / m`` different classes with m images each: classes come from a shuffled deck
    that is renewed when too few are left, images from one shuffled deck per class (so no image returns before its class is used up; a
    class with fewer than m images fills up with repeats). An epoch has ``N // batch_size`` such batches, at least one. With m = 0 the
    rows are shuffled and cut into batches, the last one smaller; a last batch of a single image joins the one before it.

    Args:
        labels: int64 (N,) class of each row.
        batch_size: images per batch, a multiple of `per_class`.
        per_class: m, or 0.

    Raises:
        UserError: fewer classes than one batch needs.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, per_class: int):
        self.labels = np.asarray(labels)
        self.batch_size = batch_size
        self.per_class = per_class
        self.classes, inverse = np.unique(self.labels, return_inverse=True)
        self.rows = [np.flatnonzero(inverse == index) for index in range(len(self.classes))]
        self.generator = torch.Generator()
        if per_class and len(self.classes) < batch_size // per_class:
            raise UserError(
                f"a batch of {batch_size} with {per_class} images per class needs {batch_size // per_class} classes, "
                f"the training split has {len(self.classes)}: lower --batch-size or raise --samples-per-class"
            )

    def __len__(self) -> int:
        count = len(self.labels)
        if self.per_class:
            return max(1, count // self.batch_size)
        whole, rest = divmod(count, self.batch_size)
        return max(1, whole + (rest > 1))

    def __iter__(self) -> Iterator[list[int]]:
        return self._balanced() if self.per_class else self._shuffled()

    def _shuffled(self) -> Iterator[list[int]]:
        order = self._permutation(len(self.labels)).tolist()
        cuts = [index * self.batch_size for index in range(len(self))] + [len(order)]
        for start, end in itertools.pairwise(cuts):
            yield order[start:end]

    def _balanced(self) -> Iterator[list[int]]:
        per_batch = self.batch_size // self.per_class
        deck: list[int] = []
        images: list[list[int]] = [[] for _ in self.rows]
        for _ in range(len(self)):
            if len(deck) < per_batch:
                held = set(deck)
                deck += [index for index in self._permutation(len(self.rows)).tolist() if index not in held]
            chosen, deck = deck[:per_batch], deck[per_batch:]
            yield [row for index in chosen for row in self._take(images, index)]

    def _take(self, images: list[list[int]], index: int) -> list[int]:
        taken: list[int] = []
        while len(taken) < self.per_class:
            if not images[index]:
                fresh = self.rows[index][self._permutation(len(self.rows[index])).numpy()].tolist()
                images[index] = sorted(
                    fresh, key=lambda row: row not in taken
                )  # the end is taken first: no image twice in a batch
            taken.append(images[index].pop())
        return taken

    def _permutation(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self.generator)
