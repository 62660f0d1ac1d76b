"""The state of an embedding space: how far apart classes are, which directions are used, what k-means finds."""

from __future__ import annotations

import itertools

import faiss
import numpy as np

from retrieval_bench.evaluation.vectors import Vectors, chunks

# scikit-learn is imported where it is used: it would take a third of the time that `evaluate` needs to answer.
LARGEST = 2048
"""Dimensions beyond which singular values are those of a sample of as many rows."""


def embedding_stats(vectors: Vectors, codes: np.ndarray) -> dict[str, float]:
    """Figures of Roth et al., Revisiting Training Strategies and Generalization Performance in DML (ICML 2020), sec. 4.

    ``intra_distance``: mean Euclidean distance of two rows of a class (`codes`, int (N,)), averaged over classes with
    two rows or more; ``inter_distance``: mean distance of two class means; ``density``: the first over the second
    (pi_density); ``spectral_decay`` (rho): Kullback-Leibler divergence from the uniform distribution to the singular
    values of the rows, scaled to sum 1: 0 when all directions are used alike, larger when few are (a share counts as
    10^-6 at least). Distances are those of unit rows, or of the embeddings themselves under ``l2``; singular values are
    of rows that are not centred, as in the authors' code, and beyond 2,048 dimensions of at most 2,048 rows, drawn with
    a fixed seed: compare such a ``spectral_decay`` with those of as many rows only. The authors' distances differ:
    cosine distances, class means scaled to length 1, and the largest distance for a class of one row. NaN where there
    is nothing to measure.
    """
    values = np.sqrt(np.linalg.eigvalsh(_gram(vectors)).clip(0))[-min(vectors.raw.shape) :]
    decay = float("nan")
    if values.sum() > 0:
        shares = (values / values.sum()).clip(1e-6)
        decay = max(0.0, float(-np.log(shares * len(shares)).mean()))
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order], prepend=-1, append=-1))
    means, within = np.empty((len(edges) - 1, vectors.raw.shape[1])), []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        rows = vectors.rows(order[start:stop])
        means[number] = rows.mean(axis=0)
        if len(rows) > 1:
            within.append(_mean_distance(rows))
    inside = float(np.mean(within)) if within else float("nan")
    between = _mean_distance(means) if len(means) > 1 else float("nan")
    unit = float(vectors.norm[0]) if vectors.distance == "l2" and len(vectors) else 1.0
    return {
        "intra_distance": unit * inside,
        "inter_distance": unit * between,
        "density": inside / between if between > 1e-7 else float("nan"),
        "spectral_decay": decay,
    }


def _gram(vectors: Vectors) -> np.ndarray:
    """float64: products of all columns (D, D), or beyond :data:`LARGEST` dimensions of sampled rows with each other."""
    count, dimensions = vectors.raw.shape
    if dimensions > LARGEST:
        sample = np.random.default_rng(0).choice(count, min(count, LARGEST), replace=False)
        rows = vectors.uncentred(np.sort(sample))
        return rows @ rows.T
    gram, step = np.zeros((dimensions, dimensions)), max(dimensions, 1024)  # few sums of large matrices
    for start in range(0, count, step):
        rows = vectors.uncentred(slice(start, start + step))
        gram += rows.T @ rows
    return gram


def _mean_distance(rows: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of different rows."""
    squares, total = np.einsum("nd,nd->n", rows, rows), 0.0
    for part in chunks(len(rows), len(rows)):
        later = slice(part.start, None)
        block = squares[part, None] + squares[later] - 2 * rows[part] @ rows[later].T
        np.fill_diagonal(block, 0.0)
        distances = np.sqrt(block.clip(0))
        total += float(2 * distances.sum() - distances[:, : len(block)].sum())
    return total / (len(rows) * (len(rows) - 1))


def cluster(vectors: Vectors, clusters: int) -> np.ndarray:
    """int64 (N,): the cluster of each row, by FAISS k-means (Lloyd) from seeded random rows."""
    rows = np.ascontiguousarray(vectors.rows(slice(None)), dtype=np.float32)
    per_centroid = {"min_points_per_centroid": 1, "max_points_per_centroid": 1 << 30}
    kmeans = faiss.Kmeans(rows.shape[1], clusters, niter=20, seed=0, **per_centroid)
    kmeans.train(rows)
    return kmeans.index.search(rows, 1)[1][:, 0]  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]


def clustering_metrics(vectors: Vectors, codes: np.ndarray) -> dict[str, float]:
    """Mutual information of the classes (`codes`, int (N,)) and as many k-means clusters, as scikit-learn defines it:
    normalised (``nmi``, arithmetically) and adjusted for chance (``ami``; Vinh, Epps and Bailey, JMLR 2010)."""
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    clusters = cluster(vectors, len(np.unique(codes)))
    scores = {"nmi": normalized_mutual_info_score, "ami": adjusted_mutual_info_score}
    return {name: float(score(codes, clusters)) for name, score in scores.items()}


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """float32 (N, 2): the first two principal components of (N, D) numbers, 0 where there are fewer; of each one's
    weights the largest is positive, so that signs are fixed."""
    from sklearn.decomposition import PCA

    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    count = min(2, *vectors.shape) if centred.any() else 0
    found = np.zeros((len(vectors), 2), dtype=np.float32)
    if count:
        solver = "covariance_eigh" if len(vectors) > vectors.shape[1] else "full"
        found[:, :count] = PCA(count, svd_solver=solver).fit_transform(centred)
    return found
