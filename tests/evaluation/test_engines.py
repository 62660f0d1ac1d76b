"""The exact engines against an exact oracle: whatever the blocks, portions, threads and memory, one answer."""

from __future__ import annotations

from typing import Any, Literal

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.evaluation import blocked
from retrieval_bench.evaluation.choices import Engine
from retrieval_bench.evaluation.evaluate import Evaluation, evaluate, evaluate_in_detail
from retrieval_bench.evaluation.matching import match
from retrieval_bench.evaluation.tiles import tiles
from retrieval_bench.evaluation.vectors import Distance, as_pair, as_vectors
from tests.evaluation.retrieval_cases import EVERY, FIRST, TOP, Case, cases, pieces

METRICS = st.sampled_from([EVERY, TOP, FIRST])
KS = st.sampled_from([(1,), (1, 2, 4), (3, 100)])


@settings(max_examples=250, deadline=None)
@given(cases(), KS, METRICS, st.integers(1, 5), st.sampled_from([1, 7, 1 << 26]), st.sampled_from([0.0, 1.0]))
def test_blocked_equals_the_oracle_in_blocks_of_any_size(
    case: Case, ks: tuple[int, ...], metrics: Any, block: int, positives: int, memory: float
) -> None:
    with pieces(block, positives):
        case.check(ks, metrics, engine="blocked", device="cpu", memory_gb=memory)


@settings(max_examples=150, deadline=None)
@given(cases(), KS, METRICS, st.sampled_from([5, 1 << 26]))
def test_flat_equals_the_oracle(case: Case, ks: tuple[int, ...], metrics: Any, positives: int) -> None:
    with pieces(1024, positives):
        case.check(ks, metrics, engine="flat")


@settings(max_examples=40, deadline=None)
@given(cases(most=30), METRICS)
def test_auto_equals_the_oracle(case: Case, metrics: Any) -> None:
    case.check((1, 2, 4, 8), metrics)


def data(rows: int = 300, classes: int = 30, seed: int = 0, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes, among them duplicates across classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    vectors = rng.normal(size=(classes, dim))[labels] + rng.normal(size=(rows, dim))
    vectors[: rows // 10] = vectors[rows // 10 : 2 * (rows // 10)]
    return vectors, labels


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 17), st.booleans())
def test_tiles_cover_a_matrix_or_its_triangle_once(rows: int, columns: int, size: int, symmetric: bool) -> None:
    """A square on the diagonal of a triangle reaches below it; every pair of places is in one tile, or in its mirror."""
    columns = rows if symmetric else columns
    seen = np.zeros((rows, columns), dtype=int)
    for here, there in tiles(rows, columns, size, symmetric):
        assert max(here.stop - here.start, there.stop - there.start) <= size
        seen[here, there] += 1
        if symmetric and here != there:
            seen[there, here] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("metrics", [EVERY, TOP, FIRST])
def test_stretches_of_a_block_change_nothing(metrics: Any, distance: Distance) -> None:
    """Two stretches to a block of 256, on both sides of the diagonal, beside blocks that have none."""
    vectors, labels = data(640, 40)
    found = []
    for block in (256, 100):
        with pieces(block, 1 << 26):
            found.append(
                evaluate_in_detail(vectors, labels, metrics=metrics, distance=distance, engine="blocked", device="cpu")
            )
    assert same(*found)


def same(first: Evaluation, second: Evaluation) -> bool:
    """Equal to the last bit for every query; means up to the order of their sum."""
    alike = first.columns.keys() == second.columns.keys() and first.metrics == pytest.approx(second.metrics, abs=1e-12)
    return alike and all(
        np.array_equal(first.columns[name], second.columns[name], equal_nan=name != "label") for name in first.columns
    )


@pytest.mark.parametrize("metrics", [EVERY, TOP, FIRST])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_block_size_memory_portions_and_engine_change_nothing(distance: Distance, metrics: Any) -> None:
    vectors, labels = data()
    plain = evaluate_in_detail(vectors, labels, metrics=metrics, distance=distance, device="cpu")
    ways: list[tuple[int, int, float, Engine]] = [
        (7, 1 << 26, 1.0, "blocked"),
        (64, 500, 0.0, "blocked"),
        (1024, 90, 1e-6, "auto"),
        (9, 400, 1.0, "flat"),
    ]
    for block, positives, memory, engine in ways:
        with pieces(block, positives):
            other = evaluate_in_detail(
                vectors, labels, metrics=metrics, distance=distance, engine=engine, memory_gb=memory, device="cpu"
            )
        assert same(plain, other), (block, positives, memory, engine)


