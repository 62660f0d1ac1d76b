"""Batches: in order, repeatable, the same from files and cache; one line for an image that cannot be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retrieval_bench.data.crop import eval_crop
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.table import ImageTable
from retrieval_bench.data.transforms import crop_image
from retrieval_bench.errors import UserError
from retrieval_bench.sections import DataConfig
from tests.data.data_checks import random_image, refused

CONFIG = DataConfig(image_size=24)


@pytest.fixture
def table(tmp_path: Path, empty_cache: Path) -> ImageTable:
    """Twelve images of as many sizes, all wider than high, in four classes."""
    root = tmp_path / "images"
    root.mkdir()
    for index in range(12):
        random_image(21 + 3 * index, 40 + 6 * index, index).save(root / f"{index}.png")
    return ImageTable(root, tuple(f"{index}.png" for index in range(12)), np.arange(12) // 3, tuple("abcd"))


def make_batches(
    table: ImageTable,
    training: bool = True,
    cached: bool = False,
    config: DataConfig = CONFIG,
    workers: int = 0,
    per_class: int = 4,
) -> Batches:
    rows = np.arange(1, 12) if training else np.arange(12)[::-1]
    labels = table.labels[rows]
    sampler = BatchSampler(labels, 8, per_class) if training else None
    cache = open_decode_cache(table, config.stored, 1.0) if cached else None
    return Batches(table, rows, labels, config, workers, sampler, batch_size=5, cache=cache)


def one_pass(batches: Batches, seed: int = 0, epoch: int = 1) -> tuple[list[Tensor], list[list[int]]]:
    batches.reseed(seed, "epoch", epoch)
    images, labels = zip(*batches, strict=True)
    assert {batch.dtype for batch in images} == {torch.uint8}
    assert {batch.dtype for batch in labels} == {torch.int64}
    assert len(batches) == len(images)
    assert batches.images == sum(map(len, images))
    return list(images), [batch.tolist() for batch in labels]


def join(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def difference(first: list[Tensor], second: list[Tensor]) -> int:
    """Largest difference of two passes, of 255."""
    assert [batch.shape for batch in first] == [batch.shape for batch in second]
    return max(int((one.int() - two.int()).abs().max()) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_are_shown_in_order(workers: int, table: ImageTable) -> None:
    images, labels = one_pass(make_batches(table, training=False, workers=workers))
    assert [len(batch) for batch in images] == [5, 5, 2]
    assert join(labels) == table.labels[::-1].tolist()
    files = [read_image(table.root / path) for path in table.paths[::-1]]
    expected = [crop_image(image, eval_crop(image.height, image.width, CONFIG), CONFIG) for image in files]
    assert torch.equal(torch.cat(images), torch.stack(expected))


@pytest.mark.parametrize(
    ("config", "views"), [(replace(CONFIG, views=2), 2), (replace(CONFIG, preprocessing="squash", flip=False), 1)]
)
def test_fixed_views_return_after_so_many_epochs(config: DataConfig, views: int, table: ImageTable) -> None:
    """In whatever order the images come, and however often in one epoch."""
    batches = make_batches(table, config=config)
    shown: list[dict[int, Tensor]] = [{} for _ in range(views)]
    for epoch in range(6):
        batches.reseed(0, epoch, epoch % 5)
        items = list(batches.order())
        assert any(number > 0 for batch in items for _, number in batch), "a class has fewer images than a batch takes"
        pixels = torch.cat([images for images, _ in batches.read(items)])
        for position, image in zip([position for batch in items for position, _ in batch], pixels, strict=True):
            assert torch.equal(shown[epoch % views].setdefault(position, image), image)
    common = set.intersection(*map(set, shown))
    differences = [[not torch.equal(shown[0][key], other[key]) for key in common] for other in shown[1:]]
    assert all(any(different) for different in differences)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("per_class", [0, 4])
def test_a_pass_depends_on_seed_and_epoch_only(cached: bool, per_class: int, table: ImageTable) -> None:
    batches = make_batches(table, cached=cached, per_class=per_class)
    first, labels = one_pass(batches, 1, 1)
    for seed, epoch in ((1, 2), (2, 1)):
        assert not torch.equal(torch.cat(first), torch.cat(one_pass(batches, seed, epoch)[0]))
    for again in (batches, make_batches(table, cached=cached, per_class=per_class)):
        images, again_labels = one_pass(again, 1, 1)
        assert again_labels == labels
        assert difference(images, first) == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("config", "workers"),
    [(CONFIG, 0), (CONFIG, 2), (replace(CONFIG, stored=30), 0), (replace(CONFIG, preprocessing="squash"), 0)],
)
def test_cache_gives_the_batches_of_the_files(
    training: bool, config: DataConfig, workers: int, table: ImageTable
) -> None:
    files, labels = one_pass(make_batches(table, training, False, config, workers))
    batches = make_batches(table, training, True, config)
    for path in table.paths:
        (table.root / path).unlink()  # once decoded, no image file is read
    cached, same_labels = one_pass(batches)
    assert labels == same_labels
    assert difference(files, cached) <= 1


@pytest.mark.parametrize("cached", [False, True])
def test_view_depends_on_seed_epoch_image_and_repeat_only(cached: bool, table: ImageTable) -> None:
    """Not on the batch, its size, the rows beside it, or what was read before."""
    cache = open_decode_cache(table, 0, 1.0) if cached else None

    def views(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> dict[bytes, int]:
        """The image's number by what it looks like."""
        batches = Batches(table, rows, rows, CONFIG, 0, BatchSampler(rows, batch_size, 0), cache=cache)
        one_pass(batches, 9, 9)
        images, numbers = one_pass(batches, seed, epoch)
        return {image.numpy().tobytes(): number for image, number in zip(torch.cat(images), join(numbers), strict=True)}

    whole = views(np.arange(12), 4, 1, 1)
    assert len(whole) == 12
    assert views(np.array([7, 2, 5]), 2, 1, 1).items() <= whole.items()
    assert not set(views(np.arange(12), 4, 1, 2)) & set(whole)
    assert not set(views(np.arange(12), 4, 2, 1)) & set(whole)
    rows = np.array([0, 3])
    sampler = BatchSampler(table.labels[rows], 8, 4)
    ((images,), _) = one_pass(Batches(table, rows, table.labels[rows], CONFIG, 0, sampler, cache=cache))
    assert len({image.numpy().tobytes() for image in images}) == 8, "repeats in an epoch are shown differently"


