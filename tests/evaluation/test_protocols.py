"""Protocols with junk, grades, several labels and re-ranking: by hand, against oracles and another library; laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import average_precision_score, ndcg_score

from retrieval_bench.cli import main
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation import graded_ranking
from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from tests.data.data_checks import refused
from tests.evaluation.retrieval_cases import EVERY, Case, cases, integers, same
from tests.oracles import retrieval

MANY = EVERY[:-1]  # all but the curve
SEEDS = st.integers(0, 2**32 - 1)


def in_order(count: int) -> np.ndarray:
    """Rows whose similarity to the query (1, 0) falls from row to row."""
    angles = np.arange(1, count + 1) / 10
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


QUERY = np.array([[1.0, 0.0]])


def test_same_camera_removal_by_hand() -> None:
    """Of the query's identity and camera: left out; another identity of its camera, or another camera: ranked."""
    labels, cameras = np.array([7, 3, 7, 7, 2, 7]), np.array([1, 1, 2, 1, 2, 3])
    found = evaluate(
        in_order(6),
        labels,
        QUERY,
        np.array([7]),
        cameras=cameras,
        query_cameras=np.array([1]),
        metrics=("recall", "map"),
    )
    assert found == pytest.approx(
        {"recall_at_1": 0, "recall_at_2": 1, "recall_at_4": 1, "recall_at_8": 1, "map": (1 / 2 + 2 / 4) / 2}
        | {"queries": 1, "queries_without_positive": 0}
    )
    alone = {"cameras": np.ones(6, int), "query_cameras": np.array([1])}
    with refused("no query has a relevant item in the gallery that is not junk"):
        evaluate(in_order(6), labels, QUERY, np.array([7]), **alone)


