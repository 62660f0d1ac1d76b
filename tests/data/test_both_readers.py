"""PIL, torch's kernel and matrices cut the same pixels; reading files and reading the cache give the same batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from data_checks import random_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from retrieval_bench.data.decoded import open_decoded
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.transforms import by_matrices, eval_cut, one_by_one, resize_matrix, train_cut, view, views
from retrieval_bench.sections import DataConfig
from tests.oracles.resize import resize_weights

CPU = torch.device("cpu")
Preprocessing = Literal["crop", "squash"]


@settings(max_examples=60)
@given(
    length=st.integers(1, 60),
    target=st.integers(1, 60),
    bicubic=st.booleans(),
    padding=st.integers(0, 9),
    data=st.data(),
)
def test_resize_matrix_equals_the_definition(
    length: int, target: int, bicubic: bool, padding: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, target - 1))
    count = data.draw(st.integers(1, target - first))
    lengths, targets, firsts = (torch.tensor([float(number)] * 2) for number in (length, target, first))
    matrices = resize_matrix(lengths, targets, firsts, count, length + padding, bicubic)
    assert matrices.shape == (2, count, length + padding)
    expected = np.pad(resize_weights(length, target, bicubic)[first : first + count], ((0, 0), (0, padding)))
    for matrix in matrices.numpy():
        np.testing.assert_allclose(matrix, expected, atol=2e-5)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)


def compare(image: np.ndarray, config: DataConfig, seed: int | None) -> dict[str, int]:
    """Largest difference from PIL's view, of 255, of the two other ways; `seed` None is the test's cut."""
    height, width = image.shape[:2]
    cut = eval_cut(height, width, config)
    if seed is not None:
        cut = train_cut(height, width, config, torch.Generator().manual_seed(seed))
    box = image[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
    wanted = view(Image.fromarray(image), cut, config).int()
    ways = {"one_by_one": one_by_one([box], [cut], config, CPU), "by_matrices": by_matrices([box], [cut], config, CPU)}
    assert all((found.dtype, found.shape) == (torch.uint8, (1, *wanted.shape)) for found in ways.values())
    return {name: int((found[0].int() - wanted).abs().max()) for name, found in ways.items()}


@st.composite
def cases(draw: st.DrawFn, preprocessing: Preprocessing) -> tuple[np.ndarray, DataConfig, int | None]:
    """Noise, or black and white only, of any size; smaller and larger than the view; cut as in training or as in the test."""
    height, width = draw(st.integers(1, 150)), draw(st.integers(1, 150))
    image = np.array(random_image(height, width, draw(st.integers(0, 99))))
    square = draw(st.integers(8, 48))
    margin = draw(st.integers(0, 20))
    config = DataConfig(
        image_size=square,
        resize=square + margin,
        preprocessing=preprocessing,
        crop_scale=draw(st.sampled_from([0.01, 0.2, 1])),
    )
    return (
        draw(st.sampled_from([image, 255 * (image > 127).astype(np.uint8)])),
        config,
        draw(st.none() | st.integers(0, 999)),
    )


@settings(max_examples=120)
@given(cases("crop"))
def test_three_ways_of_cutting_differ_by_rounding_only(case: tuple[np.ndarray, DataConfig, int | None]) -> None:
    assert max(compare(*case).values()) <= 1


# Bicubic values overshoot, so that it matters in which order the passes are made and that each is rounded and clamped.
@settings(max_examples=120, derandomize=True)
@given(cases("squash"))
def test_squashed_by_matrices_differs_by_rounding_only(case: tuple[np.ndarray, DataConfig, int | None]) -> None:
    assert compare(*case)["by_matrices"] <= 2


@settings(max_examples=120, derandomize=True)
@given(cases("squash"))
def test_squashed_one_by_one_differs_by_rounding_only(case: tuple[np.ndarray, DataConfig, int | None]) -> None:
    assert compare(*case)["one_by_one"] <= 2


@pytest.mark.parametrize("way", [one_by_one, by_matrices])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (2, 600), (600, 2), (7, 7)])
def test_extreme_sizes_are_cut_by_all_ways(way: Callable[..., Tensor], size: tuple[int, int]) -> None:
    config = DataConfig(image_size=24)
    image = random_image(*size)
    for cut in (
        eval_cut(size[0], size[1], config),
        train_cut(size[0], size[1], config, torch.Generator().manual_seed(1)),
    ):
        box = np.array(image)[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        difference = way([box], [cut], config, CPU)[0].int() - view(image, cut, config).int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("way", [one_by_one, by_matrices])
def test_batch_of_mixed_sizes_is_that_of_its_images_alone(way: Callable[..., Tensor]) -> None:
    config = DataConfig(image_size=20, flip=True)
    images = [np.array(random_image(height, width, height)) for height, width in ((10, 90), (64, 64), (90, 12), (3, 3))]
    cuts = [
        train_cut(image.shape[0], image.shape[1], config, torch.Generator().manual_seed(index))
        for index, image in enumerate(images)
    ]
    assert {cut.mirrored for cut in cuts} == {True, False}
    boxes = [
        image[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        for image, cut in zip(images, cuts, strict=True)
    ]
    together = way(boxes, cuts, config, CPU).int()
    for found, box, cut in zip(together, boxes, cuts, strict=True):
        assert (found - way([box], [cut], config, CPU)[0].int()).abs().max() <= 1
    assert (together - views(images, cuts, config, CPU).int()).abs().max() <= 1


@pytest.fixture
def mixed(tmp_path: Path, empty_cache: Path) -> ImageTable:
    """Twelve images of as many sizes, all wider than high, in four classes."""
    root = tmp_path / "mixed"
    root.mkdir()
    for index in range(12):
        random_image(21 + 3 * index, 40 + 6 * index, index).save(root / f"{index}.png")
    return ImageTable(root, tuple(f"{index}.png" for index in range(12)), np.arange(12) // 3, ("a", "b", "c", "d"))


def batches(
    table: ImageTable, config: DataConfig, training: bool, cached: bool, workers: int = 0, per_class: int = 4
) -> Batches:
    rows = np.arange(1, 12) if training else np.arange(12)[::-1]
    labels = table.labels[rows]
    sampler = BatchSampler(labels, 8, per_class) if training else None
    decoded = open_decoded(table, config.stored, 1.0) if cached else None
    return Batches(table, rows, labels, config, workers, sampler, batch_size=5, decoded=decoded)


def one_pass(of: Batches, seed: int = 0, epoch: int = 1) -> tuple[list[Tensor], list[list[int]]]:
    of.reseed(seed, "epoch", epoch)
    images, labels = zip(*of, strict=True)
    assert all(batch.dtype == torch.uint8 for batch in images)
    return list(images), [batch.tolist() for batch in labels]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stored", [0, 30])
@pytest.mark.parametrize("training", [True, False])
def test_cache_gives_the_batches_of_the_files(training: bool, stored: int, workers: int, mixed: ImageTable) -> None:
    config = DataConfig(image_size=24, stored=stored)
    files, labels = one_pass(batches(mixed, config, training, False, workers))
    cached, same_labels = one_pass(batches(mixed, config, training, True))
    assert labels == same_labels
    assert [batch.shape for batch in files] == [batch.shape for batch in cached]
    assert max(int((one.int() - other.int()).abs().max()) for one, other in zip(files, cached, strict=True)) <= 1


@pytest.mark.parametrize("training", [True, False])
def test_cache_gives_the_squashed_batches_of_the_files(training: bool, mixed: ImageTable) -> None:
    config = DataConfig(image_size=24, preprocessing="squash")
    files, cached = (one_pass(batches(mixed, config, training, cached))[0] for cached in (False, True))
    assert max(int((one.int() - other.int()).abs().max()) for one, other in zip(files, cached, strict=True)) <= 1


def test_repeats_in_an_epoch_are_shown_differently_by_both_readers(mixed: ImageTable) -> None:
    rows = np.array([0, 3])
    shown = []
    for decoded in (None, open_decoded(mixed, 0, 1.0)):
        sampler = BatchSampler(mixed.labels[rows], 8, 4)
        ((images,), _) = one_pass(
            Batches(mixed, rows, mixed.labels[rows], DataConfig(image_size=24), 0, sampler, decoded=decoded)
        )
        assert len({image.numpy().tobytes() for image in images}) == 8
        shown.append(images.int())
    assert (shown[0] - shown[1]).abs().max() <= 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_view_depends_on_seed_epoch_image_and_repeat_only(cached: bool, mixed: ImageTable) -> None:
    """Not on the batch, its size, the rows beside it, or what was read before."""
    config = DataConfig(image_size=24)
    decoded = open_decoded(mixed, 0, 1.0) if cached else None

    def shown(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> dict[bytes, int]:
        labels = np.arange(len(mixed))[rows]  # the image's own number as its label
        of = Batches(mixed, rows, labels, config, 0, BatchSampler(labels, batch_size, 0), decoded=decoded)
        one_pass(of, 9, 9)
        images, numbers = one_pass(of, seed, epoch)
        return {
            image.numpy().tobytes(): number
            for image, number in zip(torch.cat(images), [number for batch in numbers for number in batch], strict=True)
        }

    whole = shown(np.arange(12), 4, 1, 1)
    assert len(whole) == 12
    assert shown(np.array([7, 2, 5]), 2, 1, 1).items() <= whole.items()
    assert not set(shown(np.arange(12), 4, 1, 2)) & set(whole)
    assert not set(shown(np.arange(12), 4, 2, 1)) & set(whole)


@pytest.mark.parametrize("training", [True, False])
def test_once_decoded_no_image_file_is_read(training: bool, mixed: ImageTable) -> None:
    of = batches(mixed, DataConfig(image_size=24), training, True)
    first, _ = one_pass(of)
    for path in mixed.paths:
        (mixed.root / path).unlink()
    again, _ = one_pass(of)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len(one_pass(of, epoch=2)[0]) == len(first)


def test_stored_comes_before_the_crop(mixed: ImageTable) -> None:
    """Scaling down first loses detail: the views must differ from those of full images, and be those of images scaled beforehand."""
    small = replace(mixed, root=mixed.root.with_name("small"))
    small.root.mkdir()
    config = DataConfig(image_size=24, stored=15)
    for path in mixed.paths:
        image = Image.open(mixed.root / path)
        image.resize((int(15 * image.width / image.height), 15), Image.Resampling.LANCZOS).save(small.root / path)
    expected = torch.cat(one_pass(batches(small, replace(config, stored=0), False, False))[0])
    found = torch.cat(one_pass(batches(mixed, config, False, False))[0])
    assert torch.equal(found, expected)
    assert not torch.equal(found, torch.cat(one_pass(batches(mixed, replace(config, stored=0), False, False))[0]))