@pytest.mark.parametrize("cached", [False, True])
def test_processes_share_the_images_of_a_batch_and_see_all_labels(cached: bool, table: ImageTable) -> None:
    whole, labels = one_pass(make_batches(table, cached=cached))
    for part in (range(0, 3), range(3, 8), range(8, 8)):
        shared = replace(make_batches(table, cached=cached), share=lambda count, part=part: part)
        shared.reseed(0, "epoch", 1)
        for (images, own_labels), all_images, all_labels in zip(shared, whole, labels, strict=True):
            assert own_labels.tolist() == all_labels
            assert torch.equal(images, all_images[list(part) or [0]])


def test_subset_trains_or_is_shown_in_order(table: ImageTable) -> None:
    batches, positions = make_batches(table, per_class=2), np.array([0, 1, 3, 4, 6, 7, 9, 10])
    images, labels = one_pass(batches.subset(positions, training=False))
    assert join(labels) == table.labels[1 + positions].tolist()
    assert [len(batch) for batch in images] == [5, 3]
    part = batches.subset(positions, training=True)
    assert part.sampler
    assert (part.sampler.batch_size, part.sampler.per_class) == (8, 2)
    assert set(join(one_pass(part)[1])) == {0, 1, 2, 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_among_batches_is_one_line(workers: int, table: ImageTable) -> None:
    (table.root / "5.png").write_text("no image")
    batches = iter(Batches(table, np.arange(12), table.labels, CONFIG, workers, batch_size=2))
    assert len([next(batches), next(batches)]) == 2
    with refused(f"{table.root / '5.png'}: image cannot be decoded (not an image)"):
        next(batches)


def test_workers_are_as_given_or_fit_the_device() -> None:
    assert resolve_workers(3, "cpu") == resolve_workers(3, "cuda") == 3
    assert resolve_workers(-1, "cpu") == resolve_workers(0, "cuda") == 0
    assert 1 <= resolve_workers(-1, "cuda") <= 8
    with pytest.raises(UserError, match="--workers -2"):
        resolve_workers(-2, "cpu")
