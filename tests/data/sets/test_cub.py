from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from fake_cub import official_images, write_images, write_lists

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.sets.cub import ARCHIVE, open_cub


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder CUB_200_2011 with all its files; tests leave it as it is."""
    folder = write_lists(tmp_path_factory.mktemp("cub") / "CUB_200_2011", list(official_images()))
    write_images(folder, list(official_images()))
    return folder


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A folder with the text files alone, to be damaged."""
    return write_lists(tmp_path / "CUB_200_2011", list(official_images()))


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
    assert [(path, label + 1) for path, label in zip(table.paths, table.labels.tolist(), strict=True)] == list(official_images())
    assert len(table.fingerprint()) == 64


def test_parent_folder_opens_the_same(official: Path) -> None:
    assert open_dataset("cub", official.parent)[0].fingerprint() == open_dataset("cub", official)[0].fingerprint()


def test_archive_opens_the_same(lists: Path, tmp_path: Path, empty_cache: Path) -> None:
    with tarfile.open(tmp_path / "mine.tgz", "w:gz") as tar:
        tar.add(lists, "CUB_200_2011")
    table, split = open_dataset("cub", tmp_path / "mine.tgz")
    assert table.root.is_relative_to(empty_cache)
    assert (len(split.train), len(split.test)) == (5_864, 5_924)
    assert table.paths == open_dataset("cub", lists)[0].paths


def test_rows_follow_image_numbers_not_lines(lists: Path) -> None:
    for name in ("images.txt", "image_class_labels.txt"):
        lines = (lists / name).read_text().splitlines(keepends=True)
        (lists / name).write_text("".join(sorted(lines)))
    table, _ = open_dataset("cub", lists)
    assert list(table.paths) == [name for name, _ in official_images()]


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


@pytest.mark.parametrize("name", ["image_class_labels.txt", "classes.txt"])
def test_missing_list_is_refused(name: str, lists: Path) -> None:
    (lists / name).unlink()
    with refused(lists / name, "missing"):
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
    ],
    ids=["class 201", "class 0", "no number", "row missing", "no image number", "html", "binary", "class missing", "class unnamed"],
)
def test_damaged_list_is_refused(name: str, damage: Callable[[str], str], lists: Path) -> None:
    text = (lists / name).read_text()
    assert damage(text) != text
    (lists / name).write_text(damage(text), errors="surrogateescape")
    with refused(lists):
        open_cub(lists)


@pytest.mark.parametrize("word", ["missing", "empty"])
def test_fingerprint_names_a_bad_image(word: str, official: Path, lists: Path) -> None:
    name, number = official_images()[0]
    write_images(lists, [row for row in official_images() if row[1] == number])
    for other in sorted((official / "images").iterdir())[1:]:
        (lists / "images" / other.name).symlink_to(other)
    table, _ = open_dataset("cub", lists)
    table.fingerprint()
    if word == "missing":
        (lists / "images" / name).unlink()
    else:
        (lists / "images" / name).write_bytes(b"")
    with refused(lists / "images" / name, word):
        table.fingerprint()


def test_labels_are_int64(lists: Path) -> None:
    assert open_dataset("cub", lists)[0].labels.dtype == np.int64
