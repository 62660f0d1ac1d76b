"""The state of an embedding space: how tight classes are, how far apart, and how many directions are in use."""

from __future__ import annotations

import itertools

import numpy as np

from retrieval_bench.evaluation.vectors import PIECE, Vectors


def health(vectors: Vectors, codes: np.ndarray) -> dict[str, float]:
    """Figures of Roth et al., Revisiting Training Strategies and Generalization Performance in Deep Metric Learning (ICML 2020), section 4.

    Args:
        vectors: N embeddings.
        codes: int (N,) classes.

    Returns:
        ``intra_distance``: mean Euclidean distance of two rows of a class, averaged over classes with two rows or more;
        ``inter_distance``: mean distance of two class means; ``density``: the first over the second (pi_density);
        ``spectral_decay``: Kullback-Leibler divergence from the uniform distribution to the singular values of the rows, scaled to sum
        1 (rho): 0 when all directions are used alike, larger when few are (a share counts as 10^-6 at least). Distances are those of
        unit rows, or of the embeddings themselves under ``l2``. NaN where there is nothing to measure.
    """
    order = np.argsort(codes, kind="stable")
    edges = np.flatnonzero(np.diff(codes[order], prepend=-1, append=-1))
    groups = [order[start:stop] for start, stop in itertools.pairwise(edges)]
    means, within = [], []
    for members in groups:
        rows = vectors.rows(members)
        means.append(rows.mean(axis=0))
        if len(members) > 1:
            within.append(_mean_distance(rows))
    inside = float(np.mean(within)) if within else float("nan")
    between = _mean_distance(np.array(means)) if len(means) > 1 else float("nan")
    unit = float(vectors.scale[0].prod()) if vectors.distance == "l2" and len(vectors) else 1.0
    return {
        "intra_distance": unit * inside,
        "inter_distance": unit * between,
        "density": inside / between if between > 1e-7 else float("nan"),
        "spectral_decay": _spectral_decay(vectors),
    }


def _mean_distance(rows: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of different rows, in blocks."""
    squares = np.einsum("nd,nd->n", rows, rows)
    step, total = max(1, PIECE // len(rows)), 0.0
    for start in range(0, len(rows), step):
        block = squares[start : start + step, None] + squares - 2 * rows[start : start + step] @ rows.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        total += float(np.sqrt(block.clip(0)).sum())
    return total / (len(rows) * (len(rows) - 1))


def _spectral_decay(vectors: Vectors) -> float:
    size = vectors.raw.shape[1]
    gram, step = np.zeros((size, size)), max(1, PIECE // size)
    for start in range(0, len(vectors), step):
        rows = vectors.rows(slice(start, start + step))
        gram += rows.T @ rows
    values = np.sqrt(np.linalg.eigvalsh(gram).clip(0))[-min(size, len(vectors)) :]
    if not values.sum() > 0:
        return float("nan")
    shares = (values / values.sum()).clip(1e-6)
    return max(0.0, float(-np.log(shares * len(shares)).mean()))
