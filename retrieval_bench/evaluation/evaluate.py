"""The evaluator as one function: anyone's embeddings and labels to metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, ParamSpec, cast, get_args

import numpy as np

from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import fast_ranking, ranking
from retrieval_bench.evaluation.embedding_stats import clustering_metrics, embedding_stats
from retrieval_bench.evaluation.faiss_search import Approximate, rank_approximately
from retrieval_bench.evaluation.found import QUERY_COLUMNS, Evaluation, Part, TieRule, chosen_metrics, collect
from retrieval_bench.evaluation.graded_ranking import graded_rankings, similarity_scores
from retrieval_bench.evaluation.inputs import as_tuple, label_codes, prepare_sides
from retrieval_bench.evaluation.metrics import (
    DEFAULT_METRICS,
    METRICS,
    MetricName,
    Needs,
    Ranking,
    check_ks,
    depths,
    global_average_precision,
)
from retrieval_bench.evaluation.relevance import as_relevance, has_several
from retrieval_bench.evaluation.reranking import expand, k_reciprocal_scores, parse_rerank
from retrieval_bench.evaluation.retrieval_task import RetrievalTask, retrieval_task
from retrieval_bench.evaluation.ties import EXPECTED
from retrieval_bench.evaluation.vectors import Distance, Vectors

Given = ParamSpec("Given")
Engine = Literal["auto", "blocked", "reference", "flat", "ivf", "hnsw"]
"""``auto`` is blocked, ``flat`` is the name that the reference engine had before."""
POSITIVES = 1 << 23
"""Ranks of positives that are kept at once."""


def evaluate_in_detail(
    embeddings: np.ndarray,
    labels: Any,
    query_embeddings: np.ndarray | None = None,
    query_labels: Any = None,
    *,
    same_item: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    metrics: tuple[MetricName, ...] = DEFAULT_METRICS,
    distance: Distance = "cosine",
    engine: Engine = "auto",
    device: str = "auto",
    memory_gb: float = 1.0,
    ties: TieRule = "lower",
    cameras: np.ndarray | None = None,
    query_cameras: np.ndarray | None = None,
    ignore: np.ndarray | None = None,
    relevance: Any = None,
    rerank: tuple[str, ...] = (),
) -> Evaluation:
    """Retrieval metrics of embeddings: each row searched among all the others, or queries in a gallery.

    Args:
        embeddings: (N, D) of any number type, not necessarily normalised, possibly memory-mapped; the gallery, and
            without queries also the queries.
        labels: (N,) class of each row, numbers or strings; `query_labels` (Q,) those of `query_embeddings` (Q, D).
            Several labels per row are a list of lists, or a matrix (N, C) of 0 and 1: relevant is what shares one, with
            the number of shared labels as grade. None where `relevance` is given.
        same_item: int (Q,), the row of `embeddings` that is the query itself and so not its neighbour, -1 for none;
            None if no query is in the gallery. Not given without queries.
        ks: the K of Recall@K and precision@K; a K beyond the gallery counts every query that has a positive.
        metrics: what is computed. ``map`` and ``curve`` need the rank of every positive and take longer; ``clustering``
            runs k-means on the gallery.
        distance: ``cosine`` similarity, or Euclidean ``l2``.
        engine: ``blocked`` is exact and the fastest (``auto`` takes it); ``reference`` (also ``flat``) is the same
            result by the definition, slowly; ``ivf`` and ``hnsw`` (FAISS) are approximate: their figures come with
            ``index_recall_at_10``, and ``mrr`` and ``map`` are named after the length of the lists (``map_at_200``)
            where those are shorter than the gallery.
        device: ``cpu``, ``cuda`` or ``auto``, for the blocked engine.
        memory_gb: 10^9 bytes that copies of the embeddings may take; beyond it they are converted chunk by chunk.
        ties: of items as similar as a positive. ``lower``: negatives rank first, a lower bound that never flatters;
            ``bounds``: also ``<metric>_upper`` with positives first; ``average``: expected values over random orders.
        cameras: (N,) camera of each row, `query_cameras` (Q,) of each query: items of the query's class and camera are
            junk, which has no rank (Zheng et al., Market-1501, ICCV 2015).
        ignore: bool (N,), items that are junk for every query.
        relevance: (Q, N) grades, perhaps a sparse matrix of SciPy, in place of what labels say: above 0 for relevant
            items, which is their gain in ``ndcg``, 0 for others, below 0 for junk.
        rerank: ``aqe:K:alpha`` expands queries, ``dba:K:alpha`` items, ``k_reciprocal:k1:k2:lambda`` re-ranks (see
            :mod:`retrieval_bench.evaluation.reranking`).

    Returns:
        Values per query, the curve, and ``metrics``, which alone are what :func:`evaluate` returns: fractions over the
        queries that have a positive (``recall_at_<K>``, ``mrr``, ``r_precision``, ``map_at_r``, ``precision_at_<K>``,
        ``map_at_<K>``, ``ndcg_at_<K>``, ``map``, ``map_trapezoid``); ``gap``; ``nmi``, ``ami``; figures of
        :func:`retrieval_bench.evaluation.embedding_stats.embedding_stats`;
        ``queries`` (how many have a positive) and ``queries_without_positive`` (left out).

    Raises:
        UserError: shapes that do not fit, NaN, infinite or zero rows (with their number), or no query with a positive.
    """
    ks, metrics = check_ks(as_tuple(ks)), as_tuple(metrics)
    for what, names, known in (
        ("metric", metrics, get_args(MetricName)),
        ("engine", [engine], get_args(Engine)),
        ("distance", [distance], get_args(Distance)),
        ("ties", [ties], get_args(TieRule)),
    ):
        for name in names:
            if name not in known:
                raise UserError(f"unknown {what} '{name}' (known: {', '.join(known)})")
    device, (expansions, reciprocal) = resolve_device(device), parse_rerank(as_tuple(rerank), distance)
    apart, unlabelled = query_embeddings is not None, relevance is not None and labels is None
    if apart != (query_labels is not None) and not unlabelled:
        raise UserError("query_embeddings and query_labels come together: one of them is missing")
    if (query_cameras is not None) != (cameras is not None and apart):
        raise UserError("cameras and query_cameras come together where queries are given, and only there")
    vectors = expand(expansions, embeddings, query_embeddings, same_item)
    queries, gallery, itself = prepare_sides(*vectors, distance)
    size, confidence = (len(queries), len(gallery)), np.full(len(queries), -np.inf)
    judged = {"cameras": cameras, "query_cameras": query_cameras, "ignore": ignore, "relevance": relevance}
    several = has_several(labels) or has_several(query_labels)
    if several or reciprocal or "gap" in metrics or any(given is not None for given in judged.values()):
        _check_graded(metrics, engine, ties)
        relevant, names = as_relevance(labels, query_labels, itself, size, judged)
        scores, margin = similarity_scores(queries, gallery), 2 * gallery.error(np.float64)
        if reciprocal:
            scores, margin = k_reciprocal_scores(queries, gallery, itself, *reciprocal)
        rankings = graded_rankings(scores, relevant, size, confidence, margin, ties == "bounds")
        parts, order, codes = ((*each, {}) for each in rankings), np.arange(size[0]), np.empty(0)
        chosen = chosen_metrics(metrics, ks)
    else:
        names, query_codes, codes = label_codes(labels, query_labels, size)
        task = _class_task(queries, query_codes, gallery, codes, itself)
        listed = max(*ks, 2 * int(task.counts.max())) if engine in ("ivf", "hnsw") else size[1]
        _check_ranks(metrics, engine, ties, listed, size[1])
        chosen = chosen_metrics(metrics, ks, f"_at_{listed}" if listed < size[1] - 1 else "")
        needs: list[Needs] = [METRICS[name].needs for name, _ in chosen.values()]
        if "curve" in metrics or ties == "average":
            needs.append("all")
        task = replace(task, depth=depths(needs, task.counts, max(ks)))
        parts, order = _class_rankings(task, engine, device, memory_gb * 1e9, listed, ties), task.query_order
    columns, curve, figures = collect(parts, chosen, names, ties, "curve" in metrics)
    in_order = order[columns["positives"][order] > 0]  # the sums of the committed records were added in this order
    if not len(in_order):
        raise UserError("no query has a relevant item in the gallery that is not junk")
    means = {name: float(columns[name][in_order].mean()) for name in columns if name not in QUERY_COLUMNS}
    figures = {**means, **figures, "queries": len(in_order), "queries_without_positive": size[0] - len(in_order)}
    if "gap" in metrics:
        figures["gap"] = global_average_precision(confidence, columns["first_rank"] == 1, len(in_order))
    if "clustering" in metrics:
        figures |= clustering_metrics(gallery, codes)
    if "health" in metrics:
        figures |= embedding_stats(gallery, codes)
    return Evaluation(figures, columns, curve)


def _metrics_of(function: Callable[Given, Evaluation]) -> Callable[Given, dict[str, float | int]]:
    @wraps(function)
    def metrics(*args: Given.args, **options: Given.kwargs) -> dict[str, float | int]:
        return function(*args, **options).metrics

    return metrics


evaluate = _metrics_of(evaluate_in_detail)
"""The metrics alone."""


def _check_ranks(metrics: tuple[str, ...], engine: str, ties: str, listed: int, size: int) -> None:
    """Refuses what lists of an approximate index, or random orders of ties, cannot give."""
    if ties == "average" and (lacking := sorted(set(metrics) & METRICS.keys() - EXPECTED.keys())):
        raise UserError(f"--ties average: there is no expected value of {lacking[0]}; give --ties bounds")
    if "curve" in metrics and (listed < size - 1 or ties == "average"):
        lacking = f"--engine {engine} lists {listed} items" if listed < size - 1 else "--ties average gives none"
        raise UserError(f"the curve needs the rank of every positive, and {lacking}; leave one of them out")
    if ties != "lower" and engine in ("ivf", "hnsw"):
        raise UserError(f"--ties {ties}: needs an exact engine, found --engine {engine}")


def _check_graded(metrics: tuple[str, ...], engine: str, ties: str) -> None:
    """Refuses what only one class per image and nothing else gives."""
    wrong = [f"--metrics {name}" for name in ("clustering", "health") if name in metrics]
    wrong += [f"--ties {ties}"] if ties == "average" else []
    wrong += [f"--engine {engine}"] if engine in ("ivf", "hnsw") else []
    if wrong:
        raise UserError(f"{wrong[0]}: needs a class per image, and no junk, grades, gap or k_reciprocal")


def _class_rankings(
    task: RetrievalTask, engine: str, device: str, memory: float, listed: int, ties: TieRule
) -> Iterator[Part]:
    for part in task.portions(POSITIVES):
        found, quality = _ranked(part, engine, device, memory, listed)
        best = found if ties == "lower" else _ranked(replace(part, flattering=True), engine, device, memory)[0]
        yield found, best, quality


def _ranked(
    part: RetrievalTask, engine: str, device: str, memory: float, depth: int = 0
) -> tuple[Ranking, dict[str, float]]:
    """Ranks of some queries' positives, and figures of the index that found them."""
    quality = {}
    if engine in ("ivf", "hnsw"):
        ranks, quality = rank_approximately(part, cast(Approximate, engine), depth)
    elif engine in ("reference", "flat"):
        ranks = ranking.to_ranks(part, ranking.count_negatives(part))
    else:
        ranks = ranking.to_ranks(part, fast_ranking.count_negatives(part, device, memory))
    asked = part.counts > 0
    return Ranking(part.query_order[asked], part.counts[asked], part.depth[asked], ranks), quality


def _class_task(
    queries: Vectors, query_codes: np.ndarray, gallery: Vectors, codes: np.ndarray, itself: np.ndarray
) -> RetrievalTask:
    """The task of queries that look for items of their class."""
    if (codes[itself[itself >= 0]] != query_codes[itself >= 0]).any():
        raise UserError("same_item: a query's own item has another label than the query")
    task = retrieval_task(queries, query_codes, gallery, codes, itself)
    if not (task.counts > 0).any():
        reason = "every class needs two images (or one in the gallery)"
        raise UserError(f"no query has an item of its class in the gallery: {reason}")
    return task
