from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_checks import refused
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.splits import Split, make_split, manifest, zero_shot, zero_shot_val


def shuffled_labels(classes: int, per_class: int = 3) -> np.ndarray:
    return np.random.default_rng(classes).permutation(np.repeat(np.arange(classes), per_class))


def classes_of(labels: np.ndarray, split: Split) -> tuple[set[int], set[int]]:
    return set(labels[split.train].tolist()), set(labels[split.test].tolist())


def test_zero_shot_trains_on_the_first_classes_and_tests_on_the_rest() -> None:
    labels = shuffled_labels(10)
    split = zero_shot(labels, 4)
    assert classes_of(labels, split) == (set(range(4)), set(range(4, 10)))
    assert sorted([*split.train, *split.test]) == list(range(len(labels)))


@given(classes=st.integers(3, 40), data=st.data())
def test_validation_split_stays_inside_the_training_classes(classes: int, data: st.DataObject) -> None:
    train_classes = data.draw(st.integers(2, classes - 1))
    labels = shuffled_labels(classes)
    split = zero_shot_val(labels, train_classes, seed=data.draw(st.integers(0, 9)))
    train, held_out = classes_of(labels, split)
    assert train
    assert held_out
    assert train.isdisjoint(held_out)
    assert train | held_out == set(range(train_classes))
    assert len(split.train) + len(split.test) == int((labels < train_classes).sum())


def test_validation_split_holds_out_its_share() -> None:
    labels = shuffled_labels(200)
    assert len(classes_of(labels, zero_shot_val(labels, 100))[1]) == 20
    assert len(classes_of(labels, zero_shot_val(labels, 100, share=0.4))[1]) == 40


def test_validation_split_is_fixed_by_its_seed() -> None:
    labels = shuffled_labels(40)
    first, again, other = (zero_shot_val(labels, 20, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.train, again.train)
    assert np.array_equal(first.test, again.test)
    assert classes_of(labels, first) != classes_of(labels, other)


@pytest.mark.parametrize("protocol", ["zero_shot", "zero_shot_val"])
def test_train_labels_number_the_training_classes_from_zero(protocol: str) -> None:
    labels = shuffled_labels(20)
    split = make_split(protocol, labels, 10)
    numbers = split.train_labels(labels)
    assert set(numbers.tolist()) == set(range(len(split.train_classes)))
    assert np.array_equal(split.train_classes[numbers], labels[split.train])


@pytest.mark.parametrize(("protocol", "train_classes"), [("zero_shot", 0), ("zero_shot", 5), ("zero_shot_val", 0), ("zero_shot_val", 1)])
def test_empty_side_is_refused(protocol: str, train_classes: int) -> None:
    with refused(protocol, "both sides"):
        make_split(protocol, shuffled_labels(5), train_classes)


def test_manifest_has_path_class_and_side_of_each_image() -> None:
    table = ImageTable(Path(), ("a/1.png", "b/1.png", "a/2.png"), np.array([0, 1, 0]), ("wren", "robin"))
    expected = "path,class,split\na/1.png,wren,train\nb/1.png,robin,test\na/2.png,wren,train\n"
    assert manifest(table, zero_shot(table.labels, 1)) == expected
