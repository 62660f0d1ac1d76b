"""A run image by image, in a file beside its record: ranks and neighbours, a map of embeddings, thumbnails.

``<results>/details/<id>.npz`` holds plain arrays (no pickles). A record is complete without; comparisons of queries,
galleries and maps are made from it, so that neither the images nor the network are needed again.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from retrieval_bench.data.reading import read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.embedding_stats import principal_components
from retrieval_bench.files import atomic_path
from retrieval_bench.seeding import derive

NEIGHBOURS = 6
"""Nearest images that are kept of a query."""
QUERIES_WITH_NEIGHBOURS = 10_000
"""Queries whose neighbours are kept; of more, at most so many drawn at random, the worst among them."""
MAP_IMAGES = 1_000
"""Test images on the map."""
WORST, PER_CLASS, RIGHT = 12, 2, 4
"""Queries of the gallery: the worst, at most so many of a class, and some whose nearest image is right."""
PAIRS = 8
"""Confused pairs of classes in the gallery."""
SIDE = 72
"""Longer side of a thumbnail, pixels."""
KEYS = {"neighbour_queries": "listed", "map_images": "mapped"}
"""What arrays are called in the file, where that differs."""


@dataclass(frozen=True)
class Details:
    """Arrays about T test images (numbered in the test's order), Q queries, and L of them with known neighbours."""

    paths: np.ndarray  # (T,) names of the test images
    labels: np.ndarray  # int32 (T,), into class_names
    class_names: np.ndarray  # (C,)
    queries: np.ndarray  # int32 (Q,), images that were searched with
    first_rank: np.ndarray  # int32 (Q,), rank of the best positive, 0 for a query without one
    map_at_r: np.ndarray  # float32 (Q,), NaN for a query without a positive
    neighbour_queries: np.ndarray  # int32 (L,), into queries
    neighbours: np.ndarray  # int32 (L, N), nearest of the gallery first without the query, -1 where there are fewer
    similarity: np.ndarray  # float16 (L, N), their cosine similarities
    map_images: np.ndarray  # int32 (M,), images on the map
    map: np.ndarray  # float32 (M, 2), the first two principal components of their embeddings
    thumbnails: np.ndarray  # int32 (P,), images that have one
    thumbnail_ends: np.ndarray  # int64 (P,), where each one's bytes end in thumbnail_bytes
    thumbnail_bytes: np.ndarray  # uint8, WebP files one after another

    def pictures(self) -> dict[int, bytes]:
        """The thumbnails by image."""
        parts = np.split(self.thumbnail_bytes, self.thumbnail_ends)[: len(self.thumbnails)]
        return {int(image): part.tobytes() for image, part in zip(self.thumbnails, parts, strict=True)}

    def gallery_queries(self) -> np.ndarray:
        """int (n,), rows of `neighbours`: the gallery's queries, the worst first, then some with the first rank."""
        ranks = self.first_rank[self.neighbour_queries]
        worst: list[int] = []
        per_class: Counter[int] = Counter()
        for row in np.lexsort((self.neighbour_queries, -ranks)):
            label = int(self.labels[self.queries[self.neighbour_queries[row]]])
            if ranks[row] > 1 and per_class[label] < PER_CLASS and len(worst) < WORST:
                per_class[label] += 1
                worst.append(int(row))
        right = np.flatnonzero(ranks == 1)
        return np.concatenate([np.array(worst, dtype=np.int64), right[_evenly(len(right), RIGHT)]])

    def confused_classes(self) -> list[tuple[int, int, int, int]]:
        """Pairs of classes most often confused: the query's, its nearest image's, how often, a row of `neighbours`."""
        nearest_image = self.neighbours[:, 0]
        own = self.labels[self.queries[self.neighbour_queries]]
        other = np.where(nearest_image >= 0, self.labels[nearest_image], own)
        wrong = np.flatnonzero((own != other) & (self.first_rank[self.neighbour_queries] > 0))
        both = np.stack([own[wrong], other[wrong]], axis=1)
        pairs, first, counts = np.unique(both, axis=0, return_index=True, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:PAIRS]
        return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i]), int(wrong[first[i]])) for i in order]


