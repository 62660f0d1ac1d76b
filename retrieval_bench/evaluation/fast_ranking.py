"""The fast engine, with the reference engine's result: counts from blocks of the similarity matrix in float32.

The number of negatives before each positive is all that any metric needs, so nothing is sorted. In self-retrieval one
triangle of the matrix is computed and every block is read by rows and by columns. A pair that float32 cannot decide
(within the rounding bound of a positive) is decided in float64; nothing depends on blocks or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from retrieval_bench.evaluation.metrics import Needs
from retrieval_bench.evaluation.retrieval_task import RetrievalTask
from retrieval_bench.evaluation.vectors import Side, Vectors, chunks

BLOCK = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of a block, by device."""
STRETCH = 128
"""Neighbouring items of a block that are skipped together."""
BEHIND = -8.0
"""Less than any inner product."""
PAIRS = 1 << 18
"""Pairs that are processed together."""


def count_negatives(task: RetrievalTask, needs: Needs = "all", device: str = "cpu", memory: float = 1e9) -> np.ndarray:
    """As :func:`retrieval_bench.evaluation.ranking.count_negatives`.

    Args:
        task: queries and gallery.
        needs: which counts must be exact; any other is only known to give a rank larger than R.
        device: ``cpu`` or ``cuda``.
        memory: bytes that float32 copies of the embeddings may take; beyond it, blocks are converted when needed.
    """
    counter = Counter(task, needs, torch.device(device), memory)
    size = BLOCK[device]
    buffer = torch.empty(size * size, device=device)  # one for all blocks, which so stays in the processor's cache
    with full_precision():
        if needs == "top":
            counter.look_ahead()
        for rows, columns in blocks(len(task.query_order), len(task.gallery_order), size, task.symmetric):
            left, right = counter.queries[rows], counter.gallery[columns]
            similarity = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.T, out=similarity)
            hide_positives(similarity, task, rows, columns)
            counter.add(similarity, rows, columns)
            if task.symmetric and columns != rows:
                counter.add(similarity.T, columns, rows)
    return counter.result()


