"""Anyone's embeddings: what is accepted, the figures and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from retrieval_bench.config import RunConfig
from retrieval_bench.data.splits import Split
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.choices import DEFAULT_METRICS, Engine
from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.files import read_set
from retrieval_bench.measure import measure
from retrieval_bench.sections import EvalConfig
from tests.evaluation.retrieval_cases import EVERY, Case, cases
from tests.oracles import retrieval

VECTORS = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
LABELS = np.array([0, 0, 1, 1])


def drawn(rows: int = 40, classes: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, rows)
    labels[7] = 99  # alone
    return rng.normal(size=(rows, 3)), labels


def test_an_npz_file_is_evaluated(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=LABELS)
    assert evaluate(**read_set(tmp_path / "e.npz"), ks=(1,))["recall_at_1"] == 1.0


def test_a_file_with_queries_apart_from_the_gallery_is_evaluated(tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", embeddings=VECTORS, labels=LABELS, query_embeddings=VECTORS[:1], query_labels=[1])
    found = evaluate(**read_set(tmp_path / "e.npz"), ks=(1, 3))
    assert (found["recall_at_1"], found["recall_at_3"], found["queries"]) == (0.0, 1.0, 1)


@pytest.mark.parametrize(
    "labels",
    [
        np.array(list("aabb")),
        np.array([b"a", b"a", b"b", b"b"]),
        LABELS.astype(float),
        LABELS.astype(bool),
        LABELS.astype(np.uint8),
        list("äaäa"),
    ],
)
def test_labels_may_be_text_or_numbers(labels: Any) -> None:
    assert evaluate(VECTORS, labels, ks=(1,))["queries"] == 4


def test_lists_and_tensors_do_as_well() -> None:
    expected = evaluate(VECTORS, LABELS)
    assert evaluate(cast(Any, VECTORS.tolist()), cast(Any, LABELS.tolist())) == expected
    assert evaluate(cast(Any, torch.tensor(VECTORS)), cast(Any, torch.tensor(LABELS))) == expected


def test_whole_and_floating_labels_match() -> None:
    assert evaluate(VECTORS, LABELS, VECTORS, LABELS.astype(float), ks=(1,))["queries"] == 4


def test_query_without_match_in_the_gallery_is_left_out() -> None:
    found = evaluate(VECTORS, LABELS, VECTORS, np.array([0, 0, 1, 5]), ks=(1,))
    assert (found["queries"], found["queries_without_positive"]) == (3, 1)


def test_by_default_what_a_record_holds() -> None:
    assert list(evaluate(VECTORS, LABELS, ks=(1, 2))) == [
        *("recall_at_1", "recall_at_2", "mrr", "r_precision", "map_at_r", "queries", "queries_without_positive")
    ]
    assert DEFAULT_METRICS == ("recall", "mrr", "r_precision", "map_at_r")


@pytest.mark.parametrize("engine", get_args(Engine))
def test_figures_are_plain_numbers_whatever_the_engine(engine: Engine) -> None:
    found = evaluate(*drawn(), engine=engine, metrics=(*EVERY, "clustering", "health"))
    assert {type(value) for value in found.values()} == {float, int}
    assert {"nmi", "ami", "intra_distance", "inter_distance", "density", "spectral_decay"} <= found.keys()
    assert ("index_recall_at_10" in found) == (engine in ("ivf", "hnsw"))


def test_tiny_and_huge_vectors_keep_their_direction() -> None:
    assert (
        evaluate(VECTORS * 1e-300, LABELS, ks=(1,))
        == evaluate(VECTORS * 1e300, LABELS, ks=(1,))
        == evaluate(VECTORS, LABELS, ks=(1,))
    )


def test_the_table_of_queries_is_in_the_order_given_with_nan_for_those_left_out() -> None:
    vectors, labels = drawn()
    names = np.array([f"c{label}" for label in labels])
    frame = evaluate_in_detail(vectors, names, metrics=EVERY, ks=(1, 4)).per_query()
    assert frame["query"].tolist() == list(range(40))
    assert frame["label"].tolist() == names.tolist()
    ranked = retrieval.relevance(vectors, labels.tolist())
    for found, flags in zip(frame.drop(columns=["query", "label"]).to_dict("records"), ranked, strict=True):
        if any(flags):
            assert found == pytest.approx(retrieval.metrics(flags, (1, 4)))
        else:
            assert (found.pop("positives"), found.pop("first_rank")) == (0, 0)
            assert np.isnan(list(found.values())).all()
    assert np.isnan(frame["mrr"].to_numpy()).sum() == sum(not any(flags) for flags in ranked) > 0


def test_the_table_of_classes_has_the_means_of_their_queries() -> None:
    vectors, labels = drawn()
    found = evaluate_in_detail(vectors, labels, metrics=EVERY, ks=(1, 4))
    frame = found.per_class().set_index("label")
    ranked = retrieval.relevance(vectors, labels.tolist())
    assert frame.index.tolist() == sorted(
        {label for label, flags in zip(labels.tolist(), ranked, strict=True) if any(flags)}
    )
    assert 99 not in frame.index
    for label in frame.index:
        each = [retrieval.metrics(flags, (1, 4)) for flags, name in zip(ranked, labels, strict=True) if name == label]
        expected = {name: np.mean([values[name] for values in each]) for name in each[0] if name != "first_rank"}
        assert frame.loc[label].to_dict() == pytest.approx({"queries": len(each), **expected})
    assert np.average(frame["map"], weights=frame["queries"]) == pytest.approx(found.metrics["map"])


@settings(max_examples=40, deadline=None)
@given(cases())
def test_classes_queries_and_figures_tell_the_same(case: Case) -> None:
    try:
        found = case.evaluated(metrics=EVERY, ks=(1, 2))
    except UserError:
        return
    queries, classes = found.per_query(), found.per_class()
    assert sum(classes["queries"].tolist()) == found.metrics["queries"] == np.count_nonzero(queries["positives"])
    assert len(queries) == len(case.asked) == found.metrics["queries"] + found.metrics["queries_without_positive"]
    for name in ("recall_at_1", "mrr", "map_at_r", "precision_at_2", "map"):
        assert np.nanmean(queries[name].to_numpy()) == pytest.approx(found.metrics[name], abs=1e-12)
        assert np.average(classes[name], weights=classes["queries"]) == pytest.approx(found.metrics[name], abs=1e-12)


def test_the_table_of_the_curve() -> None:
    vectors, labels = drawn()
    found = evaluate_in_detail(vectors, labels, metrics=("curve",))
    frame = found.curve_frame()
    assert frame.columns.tolist() == ["recall", "precision"]
    expected = np.mean(
        [retrieval.interpolated(flags) for flags in retrieval.relevance(vectors, labels.tolist()) if any(flags)], axis=0
    )
    np.testing.assert_allclose(frame["precision"], expected, atol=1e-12)
    assert frame["precision"].is_monotonic_decreasing
    assert evaluate_in_detail(vectors, labels).curve is None


class Drawn(torch.nn.Module):
    """Embeds image i as row i of a table."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        self.vectors = torch.nn.Parameter(torch.tensor(vectors, dtype=torch.float32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.vectors[images]


