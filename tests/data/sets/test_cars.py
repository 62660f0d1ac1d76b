from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_checks import files_below, refused
from layouts import cells, class_of, pack, paths_of, save_mat, structs, touch

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.sets.cars import open_cars

MODELS = tuple(f"{number:03d} Maker C/V" for number in range(1, 197))
BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
IMAGES = [(model, test) for model in range(1, 197) for test in (1, 0, 0, 1)]
"""(model's number, whether it is an official test image) of each image: four of each model."""
SPLITS = {"zero_shot": {"train": 98 * 4, "test": 98 * 4}, "closed_set": {"train": 196 * 2, "test": 196 * 2}}

pytestmark = pytest.mark.usefixtures("small")


@pytest.fixture
def small(miniature: Callable[[str, Counts], None]) -> None:
    miniature("cars", Counts(196, len(IMAGES), SPLITS))


def annotated(images: list[tuple[int, int]]) -> np.ndarray:
    rows = [
        (f"car_ims/{row:06d}.jpg", 1, 2, 3, 4, np.uint8(model), np.uint8(test))
        for row, (model, test) in enumerate(images, start=1)
    ]
    return structs(("relative_im_path", *BOX, "class", "test"), rows)


def original(root: Path, images: list[tuple[int, int]] = IMAGES) -> Path:
    save_mat(root / "cars_annos.mat", annotations=annotated(images), class_names=cells(MODELS))
    return touch(root, *(f"car_ims/{row:06d}.jpg" for row in range(1, len(images) + 1)))


def original_packed(root: Path) -> Path:
    original(root)
    pack(root / "car_ims.tgz", root, "car_ims")
    shutil.rmtree(root / "car_ims")
    return root


def torchvision(root: Path, below: str = "{}", labels: str = "cars_test_annos_withlabels.mat") -> Path:
    """`below` is where the images of ``cars_train`` and ``cars_test`` lie."""
    for side, test, place in (("train", 0, "devkit/cars_train_annos.mat"), ("test", 1, labels)):
        models = [model for model, flag in IMAGES if flag == test]
        rows = [(1, 2, 3, 4, np.uint8(model), f"{row:05d}.jpg") for row, model in enumerate(models, start=1)]
        save_mat(root / place, annotations=structs((*BOX, "class", "fname"), rows))
        touch(root / below.format(f"cars_{side}"), *(f"{row:05d}.jpg" for row in range(1, len(models) + 1)))
    save_mat(root / "devkit" / "cars_meta.mat", class_names=cells(MODELS))
    return root


