"""From a decoded image to the square that the network sees: deterministic for tests, seeded per image for training."""

from __future__ import annotations

import math
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from retrieval_bench.config import DataConfig


def eval_view(image: Image.Image, config: DataConfig) -> Tensor:
    """uint8 (3, S, S): resize (shorter side, or both sides under ``squash``) to ``config.resize_to``, then centre crop to S."""
    side = config.resize_to
    size = [side, side] if config.preprocessing == "squash" else [side]
    return F.center_crop(_pixels(_resize(image, size, config)), [config.image_size, config.image_size])


def train_view(image: Image.Image, config: DataConfig, generator: torch.Generator) -> Tensor:
    """uint8 (3, S, S): a random resized crop (or the squashed whole image), mirrored half of the time if ``config.flip``."""
    size = [config.image_size, config.image_size]
    if config.preprocessing == "crop":
        top, left, height, width = random_crop(image.height, image.width, config.crop_scale, generator)
        image = image.crop((left, top, left + width, top + height))
    pixels = _pixels(_resize(image, size, config))
    return pixels.flip(-1) if config.flip and _uniform(generator) < 0.5 else pixels


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


def _resize(image: Any, size: list[int], config: DataConfig) -> Any:
    """Bilinear (bicubic under ``squash``, as in AutoLR), antialiased."""
    method = F.InterpolationMode.BICUBIC if config.preprocessing == "squash" else F.InterpolationMode.BILINEAR
    return F.resize(image, size, interpolation=method)


def _pixels(image: Image.Image) -> Tensor:
    return F.pil_to_tensor(image)


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()
