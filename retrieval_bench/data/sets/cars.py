"""Cars-196 (Krause, Stark, Deng and Fei-Fei, 3dRR 2013): 16,185 photographs of 196 models of cars.

Zero-shot split: models 1-98 train (8,054 images), 99-196 test (8,131). Closed set: the official 8,144 and 8,041 images
of all models. Copies come in three layouts (``datasets/cars.md``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from retrieval_bench.data.archive import find_files, read_matlab
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.listing import subfolders
from retrieval_bench.data.sets.folder import class_folders, open_folder
from retrieval_bench.data.table import ImageTable, numbered_table
from retrieval_bench.errors import UserError

GONE = "(the official site is gone since 2023; datasets/cars.md says which copies are accepted)"
ARCHIVES = (
    Archive("cars_annos.mat", "b407c6086d669747186bd1d764ff9dbc", by_hand=GONE),
    Archive("car_ims.tgz", "d5c8f0aa497503f355e17dc7886c3f14", by_hand=GONE),
)
TEST_LISTS = "cars_test_annos_withlabels.mat"


def open_cars(root: Path | None) -> ImageTable:
    """Opens any of three layouts, at `root` or one or two folders (``stanford_cars``, ``car_data``) below it.

    - original: ``car_ims/000001.jpg``... beside ``cars_annos.mat``;
    - torchvision's: ``cars_train/``, ``cars_test/``, ``devkit/`` and ``cars_test_annos_withlabels.mat``;
    - a folder per class, below ``train/`` and ``test/`` or directly (the latter has no closed-set split).
    """
    if root is not None and root.is_dir():
        for folder in (root, root / "stanford_cars", root / "car_data", root / "car_data" / "car_data"):
            if (folder / "cars_train").is_dir():
                return _open_torchvision(folder)
            if folder.is_dir() and len(subfolders(folder / class_folders(folder, subfolders(folder))[-1])) > 98:
                return replace(open_folder(folder), zero_shot_classes=98)
    names = [(name, f"stanford_cars/{name}") for name in ("cars_annos.mat", "car_ims")]
    lists, images = find_files(root, ARCHIVES, "Cars-196", *names, below=("stanford_cars",))
    fields = ("class_names", "annotations.relative_im_path", "annotations.class", "annotations.test")
    class_names, paths, numbers, test = read_matlab(lists, *fields)
    paths, split = [f"car_ims/{Path(path).name}" for path in paths], np.where(test.astype(bool), "test", "train")
    return numbered_table(images.parent, paths, numbers, class_names, 98, split)


def _open_torchvision(folder: Path) -> ImageTable:
    devkit, test_lists = folder / "devkit", folder / TEST_LISTS
    if not test_lists.is_file() and not (test_lists := devkit / TEST_LISTS).is_file():
        raise UserError(f"{folder / TEST_LISTS}: file is missing; without it the test images have no classes")
    paths, numbers, split = [], [], []
    for side, lists in (("train", devkit / "cars_train_annos.mat"), ("test", test_lists)):
        below = f"cars_{side}"
        if (folder / below / below).is_dir():  # as some copies nest it
            below = f"{below}/{below}"
        names, classes = read_matlab(lists, "annotations.fname", "annotations.class")
        paths += [f"{below}/{name}" for name in names]
        numbers += classes.tolist()
        split += [side] * len(names)
    (class_names,) = read_matlab(devkit / "cars_meta.mat", "class_names")
    return numbered_table(folder, paths, numbers, class_names, 98, np.array(split))


CARS = Dataset(
    about="Cars-196, 16,185 photographs of 196 models of cars; no download (the official site is gone): --data-root",
    title="Cars-196",
    classes_are="models",
    open=open_cars,
    archives=ARCHIVES,
    counts=Counts(
        196, 16_185, {"zero_shot": {"train": 8_054, "test": 8_131}, "closed_set": {"train": 8_144, "test": 8_041}}
    ),
)
