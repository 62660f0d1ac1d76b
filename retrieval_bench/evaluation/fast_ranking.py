"""The fast engine, with the reference engine's result: counts from blocks of the similarity matrix in float32.

The number of negatives before each positive is all that any metric needs, so nothing is sorted. In self-retrieval one
triangle of the matrix is computed and every block is read by rows and by columns. A pair that float32 cannot decide
(within the rounding bound of a positive) is decided in float64; nothing depends on blocks or threads. Queries with many
positives, or with many pairs to look at one by one, are left to :mod:`retrieval_bench.evaluation.row_ranking`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from retrieval_bench.device import full_precision
from retrieval_bench.evaluation import row_ranking
from retrieval_bench.evaluation.between import Between, PairQueue
from retrieval_bench.evaluation.retrieval_task import RetrievalTask
from retrieval_bench.evaluation.vectors import Copies

BLOCK = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of a block, by device."""
STRETCH = 128
"""Neighbouring items of a block that are skipped together."""
MANY = 0.4
"""Share of a block's stretches beyond which none is skipped: picking them would take longer."""
BEHIND = -8.0
"""Less than any inner product."""
DECIDED = 8
"""Pairs that cost as much as one that float64 decides."""
SHARE = {"positives": 1 / 16, "pairs": 1 / 64, "queries": 1 / 2}
"""Of the gallery: positives, and pairs that are looked at one by one, beyond which a query is ranked by itself; of the
queries: how many such ones make it pay to rank all by themselves."""


def count_negatives(task: RetrievalTask, device: str = "cpu", memory: float = 1e9) -> np.ndarray:
    """As :func:`retrieval_bench.evaluation.row_ranking.count_negatives`.

    Args:
        task: queries and gallery.
        device: ``cpu`` or ``cuda``.
        memory: bytes that copies of the embeddings may take; beyond it, blocks are converted when needed.
    """
    counts = np.empty(task.starts[-1], dtype=np.int64)
    alone = (task.kept > max(1, SHARE["positives"] * len(task.gallery_order))) | (task.kept == 0)
    with full_precision():
        counter = None if too_many(task, alone) else sweep(task, alone, device, memory)
        alone |= True if counter is None else counter.dense
        if counter is not None:
            counts[np.repeat(~alone, task.kept)] = counter.result()[np.repeat(~alone, counter.task.kept)]
        del counter
        if alone.any():
            rest = task.subset(np.flatnonzero(alone))
            counts[np.repeat(alone, task.kept)] = row_ranking.count_negatives(rest, device, memory)
    return counts


def too_many(task: RetrievalTask, alone: np.ndarray) -> bool:
    """Whether it pays to rank all queries by themselves, given which ones are in any case; equal rows count once."""
    most = SHARE["queries"] * len(alone)
    if np.count_nonzero(alone) <= most:
        return False
    return bool(alone.all()) or len(np.unique(task.queries.keys[task.query_order[alone]])) > most


def sweep(task: RetrievalTask, alone: np.ndarray, device: str, memory: float) -> Counter | None:
    """Counts of all queries but some, with more of those in its ``dense``; None where those become too many."""
    counter = Counter(replace(task, depth=np.where(alone, -1, task.depth)), torch.device(device), memory)
    size = BLOCK[device]
    buffer = torch.empty(size * size, device=device)  # one for all blocks, which so stays in the processor's cache
    counter.look_ahead()
    for rows, columns in blocks(len(task.query_order), len(task.gallery_order), size, task.symmetric):
        if too_many(task, counter.dense):
            return None
        left, right = counter.queries[rows], counter.gallery[columns]
        similarity = buffer[: len(left) * len(right)].view(len(left), len(right))
        torch.mm(left, right.T, out=similarity)
        hide_positives(similarity, task, rows, columns)
        counter.add(similarity, rows, columns)
        if task.symmetric and columns != rows:
            counter.add(similarity.T, columns, rows)
    return counter


