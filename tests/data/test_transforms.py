from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from data_checks import random_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from retrieval_bench.data.transforms import Cut, eval_cut, random_crop, shrink, stored_size, train_cut, view
from retrieval_bench.sections import DataConfig

SIZES = [(60, 90), (90, 60), (72, 72), (30, 41), (301, 17)]
BICUBIC, BILINEAR = v2.InterpolationMode.BICUBIC, v2.InterpolationMode.BILINEAR


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def eval_view(image: Image.Image, config: DataConfig) -> Tensor:
    """What a test image looks like."""
    return view(image, eval_cut(image.height, image.width, config), config)


def train_view(image: Image.Image, config: DataConfig, generator: torch.Generator) -> Tensor:
    """What a training image looks like."""
    return view(image, train_cut(image.height, image.width, config, generator), config)


def share_and_ratio(boxes: list[tuple[int, int, int, int]], area: int) -> tuple[float, float]:
    """Mean share of the area, and mean size of the log aspect ratio."""
    shares = [height * width / area for _, _, height, width in boxes]
    ratios = [abs(math.log(width / height)) for _, _, height, width in boxes]
    return sum(shares) / len(shares), sum(ratios) / len(ratios)


@given(height=st.integers(1, 400), width=st.integers(1, 400), smallest=st.floats(0.01, 1), seed=st.integers(0, 10_000))
def test_crop_lies_inside_and_is_large_enough(height: int, width: int, smallest: float, seed: int) -> None:
    top, left, box_height, box_width = random_crop(height, width, smallest, seeded(seed))
    assert 0 <= top < top + box_height <= height
    assert 0 <= left < left + box_width <= width
    side = min(height, width)
    if (top, left, box_height, box_width) == ((height - side) // 2, (width - side) // 2, side, side):
        return  # the fallback
    assert (
        box_height * box_width >= smallest * height * width - (height + width + 1) / 2
    )  # each side is rounded by up to half a pixel
    assert (box_width + 0.5) / (box_height - 0.5) >= 3 / 4
    assert (box_width - 0.5) / (box_height + 0.5) <= 4 / 3


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    generator = seeded(0)
    ours = [random_crop(200, 240, 0.2, generator) for _ in range(3_000)]
    reference = v2.RandomResizedCrop(8, scale=(0.2, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [reference.make_params([torch.empty(3, 200, 240)]) for _ in range(3_000)]
    theirs = [(box["top"], box["left"], box["height"], box["width"]) for box in drawn]
    assert share_and_ratio(ours, 200 * 240) == pytest.approx(share_and_ratio(theirs, 200 * 240), abs=0.015)


def test_crop_reaches_every_border() -> None:
    boxes = [random_crop(20, 30, 0.2, seeded(seed)) for seed in range(500)]
    assert min(top for top, *_ in boxes) == min(left for _, left, *_ in boxes) == 0
    assert max(top + height for top, _, height, _ in boxes) == 20
    assert max(left + width for _, left, _, width in boxes) == 30


def test_crop_that_cannot_fit_is_the_centred_square() -> None:
    assert random_crop(10, 1_000, 1.0, seeded(0)) == (0, 495, 10, 10)


configs = st.builds(
    lambda square, margin, preprocessing, scale: DataConfig(
        image_size=square, resize=square + margin if margin >= 0 else 0, preprocessing=preprocessing, crop_scale=scale
    ),
    st.integers(8, 300),
    st.integers(-1, 60),
    st.sampled_from(["crop", "squash"]),
    st.floats(0.01, 1),
)
lengths = st.integers(1, 3_000) | st.integers(1, 9)


def check_cut(cut: Cut, height: int, width: int, square: int) -> None:
    """The box lies inside the image, and the square inside the resized box."""
    assert 0 <= cut.top < cut.top + cut.height <= height
    assert 0 <= cut.left < cut.left + cut.width <= width
    assert 0 <= cut.down <= cut.down + square <= cut.rows
    assert 0 <= cut.right <= cut.right + square <= cut.columns
    assert all(isinstance(number, int) for number in cut[:-1])


@given(height=lengths, width=lengths, config=configs)
def test_test_cut_is_the_centre_of_the_whole_image(height: int, width: int, config: DataConfig) -> None:
    cut = eval_cut(height, width, config)
    check_cut(cut, height, width, config.image_size)
    assert (cut.top, cut.left, cut.height, cut.width, cut.mirrored) == (0, 0, height, width, False)
    assert min(cut.rows, cut.columns) == config.resize_to
    for first, total in ((cut.down, cut.rows), (cut.right, cut.columns)):
        assert abs(2 * first + config.image_size - total) <= 1
    if config.preprocessing == "crop":  # the aspect ratio is kept, to within one pixel
        assert abs(cut.rows * width - cut.columns * height) <= max(height, width)


@given(height=lengths, width=lengths, config=configs, seed=st.integers(0, 10_000))
def test_training_cut_fills_the_square_from_inside_the_image(
    height: int, width: int, config: DataConfig, seed: int
) -> None:
    cut = train_cut(height, width, config, seeded(seed))
    check_cut(cut, height, width, config.image_size)
    assert (cut.rows, cut.columns) == (config.image_size, config.image_size)
    if config.preprocessing == "squash":
        assert (cut.height, cut.width) == (height, width)
    assert cut == train_cut(height, width, config, seeded(seed))


@given(height=lengths, width=lengths, stored=st.integers(0, 400))
def test_stored_size_shrinks_to_the_shorter_side_and_never_grows(height: int, width: int, stored: int) -> None:
    found = stored_size(height, width, stored)
    assert min(found) == (min(height, width, stored) if stored else min(height, width))
    assert max(found) <= max(height, width)
    assert (found[0] >= found[1]) == (height >= width) or found[0] == found[1]
    assert stored_size(*found, stored) == found, "once is enough"


@pytest.mark.parametrize(
    ("size", "stored", "expected"), [((60, 90), 30, (30, 45)), ((90, 61), 30, (44, 30)), ((20, 9), 9, (20, 9))]
)
def test_shrunk_image_has_the_stored_size(size: tuple[int, int], stored: int, expected: tuple[int, int]) -> None:
    image = random_image(*size)
    small = shrink(image, stored)
    assert (small.height, small.width) == expected
    wanted = image if size == expected else image.resize((expected[1], expected[0]), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(small), np.asarray(wanted))


def reference_view(config: DataConfig, height: int, width: int) -> Tensor:
    side = config.resize_to
    image = random_image(height, width)
    if config.preprocessing == "squash":  # width first, whatever PIL thinks is cheaper
        image = v2.Resize([side, side], BICUBIC)(v2.Resize([height, side], BICUBIC)(image))
    else:
        image = v2.Resize(side, BILINEAR)(image)
    return v2.functional.pil_to_tensor(v2.CenterCrop(config.image_size)(image))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("resize", [0, 64, 57])
@pytest.mark.parametrize("preprocessing", ["crop", "squash"])
def test_eval_view_is_resize_and_centre_crop(
    preprocessing: Literal["crop", "squash"], resize: int, height: int, width: int
) -> None:
    config = DataConfig(image_size=56, preprocessing=preprocessing, resize=resize)
    found = eval_view(random_image(height, width), config)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 56, 56))
    assert torch.equal(found, reference_view(config, height, width))


@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 1), (1, 50)])
@pytest.mark.parametrize("preprocessing", ["crop", "squash"])
def test_train_view_depends_on_the_seed_alone(
    preprocessing: Literal["crop", "squash"], height: int, width: int
) -> None:
    config = DataConfig(image_size=48, preprocessing=preprocessing)
    image = random_image(height, width)
    found = train_view(image, config, seeded(3))
    assert (found.dtype, found.shape) == (torch.uint8, (3, 48, 48))
    assert torch.equal(found, train_view(image, config, seeded(3)))


