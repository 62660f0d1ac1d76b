"""How well k-means on the embeddings finds the classes: NMI and AMI."""

from __future__ import annotations

import numpy as np

from retrieval_bench.evaluation.vectors import Vectors


def cluster(vectors: Vectors, clusters: int, seed: int = 0, rounds: int = 20) -> np.ndarray:
    """int64 (N,): the cluster of each row, by FAISS k-means (Lloyd) from seeded random rows."""
    import faiss

    rows = np.ascontiguousarray(vectors.rows(slice(None)), dtype=np.float32)
    kmeans = faiss.Kmeans(
        rows.shape[1], clusters, niter=rounds, seed=seed, min_points_per_centroid=1, max_points_per_centroid=1 << 30
    )
    kmeans.train(rows)
    return kmeans.index.search(rows, 1)[1][:, 0]  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]


def clustering_metrics(vectors: Vectors, codes: np.ndarray, seed: int = 0) -> dict[str, float]:
    """``nmi`` and ``ami`` (arithmetic normalisation) between the classes and as many k-means clusters.

    Normalised mutual information as scikit-learn defines it, and adjusted for chance (Vinh, Epps and Bailey, JMLR 2010).

    Args:
        vectors: N embeddings.
        codes: int (N,) classes.
        seed: of k-means.
    """
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    found = cluster(vectors, len(np.unique(codes)), seed)
    return {
        "nmi": float(normalized_mutual_info_score(codes, found)),
        "ami": float(adjusted_mutual_info_score(codes, found)),
    }
