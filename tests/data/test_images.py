from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_checks import refused

from retrieval_bench.data.images import ImageTable


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    paths = ("a/1.png", "a/2.png", "b/1.png")
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"12345")
    return ImageTable(tmp_path, paths, np.array([0, 0, 1]), ("wren", "robin"))


def test_fingerprint_is_the_same_for_a_copy_elsewhere(table: ImageTable, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    for path in table.paths:
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(b"54321")
    assert replace(table, root=other).fingerprint() == table.fingerprint()


def test_fingerprint_changes_with_size_name_and_class(table: ImageTable) -> None:
    before = table.fingerprint()
    relabelled = replace(table, labels=np.array([0, 1, 1])).fingerprint()
    reordered = replace(table, paths=("a/2.png", "a/1.png", "b/1.png")).fingerprint()
    (table.root / "a/2.png").write_bytes(b"123456")
    assert len({before, relabelled, reordered, table.fingerprint()}) == 4


def test_missing_image_is_named(table: ImageTable) -> None:
    (table.root / "b/1.png").unlink()
    with refused(table.root / "b/1.png", "missing"):
        table.fingerprint()


def test_empty_image_is_named(table: ImageTable) -> None:
    (table.root / "a/2.png").write_bytes(b"")
    with refused(table.root / "a/2.png", "empty"):
        table.fingerprint()
