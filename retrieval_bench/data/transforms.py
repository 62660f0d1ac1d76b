"""From an image to the square that the network sees, in two steps: where to cut (numbers only), and cutting.

:func:`train_cut` and :func:`eval_cut` decide; they draw from a generator per image, so the same cut is made whoever carries it out.
:func:`view` cuts with PIL and is the reference. :func:`views` cuts a batch of arrays: image by image on a CPU, where torch's uint8 kernel
is fastest, and as two batched matrix products on a GPU. All three give the same pixels within rounding (1 of 255, bicubic 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from retrieval_bench.sections import DataConfig

PADDED = 1 << 26
"""Pixels of boxes, padded to one size, that are resized at once: under a gigabyte in float32."""


class Cut(NamedTuple):
    """A square view of an image: a box of it, resized, and the square's place in the resized box. All in pixels."""

    top: int
    left: int
    height: int
    width: int
    rows: int
    """height that the box is resized to"""
    columns: int
    """width that the box is resized to"""
    down: int
    """first row of the resized box that is in the square"""
    right: int
    """first column of the resized box that is in the square"""
    mirrored: bool


def eval_cut(height: int, width: int, config: DataConfig) -> Cut:
    """Resize (shorter side, or both sides under ``squash``) to ``config.resize_to``, then centre crop; without chance."""
    side, square = config.resize_to, config.image_size
    rows, columns = (side, side) if config.preprocessing == "squash" else scaled(height, width, side)
    return Cut(0, 0, height, width, rows, columns, round((rows - square) / 2), round((columns - square) / 2), False)


def train_cut(height: int, width: int, config: DataConfig, generator: torch.Generator) -> Cut:
    """A random resized crop (or the squashed whole image), mirrored half of the time if ``config.flip``."""
    square = config.image_size
    box = (0, 0, height, width)
    if config.preprocessing == "crop":
        box = random_crop(height, width, config.crop_scale, generator)
    return Cut(*box, square, square, 0, 0, config.flip and _uniform(generator) < 0.5)


