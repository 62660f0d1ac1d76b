from __future__ import annotations

from pathlib import Path

import pytest
from data_checks import refused
from layouts import paths_of, touch

from retrieval_bench.data.catalog import open_dataset


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


def sides(root: Path, test: str = "test", **classes: str) -> Path:
    """Two images of each of the classes (by letter) below ``train`` and the folder called `test`."""
    for side, names in (("train", classes["train"]), (test, classes["tested"])):
        touch(root / side, *(f"{name}/{image}.jpg" for name in names for image in range(2)))
    return root


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_disjoint_train_and_test_folders_are_the_zero_shot_split(test: str, tmp_path: Path) -> None:
    table, split = open_dataset("folder", sides(tmp_path, test, train="bdf", tested="ac"))
    assert table.class_names == ("b", "d", "f", "a", "c")
    assert {path.split("/")[0] for path in paths_of(table, split.train)} == {"train"}
    assert paths_of(table, split.test) == [f"{test}/{name}/{image}.jpg" for name in "ac" for image in range(2)]
    with refused(tmp_path, "'a'", "zero_shot"):
        open_dataset("folder", tmp_path, "closed_set")


def test_train_and_test_folders_with_the_same_classes_are_a_closed_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, split = open_dataset("folder", sides(tmp_path, train="abcde", tested="abcd"), "closed_set")
    assert {path.split("/")[0] for path in paths_of(table, split.train)} == {"train"}
    assert {path.split("/")[0] for path in paths_of(table, split.query)} == {"test"}
    assert (len(split.train), len(split.test)) == (10, 8)
    assert "share classes" in capsys.readouterr().err
    table, split = open_dataset("folder", tmp_path)
    assert {path.split("/")[1] for path in paths_of(table, split.train)} == {"a", "b"}


def test_tested_class_without_a_training_image_is_no_closed_set(tmp_path: Path) -> None:
    with refused(tmp_path, "class 'x' is tested but not trained on"):
        open_dataset("folder", sides(tmp_path, train="abcd", tested="abcx"), "closed_set")


def test_one_folder_per_class_has_no_closed_set(root: Path) -> None:
    with refused(root, "no official training and test images"):
        open_dataset("folder", root, "closed_set")


def test_classes_called_train_and_test_beside_others_are_classes(root: Path) -> None:
    touch(root, *(f"{name}/{image}.jpg" for name in ("train", "test") for image in range(2)))
    assert open_dataset("folder", root)[0].class_names == ("crow", "finch", "robin", "test", "train", "wren")


def test_empty_image_is_refused_when_the_folder_is_opened(root: Path) -> None:
    (root / "wren" / "2.jpg").write_bytes(b"")
    with refused(root / "wren" / "2.jpg", "is empty"):
        open_dataset("folder", root)


def test_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images.zip")
    with refused(tmp_path / "images.zip", "not a folder"):
        open_dataset("folder", tmp_path / "images.zip")


def test_root_is_needed() -> None:
    with refused("--data-root"):
        open_dataset("folder", None)
