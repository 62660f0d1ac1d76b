from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from PIL import Image
from torchvision.datasets import CIFAR10

from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.dataset import Counts
from retrieval_bench.data.sets.cifar10 import open_cifar10

NAMES = ["airplane", "automobile", "bird", "cat"]
SPLITS = {"closed_set": {"train": 12, "test": 8}, "zero_shot": {"train": 10, "test": 10}}


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, miniature: Callable[[str, Counts], None]) -> Path:
    """A small copy in the true layout, whose digests torchvision is told."""
    miniature("cifar10", Counts(4, 20, SPLITS))
    monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(name: str, count: int) -> list[list[str]]:
        labels = [number % 4 for number in range(count)]
        return [[name, write(name, {"data": drawn.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": labels})]]

    monkeypatch.setattr(CIFAR10, "train_list", batch("data_batch_1", 12))
    monkeypatch.setattr(CIFAR10, "test_list", batch("test_batch", 8))
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": write("batches.meta", {"label_names": NAMES})})
    return folder


def test_images_classes_and_sides(official: Path) -> None:
    table, split = open_dataset("cifar10", official.parent, "closed_set")
    assert table.class_names == tuple(f"{number}_{name}" for number, name in enumerate(NAMES))
    assert len(split.train) == 12
    assert len(split.test) == 8
    content = pickle.loads((official / "test_batch").read_bytes())
    for row in split.test:
        path = table.paths[row]
        number = int(Path(path).stem)
        assert content["labels"][number] == table.labels[row]
        planes = content["data"][number].reshape(3, 32, 32)
        assert np.array_equal(np.asarray(Image.open(table.root / path)), planes.transpose(1, 2, 0))


def test_the_folder_itself_may_be_given_and_what_was_written_is_opened_again(official: Path) -> None:
    table = open_cifar10(official)
    official.rename(official.with_name("gone"))
    assert open_cifar10(official).paths == table.paths


def test_damaged_or_missing_files_are_refused(official: Path) -> None:
    with (official / "test_batch").open("ab") as file:
        file.write(b"more")
    refused("missing or damaged", open_cifar10, official.parent)
    refused("missing or damaged", open_cifar10, official.parent.parent / "nothing")
