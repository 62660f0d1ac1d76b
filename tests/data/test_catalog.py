from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from fake_cub import MANIFESTS, read_manifest

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import PROTOCOLS, manifest, zero_shot


def test_unknown_data_set_gets_the_nearest_name() -> None:
    with refused("unknown data set 'emojis'", "did you mean 'emoji'"):
        open_dataset("emojis", None)


@pytest.mark.parametrize("name", DATASETS)
def test_missing_root_is_named(name: str, tmp_path: Path) -> None:
    with refused(tmp_path / "nowhere", "--data-root"):
        open_dataset(name, tmp_path / "nowhere")


def test_validation_protocol_stays_inside_the_training_classes() -> None:
    table, split = open_dataset("synthetic", None, "zero_shot_val")
    train, held_out = (set(table.labels[rows].tolist()) for rows in (split.train, split.test))
    assert train.isdisjoint(held_out)
    assert train | held_out == set(range(8))


PUBLISHED = {name: dataset.counts for name, dataset in DATASETS.items() if dataset.counts}


def test_kfold_of_the_catalogue_takes_its_fold_and_number() -> None:
    table, split = open_dataset("synthetic", None, "kfold", 2, 8)
    assert split.query.tolist() == split.gallery.tolist()
    assert len(set(table.labels[split.test].tolist())) == 1
    assert len(split.train_classes) == 7


def test_published_counts_add_up() -> None:
    """Every image is on one side of every published split."""
    assert {"cub", "cars", "sop", "inshop", "flowers", "emoji", "emoji_mini", "synthetic"} <= PUBLISHED.keys()
    for name, counts in PUBLISHED.items():
        assert counts.splits, name
        assert counts.splits.keys() <= PROTOCOLS.keys()
        assert {sum(sides.values()) for sides in counts.splits.values()} == {counts.images}, name


PAPERS = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}


@pytest.mark.parametrize("name", DATASETS)
def test_k_are_those_of_the_papers(name: str) -> None:
    assert DATASETS[name].ks == PAPERS.get(name, (1, 2, 4, 8))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_set_has_a_card_and_its_counts_in_the_list_of_sets(name: str) -> None:
    (line,) = (
        line
        for line in (MANIFESTS / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{name}` |")
    )
    card = line.split("](")[1].split(")")[0]
    assert (MANIFESTS / card).is_file()
    numbers = [
        PUBLISHED[name].images,
        PUBLISHED[name].classes,
        *(n for sides in PUBLISHED[name].splits.values() for n in sides.values()),
    ]
    assert {f"{number:,}" for number in numbers} <= set(re.findall(r"[\d,]*\d", line))


@pytest.mark.parametrize("name", ["cub", "emoji", "emoji_mini", "flowers"])
def test_committed_manifest_has_the_published_counts(name: str) -> None:
    rows = read_manifest(name)
    classes = {side: {row["class"] for row in rows if row["split"] == side} for side in ("train", "test")}
    assert classes["train"].isdisjoint(classes["test"])
    found = Counter(row["split"] for row in rows)
    assert (len(classes["train"] | classes["test"]), len(rows)) == (PUBLISHED[name].classes, PUBLISHED[name].images)
    assert dict(found) == PUBLISHED[name].splits["zero_shot"]
    assert len({row["path"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["cub", "emoji", "emoji_mini"])
def test_committed_manifest_is_the_one_that_is_insisted_on(name: str) -> None:
    assert hashlib.sha256((MANIFESTS / f"{name}.csv").read_bytes()).hexdigest() == DATASETS[name].manifests["zero_shot"]


def test_committed_closed_set_has_the_published_counts_and_the_same_images() -> None:
    rows, zero_shot_rows = read_manifest("cub.closed_set"), read_manifest("cub")
    assert dict(Counter(row["split"] for row in rows)) == PUBLISHED["cub"].splits["closed_set"]
    assert [(row["path"], row["class"]) for row in rows] == [(row["path"], row["class"]) for row in zero_shot_rows]


SIDES = ["train", "test"] * 2 + ["train", "query", "train", "gallery"]
RIGHT = Counts(
    4, 8, {"zero_shot": {"train": 4, "test": 2, "query": 1, "gallery": 1}, "closed_set": {"train": 4, "test": 2}}
)


def with_count(protocol: str, side: str, count: int) -> Counts:
    return replace(RIGHT, splits=RIGHT.splits | {protocol: RIGHT.splits[protocol] | {side: count}})  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        (replace(RIGHT, images=9), "found 8 images, expected 9"),
        (replace(RIGHT, classes=5), "found 4 classes, expected 5"),
        (with_count("zero_shot", "train", 5), "found 4 training images (zero_shot), expected 5"),
        (with_count("zero_shot", "test", 3), "found 2 test images (zero_shot), expected 3"),
        (with_count("zero_shot", "query", 0), "found 1 query images (zero_shot), expected 0"),
        (with_count("zero_shot", "gallery", 2), "found 1 gallery images (zero_shot), expected 2"),
        (with_count("closed_set", "train", 3), "found 4 training images (closed_set), expected 3"),
    ],
)
def test_each_count_and_name_is_checked(counts: Counts, word: str, tmp_path: Path) -> None:
    table = ImageTable(
        tmp_path, tuple("abcdefgh"), np.repeat(np.arange(4), 2), ("w", "x", "y", "z"), sides=np.array(SIDES)
    )
    dataset = Dataset("", lambda root: table, counts=RIGHT)
    dataset = replace(dataset, manifests={"zero_shot": hashlib.sha256(manifest(zero_shot(table)).encode()).hexdigest()})
    dataset.check(table)
    with refused(tmp_path, word):
        replace(dataset, counts=counts).check(table)
    for changed in (replace(table, paths=tuple("abcdefgi")), replace(table, class_names=("w", "x", "y", "q"))):
        with refused(tmp_path, "manifest"):
            dataset.check(changed)


def test_copy_without_official_lists_is_held_to_the_other_counts(tmp_path: Path) -> None:
    table = ImageTable(tmp_path, tuple("abcdefgh"), np.repeat(np.arange(4), 2), ("w", "x", "y", "z"))
    splits = {"zero_shot": {"train": 4, "test": 4}, "closed_set": {"train": 5, "test": 3}}
    Dataset("", lambda root: table, counts=Counts(4, 8, splits)).check(table)
    with refused("zero_shot"):
        Dataset("", lambda root: table, counts=Counts(4, 8, splits | {"zero_shot": {"train": 5, "test": 3}})).check(
            table
        )
