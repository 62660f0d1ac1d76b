"""The evaluator as one function: anyone's embeddings and labels to metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal, ParamSpec, cast, get_args

import numpy as np
import pandas as pd

from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import fast_ranking, ranking
from retrieval_bench.evaluation.embedding_stats import clustering_metrics, embedding_stats
from retrieval_bench.evaluation.faiss_search import Approximate, rank_approximately
from retrieval_bench.evaluation.inputs import as_array, as_labels, as_rows, as_tuple
from retrieval_bench.evaluation.metrics import (
    CURVE,
    DEFAULT_METRICS,
    METRICS,
    MetricName,
    Needs,
    Ranking,
    check_ks,
    depths,
)
from retrieval_bench.evaluation.retrieval_task import RetrievalTask, retrieval_task
from retrieval_bench.evaluation.ties import EXPECTED, Ties
from retrieval_bench.evaluation.vectors import Distance, as_vectors

Given = ParamSpec("Given")
Engine = Literal["auto", "blocked", "reference", "flat", "ivf", "hnsw"]
"""``auto`` is blocked, ``flat`` is the name that the reference engine had before."""
TieRule = Literal["lower", "average", "bounds"]
UNLIMITED = ("mrr", "map")
"""Metrics that ranks beyond any list add to."""
POSITIVES = 1 << 23
"""Ranks of positives that are kept at once."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of an evaluation, as :func:`evaluate` returns them, and their values per query."""

    metrics: dict[str, float | int]
    columns: dict[str, np.ndarray]
    """Per query, in the order given: ``query`` (row), ``label``, ``positives`` (0 for one that is left out),
    ``first_rank`` (of the best positive; 0 for none) and each metric's value (NaN for one that is left out)."""
    curve: np.ndarray | None = None
    """float64 (101, 2): recall and precision, if it was asked for."""

    def per_query(self) -> pd.DataFrame:
        return pd.DataFrame(self.columns)

    def per_class(self) -> pd.DataFrame:
        """A row per class: how many of its queries have a positive, and the means of their metrics."""
        kept = self.columns["positives"] > 0
        names, codes = np.unique(self.columns["label"][kept], return_inverse=True)
        queries = np.bincount(codes)
        means = {
            name: np.bincount(codes, weights=values[kept]) / queries
            for name, values in self.columns.items()
            if name not in ("query", "label", "first_rank")
        }
        return pd.DataFrame({"label": names, "queries": queries, **means})

    def curve_frame(self) -> pd.DataFrame:
        return pd.DataFrame(self.curve, columns=["recall", "precision"])


