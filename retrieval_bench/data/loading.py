"""Batches of images: decoded by PIL in a DataLoader (the reference), or cropped from the decode-once cache.

Both make the same random choices: they depend on seed, row and how often the row was drawn before in the epoch only;
those of fixed views on seed, row and the view's number.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from retrieval_bench.data.crop import Crop, eval_crop
from retrieval_bench.data.decode_cache import DecodeCache
from retrieval_bench.data.reading import read_image, shrink
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.table import ImageTable
from retrieval_bench.data.transforms import crop_arrays, crop_image, train_crop
from retrieval_bench.errors import UserError
from retrieval_bench.sections import DataConfig
from retrieval_bench.seeding import derive, generator

Item = tuple[int, int]
"""(i, n): row ``rows[i]``, drawn for the n-th time in this epoch, from 0."""


@dataclass(eq=False)
class Batches(TorchDataset[tuple[Tensor, Tensor] | str]):
    """Batches of (uint8 (B, 3, S, S), int64 (B,)) of some rows of a table.

    Attributes:
        rows: int64 (N,), rows to read.
        labels: int64 (N,), label of each row.
        workers: processes that decode; without effect on a cache.
        sampler: draws training batches; None reads the rows in order, `batch_size` at a time, without augmentation.
        cache: the decoded images of the table; None reads and decodes the files.
        device: where images from the cache are cropped and delivered.
        share: from the number of images in a batch to those that this process sees; labels are those of all.
        view: number of the fixed view that the next pass shows, from 0.
    """

    table: ImageTable
    rows: np.ndarray
    labels: np.ndarray
    config: DataConfig
    workers: int
    sampler: BatchSampler | None = None
    batch_size: int = 64
    cache: DecodeCache | None = None
    device: str = "cpu"
    share: Callable[[int], range] = range
    seed: int = field(default=0, init=False)
    view: int = field(default=0, init=False)

    def __len__(self) -> int:
        return len(self.sampler) if self.sampler else -(-len(self.rows) // self.batch_size)

    @property
    def images(self) -> int:
        """Images in one pass."""
        balanced = self.sampler and self.sampler.per_class
        return len(self) * self.sampler.batch_size if self.sampler and balanced else len(self.rows)

    def subset(self, positions: np.ndarray, training: bool) -> Batches:
        """Batches of the rows at these positions only: drawn as these are, or in order and without augmentation."""
        rows, labels, sampler = self.rows[positions], self.labels[positions], None
        if training and self.sampler:
            sampler = BatchSampler(labels, self.sampler.batch_size, self.sampler.per_class)
        return replace(self, rows=rows, labels=labels, sampler=sampler, share=self.share if training else range)

    def reseed(self, seed: int, *purpose: str | int) -> None:
        """Fixes order and augmentation of the next pass; `purpose` begins with the epoch, if it is one of training."""
        if views := self.config.fixed_views:
            self.view = purpose[0] % views if isinstance(purpose[0], int) else 0
        self.seed = derive(seed, "views", *(("fixed", self.view) if views else purpose))
        if self.sampler:
            self.sampler.generator.manual_seed(derive(seed, "order", *purpose))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.read(self.order())

    def read(self, order: Iterable[list[Item]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of these items."""
        if self.cache is None:
            pin = torch.cuda.is_available()
            loaded = DataLoader(self, batch_size=None, sampler=order, num_workers=self.workers, pin_memory=pin)
        else:
            loaded = map(self.__getitem__, order)
        for batch in loaded:
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch[0], batch[1]

    def order(self) -> Iterator[list[Item]]:
        """The items of each batch of the next pass."""
        drawn: Counter[int] = Counter()
        count, size = len(self.rows), self.batch_size
        for batch in self.sampler or (range(start, min(start + size, count)) for start in range(0, count, size)):
            items = []
            for index in batch:
                items.append((index, drawn[index]))
                drawn[index] += 1
            yield items

    def __getitem__(self, items: list[Item]) -> tuple[Tensor, Tensor] | str:
        """A batch; or what is wrong, as text, which a worker process would bury in a traceback."""
        # One image at least, so that there is something to pass through a network.
        own = [items[index] for index in self.share(len(items))] or items[:1]
        labels = torch.from_numpy(self.labels[[index for index, _ in items]])
        if self.cache is not None:
            images = [self.cache[self.rows[index]] for index, _ in own]
            crops = [self._crop(item, *image.shape[:2]) for item, image in zip(own, images, strict=True)]
            return crop_arrays(images, crops, self.config, torch.device(self.device)), labels
        shown = []
        for item in own:
            try:
                image = read_image(self.table.root / self.table.paths[self.rows[item[0]]])
            except UserError as error:
                return str(error)
            image = shrink(image, self.config.stored)
            shown.append(crop_image(image, self._crop(item, image.height, image.width), self.config))
        return torch.stack(shown), labels

    def _crop(self, item: Item, height: int, width: int) -> Crop:
        if self.sampler is None:
            return eval_crop(height, width, self.config)
        draw = 0 if self.config.fixed_views else item[1]
        random = generator(self.seed, "augment", int(self.rows[item[0]]), draw)
        return train_crop(height, width, self.config, random)


def resolve_workers(workers: int, device: str) -> int:
    """The number of decoding processes: as given, or none beside a CPU that computes and up to 8 beside a GPU."""
    if workers < -1:
        raise UserError(f"--workers {workers}: give a number from 0 up, or -1 for automatic")
    if workers >= 0:
        return workers
    return 0 if device == "cpu" else min(8, os.cpu_count() or 1)
