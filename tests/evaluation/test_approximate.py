"""IVF and HNSW: the positives that they list have their rank in the list, the others stand behind the gallery."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from retrieval_bench.evaluation import listed
from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.listed import rank_approximately
from retrieval_bench.evaluation.matching import Matching, match
from retrieval_bench.evaluation.vectors import Distance, as_pair, as_vectors
from tests.evaluation.retrieval_cases import EVERY, TOP, pieces

Kind = Literal["ivf", "hnsw"]
KINDS = pytest.mark.parametrize("kind", ["ivf", "hnsw"])
DISTANCES = pytest.mark.parametrize("distance", ["cosine", "l2"])


def drawn(rows: int = 600, classes: int = 80, dim: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    return rng.normal(size=(classes, dim))[labels] + rng.normal(size=(rows, dim)), labels


def itself(vectors: np.ndarray, labels: np.ndarray, distance: Distance = "cosine") -> Matching:
    one = as_vectors(vectors, distance)
    return match(one, labels, one, labels, np.arange(len(labels)))


def true_ranks(matching: Matching) -> list[np.ndarray]:
    """Of each query's positives, ascending, by sorting all similarities in float64."""
    similarity = matching.queries.left(matching.query_order) @ matching.gallery.right(matching.gallery_order).T
    found = []
    for place, row in enumerate(similarity):
        order = [item for item in np.argsort(-row) if item != matching.itself[place]]
        found.append(1 + np.flatnonzero(matching.gallery_classes[order] == matching.classes[place]))
    return found


@DISTANCES
@KINDS
@pytest.mark.parametrize("distance_apart", [False, True])
def test_an_index_that_finds_all_gives_the_exact_metrics(kind: Kind, distance: Distance, distance_apart: bool) -> None:
    """600 rows make 15 cells, all of which are searched; the graph's search is as wide."""
    vectors, labels = drawn(200 if kind == "hnsw" else 600, 30)
    given: tuple[Any, ...] = (
        (vectors[50:], labels[50:], vectors[:50], labels[:50]) if distance_apart else (vectors, labels)
    )
    exact, found = (
        evaluate(*given, ks=(1, 8, 600), metrics=EVERY, distance=distance, engine=engine)
        for engine in ("blocked", kind)
    )
    assert 0.97 <= found.pop("index_recall_at_10") <= 1.0
    if kind == "ivf":
        assert found == pytest.approx(exact, abs=1e-4), "but for pairs that float32 cannot order"
    assert all(abs(found[name] - exact[name]) < 0.02 for name in exact)


@DISTANCES
def test_index_recall_is_one_when_all_cells_are_searched_and_falls_with_fewer(distance: Distance) -> None:
    matching = itself(*drawn(), distance)
    shares = [rank_approximately(matching, "ivf", 20, probes)[1]["index_recall_at_10"] for probes in (1, 3, 15, 99)]
    assert 0 <= shares[0] < shares[1] < shares[2] == shares[3] == 1.0


@KINDS
def test_the_same_search_again_gives_the_same(kind: Kind) -> None:
    vectors, labels = drawn(300)
    assert evaluate(vectors, labels, engine=kind) == evaluate(vectors, labels, engine=kind)


@KINDS
@DISTANCES
def test_listed_positives_have_their_rank_and_missing_ones_stand_behind_the_gallery(
    distance: Distance, kind: Kind
) -> None:
    matching = itself(*drawn(), distance)
    depth = 25
    ranks, _ = rank_approximately(matching, kind, depth, probes=99 if kind == "ivf" else 150)
    lists = np.split(ranks, matching.starts[1:-1])
    listed_all = 0
    for found, expected in zip(lists, true_ranks(matching), strict=True):
        assert (np.diff(found) >= 0).all()
        near = expected[expected <= depth]
        listed_all += np.array_equal(found, np.where(expected <= depth, expected, 601))
        assert len(found) == len(expected)
        assert set(found[found <= depth]) <= set(range(1, depth + 1))
        assert (found[len(near) + 1 :] == 601).all()
    assert listed_all == len(lists) if kind == "ivf" else listed_all > 0.95 * len(lists)


