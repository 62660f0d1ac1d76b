"""Who should find whom: queries and gallery sorted by class, and the similarities of each query's positives."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrieval_bench.evaluation.vectors import Vectors

PIECE = 1 << 20
"""Numbers that are multiplied at once."""


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

    @property
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
        for asked, items in np.unique(sizes[(sizes > 0).all(axis=1)], axis=0).tolist():  # classes of one size together
            alike = np.flatnonzero((sizes == (asked, items)).all(axis=1))
            step = max(1, PIECE // ((asked + items) * self.queries.size + asked * items))
            for start in range(0, len(alike), step):
                self._fill(flat, alike[start : start + step], asked, items)
        return flat

    def _fill(self, flat: np.ndarray, labels: np.ndarray, asked: int, items: int) -> None:
        """The part of :attr:`positives` of some classes that have the same numbers of queries and items."""
        queries = self.query_starts[labels, None] + np.arange(asked)
        gallery = self.gallery_starts[labels, None] + np.arange(items)
        left = self.queries.left(self.query_order[queries.ravel()]).reshape(len(labels), asked, -1)
        right = self.gallery.right(self.gallery_order[gallery.ravel()]).reshape(len(labels), items, -1)
        similarity = left @ right.transpose(0, 2, 1)
        similarity[self.itself[queries][:, :, None] == gallery[:, None]] = -np.inf
        similarity[..., ::-1].sort(axis=2)
        places = self.starts[queries][:, :, None] + np.arange(items)
        wanted = np.arange(items) < self.counts[queries][:, :, None]
        flat[places[wanted]] = similarity[wanted]

    def query_range(self, label: int) -> slice:
        """Places of the queries of a class."""
        return slice(int(self.query_starts[label]), int(self.query_starts[label + 1]))

    def gallery_range(self, label: int) -> slice:
        """Places of the gallery items of a class."""
        return slice(int(self.gallery_starts[label]), int(self.gallery_starts[label + 1]))


def match(queries: Vectors, query_codes: np.ndarray, gallery: Vectors, gallery_codes: np.ndarray, itself: np.ndarray) -> Matching:
    """Sorts both sides by class.

    Args:
        queries: Q vectors.
        query_codes: int (Q,), classes 0..C-1.
        gallery: G vectors, the same object in self-retrieval.
        gallery_codes: int (G,).
        itself: int (Q,), gallery row that is the query itself, -1 for none.
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
        whole.queries, whole.gallery, whole.query_order[places], whole.gallery_order, starts, whole.gallery_starts, whole.itself[places]
    )
