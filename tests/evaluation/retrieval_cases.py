"""Searches that hypothesis makes up, and what the evaluator must report for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import between, fast_ranking, retrieval_task, row_ranking, vectors
from retrieval_bench.evaluation import evaluate as evaluation
from retrieval_bench.evaluation.evaluate import Evaluation, evaluate_in_detail
from retrieval_bench.evaluation.metrics import MetricName
from retrieval_bench.evaluation.vectors import Distance
from tests.oracles import retrieval

EXPECTED: tuple[MetricName, ...] = ("recall", "mrr", "r_precision", "map_at_r", "precision", "map_at_k", "ndcg", "map")
EVERY: tuple[MetricName, ...] = (*EXPECTED, "map_trapezoid", "curve")
TOP: tuple[MetricName, ...] = ("recall", "mrr", "r_precision", "map_at_r")
FIRST: tuple[MetricName, ...] = ("recall", "mrr")


@dataclass(frozen=True)
class Case:
    """A search; without queries each row of the gallery is searched among the others."""

    gallery: np.ndarray
    labels: np.ndarray
    queries: np.ndarray | None = None
    query_labels: np.ndarray | None = None
    same_item: np.ndarray | None = None
    distance: Distance = "cosine"

    def evaluated(self, **options: Any) -> Evaluation:
        given = (self.gallery, self.labels, self.queries, self.query_labels)
        return evaluate_in_detail(*given, same_item=self.same_item, distance=self.distance, **options)

    def relevance(self) -> list[list[bool]]:
        more: dict[str, Any] = {}
        if self.queries is not None and self.query_labels is not None:
            itself = None if self.same_item is None else self.same_item.tolist()
            more = {"queries": self.queries, "query_labels": self.query_labels.tolist(), "itself": itself}
        return retrieval.relevance(self.gallery, self.labels.tolist(), distance=self.distance, **more)

    def check(self, ks: tuple[int, ...], metrics: tuple[MetricName, ...], **options: Any) -> None:
        """The evaluator gives the oracle's values for every query, their means and the curve."""
        ranked = self.relevance()
        kept = [any(flags) for flags in ranked]
        if not any(kept):
            with pytest.raises(UserError, match="no query has an item of its class"):
                self.evaluated(ks=ks, metrics=metrics, **options)
            return
        found = self.evaluated(ks=ks, metrics=metrics, **options)
        expected = [retrieval.metrics(flags, ks) for flags in ranked if any(flags)]
        names = found.columns.keys() - {"query", "label"}
        kinds = {re.sub(r"_at_[0-9]+$", "_at_k" if name.startswith("map") else "", name) for name in names}
        assert kinds == {"positives", "first_rank"} | set(metrics) - {"curve"}
        for name in names:
            values = np.array([query[name] for query in expected])
            np.testing.assert_allclose(found.columns[name][kept], values, atol=1e-12, err_msg=name)
            left_out = found.columns[name][~np.array(kept)]
            assert (left_out == 0).all() if name in ("positives", "first_rank") else np.isnan(left_out).all()
            if name not in ("positives", "first_rank"):
                assert found.metrics[name] == pytest.approx(values.mean(), abs=1e-12)
        assert found.metrics["queries"] == sum(kept)
        assert found.metrics["queries_without_positive"] == len(kept) - sum(kept)
        if "curve" in metrics:
            curve = np.mean([retrieval.interpolated(flags) for flags in ranked if any(flags)], axis=0)
            assert found.curve is not None
            np.testing.assert_allclose(found.curve, np.stack([np.linspace(0, 1, 101), curve], axis=1), atol=1e-12)


