"""Equal and nearly equal similarities: negatives first among equals, and float64 decides what float32 cannot."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.vectors import Distance
from tests.evaluation.retrieval_cases import EVERY, FIRST, TOP, Case, pieces

Exact = Literal["blocked", "flat"]
ENGINES = pytest.mark.parametrize("engine", ["blocked", "flat"])
DISTANCES = pytest.mark.parametrize("distance", ["cosine", "l2"])
DIM = 512


def fan(shifts: np.ndarray, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Row 0 and rows that are at a cosine of 0.5 + shift to it, all of length 1 and else in random directions."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=dim)
    query /= np.linalg.norm(query)
    aside = rng.normal(size=(len(shifts), dim))
    aside -= np.outer(aside @ query, query)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    cosine = 0.5 + shifts[:, None]
    return np.concatenate([[query], cosine * query + np.sqrt(1 - cosine**2) * aside])


@ENGINES
@DISTANCES
@pytest.mark.parametrize("ahead", [0, 1, 17, 40])
def test_a_positive_among_negatives_within_a_billionth_gets_its_true_rank(
    ahead: int, distance: Distance, engine: Exact
) -> None:
    shifts = 1e-9 * (np.arange(41) - ahead)  # row 1 + i is nearer than row 1 + j for i > j
    vectors = fan(np.append(shifts[shifts != 0], 0.0))
    labels = np.array([0, *range(1, 41), 0])
    for metrics in (FIRST, TOP, EVERY):
        with pieces(7):
            found = evaluate_in_detail(vectors, labels, ks=(1, 50), metrics=metrics, distance=distance, engine=engine)
        assert found.columns["first_rank"][0] == 1 + 40 - ahead


def test_float32_alone_would_order_these_wrongly() -> None:
    """The test above tests something: the float32 products are not in the order of the true ones."""
    vectors = fan(1e-9 * np.arange(41)).astype(np.float32)
    assert (np.diff(vectors[1:] @ vectors[0]) <= 0).sum() > 5


@ENGINES
@pytest.mark.parametrize(("shift", "rank"), [(1e-9, 1), (-1e-9, 13)])
def test_near_ties_on_a_circle(shift: float, rank: int, engine: Exact) -> None:
    """Twelve negatives within 1e-9 of each other, one positive nearer or farther by as much."""
    angle = (
        np.array([0.0, 0.5 - 13 * shift, *(0.5 + 1e-9 * np.arange(12))])
        if shift > 0
        else np.array([0.0, 0.5 + 13e-9, *(0.5 + 1e-9 * np.arange(12))])
    )
    vectors, labels = np.stack([np.cos(angle), np.sin(angle)], axis=1), np.array([0, 0, *range(1, 13)])
    assert evaluate_in_detail(vectors, labels, engine=engine).columns["first_rank"][0] == rank


@ENGINES
@DISTANCES
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_positives_and_negatives_mixed_within_a_billionth_equal_the_oracle(
    engine: Exact, distance: Distance, seed: int, block: int
) -> None:
    rng = np.random.default_rng(seed)
    vectors, order = fan(1e-9 * rng.permutation(13), seed, dim=16), rng.permutation(14)
    with pieces(block):
        Case(vectors[order], rng.integers(0, 3, 14), distance=distance).check(
            (1, 3), TOP if engine == "flat" else EVERY, engine=engine
        )


@ENGINES
@DISTANCES
def test_a_positive_that_ties_with_a_negative_ranks_behind_it(distance: Distance, engine: Exact) -> None:
    vectors, labels = np.ones((4, 3)), np.array([0, 0, 1, 1])
    found = evaluate(vectors, labels, ks=(1, 2, 3), distance=distance, engine=engine)
    assert found == pytest.approx(
        {"recall_at_1": 0, "recall_at_2": 0, "recall_at_3": 1, "mrr": 1 / 3, "r_precision": 0, "map_at_r": 0}
        | {"queries": 4, "queries_without_positive": 0}
    )


@ENGINES
def test_equal_but_for_rounding_is_equal(engine: Exact) -> None:
    """Copies of different lengths have the same direction, which normalising rounds differently."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=DIM)
    vectors = one * rng.uniform(0.1, 10, (30, 1))
    found = evaluate(vectors, np.arange(30) % 3, ks=(1, 20, 21), engine=engine)
    assert (found["recall_at_1"], found["recall_at_20"], found["recall_at_21"]) == (0.0, 0.0, 1.0)


@ENGINES
@pytest.mark.parametrize(("apart", "rank"), [(1e-13, 2), (1e-11, 1)])
def test_similarities_closer_than_float64_can_tell_are_equal(apart: float, rank: int, engine: Exact) -> None:
    vectors = fan(np.array([apart, 0.0]))
    assert evaluate_in_detail(vectors, np.array([0, 0, 1]), engine=engine).columns["first_rank"][0] == rank


@ENGINES
@DISTANCES
def test_copies_across_classes_tie_and_other_neighbours_do_not(distance: Distance, engine: Exact) -> None:
    base = np.random.default_rng(1).normal(size=(20, 8))
    found = evaluate_in_detail(
        np.concatenate([base, base]), np.arange(40) // 2, ks=(1,), distance=distance, engine=engine
    )
    assert found.metrics["recall_at_1"] == 0.0, "the copy is of another class"
    assert (found.columns["first_rank"] >= 2).all()


@DISTANCES
def test_one_far_row_does_not_make_equals_of_the_others(distance: Distance) -> None:
    rng = np.random.default_rng(2)
    labels = np.append(rng.integers(0, 5, 40), 99)
    vectors = rng.normal(size=(100, 4))[labels] + rng.normal(size=(41, 4))
    vectors[-1] = 1e6
    Case(vectors, labels, distance=distance).check((1, 2), TOP)


def test_directions_that_float32_tells_apart_are_not_equal() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 30)
    vectors = np.ones((30, 4), dtype=np.float32)
    vectors[:, 1:] = 1e-6 * (rng.normal(size=(4, 3))[labels] + rng.normal(size=(30, 3)))
    Case(vectors, labels).check((1, 2), TOP)


class Counted(np.ndarray):
    """Embeddings that note how many rows are read."""

    read: list[int]

    def __array_finalize__(self, obj: Any) -> None:
        self.read = getattr(obj, "read", [])

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.read.append(len(found) if np.ndim(found) else 1)
        return found


@ENGINES
def test_a_collapsed_network_is_evaluated_without_reading_rows_for_every_pair(engine: Exact) -> None:
    vectors = np.ones((200, 4), dtype=np.float32).view(Counted)
    evaluate(vectors, np.arange(200) // 2, ks=(1,), metrics=("recall",), engine=engine)
    assert sum(vectors.read) < 100 * 200
