"""From an image to the square that the network sees, in two steps: which crop (numbers), and its pixels.

:func:`train_crop` and ``crop.eval_crop`` decide; the first draws from a generator per image, so that every reader
makes the same crop. :func:`crop_image` crops with PIL and is the reference. :func:`crop_arrays` crops a batch of
arrays: one by one on a CPU, where torch's uint8 kernel is fastest, and as two batched matrix products on a GPU. All
give the same pixels within rounding (1 of 255, bicubic 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from retrieval_bench.data.crop import Crop, crop_pixels
from retrieval_bench.sections import DataConfig

MAX_PIXELS = 1 << 26
"""Of boxes, padded to one size, that are resized at once: under a gigabyte in float32."""


def train_crop(height: int, width: int, config: DataConfig, generator: torch.Generator) -> Crop:
    """A random resized crop (or the squashed whole image), mirrored half of the time if ``config.flip``."""
    square = config.image_size
    box = (0, 0, height, width)
    if config.preprocessing == "crop":
        box = random_box(height, width, config.crop_scale, generator)
    return Crop(*box, square, square, 0, 0, config.flip and _uniform(generator) < 0.5)


def random_box(height: int, width: int, smallest: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """A random box of an image, for resizing to a square (Szegedy et al., Going Deeper with Convolutions, 2015).

    The box has at least the share `smallest` of the image's area; the share is uniform, the aspect ratio log-uniform in
    3/4..4/3. After ten boxes that do not fit it is the largest centred square. Returns top, left, height, width.
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


def crop_image(image: Image.Image, crop: Crop, config: DataConfig) -> Tensor:
    """:func:`crop_pixels` as a tensor."""
    return torch.from_numpy(crop_pixels(image, crop, config))


def crop_arrays(
    images: Sequence[np.ndarray], crops: Sequence[Crop], config: DataConfig, device: torch.device
) -> Tensor:
    """uint8 (B, 3, S, S) on `device`, where the resizing is done: one crop of each of B uint8 (H, W, 3) arrays."""
    boxes = [
        image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        for image, crop in zip(images, crops, strict=True)
    ]
    return (resize_one_by_one if device.type == "cpu" else resize_by_matrices)(boxes, crops, config, device)


def resize_one_by_one(
    boxes: Sequence[np.ndarray], crops: Sequence[Crop], config: DataConfig, device: torch.device
) -> Tensor:
    """:func:`crop_arrays` of the boxes, one resize each."""
    square = config.image_size
    squares = torch.empty(len(boxes), 3, square, square, dtype=torch.uint8)
    for target, box, crop in zip(squares, boxes, crops, strict=True):
        pixels = torch.from_numpy(box).permute(2, 0, 1)[None]
        if config.preprocessing == "squash":
            for size in ((crop.height, crop.columns), (crop.rows, crop.columns)):
                pixels = interpolate(pixels, size, mode="bicubic", antialias=True)
        elif box.shape[:2] != (crop.rows, crop.columns):
            pixels = interpolate(pixels, (crop.rows, crop.columns), mode="bilinear", antialias=True)
        target.copy_(_square(pixels[0], crop, square))
    return squares.to(device)


def resize_by_matrices(
    boxes: Sequence[np.ndarray], crops: Sequence[Crop], config: DataConfig, device: torch.device
) -> Tensor:
    """:func:`crop_arrays` of the boxes: resizing is linear and separable, so the batch is ``rows @ pixels @
    columns``."""
    square, bicubic = config.image_size, config.preprocessing == "squash"
    tallest, widest = (max(box.shape[axis] for box in boxes) for axis in (0, 1))
    half = len(boxes) // 2
    if half and len(boxes) * tallest * widest > MAX_PIXELS:
        halves = (slice(half), slice(half, None))
        return torch.cat([resize_by_matrices(boxes[part], crops[part], config, device) for part in halves])
    padded = np.zeros((len(boxes), tallest, widest, 3), dtype=np.uint8)
    for target, box in zip(padded, boxes, strict=True):
        target[: box.shape[0], : box.shape[1]] = box
    pixels = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2).float()
    numbers = torch.tensor(crops, dtype=torch.float32, device=device)
    _, _, height, width, rows, columns, first_row, first_column, mirrored = numbers.unbind(1)
    vertical = resize_matrix(height, rows, first_row, square, tallest, bicubic)
    horizontal = resize_matrix(width, columns, first_column, square, widest, bicubic)
    horizontal = torch.where(mirrored[:, None, None] > 0, horizontal.flip(1), horizontal)
    narrowed = pixels @ horizontal.mT[:, None]
    if bicubic:
        narrowed = narrowed.add_(0.5).floor_().clamp_(0, 255)
    return (vertical[:, None] @ narrowed).add_(0.5).clamp_(0, 255).to(torch.uint8)


def resize_matrix(length: Tensor, target: Tensor, first: Tensor, count: int, padded: int, bicubic: bool) -> Tensor:
    """Rows ``first .. first + count - 1`` of the matrices that resize `length` samples to `target` as PIL does.

    Output i is centred on input position ``(i + 0.5) * length / target`` and weighs inputs with a triangle of
    half-width 1 (Keys' cubic with a = -0.5 and half-width 2 if `bicubic`), stretched by the scale when shrinking; the
    weights sum to 1. `length`, `target`, `first` are float (B,); the result is float (B, count, padded), 0 in columns
    beyond an image's length.
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


def _square(pixels: Tensor, crop: Crop, side: int) -> Tensor:
    square = pixels[..., crop.first_row : crop.first_row + side, crop.first_column : crop.first_column + side]
    return square.flip(-1) if crop.mirrored else square


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
