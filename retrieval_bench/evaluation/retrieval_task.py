"""Which items each query should find: queries and gallery sorted by class, and the similarities of the positives."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retrieval_bench.evaluation.metrics import EVERY_RANK
from retrieval_bench.evaluation.vectors import Vectors, chunks, similarities, tolerance

ROWS = 1024
"""Rows of classes of one size that are compared together."""
LARGE = 128
"""Items of a class that is compared by itself, beyond which products are much faster than differences."""


@dataclass(frozen=True)
class RetrievalTask:
    """Some queries and a gallery (the same object in self-retrieval), both sorted by class, so that each class is one
    range. Numbers of queries and items count in that order."""

    queries: Vectors
    gallery: Vectors
    query_order: np.ndarray
    """int64 (Q,): which rows of `queries`, sorted by class."""
    gallery_order: np.ndarray
    """int64 (G,): all rows of `gallery`, sorted by class."""
    query_starts: np.ndarray
    """int64 (C + 1,): the first query of each class."""
    gallery_starts: np.ndarray
    """int64 (C + 1,): the first item of each class."""
    same_item: np.ndarray
    """int64 (Q,): the item that is the query itself, -1 for none."""
    depth: np.ndarray
    """int64 (Q,): up to which rank all ranks are asked for, beside that of the best positive; -1 for not even that."""
    flattering: bool = False
    """Whether a negative as similar as a positive ranks behind it."""

    @cached_property
    def symmetric(self) -> bool:
        """Whether queries and gallery are the same rows, so that one triangle of similarities gives the other."""
        return self.queries is self.gallery and np.array_equal(self.query_order, self.gallery_order)

    @cached_property
    def classes(self) -> np.ndarray:
        """int64 (Q,): the class of each query."""
        return np.repeat(np.arange(len(self.query_starts) - 1), np.diff(self.query_starts))

    @cached_property
    def gallery_classes(self) -> np.ndarray:
        """int64 (G,): the class of each item."""
        return np.repeat(np.arange(len(self.gallery_starts) - 1), np.diff(self.gallery_starts))

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 (Q,): how many positives each query has in the gallery (R), itself left out."""
        return np.diff(self.gallery_starts)[self.classes] - (self.same_item >= 0)

    @cached_property
    def kept(self) -> np.ndarray:
        """int64 (Q,): how many positives are ranked: the best ones, as many as may rank within the depth."""
        return np.where(self.depth < 0, 0, np.minimum(self.counts, np.maximum(self.depth, 1)))

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 (Q + 1,): where each query's positives begin in flat arrays over all that are ranked."""
        return np.concatenate([[0], np.cumsum(self.kept)])

    def places(self, queries: slice) -> np.ndarray:
        """int64: 0 for the best positive of each of some queries, 1 for its next, ..., in flat order."""
        starts = self.starts[queries.start : queries.stop + 1]
        return np.arange(starts[0], starts[-1]) - np.repeat(starts[:-1], np.diff(starts))

    @cached_property
    def positives(self) -> np.ndarray:
        """float64 (sum of kept,): similarities of each query's best positives, best first; small classes of one size
        together, a large one by itself."""
        flat, asked = np.empty(self.starts[-1]), np.add.reduceat(np.append(self.kept, 0), self.query_starts[:-1]) > 0
        sizes = np.stack([np.diff(self.query_starts), np.diff(self.gallery_starts)], axis=1)
        for queries, items in np.unique(sizes[asked & (sizes > 0).all(axis=1)], axis=0).tolist():
            classes = np.flatnonzero((sizes == (queries, items)).all(axis=1) & asked)
            if items > LARGE:
                for number in classes.tolist():
                    self._fill_large(flat, number)
                continue
            step = max(1, ROWS // max(queries, items))
            for start in range(0, len(classes), step):
                self._fill(flat, classes[start : start + step], queries, items)
        return flat

    def _fill(self, flat: np.ndarray, classes: np.ndarray, queries: int, items: int) -> None:
        """The part of :attr:`positives` of some classes with `queries` queries and `items` items each."""
        query = self.query_starts[classes, None] + np.arange(queries)
        item = self.gallery_starts[classes, None] + np.arange(items)
        left = self.queries.rows(self.query_order[query.ravel()]).reshape(len(classes), queries, -1)
        right = left
        if not self.symmetric:
            right = self.gallery.rows(self.gallery_order[item.ravel()]).reshape(len(classes), items, -1)
        similarity = similarities(left, right)
        similarity[self.same_item[query][:, :, None] == item[:, None, :]] = -np.inf
        similarity[..., ::-1].sort(axis=-1)
        kept = np.arange(items) < self.kept[query][:, :, None]
        flat[(self.starts[query][:, :, None] + np.arange(items))[kept]] = similarity[kept]

    def _fill_large(self, flat: np.ndarray, number: int) -> None:
        """The part of :attr:`positives` of a class, by products of rows centred on its mean; those that rounding might
        order wrongly by differences."""
        first, last = self.query_starts[number : number + 2].tolist()
        offset, stop = self.gallery_starts[number : number + 2].tolist()
        items = self.gallery.rows(self.gallery_order[offset:stop])
        centre = items.mean(axis=0)
        items -= centre
        lengths = -0.5 * np.einsum("nd,nd->n", items, items)
        items = np.column_stack([items, np.ones(len(items)), lengths])
        for part in chunks(last - first, max(items.shape) // 4):
            query = np.arange(first + part.start, first + part.stop)
            keep = self.kept[query]
            if not (most := int(keep.max())):
                continue
            left = self.queries.rows(self.query_order[query]) - centre
            own = -0.5 * np.einsum("nd,nd->n", left, left)
            similarity = np.column_stack([left, own, np.ones(len(left))]) @ items.T
            error = 3 * (items.shape[1] + 8) * 2.0**-52 * max(-own.min(), -lengths.min())
            itself = np.flatnonzero(self.same_item[query] >= 0)
            similarity[itself, self.same_item[query[itself]] - offset] = -np.inf
            row, item = (similarity >= _best(similarity, most)[:, -1:] - 2 * error).nonzero()
            doubtful = tolerance(similarity[row, item]) < 8 * error
            row, item = row[doubtful], item[doubtful]
            if len(row):
                similarity[row, item] = self._exactly(query[row], item + offset)
            best = _best(similarity, most)
            flat[self.starts[query[0]] : self.starts[query[-1] + 1]] = best[np.arange(most) < keep[:, None]]

    def _exactly(self, query: np.ndarray, item: np.ndarray) -> np.ndarray:
        """:meth:`similarity` of pairs of which many may be of equal rows."""
        found = np.zeros(len(query))
        keys = self.queries.keys[self.query_order[query]], self.gallery.keys[self.gallery_order[item]]
        differ = np.flatnonzero(keys[0] != keys[1])
        found[differ] = self.similarity(query[differ], item[differ])
        return found

    @cached_property
    def limits(self) -> np.ndarray:
        """float64 (sum of kept,): a negative of at least this similarity ranks before the positive."""
        return self.limits_of(self.positives)

    def limits_of(self, positives: np.ndarray) -> np.ndarray:
        """float64: limits of positives of some similarities."""
        return positives + tolerance(positives) if self.flattering else positives - tolerance(positives)

    def similarity(self, query: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float64 (n,): similarities of pairs."""
        found = np.empty(len(query))
        for part in chunks(len(query), self.gallery.width):
            difference = self.queries.rows(self.query_order[query[part]])
            difference -= self.gallery.rows(self.gallery_order[item[part]])
            found[part] = -0.5 * np.einsum("nd,nd->n", difference, difference)
        return found

    def subset(self, queries: np.ndarray) -> RetrievalTask:
        """The task of some of the queries, given by ascending numbers."""
        starts = np.searchsorted(queries, self.query_starts)
        per_query = {name: getattr(self, name)[queries] for name in ("query_order", "same_item", "depth")}
        return replace(self, query_starts=starts, **per_query)

    def portions(self, limit: int) -> list[RetrievalTask]:
        """The task in portions of queries with about `limit` positives at most; a single one keeps the symmetry."""
        if self.starts[-1] <= limit:
            return [self]
        inner = np.searchsorted(self.starts, np.arange(limit, self.starts[-1], limit))
        edges = np.unique(np.concatenate([[0], inner, [len(self.query_order)]]))
        return [self.subset(np.arange(start, stop)) for start, stop in itertools.pairwise(edges)]


def _best(similarity: np.ndarray, count: int) -> np.ndarray:
    """(n, count): the largest values of each row, best first."""
    if count == 1:  # much faster than a partition
        return similarity.max(axis=1, keepdims=True)
    return np.sort(np.partition(similarity, -count, axis=1)[:, -count:], axis=1)[:, ::-1]


def retrieval_task(
    queries: Vectors,
    query_codes: np.ndarray,
    gallery: Vectors,
    gallery_codes: np.ndarray,
    same_item: np.ndarray,
    depth: int = EVERY_RANK,
) -> RetrievalTask:
    """Sorts both sides by class: codes are int (Q,) and (G,), 0..C-1; `same_item` is int (Q,), the row of the gallery
    that is the query itself and so of its class, -1 for none."""
    classes = np.arange(int(max(query_codes.max(initial=-1), gallery_codes.max(initial=-1))) + 2)
    query_order, gallery_order = np.argsort(query_codes, kind="stable"), np.argsort(gallery_codes, kind="stable")
    number = np.full(len(gallery_order) + 1, -1)  # of each gallery row; the last one, which -1 selects, is none
    number[gallery_order] = np.arange(len(gallery_order))
    query_starts = np.searchsorted(query_codes[query_order], classes)
    gallery_starts = np.searchsorted(gallery_codes[gallery_order], classes)
    same_item = number[same_item[query_order]]
    every = np.full(len(query_order), depth)
    return RetrievalTask(queries, gallery, query_order, gallery_order, query_starts, gallery_starts, same_item, every)
