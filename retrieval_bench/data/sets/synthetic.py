"""Synthetic images for tests and trials: a pattern per class, each image a tinted, shifted and noisy copy of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.sets.folder import open_folder
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, made_once
from retrieval_bench.seeding import derive

CLASSES, IMAGES_PER_CLASS, SIDE = 16, 8, 40


def draw(label: int, index: int) -> np.ndarray:
    """uint8 (40, 40, 3): image `index` of class `label`. The class is a 5 x 5 grid of grey values; each image is
    tinted, shifted and given noise of its own, so that colour and position, which an untrained network sees best, say
    nothing about the class."""
    grid = np.random.Generator(np.random.PCG64(derive(0, "synthetic class", label))).uniform(0, 1, (5, 5, 1))
    noise = np.random.Generator(np.random.PCG64(derive(0, "synthetic image", label, index)))
    image = np.kron(grid, np.ones((SIDE // 5, SIDE // 5, 1)))
    image = np.roll(image, tuple(noise.integers(-3, 4, 2)), axis=(0, 1)) * noise.uniform(90, 255, 3)
    return np.clip(image + noise.normal(0, 20, image.shape), 0, 255).astype(np.uint8)


def open_synthetic(root: Path | None) -> ImageTable:
    """Opens the PNG files, written into the cache on the first call; there is no other copy, so `root` must be None."""
    if root is not None:
        raise UserError(f"{root}: data set 'synthetic' is drawn on the spot and takes no --data-root")
    table = open_folder(made_once(cache_dir() / "synthetic-3", "drawing the synthetic images", _write))
    return replace(table, official_split=np.where(np.arange(len(table)) % 2 == 0, "train", "test"))


def _write(root: Path) -> None:
    for label in range(CLASSES):
        (root / f"class_{label:02d}").mkdir()
        for index in range(IMAGES_PER_CLASS):
            Image.fromarray(draw(label, index)).save(root / f"class_{label:02d}" / f"{index}.png")


SIDES = {"train": 64, "test": 64}
SYNTHETIC = Dataset(
    about="16 classes of patterns, drawn on the spot; for tests and trials, not for comparisons",
    open=open_synthetic,
    counts=Counts(CLASSES, CLASSES * IMAGES_PER_CLASS, {"zero_shot": SIDES, "closed_set": SIDES}),
)
