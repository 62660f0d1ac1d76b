"""Who should find whom: classes as ranges, the positives of each query, and the same search in portions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.evaluation.matching import Matching, match, portions, subset
from retrieval_bench.evaluation.vectors import as_pair, as_vectors


@dataclass(frozen=True)
class Given:
    """What a matching is made of."""

    queries: np.ndarray
    query_codes: np.ndarray
    gallery: np.ndarray
    gallery_codes: np.ndarray
    itself: np.ndarray

    def matched(self) -> Matching:
        return match(*self.sides(), self.itself)

    def sides(self):
        queries, gallery = as_pair(self.queries, self.gallery)
        return queries, self.query_codes, gallery, self.gallery_codes

    def positives(self, query: int) -> list[int]:
        """Gallery rows of the query's class, without the query itself."""
        alike = np.flatnonzero(self.gallery_codes == self.query_codes[query])
        return [row for row in alike.tolist() if row != self.itself[query]]


@st.composite
def givens(draw: st.DrawFn) -> Given:
    seed, queries, gallery, classes = (draw(st.integers(*span)) for span in ((0, 2**32 - 1), (1, 12), (1, 20), (1, 8)))
    rng = np.random.default_rng(seed)
    items, names = rng.normal(size=(gallery, 3)), rng.integers(0, classes, gallery)
    itself = np.where(rng.random(queries) < 0.6, rng.integers(0, gallery, queries), -1)
    asked = np.where(itself >= 0, names[itself], rng.integers(0, classes, queries))
    return Given(
        np.where(itself[:, None] >= 0, items[itself], rng.normal(size=(queries, 3))), asked, items, names, itself
    )


def flat_of(found: Matching, place: int) -> np.ndarray:
    """The similarities of one query's positives."""
    return found.positives[found.starts[place] : found.starts[place + 1]]


@settings(max_examples=100, deadline=None)
@given(givens())
def test_positives_are_those_of_the_class_without_the_query_best_first(given: Given) -> None:
    found = given.matched()
    unit = given.gallery / np.linalg.norm(given.gallery, axis=1, keepdims=True)
    for place, query in enumerate(found.query_order.tolist()):
        own = given.queries[query] / np.linalg.norm(given.queries[query])
        expected = sorted((unit[given.positives(query)] @ own - 1).tolist(), reverse=True)
        assert found.counts[place] == len(expected)
        np.testing.assert_allclose(flat_of(found, place), expected, atol=1e-14)


@settings(max_examples=100, deadline=None)
@given(givens())
def test_both_sides_are_sorted_by_class_and_nothing_is_lost(given: Given) -> None:
    found = given.matched()
    for codes, order, classes in (
        (given.query_codes, found.query_order, found.classes),
        (given.gallery_codes, found.gallery_order, found.gallery_classes),
    ):
        assert sorted(order.tolist()) == list(range(len(codes)))
        np.testing.assert_array_equal(codes[order], classes)
        assert (np.diff(classes) >= 0).all()
    own = np.where(found.itself >= 0, found.gallery_order[found.itself], -1)
    np.testing.assert_array_equal(own, given.itself[found.query_order])
    for label in range(len(found.query_starts) - 1):
        assert set(found.classes[found.query_starts[label] : found.query_starts[label + 1]]) <= {label}
        assert set(found.gallery_classes[found.gallery_starts[label] : found.gallery_starts[label + 1]]) <= {label}


@settings(max_examples=100, deadline=None)
@given(givens(), st.integers(1, 30))
def test_portions_are_the_whole_search_once(given: Given, limit: int) -> None:
    whole = given.matched()
    parts = portions(whole, limit)
    np.testing.assert_array_equal(np.concatenate([part.query_order for part in parts]), whole.query_order)
    np.testing.assert_array_equal(np.concatenate([part.counts for part in parts]), whole.counts)
    np.testing.assert_allclose(np.concatenate([part.positives for part in parts]), whole.positives, atol=1e-14)
    largest = int(whole.counts.max())
    assert all(part.counts.sum() <= limit + largest for part in parts)
    assert all(len(part.query_order) for part in parts)


@settings(max_examples=60, deadline=None)
@given(givens(), st.data())
def test_a_subset_has_the_same_positives(given: Given, data: st.DataObject) -> None:
    whole = given.matched()
    places = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=len(whole.counts), max_size=len(whole.counts))))
    part = subset(whole, places)
    np.testing.assert_array_equal(part.classes, whole.classes[places])
    np.testing.assert_array_equal(part.counts, whole.counts[places])
    for row, place in enumerate(places.tolist()):
        np.testing.assert_allclose(flat_of(part, row), flat_of(whole, place), atol=1e-14)


def test_only_the_same_rows_on_both_sides_are_symmetric() -> None:
    vectors, codes = np.random.default_rng(0).normal(size=(6, 2)), np.array([0, 1, 0, 1, 0, 1])
    one = as_vectors(vectors)
    whole = match(one, codes, one, codes, np.arange(6))
    assert whole.symmetric
    assert portions(whole, 100)[0].symmetric
    assert not any(part.symmetric for part in portions(whole, 4))
    assert not match(*_twice(vectors, codes), np.arange(6)).symmetric


def _twice(vectors: np.ndarray, codes: np.ndarray):
    queries, gallery = as_pair(vectors, vectors)
    return queries, codes, gallery, codes
