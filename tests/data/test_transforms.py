"""Crops lie where they should; PIL, torch's kernel and matrices give the same pixels within rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from retrieval_bench.data import transforms
from retrieval_bench.data.crop import Crop, eval_crop
from retrieval_bench.data.transforms import (
    crop_arrays,
    crop_image,
    random_box,
    resize_by_matrices,
    resize_matrix,
    resize_one_by_one,
    train_crop,
)
from retrieval_bench.sections import DataConfig
from tests.data.data_checks import random_image
from tests.oracles.resize import resize_weights

CPU = torch.device("cpu")
BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR
Preprocessing = Literal["crop", "squash"]
PREPROCESSING: tuple[Preprocessing, ...] = ("crop", "squash")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def train_view(image: Image.Image, config: DataConfig, seed: int) -> Tensor:
    return crop_image(image, train_crop(image.height, image.width, config, seeded(seed)), config)


@given(height=st.integers(1, 400), width=st.integers(1, 400), smallest=st.floats(0.01, 1), seed=st.integers(0, 10_000))
def test_box_lies_inside_and_is_large_enough(height: int, width: int, smallest: float, seed: int) -> None:
    top, left, box_height, box_width = random_box(height, width, smallest, seeded(seed))
    assert 0 <= top < top + box_height <= height
    assert 0 <= left < left + box_width <= width
    side = min(height, width)
    if (top, left, box_height, box_width) == ((height - side) // 2, (width - side) // 2, side, side):
        return  # nothing else fitted
    # Each side is rounded by up to half a pixel.
    assert box_height * box_width >= smallest * height * width - (height + width + 1) / 2
    assert (box_width + 0.5) / (box_height - 0.5) >= 3 / 4
    assert (box_width - 0.5) / (box_height + 0.5) <= 4 / 3


def test_boxes_are_distributed_as_those_of_torchvision_and_reach_every_border() -> None:
    generator, reference = seeded(0), v2.RandomResizedCrop(8, scale=(0.2, 1))
    boxes = np.array([random_box(200, 240, 0.2, generator) for _ in range(3_000)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [reference.make_params([torch.empty(3, 200, 240)]) for _ in range(3_000)]
    theirs = np.array([(box["top"], box["left"], box["height"], box["width"]) for box in drawn])
    means = [
        (np.mean(height * width) / (200 * 240), np.mean(np.abs(np.log(width / height))))
        for _, _, height, width in (boxes.T, theirs.T)
    ]
    assert means[0] == pytest.approx(means[1], abs=0.015)
    tops, lefts, heights, widths = np.array([random_box(20, 30, 0.2, seeded(seed)) for seed in range(500)]).T
    assert (tops.min(), lefts.min(), (tops + heights).max(), (lefts + widths).max()) == (0, 0, 20, 30)


def test_boxes_of_a_seed_never_change() -> None:
    """Records of different dates are compared; after ten boxes that do not fit it is the centred square."""
    assert [random_box(60, 90, 0.2, seeded(seed)) for seed in (0, 1)] == [(0, 3, 53, 61), (0, 27, 50, 57)]
    assert random_box(10, 1_000, 1.0, seeded(0)) == (0, 495, 10, 10)


configs = st.builds(
    lambda square, margin, preprocessing, scale: DataConfig(
        image_size=square, resize=square + margin, preprocessing=preprocessing, crop_scale=scale
    ),
    st.integers(8, 300),
    st.integers(0, 60),
    st.sampled_from(PREPROCESSING),
    st.floats(0.01, 1),
)
lengths = st.integers(1, 3_000) | st.integers(1, 9)


@given(height=lengths, width=lengths, config=configs, seed=st.none() | st.integers(0, 10_000))
def test_crop_lies_inside_the_image(height: int, width: int, config: DataConfig, seed: int | None) -> None:
    square = config.image_size
    if seed is None:
        crop = eval_crop(height, width, config)
        assert crop[:4] == (0, 0, height, width)
        assert not crop.mirrored
        assert min(crop.rows, crop.columns) == config.resize_to
        for first, total in ((crop.first_row, crop.rows), (crop.first_column, crop.columns)):
            assert abs(2 * first + square - total) <= 1, "the centre"
        if config.preprocessing == "crop":  # the aspect ratio is kept, to within one pixel
            assert abs(crop.rows * width - crop.columns * height) <= max(height, width)
    else:
        crop = train_crop(height, width, config, seeded(seed))
        assert crop == train_crop(height, width, config, seeded(seed))
        assert (crop.rows, crop.columns) == (square, square)
        assert config.preprocessing == "crop" or crop[:4] == (0, 0, height, width)
    assert 0 <= crop.top < crop.top + crop.height <= height
    assert 0 <= crop.left < crop.left + crop.width <= width
    assert 0 <= crop.first_row <= crop.first_row + square <= crop.rows
    assert 0 <= crop.first_column <= crop.first_column + square <= crop.columns


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (72, 72), (30, 41), (301, 17)])
@pytest.mark.parametrize("resize", [0, 64, 57])
@pytest.mark.parametrize("preprocessing", PREPROCESSING)
def test_eval_view_is_torchvisions_resize_and_centre_crop(
    preprocessing: Preprocessing, resize: int, height: int, width: int
) -> None:
    config = DataConfig(image_size=56, preprocessing=preprocessing, resize=resize)
    image, side = random_image(height, width), config.resize_to
    result = crop_image(image, eval_crop(height, width, config), config)
    assert (result.dtype, result.shape) == (torch.uint8, (3, 56, 56))
    if preprocessing == "squash":  # width first, whatever PIL thinks is cheaper
        image = v2.Resize([side, side], BICUBIC)(v2.Resize([height, side], BICUBIC)(image))
    else:
        image = v2.Resize(side, BILINEAR)(image)
    assert torch.equal(result, v2.functional.pil_to_tensor(v2.CenterCrop(56)(image)))


def test_train_view_shows_the_drawn_box_half_of_the_time_mirrored() -> None:
    image, config = random_image(60, 90), DataConfig(image_size=16, crop_scale=0.3)
    mirrored = 0
    for seed in range(400):
        top, left, height, width = random_box(60, 90, 0.3, seeded(seed))
        expected = v2.functional.resized_crop(image, top, left, height, width, [16, 16], BILINEAR)  # pyright: ignore[reportArgumentType]
        box = v2.functional.pil_to_tensor(expected)
        assert torch.equal(train_view(image, replace(config, flip=False), seed), box)
        view = train_view(image, config, seed)
        assert torch.equal(view, box) or torch.equal(view, box.flip(-1))
        mirrored += torch.equal(view, box.flip(-1))
    assert 160 <= mirrored <= 240, "within four standard deviations"


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(0, 9), st.data())
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


def box_of(image: np.ndarray, crop: Crop) -> np.ndarray:
    return image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, DataConfig, Crop]:
    """Noise, or black and white only, of any size; smaller and larger than the crop; as in training or as in the
    test."""
    height, width = draw(st.sampled_from([(1, 1), (1, 50), (2, 600), (600, 2)]) | st.tuples(*[st.integers(1, 150)] * 2))
    image = np.array(random_image(height, width, draw(st.integers(0, 99))))
    square = draw(st.integers(8, 48))
    config = DataConfig(
        image_size=square,
        resize=square + draw(st.integers(0, 20)),
        preprocessing=draw(st.sampled_from(PREPROCESSING)),
        crop_scale=draw(st.sampled_from([0.01, 0.2, 1])),
    )
    seed = draw(st.none() | st.integers(0, 999))
    crop = eval_crop(height, width, config) if seed is None else train_crop(height, width, config, seeded(seed))
    return draw(st.sampled_from([image, 255 * (image > 127).astype(np.uint8)])), config, crop


@settings(max_examples=250, derandomize=True)
@given(cases())
def test_three_ways_of_cropping_differ_by_rounding_only(case: tuple[np.ndarray, DataConfig, Crop]) -> None:
    """Bicubic values overshoot, so that it matters in which order the passes are made and that each is rounded and
    clamped."""
    image, config, crop = case
    by_pil = crop_image(Image.fromarray(image), crop, config).int()
    for way in (resize_one_by_one, resize_by_matrices):
        result = way([box_of(image, crop)], [crop], config, CPU)
        assert (result.dtype, result.shape) == (torch.uint8, (1, *by_pil.shape))
        assert (result[0].int() - by_pil).abs().max() <= (1 if config.preprocessing == "crop" else 2)


@pytest.mark.parametrize("way", [resize_one_by_one, resize_by_matrices])
def test_batch_of_mixed_sizes_is_that_of_its_images_alone(
    way: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(image_size=20)
    images = [np.array(random_image(height, width, height)) for height, width in ((10, 90), (64, 64), (90, 12), (3, 3))]
    crops = [train_crop(image.shape[0], image.shape[1], config, seeded(index)) for index, image in enumerate(images)]
    assert {crop.mirrored for crop in crops} == {True, False}
    boxes = [box_of(image, crop) for image, crop in zip(images, crops, strict=True)]
    together = way(boxes, crops, config, CPU).int()
    for result, box, crop in zip(together, boxes, crops, strict=True):
        assert (result - way([box], [crop], config, CPU)[0].int()).abs().max() <= 1
    assert (together - crop_arrays(images, crops, config, CPU).int()).abs().max() <= 1
    monkeypatch.setattr(transforms, "MAX_PIXELS", 1)
    assert (together - way(boxes, crops, config, CPU).int()).abs().max() <= 1, "halved"
