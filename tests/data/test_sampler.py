from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.data.sampler import BatchSampler
from tests.data.data_checks import refused


def labels_of(sizes: list[int]) -> np.ndarray:
    """Labels of classes with these sizes, in no order and with gaps between the class numbers."""
    return np.random.default_rng(0).permutation(np.repeat(3 + 7 * np.arange(len(sizes)), sizes))


def epoch(sampler: BatchSampler, seed: int) -> list[list[int]]:
    sampler.generator.manual_seed(seed)
    return list(sampler)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 1_000), st.data())
def test_laws_of_balanced_batches(sizes: list[int], per_class: int, seed: int, data: st.DataObject) -> None:
    labels = labels_of(sizes)
    sampler = BatchSampler(labels, per_class * data.draw(st.integers(1, len(sizes))), per_class)
    batches = epoch(sampler, seed)
    assert len(batches) == len(sampler) == max(1, len(labels) // sampler.batch_size)
    counts = Counter(labels.tolist())
    for batch in batches:
        assert len(batch) == sampler.batch_size
        assert set(Counter(labels[batch].tolist()).values()) == {per_class}
        enough = [row for row in batch if counts[labels[row]] >= per_class]
        assert len(set(enough)) == len(enough), "an image would be its own positive"
    order = np.array([row for batch in batches for row in batch])
    for label in np.unique(labels):
        first_pass = order[labels[order] == label][: counts[label]]
        assert len(set(first_pass.tolist())) == len(first_pass), "no image returns before its class is used up"


def test_every_row_and_every_class_appears_before_one_returns() -> None:
    batches = epoch(BatchSampler(labels_of([6] * 8), 8, 2), 5)
    assert sorted(row for batch in batches for row in batch) == list(range(48))
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


@pytest.mark.parametrize(
    ("per_class", "expected"),
    [(0, [[8, 0, 5, 9], [7, 4, 2, 10], [3, 1, 11, 6]]), (2, [[1, 2, 4, 5], [9, 11, 7, 8], [6, 8, 3, 5]])],
)
def test_order_depends_on_the_seed_alone_and_never_changes(per_class: int, expected: list[list[int]]) -> None:
    """Records of different dates are compared, so an epoch of a seed may not change."""
    sampler = BatchSampler(np.arange(12) // 3, 4, per_class)
    assert [epoch(sampler, seed) == expected for seed in (0, 1, 0)] == [True, False, True]


def test_too_few_classes_are_refused() -> None:
    BatchSampler(np.arange(8), 32, 4)
    with refused("needs 8 classes", "has 7", "--batch-size"):
        BatchSampler(np.arange(7), 32, 4)
    with refused("needs 2 classes", "has 1: take more classes"):
        BatchSampler(np.zeros(9, dtype=np.int64), 4, 2)
