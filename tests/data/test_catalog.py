from __future__ import annotations

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import manifest, zero_shot

MANIFESTS = Path(__file__).parents[2] / "datasets"


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


def test_published_counts_add_up() -> None:
    published = [dataset.counts for dataset in DATASETS.values() if dataset.counts]
    assert len(published) >= 4
    assert all(counts.train + counts.test == counts.images for counts in published)


@pytest.mark.parametrize("name", ["cub", "emoji", "emoji_mini"])
def test_committed_manifest_has_the_published_counts(name: str) -> None:
    committed = MANIFESTS / f"{name}.csv"
    dataset = DATASETS[name]
    assert hashlib.sha256(committed.read_bytes()).hexdigest() == dataset.manifest_sha256
    with committed.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    classes = {side: {row["class"] for row in rows if row["split"] == side} for side in ("train", "test")}
    assert classes["train"].isdisjoint(classes["test"])
    sides = Counter(row["split"] for row in rows)
    assert Counts(len(classes["train"] | classes["test"]), len(rows), sides["train"], sides["test"]) == dataset.counts
    assert len(classes["train"]) == dataset.zero_shot_classes
    assert len({row["path"] for row in rows}) == len(rows)


RIGHT = Counts(classes=4, images=8, train=4, test=4)


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        (replace(RIGHT, images=9), "found 8 images, expected 9"),
        (replace(RIGHT, classes=5), "found 4 classes, expected 5"),
        (replace(RIGHT, train=5), "found 4 training images, expected 5"),
        (replace(RIGHT, test=3), "found 4 test images, expected 3"),
    ],
)
def test_each_count_and_name_is_checked(counts: Counts, word: str, tmp_path: Path) -> None:
    table = ImageTable(tmp_path, tuple("abcdefgh"), np.repeat(np.arange(4), 2), ("w", "x", "y", "z"))
    split = zero_shot(table.labels, 2)
    dataset = Dataset("", lambda root: table, RIGHT, manifest_sha256=hashlib.sha256(manifest(table, split).encode()).hexdigest())
    dataset.check(table)
    with refused(tmp_path, word):
        replace(dataset, counts=counts).check(table)
    with refused(tmp_path, "manifest"):
        dataset.check(replace(table, paths=tuple("abcdefgi")))
