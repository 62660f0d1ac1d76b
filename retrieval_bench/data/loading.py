"""Batches of images: decoded by PIL in a torch DataLoader (the reference), or cut out of the decode-once cache on the training device."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from retrieval_bench.data.decoded import Decoded
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.transforms import Cut, eval_cut, shrink, train_cut, view, views
from retrieval_bench.errors import UserError
from retrieval_bench.sections import DataConfig
from retrieval_bench.seeding import derive, generator

Item = tuple[int, int]
"""(i, n): row ``rows[i]``, drawn for the n-th time in this epoch."""


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process, where raising it would bury its message in a traceback."""

    message: str


@dataclass
class Views(TorchDataset[tuple[Tensor, int] | _Failure]):
    """What each row looks like: item (i, n) is (uint8 (3, S, S), label) of row ``rows[i]``.

    Training views depend on (`seed`, row, n) only, not on workers, device or reader. Of a batch, which several processes may share, `share`
    says which images are shown; labels are those of all.
    """

    table: ImageTable
    rows: np.ndarray
    labels: np.ndarray
    config: DataConfig
    training: bool
    seed: int = 0
    share: Callable[[int], range] = range

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | _Failure:
        try:
            image = read_image(self.table.root / self.table.paths[self.rows[item[0]]])
        except UserError as error:
            return _Failure(str(error))
        image = shrink(image, self.config.stored)
        return view(image, self.cut(item, image.height, image.width), self.config), int(self.labels[item[0]])

    def __getitems__(self, items: list[Item]) -> tuple[Tensor, Tensor] | _Failure:
        images = []
        for item in self._own(items):
            shown = self[item]
            if isinstance(shown, _Failure):
                return shown
            images.append(shown[0])
        return torch.stack(images), self._labels(items)

    def _own(self, items: list[Item]) -> list[Item]:
        """The items that are shown; one at least, so that there is something to pass through a network."""
        return [items[place] for place in self.share(len(items))] or items[:1]

    def _labels(self, items: list[Item]) -> Tensor:
        return torch.from_numpy(self.labels[[index for index, _ in items]])

    def cut(self, item: Item, height: int, width: int) -> Cut:
        """Where the image, of this stored size, is cut."""
        if not self.training:
            return eval_cut(height, width, self.config)
        return train_cut(height, width, self.config, generator(self.seed, "augment", int(self.rows[item[0]]), item[1]))

    def batch(self, items: list[Item], decoded: Decoded, device: torch.device) -> tuple[Tensor, Tensor]:
        """The same from the cache, a batch at a time: (uint8 (B, 3, S, S) on `device`, int64 (B,))."""
        own = self._own(items)
        images = [decoded[self.rows[index]] for index, _ in own]
        cuts = [self.cut(item, *image.shape[:2]) for item, image in zip(own, images, strict=True)]
        return views(images, cuts, self.config, device), self._labels(items)


@dataclass
class _Order:
    """Batches of items: the sampler's, with each row's number of earlier draws in the epoch, so that a repeated image gets another view; or
    all rows in order, `batch_size` at a time."""

    count: int
    batch_size: int
    sampler: BatchSampler | None
    skipped: int = 0
    """batches at the beginning that are drawn and not given"""

    def __len__(self) -> int:
        return len(self.sampler) if self.sampler else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        drawn: Counter[int] = Counter()
        batches = self.sampler or np.array_split(
            np.arange(self.count), range(self.batch_size, self.count, self.batch_size)
        )
        for number, batch in enumerate(batches):
            items = []
            for index in batch:
                items.append((int(index), drawn[index]))
                drawn[index] += 1
            if number >= self.skipped:
                yield items


def _as_it_is(batch: Any) -> Any:
    return batch


class Batches:
    """Batches of (uint8 (B, 3, S, S), int64 (B,)) of some rows of a table.

    Args:
        table: the data set.
        rows: int64 (N,), rows to read.
        labels: int64 (N,), label of each row.
        config: how images are shown.
        workers: processes that decode; without effect on a cache.
        sampler: draws training batches; None reads the rows in order, `batch_size` at a time, without augmentation.
        batch_size: images per batch when there is no sampler.
        decoded: the cache of the table's images; None reads and decodes the files.
        device: where images from the cache are cut and delivered.
        share: from the number of images in a batch to those that this process sees; labels are those of all.
    """

    def __init__(
        self,
        table: ImageTable,
        rows: np.ndarray,
        labels: np.ndarray,
        config: DataConfig,
        workers: int,
        sampler: BatchSampler | None = None,
        batch_size: int = 64,
        decoded: Decoded | None = None,
        device: str = "cpu",
        share: Callable[[int], range] = range,
    ):
        self.views = Views(
            table, rows, np.asarray(labels, dtype=np.int64), config, training=sampler is not None, share=share
        )
        self.sampler = sampler
        self.order = _Order(len(rows), batch_size, sampler)
        self.decoded = decoded
        self.device = torch.device(device)
        pin = torch.cuda.is_available()
        order: Any = self.order
        self.loader = DataLoader(
            self.views, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin, batch_sampler=order
        )

    def __len__(self) -> int:
        return len(self.order)

    def subset(self, positions: np.ndarray, training: bool) -> Batches:
        """Batches of the rows at these positions only: drawn as these are, or in order and without augmentation."""
        views, labels = self.views, self.views.labels[positions]
        sampler = (
            BatchSampler(labels, self.sampler.batch_size, self.sampler.per_class) if training and self.sampler else None
        )
        size, share = self.order.batch_size, views.share if training else range
        workers, device = self.loader.num_workers, str(self.device)
        return Batches(
            views.table,
            views.rows[positions],
            labels,
            views.config,
            workers,
            sampler,
            size,
            self.decoded,
            device,
            share,
        )

    @property
    def labels(self) -> np.ndarray:
        """Int64 (N,), label of each row."""
        return self.views.labels

    @property
    def images(self) -> int:
        """Images in one pass."""
        if self.sampler and self.sampler.per_class:
            return len(self.sampler) * self.sampler.batch_size
        return len(self.views)

    def reseed(self, seed: int, *purpose: str | int, skip: int = 0) -> None:
        """Fixes order and augmentation of the next pass, which leaves out the first `skip` batches."""
        self.order.skipped = skip
        self.views.seed = derive(seed, "views", *purpose)
        if self.sampler:
            self.sampler.generator.manual_seed(derive(seed, "order", *purpose))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.decoded is not None:
            yield from (self.views.batch(items, self.decoded, self.device) for items in self.order)
            return
        for batch in self.loader:
            if isinstance(batch, _Failure):
                raise UserError(batch.message)
            yield batch


def resolve_workers(workers: int, device: str) -> int:
    """The number of decoding processes: as asked, or none beside a CPU that computes and up to 8 beside a GPU."""
    if workers < -1:
        raise UserError(f"--workers {workers}: give a number from 0 up, or -1 for automatic")
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)
