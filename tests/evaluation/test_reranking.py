"""Expanded queries and k-reciprocal re-ranking, against oracles and plain evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import graded_ranking
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.evaluation.reranking import expanded, k_reciprocal_scores
from retrieval_bench.evaluation.vectors import as_vectors
from tests.evaluation.retrieval_cases import EVERY, Case, cases, clusters, same
from tests.oracles import reranking

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(0, 12), st.sampled_from([0.0, 1.0, 3.0]), st.booleans())
def test_expansion_agrees_with_the_oracle(seed: int, k: int, alpha: float, small: bool) -> None:
    rng = np.random.default_rng(seed)
    rows, queries = rng.normal(size=(10, 3)) + 0.5, rng.normal(size=(4, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graded_ranking, "NUMBERS", 25 if small else 1 << 24)
        for asked, itself in ((queries, np.full(4, -1)), (rows, np.arange(10))):
            left, right = as_vectors({"queries": asked, "gallery": rows})
            found = expanded(left, right, itself, k, alpha)
            others = [np.delete(reranking.unit(rows), [own] if own >= 0 else [], axis=0) for own in itself]
            expected = [reranking.expand(*pair, k, alpha) for pair in zip(reranking.unit(asked), others, strict=True)]
            np.testing.assert_allclose(found, expected, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([(1, 1), (3, 2), (5, 4), (6, 1), (20, 6), (60, 90)]), st.floats(0, 1), st.booleans())
def test_k_reciprocal_agrees_with_the_oracle(seed: int, ks: tuple[int, int], weight: float, small: bool) -> None:
    vectors, _ = clusters(26, 6, seed, copies=False)
    rows = reranking.unit(vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graded_ranking, "NUMBERS", 100 if small else 1 << 24)
        apart = as_vectors({"queries": vectors[:6], "gallery": vectors[6:]})
        scores, _ = k_reciprocal_scores(apart[0], apart[1], np.full(6, -1), *ks, weight)
        expected = reranking.k_reciprocal(rows, range(6), range(6, 26), *ks, weight)
        np.testing.assert_allclose(-scores(slice(2, 6)), expected[2:], atol=1e-9)
        (whole,) = as_vectors({"rows": vectors})
        scores, _ = k_reciprocal_scores(whole, whole, np.arange(26), *ks, weight)
        np.testing.assert_allclose(
            -scores(slice(0, 5)), reranking.k_reciprocal(rows, range(5), range(26), *ks, weight), atol=1e-9
        )


@settings(max_examples=25, deadline=None)
@given(cases())
def test_modes_that_change_nothing_are_plain_evaluation(case: Case) -> None:
    options: Any = {"metrics": EVERY, "ks": (1, 2, 5)}
    modes: list[Any] = [] if case.distance == "l2" else [("aqe:0",)]
    if case.queries is not None and case.distance == "cosine" and (case.same_item is None or max(case.same_item) < 0):
        modes.append(("dba:0:1", "aqe:0:0"))
    modes += [] if case.same_item is not None else [("k_reciprocal:3:2:1",)]
    try:
        plain = case.evaluated(**options)
    except UserError:
        return
    for rerank in modes:
        assert same(case.evaluated(rerank=rerank, **options), plain), rerank


def test_reranking_helps_where_neighbours_agree() -> None:
    """Clusters with a few queries off their centres: the modes find more of the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    centres = 2.0 * np.eye(10)
    gallery, queries = (centres[labels] + rng.normal(size=(200, 10)) for _ in range(2))
    values = [
        evaluate(gallery, labels, queries, labels, metrics=("map",), rerank=rerank)["map"]
        for rerank in ((), ("aqe:5:1",), ("dba:5:1",), ("dba:5:1", "aqe:5:1"), ("k_reciprocal",))
    ]
    assert min(values[1:]) > values[0] + 0.01
