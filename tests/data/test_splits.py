from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from data_checks import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.data.images import SIDES, ImageTable
from retrieval_bench.data.splits import (
    PROTOCOLS,
    Split,
    closed_set,
    kfold,
    make_split,
    manifest,
    rows_of,
    zero_shot,
    zero_shot_val,
)
from retrieval_bench.errors import UserError


def make_table(
    labels: list[int] | np.ndarray, train_classes: int = 0, sides: Sequence[str] | None = None
) -> ImageTable:
    """A table of no images; class names are made from the labels."""
    labels = np.asarray(labels, dtype=np.int64)
    names = tuple(f"c{number}" for number in range(int(labels.max(initial=-1)) + 1))
    paths = tuple(f"{row}.jpg" for row in range(len(labels)))
    return ImageTable(
        Path("set"), paths, labels, names, train_classes, None if sides is None else np.array(sides, dtype="U7")
    )


def shuffled(classes: int, train_classes: int = 0, per_class: int = 3) -> ImageTable:
    return make_table(
        np.random.default_rng(classes).permutation(np.repeat(np.arange(classes), per_class)), train_classes
    )


def classes_of(table: ImageTable, frame: pd.DataFrame, side: str) -> set[int]:
    return set(table.labels[(frame["split"] == side).to_numpy()].tolist())


@st.composite
def tables(draw: st.DrawFn) -> ImageTable:
    """Tables whose rows are in no order, with or without lists of their own that say anything at all."""
    classes = draw(st.integers(4, 12))
    labels = draw(st.permutations(list(range(classes)) * draw(st.integers(1, 3))))
    row_sides = st.lists(st.sampled_from(SIDES), min_size=len(labels), max_size=len(labels))
    return make_table(list(labels), draw(st.integers(0, classes - 1)), draw(st.none() | row_sides))


@given(tables(), st.integers(0, 3))
def test_every_row_has_one_side_and_its_own_path_and_class(table: ImageTable, fold: int) -> None:
    for protocol in ("zero_shot", "zero_shot_val", "kfold"):
        frame = PROTOCOLS[protocol](table, fold, 4)
        assert list(frame.columns) == ["path", "class", "label", "split"]
        assert frame["path"].tolist() == list(table.paths)
        assert frame["class"].tolist() == [table.class_names[label] for label in table.labels]
        assert frame["label"].tolist() == table.labels.tolist()
        assert set(frame["split"]) <= set(SIDES)


@given(tables(), st.integers(0, 3))
def test_no_class_is_both_trained_on_and_tested(table: ImageTable, fold: int) -> None:
    first = set(range(table.train_classes))
    for protocol in ("zero_shot", "zero_shot_val", "kfold"):
        split = rows_of(PROTOCOLS[protocol](table, fold, 4))
        trained, tested = set(table.labels[split.train].tolist()), set(table.labels[split.test].tolist())
        assert trained.isdisjoint(tested)
        assert trained <= first
        assert tested.isdisjoint(first) if protocol == "zero_shot" else tested <= first


@given(tables())
def test_row_left_out_by_the_lists_is_left_out_of_every_split(table: ImageTable) -> None:
    left_out = np.zeros(len(table), dtype=bool) if table.sides is None else table.sides == ""
    for protocol in ("zero_shot", "zero_shot_val", "kfold"):
        frame = PROTOCOLS[protocol](table, 0, 4)
        assert set(frame["split"].to_numpy()[left_out]) <= {""}
    assert [side == "" for side in zero_shot(table)["split"]] == left_out.tolist()


@given(tables())
def test_zero_shot_keeps_the_roles_of_the_lists(table: ImageTable) -> None:
    tested = table.labels >= table.train_classes
    found = zero_shot(table)["split"].to_numpy()[tested]
    own = np.full(len(found), "test") if table.sides is None else table.sides[tested]
    assert found.tolist() == ["test" if side == "train" else side for side in own.tolist()]


