"""Sharded search against one sorted list of all similarities."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import shards as module
from retrieval_bench.evaluation.shards import Nearest, Shard, merge, nearest


def sorted_list(queries: np.ndarray, gallery: np.ndarray, k: int) -> list[list[int]]:
    """Rows by similarity, in fractions, then by number."""
    exact = [[Fraction(float(value)) for value in row] for row in gallery]
    lists = []
    for query in queries:
        asked = [Fraction(float(value)) for value in query]
        similarities = [sum((a * b for a, b in zip(asked, row, strict=True)), Fraction()) for row in exact]
        lists.append(sorted(range(len(gallery)), key=lambda row: (-similarities[row], row))[:k])
    return lists


@settings(deadline=None)
@given(st.data())
def test_equals_one_sorted_list_ties_included(data: st.DataObject) -> None:
    """Small whole numbers, whose similarities are exact and often equal."""
    count, dim = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 3))
    numbers = st.lists(st.integers(-3, 3), min_size=dim, max_size=dim)
    gallery = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)), dtype=np.float32)
    queries = np.array(data.draw(st.lists(numbers, min_size=1, max_size=5)), dtype=np.float32)
    k, shards = data.draw(st.integers(1, 45)), data.draw(st.integers(1, count))
    found = nearest(queries, gallery, k, shards)
    assert found.rows.tolist() == sorted_list(queries, gallery, k)
    assert (found.similarities == np.take_along_axis(queries @ gallery.T, found.rows, axis=1)).all()


@pytest.mark.parametrize("shards", [2, 3, 7, 300])
@pytest.mark.parametrize("k", [1, 10, 299, 500])
def test_the_number_of_shards_changes_no_bit(shards: int, k: int) -> None:
    """Rows that float32 cannot tell apart: many copies, moved by less than it resolves in a product."""
    draw = np.random.default_rng(0)
    gallery = np.repeat(draw.normal(size=(30, 24)), 10, axis=0)
    gallery = (
        gallery / np.linalg.norm(gallery, axis=1, keepdims=True) + draw.normal(size=gallery.shape) * 3e-8
    ).astype(np.float32)
    queries = gallery[::7] + np.float32(1e-3)
    whole, found = nearest(queries, gallery, k), nearest(queries, gallery, k, shards)
    assert (whole.rows == found.rows).all()
    assert (whole.similarities == found.similarities).all()
    if k == 10:
        assert whole.rows[:4].tolist() == sorted_list(queries[:4], gallery, k)


def test_lists_that_are_too_short_to_be_sure_of_are_made_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are equal to float32; the nearest ones by float64 come last, where FAISS does not propose them at first."""
    monkeypatch.setattr(module, "PIECE", 64)
    gallery = np.ones((200, 2), dtype=np.float32)
    gallery[:, 1] = np.float32(2.0**-30) * np.arange(200)
    queries = np.ones((3, 2), dtype=np.float32)
    found = nearest(queries, gallery, 3, 2)
    assert found.rows.tolist() == [[199, 198, 197]] * 3


def test_merging_is_sorting() -> None:
    left, right = (
        Nearest(np.array([[3.0, 1.0]]), np.array([[7, 2]])),
        Nearest(np.array([[3.0, 2.0]]), np.array([[4, 9]])),
    )
    assert merge([left, right], 3).rows.tolist() == [[4, 7, 9]]
    assert merge([left, right], 9).similarities.tolist() == [[3, 3, 2, 1]]
    assert Shard(np.eye(3), first=5).nearest(np.eye(3, dtype=np.float32)[:1], 2).rows.tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("queries", "gallery", "k", "shards", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 1, 1, "queries (2, 3) and gallery (2, 4)"),
        (np.ones((2, 3)), np.ones((0, 3)), 1, 1, "with a row in the gallery"),
        (np.ones((2, 3)), np.ones((2, 3)), 0, 1, "k 0"),
        (np.ones((2, 3)), np.ones((2, 3)), 1, 3, "shards 3"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), 1, 2, "finite"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    queries: np.ndarray, gallery: np.ndarray, k: int, shards: int, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        nearest(queries, gallery, k, shards)