def describe(
    vectors: np.ndarray, columns: dict[str, np.ndarray], table: ImageTable, split: Split, seed: int, device: str,
    thumbnails: bool,
) -> Details:  # fmt: skip
    """The details of a test; with `thumbnails` also small pictures of what galleries show.

    Args:
        vectors: float32 (T, D), unit embeddings of the rows ``split.test``.
        columns: per query of ``split.query``, from the evaluator (``Evaluation.columns``).
        table: the data set; `split` and `seed` of the run.
        device: where similarities are computed.
    """
    gallery, queries = (np.searchsorted(split.test, rows) for rows in (split.gallery, split.query))
    ranks = columns["first_rank"]
    kept = np.arange(len(queries))
    if len(queries) > QUERIES_WITH_NEIGHBOURS:
        worst = np.argsort(-ranks, kind="stable")[: QUERIES_WITH_NEIGHBOURS // 10]
        draws = np.random.Generator(np.random.PCG64(derive(seed, "details")))
        others = draws.choice(len(queries), QUERIES_WITH_NEIGHBOURS - len(worst), replace=False)
        kept = np.unique(np.concatenate([worst, others]))
    neighbours, similarity = nearest(vectors, queries[kept], gallery, device)
    map_images = _evenly(len(vectors), MAP_IMAGES)
    names, labels = np.unique(table.labels[split.test], return_inverse=True)
    details = Details(
        paths=np.array([table.paths[row] for row in split.test]),
        labels=labels.astype(np.int32),
        class_names=np.array([table.class_names[label] for label in names]),
        queries=queries.astype(np.int32),
        first_rank=ranks.astype(np.int32),
        map_at_r=columns.get("map_at_r", np.full(len(queries), np.nan)).astype(np.float32),
        neighbour_queries=kept.astype(np.int32),
        neighbours=neighbours.astype(np.int32),
        similarity=similarity.astype(np.float16),
        map_images=map_images.astype(np.int32),
        map=principal_components(vectors[map_images]),
        thumbnails=np.zeros(0, np.int32),
        thumbnail_ends=np.zeros(0, np.int64),
        thumbnail_bytes=np.zeros(0, np.uint8),
    )
    return _with_thumbnails(details, table.root) if thumbnails else details


def _evenly(count: int, most: int) -> np.ndarray:
    """int64: at most `most` of `count` numbers at even distances, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


@torch.inference_mode()
def nearest(
    vectors: np.ndarray, queries: np.ndarray, gallery: np.ndarray, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The :data:`NEIGHBOURS` nearest of the rows `gallery` (int (G,)) of each of the rows `queries` (int (L,)), itself
    left out: int64 (L, N) rows, -1 where there are fewer, and float32 (L, N) cosine similarities, descending, of unit
    vectors (float32 (T, D))."""
    rows = torch.from_numpy(vectors).to(device)
    items = rows[torch.from_numpy(gallery).to(device)]
    in_gallery = np.full(len(vectors), -1)
    in_gallery[gallery] = np.arange(len(gallery))
    neighbours = np.full((len(queries), NEIGHBOURS), -1)
    similarity = np.zeros((len(queries), NEIGHBOURS), dtype=np.float32)
    width = min(NEIGHBOURS, len(gallery))
    for start in range(0, len(queries), 1024):
        part = queries[start : start + 1024]
        products = rows[torch.from_numpy(part).to(device)] @ items.T
        own = np.flatnonzero(in_gallery[part] >= 0)
        products[torch.from_numpy(own), torch.from_numpy(in_gallery[part][own])] = -torch.inf
        values, best = (tensor.cpu().numpy() for tensor in products.topk(width))
        neighbours[start : start + len(part), :width] = np.where(np.isfinite(values), gallery[best], -1)
        similarity[start : start + len(part), :width] = np.where(np.isfinite(values), values, 0)
    return neighbours, similarity


def _with_thumbnails(details: Details, root: Path) -> Details:
    """The same with thumbnails of all that galleries show; an image that cannot be read any more has none."""
    rows = [*details.gallery_queries(), *(example for *_, example in details.confused_classes())]
    shown = {int(details.queries[details.neighbour_queries[row]]) for row in rows}
    shown |= {int(image) for row in rows for image in details.neighbours[row] if image >= 0}
    pictures = {image: picture for image in sorted(shown) if (picture := thumbnail(root / str(details.paths[image])))}
    return replace(
        details,
        thumbnails=np.array(list(pictures), dtype=np.int32),
        thumbnail_ends=np.cumsum([len(picture) for picture in pictures.values()], dtype=np.int64),
        thumbnail_bytes=np.frombuffer(b"".join(pictures.values()), dtype=np.uint8),
    )


def thumbnail(path: Path) -> bytes:
    """A WebP of at most 72 pixels; empty for a file that is no image."""
    try:
        image = read_image(path)
    except UserError:
        return b""
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=60, method=4)
    return out.getvalue()


def write_details(details: Details, path: Path) -> None:
    """Writes the file atomically."""
    arrays = {KEYS.get(field.name, field.name): getattr(details, field.name) for field in fields(Details)}
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_details(path: Path) -> Details:
    """The details in a file; raises :class:`UserError` for one that is missing, damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            details = Details(**{field.name: arrays[KEYS.get(field.name, field.name)] for field in fields(Details)})
        _check(details)
        return details
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; runs write it beside their record") from None
    except Exception as error:  # a damaged member makes NumPy and zipfile raise a dozen types
        raise UserError(f"{path}: no details of a run can be read from it ({first_line(error)}); remove it") from None


def _check(details: Details) -> None:
    """Raises ValueError unless the arrays fit together, so that nothing that is made of them can fail later."""
    images, queries, rows = len(details.paths), len(details.queries), len(details.neighbour_queries)
    shapes = {"labels": (images,), "queries": (queries,), "first_rank": (queries,), "map_at_r": (queries,)}
    shapes |= {"neighbour_queries": (rows,), "neighbours": (rows, NEIGHBOURS), "similarity": (rows, NEIGHBOURS)}
    shapes |= {"map": (len(details.map_images), 2), "thumbnail_ends": details.thumbnails.shape}
    for name, shape in shapes.items():
        if getattr(details, name).shape != shape:
            raise ValueError(f"{name}: expected shape {shape}")
    ends = {"labels": len(details.class_names), "neighbour_queries": queries}
    ends |= dict.fromkeys(("queries", "neighbours", "map_images", "thumbnails"), images)
    ends |= {"thumbnail_ends": len(details.thumbnail_bytes) + 1}
    for name, end in ends.items():
        numbers, least = getattr(details, name), -1 if name == "neighbours" else 0
        if numbers.dtype.kind != "i" or (numbers < least).any() or (numbers >= end).any():
            raise ValueError(f"{name}: not all are whole numbers below {end}")
