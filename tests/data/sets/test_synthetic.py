from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from data_checks import refused

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.sets.synthetic import draw
from retrieval_bench.data.splits import Split
from retrieval_bench.data.verify import verify


def test_drawing_is_the_same_each_time_and_differs_by_class_and_image() -> None:
    assert np.array_equal(draw(3, 1), draw(3, 1))
    assert not np.array_equal(draw(3, 1), draw(3, 2))
    assert not np.array_equal(draw(3, 1), draw(4, 1))
    assert (draw(0, 0).dtype, draw(0, 0).shape) == (np.uint8, (40, 40, 3))


def nearest_is_of_the_same_class(similarity: np.ndarray) -> float:
    """Share of the 128 images whose most similar other image is of their class; chance is 7 / 127."""
    labels = np.repeat(np.arange(16), 8)
    np.fill_diagonal(similarity, -np.inf)
    return float(np.mean(labels[similarity.argmax(axis=1)] == labels))


def test_pattern_tells_the_class_and_colour_does_not() -> None:
    images = np.array([draw(label, index) for label in range(16) for index in range(8)], dtype=float)
    colours = images.mean(axis=(1, 2))
    assert nearest_is_of_the_same_class(-np.linalg.norm(colours[:, None] - colours[None], axis=2)) < 0.2
    grey = images.mean(axis=3)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    grey /= np.linalg.norm(grey, axis=(1, 2), keepdims=True)
    waves = np.fft.fft2(grey)
    best_shift = [np.fft.ifft2(waves[row].conj() * waves).real.max(axis=(1, 2)) for row in range(len(waves))]
    assert nearest_is_of_the_same_class(np.array(best_shift)) > 0.9


def test_counts_and_files(synthetic: tuple[ImageTable, Split]) -> None:
    table, split = synthetic
    assert (len(table), len(split.train), len(split.test)) == (128, 64, 64)
    assert verify(table, split)[0] == "all 128 images decode"


def test_there_is_no_other_copy(tmp_path: Path) -> None:
    with refused(tmp_path, "takes no --data-root"):
        open_dataset("synthetic", tmp_path)


def test_interrupted_writing_is_completed(empty_cache: Path) -> None:
    table, _ = open_dataset("synthetic", None)
    fingerprint = table.fingerprint()
    (table.root / "complete").unlink()
    shutil.rmtree(table.root / "class_15")
    assert open_dataset("synthetic", None)[0].fingerprint() == fingerprint
