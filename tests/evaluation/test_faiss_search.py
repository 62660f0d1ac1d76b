"""IVF and HNSW: the positives that they list have their rank in the list, the others rank behind the gallery."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from retrieval_bench.evaluation import ranking
from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.faiss_search import rank_approximately
from retrieval_bench.evaluation.retrieval_task import RetrievalTask, retrieval_task
from retrieval_bench.evaluation.vectors import Distance, as_vectors
from tests.evaluation.retrieval_cases import EVERY, TOP, Case, chunked, clusters, same

Kind = Literal["ivf", "hnsw"]
KINDS = pytest.mark.parametrize("kind", ["ivf", "hnsw"])
DISTANCES = pytest.mark.parametrize("distance", ["cosine", "l2"])


def task_of(vectors: np.ndarray, labels: np.ndarray, distance: Distance = "cosine") -> RetrievalTask:
    (one,) = as_vectors({"embeddings": vectors}, distance)
    return retrieval_task(one, labels, one, labels, np.arange(len(labels)))


@DISTANCES
@KINDS
@pytest.mark.parametrize("apart", [False, True])
def test_an_index_that_finds_all_gives_the_exact_metrics(kind: Kind, distance: Distance, apart: bool) -> None:
    """600 rows make 15 cells, all of which are searched; the graph's search is as wide."""
    vectors, labels = clusters(200 if kind == "hnsw" else 600, 30, dim=8, copies=False)
    case = Case(vectors, labels, distance=distance)
    if apart:  # some queries in the gallery
        case = Case(vectors[25:], labels[25:], vectors[:50], labels[:50], np.arange(50).clip(24) - 25, distance)
    exact, found = (case.evaluated(ks=(1, 8, 600), metrics=EVERY, engine=each).metrics for each in ("blocked", kind))
    assert 0.97 <= found.pop("index_recall_at_10") <= 1.0
    if kind == "ivf":
        assert found == pytest.approx(exact, abs=1e-4), "but for pairs that float32 cannot order"
    assert all(abs(found[name] - exact[name]) < 0.02 for name in exact)


@DISTANCES
def test_index_recall_is_one_when_all_cells_are_searched_and_falls_with_fewer(distance: Distance) -> None:
    task = task_of(*clusters(600, 80, dim=8, copies=False), distance)
    shares = [rank_approximately(task, "ivf", 20, probes)[1]["index_recall_at_10"] for probes in (1, 3, 15, 99)]
    assert 0 <= shares[0] < shares[1] < shares[2] == shares[3] == 1.0


@KINDS
def test_with_few_probes_ranks_are_those_of_a_shorter_list(kind: Kind) -> None:
    """What an index does not see cannot push a positive back: a listed one ranks no later than it should."""
    task = task_of(*clusters(600, 80, dim=8, copies=False))
    ranks, quality = rank_approximately(task, kind, 40, probes=1)
    assert 0 < quality["index_recall_at_10"] < 1
    missing, true_ranks = 0, ranking.to_ranks(task, ranking.count_negatives(task))
    for found, expected in zip(*(np.split(each, task.starts[1:-1]) for each in (ranks, true_ranks)), strict=True):
        seen = found <= 600
        assert (np.diff(found[seen]) > 0).all(), "one positive per rank"
        assert (found[~seen] == 601).all()
        missing += int((~seen & (expected <= 40)).sum())
    assert missing > 0


@KINDS
def test_only_the_query_itself_is_never_listed(kind: Kind) -> None:
    """Each row is far nearer to itself than to its opposite, the only other item of its class."""
    vectors = np.concatenate([np.eye(40), -np.eye(40)])
    found = evaluate_in_detail(vectors, np.tile(np.arange(40), 2), engine=kind, ks=(1, 79))
    assert (found.columns["first_rank"] == 79).all()
    copies = np.repeat(np.random.default_rng(1).normal(size=(10, 4)), 3, axis=0)
    figures = evaluate(copies, np.repeat(np.arange(10), 3), engine=kind, ks=(1,), metrics=TOP)
    assert (figures["recall_at_1"], figures["r_precision"], figures["map_at_r"]) == (1.0, 1.0, 1.0)
    apart = evaluate(copies, np.repeat(np.arange(10), 3), copies[:9], np.repeat(np.arange(3), 3), engine=kind, ks=(1,))
    assert apart["recall_at_1"] == 1.0, "each finds its copy"


@KINDS
def test_a_negative_as_near_as_a_positive_ranks_before_it(kind: Kind) -> None:
    vectors = np.tile(np.eye(3), (4, 1))
    found = evaluate(vectors, np.repeat([0, 1], 6), engine=kind, ks=(1, 2, 3))
    assert (found["recall_at_1"], found["recall_at_2"], found["recall_at_3"]) == (0.0, 0.0, 1.0)


@KINDS
def test_portions_and_a_second_search_change_nothing(kind: Kind) -> None:
    drawn = clusters(300, 20, dim=8, copies=False)
    whole = evaluate_in_detail(*drawn, engine=kind)
    assert same(whole, evaluate_in_detail(*drawn, engine=kind))
    with chunked(50, 700, chunk=500):
        assert kind == "hnsw" or same(whole, evaluate_in_detail(*drawn, engine=kind))
