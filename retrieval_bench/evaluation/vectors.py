"""Embeddings as rows that are compared: by products in float32 for speed, by differences in float64 for decisions.

Rows are scaled to length 1 for the cosine, and centred with a largest norm of 1 for the Euclidean distance. Both then
rank as ``-|a - b|^2 / 2`` does, which is the similarity in all decisions: differences of rows keep their precision
however close the rows are. In float32 it is an inner product (less 1, for the cosine): ``<(a, -|a|^2 / 2, 1), (b, 1,
-|b|^2 / 2)>`` for the Euclidean distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from retrieval_bench.errors import UserError

Distance = Literal["cosine", "l2"]
Rows = np.ndarray | slice
Side = Literal["query", "gallery"]
CHUNK = 1 << 18
"""Numbers that are converted at once: few enough to stay in a processor's cache."""
SMALLEST, LARGEST = 1e-140, 1e150
"""Norms whose squares neither vanish nor overflow."""


@dataclass(frozen=True)
class Vectors:
    """N embeddings as given (any number type, possibly memory-mapped); rows are converted when they are asked for."""

    raw: np.ndarray
    """(N, D)."""
    centre: np.ndarray
    """float64 (D,): subtracted from each row (0 for cosine)."""
    norm: np.ndarray
    """float64 (N,): what each row is divided by: its own norm for cosine, the largest norm of all for l2."""
    distance: Distance

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def width(self) -> int:
        """Length of the rows of :meth:`float32`."""
        return self.raw.shape[1] + (2 if self.distance == "l2" else 0)

    @property
    def offset(self) -> float:
        """By how much inner products of :meth:`float32` rows are larger than similarities."""
        return 1.0 if self.distance == "cosine" else 0.0

    @property
    def error(self) -> float:
        """Bound on what float32 (rounding rows, summing in any order) changes similarities by: ``(n + 2) u |a| |b|`` of
        n products (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), with some room."""
        largest = 2.25 if self.distance == "l2" else 1.0
        return 1.01 * largest * (self.width + 6) * 2.0**-24

    def rows(self, rows: Rows) -> np.ndarray:
        """float64 (n, D): unit rows; for ``l2`` centred ones with a largest norm of 1."""
        converted = np.array(self.raw[rows], dtype=np.float64, subok=False)  # a copy, changed in place
        if self.distance == "l2":
            converted -= self.centre
        converted /= self.norm[rows, None]
        return converted

    def float32(self, rows: Rows, side: Side) -> np.ndarray:
        """float32 (n, width): rows whose inner products, queries with gallery, are similarities plus :attr:`offset`.
        Rows in half or single precision are scaled as they are: two roundings, which :attr:`error` allows for."""
        norm = self.norm[rows, None]
        if self.distance == "l2":
            converted = self.rows(rows)
            more = np.ones((len(converted), 2))
            more[:, int(side == "gallery")] = -0.5 * np.einsum("nd,nd->n", converted, converted)
            return np.concatenate([converted, more], axis=1).astype(np.float32)
        if self.raw.dtype in (np.float16, np.float32) and ((norm > 1e-30) & (norm < 1e30)).all():
            inverse = (1 / norm).astype(np.float32)
            return np.multiply(self.raw[rows], inverse, dtype=np.float32, order="C", subok=False)
        return self.rows(rows).astype(np.float32)


def similarities(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float64 (..., n, m): ``-|a - b|^2 / 2`` of float64 rows (..., n, D) and (..., m, D), each with each."""
    exactly = "donot_use_mm_for_euclid_dist"  # differences of rows, never a product expanded
    distances = torch.cdist(torch.from_numpy(queries), torch.from_numpy(gallery), compute_mode=exactly)
    return distances.square_().mul_(-0.5).numpy()


def tolerance(similarity: np.ndarray) -> np.ndarray:
    """What rounding in float64 may change similarities by, with some room; two that are closer are equal: a part in
    10^12, what errors of 10^-15 in the rows make of it, and a distance of 10^-14 of rows that are the same."""
    return 1e-12 * np.abs(similarity) + 1e-15 * np.sqrt(2 * np.abs(similarity)) + 1e-28


def chunks(rows: int, width: int) -> list[slice]:
    """Consecutive rows of at most about :data:`CHUNK` numbers, `width` each."""
    step = max(1, CHUNK // max(1, width))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def as_vectors(given: dict[str, np.ndarray], distance: Distance = "cosine") -> list[Vectors]:
    """Checks embeddings that are compared with each other, by name; under ``l2`` they share centre and scale.

    Raises:
        UserError: no numbers (N, D), NaN, infinite or huge values, or (cosine) a zero row; with the first such row.
    """
    for name, values in given.items():
        if values.ndim != 2 or values.dtype.kind not in "fiu" or values.shape[1] == 0:
            kind = f"{values.dtype} {values.shape}"
            raise UserError(f"{name}: expected numbers of shape (images, dimensions), found {kind}")
    widths = {name: values.shape[1] for name, values in given.items()}
    if len(set(widths.values())) > 1:
        raise UserError(", ".join(f"{name} have {width} dimensions" for name, width in widths.items()))
    centre = np.zeros(max(widths.values()))
    norms = {name: _norms(name, values, centre) for name, values in given.items()}
    if distance == "cosine":
        for name, norm in norms.items():
            if (zero := np.flatnonzero(norm < SMALLEST)).size:
                reason = f"is a zero vector, which has no cosine similarity ({len(zero)} such rows)"
                raise UserError(f"{name}: row {zero[0]} {reason}")
    else:
        total = max(1, sum(map(len, given.values())))
        for values in given.values():
            for rows in chunks(*values.shape):
                centre += (values[rows].astype(np.float64) / total).sum(axis=0)
        norms = {name: _norms(name, values, centre) for name, values in given.items()}
        largest = max(float(norm.max(initial=0.0)) for norm in norms.values())
        norms = {name: np.full(len(norm), largest if largest > SMALLEST else 1.0) for name, norm in norms.items()}
    return [Vectors(values, centre, norms[name], distance) for name, values in given.items()]


def _norms(name: str, vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """float64 (N,): norms of the centred rows; refuses those that are not finite or whose squares are not."""
    norms = np.empty(len(vectors))
    for rows in chunks(*vectors.shape):
        centred = vectors[rows].astype(np.float64) - centre
        with np.errstate(over="ignore"):
            norms[rows] = np.sqrt(np.einsum("nd,nd->n", centred, centred))
    broken = np.flatnonzero(~(norms < LARGEST))
    if len(broken):
        raise UserError(f"{name}: row {broken[0]} has NaN, infinite or huge values ({len(broken)} such rows)")
    return norms