@contextmanager
def chunked(
    block: int,
    positives: int = 1 << 26,
    chunk: int | None = None,
    swept: bool = True,
    pairs: float = 1.0,
    large: int = 1 << 20,
    copies: int = 1 << 20,
) -> Iterator[None]:
    """Blocks of `block` rows (small ones in stretches of 2), portions of `positives`, chunks of `chunk` numbers; large
    classes are those of more than `large` items; queries are ranked by themselves where more than `pairs` of the
    gallery would be looked at, or as usual unless `swept`, and those of one row together from `copies` on."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(fast_ranking.BLOCK, cpu=block))
        stack.enter_context(patch.object(vectors, "CHUNK", chunk or 4 * block))
        stack.enter_context(patch.object(between, "PAIRS", 50))
        stretch = min(2, block) if block < 10 else fast_ranking.STRETCH
        stack.enter_context(patch.object(fast_ranking, "STRETCH", stretch))
        stack.enter_context(patch.object(evaluation, "POSITIVES", positives))
        stack.enter_context(patch.object(retrieval_task, "LARGE", large))
        stack.enter_context(patch.object(row_ranking, "COPIES", copies))
        if swept:
            stack.enter_context(patch.dict(fast_ranking.SHARE, positives=1.0, pairs=pairs, queries=1.0))
        yield


def same(first: Evaluation, second: Evaluation) -> bool:
    """Equal to the last bit for every query; means up to the order of their sum."""
    curves = [np.empty(0) if one.curve is None else one.curve for one in (first, second)]
    pairs = [(values, second.columns[name], name != "label") for name, values in first.columns.items()]
    alike = np.allclose(*curves, atol=1e-12) and first.metrics == pytest.approx(second.metrics, abs=1e-12)
    return alike and all(np.array_equal(one, other, equal_nan=numbers) for one, other, numbers in pairs)


def clusters(
    rows: int = 300, classes: int = 30, seed: int = 0, dim: int = 6, copies: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes; with `copies` a tenth of the rows are those of other classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    vectors = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(rows, dim))
    if copies:
        vectors[: rows // 10] = vectors[rows // 10 : 2 * (rows // 10)]
    return vectors, labels


def integers(rows: int, size: int) -> st.SearchStrategy[np.ndarray]:
    """Few distinct vectors: duplicates, opposite and collinear ones, ties."""
    vector = st.lists(st.integers(-2, 2), min_size=size, max_size=size).filter(any)
    return st.lists(vector, min_size=rows, max_size=rows).map(lambda drawn: np.array(drawn, dtype=np.int64))


def floats(rows: int, size: int, spread: float) -> st.SearchStrategy[np.ndarray]:
    """Normal vectors without ties, whose norms differ by up to 10^(2 spread)."""

    def draw(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.normal(size=(rows, size)) * 10 ** rng.uniform(-spread, spread, (rows, 1))

    return st.integers(0, 2**32 - 1).map(draw)


@st.composite
def cases(draw: st.DrawFn, most: int = 16) -> Case:
    """A self-retrieval, a search in a separate gallery, or one where some queries are in the gallery."""
    distance: Distance = draw(st.sampled_from(["cosine", "l2"]))
    rows, size = draw(st.integers(2, most)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["integers", "integers", "floats", "equal"]))
    if kind == "floats":
        spread = 30 if distance == "cosine" else 1
        vectors = draw(floats(rows, size, spread)).astype(draw(st.sampled_from([np.float64, np.float32])))
    else:
        form = draw(st.sampled_from([np.int64, np.int8, np.float16, np.float32, np.float64, ">f4"]))
        vectors = draw(integers(rows, size)).astype(form)
    if kind == "equal":
        vectors = vectors[np.zeros(rows, dtype=int)]
    classes = draw(st.sampled_from([0, 1, 4, 30]))  # one class only, two, a few, mostly alone
    labels = np.array(draw(st.lists(st.integers(0, classes), min_size=rows, max_size=rows)))
    whole = Case(vectors, labels, distance=distance)
    mode = draw(st.sampled_from(["self", "apart", "some in the gallery"]))
    if mode == "self":
        return whole
    roles = np.array(draw(st.lists(st.sampled_from(["query", "gallery", "both"]), min_size=rows, max_size=rows)))
    query, gallery = (
        np.array(draw(st.permutations(np.flatnonzero(roles != other).tolist())), int) for other in ("gallery", "query")
    )
    row = np.full(rows, -1)
    row[gallery] = np.arange(len(gallery))
    same_item = None if mode == "apart" else row[query]  # apart: those in both roles find their copy
    whole = replace(whole, gallery=vectors[gallery], labels=labels[gallery])
    return replace(whole, queries=vectors[query], query_labels=labels[query], same_item=same_item)
