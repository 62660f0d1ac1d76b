"""Figures of an embedding space against slow loops."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from retrieval_bench.evaluation import health as module
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.evaluation.health import health
from retrieval_bench.evaluation.vectors import Distance, as_vectors

CODES = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4])


def rows_of(count: int = len(CODES), size: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)) + 0.5


def mean_distance(rows: np.ndarray) -> float:
    found = [math.dist(one, two) for one, two in combinations(rows.tolist(), 2)]
    return sum(found) / len(found) if found else math.nan


def slow_health(rows: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """The definitions, pair by pair, and the decay from a singular value decomposition."""
    classes = [rows[codes == code] for code in sorted(set(codes.tolist()))]
    intra = float(np.mean([mean_distance(members) for members in classes if len(members) > 1]))
    inter = mean_distance(np.stack([members.mean(axis=0) for members in classes]))
    values = np.linalg.svd(rows, compute_uv=False)
    decay = sum(math.log(1 / len(values) / (value / values.sum())) for value in values) / len(values)
    return {"intra_distance": intra, "inter_distance": inter, "density": intra / inter, "spectral_decay": decay}


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [2, 6, 40])
def test_figures_are_those_of_slow_loops(size: int) -> None:
    rows = rows_of(size=size)
    assert health(as_vectors(rows), CODES) == pytest.approx(slow_health(unit(rows), CODES))


def test_euclidean_ratios_are_those_of_slow_loops() -> None:
    rows = 7 * rows_of()
    found, expected = health(as_vectors(rows, "l2"), CODES), slow_health(rows - rows.mean(axis=0), CODES)
    for name in ("density", "spectral_decay"):
        assert found[name] == pytest.approx(expected[name])


def test_euclidean_distances_are_those_of_the_embeddings() -> None:
    rows = 7 * rows_of()
    found, expected = health(as_vectors(rows, "l2"), CODES), slow_health(rows, CODES)
    assert found["intra_distance"] == pytest.approx(expected["intra_distance"])
    assert found["inter_distance"] == pytest.approx(expected["inter_distance"])


def test_order_of_rows_and_names_of_classes_do_not_matter() -> None:
    rows, order = rows_of(), np.random.default_rng(1).permutation(len(CODES))
    expected = health(as_vectors(rows), CODES)
    assert health(as_vectors(rows[order]), CODES[order]) == pytest.approx(expected)
    assert health(as_vectors(rows), 4 - CODES) == pytest.approx(expected)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("piece", [1, 7, 40, 100])
def test_blocks_change_nothing(piece: int, distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, codes = rows_of(300), np.arange(300) % 7
    vectors = as_vectors(rows, distance)
    expected = health(vectors, codes)
    monkeypatch.setattr(module, "PIECE", piece)
    assert health(vectors, codes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("error")
def test_classes_of_one_image_have_no_inner_distance() -> None:
    rows = rows_of()
    found = health(as_vectors(rows), np.arange(len(rows)))
    assert math.isnan(found["intra_distance"])
    assert math.isnan(found["density"])
    assert found["inter_distance"] == pytest.approx(mean_distance(unit(rows)))


@pytest.mark.filterwarnings("error")
def test_one_class_has_no_outer_distance() -> None:
    rows = rows_of()
    found = health(as_vectors(rows), np.zeros(len(rows), dtype=int))
    assert found["intra_distance"] == pytest.approx(mean_distance(unit(rows)))
    assert math.isnan(found["inter_distance"])
    assert math.isnan(found["density"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("seed", range(6))
def test_identical_rows_have_distances_of_zero_and_no_density(seed: int, distance: Distance) -> None:
    rows = np.tile(np.random.default_rng(seed).normal(size=8), (25, 1))
    found = health(as_vectors(rows, distance), np.arange(25) % 4)
    assert found["intra_distance"] == pytest.approx(0, abs=1e-6)
    assert found["inter_distance"] == pytest.approx(0, abs=1e-6)
    assert math.isnan(found["density"])


def test_rows_without_any_extent_do_not_pass_for_isotropic() -> None:
    found = health(as_vectors(np.zeros((24, 4)), "l2"), np.arange(24) % 4)
    assert math.isnan(found["spectral_decay"])


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_directions_in_equal_use_have_no_spectral_decay(distance: Distance) -> None:
    rows = np.concatenate([np.eye(5), -np.eye(5)])
    assert health(as_vectors(rows, distance), np.arange(10) % 5)["spectral_decay"] == pytest.approx(0, abs=1e-12)


def test_spectral_decay_is_never_below_zero() -> None:
    rows = np.concatenate([np.eye(4), -np.eye(4)])
    assert not np.signbit(health(as_vectors(rows), np.arange(8) % 4)["spectral_decay"])


def test_the_fewer_directions_are_used_the_larger_is_the_spectral_decay() -> None:
    rows, codes = np.random.default_rng(2).normal(size=(200, 8)), np.arange(200) % 10
    flattened = [
        rows * np.array([1] * used + [share] * (8 - used)) for used, share in ((8, 1), (4, 0.1), (4, 0.01), (1, 0.01))
    ]
    found = [health(as_vectors(each, "l2"), codes)["spectral_decay"] for each in flattened]
    assert found == sorted(found)
    assert found[0] < 0.01 < 0.5 < found[1]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_spectral_decay_of_a_collapsed_space_is_not_made_of_rounding(
    distance: Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    rows, codes = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 32)), np.arange(200) % 10
    expected = health(as_vectors(rows, distance), codes)["spectral_decay"]
    order = rng.permutation(200)
    assert health(as_vectors(rows[order], distance), codes[order])["spectral_decay"] == pytest.approx(
        expected, rel=1e-6
    )
    monkeypatch.setattr(module, "PIECE", 320)
    assert health(as_vectors(rows, distance), codes)["spectral_decay"] == pytest.approx(expected, rel=1e-6)


def test_evaluation_measures_the_gallery() -> None:
    rows = rows_of()
    found = evaluate(rows, CODES, rows[:3], CODES[:3], metrics=("health",))
    expected = health(as_vectors(rows), CODES)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
