"""Embeddings in two dimensions by principal components."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA


def principal_components(vectors: np.ndarray) -> np.ndarray:
    """float32 (N, 2): the first two principal components of (N, D) numbers, 0 where there are fewer.

    Of each component's weights the largest is positive, so that signs are fixed.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    count = min(2, *vectors.shape) if centred.any() else 0
    found = np.zeros((len(vectors), 2), dtype=np.float32)
    if count:
        solver = "covariance_eigh" if len(vectors) > vectors.shape[1] else "full"
        found[:, :count] = PCA(count, svd_solver=solver).fit_transform(centred)
    return found
