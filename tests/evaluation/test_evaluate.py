"""Anyone's embeddings: what is accepted and refused, the figures and the tables."""

from __future__ import annotations

import inspect
from typing import Any, cast, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import vectors as module
from retrieval_bench.evaluation.evaluate import Engine, evaluate, evaluate_in_detail
from retrieval_bench.evaluation.vectors import Distance, as_vectors
from tests.data.data_checks import refused
from tests.evaluation.retrieval_cases import EVERY, Case, cases, chunked, clusters

VECTORS = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
LABELS = np.array([0, 0, 1, 1])


def test_lists_tensors_and_labels_of_any_type_do_as_well() -> None:
    expected = evaluate(VECTORS, LABELS)
    assert evaluate(cast(Any, VECTORS.tolist()), cast(Any, LABELS.tolist())) == expected
    assert evaluate(cast(Any, torch.tensor(VECTORS)), cast(Any, torch.tensor(LABELS))) == expected
    for labels in (np.array(list("ääbb")), np.array([b"a", b"a", b"b", b"b"]), *map(LABELS.astype, ("f8", "?", "u1"))):
        assert evaluate(VECTORS, labels) == expected
    assert evaluate(VECTORS, LABELS, VECTORS, LABELS.astype(float), ks=(1,))["queries"] == 4
    found = evaluate(VECTORS, np.array(["ä".encode(), b"a", b"b", b"b"]), VECTORS, np.array(list("äabb")))
    assert (found["queries"], found["recall_at_1"]) == (4, 1.0)


@pytest.mark.parametrize("form", [np.int64, np.int8, np.float16, np.float32, ">f4", "<f8"])
@pytest.mark.parametrize("distance", get_args(Distance))
def test_every_number_type_and_layout_gives_the_same_rows(distance: Distance, form: Any) -> None:
    rows = np.array([[1, 2, -2], [0, 3, 1], [-2, 1, 1], [2, 2, 2]])
    (expected,) = as_vectors({"embeddings": rows}, distance)
    for layout in (np.ascontiguousarray, np.asfortranarray, lambda rows: np.repeat(rows, 2, axis=0)[::2]):
        (found,) = as_vectors({"embeddings": layout(rows.astype(form))}, distance)
        np.testing.assert_allclose(found.rows(slice(None)), expected.rows(slice(None)), atol=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 64, 1024]), st.sampled_from(["cosine", "l2"]), st.booleans())
def test_products_are_similarities_within_the_bound(seed: int, size: int, distance: Distance, positive: bool) -> None:
    given = np.random.default_rng(seed).normal(size=(30, size)) + 0.01
    (found,) = as_vectors({"embeddings": np.abs(given) if positive else given}, distance)
    exact = module.similarities(found.rows(slice(None)), found.rows(slice(None)))
    for dtype in (np.float32, np.float64):
        left, right = (found.factors(slice(None), side, dtype) for side in get_args(module.Side))
        in_turn = np.zeros((30, 30), dtype=dtype)  # the worst order of a sum
        for column in range(left.shape[1]):
            in_turn += np.outer(left[:, column], right[:, column])
        for product in (left @ right.T, in_turn):
            assert product.dtype == dtype
            assert np.abs(found.similarity(product) - exact).max() <= found.error(dtype)


