from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from fake_cub import MANIFESTS, read_manifest
from layouts import pack, paths_of, save_mat, touch

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.sets.flowers import FLOWERS, open_flowers
from retrieval_bench.data.splits import manifest, zero_shot

Sets = dict[str, np.ndarray]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 103), 4))
"""Species of each image of the miniature; the images are in no order, as the true ones."""
SPLITS = {"zero_shot": {"train": 204, "test": 204}, "closed_set": {"train": 204, "test": 204}}


@pytest.fixture
def small(miniature: Callable[[str, Counts], None]) -> None:
    miniature("flowers", Counts(102, 408, SPLITS))


def numbers(labels: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Image numbers, from 1: those of each species from `start` to `stop`."""
    return np.concatenate([1 + np.flatnonzero(labels == label)[start:stop] for label in np.unique(labels)]).astype(
        np.uint16
    )


def write_lists(folder: Path, labels: np.ndarray = LABELS, each: int = 1, change: Sets | None = None) -> Path:
    """`each` images per species train, as many validate, the rest is tested; MATLAB rows, as in the official files."""
    save_mat(folder / "imagelabels.mat", labels=labels.astype(np.uint8).reshape(1, -1))
    sets = {
        "trnid": numbers(labels, 0, each),
        "valid": numbers(labels, each, 2 * each),
        "tstid": numbers(labels, 2 * each, len(labels)),
    }
    save_mat(folder / "setid.mat", **{name: values.reshape(1, -1) for name, values in (sets | (change or {})).items()})
    return folder


def official(folder: Path, count: int = len(LABELS)) -> Path:
    return touch(write_lists(folder), *(f"jpg/image_{number:05d}.jpg" for number in range(1, count + 1)))


def packed(folder: Path) -> Path:
    pack(official(folder) / "102flowers.tgz", folder, "jpg")
    shutil.rmtree(folder / "jpg")
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folder": official,
    "packed": packed,
    "torchvision": lambda root: official(root / "flowers-102"),
    "torchvision's parent": lambda root: official(root / "flowers-102").parent,
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_both_splits(layout: str, tmp_path: Path, empty_cache: Path) -> None:
    root = LAYOUTS[layout](tmp_path / "data")
    table, split = open_dataset("flowers", root)
    assert [int(table.class_names[label]) for label in table.labels] == LABELS.tolist()
    assert paths_of(table, split.train) == [f"jpg/image_{1 + row:05d}.jpg" for row in np.flatnonzero(LABELS <= 51)]
    assert len(split.test) == 204
    _, closed = open_dataset("flowers", root, "closed_set")
    assert (closed.train + 1).tolist() == sorted([*numbers(LABELS, 0, 1), *numbers(LABELS, 1, 2)])
    assert (closed.test + 1).tolist() == sorted(numbers(LABELS, 2, 9))


def test_true_labels_have_the_published_counts_and_the_committed_manifest(tmp_path: Path) -> None:
    rows = read_manifest("flowers")
    table = open_flowers(touch(write_lists(tmp_path, np.array([int(row["class"]) for row in rows]), each=10), "jpg/a"))
    FLOWERS.check(table)
    assert manifest(zero_shot(table)) == (MANIFESTS / "flowers.csv").read_text(encoding="utf-8")


def test_zero_shot_follows_the_committed_labels() -> None:
    assert all((int(row["class"]) <= 51) == (row["split"] == "train") for row in read_manifest("flowers"))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"tstid": numbers(LABELS, 2, 4)[:-1]}, "found 203 test images"),
        ({"trnid": numbers(LABELS, 0, 1)[1:]}, "found 203 training images (zero_shot), expected 204"),
        ({"tstid": np.array([0])}, "setid.mat"),
        ({"tstid": np.array([409])}, "setid.mat"),
    ],
    ids=["test image lost", "training image lost", "image 0", "image 409"],
)
def test_sets_that_do_not_fit_are_refused(change: Sets, word: str, tmp_path: Path) -> None:
    write_lists(official(tmp_path), change=change)
    with refused(tmp_path, word):
        open_dataset("flowers", tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("labels", "word"),
    [
        (LABELS[:-1], "found 407 images, expected 408"),
        (np.where(LABELS == 102, 103, LABELS), "found 103 classes, expected 102"),
        (np.where(LABELS == 102, 0, LABELS), "a label below 1"),
    ],
    ids=["one too few", "species 103", "species 0"],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, word: str, tmp_path: Path) -> None:
    write_lists(official(tmp_path), labels)
    with refused(tmp_path, word):
        open_dataset("flowers", tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat", "jpg"])
def test_missing_part_is_named(name: str, tmp_path: Path) -> None:
    (official(tmp_path / "data") / name).rename(tmp_path / "elsewhere")
    with refused(tmp_path / "data", name, "is missing"):
        open_dataset("flowers", tmp_path / "data")


@pytest.mark.usefixtures("small")
def test_missing_image_is_named(tmp_path: Path) -> None:
    with refused(official(tmp_path, count=407) / "jpg" / "image_00408.jpg", "image is missing"):
        open_dataset("flowers", tmp_path)


def test_page_in_place_of_a_list_is_refused(tmp_path: Path) -> None:
    (official(tmp_path) / "setid.mat").write_text("<!DOCTYPE html><title>moved</title>" * 20)
    with refused(tmp_path / "setid.mat", "not a MATLAB file"):
        open_dataset("flowers", tmp_path)


def test_list_without_its_variable_is_refused(tmp_path: Path) -> None:
    save_mat(official(tmp_path) / "imagelabels.mat", names=LABELS)
    with refused(tmp_path / "imagelabels.mat", "labels"):
        open_dataset("flowers", tmp_path)


def test_papers_report_the_first_four_powers_of_two() -> None:
    assert DATASETS["flowers"].ks == (1, 2, 4, 8)