def evaluate_in_detail(
    embeddings: np.ndarray,
    labels: np.ndarray,
    query_embeddings: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
    *,
    same_item: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    metrics: tuple[MetricName, ...] = DEFAULT_METRICS,
    distance: Distance = "cosine",
    engine: Engine = "auto",
    device: str = "auto",
    memory_gb: float = 1.0,
    ties: TieRule = "lower",
) -> Evaluation:
    """Retrieval metrics of embeddings: each row searched among all the others, or queries in a gallery.

    Args:
        embeddings: (N, D) of any number type, not necessarily normalised, possibly memory-mapped; the gallery, and
            without queries also the queries.
        labels: (N,) class of each row, numbers or strings; `query_labels` (Q,) those of `query_embeddings` (Q, D).
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

    Returns:
        Values per query, the curve, and ``metrics``, which alone are what :func:`evaluate` returns: fractions over the
        queries that have a positive (``recall_at_<K>``, ``mrr``, ``r_precision``, ``map_at_r``, ``precision_at_<K>``,
        ``map``); ``nmi``, ``ami``; figures of :func:`retrieval_bench.evaluation.embedding_stats.embedding_stats`;
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
    device = resolve_device(device)
    task, query_names, gallery_codes = _prepare(embeddings, labels, query_embeddings, query_labels, same_item, distance)
    listed = max(*ks, 2 * int(task.counts.max())) if engine in ("ivf", "hnsw") else len(task.gallery)
    _check_ranks(metrics, engine, ties, listed, len(task.gallery))
    cut = f"_at_{listed}" if listed < len(task.gallery) - 1 else ""
    plain = [name for name, metric in METRICS.items() if not metric.per_k and name in metrics]
    chosen = {f"{name}_at_{k}": (name, k) for k in ks for name in ("recall", "precision") if name in metrics}
    chosen |= {name + (cut if name in UNLIMITED else ""): (name, 0) for name in plain}
    curve = CURVE if "curve" in metrics else None
    needs: list[Needs] = [METRICS[name].needs for name, _ in chosen.values()]
    if curve or ties == "average":
        needs.append("all")
    task = replace(task, depth=depths(needs, task.counts, max(ks)))
    count = len(query_names)
    columns = {"query": np.arange(count), "label": query_names}
    columns |= {name: np.zeros(count, dtype=np.int64) for name in ("positives", "first_rank")}
    reported = [f"{name}{end}" for name in chosen for end in (("", "_upper") if ties == "bounds" else ("",))]
    columns |= {name: np.full(count, np.nan) for name in reported}
    curves, qualities, weights = [], [], []
    for part in task.portions(POSITIVES):
        found, quality = _ranked(part, engine, device, memory_gb * 1e9, listed)
        best = found if ties == "lower" else _ranked(replace(part, flattering=True), engine, device, memory_gb * 1e9)[0]
        levels = Ties(found, best) if ties == "average" else None
        columns["positives"][found.query], columns["first_rank"][found.query] = found.counts, found.ranks[found.starts]
        for name, (metric, k) in chosen.items():
            columns[name][found.query] = EXPECTED[metric](levels, k) if levels else METRICS[metric](found, k)
            if ties == "bounds":
                columns[f"{name}_upper"][found.query] = METRICS[metric](best, k)
        curves += [curve(found)] if curve else []
        qualities.append(quality)
        weights.append(len(found.query))
    in_order = task.query_order[task.counts > 0]  # the sums of the committed records were added in this order
    figures: dict[str, float | int] = {name: float(columns[name][in_order].mean()) for name in reported}
    figures |= {name: float(np.average([part[name] for part in qualities], weights=weights)) for name in qualities[0]}
    figures |= {"queries": len(in_order), "queries_without_positive": count - len(in_order)}
    if "clustering" in metrics:
        figures |= clustering_metrics(task.gallery, gallery_codes)
    if "health" in metrics:
        figures |= embedding_stats(task.gallery, gallery_codes)
    return Evaluation(figures, columns, np.average(curves, axis=0, weights=weights) if curve else None)


def _metrics_of(function: Callable[Given, Evaluation]) -> Callable[Given, dict[str, float | int]]:
    @wraps(function)
    def metrics(*args: Given.args, **options: Given.kwargs) -> dict[str, float | int]:
        return function(*args, **options).metrics

    return metrics


evaluate = _metrics_of(evaluate_in_detail)
"""The metrics alone."""


def _check_ranks(metrics: tuple[str, ...], engine: str, ties: str, listed: int, size: int) -> None:
    """Refuses what lists of an approximate index, or random orders of ties, cannot give."""
    if "curve" in metrics and (listed < size - 1 or ties == "average"):
        lacking = f"--engine {engine} lists {listed} items" if listed < size - 1 else "--ties average gives none"
        raise UserError(f"the curve needs the rank of every positive, and {lacking}; leave one of them out")
    if ties != "lower" and engine in ("ivf", "hnsw"):
        raise UserError(f"--ties {ties}: needs an exact engine, found --engine {engine}")


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


def _prepare(
    embeddings: np.ndarray,
    labels: np.ndarray,
    query_embeddings: np.ndarray | None,
    query_labels: np.ndarray | None,
    same_item: np.ndarray | None,
    distance: Distance,
) -> tuple[RetrievalTask, np.ndarray, np.ndarray]:
    """The checked task, the label of each query, and the class of each row of the gallery as a number."""
    embeddings = as_rows(embeddings, "embeddings")
    if (query_embeddings is None) != (query_labels is None):
        raise UserError("query_embeddings and query_labels come together: one of them is missing")
    if query_embeddings is None or query_labels is None:
        if same_item is not None:
            raise UserError("same_item: without query_embeddings every row is its own query, and is left out by itself")
        (gallery,) = (queries,) = as_vectors({"embeddings": embeddings}, distance)
        names = asked = as_labels(labels, "labels", len(gallery))
        rows = np.arange(len(gallery))
    else:
        given = {"query_embeddings": as_rows(query_embeddings, "query_embeddings"), "embeddings": embeddings}
        queries, gallery = as_vectors(given, distance)
        names = as_labels(labels, "labels", len(gallery))
        asked = as_labels(query_labels, "query_labels", len(queries))
        rows = np.full(len(queries), -1) if same_item is None else as_array(same_item, "same_item")
        inside = rows.shape == (len(queries),) and rows.dtype.kind in "iu"
        if not inside or (len(rows) and not -1 <= rows.min() <= rows.max() < len(gallery)):
            wanted = f"expected {len(queries)} row numbers of embeddings (-1 to {len(gallery) - 1})"
            raise UserError(f"same_item: {wanted}, found {rows.dtype} {rows.shape}")
        rows = rows.astype(np.int64)
    forms = {{"U": "text", "b": "truth values"}.get(side.dtype.kind, "numbers") for side in (names, asked)}
    if len(forms) > 1:
        one, other = sorted(forms, reverse=True)
        raise UserError(f"labels and query_labels: one is {one} and the other {other}; give both in the same form")
    become_floats = names.dtype != asked.dtype and np.result_type(names, asked).kind == "f"
    if become_floats and max(np.abs(side.astype(np.float64)).max(initial=0.0) for side in (names, asked)) >= 2.0**53:
        kinds = f"{names.dtype} and {asked.dtype} numbers above 2^53"
        raise UserError(f"labels and query_labels: {kinds}; give both in the same type")
    codes = np.unique(np.concatenate([names, asked]), return_inverse=True)[1]
    gallery_codes, query_codes = codes[: len(names)], codes[len(names) :]
    if (gallery_codes[rows[rows >= 0]] != query_codes[rows >= 0]).any():
        raise UserError("same_item: a query's own item has another label than the query")
    task = retrieval_task(queries, query_codes, gallery, gallery_codes, rows)
    if not (task.counts > 0).any():
        reason = "every class needs two images (or one in the gallery)"
        raise UserError(f"no query has an item of its class in the gallery: {reason}")
    return task, asked, gallery_codes