def test_zero_shot_trains_on_the_first_classes_and_tests_on_the_rest() -> None:
    table = shuffled(10, 4)
    frame = zero_shot(table)
    assert (classes_of(table, frame, "train"), classes_of(table, frame, "test")) == (set(range(4)), set(range(4, 10)))
    assert classes_of(shuffled(11), zero_shot(shuffled(11)), "train") == set(range(5))


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(2, 10), st.integers(0, 9))
def test_folds_hold_every_training_class_once(train_classes: int, folds: int, seed: int) -> None:
    table = shuffled(train_classes + 3, train_classes)
    frames = [kfold(table, fold, folds, seed) for fold in range(folds)]
    validated = [classes_of(table, frame, "test") for frame in frames]
    assert sorted(label for labels in validated for label in labels) == list(range(train_classes))
    assert max(map(len, validated)) - min(map(len, validated)) <= 1
    for frame, labels in zip(frames, validated, strict=True):
        assert classes_of(table, frame, "train") == set(range(train_classes)) - labels
        assert classes_of(table, frame, "") == set(range(train_classes, train_classes + 3))


def test_folds_mix_the_classes() -> None:
    """Neighbouring classes are often alike, so a fold is no run of them."""
    table = shuffled(200, 100)
    labels = sorted(classes_of(table, kfold(table, 0, 4), "test"))
    assert len(labels) == 25
    assert labels != list(range(25))
    assert labels != list(range(0, 100, 4))


@given(st.integers(2, 40), st.integers(0, 9))
def test_validation_split_stays_inside_the_training_classes(train_classes: int, seed: int) -> None:
    table = shuffled(train_classes + 2, train_classes)
    frame = zero_shot_val(table, seed)
    trained, held_out = classes_of(table, frame, "train"), classes_of(table, frame, "test")
    assert trained
    assert held_out
    assert trained.isdisjoint(held_out)
    assert trained | held_out == set(range(train_classes))


def test_validation_split_holds_out_its_share() -> None:
    table = shuffled(200, 100)
    assert len(classes_of(table, zero_shot_val(table), "test")) == 20
    assert len(classes_of(table, zero_shot_val(table, share=0.4), "test")) == 40


@pytest.mark.parametrize("draw", [zero_shot_val, kfold])
def test_held_out_classes_are_fixed_by_the_seed(draw: type) -> None:
    table = shuffled(40, 20)
    first, again, other = (draw(table, seed=seed) for seed in (3, 3, 4))
    assert first.equals(again)
    assert not first.equals(other)


def test_held_out_classes_never_change() -> None:
    """Records of different dates are compared, so these draws may not change."""
    table = make_table(np.arange(20), 10)
    held_out = [
        sorted(classes_of(table, frame, "test")) for frame in (zero_shot_val(table), kfold(table, 0), kfold(table, 3))
    ]
    assert held_out == [[5, 9], [5, 6, 7], [3, 8]]


ROLES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(SIDES)), min_size=1, max_size=20)


@given(ROLES)
def test_closed_set_is_the_lists_own_and_every_tested_class_is_trained_on(rows: list[tuple[int, str]]) -> None:
    table = make_table([label for label, _ in rows], sides=[side for _, side in rows])
    trained = {label for label, side in rows if side == "train"}
    unseen = {label for label, side in rows if side not in ("train", "")} - trained
    if unseen:
        with refused("set", f"'c{min(unseen)}'", "tested but not trained on", "zero_shot"):
            closed_set(table)
    else:
        assert closed_set(table)["split"].tolist() == [side for _, side in rows]


def test_closed_set_needs_official_lists() -> None:
    with refused("set", "no official training and test images", "closed_set"):
        make_split("closed_set", shuffled(8))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(SIDES)), max_size=30))
def test_row_numbers_follow_the_sides(rows: list[tuple[int, str]]) -> None:
    frame = pd.DataFrame({"label": [label for label, _ in rows], "split": [side for _, side in rows]}, dtype=object)
    split = rows_of(frame)
    where = {side: [row for row, (_, found) in enumerate(rows) if found == side] for side in SIDES}
    assert split.train.tolist() == where["train"]
    assert split.query.tolist() == sorted(where["test"] + where["query"])
    assert split.gallery.tolist() == sorted(where["test"] + where["gallery"])
    assert split.test.tolist() == sorted(where["test"] + where["query"] + where["gallery"])
    assert split.train_classes.tolist() == sorted({rows[row][0] for row in where["train"]})


