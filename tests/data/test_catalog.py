from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.table import ImageTable
from tests.data.data_checks import MANIFESTS, read_manifest, refused

PUBLISHED = {name: dataset.counts for name, dataset in DATASETS.items() if dataset.counts}


def test_missing_root_is_named(tmp_path: Path) -> None:
    for name in DATASETS:
        with refused(tmp_path / "nowhere", "--data-root"):
            open_dataset(name, tmp_path / "nowhere")


def test_catalogue_loads_without_torch() -> None:
    """So that ``data list`` answers at once."""
    code = "import sys, retrieval_bench.data.commands; assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=MANIFESTS.parent)


def test_every_argument_reaches_the_split() -> None:
    table, split = open_dataset("synthetic", None, "kfold", 2, 8)
    assert len(set(table.labels[split.test].tolist())) == 1
    assert len(split.train_classes) == 7
    table, split = open_dataset("synthetic", None, "zero_shot_val", classes=5)
    assert len(split.train_classes) == 4


def test_published_counts_add_up_and_k_are_those_of_papers() -> None:
    """Every image is on one side of every published split."""
    for name, counts in PUBLISHED.items():
        assert {sum(sides.values()) for sides in counts.splits.values()} == {counts.images}, name
    papers = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}
    assert all(dataset.ks == papers.get(name, (1, 2, 4, 8)) for name, dataset in DATASETS.items())


def test_published_set_has_a_card_and_its_counts_in_the_list_of_sets() -> None:
    lines = (MANIFESTS / "README.md").read_text(encoding="utf-8").splitlines()
    for name, counts in PUBLISHED.items():
        (line,) = (line for line in lines if line.startswith(f"| `{name}` |"))
        assert (MANIFESTS / line.split("](")[1].split(")")[0]).is_file()
        numbers = [counts.images, counts.classes, *(n for sides in counts.splits.values() for n in sides.values())]
        assert {f"{number:,}" for number in numbers} <= set(re.findall(r"[\d,]*\d", line))


@pytest.mark.parametrize("name", ["cub", "cub.closed_set", "emoji", "emoji_mini", "flowers"])
def test_committed_manifest_has_the_published_counts(name: str) -> None:
    rows, (dataset, _, protocol) = read_manifest(name), name.partition(".")
    counts = PUBLISHED[dataset]
    classes = {side: {row["class"] for row in rows if row["split"] == side} for side in ("train", "test")}
    assert len(classes["train"] | classes["test"]) == counts.classes
    assert len({row["path"] for row in rows}) == counts.images
    assert dict(Counter(row["split"] for row in rows)) == counts.splits[protocol or "zero_shot"]
    assert (classes["train"] == classes["test"]) if protocol else classes["train"].isdisjoint(classes["test"])
    if dataset != "flowers":
        sha256 = hashlib.sha256((MANIFESTS / f"{name}.csv").read_bytes()).hexdigest()
        assert DATASETS[dataset].manifests[protocol or "zero_shot"] == sha256


def make_table(split: list[str] | None) -> ImageTable:
    official = None if split is None else np.array(split)
    return ImageTable(Path("set"), tuple("abcdefgh"), np.repeat(np.arange(4), 2), tuple("wxyz"), 0, official)


def test_copy_without_official_lists_is_checked_against_the_other_counts() -> None:
    splits = {"zero_shot": {"train": 4, "test": 4}, "closed_set": {"train": 5, "test": 3}}
    dataset = Dataset("", lambda root: make_table(None), counts=Counts(4, 8, splits))
    dataset.check(make_table(None))
    with refused("closed_set"):
        dataset.check(make_table(["train", "test"] * 4))
