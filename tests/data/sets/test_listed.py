"""WikiArt and Sketches: folders or a CSV with sides, and the counts of SpotTune's table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_checks import refused
from layouts import touch

from retrieval_bench.data.catalog import DATASETS, open_dataset, open_table
from retrieval_bench.data.dataset import Counts

NAMES = ("wikiart", "sketches")


@pytest.fixture
def small(miniature: Callable[[str, Counts], None]) -> None:
    for name in NAMES:
        miniature(name, Counts(4, 12, {"closed_set": {"train": 8, "test": 4}}))


def sides(root: Path, classes: str = "abcd") -> Path:
    files = [f"train/{name}/{index}.jpg" for name in classes for index in range(2)] + [
        f"test/{name}/2.jpg" for name in classes
    ]
    return touch(root, *files)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NAMES)
def test_folders_with_sides_are_a_closed_set(name: str, tmp_path: Path) -> None:
    table, split = open_dataset(name, sides(tmp_path), "closed_set")
    assert (len(table), len(split.train), len(split.test), len(split.train_classes)) == (12, 8, 4, 4)


@pytest.mark.usefixtures("small")
def test_a_csv_does_as_well(tmp_path: Path) -> None:
    sides(tmp_path)
    rows = [
        f"{path.relative_to(tmp_path).as_posix()},{path.parent.name},{path.parts[-3]}"
        for path in sorted(tmp_path.rglob("*.jpg"))
    ]
    listing = tmp_path / "list.csv"
    listing.write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    _, split = open_dataset("wikiart", listing, "closed_set")
    assert (len(split.train), len(split.test)) == (8, 4)


def test_counts_are_those_of_the_paper() -> None:
    """Guo et al., SpotTune (CVPR 2019): training and test images, classes."""
    for name, train, test, classes in (("wikiart", 42_129, 10_628, 195), ("sketches", 16_000, 4_000, 250)):
        counts = DATASETS[name].counts
        assert counts is not None
        assert (counts.images, counts.classes, counts.splits["closed_set"]) == (
            train + test,
            classes,
            {"train": train, "test": test},
        )


def test_other_counts_and_no_sides_are_refused(tmp_path: Path) -> None:
    with refused("12 images, expected 52,757", str(tmp_path)):
        open_table("wikiart", sides(tmp_path))
    flat = touch(tmp_path / "flat", *(f"{name}/{index}.jpg" for name in "abcd" for index in range(2)))
    with refused("nothing says which images train", str(flat)):
        open_table("sketches", flat)
    with refused("has no download", "sketches"):
        open_table("sketches", None)