def random_crop(height: int, width: int, smallest: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A random box of an image, for resizing to a square (Szegedy et al., Going Deeper with Convolutions, 2015).

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        smallest: least share of the image's area; the share is uniform from here to 1, the aspect ratio log-uniform in 3/4..4/3.
        generator: source of the draws.

    Returns:
        top, left, height, width of the box. After ten boxes that do not fit: the largest centred square.
    """
    for _ in range(10):
        area = height * width * (smallest + (1 - smallest) * _uniform(generator))
        ratio = math.exp(math.log(3 / 4) + math.log(16 / 9) * _uniform(generator))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(_uniform(generator) * (height - box_height + 1))
            left = int(_uniform(generator) * (width - box_width + 1))
            return top, left, box_height, box_width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def scaled(height: int, width: int, side: int) -> tuple[int, int]:
    """The size whose shorter side is `side`, with the longer side rounded down (as torchvision's ``Resize`` does)."""
    return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)


def stored_size(height: int, width: int, stored: int) -> tuple[int, int]:
    """The size that an image is scaled down to before anything else: shorter side `stored`; never up, and not at all if `stored` is 0."""
    return scaled(height, width, stored) if 0 < stored < min(height, width) else (height, width)


def shrink(image: Image.Image, stored: int) -> Image.Image:
    """The RGB `image` at its :func:`stored_size`; by Lanczos' filter, which blurs least what will be resized once more."""
    height, width = stored_size(image.height, image.width, stored)
    return image if (width, height) == image.size else image.resize((width, height), Image.Resampling.LANCZOS)


def view(image: Image.Image, cut: Cut, config: DataConfig) -> Tensor:
    """uint8 (3, S, S): the `cut` of a PIL image; bilinear (bicubic under ``squash``, as in AutoLR), antialiased."""
    box = image.crop((cut.left, cut.top, cut.left + cut.width, cut.top + cut.height))
    if config.preprocessing == "squash":  # width first: libraries differ, and bicubic values are clamped in between
        box = box.resize((cut.columns, cut.height), Image.Resampling.BICUBIC).resize(
            (cut.columns, cut.rows), Image.Resampling.BICUBIC
        )
    else:
        box = box.resize((cut.columns, cut.rows), Image.Resampling.BILINEAR)
    return _square(F.pil_to_tensor(box), cut, config.image_size)


def views(images: Sequence[np.ndarray], cuts: Sequence[Cut], config: DataConfig, device: torch.device) -> Tensor:
    """uint8 (B, 3, S, S) on `device`: the cuts of a batch of images.

    Args:
        images: B arrays, uint8 (H, W, 3), of any sizes.
        cuts: one for each.
        config: gives S and the method of resizing.
        device: where the batch is wanted; pixels travel there before they are resized.
    """
    boxes = [
        image[cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
        for image, cut in zip(images, cuts, strict=True)
    ]
    return (one_by_one if device.type == "cpu" else by_matrices)(boxes, cuts, config, device)


def one_by_one(boxes: Sequence[np.ndarray], cuts: Sequence[Cut], config: DataConfig, device: torch.device) -> Tensor:
    """:func:`views` of boxes that are already cut out, one resize each."""
    square, bicubic = config.image_size, config.preprocessing == "squash"
    out = torch.empty(len(boxes), 3, square, square, dtype=torch.uint8)
    for place, box, cut in zip(out, boxes, cuts, strict=True):
        pixels = torch.from_numpy(box).permute(2, 0, 1)[None]
        if bicubic:
            for size in ((cut.height, cut.columns), (cut.rows, cut.columns)):
                pixels = interpolate(pixels, size, mode="bicubic", antialias=True)
        elif box.shape[:2] != (cut.rows, cut.columns):
            pixels = interpolate(pixels, (cut.rows, cut.columns), mode="bilinear", antialias=True)
        place.copy_(_square(pixels[0], cut, square))
    return out.to(device)


def by_matrices(boxes: Sequence[np.ndarray], cuts: Sequence[Cut], config: DataConfig, device: torch.device) -> Tensor:
    """:func:`views` of boxes that are already cut out: resizing is linear and separable, so the batch is ``rows @ pixels @ columns``."""
    square, bicubic = config.image_size, config.preprocessing == "squash"
    tallest, widest = (max(box.shape[axis] for box in boxes) for axis in (0, 1))
    half = len(boxes) // 2
    if half and len(boxes) * tallest * widest > PADDED:
        parts = (slice(half), slice(half, None))
        return torch.cat([by_matrices(boxes[part], cuts[part], config, device) for part in parts])
    padded = np.zeros((len(boxes), tallest, widest, 3), dtype=np.uint8)
    for place, box in zip(padded, boxes, strict=True):
        place[: box.shape[0], : box.shape[1]] = box
    pixels = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).float()
    numbers = torch.tensor(cuts, dtype=torch.float32, device=device)
    _, _, height, width, rows, columns, down, right, mirrored = numbers.unbind(1)
    vertical = resize_matrix(height, rows, down, square, tallest, bicubic)
    horizontal = resize_matrix(width, columns, right, square, widest, bicubic)
    horizontal = torch.where(mirrored[:, None, None] > 0, horizontal.flip(1), horizontal)
    narrowed = pixels @ horizontal.mT[:, None]
    if bicubic:
        narrowed = narrowed.add_(0.5).floor_().clamp_(0, 255)
    return (vertical[:, None] @ narrowed).add_(0.5).clamp_(0, 255).to(torch.uint8)


def resize_matrix(length: Tensor, target: Tensor, first: Tensor, count: int, padded: int, bicubic: bool) -> Tensor:
    """Rows ``first .. first + count - 1`` of the matrices that resize `length` samples to `target`, antialiased as PIL does it.

    Output i is centred on input position ``(i + 0.5) * length / target`` and weighs inputs with a triangle of half-width 1 (Keys' cubic
    with a = -0.5 and half-width 2 if `bicubic`), stretched by the scale when shrinking; the weights sum to 1.

    Args:
        length: float (B,) number of input samples.
        target: float (B,) number of output samples.
        first: float (B,) first output wanted.
        count: outputs wanted, S.
        padded: columns of the result, at least the largest length; those beyond an image's length are 0.
        bicubic: which of the two filters.

    Returns:
        float (B, count, padded).
    """
    scale = (length / target)[:, None, None]
    inputs = torch.arange(padded, device=length.device)
    outputs = first[:, None] + torch.arange(count, device=length.device)
    distance = ((inputs + 0.5) - (outputs[:, :, None] + 0.5) * scale).div_(scale.clamp(min=1)).abs_()
    if bicubic:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    else:
        weights = (1 - distance).clamp_(min=0)
    weights = weights * (inputs < length[:, None, None])
    return weights / weights.sum(-1, keepdim=True)


def _square(pixels: Tensor, cut: Cut, side: int) -> Tensor:
    square = pixels[..., cut.down : cut.down + side, cut.right : cut.right + side]
    return square.flip(-1) if cut.mirrored else square


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
