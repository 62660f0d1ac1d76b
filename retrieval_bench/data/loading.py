"""Reading images into batches with PIL and a torch DataLoader: the reference path."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from retrieval_bench.config import DataConfig
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.transforms import eval_view, train_view
from retrieval_bench.errors import UserError
from retrieval_bench.progress import track
from retrieval_bench.seeding import derive, generator


def read_image(path: Path) -> Image.Image:
    """An RGB image: greyscale, palette, CMYK and 16-bit files are converted, transparency is laid over white.

    Raises:
        UserError: the file is missing, damaged or no image; the line names it.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith("I;16") or image.mode == "I":  # PIL clips 16-bit values to 255; scale them instead
                return Image.fromarray((np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                layer = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"{path}: image is missing; restore it or fetch the data set again") from None
    except (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError) as error:
        said = "not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{path}: image cannot be decoded ({said}); restore it or remove it") from None


@dataclass(frozen=True)
class _Failure:
    """An error on its way out of a worker process, where raising it would bury its message in a traceback."""

    message: str


@dataclass
class Views(TorchDataset[tuple[Tensor, int] | _Failure]):
    """Item (i, n) is (uint8 (3, S, S), label) of row ``rows[i]``, drawn for the n-th time in this epoch; plain i means n = 0.

    Training views depend on (`seed`, row, n) only, not on the workers.
    """

    table: ImageTable
    rows: np.ndarray
    labels: np.ndarray
    config: DataConfig
    training: bool
    seed: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, int] | _Failure:
        index, draw = item if isinstance(item, tuple) else (item, 0)
        row = int(self.rows[index])
        try:
            image = read_image(self.table.root / self.table.paths[row])
        except UserError as error:
            return _Failure(str(error))
        if self.training:
            return train_view(image, self.config, generator(self.seed, "augment", row, draw)), int(self.labels[index])
        return eval_view(image, self.config), int(self.labels[index])


@dataclass
class _Draws:
    """The sampler's batches with each row's number of earlier draws in the epoch, so that a repeated image gets another view."""

    sampler: BatchSampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        drawn: Counter[int] = Counter()
        for batch in self.sampler:
            items = []
            for index in batch:
                items.append((index, drawn[index]))
                drawn[index] += 1
            yield items


def _collate(items: list[tuple[Tensor, int] | _Failure]) -> tuple[Tensor, Tensor] | _Failure:
    for item in items:
        if isinstance(item, _Failure):
            return item
    images, labels = zip(*items, strict=True)  # pyright: ignore[reportArgumentType]
    return torch.stack(images), torch.tensor(labels)


class Batches:
    """Batches of (uint8 (B, 3, S, S), int64 (B,)) of some rows of a table.

    Args:
        table: the data set.
        rows: int64 (N,), rows to read.
        labels: int64 (N,), label of each row.
        config: how images are shown.
        workers: processes that decode.
        sampler: draws training batches; None reads the rows in order, `batch_size` at a time, without augmentation.
        batch_size: images per batch when there is no sampler.
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
    ):
        self.views = Views(table, rows, labels, config, training=sampler is not None)
        self.sampler = sampler
        order: dict[str, Any] = {"batch_sampler": _Draws(sampler)} if sampler else {"batch_size": batch_size}
        self.loader = DataLoader(self.views, num_workers=workers, collate_fn=_collate, pin_memory=torch.cuda.is_available(), **order)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def images(self) -> int:
        """Images in one pass."""
        if self.sampler and self.sampler.per_class:
            return len(self.sampler) * self.sampler.batch_size
        return len(self.views)

    def reseed(self, seed: int, *purpose: str | int) -> None:
        """Fixes order and augmentation of the next pass."""
        self.views.seed = derive(seed, "views", *purpose)
        if self.sampler:
            self.sampler.generator.manual_seed(derive(seed, "order", *purpose))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
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


def verify_images(table: ImageTable) -> None:
    """Decodes every image; raises :class:`UserError` naming the first one that cannot be."""
    for path in track(table.paths, "decoding", len(table)):
        read_image(table.root / path)
