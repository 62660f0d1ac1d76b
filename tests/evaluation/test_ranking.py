"""The engines against exact fractions and each other: one answer, whatever the blocks, portions, threads and memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.evaluation import fast_ranking, ranking
from retrieval_bench.evaluation.evaluate import Engine, evaluate, evaluate_in_detail
from retrieval_bench.evaluation.metrics import Needs, depths
from retrieval_bench.evaluation.retrieval_task import RetrievalTask, retrieval_task
from retrieval_bench.evaluation.vectors import Distance, as_vectors
from tests.evaluation.retrieval_cases import EVERY, FIRST, TOP, Case, cases, chunked, clusters, same

METRICS = st.sampled_from([EVERY, TOP, FIRST, ("precision",)])
KS = st.sampled_from([(1,), (1, 2, 4), (3, 100)])
SHARES, COPIES = st.sampled_from([0.0, 1.0]), st.sampled_from([1, 2, 64])
WAYS = st.fixed_dictionaries({"swept": st.booleans(), "pairs": SHARES, "large": st.integers(0, 3), "copies": COPIES})
EXACT = pytest.mark.parametrize("engine", ["blocked", "reference"])
DISTANCES = pytest.mark.parametrize("distance", ["cosine", "l2"])


@settings(max_examples=250, deadline=None)
@given(cases(), KS, METRICS, st.integers(1, 5), st.sampled_from([1, 7, 1 << 26]), st.sampled_from([0.0, 1.0]), WAYS)
def test_the_fast_engine_equals_exact_fractions_in_blocks_of_any_size(
    case: Case, ks: tuple[int, ...], metrics: Any, block: int, positives: int, memory: float, way: Any
) -> None:
    with chunked(block, positives, **way):
        case.check(ks, metrics, engine="blocked", device="cpu", memory_gb=memory)


@settings(max_examples=80, deadline=None)
@given(cases(), KS, METRICS)
def test_the_reference_engine_equals_exact_fractions(case: Case, ks: tuple[int, ...], metrics: Any) -> None:
    case.check(ks, metrics, engine="flat")


ASKED: tuple[tuple[Needs, bool], ...] = (("first", False), ("top", True), ("k", False), ("all", False), ("all", True))
KINDS = ("one direction", "classes that are points", "codes")


def task_of(kind: str, seed: int, distance: Distance, apart: bool) -> RetrievalTask:
    """400 embeddings in a few large, many small and some lonely classes."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.integers(0, 3, 150), rng.integers(3, 60, 200), np.arange(60, 110)])
    vectors = rng.normal(size=(110, 12))[labels] + rng.normal(size=(400, 12))
    if kind == "tied":
        vectors[rng.permutation(400)[:300]] = vectors[rng.integers(0, 8, 300)]
    if kind == "quantised":
        vectors = np.round(vectors) + (np.round(vectors) == 0).all(axis=1, keepdims=True)
    if kind == "collapsed":
        vectors = np.ones((400, 12)) + 1e-9 * np.round(vectors)
    if kind == "one direction":
        vectors = np.ones(12) + 1e-3 * vectors
        vectors[::50] *= -1
    if kind == "classes that are points":
        vectors = np.random.default_rng(1).normal(size=(110, 12))[labels] + 1e-8 * vectors
    if kind == "codes":
        vectors = np.where(vectors > 0, 1, -1).astype(np.int8)
    if kind == "half precision":
        vectors = vectors.astype(np.float16)
    if not apart:
        (both,) = as_vectors({"embeddings": vectors}, distance)
        return retrieval_task(both, labels, both, labels, np.arange(400))
    rows = rng.permutation(400)[:90]
    queries, gallery = as_vectors({"query_embeddings": vectors[rows], "embeddings": vectors}, distance)
    return retrieval_task(queries, labels[rows], gallery, labels, np.where(rng.random(90) < 0.7, rows, -1))


@DISTANCES
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("kind", ["plain", "tied", "quantised", "collapsed", "half precision", *KINDS])
def test_the_fast_engine_counts_what_the_reference_engine_counts(kind: str, apart: bool, distance: Distance) -> None:
    """A block of 256 has two stretches on both sides of the diagonal, one of 100 has none. Threads change nothing."""
    for seed, block, threads, ways in (
        (0, 256, 1, ({}, {"pairs": 0.05, "copies": 20})),
        (1, 100, 5, ({}, {"large": 20})),
        (2, 2048, 2, ({"swept": False}, {"swept": False, "copies": 20}, {"large": 20, "pairs": 0.05})),
    ):
        whole = task_of(kind, seed, distance, apart)
        for needs, flattering in ASKED:
            task = replace(whole, depth=depths([needs], whole.counts, 10), flattering=flattering)
            expected, place = ranking.count_negatives(task), task.places(slice(0, len(task.counts)))
            depth = np.repeat(task.depth, task.kept)
            exact = (place == 0) | (expected + place < depth)
            for way in ways:
                torch.set_num_threads(threads)
                with chunked(block, **cast(Any, way)):
                    found = fast_ranking.count_negatives(task)
                torch.set_num_threads(1)
                np.testing.assert_array_equal(found[exact], expected[exact])
                assert (found + place >= depth)[~exact].all()


