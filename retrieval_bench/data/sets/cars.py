"""Cars-196 (Krause, Stark, Deng and Fei-Fei, 3dRR 2013): 16,185 photographs of 196 models of cars.

Zero-shot split: models 1-98 train (8,054 images), 99-196 test (8,131). Closed set: the official 8,144 and 8,041 images of all models.
The official site is gone since 2023, and copies come in three layouts, which are recognised by their files. See ``datasets/cars.md``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.lists import read_fields, read_matlab
from retrieval_bench.data.places import Places
from retrieval_bench.data.sets.folder import open_folder, side_folders
from retrieval_bench.errors import UserError

GONE = "(the official site is gone since 2023; datasets/cars.md says which copies are accepted)"
ARCHIVES = (
    Archive("cars_annos.mat", "b407c6086d669747186bd1d764ff9dbc", by_hand=GONE),
    Archive("car_ims.tgz", "d5c8f0aa497503f355e17dc7886c3f14", by_hand=GONE),
)
ZERO_SHOT_CLASSES = 98
SPLIT_LABELS = "cars_test_annos_withlabels.mat"


def open_cars(root: Path | None) -> ImageTable:
    """Opens any of three layouts, at `root` or one or two folders (``stanford_cars``, ``car_data``) below it.

    - original: ``car_ims/000001.jpg``... beside ``cars_annos.mat``;
    - torchvision's: ``cars_train/``, ``cars_test/``, ``devkit/`` and ``cars_test_annos_withlabels.mat``;
    - a folder per class, below ``train/`` and ``test/`` or at once (the latter has no closed-set split).
    """
    places = Places(root, ARCHIVES, "Cars-196", ("stanford_cars",))
    if root is not None and root.is_dir():
        for folder in (root, root / "stanford_cars", root / "car_data", root / "car_data" / "car_data"):
            if (folder / "cars_train").is_dir():
                return _open_torchvision(folder)
            if folder.is_dir() and _has_class_folders(folder):
                return replace(open_folder(folder), zero_shot_classes=ZERO_SHOT_CLASSES)
    return _open_original(places)


def _has_class_folders(folder: Path) -> bool:
    classes = folder / side_folders(folder)["test"]
    return sum(entry.is_dir() for entry in classes.iterdir()) > ZERO_SHOT_CLASSES


def _open_original(places: Places) -> ImageTable:
    lists = places.find("cars_annos.mat", "stanford_cars/cars_annos.mat")
    images = places.find("car_ims", "stanford_cars/car_ims")
    annotations, names = read_matlab(lists, "annotations", "class_names")
    rows = [
        (f"car_ims/{Path(name).name}", int(number), bool(test))
        for name, number, test in read_fields(lists, annotations, "relative_im_path", "class", "test")
    ]
    return _table(images.parent, rows, names)


def _open_torchvision(folder: Path) -> ImageTable:
    test_labels = next(
        (path for path in (folder / SPLIT_LABELS, folder / "devkit" / SPLIT_LABELS) if path.is_file()), None
    )
    if test_labels is None:
        raise UserError(f"{folder / SPLIT_LABELS}: file is missing; without it the test images have no classes")
    (names,) = read_matlab(folder / "devkit" / "cars_meta.mat", "class_names")
    rows: list[tuple[str, int, bool]] = []
    for side, lists in (("cars_train", folder / "devkit" / "cars_train_annos.mat"), ("cars_test", test_labels)):
        below = f"{side}/{side}" if (folder / side / side).is_dir() else side  # as some copies nest it
        (annotations,) = read_matlab(lists, "annotations")
        rows += [
            (f"{below}/{name}", int(number), side == "cars_test")
            for name, number in read_fields(lists, annotations, "fname", "class")
        ]
    return _table(folder, rows, names)


def _table(root: Path, rows: list[tuple[str, int, bool]], names: np.ndarray) -> ImageTable:
    labels = np.array([number for _, number, _ in rows], dtype=np.int64) - 1
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise UserError(
            f"{root}: class numbers of the annotations do not fit the list of class names; fetch the data set again"
        )
    sides = np.array(["test" if test else "train" for *_, test in rows])
    return ImageTable(root, tuple(path for path, *_ in rows), labels, tuple(map(str, names)), ZERO_SHOT_CLASSES, sides)


CARS = Dataset(
    about="Cars-196, 16,185 photographs of 196 models of cars; no download (the official site is gone): --data-root",
    open=open_cars,
    archives=ARCHIVES,
    counts=Counts(
        classes=196,
        images=16_185,
        splits={"zero_shot": {"train": 8_054, "test": 8_131}, "closed_set": {"train": 8_144, "test": 8_041}},
    ),
)