def test_rows_that_point_one_way_are_centred_and_copies_have_one_key() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 8))
    near = as_vectors({"embeddings": 1000 + rows})[0]
    apart = as_vectors({"embeddings": rows})[0]
    assert (near.plain, apart.plain, apart.scale) == (False, True, 1.0)
    assert 1e-4 < near.scale < 1e-2
    assert near.error() < 1e-4 * apart.error()
    same = as_vectors({"embeddings": np.array([[1.0, 0.0], [1.0, -0.0], [2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])})[0]
    assert (same.keys == same.keys[0]).tolist() == [True, True, True, False, False]


def row(value: float) -> np.ndarray:
    vectors = VECTORS.copy()
    vectors[2:] = value
    return vectors


APART = {"query_embeddings": VECTORS, "query_labels": LABELS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embeddings": row(np.nan)}, "embeddings: row 2 has NaN, infinite or huge values (2 such rows)"),
        ({"embeddings": row(-np.inf)}, "row 2 has NaN, infinite"),
        ({"embeddings": row(np.inf), "distance": "l2"}, "row 2 has NaN, infinite"),
        ({"embeddings": row(1e200)}, "row 2 has NaN, infinite or huge"),
        ({"embeddings": row(0.0)}, "embeddings: row 2 is a zero vector"),
        ({**APART, "query_embeddings": row(np.nan)}, "query_embeddings: row 2 has NaN"),
        ({**APART, "query_embeddings": row(0.0)}, "query_embeddings: row 2 is a zero vector"),
        ({**APART, "embeddings": row(np.nan)}, "embeddings: row 2 has NaN"),
        ({"embeddings": VECTORS[0]}, "embeddings: expected numbers of shape (images, dimensions)"),
        ({"embeddings": VECTORS[None]}, "expected numbers of shape"),
        ({"embeddings": np.empty((4, 0))}, "expected numbers of shape"),
        ({"embeddings": VECTORS.astype(str)}, "expected numbers"),
        ({"embeddings": VECTORS.astype(bool)}, "expected numbers"),
        ({"embeddings": VECTORS.astype(complex)}, "expected numbers"),
        ({"labels": LABELS[:3]}, "labels: expected shape (4,)"),
        ({"labels": LABELS[:, None]}, "labels: expected shape (4,)"),
        ({**APART, "query_labels": LABELS[:3]}, "query_labels: expected shape (4,)"),
        ({"labels": np.array([0, 0, np.nan, 1])}, "labels: expected whole numbers or text"),
        ({"labels": np.zeros(4, "timedelta64[s]")}, "labels: expected whole numbers or text"),
        ({"labels": np.array([0, 0, 1, None])}, "labels: expected whole numbers or text, row 3 has none"),
        ({"labels": pd.Series(["a", "a", None, "b"], dtype="string")}, "row 2 has none (1 such rows)"),
        ({"labels": np.array([0, 0, "a", 1], dtype=object)}, "labels: expected whole numbers or text, found objects"),
        ({"labels": np.array([0, 0, {}, 1], dtype=object)}, "labels: expected whole numbers or text, found objects"),
        ({"labels": np.array([0, 0, 2**70, 1], dtype=object)}, "labels: expected whole numbers or text, found objects"),
        ({"labels": [1, 1.0, "1", 2]}, "labels: expected whole numbers or text, found objects"),
        ({"labels": [np.nan, "a", "a", "b"]}, "row 0 has none"),
        ({"labels": ["a", "", "a", ""]}, "row 1 has no label (2 such rows)"),
        ({"labels": [2**53 + 1, 2**53, 1.0, 1.0]}, "float64 numbers of 9,007,199,254,740,992 or more merge"),
        ({"labels": np.array([2049, 2048, 1, 1], np.float16)}, "float16 numbers of 2,048 or more merge"),
        ({**APART, "query_labels": LABELS > 0}, "one is truth values and the other numbers"),
        ({"labels": np.ma.array(LABELS, mask=LABELS == 1)}, "labels: 2 elements are masked"),
        ({"embeddings": np.ma.array(VECTORS, mask=VECTORS > 0.95)}, "embeddings: 2 elements are masked"),
        ({"embeddings": None}, "embeddings: expected numbers of shape"),
        ({"labels": None}, "labels: expected shape (4,)"),
        ({"embeddings": [[1.0, 2.0], [1.0]]}, "embeddings: not an array of plain numbers"),
        ({"embeddings": pd.Series([[1.0, 2.0], [1.0], [1.0, 2.0], [1.0, 2.0]])}, "embeddings: not an array"),
        ({"ks": ("a",)}, "--k a: give distinct whole numbers"),
        ({"ks": (np.nan,)}, "--k nan: give distinct whole numbers"),
        ({"ties": "mean"}, "unknown ties 'mean' (known: lower, average, bounds)"),
        ({"ties": "average", "metrics": ("curve",)}, "--ties average gives none"),
        ({**APART, "query_labels": np.array(list("abcd"))}, "one is text"),
        ({**APART, "labels": 2**60 + LABELS, "query_labels": (2**60 + LABELS).astype(np.uint64)}, "above 2^53"),
        ({"labels": np.arange(4)}, "no query has an item of its class"),
        ({**APART, "query_labels": LABELS + 5}, "no query has an item of its class"),
        ({"query_embeddings": VECTORS}, "come together"),
        ({"query_labels": LABELS}, "come together"),
        ({"query_embeddings": np.ones((4, 3)), "query_labels": LABELS}, "query_embeddings have 3 dimensions"),
        ({"embeddings": np.empty((0, 2)), "labels": []}, "no query has an item of its class"),
        ({"query_embeddings": np.empty((0, 2)), "query_labels": []}, "no query has an item of its class"),
        ({**APART, "embeddings": np.empty((0, 2)), "labels": []}, "no query has an item of its class"),
        ({"same_item": np.arange(4)}, "same_item: without query_embeddings"),
        ({**APART, "same_item": np.arange(3)}, "same_item: expected 4 row numbers"),
        ({**APART, "same_item": np.array([0, 1, 2, 9])}, "same_item: expected 4 row numbers of embeddings (-1 to 3)"),
        ({**APART, "same_item": np.array([0, 1, 2, -2])}, "same_item"),
        ({**APART, "same_item": np.arange(4.0)}, "row numbers of embeddings (-1 to 3), found float64"),
        ({**APART, "query_labels": [0, 0, 1, 0], "same_item": np.arange(4)}, "same_item: a query's own item"),
        ({"metrics": ("recall", "recal")}, "unknown metric 'recal' (known: recall, mrr,"),
        ({"engine": "annoy"}, "unknown engine 'annoy' (known: auto, blocked,"),
        ({"distance": "euclid"}, "unknown distance 'euclid' (known: cosine, l2)"),
        ({"ks": (0, 1)}, "from 1 up"),
        ({"device": "gpu"}, "--device gpu"),
    ],
)
def test_refuses_with_one_line(changes: dict[str, Any], message: str) -> None:
    with chunked(2, chunk=2), refused(message):
        evaluate(**{"embeddings": VECTORS, "labels": LABELS, **changes})


