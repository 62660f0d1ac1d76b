"""NMI and AMI of k-means on embeddings."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from retrieval_bench.evaluation.clustering import cluster, clustering_metrics
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.evaluation.vectors import Distance, as_vectors


def blobs(classes: int, size: int, spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes around random directions, which stand apart where `spread` is small."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(np.arange(classes), size)
    return np.eye(16)[codes % 16] + spread * rng.normal(size=(len(codes), 16)), codes


def entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def slow_nmi(first: np.ndarray, second: np.ndarray) -> float:
    """Mutual information over the mean of both entropies, from the table of joint counts."""
    table = np.array([[np.sum((first == a) & (second == b)) for b in np.unique(second)] for a in np.unique(first)])
    one, two = entropy(table.sum(axis=1)), entropy(table.sum(axis=0))
    return (one + two - entropy(table.ravel())) / ((one + two) / 2)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_nmi_and_ami_are_those_of_the_clusters(spread: float, distance: Distance) -> None:
    from sklearn.metrics import adjusted_mutual_info_score

    rows, codes = blobs(6, 12, spread)
    vectors = as_vectors(rows, distance)
    found, clusters = clustering_metrics(vectors, codes), cluster(vectors, 6)
    assert found["nmi"] == pytest.approx(slow_nmi(codes, clusters))
    assert found["ami"] == pytest.approx(float(adjusted_mutual_info_score(codes, clusters)))


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_every_row_is_in_the_cluster_of_the_nearest_mean(distance: Distance) -> None:
    rows, _ = blobs(5, 20, 0.4)
    vectors = as_vectors(rows, distance)
    clusters, rows = cluster(vectors, 5, rounds=200), vectors.rows(slice(None))
    means = np.stack([rows[clusters == c].mean(axis=0) for c in range(5)])
    nearest = np.linalg.norm(rows[:, None] - means, axis=2).argmin(axis=1)
    assert nearest.tolist() == clusters.tolist()


def test_classes_that_stand_apart_are_found_whole() -> None:
    rows, codes = blobs(2, 20, 0.01)
    assert clustering_metrics(as_vectors(rows), codes) == pytest.approx({"nmi": 1.0, "ami": 1.0})


def test_classes_that_mean_nothing_have_no_adjusted_information() -> None:
    rows, codes = blobs(4, 40, 0.5)
    found = clustering_metrics(as_vectors(rows), np.random.default_rng(1).permutation(codes))
    assert abs(found["ami"]) < 0.05
    assert found["nmi"] < 0.1


def test_tighter_classes_are_found_better() -> None:
    found = [
        clustering_metrics(as_vectors(blobs(8, 15, spread)[0]), blobs(8, 15, spread)[1])["ami"]
        for spread in (0.8, 0.4, 0.1)
    ]
    assert all(worse < better for worse, better in pairwise(found))


def test_clusters_repeat_with_the_seed() -> None:
    vectors = as_vectors(blobs(8, 15, 0.6)[0])
    first = cluster(vectors, 8, seed=1)
    assert first.tolist() == cluster(vectors, 8, seed=1).tolist()
    assert first.tolist() != cluster(vectors, 8, seed=2).tolist()


def test_given_rows_are_not_changed() -> None:
    rows = blobs(3, 10, 0.3)[0].astype(np.float32)
    before = rows.copy()
    clustering_metrics(as_vectors(rows), blobs(3, 10, 0.3)[1])
    assert (rows == before).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("rows", "codes"),
    [
        pytest.param(blobs(1, 12, 0.3)[0], np.zeros(12, dtype=int), id="one class"),
        pytest.param(blobs(40, 1, 0.5)[0], np.arange(40), id="a class per row"),
        pytest.param(blobs(40, 2, 0.5)[0], np.arange(80) // 2, id="two rows a class"),
        pytest.param(np.ones((40, 4)), np.arange(40) // 2, id="identical rows"),
    ],
)
def test_few_rows_a_class_raise_no_warnings(
    rows: np.ndarray, codes: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    found = clustering_metrics(as_vectors(rows), codes)
    assert all(math.isfinite(value) and -1 <= value <= 1 + 1e-12 for value in found.values())
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_class_for_all_or_for_each_row_is_found_whole() -> None:
    rows, _ = blobs(1, 12, 0.3)
    assert clustering_metrics(as_vectors(rows), np.zeros(12, dtype=int)) == {"nmi": 1.0, "ami": 1.0}
    assert clustering_metrics(as_vectors(rows), np.arange(12))["nmi"] == pytest.approx(1.0)


def test_the_gallery_is_clustered_and_not_the_queries() -> None:
    rows, codes = blobs(4, 10, 0.3)
    found = evaluate(rows, codes, rows[:3], codes[:3] + 1, metrics=("clustering",))
    assert {name: found[name] for name in ("nmi", "ami")} == clustering_metrics(as_vectors(rows), codes)
