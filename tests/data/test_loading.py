from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_checks import random_image, refused

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.splits import Split
from retrieval_bench.data.transforms import eval_cut, view
from retrieval_bench.sections import DataConfig

CONFIG = DataConfig(image_size=32)
Tensors = list[tuple[torch.Tensor, torch.Tensor]]


def training_batches(table: ImageTable, split: Split, per_class: int = 2, workers: int = 0) -> Batches:
    labels = split.train_labels(table.labels)
    return Batches(table, split.train, labels, CONFIG, workers, BatchSampler(labels, 8, per_class))


def one_pass(batches: Batches, *purpose: str | int) -> Tensors:
    batches.reseed(*(purpose or (0,)))  # pyright: ignore[reportArgumentType]
    return list(batches)


def same(first: Tensors, second: Tensors) -> bool:
    return all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))


def test_training_batches_repeat_with_the_seed_and_the_epoch(synthetic: tuple[ImageTable, Split]) -> None:
    batches = training_batches(*synthetic)
    first = one_pass(batches, 1, "epoch", 1)
    assert not same(first, one_pass(batches, 1, "epoch", 2))
    assert not same(first, one_pass(batches, 2, "epoch", 1))
    assert same(first, one_pass(batches, 1, "epoch", 1))
    assert same(first, one_pass(training_batches(*synthetic), 1, "epoch", 1))


def test_training_batches_are_the_same_with_workers(synthetic: tuple[ImageTable, Split]) -> None:
    alone, helped = training_batches(*synthetic), training_batches(*synthetic, workers=2)
    for epoch in (1, 2):
        assert same(one_pass(alone, 0, epoch), one_pass(helped, 0, epoch))


def test_an_image_drawn_twice_in_an_epoch_is_shown_differently(synthetic: tuple[ImageTable, Split]) -> None:
    table, _ = synthetic
    rows = np.array([0, 1, 8, 9])
    sampler = BatchSampler(table.labels[rows], 8, 4)
    batches = Batches(table, rows, table.labels[rows], CONFIG, 0, sampler)
    ((images, labels),) = one_pass(batches, 0)
    assert labels.tolist().count(0) == labels.tolist().count(1) == 4
    assert len({image.numpy().tobytes() for image in images}) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_test_batches_hold_the_rows_in_order(workers: int, synthetic: tuple[ImageTable, Split]) -> None:
    table, split = synthetic
    rows = split.test[::-1]
    batches = Batches(table, rows, table.labels[rows], CONFIG, workers, batch_size=24)
    images, labels = zip(*batches, strict=True)
    assert [len(batch) for batch in images] == [24, 24, 16]
    assert torch.cat(labels).tolist() == table.labels[rows].tolist()
    assert labels[0].dtype == torch.int64
    files = [read_image(table.root / table.paths[row]) for row in rows]
    expected = [view(image, eval_cut(image.height, image.width, CONFIG), CONFIG) for image in files]
    assert torch.equal(torch.cat(images), torch.stack(expected))


def test_training_batch_pairs_images_with_their_labels(synthetic: tuple[ImageTable, Split]) -> None:
    table, split = synthetic
    whole = replace(CONFIG, preprocessing="squash", flip=False)
    labels = split.train_labels(table.labels)
    batches = Batches(table, split.train, labels, whole, 0, BatchSampler(labels, 8, 2))
    plain = Batches(table, split.train, labels, replace(whole, resize=32), 0)
    by_image = {
        image.numpy().tobytes(): label
        for images, kept in plain
        for image, label in zip(images, kept.tolist(), strict=True)
    }
    for images, given in batches:
        assert [by_image[image.numpy().tobytes()] for image in images] == given.tolist()


@pytest.mark.parametrize("per_class", [0, 2, 3])
def test_images_counts_what_a_pass_yields(per_class: int, synthetic: tuple[ImageTable, Split]) -> None:
    table, split = synthetic
    labels = split.train_labels(table.labels)
    batches = Batches(
        table,
        split.train,
        labels,
        CONFIG,
        0,
        BatchSampler(labels, 9, per_class) if per_class != 2 else None,
        batch_size=9,
    )
    sizes = [len(images) for images, _ in batches]
    assert batches.images == sum(sizes)
    assert len(batches) == len(sizes)


@pytest.fixture
def damaged(tmp_path: Path) -> ImageTable:
    """Eight images of which the sixth is text."""
    for index in range(8):
        random_image(20, 20, index).save(tmp_path / f"{index}.png")
    (tmp_path / "5.png").write_text("no image")
    return ImageTable(tmp_path, tuple(f"{index}.png" for index in range(8)), np.arange(8) // 2, ("a", "b", "c", "d"))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_among_batches_is_one_line(workers: int, damaged: ImageTable) -> None:
    batches = iter(Batches(damaged, np.arange(8), damaged.labels, CONFIG, workers, batch_size=2))
    assert len([next(batches), next(batches)]) == 2
    with refused(f"{damaged.root / '5.png'}: image cannot be decoded (not an image)"):
        next(batches)


def test_workers_are_as_asked_or_fit_the_device() -> None:
    assert resolve_workers(3, "cpu") == resolve_workers(3, "cuda") == 3
    assert resolve_workers(-1, "cpu") == resolve_workers(0, "cuda") == 0
    assert 1 <= resolve_workers(-1, "cuda") <= 8
