"""Batches of images: decoded by PIL in a torch DataLoader (the reference), or cropped from the decode-once cache on the
device.

Both make the same random choices, which depend on the seed, the row and how often the row was drawn before in the
epoch, and not on the reader, the number of worker processes, or the device.
"""

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

from retrieval_bench.data.decode_cache import DecodeCache
from retrieval_bench.data.reading import read_image, shrink
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.table import ImageTable
from retrieval_bench.data.transforms import Crop, crop_arrays, crop_image, eval_crop, train_crop
from retrieval_bench.errors import UserError
from retrieval_bench.sections import DataConfig
from retrieval_bench.seeding import derive, generator

Item = tuple[int, int]
"""(i, n): row ``rows[i]``, drawn for the n-th time in this epoch, from 0."""


@dataclass
class _Order:
    """Batches of items: the sampler's, or all rows in order, `batch_size` at a time."""

    count: int
    batch_size: int
    sampler: BatchSampler | None

    def __len__(self) -> int:
        return len(self.sampler) if self.sampler else -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        drawn: Counter[int] = Counter()
        starts = range(0, self.count, self.batch_size)
        in_order = (range(start, min(start + self.batch_size, self.count)) for start in starts)
        for batch in self.sampler or in_order:
            items = []
            for index in batch:
                items.append((index, drawn[index]))
                drawn[index] += 1
            yield items


@dataclass
class _Images(TorchDataset[tuple[Tensor, Tensor] | str]):
    """(images, labels) of a list of items; or what is wrong, since an exception from a worker process comes with a
    traceback."""

    table: ImageTable
    rows: np.ndarray
    labels: np.ndarray
    config: DataConfig
    training: bool
    cache: DecodeCache | None
    device: torch.device
    share: Callable[[int], range]
    seed: int = 0

    def __getitem__(self, items: list[Item]) -> tuple[Tensor, Tensor] | str:
        # One image at least, so that there is something to pass through a network.
        own = [items[index] for index in self.share(len(items))] or items[:1]
        labels = torch.from_numpy(self.labels[[index for index, _ in items]])
        try:
            return (self._read(own) if self.cache is None else self._from_cache(own, self.cache)), labels
        except UserError as error:
            return str(error)

    def _read(self, items: list[Item]) -> Tensor:
        crops = []
        for item in items:
            image = shrink(read_image(self.table.root / self.table.paths[self.rows[item[0]]]), self.config.stored)
            crops.append(crop_image(image, self._crop(item, image.height, image.width), self.config))
        return torch.stack(crops)

    def _from_cache(self, items: list[Item], cache: DecodeCache) -> Tensor:
        images = [cache[self.rows[index]] for index, _ in items]
        crops = [self._crop(item, *image.shape[:2]) for item, image in zip(items, images, strict=True)]
        return crop_arrays(images, crops, self.config, self.device)

    def _crop(self, item: Item, height: int, width: int) -> Crop:
        if not self.training:
            return eval_crop(height, width, self.config)
        random = generator(self.seed, "augment", int(self.rows[item[0]]), item[1])
        return train_crop(height, width, self.config, random)


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
        cache: the decoded images of the table; None reads and decodes the files.
        device: where images from the cache are cropped and delivered.
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
        cache: DecodeCache | None = None,
        device: str = "cpu",
        share: Callable[[int], range] = range,
    ):
        self.labels = np.asarray(labels, dtype=np.int64)
        self.sampler = sampler
        self.order = _Order(len(rows), batch_size, sampler)
        self._source = _Images(
            table, rows, self.labels, config, sampler is not None, cache, torch.device(device), share
        )
        order: Any = self.order  # batches of items in place of single indices
        pin = torch.cuda.is_available()
        self._loader = DataLoader(self._source, batch_size=None, sampler=order, num_workers=workers, pin_memory=pin)

    def __len__(self) -> int:
        return len(self.order)

    def subset(self, positions: np.ndarray, training: bool) -> Batches:
        """Batches of the rows at these positions only: drawn as these are, or in order and without augmentation."""
        source, sampler, labels = self._source, None, self.labels[positions]
        if training and self.sampler:
            sampler = BatchSampler(labels, self.sampler.batch_size, self.sampler.per_class)
        return Batches(
            source.table,
            source.rows[positions],
            labels,
            source.config,
            self._loader.num_workers,
            sampler,
            self.order.batch_size,
            source.cache,
            str(source.device),
            source.share if training else range,
        )

    @property
    def images(self) -> int:
        """Images in one pass."""
        if self.sampler and self.sampler.per_class:
            return len(self.sampler) * self.sampler.batch_size
        return len(self.labels)

    def reseed(self, seed: int, *purpose: str | int) -> None:
        """Fixes order and augmentation of the next pass."""
        self._source.seed = derive(seed, "views", *purpose)
        if self.sampler:
            self.sampler.generator.manual_seed(derive(seed, "order", *purpose))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader if self._source.cache is None else map(self._source.__getitem__, self.order):
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch[0], batch[1]


def resolve_workers(workers: int, device: str) -> int:
    """The number of decoding processes: as given, or none beside a CPU that computes and up to 8 beside a GPU."""
    if workers < -1:
        raise UserError(f"--workers {workers}: give a number from 0 up, or -1 for automatic")
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)
