"""CUB, Cars, Flowers, Products, In-Shop: every layout opens with the right classes and splits, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_bench.data.catalog import DATASETS, open_dataset, open_table
from retrieval_bench.data.sets import sop as sop_module
from retrieval_bench.data.splits import manifest, split_names
from retrieval_bench.files import digest
from tests.data.data_checks import MANIFESTS, files_below, read_manifest, refused
from tests.data.sets.layouts import (
    BOX,
    CARS,
    COUNTS,
    FLOWERS,
    INSHOP,
    LAYOUTS,
    MODELS,
    SOP_TEST,
    SOP_TRAIN,
    Miniature,
    cars_per_model,
    cub,
    flowers,
    inshop,
    paths_of,
    save_mat,
    sop,
    structs,
)
from tests.data.sets.layouts import cars_original as cars
from tests.data.sets.layouts import cars_torchvision as torchvision


@pytest.fixture
def small(miniature: Miniature) -> None:
    for name, counts in COUNTS.items():
        miniature(name, counts)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=" ".join)
def test_every_layout_opens_with_classes_and_splits(name: str, layout: str, tmp_path: Path, empty_cache: Path) -> None:
    root = LAYOUTS[name, layout](tmp_path / "data")
    table, split = open_dataset(name, root)
    contents = [(table.root / path).read_text().split() for path in table.paths]
    assert table.labels.dtype == np.int64
    assert table.labels.tolist() == [int(label) for label, _ in contents]
    if "closed_set" in COUNTS[name].splits:
        assert split_names("closed_set", table).tolist() == [side for _, side in contents]
    else:
        with refused((name == "inshop" and "id_00000001") or "no official training and test images"):
            open_dataset(name, root, "closed_set")
    half = table.train_classes
    assert half * 2 == len(table.class_names) or name == "inshop"
    assert split.train.tolist() == np.flatnonzero(table.labels < half).tolist()
    roles = {side: [row for row, (_, own) in enumerate(contents) if own == side] for side in ("query", "gallery")}
    tested = np.flatnonzero(table.labels >= half).tolist()
    assert split.query.tolist() == (roles["query"] or tested)
    assert split.gallery.tolist() == (roles["gallery"] or tested)


def edit(path: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        text = (root / path).read_text()
        assert change(text) != text
        (root / path).write_text(change(text), errors="surrogateescape")

    return damage


def swap(path: str, old: str, new: str) -> Callable[[Path], object]:
    return edit(path, lambda text: text.replace(old, new, 1))


def remove(path: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def write_mat(path: str, **variables: object) -> Callable[[Path], object]:
    return lambda root: save_mat(root / path, **variables)


NUMBERS = np.array([[0, 2]], dtype=np.uint16)
NO_CLASSES = structs((*BOX, "fname"), [(1, 2, 3, 4, f"{row:05d}.jpg") for row in range(1, 197)])
"""The development kit's own ``cars_test_annos.mat``, renamed."""
LABELS, SPLIT, EVAL = "image_class_labels.txt", "train_test_split.txt", "Eval/list_eval_partition.txt"
TEST_LISTS = "cars_test_annos_withlabels.mat"
DAMAGED = [
    (cub, remove("images.txt"), "no CUB-200-2011 here (images.txt is missing)"),
    *((cub, remove(name), f"{name}: file is missing") for name in (LABELS, "classes.txt", SPLIT)),
    (cub, swap(LABELS, "400 200\n", "400 201\n"), "class numbers"),
    (cub, swap(LABELS, "\n1 1\n", "\n1 0\n"), "class numbers"),
    (cub, swap(LABELS, "\n1 1\n", "\n1 one\n"), "'one'"),
    (cub, swap(LABELS, "\n1 1\n", "\n"), "name different images"),
    (cub, swap(SPLIT, "400 ", "401 "), "name different images"),
    (cub, swap("images.txt", "\n1 001", "\none 001"), "'one'"),
    (cub, edit("images.txt", lambda text: "<html><body>not found</body></html>"), "not the official file"),
    (cub, swap("classes.txt", "\n7 007.Bird\n", "\n"), "class numbers"),
    (cub, swap("classes.txt", "\n7 007.Bird\n", "\n7\n"), "1 columns, not 2"),
    (cub, swap(SPLIT, "\n2 0\n", "\n2 1\n"), "201 train images (closed_set), expected 200"),
    (cub, swap(LABELS, "\n1 1\n", "\n1 200\n"), "199 train images (zero_shot), expected 200"),
    (cub, remove("images/001.Bird/0.jpg"), "001.Bird/0.jpg: image is missing"),
    (cub, remove("images/001.Bird"), "001.Bird: folder is missing"),
    *((torchvision, remove(n), n) for n in (TEST_LISTS, "devkit/cars_train_annos.mat", "devkit/cars_meta.mat")),
    (torchvision, remove("cars_test"), "cars_test: folder is missing"),
    (torchvision, write_mat(TEST_LISTS, annotations=NO_CLASSES), "it has no 'class'"),
    (cars, remove("cars_annos.mat"), "(cars_annos.mat is missing)"),
    (cars, remove("car_ims"), "(car_ims is missing)"),
    (cars, write_mat("cars_annos.mat", names=[1]), "it has no 'class_names'"),
    (partial(cars, images=[*CARS, (195, "test")]), None, "393 images, expected 392"),
    (partial(cars, images=[(0, "train"), *CARS[1:]]), None, "197 train images (closed_set), expected 196"),
    (partial(cars, images=[(-1, "test"), *CARS[1:]]), None, "class numbers"),
    (partial(cars, images=[(196, "test"), *CARS[1:]]), None, "class numbers"),
    *((flowers, remove(name), f"{name} is missing") for name in ("imagelabels.mat", "jpg")),
    (flowers, remove("setid.mat"), "setid.mat: file is missing"),
    (flowers, remove("jpg/image_00306.jpg"), "image_00306.jpg: image is missing"),
    (flowers, write_mat("setid.mat", trnid=NUMBERS, valid=NUMBERS, tstid=NUMBERS), "setid.mat: image numbers"),
    (flowers, lambda root: (root / "setid.mat").write_text("<html>" * 99), "setid.mat: not a MATLAB file"),
    (flowers, write_mat("imagelabels.mat", names=[1]), "it has no 'labels'"),
    (partial(flowers, images=FLOWERS[:-1]), None, "305 images, expected 306"),
    (partial(flowers, images=[(102, "train"), *FLOWERS[1:]]), None, "103 classes, expected 102"),
    (partial(flowers, images=[(-1, "train"), *FLOWERS[1:]]), None, "class numbers"),
    *((sop, remove(f"Ebay_{side}.txt"), f"Ebay_{side}.txt") for side in ("train", "test")),
    (sop, remove("chair_final"), "chair_final: folder is missing"),
    (sop, swap("Ebay_train.txt", "6 2 1 chair", "6 2 chair"), "line 7: 3 columns, not 4"),
    (partial(sop, test=SOP_TEST[:-1]), None, "11 images, expected 12"),
    (partial(sop, train=SOP_TRAIN[:-1], test=[*SOP_TEST, (4, "9")]), None, "5 train images (zero_shot), expected 6"),
    (partial(sop, train=[*SOP_TRAIN, (3, "9")]), None, "class numbers"),
    (partial(sop, test=[*SOP_TEST, (6, "9")]), None, "class numbers"),
    (partial(sop, train=[(0, "9"), *SOP_TRAIN]), None, "class numbers"),
    (partial(sop, train=[]), None, "class numbers"),
    (partial(sop, test=[]), None, "class numbers"),
    (inshop, remove("Eval"), f"({EVAL} is missing)"),
    (inshop, remove("Img"), "(img is missing)"),
    (inshop, remove(f"Img/{INSHOP[0][0]}"), f"{INSHOP[0][0]}: image is missing"),
    (inshop, swap(EVAL, "  gallery", "  val"), "status 'val'"),
    (inshop, swap(EVAL, "  gallery", ""), "2 columns, not 3"),
    (inshop, swap(EVAL, "  gallery", "  query"), "queries but no gallery image"),
    (inshop, swap(EVAL, "4  query", "4  gallery"), "2 query images (zero_shot), expected 3"),
    (inshop, swap(EVAL, "4  query", "4  train"), "train images (zero_shot), expected 9"),
    (partial(inshop, rows=INSHOP[:-1]), None, "15 images, expected 16"),
]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("write", "damage", "message"), DAMAGED)
def test_what_does_not_fit_is_refused(
    write: Any, damage: Callable[[Path], object] | None, message: str, tmp_path: Path, empty_cache: Path
) -> None:
    root = write(tmp_path / "data")
    if damage:
        damage(root)
    name = getattr(write, "func", write).__name__.split("_")[0]
    with refused(root, message):
        open_table(name, root)


