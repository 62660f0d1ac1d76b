"""Figures of an embedding space against slow loops, k-means, and the principal components."""

from __future__ import annotations

import math
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from retrieval_bench.evaluation.embedding_stats import (
    cluster,
    clustering_metrics,
    embedding_stats,
    principal_components,
)
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.evaluation.vectors import Distance, Vectors, as_vectors
from tests.evaluation.retrieval_cases import chunked

CODES = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4])


def vectors_of(rows: np.ndarray, distance: Distance = "cosine") -> Vectors:
    return as_vectors({"embeddings": rows}, distance)[0]


def rows_of(count: int = len(CODES), size: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)) + 0.5


def mean_distance(rows: np.ndarray) -> float:
    found = [math.dist(one, two) for one, two in combinations(rows.tolist(), 2)]
    return sum(found) / len(found) if found else math.nan


def slow_stats(rows: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """The definitions, pair by pair, and the decay from a singular value decomposition."""
    classes = [rows[codes == code] for code in sorted(set(codes.tolist()))]
    intra = float(np.mean([mean_distance(members) for members in classes if len(members) > 1]))
    inter = mean_distance(np.stack([members.mean(axis=0) for members in classes]))
    values = np.linalg.svd(rows, compute_uv=False)
    decay = sum(math.log(1 / len(values) / (value / values.sum())) for value in values) / len(values)
    return {"intra_distance": intra, "inter_distance": inter, "density": intra / inter, "spectral_decay": decay}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
@pytest.mark.parametrize("size", [2, 6, 40])
def test_figures_are_those_of_slow_loops(size: int, chunk: int) -> None:
    rows = rows_of(size=size)
    with chunked(8, chunk=chunk):
        assert embedding_stats(vectors_of(rows), CODES) == pytest.approx(slow_stats(unit(rows), CODES))
        l2, expected = embedding_stats(vectors_of(7 * rows, "l2"), CODES), slow_stats(7 * rows, CODES)
    assert l2 == pytest.approx(expected)


def test_beyond_so_many_dimensions_the_decay_is_that_of_sampled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, codes = unit(rows_of(400, 30)), np.arange(400) % 20
    exact = embedding_stats(vectors_of(rows), codes)
    monkeypatch.setattr("retrieval_bench.evaluation.embedding_stats.LARGEST", 20)
    found, again = (embedding_stats(vectors_of(rows), codes) for _ in range(2))
    assert found == again
    assert found | {"spectral_decay": 0} == exact | {"spectral_decay": 0}
    assert found["spectral_decay"] != exact["spectral_decay"]
    few, expected = embedding_stats(vectors_of(rows[:15]), CODES), slow_stats(rows[:15], CODES)
    assert few == pytest.approx(expected), "no more rows than the sample: exact"


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_measured_is_nan() -> None:
    rows = rows_of()
    alone, together = (embedding_stats(vectors_of(rows), codes) for codes in (np.arange(15), np.zeros(15, dtype=int)))
    assert np.isnan([alone["intra_distance"], alone["density"]]).all()
    assert np.isnan([together["inter_distance"], together["density"]]).all()
    assert alone["inter_distance"] == together["intra_distance"] == pytest.approx(mean_distance(unit(rows)))
    assert math.isnan(embedding_stats(vectors_of(np.zeros((15, 4)), "l2"), CODES)["spectral_decay"])
    for distance in get_args(Distance):
        found = embedding_stats(vectors_of(np.tile(rows[:1], (15, 1)), distance), CODES)
        assert [found["intra_distance"], found["inter_distance"]] == pytest.approx([0, 0], abs=1e-6)
        assert math.isnan(found["density"])


def test_the_fewer_directions_are_used_the_larger_is_the_spectral_decay() -> None:
    rows = np.random.default_rng(2).normal(size=(200, 8))
    uses = ((8, 1), (4, 0.1), (4, 0.01), (1, 0.01))
    flattened = [rows * np.array([1] * used + [share] * (8 - used)) for used, share in uses]
    found = [embedding_stats(vectors_of(each, "l2"), np.arange(200) % 10)["spectral_decay"] for each in flattened]
    assert found == sorted(found)
    assert found[0] < 0.01 < 0.5 < found[1]
    even = embedding_stats(vectors_of(np.concatenate([np.eye(5), -np.eye(5)])), np.arange(10) % 5)["spectral_decay"]
    assert even == pytest.approx(0, abs=1e-12)
    assert not np.signbit(even)


def blobs(classes: int, size: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Classes around orthogonal directions, which are far apart where `spread` is small."""
    codes = np.repeat(np.arange(classes), size)
    return np.eye(16)[codes % 16] + spread * np.random.default_rng(0).normal(size=(len(codes), 16)), codes


def test_nmi_is_mutual_information_over_the_mean_entropy() -> None:
    rows, codes = blobs(6, 12, 0.5)
    clusters, found = cluster(vectors_of(rows), 6), clustering_metrics(vectors_of(rows), codes)
    joint = np.array([[np.mean((codes == a) & (clusters == b)) for b in range(6)] for a in range(6)])
    one, two, both = (-sum(p * math.log(p) for p in each.ravel() if p) for each in (joint.sum(0), joint.sum(1), joint))
    assert found["nmi"] == pytest.approx((one + two - both) / ((one + two) / 2))
    assert found["ami"] < found["nmi"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        (blobs(1, 12, 0.3)[0], np.zeros(12, dtype=int)),
        (blobs(40, 1, 0.5)[0], np.arange(40)),
        (blobs(40, 2, 0.5)[0], np.arange(80) // 2),
        (np.ones((40, 4)), np.arange(40) // 2),
    ],
    ids=["one class", "a class per row", "two rows a class", "identical rows"],
)
def test_few_rows_a_class_raise_no_warnings(
    rows: np.ndarray, codes: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    found = clustering_metrics(vectors_of(rows), codes)
    assert all(math.isfinite(value) and -1 <= value <= 1 + 1e-12 for value in found.values())
    assert tuple(capfd.readouterr()) == ("", "")


def test_evaluation_measures_the_gallery() -> None:
    rows = rows_of()
    found = evaluate(rows, CODES, rows[:3], CODES[:3], metrics=("health", "clustering"))
    expected = embedding_stats(vectors_of(rows), CODES) | clustering_metrics(vectors_of(rows), CODES)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(50, 5), (5, 50), (1, 4), (4, 1), (2, 2)])
def test_principal_components_are_projections_with_fixed_signs(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[1] + 1)
    found, centred = principal_components(rows), rows - rows.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    np.testing.assert_allclose(found[:, : len(axes)], centred @ axes.T, atol=1e-4)
    assert not found[:, len(axes) :].any()
    assert not principal_components(np.ones(shape)).any()
