"""Embeddings as rows whose neighbours are ranked: by inner products in float32 for speed, by differences in float64 for decisions.

Rows are scaled to length 1 for the cosine, and centred with a largest norm of 1 for the Euclidean distance. Both then rank as
``-|a - b|^2 / 2`` does, which is the similarity in all decisions: differences of rows keep their precision however close the rows are. In
float32 it is an inner product (less 1, for the cosine): ``<(a, -|a|^2 / 2, 1), (b, 1, -|b|^2 / 2)>`` for the Euclidean distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from retrieval_bench.errors import UserError

Distance = Literal["cosine", "l2"]
Rows = np.ndarray | slice
Side = Literal["left", "right"]
PIECE = 1 << 18
"""Numbers that are converted at once: few enough to stay in a processor's cache."""
SAFE = 1e100
"""Largest values up to here, and down to its inverse, have squares that neither overflow nor vanish."""


@dataclass(frozen=True)
class Vectors:
    """N embeddings as given (any number type, possibly memory-mapped); rows are converted when they are asked for.

    Attributes:
        raw: (N, D).
        centre: float64 (D,), subtracted from each row (0 for cosine).
        scale: float64 (N, 2); a row is divided by the one and then by the other, so that squares neither overflow nor vanish.
        distance: ``cosine`` or ``l2``.
    """

    raw: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    distance: Distance

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def size(self) -> int:
        """Length of the rows that :meth:`left` and :meth:`right` give."""
        return self.raw.shape[1] + (2 if self.distance == "l2" else 0)

    @property
    def offset(self) -> float:
        """What the inner products of :meth:`left` and :meth:`right` have more than the similarity."""
        return 1.0 if self.distance == "cosine" else 0.0

    @property
    def error(self) -> float:
        """Bound on what rounding rows to float32 and summing products in float32, in any order, changes a similarity by.

        ``(n + 2) u |a| |b|`` for n products (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), with some room.
        """
        largest = 2.25 if self.distance == "l2" else 1.0
        return 1.01 * largest * (self.size + 6) * 2.0**-24

    def rows(self, rows: Rows) -> np.ndarray:
        """float64 (n, D): unit rows; for ``l2`` centred ones with a largest norm of 1."""
        scale = self.scale[rows]
        converted = np.array(self.raw[rows], dtype=np.float64, subok=False)  # a copy, changed in place
        if self.distance == "l2":
            converted -= self.centre
        if (scale[:, 0] != 1).any():
            converted /= scale[:, :1]
        converted /= scale[:, 1:]
        return converted

    def left(self, rows: Rows) -> np.ndarray:
        """float64 (n, size): the rows as queries."""
        return self._converted(rows, (1, 0))

    def right(self, rows: Rows) -> np.ndarray:
        """float64 (n, size): the rows as gallery; ``left @ right.T`` are the similarities, but for :attr:`offset`."""
        return self._converted(rows, (0, 1))

    def single(self, rows: Rows, side: Side) -> np.ndarray:
        """float32 (n, size): :meth:`left` or :meth:`right` rounded to single precision.

        Rows that come in half or single precision are scaled as they are: two roundings instead of one, which :attr:`error` allows for.
        """
        scale = self.scale[rows]
        plain = self.distance == "cosine" and self.raw.dtype in (np.float16, np.float32)
        if plain and (scale[:, 0] == 1).all() and ((scale[:, 1] > 1e-30) & (scale[:, 1] < 1e30)).all():
            return np.multiply(
                self.raw[rows], (1 / scale[:, 1:]).astype(np.float32), dtype=np.float32, order="C", subok=False
            )
        return (self.left if side == "left" else self.right)(rows).astype(np.float32)

    def _converted(self, rows: Rows, places: tuple[int, int]) -> np.ndarray:
        converted = self.rows(rows)
        if self.distance == "cosine":
            return converted
        more = np.ones((len(converted), 2))
        more[:, places[1]] = -0.5 * np.einsum("nd,nd->n", converted, converted)
        return np.concatenate([converted, more], axis=1)