def test_train_views_of_other_seeds_differ() -> None:
    image, config = random_image(60, 90), DataConfig(image_size=32, flip=False)
    views = {train_view(image, config, seeded(seed)).numpy().tobytes() for seed in range(20)}
    assert len(views) == 20


def test_train_view_shows_the_drawn_box() -> None:
    image, config = random_image(60, 90), DataConfig(image_size=32, flip=False, crop_scale=0.3)
    top, left, height, width = random_crop(60, 90, 0.3, seeded(7))
    expected = v2.functional.resized_crop(image, top, left, height, width, [32, 32], BILINEAR)  # pyright: ignore[reportArgumentType]
    assert torch.equal(train_view(image, config, seeded(7)), v2.functional.pil_to_tensor(expected))


def flips(flip: bool) -> int:
    """How many of 400 squashed training views are the mirror of the whole image; the others are the whole image."""
    image = random_image(50, 70)
    config = DataConfig(image_size=16, preprocessing="squash", flip=flip)
    whole = v2.functional.pil_to_tensor(v2.Resize([16, 16], BICUBIC)(image))
    count = 0
    for seed in range(400):
        found = train_view(image, config, seeded(seed))
        mirrored = torch.equal(found, whole.flip(-1))
        assert mirrored or torch.equal(found, whole)
        count += mirrored
    return count


def test_half_of_the_views_are_mirrored() -> None:
    assert 160 <= flips(True) <= 240  # four standard deviations


def test_no_view_is_mirrored_without_flip() -> None:
    assert flips(False) == 0