@pytest.mark.parametrize("engine", ["blocked", "flat"])
def test_the_number_of_threads_changes_nothing(engine: Literal["blocked", "flat"]) -> None:
    vectors, labels = data(dim=40)
    threads, of_faiss = torch.get_num_threads(), faiss.omp_get_max_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            faiss.omp_set_num_threads(count)
            found.append(evaluate_in_detail(vectors, labels, engine=engine, device="cpu"))
    finally:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(of_faiss)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_many_items_of_one_class_between_classes_of_one() -> None:
    """The sample that gives up positives is smaller than the gallery."""
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.zeros(200, int), np.arange(1, 301), np.repeat(np.arange(301, 401), 3)])
    vectors = rng.normal(size=(len(labels), 5)) + 2 * rng.normal(size=(401, 5))[labels]
    order = rng.permutation(len(labels))
    found = evaluate_in_detail(vectors[order], labels[order], metrics=TOP, device="cpu")
    unit = vectors[order] / np.linalg.norm(vectors[order], axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    positive = np.take_along_axis(labels[order][:, None] == labels[order], np.argsort(-similarity, axis=1), axis=1)[
        :, :-1
    ]
    counts = positive.sum(axis=1)
    for row in np.flatnonzero(counts):
        hits, size = positive[row], counts[row]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        assert found.columns["first_rank"][row] == 1 + hits.argmax()
        assert found.columns["r_precision"][row] == pytest.approx(hits[:size].mean())
        assert found.columns["map_at_r"][row] == pytest.approx((precision * hits)[:size].sum() / size)
    assert found.metrics["queries_without_positive"] == 300


@pytest.mark.parametrize("engine", ["blocked", "flat", "ivf", "hnsw"])
def test_portions_of_classes_of_one_image_are_no_problem(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    with pieces(1024, 5):
        found = evaluate(
            rng.normal(size=(12, 3)), np.array([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), engine=engine, metrics=TOP
        )
    assert (found["queries"], found["queries_without_positive"]) == (3, 9)


@pytest.mark.parametrize("metrics", [("recall",), ("recall", "r_precision")])
def test_the_rank_of_the_best_positive_is_right_whatever_is_asked_for(metrics: Any) -> None:
    vectors, labels = data(seed=3)
    first, second = (
        evaluate_in_detail(vectors, labels, ks=(1,), metrics=metrics, engine=engine).columns["first_rank"]
        for engine in ("blocked", "flat")
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_precision_of_products_is_as_before_even_after_an_error(
    before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = data(60)
    expected = evaluate(vectors, labels, device="cpu")
    torch.set_float32_matmul_precision(before)
    try:
        assert evaluate(vectors, labels, device="cpu") == expected
        assert torch.get_float32_matmul_precision() == before
        monkeypatch.setattr(blocked, "hide_positives", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(vectors, labels, device="cpu")
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_works_where_the_precision_was_set_the_new_way() -> None:
    vectors, labels = data(60)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert evaluate(vectors, labels, device="cpu")["queries"] > 0
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0, 2.0])
def test_float32_copies_stay_within_the_memory_given(share: float, apart: bool, distance: Distance) -> None:
    vectors, labels = data(60)
    one = as_vectors(vectors, distance)
    queries, gallery = as_pair(vectors, vectors, distance) if apart else (one, one)
    search = match(queries, labels, gallery, labels, np.arange(60))
    memory = share * 4 * 60 * gallery.size
    counter = blocked.Counter(search, "first", "cpu", memory)
    kept = {id(side.kept): side.kept.nbytes for side in (counter.queries, counter.gallery) if side.kept is not None}
    assert sum(kept.values()) <= memory
    assert kept or share < 1 or (share < 2 and (apart or distance == "l2")), "copies are kept where they fit"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metrics", [EVERY, TOP, FIRST])
def test_a_gpu_gives_the_same(metrics: Any) -> None:
    vectors, labels = data(3000, 300, dim=64)
    one, other = (evaluate_in_detail(vectors, labels, metrics=metrics, device=device) for device in ("cpu", "cuda"))
    assert same(one, other)
