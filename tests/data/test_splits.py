"""Splits: laws that hold for any table, the committed ones, and what is refused; and the table itself."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.data import table as table_module
from retrieval_bench.data.splits import check_fold, make_split, manifest, split_names
from retrieval_bench.data.table import SPLIT_NAMES, ImageTable
from retrieval_bench.files import digest
from tests.data.data_checks import MANIFESTS, read_manifest, refused

DISJOINT = ("zero_shot", "zero_shot_val", "kfold")


def make_table(
    labels: Sequence[int] | np.ndarray, train_classes: int = 0, split: Sequence[str] | None = None
) -> ImageTable:
    """A table of no images; class names are made from the labels."""
    labels = np.asarray(labels, dtype=np.int64)
    names = tuple(f"c{number}" for number in range(int(labels.max(initial=-1)) + 1))
    paths = tuple(f"{row}.jpg" for row in range(len(labels)))
    return ImageTable(Path("set"), paths, labels, names, train_classes, None if split is None else np.array(split))


def shuffled(classes: int, train_classes: int = 0, per_class: int = 3) -> ImageTable:
    labels = np.random.default_rng(classes).permutation(np.repeat(np.arange(classes), per_class))
    return make_table(labels, train_classes)


def classes_of(table: ImageTable, names: np.ndarray, side: str) -> set[int]:
    return set(table.labels[names == side].tolist())


@st.composite
def tables(draw: st.DrawFn) -> ImageTable:
    """Tables whose rows are in no order, with or without lists of their own that say anything at all."""
    classes = draw(st.integers(4, 12))
    labels = draw(st.permutations(list(range(classes)) * draw(st.integers(1, 3))))
    split = st.lists(st.sampled_from(SPLIT_NAMES), min_size=len(labels), max_size=len(labels))
    return make_table(labels, draw(st.integers(0, classes - 1)), draw(st.none() | split))


@given(tables(), st.integers(0, 3))
def test_no_class_is_both_trained_on_and_tested(table: ImageTable, fold: int) -> None:
    first = set(range(table.train_classes))
    for protocol in DISJOINT:
        names = split_names(protocol, table, fold, 4)
        assert len(names) == len(table)
        assert set(names.tolist()) <= set(SPLIT_NAMES)
        trained = classes_of(table, names, "train")
        tested = set(table.labels[~np.isin(names, ("train", ""))].tolist())
        assert trained.isdisjoint(tested)
        assert trained <= first
        assert tested.isdisjoint(first) if protocol == "zero_shot" else tested <= first


@given(tables())
def test_official_lists_say_what_is_left_out_and_the_roles_of_test_images(table: ImageTable) -> None:
    official = np.full(len(table), "test") if table.official_split is None else table.official_split
    for protocol in DISJOINT:
        assert set(split_names(protocol, table)[official == ""].tolist()) <= {""}
    names = split_names("zero_shot", table)
    assert (names == "").tolist() == (official == "").tolist()
    tested = table.labels >= table.train_classes
    assert names[tested].tolist() == ["test" if side == "train" else side for side in official[tested].tolist()]


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(2, 10))
def test_folds_hold_every_training_class_once(train_classes: int, folds: int) -> None:
    table = shuffled(train_classes + 3, train_classes)
    splits = [split_names("kfold", table, fold, folds) for fold in range(folds)]
    validated = [classes_of(table, names, "test") for names in splits]
    assert sorted(label for labels in validated for label in labels) == list(range(train_classes))
    assert max(map(len, validated)) - min(map(len, validated)) <= 1
    for names, labels in zip(splits, validated, strict=True):
        assert classes_of(table, names, "train") == set(range(train_classes)) - labels
        assert classes_of(table, names, "") == set(range(train_classes, train_classes + 3))


@given(st.integers(2, 40))
def test_validation_classes_are_a_fifth_of_the_training_classes(train_classes: int) -> None:
    table = shuffled(train_classes + 2, train_classes)
    names = split_names("zero_shot_val", table)
    trained, tested = classes_of(table, names, "train"), classes_of(table, names, "test")
    assert trained | tested == set(range(train_classes))
    assert len(trained) + len(tested) == train_classes
    assert len(tested) == max(1, round(0.2 * train_classes))


@pytest.mark.parametrize("name", sorted({row["dataset"] for row in read_manifest("splits")}))
def test_splits_are_the_committed_ones(name: str) -> None:
    """``datasets/splits.csv``: every split of the sets whose manifests are here, made again from names and classes
    alone."""
    rows = read_manifest(name)
    classes = list(dict.fromkeys(row["class"] for row in rows))
    if name == "flowers":
        classes.sort()
    trained = len({row["class"] for row in rows if row["split"] == "train"})
    closed = MANIFESTS / f"{name}.closed_set.csv"
    official = np.array([row["split"] for row in read_manifest(closed.stem)]) if closed.exists() else None
    labels = np.array([classes.index(row["class"]) for row in rows])
    table = ImageTable(Path(name), tuple(row["path"] for row in rows), labels, tuple(classes), trained, official)
    for row in (row for row in read_manifest("splits") if row["dataset"] == name):
        fold, folds = map(int, row["fold"].split(" of ")) if row["fold"] else (0, 4)
        names = split_names(row["split"], table, fold, folds)
        assert hashlib.sha256(manifest(table, names).encode()).hexdigest() == row["sha256"]
        counts = Counter(names.tolist())
        assert [counts[side] for side in ("train", "test", "")] == [int(row[k]) for k in ("train", "test", "left_out")]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(SPLIT_NAMES)), min_size=1, max_size=20))
def test_closed_set_is_the_official_split_if_every_tested_class_is_trained_on(rows: list[tuple[int, str]]) -> None:
    table = make_table([label for label, _ in rows], split=[side for _, side in rows])
    trained = {label for label, side in rows if side == "train"}
    unseen = {label for label, side in rows if side not in ("train", "")} - trained
    if unseen:
        with refused("set", f"'c{min(unseen)}'", "tested but not trained on", "zero_shot"):
            split_names("closed_set", table)
        return
    assert split_names("closed_set", table).tolist() == [side for _, side in rows]
    where = {side: [row for row, (_, name) in enumerate(rows) if name == side] for side in SPLIT_NAMES}
    query, gallery = (sorted(where["test"] + where[role]) for role in ("query", "gallery"))
    if where["train"] and query and gallery:
        split = make_split("closed_set", table)
        assert split.train.tolist() == where["train"]
        assert (split.query.tolist(), split.gallery.tolist()) == (query, gallery)
        assert split.test.tolist() == sorted({*query, *gallery})
        assert split.train_classes.tolist() == sorted(trained)
        assert {rows.dtype for rows in (split.train, split.query, split.gallery, split.test)} == {np.dtype(np.int64)}


@pytest.mark.parametrize(
    ("protocol", "table", "fold"),
    [
        pytest.param("zero_shot", shuffled(1), 0, id="no training class"),
        pytest.param("zero_shot", shuffled(5, 5), 0, id="no test class"),
        pytest.param("zero_shot", make_table([0, 0, 1, 1], 0, ["train", "train", "query", ""]), 0, id="no gallery"),
        pytest.param("zero_shot", make_table([0, 0, 1, 1], 0, ["train", "train", "gallery", ""]), 0, id="no query"),
        pytest.param("zero_shot_val", shuffled(5, 1), 0, id="one class"),
        pytest.param("kfold", shuffled(9, 1), 0, id="one class to fold"),
        pytest.param("kfold", shuffled(6, 3), 3, id="empty fold"),
        pytest.param("closed_set", make_table([0, 0], 0, ["train", "train"]), 0, id="no test"),
    ],
)
def test_empty_side_is_refused(protocol: str, table: ImageTable, fold: int) -> None:
    with refused("set", protocol, "all sides"):
        make_split(protocol, table, fold)


@pytest.mark.parametrize("protocol", ["zero_shot", "closed_set"])
def test_first_classes_of_both_sides(protocol: str) -> None:
    table = make_table(np.repeat(np.arange(10), 4), 6, ["train", "train", "test", "test"] * 10)
    whole, part = make_split(protocol, table), make_split(protocol, table, classes=2)
    tested = np.unique(table.labels[whole.test])[:2]
    assert part.train_classes.tolist() == whole.train_classes[:2].tolist()
    assert np.array_equal(part.query, whole.query[np.isin(table.labels[whole.query], tested)])
    assert np.array_equal(part.gallery, part.query)
    assert np.array_equal(part.train, whole.train[np.isin(table.labels[whole.train], part.train_classes)])
    with refused("--classes 99"):
        make_split(protocol, table, classes=99)
    for inside in ("zero_shot_val", "kfold"):
        split = make_split(inside, table, classes=5)
        assert sorted([*split.train_classes, *np.unique(table.labels[split.test])]) == [0, 1, 2, 3, 4]
        with refused("--classes 13: set has 6 training classes"):
            make_split(inside, table, classes=13)


def test_first_training_images_of_each_class() -> None:
    labels = np.tile([2, 0, 1], 6)
    table = make_table(labels, 0, ["train"] * 12 + ["test"] * 6)
    whole, part = make_split("closed_set", table), make_split("closed_set", table, train_per_class=2)
    assert part.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(part.query, whole.query)
    assert np.array_equal(make_split("closed_set", table, train_per_class=99).train, whole.train)


def test_folds_are_checked() -> None:
    check_fold("kfold", 9, 10)
    for bad in (("kfold", 0, 1), ("kfold", 4, 4), ("kfold", -1, 4), ("zero_shot", 1, 4), ("zero_shot", 0, 5)):
        with refused("--fold"):
            check_fold(*bad)


@pytest.fixture
def table(tmp_path: Path) -> ImageTable:
    paths = ("a/1.png", "a/2.png", "b/1.png")
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"12345")
    return ImageTable(tmp_path, paths, np.array([0, 0, 1]), ("wren", "robin"))


def test_fingerprint_is_of_names_classes_and_sizes(table: ImageTable, tmp_path: Path) -> None:
    before = table.fingerprint()
    shutil.copytree(tmp_path, tmp_path / "copy")
    (tmp_path / "copy" / "a" / "1.png").write_bytes(b"54321")
    assert replace(table, root=tmp_path / "copy").fingerprint() == before
    relabelled = replace(table, labels=np.array([0, 1, 1])).fingerprint()
    reordered = replace(table, paths=("a/2.png", "a/1.png", "b/1.png")).fingerprint()
    (table.root / "a/2.png").write_bytes(b"123456")
    assert len({before, relabelled, reordered, replace(table).fingerprint()}) == 4
    assert [size for size, *_ in replace(table).files] == [5, 6, 5]
    assert replace(table).files[1][1] == (tmp_path / "a/2.png").stat().st_mtime_ns


CHANGES = {
    "other bytes of that size": lambda path: path.write_bytes(b"54321"),
    "also of that time": lambda path: (path.write_bytes(b"54321"), os.utime(path, ns=(10**18, 10**18))),
    "another file in its place": lambda path: (
        path.with_name("new").write_bytes(b"54321"),
        path.with_name("new").replace(path),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_own_images_are_known_by_their_bytes(
    change: Callable[[Path], object], table: ImageTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after they were written, and later, when digests come from the cache."""
    monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table_module, "digest", lambda path: read.append(path.name) or digest(path))
    own, read = replace(table, own=True), []
    for path in own.paths:
        os.utime(own.root / path, ns=(10**18, 10**18))
    before = own.fingerprint()
    assert before == replace(own, root=shutil.copytree(own.root, tmp_path / "copy")).fingerprint()
    for settled in (False, True):
        if settled:
            monkeypatch.setattr(table_module, "SETTLED", -(10**10))
            assert replace(own).fingerprint() == before
            read.clear()
            assert replace(own).fingerprint() == before
            assert read == [], "nothing has changed"
        opened = replace(own)
        assert opened.fingerprint() == before
        change(own.root / "a/2.png")
        assert replace(own).fingerprint() != before
        with refused(own.root / "a/2.png", "was changed", "run again"):
            opened.check_unchanged()
        (own.root / "a/2.png").write_bytes(b"12345")
        os.utime(own.root / "a/2.png", ns=(10**18, 10**18))
        opened.check_unchanged()


def test_split_of_own_images_is_part_of_their_fingerprint(table: ImageTable) -> None:
    """A list that says otherwise what trains is another data set; published sets keep the names of their records."""
    sides = [["train", "train", "test"], ["train", "", "test"], ["test", "test", "train"]]
    for own, count in ((True, 5), (False, 1)):
        tables = [
            replace(table, own=own, official_split=None if split is None else np.array(split))
            for split in [None, *sides]
        ]
        assert len({other.fingerprint() for other in [*tables, replace(tables[0], zero_shot_classes=2)]}) == count


@pytest.mark.parametrize("problem", ["image is missing", "image file is empty", "folder is missing"])
def test_bad_file_is_named(problem: str, table: ImageTable) -> None:
    bad = table.root / "b" / "1.png"
    bad.unlink()
    if problem == "image file is empty":
        bad.touch()
    elif problem == "folder is missing":
        bad = bad.parent
        bad.rmdir()
    with refused(f"{bad}: {problem}"):
        _ = table.files
