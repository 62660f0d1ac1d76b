"""A folder of one's own: what is used of it, what is said, and the lists that runs read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.survey import sample, survey, write_image_list
from tests.data.data_checks import files_below, random_image, refused


def make_folder(root: Path, *sizes: int) -> Path:
    for label, size in enumerate(sizes):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(size):
            random_image(40 + label, 60, 100 * label + number).save(root / f"class {label}" / f"{number}.png")
    return root


def test_what_cannot_be_used_is_passed_over_and_all_of_it_is_said(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", 3, 2, 4, 2, 1, 0, 2)
    (root / "class 6" / "0.png").write_bytes(b"no image")
    (root / "class 2" / "broken.jpg").touch()
    (root / "notes.txt").touch()
    before, found = files_below(root), survey(root)
    said = "\n".join(found.lines)
    assert "2 of 15 images cannot be read" in said
    assert "3 classes with fewer than 2 images passed over: class 4 (1), class 6 (1), class 5 (0)" in said
    assert "passed over: 1 .txt" in said
    assert found.sizes.tolist() == [3, 2, 4, 2]
    assert (len(found.readable), len(found.usable), found.side) == (13, 11, 42)
    assert survey(root, 1).sizes.tolist() == [3, 2, 4, 2, 1, 1]
    assert files_below(root) == before, "nothing is written into the folder"


@pytest.mark.parametrize(
    ("sizes", "words"), [((2, 2), "2 classes"), ((3, 3, 1, 3), "3 classes"), ((), "class folders")]
)
def test_folders_that_cannot_be_compared_on(sizes: tuple[int, ...], words: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos", *sizes)
    root.mkdir(exist_ok=True)
    random_image(40, 40).save(root / "loose.png")
    with refused(root, words):
        survey(root)


def test_training_and_test_folders_are_one_set_of_classes(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "photos" / "train", 2, 2, 2).parent
    make_folder(root / "test", 1, 0, 0, 3)
    assert survey(root).sizes.tolist() == [3, 2, 2, 3]


def test_folds_of_the_list_test_every_class_once(tmp_path: Path) -> None:
    found = survey(make_folder(tmp_path / "a, b", 3, 2, 4, 2, 5))
    write_image_list(found.usable, tmp_path / "images.csv")
    tested: list[int] = []
    for fold in range(2):
        table, split = open_dataset("table", tmp_path / "images.csv", "kfold", fold, 2)
        assert not np.intersect1d(table.labels[split.train], table.labels[split.test]).size
        tested += np.unique(table.labels[split.test]).tolist()
        assert np.bincount(table.labels).tolist() == found.sizes.tolist()
    assert sorted(tested) == [0, 1, 2, 3, 4]


@settings(max_examples=50)
@given(st.lists(st.integers(2, 30), min_size=4, max_size=40), st.integers(1, 400))
def test_a_sample_is_small_and_of_many_classes(sizes: list[int], most: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = sample(labels, most)
    assert len(np.unique(rows)) == len(rows)
    assert (np.diff(rows) > 0).all()
    counts = np.bincount(labels[rows], minlength=len(sizes))
    assert len(rows) <= most or (counts > 0).sum() == 4
    assert (counts > 0).sum() >= min(len(sizes), max(4, most // 8 if most < sum(sizes) else len(sizes)))
    assert all(count in (0, size) or count >= 8 for count, size in zip(counts, sizes, strict=True))