def test_zero_rows_are_fine_under_l2() -> None:
    assert evaluate(row(0.0), LABELS, distance="l2", ks=(1,))["recall_at_1"] == 1.0
    assert evaluate(np.zeros((4, 2)), LABELS, distance="l2", ks=(2, 3))["recall_at_3"] == 1.0


def test_queries_and_classes_without_a_match_are_left_out_and_counted() -> None:
    found = evaluate(VECTORS, LABELS, VECTORS, np.array([0, 0, 1, 5]), ks=(1,))
    assert (found["queries"], found["queries_without_positive"]) == (3, 1)
    for engine in get_args(Engine):
        with chunked(1024, 5):
            rng = np.random.default_rng(0)
            found = evaluate(rng.normal(size=(12, 3)), np.array([0, 0, 0, *range(1, 10)]), engine=engine)
        assert (found["queries"], found["queries_without_positive"]) == (3, 9)


@pytest.mark.parametrize("engine", get_args(Engine))
def test_figures_are_plain_numbers_whatever_the_engine(engine: Engine) -> None:
    ks = (1, 40)  # lists of the whole gallery
    found = evaluate(*clusters(40, 12), engine=engine, ks=ks, metrics=(*EVERY, "clustering", "health"))
    assert {type(value) for value in found.values()} == {float, int}
    assert {"nmi", "ami", "intra_distance", "inter_distance", "density", "spectral_decay"} <= found.keys()
    assert ("index_recall_at_10" in found) == (engine in ("ivf", "hnsw"))