@KINDS
def test_with_few_probes_ranks_are_those_of_a_shorter_list(kind: Kind) -> None:
    """What an index does not see cannot push a positive back: a listed one ranks no later than it should."""
    matching = itself(*drawn())
    ranks, said = rank_approximately(matching, kind, 40, probes=1)
    assert 0 < said["index_recall_at_10"] < 1
    missing = 0
    for found, expected in zip(np.split(ranks, matching.starts[1:-1]), true_ranks(matching), strict=True):
        seen = found <= 600
        assert len(set(found[seen])) == seen.sum(), "one positive per rank"
        assert (found[~seen] == 601).all()
        missing += int((~seen & (expected <= 40)).sum())
    assert missing > 0


@KINDS
def test_the_query_itself_is_never_listed(kind: Kind) -> None:
    """Each row is far nearer to itself than to anything else; a class of two has one item to find, which is never the first."""
    vectors = np.concatenate([np.eye(40), -np.eye(40)])
    found = evaluate_in_detail(vectors, np.tile(np.arange(40), 2), engine=kind, ks=(1, 79, 80))
    assert found.metrics["recall_at_1"] == found.metrics["recall_at_79"] - 1 == 0.0
    assert (found.columns["first_rank"] == 79).all(), "the opposite row is the last of the 79 others"


@KINDS
def test_only_the_query_is_left_out_among_its_copies(kind: Kind) -> None:
    vectors = np.repeat(np.random.default_rng(1).normal(size=(10, 4)), 3, axis=0)
    found = evaluate(vectors, np.repeat(np.arange(10), 3), engine=kind, ks=(1,), metrics=TOP)
    assert (found["recall_at_1"], found["r_precision"], found["map_at_r"]) == (1.0, 1.0, 1.0)


@KINDS
def test_a_negative_as_near_as_a_positive_ranks_before_it(kind: Kind) -> None:
    vectors = np.tile(np.eye(3), (4, 1))
    found = evaluate(vectors, np.repeat([0, 1], 6), engine=kind, ks=(1, 2, 3))
    assert (found["recall_at_1"], found["recall_at_2"], found["recall_at_3"]) == (0.0, 0.0, 1.0)


@KINDS
def test_some_queries_in_the_gallery_do_not_find_themselves(kind: Kind) -> None:
    vectors, labels = drawn(100, 10)
    rows = np.arange(60, 100)
    own = np.where(rows < 80, rows, -1)
    given = (vectors[:80], labels[:80], vectors[rows], labels[rows], own)
    found, exact = (evaluate(*given, engine=engine, ks=(1, 5), metrics=TOP) for engine in (kind, "blocked"))
    assert found.pop("index_recall_at_10") > 0.97
    assert found == pytest.approx(exact, abs=0.02)


@KINDS
@pytest.mark.parametrize("rows", [2, 3, 12, 41])
def test_small_galleries_work(kind: Kind, rows: int) -> None:
    vectors, _ = drawn(rows)
    found = evaluate(vectors, np.arange(rows) // 2, engine=kind, ks=(1, 1000), metrics=EVERY)
    assert found["recall_at_1000"] == 1.0
    assert found["index_recall_at_10"] == 1.0


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels = drawn(300, 20)
    whole = evaluate_in_detail(vectors, labels, engine="ivf")
    monkeypatch.setattr(listed, "PIECE", 500)
    with pieces(50, 700):
        parts = evaluate_in_detail(vectors, labels, engine="ivf")
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(values, parts.columns[name])
    assert whole.metrics == pytest.approx(parts.metrics, abs=1e-12)


def test_queries_apart_are_not_compared_with_items_of_the_same_number() -> None:
    gallery, labels = drawn(50, 5, seed=4)
    queries, gallery_vectors = as_pair(gallery[:10], gallery)
    matching = match(queries, labels[:10], gallery_vectors, labels, np.full(10, -1))
    ranks, _ = rank_approximately(matching, "ivf", 50)
    assert (ranks[matching.starts[:-1]] == 1).all(), "each finds its copy"
