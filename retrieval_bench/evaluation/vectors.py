"""Embeddings as rows that are compared: by products for speed, by differences in float64 for decisions.

Rows are scaled to length 1 for the cosine, and centred with a largest norm of 1 for the Euclidean distance. Both then
rank as ``-|a - b|^2 / 2`` does, which is the similarity in all decisions: differences of rows keep their precision
however close the rows are. Unit rows that point one way are centred too: differences stay the same, and rounding errors
of products, which grow with the norms, become smaller. A similarity is an inner product: less 1 of unit rows that are
not centred, ``<(a, -|a|^2 / 2, 1), (b, 1, -|b|^2 / 2)>`` of centred ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

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
CENTRED = 0.6
"""Mean cosine of all pairs from which on unit rows are centred."""


@dataclass(frozen=True)
class Vectors:
    """N embeddings as given (any number type, possibly memory-mapped); rows are converted when they are asked for."""

    raw: np.ndarray
    """(N, D)."""
    centre: np.ndarray
    """float64 (D,): subtracted from each row, for cosine after scaling (0 for rows that are not centred)."""
    norm: np.ndarray
    """float64 (N,): what each row is divided by: its own norm for cosine, the largest norm of all for l2."""
    distance: Distance
    scale: float = 1.0
    """Largest norm of :meth:`rows`, also over those that they are compared with; 10^-14 at least."""

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def plain(self) -> bool:
        """Whether rows are unit rows that are not centred."""
        return self.distance == "cosine" and not self.centre.any()

    @property
    def width(self) -> int:
        """Length of the rows of :meth:`factors`."""
        return self.raw.shape[1] + (0 if self.plain else 2)

    @cached_property
    def keys(self) -> np.ndarray:
        """int64 (N,): equal where rows are."""
        parts = (self.rows(part) + 0.0 for part in chunks(*self.raw.shape))  # -0 becomes 0
        return np.array([hash(row.tobytes()) for part in parts for row in part], dtype=np.int64)

    def products(self, similarity: np.ndarray) -> np.ndarray:
        """Similarities as inner products of :meth:`factors`."""
        return similarity / self.scale**2 + (1.0 if self.plain else 0.0)

    def similarity(self, products: np.ndarray) -> np.ndarray:
        """float64: inner products of :meth:`factors` as similarities."""
        return (products.astype(np.float64) - (1.0 if self.plain else 0.0)) * self.scale**2

    def error(self, dtype: Any = np.float32) -> float:
        """Bound on what rounding (of rows, and sums in any order) changes similarities by that are found by products:
        ``(n + 2) u |a| |b|`` of n products (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1),
        with some room."""
        largest = 1.0 if self.plain else 2.25
        return 1.01 * largest * (self.width + 6) * float(np.finfo(dtype).eps) / 2 * self.scale**2

    def uncentred(self, rows: Rows) -> np.ndarray:
        """float64 (n, D): unit rows; for ``l2`` rows divided by the largest norm of the centred ones."""
        return np.array(self.raw[rows], dtype=np.float64, subok=False) / self.norm[rows, None]

    def rows(self, rows: Rows) -> np.ndarray:
        """float64 (n, D): unit rows, perhaps centred; for ``l2`` centred ones with a largest norm of 1."""
        if self.distance == "cosine":
            converted = self.uncentred(rows)
            return converted if self.plain else converted - self.centre
        converted = np.array(self.raw[rows], dtype=np.float64, subok=False)  # a copy, changed in place
        converted -= self.centre
        converted /= self.norm[rows, None]
        return converted

    def factors(self, rows: Rows, side: Side, dtype: Any = np.float32) -> np.ndarray:
        """float32 or float64 (n, width): rows whose inner products, queries with gallery, are :meth:`products`. Plain
        rows in half or single precision are scaled as they are: two roundings, which :meth:`error` allows for."""
        norm = self.norm[rows, None]
        if not self.plain:
            converted = self.rows(rows)
            converted /= self.scale
            more = np.ones((len(converted), 2))
            more[:, int(side == "gallery")] = -0.5 * np.einsum("nd,nd->n", converted, converted)
            return np.concatenate([converted, more], axis=1).astype(dtype)
        single = dtype == np.float32 and self.raw.dtype in (np.float16, np.float32)
        if single and ((norm > 1e-30) & (norm < 1e30)).all():
            inverse = (1 / norm).astype(np.float32)
            return np.multiply(self.raw[rows], inverse, dtype=np.float32, order="C", subok=False)
        return self.rows(rows).astype(dtype)


class Copies:
    """Factors (n, width) in an order, by slice: converted once if all fit into `memory` bytes, else every time."""

    def __init__(
        self, vectors: Vectors, order: np.ndarray, side: Side, device: torch.device, memory: float, dtype: Any
    ):
        self.convert = lambda rows: torch.from_numpy(vectors.factors(order[rows], side, dtype)).to(device)
        self.copy: torch.Tensor | None = None
        if np.dtype(dtype).itemsize * len(order) * vectors.width <= memory:
            kind = torch.float32 if dtype == np.float32 else torch.float64
            self.copy = torch.empty(len(order), vectors.width, device=device, dtype=kind)
            for rows in chunks(len(order), vectors.width):
                self.copy[rows] = self.convert(rows)

    def __getitem__(self, rows: slice) -> torch.Tensor:
        return self.convert(rows) if self.copy is None else self.copy[rows]


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
    total = max(1, sum(map(len, given.values())))
    centre = np.zeros(max(widths.values()))
    norms = {name: _norms(name, values, centre) for name, values in given.items()}
    if distance == "cosine":
        for name, norm in norms.items():
            if (zero := np.flatnonzero(norm < SMALLEST)).size:
                reason = f"is a zero vector, which has no cosine similarity ({len(zero)} such rows)"
                raise UserError(f"{name}: row {zero[0]} {reason}")
        found = [Vectors(values, centre, norms[name], distance) for name, values in given.items()]
        for each in found:
            for rows in chunks(*each.raw.shape):
                centre = centre + (1 / (total * each.norm[rows])) @ each.raw[rows].astype(np.float64)
        if centre @ centre < CENTRED:
            return found
        found = [replace(each, centre=centre) for each in found]
        lengths = (np.linalg.norm(each.rows(rows), axis=1) for each in found for rows in chunks(*each.raw.shape))
        scale = max(1e-14, *(float(each.max(initial=0.0)) for each in lengths))
        return [replace(each, scale=scale) for each in found]
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
