from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from data_checks import refused
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.data.sampler import BatchSampler


def labels_of(sizes: list[int]) -> np.ndarray:
    """Labels of classes with these sizes, in no order and with gaps between the class numbers."""
    return np.random.default_rng(0).permutation(np.repeat(3 + 7 * np.arange(len(sizes)), sizes))


def epoch(sampler: BatchSampler, seed: int) -> list[list[int]]:
    sampler.generator.manual_seed(seed)
    return list(sampler)


@st.composite
def balanced(draw: st.DrawFn) -> tuple[np.ndarray, int, list[list[int]]]:
    """Labels, images per class, and one epoch of a balanced sampler."""
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=12))
    per_class = draw(st.integers(1, 5))
    labels = labels_of(sizes)
    sampler = BatchSampler(labels, per_class * draw(st.integers(1, len(sizes))), per_class)
    batches = epoch(sampler, draw(st.integers(0, 1_000)))
    assert len(batches) == len(sampler) == max(1, len(labels) // sampler.batch_size)
    assert all(len(batch) == sampler.batch_size for batch in batches)
    return labels, per_class, batches


@given(balanced())
def test_each_batch_has_m_images_of_each_of_its_classes(drawn: tuple[np.ndarray, int, list[list[int]]]) -> None:
    labels, per_class, batches = drawn
    for batch in batches:
        assert set(Counter(labels[batch].tolist()).values()) == {per_class}


@given(balanced())
def test_no_row_returns_before_its_class_is_used_up(drawn: tuple[np.ndarray, int, list[list[int]]]) -> None:
    labels, _, batches = drawn
    order = np.array([row for batch in batches for row in batch])
    for label in np.unique(labels):
        first_pass = order[labels[order] == label][: int((labels == label).sum())]
        assert len(set(first_pass.tolist())) == len(first_pass)


@given(balanced())
def test_no_image_is_twice_in_a_batch_if_its_class_has_m(drawn: tuple[np.ndarray, int, list[list[int]]]) -> None:
    """Otherwise an image would be its own positive."""
    labels, per_class, batches = drawn
    sizes = Counter(labels.tolist())
    for batch in batches:
        rows = [row for row in batch if sizes[labels[row]] >= per_class]
        assert len(set(rows)) == len(rows)


def test_small_class_fills_up_with_repeats() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    (batch,) = epoch(BatchSampler(labels, 8, 4), 0)
    assert Counter(labels[batch].tolist()) == {0: 4, 1: 4}
    assert Counter(row for row in batch if labels[row] == 0) == {0: 2, 1: 2}


def test_epoch_of_equal_classes_shows_every_row_once() -> None:
    batches = epoch(BatchSampler(labels_of([6] * 8), 8, 2), 5)
    assert sorted(row for batch in batches for row in batch) == list(range(48))


def test_every_class_appears_before_one_returns() -> None:
    labels = labels_of([4] * 7)
    first, second, third = epoch(BatchSampler(labels, 4, 2), 1)[:3]
    assert len(set(labels[first + second + third].tolist())) == 6


@given(count=st.integers(1, 70), batch_size=st.integers(2, 20), seed=st.integers(0, 1_000))
def test_plain_epoch_covers_every_row_once(count: int, batch_size: int, seed: int) -> None:
    sampler = BatchSampler(np.zeros(count, dtype=np.int64), batch_size, 0)
    batches = epoch(sampler, seed)
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    assert len(batches) == len(sampler)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) <= batch_size + 1
    assert count == 1 or len(batches[-1]) > 1


@pytest.mark.parametrize("per_class", [0, 4])
def test_order_depends_on_the_seed_alone(per_class: int) -> None:
    labels = labels_of([8] * 16)
    sampler = BatchSampler(labels, 32, per_class)
    first = epoch(sampler, 1)
    assert epoch(sampler, 2) != first
    assert epoch(sampler, 1) == first
    assert epoch(BatchSampler(labels, 32, per_class), 1) == first


def test_rows_are_shuffled() -> None:
    assert epoch(BatchSampler(np.zeros(64), 64, 0), 0) != [list(range(64))]


def test_too_few_classes_are_refused() -> None:
    BatchSampler(np.arange(8), 32, 4)
    with refused("needs 8 classes", "has 7", "--batch-size"):
        BatchSampler(np.arange(7), 32, 4)
