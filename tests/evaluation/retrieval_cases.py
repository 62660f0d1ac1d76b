"""Searches that hypothesis makes up, and what the evaluator must say of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import blocked
from retrieval_bench.evaluation import evaluate as evaluation
from retrieval_bench.evaluation.choices import Metric
from retrieval_bench.evaluation.evaluate import Evaluation, evaluate_in_detail
from retrieval_bench.evaluation.vectors import Distance
from tests.oracles import retrieval

EVERY: tuple[Metric, ...] = ("recall", "mrr", "r_precision", "map_at_r", "precision", "map", "curve")
TOP: tuple[Metric, ...] = ("recall", "mrr", "r_precision", "map_at_r")
FIRST: tuple[Metric, ...] = ("recall", "mrr")


@dataclass(frozen=True)
class Case:
    """A search; without queries each row of the gallery is searched among the others."""

    gallery: np.ndarray
    labels: np.ndarray
    queries: np.ndarray | None = None
    query_labels: np.ndarray | None = None
    itself: np.ndarray | None = None
    distance: Distance = "cosine"

    @property
    def asked(self) -> np.ndarray:
        """The label of each query."""
        return self.labels if self.query_labels is None else self.query_labels

    def evaluated(self, **options: Any) -> Evaluation:
        given = (self.gallery, self.labels, self.queries, self.query_labels, self.itself)
        return evaluate_in_detail(*given, distance=self.distance, **options)

    def relevance(self) -> list[list[bool]]:
        more: dict[str, Any] = {}
        if self.queries is not None:
            itself = None if self.itself is None else self.itself.tolist()
            more = {"queries": self.queries, "query_labels": self.asked.tolist(), "itself": itself}
        return retrieval.relevance(self.gallery, self.labels.tolist(), distance=self.distance, **more)

    def check(self, ks: tuple[int, ...], metrics: tuple[Metric, ...], **options: Any) -> None:
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
        assert {name.partition("_at_")[0] if name != "map_at_r" else name for name in names} == {
            "positives",
            "first_rank",
        } | set(metrics) - {"curve"}
        for name in names:
            values = np.array([query[name] for query in expected])
            np.testing.assert_allclose(found.columns[name][kept], values, atol=1e-12, err_msg=name)
            if name not in ("positives", "first_rank"):
                assert found.metrics[name] == pytest.approx(values.mean(), abs=1e-12)
        assert (found.metrics["queries"], found.metrics["queries_without_positive"]) == (
            sum(kept),
            len(kept) - sum(kept),
        )
        if "curve" in metrics:
            curve = np.mean([retrieval.interpolated(flags) for flags in ranked if any(flags)], axis=0)
            assert found.curve is not None
            np.testing.assert_allclose(found.curve, np.stack([np.linspace(0, 1, 101), curve], axis=1), atol=1e-12)


@contextmanager
def pieces(block: int, positives: int = 1 << 26) -> Iterator[None]:
    """Blocks of `block` rows (small ones in stretches of two), portions of about `positives` positives."""
    with ExitStack() as stack:
        stack.enter_context(patch.dict(blocked.BLOCK, cpu=block))
        stack.enter_context(patch.object(blocked, "PIECE", 4 * block))
        stack.enter_context(patch.object(blocked, "STRETCH", min(2, block) if block < 10 else blocked.STRETCH))
        stack.enter_context(patch.object(evaluation, "POSITIVES", positives))
        yield


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


FORMS = (np.int64, np.int8, np.float16, np.float32, np.float64, 1e200, 1e-200)


def formed(vectors: np.ndarray, form: Any) -> np.ndarray:
    """The same directions as another type, or far larger or smaller."""
    if isinstance(form, float):
        return vectors * form
    return vectors if vectors.dtype.kind == "f" and np.dtype(form).kind == "i" else vectors.astype(form)


@st.composite
def cases(draw: st.DrawFn, distance: Distance | None = None, most: int = 16) -> Case:
    """A self-retrieval, a search in a separate gallery, or one where some queries are in the gallery."""
    distance = distance or draw(st.sampled_from(["cosine", "l2"]))
    rows, size = draw(st.integers(2, most)), draw(st.integers(1, 4))
    kind = draw(st.sampled_from(["integers", "integers", "floats", "equal"]))
    if kind == "floats":
        vectors = draw(floats(rows, size, 30 if distance == "cosine" else 1)).astype(
            draw(st.sampled_from([np.float64, np.float32]))
        )
    else:
        vectors = formed(draw(integers(rows, size)), draw(st.sampled_from(FORMS)))
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
    place = np.full(rows, -1)
    place[gallery] = np.arange(len(gallery))
    itself = None if mode == "apart" else place[query]  # apart: those in both roles find their copy
    return replace(
        whole,
        gallery=vectors[gallery],
        labels=labels[gallery],
        queries=vectors[query],
        query_labels=labels[query],
        itself=itself,
    )
