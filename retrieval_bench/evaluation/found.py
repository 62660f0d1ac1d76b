"""What an evaluation finds: values per query, gathered from rankings of some queries after others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from retrieval_bench.evaluation.metrics import CURVE, METRICS, Ranking
from retrieval_bench.evaluation.ties import EXPECTED, Ties

TieRule = Literal["lower", "average", "bounds"]
UNLIMITED = ("mrr", "map", "map_trapezoid")
"""Metrics that ranks beyond any list add to."""
QUERY_COLUMNS = ("query", "label", "positives", "first_rank")
Part = tuple[Ranking, Ranking, dict[str, float]]
"""Rankings of some queries (with negatives first among equals; with positives first), and figures of their index."""


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


def chosen_metrics(metrics: tuple[str, ...], ks: tuple[int, ...], cut: str = "") -> dict[str, tuple[str, int]]:
    """Metrics with a value per query, and their K, by the names that they are reported by."""
    per_k = [name for name, metric in METRICS.items() if metric.per_k and name in metrics]
    plain = [name for name, metric in METRICS.items() if not metric.per_k and name in metrics]
    chosen = {f"{name.removesuffix('_at_k')}_at_{k}": (name, k) for k in ks for name in per_k}
    return chosen | {name + (cut if name in UNLIMITED else ""): (name, 0) for name in plain}


def collect(
    parts: Iterable[Part], chosen: dict[str, tuple[str, int]], names: np.ndarray, ties: TieRule, with_curve: bool
) -> tuple[dict[str, np.ndarray], np.ndarray | None, dict[str, float]]:
    """Values per query, the curve and figures of the index, from rankings of some queries after others."""
    count = len(names)
    columns = {"query": np.arange(count), "label": names}
    columns |= {name: np.zeros(count, dtype=np.int64) for name in ("positives", "first_rank")}
    ends = ("", "_upper") if ties == "bounds" else ("",)
    columns |= {f"{name}{end}": np.full(count, np.nan) for name in chosen for end in ends}
    curves, qualities, weights = [], [], []
    for found, best, quality in parts:
        levels = Ties(found, best) if ties == "average" else None
        columns["positives"][found.query], columns["first_rank"][found.query] = found.counts, found.ranks[found.starts]
        for name, (metric, k) in chosen.items():
            columns[name][found.query] = EXPECTED[metric](levels, k) if levels else METRICS[metric](found, k)
            if ties == "bounds":
                columns[f"{name}_upper"][found.query] = METRICS[metric](best, k)
        curves += [CURVE(found)] if with_curve else []
        qualities.append(quality)
        weights.append(len(found.query))
    kinds = qualities[0] if qualities else ()
    figures = {name: float(np.average([part[name] for part in qualities], weights=weights)) for name in kinds}
    return columns, np.average(curves, axis=0, weights=weights) if sum(weights) and with_curve else None, figures