def per_model(root: Path, sides: bool = True) -> Path:
    names = [f"{MODELS[model - 1].replace('/', '')}/{row}.jpg" for row, (model, _) in enumerate(IMAGES)]
    folders = ["test" if test else "train" for _, test in IMAGES]
    return touch(root, *(f"{folder}/{name}" if sides else name for folder, name in zip(folders, names, strict=True)))


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "original": original,
    "original below": lambda root: original(root / "stanford_cars"),
    "original packed": original_packed,
    "torchvision": torchvision,
    "torchvision below": lambda root: torchvision(root / "stanford_cars"),
    "torchvision nested": lambda root: torchvision(root, "{0}/{0}"),
    "torchvision, labels in devkit": lambda root: torchvision(root, labels="devkit/cars_test_annos_withlabels.mat"),
    "per model": per_model,
    "per model below": lambda root: per_model(root / "car_data" / "car_data"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_both_splits(layout: str, tmp_path: Path, empty_cache: Path) -> None:
    LAYOUTS[layout](tmp_path / "data")
    table, split = open_dataset("cars", tmp_path / "data")
    assert [name[:3] for name in table.class_names] == [name[:3] for name in MODELS]
    assert split.train_classes.tolist() == list(range(98))
    assert sorted(set(table.labels[split.test].tolist())) == list(range(98, 196))
    assert (len(split.train), len(split.query), len(split.gallery)) == (392, 392, 392)
    _, closed = open_dataset("cars", tmp_path / "data", "closed_set")
    for rows in (closed.train, closed.test):
        assert np.bincount(table.labels[rows]).tolist() == [2] * 196
    assert all((table.root / path).is_file() for path in table.paths)


def test_original_annotations_say_class_and_side(tmp_path: Path) -> None:
    table, split = open_dataset("cars", original(tmp_path), "closed_set")
    expected = {f"car_ims/{row:06d}.jpg": MODELS[model - 1] for row, (model, _) in enumerate(IMAGES, start=1)}
    assert class_of(table) == expected
    assert paths_of(table, split.test) == [
        f"car_ims/{row:06d}.jpg" for row, (_, test) in enumerate(IMAGES, start=1) if test
    ]


def test_torchvision_folders_say_the_side(tmp_path: Path) -> None:
    table, split = open_dataset("cars", torchvision(tmp_path), "closed_set")
    assert {path.split("/")[0] for path in paths_of(table, split.train)} == {"cars_train"}
    assert {path.split("/")[0] for path in paths_of(table, split.test)} == {"cars_test"}
    assert class_of(table)["cars_test/00003.jpg"] == MODELS[1]


def test_models_in_one_place_have_no_closed_set(tmp_path: Path) -> None:
    root = per_model(tmp_path, sides=False)
    assert len(open_dataset("cars", root)[1].train) == 392
    with refused(root, "no official training and test images", "closed_set"):
        open_dataset("cars", root, "closed_set")


def test_packed_images_beside_the_list_are_found_in_the_folder_below(tmp_path: Path, empty_cache: Path) -> None:
    """The card accepts the archive in ``stanford_cars`` too."""
    original_packed(tmp_path / "data" / "stanford_cars")
    assert len(open_dataset("cars", tmp_path / "data")[0]) == len(IMAGES)


@pytest.mark.parametrize("change", ["one more", "one less"])
def test_count_off_by_one_is_refused(change: str, tmp_path: Path) -> None:
    images = [*IMAGES, (196, 1)] if change == "one more" else IMAGES[:-1]
    with refused(original(tmp_path, images), f"found {len(images)} images, expected 784"):
        open_dataset("cars", tmp_path)


def test_image_on_the_wrong_side_is_refused(tmp_path: Path) -> None:
    images = [(1, 0), *IMAGES[1:]]
    with refused(original(tmp_path, images), "found 393 training images (closed_set), expected 392"):
        open_dataset("cars", tmp_path)


@pytest.mark.parametrize("number", [0, 197])
def test_class_number_that_does_not_fit_is_refused(number: int, tmp_path: Path) -> None:
    images = [(number, 0), *IMAGES[1:]]
    with refused(original(tmp_path, images), "class numbers"):
        open_cars(tmp_path)


@pytest.mark.parametrize(
    "name", ["cars_test_annos_withlabels.mat", "devkit/cars_train_annos.mat", "devkit/cars_meta.mat"]
)
def test_missing_list_of_torchvisions_layout_is_named(name: str, tmp_path: Path) -> None:
    (torchvision(tmp_path) / name).unlink()
    with refused(tmp_path / name, "is missing"):
        open_dataset("cars", tmp_path)


def test_test_annotations_without_classes_are_refused(tmp_path: Path) -> None:
    """The development kit's own ``cars_test_annos.mat``, renamed."""
    labels = torchvision(tmp_path) / "cars_test_annos_withlabels.mat"
    save_mat(labels, annotations=structs((*BOX, "fname"), [(1, 2, 3, 4, f"{row:05d}.jpg") for row in range(1, 393)]))
    with refused(labels, "class"):
        open_cars(tmp_path)


def test_list_without_class_names_is_refused(tmp_path: Path) -> None:
    save_mat(touch(tmp_path, "car_ims/000001.jpg") / "cars_annos.mat", annotations=annotated(IMAGES[:4]))
    with refused(tmp_path / "cars_annos.mat", "class_names"):
        open_dataset("cars", tmp_path)


def test_missing_image_is_named(tmp_path: Path) -> None:
    (original(tmp_path) / "car_ims" / "000784.jpg").unlink()
    with refused(tmp_path / "car_ims" / "000784.jpg", "image is missing"):
        open_dataset("cars", tmp_path)


def test_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    shutil.rmtree(torchvision(tmp_path) / "cars_test")
    with refused(tmp_path / "cars_test", "folder is missing"):
        open_dataset("cars", tmp_path)


@pytest.mark.parametrize(("kept", "missing"), [("car_ims", "cars_annos.mat"), ("cars_annos.mat", "car_ims")])
def test_half_of_the_original_files_is_refused(kept: str, missing: str, tmp_path: Path) -> None:
    (original(tmp_path / "whole", IMAGES[:4]) / kept).rename(tmp_path / kept)
    shutil.rmtree(tmp_path / "whole")
    with refused(tmp_path, f"{missing} is missing", "car_ims.tgz"):
        open_dataset("cars", tmp_path)


def test_without_a_folder_the_files_and_their_places_are_named(tmp_path: Path, empty_cache: Path) -> None:
    with refused(
        "cars_annos.mat", "car_ims.tgz", empty_cache / "downloads", "--from-archive", "--data-root", "gone since 2023"
    ):
        open_dataset("cars", None)
    assert not any(name.endswith((".mat", ".tgz", ".part")) for name in files_below(empty_cache))


def test_papers_report_the_first_four_powers_of_two() -> None:
    assert DATASETS["cars"].ks == (1, 2, 4, 8)