def similarities(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """float64 (..., n, m): ``-|a - b|^2 / 2`` of float64 rows (..., n, D) and (..., m, D), each with each."""
    import torch

    exactly = "donot_use_mm_for_euclid_dist"  # differences of rows, never a product expanded
    distances = torch.cdist(torch.from_numpy(queries), torch.from_numpy(gallery), compute_mode=exactly)
    return distances.square_().mul_(-0.5).numpy()


def paired_similarities(queries: Vectors, asked: np.ndarray, gallery: Vectors, items: np.ndarray) -> np.ndarray:
    """float64 (n,): ``-|a - b|^2 / 2`` of the first query and the first item, the second and the second, ..."""
    out = np.empty(len(asked))
    step = max(1, PIECE // queries.size)
    for start in range(0, len(asked), step):
        difference = queries.rows(asked[start : start + step]) - gallery.rows(items[start : start + step])
        out[start : start + step] = -0.5 * np.einsum("nd,nd->n", difference, difference)
    return out


def tolerance(similarity: np.ndarray) -> np.ndarray:
    """What rounding in float64 may change similarities by, with some room: two that are closer are equal.

    A part in 10^12, what errors of 10^-15 in the rows make of it, and the distance 10^-14 between rows that are the same but for rounding.
    """
    return 1e-12 * np.abs(similarity) + 1e-15 * np.sqrt(2 * np.abs(similarity)) + 1e-28


def as_vectors(given: np.ndarray, distance: Distance = "cosine", what: str = "embeddings") -> Vectors:
    """Checks one set of embeddings, which is queries and gallery at once.

    Raises:
        UserError: another shape than (N, D), NaN or infinite values, or (cosine) a zero row; the line names the first such row.
    """
    return _scaled([(given, what)], distance)[0]


def as_pair(queries: np.ndarray, gallery: np.ndarray, distance: Distance = "cosine") -> tuple[Vectors, Vectors]:
    """Checks queries and a separate gallery, which share centre and scale under the Euclidean distance; raises as :func:`as_vectors`."""
    if queries.ndim == gallery.ndim == 2 and queries.shape[1] != gallery.shape[1]:
        raise UserError(f"query_embeddings have {queries.shape[1]} dimensions, embeddings have {gallery.shape[1]}")
    first, second = _scaled([(queries, "query_embeddings"), (gallery, "embeddings")], distance)
    return first, second


def _scaled(given: list[tuple[np.ndarray, str]], distance: Distance) -> list[Vectors]:
    largest = [_largest_values(vectors, what) for vectors, what in given]
    size = given[0][0].shape[1]
    if distance == "cosine":
        return [
            _cosine(vectors, what, values, np.zeros(size))
            for (vectors, what), values in zip(given, largest, strict=True)
        ]
    highest = max(float(values.max(initial=0.0)) for values in largest) or 1.0
    total = max(1, sum(len(vectors) for vectors, _ in given))
    centre = np.zeros(size)
    for vectors, _ in given:
        for rows in _pieces(vectors):
            centre += (vectors[rows].astype(np.float64) / total).sum(axis=0)
    norms = [_norms(vectors, np.full(len(vectors), highest), centre) for vectors, _ in given]
    norm = max(float(values.max(initial=0.0)) for values in norms) or 1.0
    return [Vectors(vectors, centre, np.tile([highest, norm], (len(vectors), 1)), distance) for vectors, _ in given]


def _cosine(vectors: np.ndarray, what: str, largest: np.ndarray, centre: np.ndarray) -> Vectors:
    empty = np.flatnonzero(largest == 0)
    if len(empty):
        raise UserError(
            f"{what}: row {empty[0]} is a zero vector, which has no cosine similarity ({len(empty)} such rows)"
        )
    first = np.where((largest < SAFE) & (largest > 1 / SAFE), 1.0, largest)
    return Vectors(vectors, centre, np.stack([first, _norms(vectors, first, centre)], axis=1), "cosine")


def _largest_values(vectors: np.ndarray, what: str) -> np.ndarray:
    """float64 (N,): each row's largest absolute value; refuses what is no embedding."""
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or vectors.shape[1] == 0:
        raise UserError(
            f"{what}: expected numbers of shape (images, dimensions), found {vectors.dtype} {vectors.shape}"
        )
    largest = np.empty(len(vectors))
    for rows in _pieces(vectors):
        piece = vectors[rows] if vectors.dtype.kind == "f" else vectors[rows].astype(np.float64)
        largest[rows] = np.abs(piece).max(axis=1, initial=0.0)
    broken = np.flatnonzero(~np.isfinite(largest))
    if len(broken):
        raise UserError(f"{what}: row {broken[0]} has NaN or infinite values ({len(broken)} such rows)")
    return largest


def _norms(vectors: np.ndarray, divisor: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """float64 (N,): norms of the centred rows, divided by their divisors."""
    norms = np.empty(len(vectors))
    for rows in _pieces(vectors):
        scaled = (vectors[rows].astype(np.float64) - centre) / divisor[rows, None]
        norms[rows] = np.sqrt(np.einsum("nd,nd->n", scaled, scaled))
    return norms


def _pieces(vectors: np.ndarray) -> list[slice]:
    step = max(1, PIECE // max(1, vectors.shape[1]))
    return [slice(start, min(start + step, len(vectors))) for start in range(0, len(vectors), step)]