class Counter:
    """How many negatives rank before the positives: before the best one, added up block by block; between the others,
    where that is needed, pair by pair in `between`, where only pairs above a query's `floor` matter."""

    def __init__(self, task: RetrievalTask, needs: Needs, device: torch.device, memory: float):
        self.task, self.device = task, device
        one_copy = task.symmetric and task.queries.distance == "cosine"
        share = memory if one_copy else memory / 2
        self.queries = self.gallery = Float32Rows(task.queries, task.query_order, "query", device, share)
        if not one_copy:
            self.gallery = Float32Rows(task.gallery, task.gallery_order, "gallery", device, share)
        has_positive = task.counts > 0
        self.best = np.full(len(has_positive), np.inf)
        self.best[has_positive] = task.limits[task.starts[:-1][has_positive]]
        self.low, self.high = (self._products(self.best + sign * task.gallery.error) for sign in (-1, 1))
        self.before_best = np.zeros(len(self.best), dtype=np.int64)
        self.undecided = PairQueue(self._decide)
        self.between = None if needs == "first" else Histogram(task, everything=needs == "all")
        self.floor = self.low.clone() if self.between is None else self._floor(self.between, slice(0, len(self.best)))

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
        similarity = stretches[rows, parts] if len(rows) < reached.numel() else stretches.reshape(-1, wide)
        numbers = rows + queries.start
        low, high = self.low[numbers], self.high[numbers]
        surely, perhaps = count_at_least(similarity, high), count_at_least(similarity, low)
        query, first_item = numbers.cpu().numpy(), items.start + wide * parts.cpu().numpy()
        sums = np.bincount(rows.cpu().numpy(), surely, queries.stop - queries.start)  # of far fewer than 2^53: exact
        self.before_best[queries] += sums.astype(np.int64)
        for some in torch.from_numpy(np.flatnonzero(surely != perhaps)).split(64):
            chosen = similarity[some.to(self.device)]
            close = (chosen >= low[some.to(self.device), None]) & (chosen < high[some.to(self.device), None])
            row, item = (numbers.cpu().numpy() for numbers in close.nonzero(as_tuple=True))
            self.undecided.add(query[some.numpy()[row]], first_item[some.numpy()[row]] + item)
        if self.between is not None:
            row, item, value = at_least(similarity, self.floor[numbers])
            self.between.queue.add(query[row], first_item[row] + item, value)
            if len(row) > (queries.stop - queries.start) // 2:
                self.floor[queries] = self._floor(self.between, queries)

    def result(self) -> np.ndarray:
        """int64 (sum of R,) counts."""
        self.undecided.flush()
        task = self.task
        counts = np.full(task.starts[-1], len(task.gallery_order)) if self.between is None else self.between.counts()
        has_positive = task.counts > 0
        counts[task.starts[:-1][has_positive]] = self.before_best[has_positive]
        return counts

    def look_ahead(self) -> None:
        """Gives up, by a sample of the gallery, positives that surely are not among the first R."""
        task, size = self.task, len(self.task.gallery_order)
        sample = np.unique(np.linspace(0, size - 1, min(size, max(512, size // 64))).astype(np.int64))
        items = torch.from_numpy(task.gallery.float32(task.gallery_order[sample], "gallery")).to(self.device)
        classes = torch.from_numpy(task.gallery_classes[sample]).to(self.device)
        own_class = torch.from_numpy(task.classes).to(self.device)
        seen = Histogram(task, everything=False)
        for start in range(0, len(self.best), BLOCK[self.device.type]):
            queries = slice(start, min(start + BLOCK[self.device.type], len(self.best)))
            similarity = self.queries[queries] @ items.T
            similarity.masked_fill_(own_class[queries, None] == classes, -torch.inf)
            row, item, value = at_least(similarity, self.floor[queries])
            seen.queue.add(row + start, sample[item], value)
            self.floor[queries] = self._floor(seen, queries)
        assert self.between is not None
        self.between.alive = seen.alive

    def _decide(self, query: np.ndarray, item: np.ndarray) -> None:
        """Counts, in float64, pairs that are too close to a query's best positive for float32."""
        np.add.at(self.before_best, query[self.task.similarity(query, item) >= self.best[query]], 1)

    def _floor(self, histogram: Histogram, queries: slice) -> Tensor:
        return self._products(histogram.floor(queries) - self.task.gallery.error)

    def _products(self, similarity: np.ndarray) -> Tensor:
        """float32 on the device: similarities as inner products, but more than that of a hidden positive."""
        products = np.maximum(similarity + self.task.gallery.offset, BEHIND).astype(np.float32)
        return torch.from_numpy(products).to(self.device)


class Histogram:
    """Negatives between a query's positives: element i counts those right before its positive i (0 the best); unless
    `everything` is counted, a positive is given up once it cannot be among the first R any more."""

    def __init__(self, task: RetrievalTask, everything: bool):
        self.task, self.everything = task, everything
        self.histogram = np.zeros(task.starts[-1], dtype=np.int64)
        self.alive = task.counts.copy()  # how many of each query's positives are not given up; the best ones
        self.steps = int(task.counts.max(initial=0)).bit_length() + 1
        self.queue = PairQueue(self._sort_in)

    def floor(self, queries: slice) -> np.ndarray:
        """float64 (n,): the limit of each query's worst positive that still counts, inf for none; gives some up."""
        self.queue.flush()
        starts, counts = self.task.starts[queries], self.task.counts[queries]
        if not self.everything:
            possible = self._before(queries) + self.task.places(queries) < np.repeat(counts, counts)
            query = np.repeat(np.arange(len(counts)), counts)
            self.alive[queries] = np.minimum(self.alive[queries], np.bincount(query[possible], minlength=len(counts)))
        alive = self.alive[queries]
        floor = np.full(len(counts), np.inf)
        floor[alive > 0] = self.task.limits[(starts + alive - 1)[alive > 0]]
        return floor

    def counts(self) -> np.ndarray:
        """int64 (sum of R,): negatives before each positive; the whole gallery before one that was given up."""
        self.queue.flush()
        task, every = self.task, slice(0, len(self.task.counts))
        alive = task.places(every) < np.repeat(self.alive, task.counts)
        return np.where(alive, self._before(every), len(task.gallery_order))

    def _before(self, queries: slice) -> np.ndarray:
        """int64: negatives so far before each positive of consecutive queries."""
        starts = self.task.starts[queries.start : queries.stop + 1]
        summed = np.concatenate([[0], np.cumsum(self.histogram[starts[0] : starts[-1]])])
        return summed[1:] - np.repeat(summed[starts[:-1] - starts[0]], np.diff(starts))

    def _sort_in(self, query: np.ndarray, item: np.ndarray, product: np.ndarray) -> None:
        """Counts negatives, given by their inner products; float64 decides where float32 cannot."""
        similarity, error = product.astype(np.float64) - self.task.gallery.offset, self.task.gallery.error
        place = self._place(query, similarity + error)
        unsure = np.flatnonzero(place != self._place(query, similarity - error))
        place[unsure] = self._place(query[unsure], self.task.similarity(query[unsure], item[unsure]))
        inside = place < self.task.counts[query]
        np.add.at(self.histogram, self.task.starts[query[inside]] + place[inside], 1)

    def _place(self, query: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """int64 (n,): the first of its query's positives that a negative ranks before, R for none, by binary search."""
        starts, limits = self.task.starts[query], self.task.limits
        low, high = np.zeros(len(query), dtype=np.int64), self.task.counts[query]
        for _ in range(self.steps):
            middle, is_open = (low + high) // 2, low < high
            before = limits[np.where(is_open, starts + middle, 0)] <= similarity
            high, low = np.where(is_open & before, middle, high), np.where(is_open & ~before, middle + 1, low)
        return low


class PairQueue:
    """Collects pairs, as arrays of one length, and hands many at a time to `process`, since few cost as much."""

    def __init__(self, process: Callable[..., None]):
        self.process, self.size = process, 0
        self.parts: list[tuple[np.ndarray, ...]] = []

    def add(self, *arrays: np.ndarray) -> None:
        self.parts.append(arrays)
        self.size += len(arrays[0])
        if self.size > PAIRS:
            self.flush()

    def flush(self) -> None:
        parts, size = self.parts, self.size
        self.parts, self.size = [], 0
        if size:
            self.process(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Float32Rows:
    """float32 (n, width) rows in an order, by slice: converted once if all fit into `memory` bytes, else every time."""

    def __init__(self, vectors: Vectors, order: np.ndarray, side: Side, device: torch.device, memory: float):
        self.convert = lambda rows: torch.from_numpy(vectors.float32(order[rows], side)).to(device)
        self.copy: Tensor | None = None
        if 4 * len(order) * vectors.width <= memory:
            self.copy = torch.empty(len(order), vectors.width, device=device)
            for rows in chunks(len(order), vectors.width):
                self.copy[rows] = self.convert(rows)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.convert(rows) if self.copy is None else self.copy[rows]


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
    return (similarity >= limits[:, None]).view(torch.uint8).sum(1, dtype=torch.int32).cpu().numpy()


def at_least(similarity: Tensor, floor: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of all entries that are at least their row's floor."""
    rows, columns = (similarity >= floor[:, None]).nonzero(as_tuple=True)
    return rows.cpu().numpy(), columns.cpu().numpy(), similarity[rows, columns].cpu().numpy()


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


@contextmanager
def full_precision() -> Iterator[None]:
    """Float32 products in float32, whatever the process has set for training."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process uses torch's newer setting, which forbids to ask for the older one
        matmul = torch.backends.cuda.matmul
        before_newer, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before_newer
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
