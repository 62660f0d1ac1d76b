"""The exact engine: blocks of the similarity matrix in float32, from which only counts are kept.

What ranks before a positive is all that any metric needs, so nothing is sorted. In self-retrieval one triangle of the matrix is computed
and every block is read twice, by rows and by columns. A pair that float32 cannot decide (within the rounding bound of a positive) is
decided in float64; nothing depends on the size of the blocks or the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from retrieval_bench.evaluation.buckets import BATCH, Buckets
from retrieval_bench.evaluation.matching import Matching
from retrieval_bench.evaluation.tiles import tiles
from retrieval_bench.evaluation.vectors import Side, Vectors

Goal = Literal["first", "top", "all"]
"""How far counts must be right: for each query's best positive; for it, and for every positive among the first R; for every positive."""
BLOCK = {"cpu": 2048, "cuda": 8192}
PIECE = 1 << 18
STRETCH = 128
"""Neighbouring items of a block that are passed over together."""


def count_blocked(matching: Matching, goal: Goal, device: str = "cpu", memory: float = 1e9) -> np.ndarray:
    """How many negatives rank before each positive; a negative of equal similarity ranks before it.

    Equal means: not told apart by float64 (:func:`retrieval_bench.evaluation.vectors.tolerance`).

    Args:
        matching: the search.
        goal: see :data:`Goal`; a count that the goal does not ask for is at least R.
        device: ``cpu`` or ``cuda``.
        memory: bytes that float32 copies of the embeddings may take; beyond it, blocks are converted whenever they are needed.

    Returns:
        int64 (sum of R,), in the order of :attr:`Matching.positives`.
    """
    counter = Counter(matching, goal, device, memory)
    size = BLOCK[device]
    buffer = torch.empty(size * size, device=device)  # one for all blocks, which so stays in the processor's cache
    with full_precision():
        for rows, columns in tiles(len(matching.query_order), len(matching.gallery_order), size, matching.symmetric):
            left, right = counter.queries.block(rows), counter.gallery.block(columns)
            similarity = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.T, out=similarity)
            hide_positives(similarity, matching, rows, columns)
            counter.add(similarity, rows, columns)
            if matching.symmetric and columns != rows:
                counter.add(similarity.T, columns, rows)
    return counter.result()


