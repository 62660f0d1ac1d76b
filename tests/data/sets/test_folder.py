from __future__ import annotations

from pathlib import Path

import pytest
from data_checks import refused

from retrieval_bench.data.catalog import open_dataset


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four classes of two images, written in no order."""
    folder = tmp_path / "mine"
    touch(folder, *(f"{name}/{image}.jpg" for name in ("wren", "crow", "robin", "finch") for image in (2, 1)))
    return folder


def test_classes_and_images_are_ordered_by_name(root: Path) -> None:
    table, split = open_dataset("folder", root)
    assert table.class_names == ("crow", "finch", "robin", "wren")
    assert table.paths == tuple(f"{name}/{image}.jpg" for name in table.class_names for image in (1, 2))
    assert table.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert split.train.tolist() == [0, 1, 2, 3]
    assert split.test.tolist() == [4, 5, 6, 7]


def test_odd_class_goes_to_the_test_side(root: Path) -> None:
    touch(root, "zebra/1.jpg", "zebra/2.jpg")
    table, split = open_dataset("folder", root)
    assert set(table.labels[split.train].tolist()) == {0, 1}


def test_nested_images_belong_to_their_class(root: Path) -> None:
    touch(root, "crow/2019/may/3.JPEG")
    table, _ = open_dataset("folder", root)
    assert "crow/2019/may/3.JPEG" in table.paths
    assert table.labels[table.paths.index("crow/2019/may/3.JPEG")] == 0


@pytest.mark.parametrize(
    "extra",
    ["crow/.DS_Store", "crow/._1.jpg", "crow/notes.txt", ".git/a.jpg", "readme.jpg", "crow/.thumbnails/1.jpg"],
)
def test_hidden_and_foreign_files_are_passed_over(extra: str, root: Path) -> None:
    before = open_dataset("folder", root)[0]
    touch(root, extra)
    after = open_dataset("folder", root)[0]
    assert (after.paths, after.class_names) == (before.paths, before.class_names)


def test_folder_named_like_an_image_is_no_image(root: Path) -> None:
    (root / "crow" / "old.jpg").mkdir()
    assert "crow/old.jpg" not in open_dataset("folder", root)[0].paths


def test_dot_in_a_parent_folder_is_no_matter(root: Path, tmp_path: Path) -> None:
    moved = root.rename(tmp_path / ".hidden")
    assert len(open_dataset("folder", moved)[0]) == 8


@pytest.mark.parametrize("images", [[], ["zebra/only.png"]], ids=["none", "one"])
def test_class_too_small_is_named(images: list[str], root: Path) -> None:
    (root / "zebra").mkdir()
    touch(root, *images)
    with refused(root / "zebra", f"{len(images)} image"):
        open_dataset("folder", root)


@pytest.mark.parametrize("classes", [0, 1, 3])
def test_too_few_classes_are_refused(classes: int, tmp_path: Path) -> None:
    touch(tmp_path, *(f"c{number}/{image}.png" for number in range(classes) for image in range(2)))
    with refused(tmp_path, f"found {classes} class"):
        open_dataset("folder", tmp_path)


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images.zip")
    with refused(tmp_path / "images.zip", "not a folder"):
        open_dataset("folder", tmp_path / "images.zip")


def test_root_is_needed() -> None:
    with refused("--data-root"):
        open_dataset("folder", None)