@pytest.mark.parametrize(
    ("difficulty", "value"),
    # Ranks without junk: easy 1, 3 of e n e n n; hard 2, 4 of n h n h n; both 1, 3, 4, 6 of e n h e n h n.
    [
        ("easy", (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ("hard", ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2),
        ("medium", (1 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2 + (3 / 5 + 4 / 6) / 2) / 4),
    ],
)
def test_revisited_lists_by_hand(
    difficulty: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gallery in order: junk, easy, negative, hard, junk, easy, negative, hard, negative."""
    lists = [{"easy": [1, 5], "hard": [3, 7], "junk": [0, 4]}]
    (tmp_path / "gnd.json").write_text(json.dumps(lists))
    np.savez(tmp_path / "e.npz", embeddings=in_order(9), query_embeddings=QUERY)
    words = [
        "--relevance",
        str(tmp_path / "gnd.json"),
        "--relevant",
        difficulty,
        "--metrics",
        "map_trapezoid",
        "--json",
    ]
    assert main(["evaluate", str(tmp_path / "e.npz"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["map_trapezoid"] == pytest.approx(value)


def test_gap_by_hand() -> None:
    """Nearest items by confidence: right, wrong, right, and a query of no class in the gallery in between."""
    gallery, labels = np.eye(4), np.array([0, 1, 2, 3])
    queries = gallery[[0, 1, 2, 3]] + np.array([0.1, 0.2, 0.3, 0.4])[:, None] * gallery[[1, 2, 3, 0]]
    asked = np.array([0, 9, 5, 3])  # the second and third query have no positive
    found = evaluate(gallery, np.array([0, 1, 2, 3]), queries, asked, metrics=("gap",))
    assert found["gap"] == pytest.approx((1 / 1 + 2 / 4) / 2)
    worst = evaluate(gallery, labels, queries[[0, 0]], np.array([0, 9]), metrics=("gap",))
    assert worst["gap"] == pytest.approx(1 / 2), "of equal confidence the wrong one comes first"


def test_several_labels_by_hand() -> None:
    """Relevant is what shares a label; the number of shared labels is the grade."""
    sets = [["red"], ["blue", "round"], [], ["red", "round", "round"], ["blue"]]
    options: Any = {"metrics": ("map", "ndcg"), "ks": (4,)}
    found = evaluate(in_order(5), sets, QUERY, [["red", "round"]], **options)
    gains = 1 + 1 / np.log2(3) + 2 / np.log2(5)
    assert found["map"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["ndcg_at_4"] == pytest.approx(gains / (2 + 1 / np.log2(3) + 1 / 2))
    names = ["blue", "red", "round"]
    ones = np.array([[name in row for name in names] for row in sets]).astype(int)
    assert evaluate(in_order(5), ones, QUERY, np.array([[0, 1, 1]]), **options) == found


@settings(max_examples=25, deadline=None)
@given(cases(), st.booleans())
def test_nothing_removed_and_grades_of_1_are_plain_evaluation(case: Case, small: bool) -> None:
    options: Any = {"metrics": EVERY, "ks": (1, 2, 5), "ties": "bounds"}
    try:
        plain = case.evaluated(**options)
    except UserError:
        with refused("no query has"):
            case.evaluated(ignore=np.zeros(len(case.gallery)), **options)
        return
    asked = case.labels if case.query_labels is None else case.query_labels
    grades = (asked[:, None] == case.labels).astype(float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graded_ranking, "NUMBERS", 3 if small else 1 << 24)
        for way in (
            {"ignore": np.zeros(len(case.gallery), bool)},
            {"cameras": np.arange(len(case.gallery)), "query_cameras": -1 - np.arange(len(asked))}
            if case.query_labels is not None
            else {"cameras": np.arange(len(case.gallery))},
            {"relevance": grades},
            {"relevance": sparse.coo_array(grades)},
        ):
            assert same(case.evaluated(**way, **options), plain)


@settings(max_examples=40, deadline=None)
@given(integers(12, 2), integers(5, 2), st.lists(st.sampled_from([-1, 0, 0, 1, 2, 5]), min_size=60, max_size=60))
def test_grades_and_junk_agree_with_the_oracle(gallery: np.ndarray, queries: np.ndarray, drawn: list[int]) -> None:
    grades = np.array(drawn, float).reshape(5, 12)
    grades[0] = [1, *[0] * 11]
    found = evaluate_in_detail(gallery, None, queries, relevance=grades, metrics=MANY, ks=(1, 3, 20))
    for row, ranked in enumerate(retrieval.graded(gallery, queries, grades)):
        if not any(ranked):
            assert found.columns["positives"][row] == 0
            continue
        binary = [grade > 0 for grade in ranked]
        expected = retrieval.metrics(binary, (1, 3, 20))
        expected |= {f"ndcg_at_{k}": retrieval.ndcg_at_k(ranked, k) for k in (1, 3, 20)}
        for name, value in expected.items():
            assert found.columns[name][row] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_junk_never_matters_and_an_ideal_order_has_ndcg_1(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery, queries, grades = rng.normal(size=(30, 4)), rng.normal(size=(6, 4)), rng.integers(-1, 3, (6, 30))
    ignore = np.arange(30) % 3 == 0
    labels, asked = rng.integers(0, 3, 30), rng.integers(0, 3, 6)
    options: Any = {"metrics": (*MANY, "gap"), "ks": (1, 5)}
    plain = evaluate(gallery, labels, queries, asked, ignore=ignore, **options)
    moved = gallery.copy()
    moved[ignore] = queries[rng.integers(0, 6, 10)]
    assert evaluate(moved, labels, queries, asked, ignore=ignore, **options) == pytest.approx(plain)
    assert evaluate(gallery[~ignore], labels[~ignore], queries, asked, **options) == pytest.approx(plain)
    ideal = np.where(grades < 0, grades, np.argsort(np.argsort(queries @ gallery.T / np.linalg.norm(gallery, axis=1))))
    found = evaluate_in_detail(gallery, None, queries, relevance=ideal, metrics=("ndcg",), ks=(1, 5, 40))
    assert [found.metrics[f"ndcg_at_{k}"] for k in (1, 5, 40)] == pytest.approx([1, 1, 1])


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery, queries, grades = rng.normal(size=(40, 5)), rng.normal(size=(8, 5)), rng.integers(0, 4, (8, 40))
    scores = queries @ gallery.T / np.linalg.norm(gallery, axis=1)
    found = evaluate_in_detail(gallery, None, queries, relevance=grades, metrics=("ndcg", "map"), ks=(3, 10))
    for k in (3, 10):
        assert found.metrics[f"ndcg_at_{k}"] == pytest.approx(ndcg_score(grades, scores, k=k))
    expected = [average_precision_score(*pair) for pair in zip(grades > 0, scores, strict=True)]
    assert found.columns["map"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": np.arange(4)}, "cameras and query_cameras come together"),
        ({"query_cameras": np.arange(2)}, "cameras and query_cameras come together"),
        ({"relevance": np.ones((2, 4)), "query_labels": None}, "query_embeddings and query_labels come together"),
        ({"cameras": np.arange(3), "query_cameras": np.arange(2)}, "cameras: expected shape (4,)"),
        ({"ignore": np.array([0, 1, 2, 0])}, "ignore: expected 0 or 1 for each of 4 items"),
        ({"ignore": np.ones(4)}, "no query has a relevant item in the gallery that is not junk"),
        ({"relevance": np.ones((4, 4))}, "relevance: expected numbers of shape (2, 4) (queries, items)"),
        ({"relevance": np.full((2, 4), np.nan)}, "relevance: some grades are NaN or infinite"),
        (
            {"labels": [[1], [2]], "query_labels": [[1], [2]]},
            "labels: expected 4 rows to match its embeddings, found 2",
        ),
        ({"labels": np.full((4, 2), 3), "query_labels": np.ones((2, 2))}, "labels: a matrix of several labels holds 0"),
        ({"metrics": ("gap",), "engine": "ivf"}, "--engine ivf: needs a class per image"),
        ({"metrics": ("gap", "health")}, "--metrics health: needs a class per image"),
        ({"metrics": ("gap",), "ties": "average"}, "--ties average: needs a class per image"),
        ({"rerank": ("qe:3",)}, "--rerank qe:3: expected aqe:K[:alpha]"),
        ({"rerank": ("aqe",)}, "--rerank aqe: expected"),
        ({"rerank": ("aqe:1.5",)}, "--rerank aqe:1.5: expected"),
        ({"rerank": ("aqe:nan",)}, "--rerank aqe:nan: expected"),
        ({"rerank": ("aqe:3:nan",)}, "--rerank aqe:3:nan: expected"),
        ({"rerank": ("aqe:3:x",)}, "--rerank aqe:3:x: expected"),
        ({"rerank": ("aqe:3:1:1",)}, "--rerank aqe:3:1:1: expected"),
        ({"rerank": ("k_reciprocal:20:6:2",)}, "lambda is from 0 to 1"),
        ({"rerank": ("k_reciprocal:0:1:0",)}, "k1 and k2 are 1 or more"),
        ({"rerank": ("k_reciprocal", "aqe:3")}, "k_reciprocal is given once, as the last mode"),
        ({"rerank": ("aqe:3",), "distance": "l2"}, "leave out --distance l2"),
        ({"rerank": ("dba:3",), "query_embeddings": None, "query_labels": None}, "mixed with the queries themselves"),
        (
            {"rerank": ("k_reciprocal",), "same_item": np.array([0, -1])},
            "k_reciprocal: some queries are in the gallery",
        ),
    ],
)
def test_refuses_with_one_line(options: dict[str, Any], message: str) -> None:
    given = {"embeddings": np.eye(4), "labels": np.array([0, 1, 0, 1]), "query_embeddings": np.eye(4)[:2]}
    with refused(message):
        evaluate(**{**given, "query_labels": np.array([0, 1]), **options})
