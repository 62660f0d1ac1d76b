"""Searches that are improved after the first look, as modes of evaluation: expanded queries and items, and k-reciprocal
re-ranking. They see the gallery as a search does: also items that are junk for the evaluation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from scipy import sparse

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.graded_ranking import Scores, portions, similarity_scores
from retrieval_bench.evaluation.inputs import prepare_sides
from retrieval_bench.evaluation.vectors import Vectors, as_vectors, chunks

FORM = re.compile(r"(aqe|dba):(\d+)(?::(\d*\.?\d+))?|k_reciprocal(?::(\d+):(\d+):(\d*\.?\d+))?")
Expansion = tuple[str, int, float]
"""``aqe`` or ``dba``, K and alpha."""


def parse_rerank(modes: tuple[str, ...], distance: str) -> tuple[list[Expansion], tuple[int, int, float] | None]:
    """Expansions in their order, and k1, k2 and lambda of k-reciprocal re-ranking where it is asked for.

    Raises:
        UserError: another form, a number out of bounds, or modes that do not go together.
    """
    expansions, reciprocal = [], None
    for mode in modes:
        if (match := FORM.fullmatch(mode)) is None:
            forms = "aqe:K[:alpha], dba:K[:alpha] or k_reciprocal[:k1:k2:lambda], such as aqe:10:3"
            raise UserError(f"--rerank {mode}: expected {forms}")
        name, k, alpha, k1, k2, weight = match.groups()
        if reciprocal:
            raise UserError("--rerank: k_reciprocal is given once, as the last mode")
        if name and distance != "cosine":
            raise UserError(f"--rerank {mode}: expands unit rows; leave out --distance {distance}")
        if name:
            expansions.append((name, int(k), float(alpha or 3)))
            continue
        reciprocal = int(k1 or 20), int(k2 or 6), float(weight or 0.3)
        if min(reciprocal[:2]) < 1 or reciprocal[2] > 1:
            raise UserError(f"--rerank {mode}: k1 and k2 are 1 or more, lambda is from 0 to 1")
    return expansions, reciprocal


def expand(expansions: list[Expansion], embeddings: Any, query_embeddings: Any, same_item: Any) -> tuple[Any, Any, Any]:
    """`embeddings`, `query_embeddings` and `same_item` after expansions of queries and items, one after the other."""
    for name, k, alpha in expansions:
        queries, gallery, rows = prepare_sides(embeddings, query_embeddings, same_item, "cosine")
        if name == "aqe":
            query_embeddings, same_item = expanded(queries, gallery, rows, k, alpha), rows
        elif (rows >= 0).any():
            raise UserError("--rerank dba: items would be mixed with the queries themselves; give a gallery apart")
        else:
            embeddings = expanded(gallery, gallery, np.arange(len(gallery)), k, alpha)
    return embeddings, query_embeddings, same_item


def expanded(queries: Vectors, gallery: Vectors, itself: np.ndarray, k: int, alpha: float) -> np.ndarray:
    """float64 (Q, D): each unit row plus its K nearest of the gallery, other than row `itself` (Q,), weighted by their
    cosine similarity (0 where it is negative) to the power of alpha (Radenovic, Tolias and Chum, Fine-tuning CNN Image
    Retrieval with No Human Annotation, TPAMI 2019); with alpha 0 the average of Chum et al. (ICCV 2007)."""
    found = queries.uncentred(slice(0, len(queries)))
    k = min(k, len(gallery) - int((itself >= 0).any()))
    scores = similarity_scores(queries, gallery)
    for part in portions(len(queries), len(gallery)):
        similarity = scores(part)
        row = np.flatnonzero(itself[part] >= 0)
        similarity[row, itself[part][row]] = -np.inf
        near, items = torch.from_numpy(similarity).topk(k, dim=1)
        weights = np.maximum(1 + near.numpy(), 0) ** alpha
        for row, weight, item in zip(range(part.start, part.stop), weights, items.numpy(), strict=True):
            found[row] += weight @ gallery.uncentred(item)
    return found


def k_reciprocal_scores(
    queries: Vectors, gallery: Vectors, itself: np.ndarray, k1: int, k2: int, weight: float
) -> tuple[Scores, float]:
    """Minus the distances of Zhong et al. (Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017):
    ``(1 - lambda) d_J + lambda d``, d being the squared distance divided by the query's largest, d_J the Jaccard
    distance of k-reciprocal sets among all queries and items; and what rounding may change them by.

    As in the authors' program, which published figures come from, the nearest k1 are counted without the row itself and
    the nearest k2 with it, and a set joins another that it shares more than two thirds of itself with (in the paper:
    two thirds or more).
    """
    joint, first, size = gallery, 0, len(gallery)
    if queries is not gallery:
        if (itself >= 0).any():
            raise UserError("--rerank k_reciprocal: some queries are in the gallery; give all images as one file")
        rows = {"rows": np.concatenate([queries.raw, gallery.raw])}
        (joint,), first = as_vectors(rows, gallery.distance), len(queries)
    similarity, total = similarity_scores(joint, joint), len(joint)
    near, furthest = np.empty((total, min(max(k1 + 1, k2), total)), dtype=np.int64), np.empty(total)
    for part in portions(total, total):
        nearness = similarity(part)
        furthest[part] = np.maximum(-nearness.min(axis=1), 1e-300)
        nearness[np.arange(len(nearness)), np.arange(part.start, part.stop)] = np.inf
        near[part] = torch.from_numpy(nearness).topk(near.shape[1], dim=1).indices.numpy()
    codes = _reciprocal_sets(near, k1)
    pairs = codes.tocoo()
    for part in chunks(pairs.nnz, joint.raw.shape[1]):
        query, item = pairs.coords[0][part], pairs.coords[1][part]
        distance = np.square(joint.rows(query) - joint.rows(item)).sum(axis=1) / 2
        codes.data[part] = np.exp(-distance / furthest[query])
    codes.data /= np.repeat(codes.sum(axis=1), np.diff(codes.indptr))
    codes = _rows_of(np.full(total, min(k2, total)), near[:, :k2].ravel(), total) @ codes / min(k2, total)
    items = codes[first:].tocsc()

    def scores(part: slice) -> np.ndarray:
        found = similarity(part)[:, first:] / furthest[part, None]
        for row, query in zip(found, range(part.start, part.stop), strict=True):
            own = slice(*codes.indptr[query : query + 2])
            others = items[:, codes.indices[own]]
            least = np.minimum(others.data, np.repeat(codes.data[own], np.diff(others.indptr)))
            shared = np.bincount(others.indices, least, size)
            row[:] = weight * row - (1 - weight) * (1 - shared / (2 - shared))
        return found

    return scores, max(1e-12, 2 * joint.error(np.float64) / furthest.min(initial=1.0))


def _reciprocal_sets(near: np.ndarray, k: int) -> Any:
    """Sparse (N, N), above 0 where a row's k-reciprocal set, expanded by sets of half that k, has an item; `near` is
    int64 (N, k + 1 or more): each row itself, then its nearest."""
    whole, half = (_mutual(near[:, : depth + 1]) for depth in (k, round(k / 2)))
    sizes, found = half.sum(axis=1), []
    for part in portions(len(near), near.shape[1] ** 2):
        own = whole[part]
        joins = own.multiply(own @ half.T).tocsr()
        joins.data = (joins.data > 2 / 3 * sizes[joins.indices]).astype(np.float64)
        joins.eliminate_zeros()
        found.append(own + joins @ half)
    return sparse.csr_array(sparse.vstack(found))


def _mutual(near: np.ndarray) -> Any:
    """Sparse (N, N), 1 where each of two rows is among the nearest of the other; `near` is int64 (N, k)."""
    counts, found = np.empty(len(near), dtype=np.int64), []
    for part in portions(len(near), near.shape[1] ** 2):
        rows = np.arange(part.start, part.stop)
        both = (near[near[part]] == rows[:, None, None]).any(axis=2)
        counts[part] = both.sum(axis=1)
        found.append(near[part][both])
    return _rows_of(counts, np.concatenate(found), len(near))


def _rows_of(counts: np.ndarray, columns: np.ndarray, total: int) -> Any:
    """Sparse (N, total) with so many ones in each row, at these columns."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((np.ones(len(columns)), columns, starts), shape=(len(counts), total))
