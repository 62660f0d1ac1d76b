"""The evaluator as one function: anyone's embeddings and labels to metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import metrics as measures
from retrieval_bench.evaluation.blocked import Goal, count_blocked
from retrieval_bench.evaluation.choices import DEFAULT_METRICS, Engine, Metric, check_ks
from retrieval_bench.evaluation.clustering import clustering_metrics
from retrieval_bench.evaluation.health import health
from retrieval_bench.evaluation.labels import as_labels, as_rows, check_alike
from retrieval_bench.evaluation.listed import count_flat, rank_approximately
from retrieval_bench.evaluation.matching import Matching, match, portions
from retrieval_bench.evaluation.metrics import Ranking
from retrieval_bench.evaluation.vectors import Distance, as_pair, as_vectors

if TYPE_CHECKING:
    import pandas as pd

POSITIVES = 1 << 26
"""Similarities of positives that are kept at once (half a gigabyte)."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: figures by name, as :func:`evaluate` returns them.
        columns: per query, in the order given: ``query`` (row), ``label``, ``positives`` (0 for a query that is left out), ``first_rank``
            (of the best positive; 0 for none) and each metric's value (NaN for a query that is left out).
        curve: float64 (101, 2), recall and precision, if it was asked for.
    """

    metrics: dict[str, Any]
    columns: dict[str, np.ndarray]
    curve: np.ndarray | None = None

    def per_query(self) -> pd.DataFrame:
        """A row per query."""
        import pandas as pd

        return pd.DataFrame(self.columns)

    def per_class(self) -> pd.DataFrame:
        """A row per class that has such queries: how many of its queries have a positive, and the means of their metrics."""
        import pandas as pd

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
        """The precision-recall curve, a row per recall."""
        import pandas as pd

        return pd.DataFrame(self.curve, columns=["recall", "precision"])


def evaluate(embeddings: np.ndarray, labels: np.ndarray, *given: Any, **options: Any) -> dict[str, Any]:
    """The metrics of :func:`evaluate_in_detail`, which see."""
    return evaluate_in_detail(embeddings, labels, *given, **options).metrics


def evaluate_in_detail(
    embeddings: np.ndarray,
    labels: np.ndarray,
    query_embeddings: np.ndarray | None = None,
    query_labels: np.ndarray | None = None,
    same_item: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
    metrics: tuple[Metric, ...] = DEFAULT_METRICS,
    distance: Distance = "cosine",
    engine: Engine = "auto",
    device: str = "auto",
    memory_gb: float = 1.0,
) -> Evaluation:
    """Retrieval metrics of embeddings: each row searched among all the others, or queries in a gallery.

    Args:
        embeddings: (N, D) of any number type, not necessarily normalised, possibly memory-mapped; the gallery, and without queries also the
            queries.
        labels: (N,) class of each row, numbers or strings.
        query_embeddings: (Q, D), searched in the gallery; None searches each row among all the others.
        query_labels: (Q,).
        same_item: int (Q,), the row of `embeddings` that is the query itself and so not its neighbour, -1 for none; None if no query is
            in the gallery. Not given without queries.
        ks: the K of Recall@K and precision@K; a K beyond the gallery counts every query that has a positive.
        metrics: what is computed. ``precision``, ``map`` and ``curve`` need the rank of every positive and take longer; ``clustering`` runs
            k-means on the gallery.
        distance: ``cosine`` similarity, or Euclidean ``l2``.
        engine: ``blocked`` is exact and the fastest (``auto`` takes it); ``flat`` is FAISS's exact search, decided alike; ``ivf`` and
            ``hnsw`` are approximate: their figures come with ``index_recall_at_10``.
        device: ``cpu``, ``cuda`` or ``auto``, for the blocked engine.
        memory_gb: 10^9 bytes that float32 copies of the embeddings may take; beyond it they are converted piece by piece.

    Returns:
        Fractions over the queries that have a positive: ``recall_at_<K>``, ``mrr``, ``r_precision``, ``map_at_r``, ``precision_at_<K>``,
        ``map``; ``nmi``, ``ami``; figures of :func:`retrieval_bench.evaluation.health.health`; ``queries`` (how many have a positive) and
        ``queries_without_positive`` (left out).

    Raises:
        UserError: shapes that do not fit, NaN, infinite or zero rows (with their number), or no query with a positive.
    """
    check_ks(ks)
    _check_names(metrics, engine, distance)
    if (query_embeddings is None) != (query_labels is None):
        raise UserError("query_embeddings and query_labels come together: one of them is missing")
    embeddings = np.asanyarray(embeddings)
    if query_embeddings is None or query_labels is None:
        if same_item is not None:
            raise UserError("same_item: without query_embeddings every row is its own query, and is left out by itself")
        gallery = queries = as_vectors(embeddings, distance)
        names = asked = as_labels(labels, len(gallery), "labels")
        itself = np.arange(len(gallery))
    else:
        queries, gallery = as_pair(np.asanyarray(query_embeddings), embeddings, distance)
        names, asked = as_labels(labels, len(gallery), "labels"), as_labels(query_labels, len(queries), "query_labels")
        itself = np.full(len(queries), -1) if same_item is None else as_rows(same_item, len(queries), len(gallery))
    check_alike(names, asked)
    codes = np.unique(np.concatenate([names, asked]), return_inverse=True)[1]
    matching = match(queries, codes[len(names) :], gallery, codes[: len(names)], itself)
    if not (matching.counts > 0).any():
        raise UserError(
            "no query has an item of its class in the gallery: every class needs two images (or one in the gallery)"
        )
    if ((own := matching.itself) >= 0).any() and (
        matching.gallery_classes[own[own >= 0]] != matching.classes[own >= 0]
    ).any():
        raise UserError("same_item: a query's own item has another label than the query")
    depth = max(*ks, 2 * int(matching.counts.max()))
    search = Search(ks, metrics, engine, resolve_device(device), memory_gb, depth)
    found = [search.run(part) for part in portions(matching, POSITIVES)]
    evaluation = _summary(found, asked, ks)
    if "clustering" in metrics:
        evaluation.metrics.update(clustering_metrics(gallery, codes[: len(names)]))
    if "health" in metrics:
        evaluation.metrics.update(health(gallery, codes[: len(names)]))
    return evaluation


@dataclass(frozen=True)
class Search:
    """How a search is carried out and what is made of it."""

    ks: tuple[int, ...]
    metrics: tuple[Metric, ...]
    engine: Engine
    device: str
    memory_gb: float
    depth: int

    @property
    def goal(self) -> Goal:
        """Which ranks the metrics need."""
        if {"precision", "map", "curve"} & set(self.metrics):
            return "all"
        return "top" if {"r_precision", "map_at_r"} & set(self.metrics) else "first"

    def run(self, matching: Matching) -> tuple[Ranking, dict[str, np.ndarray], dict[str, float], np.ndarray | None]:
        """The ranking of some queries, the values of each metric, what the engine says of itself, and the curve."""
        ranks, said = self._ranks(matching)
        kept = matching.counts > 0
        ranking = Ranking(matching.query_order[kept], matching.counts[kept], ranks)
        values = {name: function(ranking) for name, function in self.functions.items()}
        curve = measures.precision_recall_curve(ranking) if "curve" in self.metrics else None
        return ranking, values, said, curve

    def _ranks(self, matching: Matching) -> tuple[np.ndarray, dict[str, float]]:
        if self.engine in ("ivf", "hnsw"):
            return rank_approximately(matching, self.engine, self.depth)  # pyright: ignore[reportArgumentType]
        if self.engine == "flat" and self.goal != "all":
            ahead = count_flat(matching, self.goal, max(self.ks))
        else:
            ahead = count_blocked(matching, self.goal, self.device, self.memory_gb * 1e9)
        return ahead + np.arange(len(ahead)) - np.repeat(matching.starts[:-1], matching.counts) + 1, {}

    @cached_property
    def functions(self) -> dict[str, Callable[[Ranking], np.ndarray]]:
        """The metrics that are asked for, each from a ranking to values per query."""
        chosen: dict[str, Callable[[Ranking], np.ndarray]] = {}
        for k in self.ks:
            if "recall" in self.metrics:
                chosen[f"recall_at_{k}"] = lambda ranking, k=k: measures.recall_at_k(ranking, k)
            if "precision" in self.metrics:
                chosen[f"precision_at_{k}"] = lambda ranking, k=k: measures.precision_at_k(ranking, k)
        plain = {
            "mrr": measures.reciprocal_rank,
            "r_precision": measures.r_precision,
            "map_at_r": measures.map_at_r,
            "map": measures.average_precision,
        }
        return chosen | {name: function for name, function in plain.items() if name in self.metrics}


def _summary(found: list[Any], asked: np.ndarray, ks: tuple[int, ...]) -> Evaluation:
    """Joins the portions of a search."""
    query = np.concatenate([ranking.query for ranking, *_ in found])
    columns: dict[str, np.ndarray] = {"query": np.arange(len(asked)), "label": asked}
    for name in ("positives", "first_rank"):
        columns[name] = np.zeros(len(asked), dtype=np.int64)
    columns["positives"][query] = np.concatenate([ranking.counts for ranking, *_ in found])
    columns["first_rank"][query] = np.concatenate([ranking.ranks[ranking.starts] for ranking, *_ in found])
    figures: dict[str, Any] = {}
    for name in found[0][1]:
        values = np.concatenate([portion[1][name] for portion in found])
        columns[name] = np.full(len(asked), np.nan)
        columns[name][query] = values
        figures[name] = float(values.mean())
    weights = [len(portion[0].query) for portion in found]
    for name in found[0][2]:
        figures[name] = float(np.average([portion[2][name] for portion in found], weights=weights))
    curve = None if found[0][3] is None else np.average([portion[3] for portion in found], axis=0, weights=weights)
    return Evaluation(
        {**figures, "queries": len(query), "queries_without_positive": len(asked) - len(query)}, columns, curve
    )


def _check_names(metrics: tuple[str, ...], engine: str, distance: str) -> None:
    for what, given, known in (
        *(("metric", name, get_args(Metric)) for name in metrics),
        ("engine", engine, get_args(Engine)),
        ("distance", distance, get_args(Distance)),
    ):
        if given not in known:
            raise UserError(f"unknown {what} '{given}' (known: {', '.join(known)})")