@pytest.mark.parametrize("engine", ["ivf", "hnsw"])
def test_what_a_cut_list_gives_is_named_after_its_length(engine: Engine) -> None:
    vectors, labels = clusters(300, 100)
    listed = 2 * (int(np.bincount(labels).max()) - 1)
    found = evaluate_in_detail(vectors, labels, engine=engine, ks=(1,), metrics=("recall", "mrr", "map", "map_at_r"))
    for names in (list(found.metrics), list(found.columns)):
        assert {f"mrr_at_{listed}", f"map_at_{listed}", "map_at_r"} <= set(names)
        assert not {"mrr", "map"} & set(names)
    with refused("curve", f"--engine {engine} lists {listed} items"):
        evaluate(vectors, labels, engine=engine, ks=(1,), metrics=("curve",))
    with refused("--ties bounds", engine):
        evaluate(vectors, labels, engine=engine, ties="bounds")


FORMS: dict[str, tuple[Any, Any]] = {
    "pandas text": (VECTORS, pd.Series(list("aabb"), dtype="string")),
    "pandas objects": (pd.DataFrame(VECTORS), pd.Series(list("aabb"), dtype=object)),
    "categories": (VECTORS, pd.Categorical(list("aabb"))),
    "nullable numbers": (pd.DataFrame(VECTORS).astype("Float64"), pd.Series([5, 5, 7, 7], dtype="Int64")),
    "objects": (VECTORS.astype(object), np.array([0, 0, 1, 1], dtype=object)),
    "objects of bytes": (list(VECTORS), np.array([b"a", b"a", b"b", b"b"], dtype=object)),
    "rows as objects": (pd.Series(list(VECTORS)), np.array([0, 0, 1.0, 1.0], dtype=object)),
    "bfloat16": (torch.tensor(VECTORS).bfloat16(), torch.tensor(LABELS, dtype=torch.int8)),
    "gradients": (torch.tensor(VECTORS, requires_grad=True), torch.tensor(LABELS.astype(float), requires_grad=True)),
    "nothing masked": (np.ma.array(VECTORS, mask=False), np.ma.array(LABELS)),
    "codes": ((VECTORS > 0.5).astype(np.uint8), LABELS.astype(np.uint64) + 2**63),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_people_call_embeddings_and_labels_is_taken(form: str) -> None:
    embeddings, labels = FORMS[form]
    single: Any = {"ks": 1, "metrics": "recall"}
    assert evaluate(embeddings, labels, **single) == evaluate(VECTORS, LABELS, ks=(1,), metrics=("recall",))


def test_by_default_what_a_record_holds_and_both_functions_take_the_same() -> None:
    names = "recall_at_1 recall_at_2 mrr r_precision map_at_r queries queries_without_positive".split()
    assert list(evaluate(VECTORS, LABELS, ks=(1, 2))) == names
    first, second = (inspect.signature(function).parameters for function in (evaluate, evaluate_in_detail))
    assert first == second


@settings(max_examples=40, deadline=None)
@given(cases())
def test_classes_queries_curve_and_figures_agree(case: Case) -> None:
    try:
        found = case.evaluated(metrics=EVERY, ks=(1, 2))
    except UserError:
        return
    queries, classes, curve = found.per_query(), found.per_class(), found.curve_frame()
    assert queries["query"].tolist() == list(range(len(queries)))
    assert queries["label"].tolist() == (case.labels if case.query_labels is None else case.query_labels).tolist()
    assert sum(classes["queries"].tolist()) == found.metrics["queries"] == np.count_nonzero(queries["positives"])
    assert len(queries) == found.metrics["queries"] + found.metrics["queries_without_positive"]
    kept: Any = queries[queries["positives"] > 0]
    assert classes["label"].tolist() == list(kept.groupby("label").groups)
    for name in ("recall_at_1", "mrr", "map_at_r", "precision_at_2", "map"):
        assert np.nanmean(queries[name].to_numpy()) == pytest.approx(found.metrics[name], abs=1e-12)
        assert classes[name].tolist() == pytest.approx(kept.groupby("label")[name].mean().tolist(), abs=1e-12)
    assert curve["recall"].tolist() == pytest.approx(np.linspace(0, 1, 101))
    assert curve["precision"].is_monotonic_decreasing
    assert case.evaluated().curve is None
