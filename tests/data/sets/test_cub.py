from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from fake_cub import MANIFESTS, official_images, write_images, write_lists

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.sets.cub import ARCHIVE, CUB, open_cub
from retrieval_bench.data.splits import closed_set, manifest


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder CUB_200_2011 with all its files; tests leave it as it is."""
    folder = write_lists(tmp_path_factory.mktemp("cub") / "CUB_200_2011", list(official_images()))
    write_images(folder, list(official_images()))
    return folder


@pytest.fixture
def lists(official: Path, tmp_path: Path) -> Path:
    """A folder with the text files alone, to be damaged."""
    return shutil.copytree(official, tmp_path / "CUB_200_2011", ignore=shutil.ignore_patterns("images"))


def test_archive_is_the_official_one() -> None:
    assert ARCHIVE.md5 == "97eceeb196236b17998738112f37df78"
    assert ARCHIVE.urls[0].startswith("https://data.caltech.edu/")


def test_split_has_the_published_counts(official: Path) -> None:
    table, split = open_dataset("cub", official)
    assert (len(table), len(table.class_names)) == (11_788, 200)
    assert (len(split.train), len(split.test)) == (5_864, 5_924)
    assert table.class_names[0] == "001.Black_footed_Albatross"
    assert table.class_names[199] == "200.Common_Yellowthroat"
    assert set(table.labels[split.train]) == set(range(100))
    assert set(table.labels[split.test]) == set(range(100, 200))
    assert [(path, label + 1) for path, label in zip(table.paths, table.labels.tolist(), strict=True)] == list(
        official_images()
    )
    assert len(table.fingerprint()) == 64


def test_closed_set_has_the_published_counts(official: Path) -> None:
    table, split = open_dataset("cub", official, "closed_set")
    assert (len(split.train), len(split.query), len(split.gallery)) == (5_994, 5_794, 5_794)
    assert set(table.labels[split.train]) == set(table.labels[split.test]) == set(range(200))
    assert manifest(closed_set(table)) == (MANIFESTS / "cub.closed_set.csv").read_text(encoding="utf-8")


def test_parent_folder_opens_the_same(official: Path) -> None:
    table, parent = open_cub(official), open_cub(official.parent)
    assert (parent.root, parent.paths, parent.labels.tolist()) == (table.root, table.paths, table.labels.tolist())


def test_archive_opens_the_same(lists: Path, tmp_path: Path, empty_cache: Path) -> None:
    with tarfile.open(tmp_path / "mine.tgz", "w:gz") as tar:
        tar.add(lists, "CUB_200_2011")
    table = open_cub(tmp_path / "mine.tgz")
    CUB.check(table)
    assert table.root.is_relative_to(empty_cache)
    assert table.paths == open_cub(lists).paths


def test_rows_follow_image_numbers_not_lines(lists: Path) -> None:
    expected = open_cub(lists).sides
    for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt"):
        lines = (lists / name).read_text().splitlines(keepends=True)
        (lists / name).write_text("".join(sorted(lines)))
    table = open_cub(lists)
    assert list(table.paths) == [name for name, _ in official_images()]
    assert np.array_equal(table.sides, expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("protocol", ["zero_shot", "zero_shot_val"])
def test_one_image_too_few_is_refused(protocol: str, tmp_path: Path) -> None:
    folder = write_lists(tmp_path / "CUB_200_2011", list(official_images()[:-1]))
    with refused(folder, "11,787", "11,788"):
        open_dataset("cub", folder, protocol)


def test_image_in_the_wrong_half_is_refused(tmp_path: Path) -> None:
    images = list(official_images())
    images[0] = (images[0][0], 200)
    folder = write_lists(tmp_path / "CUB_200_2011", images)
    with refused(folder, "5,863", "5,864", "training images"):
        open_dataset("cub", folder)


def test_image_of_another_name_is_refused(tmp_path: Path) -> None:
    images = list(official_images())
    images[5] = (images[5][0].replace(".jpg", "_copy.jpg"), images[5][1])
    folder = write_lists(tmp_path / "CUB_200_2011", images)
    with refused(folder, "manifest"):
        open_dataset("cub", folder)


def test_two_swapped_labels_are_refused(tmp_path: Path) -> None:
    images = list(official_images())
    (first, one), (second, two) = images[0], images[100]
    assert one != two
    images[0], images[100] = (first, two), (second, one)
    folder = write_lists(tmp_path / "CUB_200_2011", images)
    with refused(folder, "manifest"):
        open_dataset("cub", folder)


def test_archive_of_something_else_is_refused_by_its_name(tmp_path: Path, empty_cache: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "readme.txt", "readme.txt")
    with refused("other", "images.txt"):
        open_dataset("cub", tmp_path / "other.tar")


def test_missing_images_txt_is_refused(lists: Path) -> None:
    (lists / "images.txt").unlink()
    with refused(lists, "images.txt"):
        open_dataset("cub", lists)


@pytest.mark.parametrize("name", ["image_class_labels.txt", "classes.txt", "train_test_split.txt"])
def test_missing_list_is_refused(name: str, lists: Path) -> None:
    (lists / name).unlink()
    with refused(lists / name, "is missing"):
        open_dataset("cub", lists)


def replace(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("image_class_labels.txt", replace("11788 200\n", "11788 201\n")),
        ("image_class_labels.txt", replace("1 1\n", "1 0\n")),
        ("image_class_labels.txt", replace("1 1\n", "1 one\n")),
        ("image_class_labels.txt", replace("1 1\n", "")),
        ("images.txt", replace("1 001", "one 001")),
        ("images.txt", lambda text: "<html><body>not found</body></html>"),
        ("images.txt", lambda text: "\x00\udcff\udcfe"),
        ("classes.txt", replace("7 007.Parakeet_Auklet\n", "")),
        ("classes.txt", replace("7 007.Parakeet_Auklet\n", "7\n")),
        ("train_test_split.txt", replace("11788 ", "11789 ")),
    ],
    ids=[
        "class 201",
        "class 0",
        "no number",
        "row missing",
        "no image number",
        "html",
        "binary",
        "class missing",
        "class unnamed",
        "other image",
    ],
)
def test_damaged_list_is_refused(name: str, damage: Callable[[str], str], lists: Path) -> None:
    text = (lists / name).read_text()
    assert damage(text) != text
    (lists / name).write_text(damage(text), errors="surrogateescape")
    with refused(lists):
        open_cub(lists)


def test_flag_of_one_image_turned_round_is_refused(lists: Path) -> None:
    flags = (lists / "train_test_split.txt").read_text()
    (lists / "train_test_split.txt").write_text(flags.replace("1 0\n", "1 1\n", 1))
    with refused(lists, "found 5,995 training images (closed_set), expected 5,994"):
        open_dataset("cub", lists)


def test_flags_of_two_images_swapped_are_refused(lists: Path) -> None:
    """The counts stay right, but ``datasets/cub.closed_set.csv`` says otherwise."""
    lines = (lists / "train_test_split.txt").read_text().splitlines()
    assert lines[:2] == ["1 0", "2 1"]
    (lists / "train_test_split.txt").write_text("\n".join(["1 1", "2 0", *lines[2:]]) + "\n")
    with refused(lists, "manifest"):
        CUB.check(open_cub(lists))


def test_bad_image_is_refused_when_the_set_is_opened(official: Path, lists: Path) -> None:
    name, number = official_images()[0]
    write_images(lists, [row for row in official_images() if row[1] == number])
    for other in sorted((official / "images").iterdir())[1:]:
        (lists / "images" / other.name).symlink_to(other)
    open_dataset("cub", lists)
    bad = lists / "images" / name
    bad.write_bytes(b"")
    with refused(bad, "is empty"):
        open_dataset("cub", lists)
    bad.unlink()
    with refused(bad, "image is missing"):
        open_dataset("cub", lists)
    shutil.rmtree(bad.parent)
    with refused(f"{bad.parent}: folder is missing"):
        open_dataset("cub", lists)


def test_labels_are_int64(lists: Path) -> None:
    assert open_cub(lists).labels.dtype == np.int64