def test_what_only_a_person_can_fetch_is_asked_for(empty_cache: Path) -> None:
    for name, words in (
        ("cars", "cars_annos.mat car_ims.tgz 2023"),
        ("inshop", "list_eval_partition.txt img.zip"),
    ):
        with refused(*words.split(), empty_cache / "downloads", "--from-archive", "--data-root"):
            open_dataset(name, None)
    assert files_below(empty_cache / "downloads") == []


@pytest.mark.usefixtures("small")
def test_downloaded_archive_is_opened_and_checked(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = LAYOUTS["sop", "folder with the zip"](tmp_path) / "Stanford_Online_Products.zip"
    (empty_cache / "downloads").mkdir(parents=True)
    kept = archive.rename(empty_cache / "downloads" / archive.name)
    monkeypatch.setattr(sop_module, "ARCHIVE", replace(sop_module.ARCHIVE, md5=digest(kept, "md5")))
    assert len(open_table("sop", None)) == 12
    monkeypatch.setattr(sop_module, "ARCHIVE", replace(sop_module.ARCHIVE, md5="0" * 32))
    with refused(kept, "md5"):
        open_table("sop", None)


def test_class_names_and_copies_without_official_lists(tmp_path: Path, small: None) -> None:
    assert open_table("sop", sop(tmp_path / "sop")).class_names == ("bicycle_1", "chair_2", "bicycle_3", "chair_4")
    assert open_table("cars", cars(tmp_path / "cars")).class_names == MODELS
    assert open_table("flowers", flowers(tmp_path / "flowers")).class_names[::101] == ("001", "102")
    table, split = open_dataset("inshop", inshop(tmp_path / "inshop"), "kfold", 1, 2)
    assert split.query.tolist() == split.gallery.tolist()
    used = {*paths_of(table, split.train), *paths_of(table, split.test)}
    assert used == {path for path, _, side in INSHOP if side == "train"}
    root = cars_per_model(tmp_path / "models", split=False)
    assert len(open_dataset("cars", root)[1].train) == 196
    with refused(root, "no official training and test images"):
        open_dataset("cars", root, "closed_set")


def official_cub() -> tuple[list[tuple[str, int, str]], list[str]]:
    """All 11,788 images (name, label, side) and the class names."""
    rows = read_manifest("cub.closed_set")
    return [(r["path"], int(r["class"][:3]) - 1, r["split"]) for r in rows], sorted({r["class"] for r in rows})


def test_cub_with_its_true_names_has_the_published_counts_and_manifests(tmp_path: Path) -> None:
    folder = cub(tmp_path / "CUB_200_2011", *official_cub())
    table, split = open_dataset("cub", folder)
    assert (len(table), len(split.train), len(split.test)) == (11_788, 5_864, 5_924)
    assert table.class_names[::199] == ("001.Black_footed_Albatross", "200.Common_Yellowthroat")
    for protocol, name in (("zero_shot", "cub"), ("closed_set", "cub.closed_set")):
        assert manifest(table, split_names(protocol, table)) == (MANIFESTS / f"{name}.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("change", ["renamed", "swapped labels", "swapped sides"])
def test_cub_with_another_name_label_or_side_is_refused(change: str, tmp_path: Path) -> None:
    images, names = official_cub()
    (first, one, side), (second, two, other) = images[0], images[100]
    if change == "renamed":
        images[0] = (first + "x", one, side)
    elif change == "swapped labels":
        images[0], images[100] = (first, two, side), (second, one, other)
    else:
        images[0], images[1] = (first, one, images[1][2]), (*images[1][:2], side)
    with refused(tmp_path, "manifest"):
        open_dataset("cub", cub(tmp_path / "CUB_200_2011", images, names))


def test_flowers_with_their_true_labels_have_the_committed_manifest(tmp_path: Path) -> None:
    rows, seen = [], dict.fromkeys(range(102), 0)
    for row in read_manifest("flowers"):
        species = int(row["class"]) - 1
        seen[species] += 1
        rows.append((species, "train" if seen[species] <= 20 else "test"))
    table = DATASETS["flowers"].open(flowers(tmp_path, rows))
    DATASETS["flowers"].check(table)
    assert manifest(table, split_names("zero_shot", table)) == (MANIFESTS / "flowers.csv").read_text(encoding="utf-8")