class Counter:
    """Adds up, block by block, how many negatives rank before the positives."""

    def __init__(self, matching: Matching, goal: Goal, device: str, memory: float):
        self.matching = matching
        self.device = torch.device(device)
        alike = matching.symmetric and matching.queries.distance == "cosine"
        share = memory if alike else memory / 2
        self.queries = Blocks(matching.queries, matching.query_order, "left", self.device, share)
        self.gallery = (
            self.queries if alike else Blocks(matching.gallery, matching.gallery_order, "right", self.device, share)
        )
        has_positive = matching.counts > 0
        self.first = np.full(len(has_positive), np.inf)
        self.first[has_positive] = matching.limits[matching.starts[:-1][has_positive]]
        self.low, self.high = (
            self._limits(self.first + shift) for shift in (-matching.gallery.error, matching.gallery.error)
        )
        self.counts = np.zeros(len(self.first), dtype=np.int64)
        self.close: list[tuple[np.ndarray, np.ndarray]] = []
        self.buckets = None if goal == "first" else Buckets(matching, deep=goal == "all")
        self.floor = self.low.clone()
        if self.buckets is not None:
            if goal == "top":
                self._look_ahead()
            self._lift(slice(0, len(self.first)))

    def add(self, similarity: Tensor, queries: slice, items: slice) -> None:
        """Takes in a block of similarities (queries by items), with positives hidden.

        Most stretches of a row have nothing that ranks before the query's best positive, which their largest similarity tells.
        """
        wide = STRETCH if similarity.shape[1] % STRETCH == 0 else similarity.shape[1]
        stretches = similarity.unflatten(1, (-1, wide))
        reached = largest(similarity, wide) >= torch.minimum(self.low[queries], self.floor[queries])[:, None]
        rows, parts = reached.nonzero(as_tuple=True)
        if not len(rows):
            return
        similarity = stretches[rows, parts] if len(rows) < reached.numel() else stretches.reshape(-1, wide)
        places = rows + queries.start
        low, high = self.low[places], self.high[places]
        surely, maybe = count_at_least(similarity, high), count_at_least(similarity, low)
        query, first_item = places.cpu().numpy(), items.start + wide * parts.cpu().numpy()
        self.counts[queries] += np.bincount(rows.cpu().numpy(), surely, queries.stop - queries.start).astype(np.int64)
        unsure = np.flatnonzero(surely != maybe)
        if len(unsure):
            self._set_aside(similarity, unsure, query, first_item)
        if self.buckets is not None:
            row, item, value = above(similarity, self.floor[places])
            self.buckets.add(query[row], item + first_item[row], value)
            if len(row) > (queries.stop - queries.start) // 2:
                self._lift(queries)

    def result(self) -> np.ndarray:
        """int64 (sum of R,) counts."""
        self._decide()
        matching = self.matching
        ahead = (
            np.full(len(matching.positives), len(matching.gallery_order))
            if self.buckets is None
            else self.buckets.ahead()
        )
        has_positive = matching.counts > 0
        ahead[matching.starts[:-1][has_positive]] = self.counts[has_positive]
        return ahead

    def _set_aside(self, similarity: Tensor, unsure: np.ndarray, query: np.ndarray, first_item: np.ndarray) -> None:
        """Keeps the pairs of a block that are too close to a query's best positive for float32."""
        for start in range(0, len(unsure), 64):
            rows = unsure[start : start + 64]
            chosen, places = (
                similarity[torch.from_numpy(rows).to(self.device)],
                torch.from_numpy(query[rows]).to(self.device),
            )
            close = (chosen >= self.low[places, None]) & (chosen < self.high[places, None])
            row, item = (found.cpu().numpy() for found in close.nonzero(as_tuple=True))
            self.close.append((query[rows[row]], item + first_item[rows[row]]))
            if sum(len(asked) for asked, _ in self.close) > BATCH:
                self._decide()

    def _decide(self) -> None:
        """Counts, in float64, the pairs that were set aside."""
        if self.close:
            query, item = (np.concatenate(parts) for parts in zip(*self.close, strict=True))
            self.close = []
            np.add.at(self.counts, query[self.matching.exact(query, item) >= self.first[query]], 1)

    def _look_ahead(self) -> None:
        """Gives up, by a sample of the gallery, positives that surely are not among the first R."""
        matching, size = self.matching, len(self.matching.gallery_order)
        assert self.buckets is not None
        sample = np.unique(np.linspace(0, size - 1, min(size, max(512, size // 64))).astype(np.int64))
        items = torch.from_numpy(matching.gallery.single(matching.gallery_order[sample], "right")).to(self.device)
        classes = torch.from_numpy(matching.gallery_classes[sample]).to(self.device)
        asked = torch.from_numpy(matching.classes).to(self.device)
        seen = Buckets(matching, deep=False)
        self.buckets.alive = seen.alive
        with full_precision():
            for start in range(0, len(self.first), BLOCK[self.device.type]):
                rows = slice(start, min(start + BLOCK[self.device.type], len(self.first)))
                similarity = self.queries.block(rows) @ items.T
                similarity.masked_fill_(asked[rows, None] == classes, -torch.inf)
                floor = self._limits(seen.floor(rows) - matching.gallery.error)
                row, item, value = above(similarity, floor)
                seen.add(row + start, sample[item], value)
                seen.floor(rows)

    def _lift(self, queries: slice) -> None:
        """Raises the floor, below which negatives are not counted, of some queries."""
        if self.buckets is not None:
            self.floor[queries] = self._limits(self.buckets.floor(queries) - self.matching.gallery.error)

    def _limits(self, values: np.ndarray) -> Tensor:
        """float32 on the device: similarities as inner products."""
        values = values + self.matching.gallery.offset
        return torch.from_numpy(np.maximum(values, -8).astype(np.float32)).to(
            self.device
        )  # -8: below all, above a hidden positive


class Blocks:
    """float32 blocks of vectors in a given order: converted once if they fit into `memory` bytes, else whenever they are asked for."""

    def __init__(self, vectors: Vectors, order: np.ndarray, side: Side, device: torch.device, memory: float):
        self.vectors = vectors
        self.side: Side = side
        self.order = order
        self.device = device
        self.kept: Tensor | None = None
        if 4 * len(order) * vectors.size <= memory:
            self.kept = torch.empty(len(order), vectors.size, device=device)
            step = max(1, PIECE // vectors.size)
            for start in range(0, len(order), step):
                self.kept[start : start + step] = self._converted(slice(start, start + step))

    def block(self, rows: slice) -> Tensor:
        """float32 (n, size): the vectors at places `rows`."""
        return self._converted(rows) if self.kept is None else self.kept[rows]

    def _converted(self, rows: slice) -> Tensor:
        return torch.from_numpy(self.vectors.single(self.order[rows], self.side)).to(self.device)


def largest(similarity: Tensor, wide: int) -> Tensor:
    """(n, m / wide): the largest value of each stretch of `wide` entries of a row, read in the order of memory."""
    if similarity.is_contiguous():
        return similarity.unflatten(1, (-1, wide)).amax(2)
    return similarity.T.unflatten(0, (-1, wide)).amax(1).T


def count_at_least(similarity: Tensor, limits: Tensor) -> np.ndarray:
    """int64 (n,): how many of each row are at least the row's limit."""
    return (similarity >= limits[:, None]).view(torch.uint8).sum(1, dtype=torch.int32).cpu().numpy().astype(np.int64)


def above(similarity: Tensor, floor: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of all entries that are at least their row's floor."""
    rows, columns = (similarity >= floor[:, None]).nonzero(as_tuple=True)
    return rows.cpu().numpy(), columns.cpu().numpy(), similarity[rows, columns].cpu().numpy()


def hide_positives(similarity: Tensor, matching: Matching, rows: slice, columns: slice) -> None:
    """Puts -inf where query and item are of one class: what remains are negatives."""
    classes = matching.classes[rows]
    first = np.clip(matching.gallery_starts[classes], columns.start, columns.stop)
    counts = np.clip(matching.gallery_starts[classes + 1], columns.start, columns.stop) - first
    if not counts.any():
        return
    begins = (
        np.arange(len(classes)) * similarity.shape[1] + first - columns.start
    )  # of each row's positives, in flat memory
    flat = np.repeat(begins - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    similarity.view(-1).index_fill_(0, torch.from_numpy(flat).to(similarity.device), -torch.inf)


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32, whatever the process has set for training."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process uses torch's newer setting, which forbids to ask for the older one
        matmul = torch.backends.cuda.matmul
        newer = matmul.fp32_precision
        matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