class Counter:
    """How many negatives rank before the positives: before the best one, added up block by block; between the others,
    where that is needed, pair by pair in `between`, where only pairs above a query's `floor` matter."""

    def __init__(self, task: RetrievalTask, device: torch.device, memory: float):
        self.task, self.device = task, device
        one_copy = task.symmetric and task.queries.plain
        share = memory if one_copy else memory / 2
        self.queries = self.gallery = Copies(task.queries, task.query_order, "query", device, share, np.float32)
        if not one_copy:
            self.gallery = Copies(task.gallery, task.gallery_order, "gallery", device, share, np.float32)
        asked = task.kept > 0
        self.best = np.full(len(asked), np.inf)
        self.best[asked] = task.limits[task.starts[:-1][asked]]
        self.low, self.high = (self._products(self.best + sign * task.gallery.error()) for sign in (-1, 1))
        self.before_best = np.zeros(len(self.best), dtype=np.int64)
        self.undecided = PairQueue(self._decide)
        self.between = Between(task) if (task.kept > 1).any() else None
        self.floor = self.low.clone()
        self.dense = np.zeros(len(asked), dtype=bool)
        self.pairs = np.zeros(len(asked), dtype=np.int64)
        self.most = SHARE["pairs"] * len(task.gallery_order)

    def add(self, similarity: Tensor, queries: slice, items: slice) -> None:
        """Counts a block of similarities (queries by items), with positives hidden. Most stretches of a row have
        nothing that ranks before the query's positives, as their largest similarity tells."""
        wide = STRETCH if similarity.shape[1] % STRETCH == 0 else similarity.shape[1]
        stretches = similarity.unflatten(1, (-1, wide))
        by_memory = similarity.is_contiguous()  # a transposed block is read in the order of memory too
        largest = stretches.amax(2) if by_memory else similarity.T.unflatten(0, (-1, wide)).amax(1).T
        reached = largest >= torch.minimum(self.low[queries], self.floor[queries])[:, None]
        rows, parts = reached.nonzero(as_tuple=True)
        if not len(rows):
            return
        if len(rows) > MANY * reached.numel():
            rows, parts = torch.ones_like(reached).nonzero(as_tuple=True)
            similarity = similarity.contiguous().view(-1, wide)
        else:
            similarity = stretches[rows, parts]
        numbers = rows + queries.start
        surely, perhaps = (count_at_least(similarity, limit[numbers]) for limit in (self.high, self.low))
        above = perhaps - surely
        if self.between is not None:
            alive = self.floor[numbers] < torch.inf
            above = np.zeros(len(rows), dtype=np.int32)
            above[alive.cpu().numpy()] = count_at_least(similarity[alive], self.floor[numbers[alive]])
        row, count = rows.cpu().numpy(), queries.stop - queries.start
        self.before_best[queries] += np.bincount(row, surely, count).astype(np.int64)  # far less than 2^53: exact
        self.pairs[queries] += np.bincount(row, above + DECIDED * (perhaps - surely), count).astype(np.int64)
        self.leave_out(queries.start + np.flatnonzero(self.pairs[queries] > self.most))
        kept = ~self.dense[queries][row]
        query, first_item = row + queries.start, items.start + wide * parts.cpu().numpy()
        close = np.flatnonzero(kept & (surely != perhaps))
        where, item, _ = entries(similarity, close, self.low[numbers], self.high[numbers])
        self.undecided.add(query[where], first_item[where] + item)
        if self.between is not None:
            where, item, value = entries(similarity, np.flatnonzero(kept & (above > 0)), self.floor[numbers])
            self.between.queue.add(query[where], first_item[where] + item, value)
            if len(where) > count // 2:
                self.floor[queries] = self._floor(self.between, queries)

    def leave_out(self, queries: np.ndarray) -> None:
        """Marks queries (by number) that are not counted here, and does not look at them any more."""
        self.dense[queries] = True
        for limit in (self.low, self.high, self.floor):
            limit[torch.from_numpy(queries).to(self.device)] = torch.inf
        if self.between is not None:
            self.between.alive[queries] = 0

    def result(self) -> np.ndarray:
        """int64 (sum of kept,) counts."""
        self.undecided.flush()
        task, asked = self.task, self.task.kept > 0
        counts = np.full(task.starts[-1], len(task.gallery_order)) if self.between is None else self.between.counts()
        counts[task.starts[:-1][asked]] = self.before_best[asked]
        return counts

    def look_ahead(self) -> None:
        """Gives up, by a sample of the gallery, positives that surely rank beyond the depth, and queries that would
        leave too many pairs."""
        task, size = self.task, len(self.task.gallery_order)
        if self.between is None:
            return
        sample = np.unique(np.linspace(0, size - 1, min(size, max(512, size // 64))).astype(np.int64))
        items = torch.from_numpy(task.gallery.factors(task.gallery_order[sample], "gallery")).to(self.device)
        classes = torch.from_numpy(task.gallery_classes[sample]).to(self.device)
        own_class = torch.from_numpy(task.classes).to(self.device)
        for start in range(0, len(self.best), BLOCK[self.device.type]):
            queries = slice(start, min(start + BLOCK[self.device.type], len(self.best)))
            similarity = self.queries[queries] @ items.T
            similarity.masked_fill_(own_class[queries, None] == classes, -torch.inf)
            self.between.give_up(queries, worst_of_top(similarity, task.depth[queries]))
            self.floor[queries] = floor = self._floor(self.between, queries)
            many = count_at_least(similarity, floor) * (size / len(sample)) > self.most
            self.leave_out(start + np.flatnonzero(many))

    def _decide(self, query: np.ndarray, item: np.ndarray) -> None:
        """Counts, in float64, pairs that are too close to a query's best positive for float32."""
        np.add.at(self.before_best, query[self.task.similarity(query, item) >= self.best[query]], 1)

    def _floor(self, between: Between, queries: slice) -> Tensor:
        return self._products(between.floor(queries) - self.task.gallery.error())

    def _products(self, similarity: np.ndarray) -> Tensor:
        """float32 on the device: similarities as inner products, but more than that of a hidden positive."""
        products = np.maximum(self.task.gallery.products(similarity), BEHIND).astype(np.float32)
        return torch.from_numpy(products).to(self.device)


def blocks(rows: int, columns: int, size: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Blocks of at most `size` by `size` that cover a matrix, or its upper triangle, row after row."""
    for top in range(0, rows, size):
        here = slice(top, min(top + size, rows))
        if symmetric:  # in strips, since half of each square on the diagonal is computed for nothing
            for start in range(top, here.stop, max(1, size // 4)):
                strip = slice(start, min(start + max(1, size // 4), here.stop))
                yield strip, strip
                if strip.stop < here.stop:
                    yield strip, slice(strip.stop, here.stop)
        for left in range(top + size if symmetric else 0, columns, size):
            yield here, slice(left, min(left + size, columns))


def count_at_least(similarity: Tensor, limits: Tensor) -> np.ndarray:
    """int32 (n,): how many of each row are at least the row's limit."""
    found = (similarity >= limits[:, None]).view(torch.uint8)
    if found.shape[1] == STRETCH and STRETCH % 8 == 0:  # eight counts at a time, a byte each
        found = found.view(torch.int64).sum(1, keepdim=True).view(torch.uint8)
    return found.sum(1, dtype=torch.int32).cpu().numpy()


def worst_of_top(similarity: Tensor, depth: np.ndarray) -> np.ndarray:
    """float32 (n,): the depth-th largest value of each row; -inf where there are not so many."""
    within = depth <= similarity.shape[1]
    count = max(1, int(depth[within].max(initial=1)))
    top = similarity.topk(count, dim=1).values.cpu().numpy()
    return np.where(within, top[np.arange(len(top)), np.clip(depth, 1, count) - 1], np.float32(-np.inf))


def entries(similarity: Tensor, rows: np.ndarray, low: Tensor, high: Tensor | None = None) -> tuple[np.ndarray, ...]:
    """Rows, columns and values of the entries of some rows that are at least their row's `low` and less than `high`."""
    some = torch.from_numpy(rows).to(similarity.device)
    chosen = similarity[some]
    inside = chosen >= low[some, None]
    row, column = (inside if high is None else inside & (chosen < high[some, None])).nonzero(as_tuple=True)
    return rows[row.cpu().numpy()], column.cpu().numpy(), chosen[row, column].cpu().numpy()


def hide_positives(similarity: Tensor, task: RetrievalTask, rows: slice, columns: slice) -> None:
    """Puts -inf where query and item are of one class: what remains are negatives."""
    classes = task.classes[rows]
    first = np.clip(task.gallery_starts[classes], columns.start, columns.stop)
    counts = np.clip(task.gallery_starts[classes + 1], columns.start, columns.stop) - first
    if not counts.any():
        return
    starts = np.arange(len(classes)) * similarity.shape[1] + first - columns.start  # in flat memory
    flat = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    similarity.view(-1).index_fill_(0, torch.from_numpy(flat).to(similarity.device), -torch.inf)