def test_row_numbers_are_int64() -> None:
    split = make_split("zero_shot", shuffled(6))
    assert {rows.dtype for rows in (split.train, split.query, split.gallery, split.test)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("protocol", ["zero_shot", "zero_shot_val", "kfold"])
def test_train_labels_number_the_training_classes_from_zero(protocol: str) -> None:
    table = shuffled(20, 10)
    split: Split = make_split(protocol, table)
    numbers = split.train_labels(table.labels)
    assert set(numbers.tolist()) == set(range(len(split.train_classes)))
    assert np.array_equal(split.train_classes[numbers], table.labels[split.train])


@pytest.mark.parametrize(
    ("protocol", "table"),
    [
        ("zero_shot", shuffled(1)),
        ("zero_shot", shuffled(5, 5)),
        ("zero_shot", make_table([0, 0, 1, 1], sides=["train", "train", "query", "query"])),
        ("zero_shot", make_table([0, 0, 1, 1], sides=["train", "train", "gallery", ""])),
        ("zero_shot_val", shuffled(5, 1)),
        ("kfold", shuffled(9, 1)),
        ("closed_set", make_table([0, 0], sides=["train", "train"])),
    ],
    ids=[
        "no training class",
        "no test class",
        "no gallery",
        "no query",
        "one class to divide",
        "one class to fold",
        "nothing tested",
    ],
)
def test_empty_side_is_refused(protocol: str, table: ImageTable) -> None:
    with refused("set", protocol, "all sides"):
        make_split(protocol, table)


def test_fold_without_a_class_is_refused() -> None:
    table = shuffled(6, 3)
    assert len(make_split("kfold", table, 2, 5).test) == 3
    with refused("kfold", "0 queries"):
        make_split("kfold", table, 3, 5)


def test_manifest_has_path_class_and_side_of_each_image() -> None:
    table = ImageTable(Path(), ("a/1.png", "b/1.png", "a/2, small.png"), np.array([0, 1, 0]), ("wren", "robin"), 1)
    assert (
        manifest(zero_shot(table))
        == 'path,class,split\na/1.png,wren,train\nb/1.png,robin,test\n"a/2, small.png",wren,train\n'
    )
    roles = replace(table, sides=np.array(["", "query", "train"]))
    assert (
        manifest(zero_shot(roles))
        == 'path,class,split\na/1.png,wren,\nb/1.png,robin,query\n"a/2, small.png",wren,train\n'
    )


@pytest.mark.parametrize("protocol", ["zero_shot", "closed_set"])
def test_first_classes_keeps_whole_classes_of_both_sides(protocol: str) -> None:
    table = make_table(np.repeat(np.arange(10), 4), 6, ["train", "train", "test", "test"] * 10)
    whole, part = make_split(protocol, table), make_split(protocol, table, classes=2)
    assert part.train_classes.tolist() == whole.train_classes[:2].tolist()
    tested = np.unique(table.labels[part.test])
    assert tested.tolist() == np.unique(table.labels[whole.test])[:2].tolist()
    assert np.array_equal(part.query, whole.query[np.isin(table.labels[whole.query], tested)])
    assert np.array_equal(part.train, whole.train[np.isin(table.labels[whole.train], part.train_classes)])
    with pytest.raises(UserError, match="--classes 99"):
        make_split(protocol, table, classes=99)


@pytest.mark.parametrize("protocol", ["zero_shot_val", "kfold"])
def test_validation_classes_come_from_the_first_training_classes(protocol: str) -> None:
    table = make_table(np.repeat(np.arange(20), 4), 12)
    split = make_split(protocol, table, classes=5)
    tested = np.unique(table.labels[split.test])
    assert sorted([*split.train_classes, *tested]) == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match=r"--classes 13: .* has 12 training classes"):
        make_split(protocol, table, classes=13)