@pytest.mark.parametrize("newer", [False, True])
def test_products_are_in_full_precision_whatever_is_set_and_the_setting_stays(newer: bool) -> None:
    vectors, labels = clusters(60)
    expected, matmul = evaluate(vectors, labels, device="cpu"), torch.backends.cuda.matmul
    initial = matmul.fp32_precision
    try:
        if newer:
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("medium")
        with pytest.raises(ZeroDivisionError), fast_ranking.full_precision():
            raise ZeroDivisionError
        assert evaluate(vectors, labels, device="cpu") == expected
        assert matmul.fp32_precision == "tf32" if newer else torch.get_float32_matmul_precision() == "medium"
    finally:
        matmul.fp32_precision = initial
        torch.set_float32_matmul_precision("highest")


@DISTANCES
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0, 2.0])
def test_float32_copies_stay_within_the_memory_given(share: float, apart: bool, distance: Distance) -> None:
    (one,) = as_vectors({"embeddings": clusters(60)[0]}, distance)
    labels = clusters(60)[1]
    other = as_vectors({"embeddings": clusters(60)[0]}, distance)[0] if apart else one
    task = retrieval_task(one, labels, other, labels, np.arange(60))
    memory = share * 4 * 60 * one.width
    counter = fast_ranking.Counter(task, torch.device("cpu"), memory)
    copies = {id(side.copy): side.copy.nbytes for side in (counter.queries, counter.gallery) if side.copy is not None}
    assert sum(copies.values()) <= memory
    assert copies or share < 1 or (share < 2 and (apart or distance == "l2")), "copies are kept where they fit"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("metrics", [EVERY, TOP, FIRST])
def test_a_gpu_gives_the_same(metrics: Any) -> None:
    vectors, labels = clusters(3000, 300, dim=64)
    one, other = (evaluate_in_detail(vectors, labels, metrics=metrics, device=device) for device in ("cpu", "cuda"))
    assert same(one, other)


def fan(shifts: np.ndarray, seed: int = 0, dim: int = 512) -> np.ndarray:
    """Row 0 and rows that are at a cosine of 0.5 + shift to it, all of length 1 and otherwise in random directions."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=dim)
    query /= np.linalg.norm(query)
    aside = rng.normal(size=(len(shifts), dim))
    aside -= np.outer(aside @ query, query)
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    cosine = 0.5 + shifts[:, None]
    return np.concatenate([[query], cosine * query + np.sqrt(1 - cosine**2) * aside])


@EXACT
@DISTANCES
@pytest.mark.parametrize("ahead", [0, 1, 17, 40])
def test_a_positive_among_negatives_within_a_billionth_gets_its_true_rank(
    ahead: int, distance: Distance, engine: Engine
) -> None:
    shifts = 1e-9 * (np.arange(41) - ahead)
    vectors = fan(np.append(shifts[shifts != 0], 0.0))
    single = vectors[:-1].astype(np.float32)
    assert (np.diff(single[1:] @ single[0]) <= 0).sum() > 5, "float32 alone orders them wrongly"
    for metrics in (FIRST, TOP, EVERY):
        with chunked(7):
            labels = np.array([0, *range(1, 41), 0])
            found = evaluate_in_detail(vectors, labels, metrics=metrics, distance=distance, engine=engine)
        assert found.columns["first_rank"][0] == 1 + 40 - ahead


@EXACT
@pytest.mark.parametrize(("apart", "rank"), [(1e-13, 2), (1e-11, 1)])
def test_similarities_closer_than_float64_can_decide_are_equal(apart: float, rank: int, engine: Engine) -> None:
    vectors = fan(np.array([apart, 0.0]))
    assert evaluate_in_detail(vectors, np.array([0, 0, 1]), engine=engine).columns["first_rank"][0] == rank


@DISTANCES
def test_one_far_row_and_nearly_equal_directions_do_not_make_the_others_equal(distance: Distance) -> None:
    rng = np.random.default_rng(2)
    labels = np.append(rng.integers(0, 5, 40), 99)
    vectors = rng.normal(size=(100, 4))[labels] + rng.normal(size=(41, 4))
    vectors[-1] = 1e6
    Case(vectors, labels, distance=distance).check((1, 2), TOP)
    near = np.ones((41, 4), dtype=np.float32)
    near[:, 1:] += 1e-6 * vectors[:, 1:].clip(-9, 9)
    Case(near, labels, distance=distance).check((1, 2), TOP)


class Counted(np.ndarray):
    """Embeddings that note how many rows are read at a time."""

    read: list[int]

    def __array_finalize__(self, obj: Any) -> None:
        self.read = getattr(obj, "read", [])

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.read.append(len(found) if np.ndim(found) else 1)
        return found


def test_a_collapsed_network_is_evaluated_without_reading_rows_for_every_pair() -> None:
    vectors = np.ones((200, 4), dtype=np.float32).view(Counted)
    evaluate(vectors, np.arange(200) // 2, ks=(1,), metrics=("recall",))
    assert sum(vectors.read) < 100 * 200


@DISTANCES
@pytest.mark.parametrize("metrics", [("recall",), TOP, EVERY])
def test_embeddings_are_never_read_as_a_whole(
    metrics: Any, distance: Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, labels = clusters(1500, 375)
    watched = vectors.astype(np.float32).view(Counted)
    monkeypatch.setattr("retrieval_bench.evaluation.retrieval_task.ROWS", 100)
    with chunked(100, chunk=600):
        found = evaluate_in_detail(watched, labels, metrics=metrics, distance=distance, memory_gb=0.0, device="cpu")
    assert 0 < max(watched.read) <= 520, "rows at once; 512 are the sample that gives positives up"
    assert same(found, evaluate_in_detail(np.asarray(watched), labels, metrics=metrics, distance=distance))
