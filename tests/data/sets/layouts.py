"""Data sets in miniature, in their true layouts. An image file holds its class number (from 0) and official split."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.table import ImageTable

Miniature = Callable[[str, Counts], None]
"""The fixture ``miniature``: gives a data set the counts of a small copy."""


def touch(root: Path, *paths: str, content: str = "x") -> Path:
    """Writes `content` to each of `paths` below `root`; returns `root`."""
    for folder in {(root / path).parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).write_text(content)
    return root


def structs(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> np.ndarray:
    """A 1 x N MATLAB struct array with the fields `names`."""
    return np.array([tuple(row) for row in rows], dtype=[(name, object) for name in names]).reshape(1, -1)


def cells(values: Sequence[str]) -> np.ndarray:
    """A 1 x N MATLAB cell array of texts."""
    return np.array(values, dtype=object).reshape(1, -1)


def save_mat(path: Path, **variables: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)
    return path


def pack(archive: Path, folder: Path, *names: str) -> Path:
    """Packs `names` of `folder`, all by default, into a zip or tgz, according to the name of `archive`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    chosen = names or tuple(entry.name for entry in folder.iterdir())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(path for name in chosen for path in [folder / name, *(folder / name).rglob("*")]):
                zipped.write(path, path.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name in chosen:
                tar.add(folder / name, name)
    return archive


def packed(root: Path, archive: str, name: str) -> Path:
    """The folder `name` of `root` in an archive beside it, in place of itself."""
    pack(root / archive, root, name)
    shutil.rmtree(root / name)
    return root


def paths_of(table: ImageTable, rows: np.ndarray) -> list[str]:
    return [table.paths[row] for row in rows]


def class_of(table: ImageTable) -> dict[str, str]:
    """Class name by path."""
    return {path: table.class_names[label] for path, label in zip(table.paths, table.labels.tolist(), strict=True)}


SIDES = tuple(enumerate(("train", "test")))
CARS = [(model, side) for model in range(196) for side in ("test", "train")]
BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
MODELS = tuple(f"{number:03d} Maker C/V" for number in range(1, 197))


def cars_original(root: Path, images: Sequence[tuple[int, str]] = CARS) -> Path:
    names = [f"car_ims/{row:06d}.jpg" for row in range(1, len(images) + 1)]
    rows = [
        (name, 1, 2, 3, 4, np.uint8(model + 1), np.uint8(side == "test"))
        for name, (model, side) in zip(names, images, strict=True)
    ]
    annotations = structs(("relative_im_path", *BOX, "class", "test"), rows)
    save_mat(root / "cars_annos.mat", annotations=annotations, class_names=cells(MODELS))
    for name, (model, side) in zip(names, images, strict=True):
        touch(root, name, content=f"{model} {side}")
    return root


def cars_torchvision(root: Path, below: str = "{}", labels: str = "cars_test_annos_withlabels.mat") -> Path:
    """`below` is where the images of ``cars_train`` and ``cars_test`` are."""
    for side, lists in (("train", "devkit/cars_train_annos.mat"), ("test", labels)):
        models = [model for model, flag in CARS if flag == side]
        rows = [(1, 2, 3, 4, np.uint8(model + 1), f"{row:05d}.jpg") for row, model in enumerate(models, start=1)]
        save_mat(root / lists, annotations=structs((*BOX, "class", "fname"), rows))
        for row, model in enumerate(models, start=1):
            touch(root / below.format(f"cars_{side}"), f"{row:05d}.jpg", content=f"{model} {side}")
    save_mat(root / "devkit" / "cars_meta.mat", class_names=cells(MODELS))
    return root


def cars_per_model(root: Path, split: bool = True) -> Path:
    for row, (model, side) in enumerate(CARS):
        name = f"{MODELS[model].replace('/', '')}/{row}.jpg"
        touch(root, f"{side}/{name}" if split else name, content=f"{model} {side}")
    return root


FLOWERS = [
    (int(species), side) for species in np.random.default_rng(0).permutation(102) for side in ("train", "train", "test")
]


def flowers(root: Path, images: Sequence[tuple[int, str]] = FLOWERS) -> Path:
    numbers = {side: np.array([row for row, (_, s) in enumerate(images, 1) if s == side]) for side in ("train", "test")}
    save_mat(root / "imagelabels.mat", labels=np.array([[species + 1 for species, _ in images]], dtype=np.uint8))
    sets = {"trnid": numbers["train"][::2], "valid": numbers["train"][1::2], "tstid": numbers["test"]}
    save_mat(root / "setid.mat", **{name: rows.astype(np.uint16).reshape(1, -1) for name, rows in sets.items()})
    for row, (species, side) in enumerate(images, 1):
        touch(root, f"jpg/image_{row:05d}.jpg", content=f"{species} {side}")
    return root


Row = tuple[int, str]
SOP_TRAIN, SOP_TEST = ([(product, view) for product in products for view in "012"] for products in ((1, 2), (3, 4)))


def sop(root: Path, train: Sequence[Row] = SOP_TRAIN, test: Sequence[Row] = SOP_TEST) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    first = 1
    for side, rows in (("train", train), ("test", test)):
        kinds = ["bicycle" if product % 2 else "chair" for product, _ in rows]
        names = [f"{kind}_final/1110{product}_{view}.JPG" for kind, (product, view) in zip(kinds, rows, strict=True)]
        lines = [
            f"{number} {product} {1 + product % 2} {name}"
            for number, ((product, _), name) in enumerate(zip(rows, names, strict=True), first)
        ]
        (root / f"Ebay_{side}.txt").write_text("\n".join(["image_id class_id super_class_id path", *lines, ""]))
        for name, (product, _) in zip(names, rows, strict=True):
            touch(root, name, content=f"{product - 1} -")
        first += len(rows)
    return root


def inshop_item(number: int, side: str, *views: int) -> list[tuple[str, int, str]]:
    return [(f"img/WOMEN/Dresses/id_{number:08d}/0{view}_1_front.jpg", number, side) for view in views]


INSHOP = [*inshop_item(2, "train", 1, 2, 3), *inshop_item(1, "query", 1), *inshop_item(1, "gallery", 2)]
INSHOP += [*inshop_item(3, "train", 1, 2), *inshop_item(5, "train", 1, 2), *inshop_item(6, "train", 1, 2)]
INSHOP += [*inshop_item(4, "query", 1, 2), *inshop_item(4, "gallery", 3, 4, 5)]
INSHOP_CLASSES = (2, 3, 5, 6, 1, 4)
"""Items in the order of the table: those that train first."""
BENCHMARK = "In-shop Clothes Retrieval Benchmark"


def inshop(root: Path, images: str = "Img", lists: str = "Eval", rows: Sequence[tuple[str, int, str]] = INSHOP) -> Path:
    lines = [f"{path:<75}id_{item:08d}  {side}" for path, item, side in rows]
    header = [str(len(rows)), "image_name  item_id  evaluation_status"]
    touch(root / lists, "list_eval_partition.txt", content="\n".join([*header, *lines, ""]))
    for path, item, side in rows:
        touch(root / images, path, content=f"{INSHOP_CLASSES.index(item)} {side}")
    return root


BIRDS = [(f"{label + 1:03d}.Bird/{2 * label + row}.jpg", label, side) for label in range(200) for row, side in SIDES]


def cub(root: Path, images: Sequence[tuple[str, int, str]] = BIRDS, names: Sequence[str] = ()) -> Path:
    lists = {
        "images.txt": [name for name, _, _ in images],
        "image_class_labels.txt": [label + 1 for _, label, _ in images],
        "train_test_split.txt": [int(side == "train") for _, _, side in images],
        "classes.txt": names or [f"{label + 1:03d}.Bird" for label in range(200)],
    }
    for name, values in lists.items():
        lines = [f"{number} {value}\n" for number, value in enumerate(values, start=1)]
        touch(root, name, content="".join(reversed(lines)))  # rows follow the numbers, not the lines
    for name, label, side in images:
        touch(root / "images", name, content=f"{label} {side}")
    return root


def counts(classes: int, *splits: tuple[int, int]) -> Counts:
    """(train, test) images of the zero-shot split and of the closed set."""
    sides = [{"train": train, "test": test} for train, test in splits]
    return Counts(classes, sum(splits[0]), dict(zip(("zero_shot", "closed_set"), sides, strict=False)))


COUNTS = {
    "cub": counts(200, (200, 200), (200, 200)),
    "cars": counts(196, (196, 196), (196, 196)),
    "flowers": counts(102, (153, 153), (204, 102)),
    "sop": counts(4, (6, 6)),
    "inshop": Counts(6, 16, {"zero_shot": {"train": 9, "query": 3, "gallery": 4}}),
}
LAYOUTS: dict[tuple[str, str], Callable[[Path], Path]] = {
    ("cub", "folder"): lambda root: cub(root / "CUB_200_2011"),
    ("cub", "parent"): lambda root: cub(root / "CUB_200_2011").parent,
    ("cub", "archive"): lambda root: pack(root / "mine.tgz", cub(root / "CUB_200_2011").parent, "CUB_200_2011"),
    ("cub", "folder with the archive"): lambda root: packed(
        cub(root / "CUB_200_2011").parent, "CUB_200_2011.tgz", "CUB_200_2011"
    ),
    ("cars", "original"): cars_original,
    ("cars", "original below"): lambda root: cars_original(root / "stanford_cars").parent,
    ("cars", "original packed"): lambda root: packed(cars_original(root), "car_ims.tgz", "car_ims"),
    ("cars", "original packed below"): lambda root: (
        packed(cars_original(root / "stanford_cars"), "car_ims.tgz", "car_ims").parent
    ),
    ("cars", "torchvision"): cars_torchvision,
    ("cars", "torchvision below"): lambda root: cars_torchvision(root / "stanford_cars").parent,
    ("cars", "torchvision nested"): lambda root: cars_torchvision(root, "{0}/{0}"),
    ("cars", "labels in devkit"): lambda root: cars_torchvision(root, labels="devkit/cars_test_annos_withlabels.mat"),
    ("cars", "per model"): cars_per_model,
    ("cars", "per model below"): lambda root: cars_per_model(root / "car_data" / "car_data").parents[1],
    ("flowers", "folder"): flowers,
    ("flowers", "packed"): lambda root: packed(flowers(root), "102flowers.tgz", "jpg"),
    ("flowers", "torchvision"): lambda root: flowers(root / "flowers-102"),
    ("flowers", "torchvision's parent"): lambda root: flowers(root / "flowers-102").parent,
    ("sop", "folder"): lambda root: sop(root / "Stanford_Online_Products"),
    ("sop", "parent"): lambda root: sop(root / "Stanford_Online_Products").parent,
    ("sop", "zip"): lambda root: pack(root / "mine.zip", sop(root / "Stanford_Online_Products").parent),
    ("sop", "folder with the zip"): lambda root: packed(
        sop(root / "Stanford_Online_Products").parent, "Stanford_Online_Products.zip", "Stanford_Online_Products"
    ),
    ("inshop", "official"): inshop,
    ("inshop", "official, packed"): lambda root: packed(inshop(root) / "Img", "img.zip", "img").parent,
    ("inshop", "flat"): lambda root: inshop(root, "", ""),
    ("inshop", "flat, packed"): lambda root: packed(inshop(root, "", ""), "img.zip", "img"),
    ("inshop", "parent"): lambda root: inshop(root, f"{BENCHMARK}/Img", f"{BENCHMARK}/Eval"),
}
