"""Who should find whom: queries and gallery sorted by class, and the similarities of each query's positives."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval_bench.evaluation.vectors import Vectors, paired_similarities, similarities, tolerance

ROWS = 1024
"""Rows of classes of one size that are compared together."""


@dataclass(frozen=True)
class Matching:
    """A search: some queries in a gallery. Row numbers below are places in an order sorted by class, in which each class is one range.

    Attributes:
        queries: all queries' vectors.
        gallery: the gallery's; the same object in self-retrieval.
        query_order: int64 (Q,), which queries, sorted by class.
        gallery_order: int64 (G,), the whole gallery, sorted by class.
        query_starts: int64 (C + 1,), first place of each class among the queries.
        gallery_starts: int64 (C + 1,), and in the gallery.
        itself: int64 (Q,), place in the gallery of each query's own item, -1 for none.
    """

    queries: Vectors
    gallery: Vectors
    query_order: np.ndarray
    gallery_order: np.ndarray
    query_starts: np.ndarray
    gallery_starts: np.ndarray
    itself: np.ndarray

    @cached_property
    def symmetric(self) -> bool:
        """Whether queries and gallery are the same rows, so that half of the similarities tell the other half."""
        return self.queries is self.gallery and np.array_equal(self.query_order, self.gallery_order)

    @cached_property
    def classes(self) -> np.ndarray:
        """int64 (Q,): the class of each query."""
        return np.repeat(np.arange(len(self.query_starts) - 1), np.diff(self.query_starts))

    @cached_property
    def gallery_classes(self) -> np.ndarray:
        """int64 (G,): the class of each gallery item."""
        return np.repeat(np.arange(len(self.gallery_starts) - 1), np.diff(self.gallery_starts))

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 (Q,): how many positives each query has in the gallery (R), itself left out."""
        return np.diff(self.gallery_starts)[self.classes] - (self.itself >= 0)

    @cached_property
    def starts(self) -> np.ndarray:
        """int64 (Q + 1,): where each query's positives begin in flat arrays over all of them."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def positives(self) -> np.ndarray:
        """float64 (sum of R,): similarities of each query's positives, best first."""
        flat = np.empty(self.starts[-1])
        sizes = np.stack([np.diff(self.query_starts), np.diff(self.gallery_starts)], axis=1)
        for asked, items in np.unique(sizes[(sizes > 0).all(axis=1)], axis=0).tolist():
            labels = np.flatnonzero((sizes == (asked, items)).all(axis=1))
            step = max(1, ROWS // max(asked, items))
            for start in range(0, len(labels), step):
                self._fill(flat, labels[start : start + step], asked, items)
        return flat

    def _fill(self, flat: np.ndarray, labels: np.ndarray, asked: int, items: int) -> None:
        """The part of :attr:`positives` of some classes with `asked` queries and `items` gallery rows each."""
        query = self.query_starts[labels, None] + np.arange(asked)
        item = self.gallery_starts[labels, None] + np.arange(items)
        left = self.queries.rows(self.query_order[query.ravel()]).reshape(len(labels), asked, -1)
        right = (
            left
            if self.symmetric
            else self.gallery.rows(self.gallery_order[item.ravel()]).reshape(len(labels), items, -1)
        )
        similarity = similarities(left, right)
        similarity[self.itself[query][:, :, None] == item[:, None, :]] = -np.inf
        similarity[..., ::-1].sort(axis=-1)
        wanted = np.arange(items) < self.counts[query][:, :, None]
        if len(labels) == 1:  # perhaps a large class: its positives are one stretch
            flat[self.starts[query[0, 0]] : self.starts[query[0, -1] + 1]] = similarity[wanted]
        else:
            flat[(self.starts[query][:, :, None] + np.arange(items))[wanted]] = similarity[wanted]

    @cached_property
    def limits(self) -> np.ndarray:
        """float64 (sum of R,): a negative of at least this similarity ranks before the positive; equal ones do."""
        return self.positives - tolerance(self.positives)

    def exact(self, query: np.ndarray, item: np.ndarray) -> np.ndarray:
        """float64 (n,): similarities of pairs of places; of queries with items all at once where the pairs are most of those."""
        asked, row = np.unique(query, return_inverse=True)
        items, column = np.unique(item, return_inverse=True)
        if len(query) < len(asked) * len(items) / 16:
            return paired_similarities(self.queries, self.query_order[query], self.gallery, self.gallery_order[item])
        out = np.empty(len(query))
        for start in range(0, len(asked), 64):
            here = np.flatnonzero((row >= start) & (row < start + 64))
            left = self.queries.rows(self.query_order[asked[start : start + 64]])
            block = similarities(left, self.gallery.rows(self.gallery_order[items]))
            out[here] = block[row[here] - start, column[here]]
        return out


def match(
    queries: Vectors, query_codes: np.ndarray, gallery: Vectors, gallery_codes: np.ndarray, itself: np.ndarray
) -> Matching:
    """Sorts both sides by class.

    Args:
        queries: Q vectors.
        query_codes: int (Q,), classes 0..C-1.
        gallery: G vectors, the same object in self-retrieval.
        gallery_codes: int (G,).
        itself: int (Q,), gallery row that is the query itself, -1 for none; of the query's class.
    """
    classes = int(max(query_codes.max(initial=-1), gallery_codes.max(initial=-1))) + 1
    query_order, gallery_order = np.argsort(query_codes, kind="stable"), np.argsort(gallery_codes, kind="stable")
    place = np.empty(len(gallery_order) + 1, dtype=np.int64)
    place[gallery_order], place[-1] = np.arange(len(gallery_order)), -1
    starts = [
        np.searchsorted(codes[order], np.arange(classes + 1))
        for codes, order in ((query_codes, query_order), (gallery_codes, gallery_order))
    ]
    return Matching(queries, gallery, query_order, gallery_order, starts[0], starts[1], place[itself[query_order]])


def portions(matching: Matching, limit: int) -> list[Matching]:
    """The same search in portions of queries that have at most about `limit` positives each; one portion keeps the symmetry."""
    if matching.counts.sum() <= limit:
        return [matching]
    cuts = np.searchsorted(matching.starts, np.arange(limit, matching.starts[-1], limit))
    edges = np.unique(np.concatenate([[0], cuts, [len(matching.query_order)]]))
    return [subset(matching, np.arange(start, stop)) for start, stop in itertools.pairwise(edges)]


def subset(whole: Matching, places: np.ndarray) -> Matching:
    """The search for some of the queries, at ascending `places`."""
    starts = np.searchsorted(places, whole.query_starts)
    return Matching(
        whole.queries,
        whole.gallery,
        whole.query_order[places],
        whole.gallery_order,
        starts,
        whole.gallery_starts,
        whole.itself[places],
    )
