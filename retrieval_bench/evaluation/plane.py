"""Embeddings in two dimensions by principal components."""

from __future__ import annotations

import numpy as np


def principal_plane(vectors: np.ndarray) -> np.ndarray:
    """float32 (N, 2): the first two principal components of (N, D) numbers, 0 where there are fewer.

    Of each the largest weight is positive, so that signs are fixed. The smaller of the two matrices of products is decomposed.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    if len(vectors) <= vectors.shape[1]:
        strengths, places = np.linalg.eigh(centred @ centred.T)  # ascending
        found = (places * np.sqrt(strengths.clip(min=0)))[:, ::-1][:, :2]
    else:
        found = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    weights = centred.T @ found  # the axes, but for their lengths
    found = found * np.where(weights[np.abs(weights).argmax(axis=0), np.arange(found.shape[1])] < 0, -1, 1)
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1]))).astype(np.float32)