@pytest.mark.parametrize("mode", ["self", "apart", "some in the gallery"])
def test_a_run_is_measured_as_the_evaluator_measures(mode: str) -> None:
    vectors, labels = drawn()
    vectors = vectors.astype(np.float32)
    query, gallery = {
        "self": (np.arange(10, 40), np.arange(10, 40)),
        "apart": (np.arange(10, 20), np.arange(20, 40)),
        "some in the gallery": (np.arange(10, 40, 2), np.arange(15, 40)),
    }[mode]
    split = Split(np.arange(10), query, gallery, np.arange(3))

    class Numbers(list[Any]):
        images = len(split.test)

    batches: Any = Numbers((torch.tensor(rows), torch.zeros(len(rows))) for rows in np.array_split(split.test, 3))
    embedder: Any = Drawn(vectors)
    found = measure(embedder, None, batches, labels, split, RunConfig(evaluation=EvalConfig(k=(1, 2)))).metrics
    itself = np.array([gallery.tolist().index(row) if row in gallery else -1 for row in query.tolist()])
    ranked = Case(vectors[gallery], labels[gallery], vectors[query], labels[query], itself).relevance()
    expected = [retrieval.metrics(flags, (1, 2)) for flags in ranked if any(flags)]
    assert found["queries"] == len(expected)
    for name in ("recall_at_1", "recall_at_2", "mrr", "r_precision", "map_at_r"):
        assert found[name] == pytest.approx(np.mean([values[name] for values in expected]), abs=1e-12)
