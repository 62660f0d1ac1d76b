"""A run image by image, in a file beside its record: ranks and neighbours, a map of embeddings, thumbnails.

``<results>/details/<id>.npz`` holds plain arrays (no pickles). A record is complete without; comparisons of queries,
galleries and maps are made from it, so that neither the images nor the network are needed again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd

from retrieval_bench.data.reading import read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.embedding_stats import principal_components
from retrieval_bench.files import atomic_path

NEIGHBOURS = 6
"""Nearest images that are kept of a query."""
QUERIES_WITH_NEIGHBOURS = 10_000
"""Queries whose neighbours are kept; of more, at most so many at even distances, and the worst among them."""
MAP_IMAGES = 1_000
"""Test images on the map."""
WORST, PER_CLASS, RIGHT = 12, 2, 4
"""Queries of the gallery: the worst, at most so many of a class, and some whose nearest image is right."""
PAIRS = 8
"""Confused pairs of classes in the gallery."""
SIDE = 160
"""Longer side of a thumbnail, pixels."""
KEYS = {"neighbour_queries": "listed", "map_images": "mapped"}
"""What arrays are called in the file, where that differs."""


def array(kind: str, shape: str, below: str = "", least: int = 0) -> Any:
    """One array: its type, the letters of its shape, and for numbers of things how many of those there are."""
    return field(metadata={"kind": kind, "shape": shape, "below": below, "least": least})


@dataclass(frozen=True)
class Details:
    """Arrays about T test images (numbered in the test's order), Q queries, and L of them with N known neighbours."""

    paths: np.ndarray = array("U", "T")  # names of the test images
    labels: np.ndarray = array("i4", "T", below="C")  # into class_names
    class_names: np.ndarray = array("U", "C")
    queries: np.ndarray = array("i4", "Q", below="T")  # images that were searched with
    first_rank: np.ndarray = array("i4", "Q")  # rank of the best positive, 0 for a query without one
    map_at_r: np.ndarray = array("f4", "Q")  # NaN for a query without a positive
    neighbour_queries: np.ndarray = array("i4", "L", below="Q")  # into queries
    neighbours: np.ndarray = array("i4", "LN", below="T", least=-1)  # nearest first without the query, -1 for none
    similarity: np.ndarray = array("f2", "LN")  # their cosine similarities
    map_images: np.ndarray = array("i4", "M", below="T")  # images on the map
    map: np.ndarray = array("f4", "M2")  # the first two principal components of their embeddings
    thumbnails: np.ndarray = array("i4", "P", below="T")  # images that have one
    thumbnail_ends: np.ndarray = array("i8", "P")  # where each one's bytes end in thumbnail_bytes
    thumbnail_bytes: np.ndarray = array("u1", "B")  # WebP files one after another

    def pictures(self) -> dict[int, bytes]:
        """The thumbnails by image."""
        parts = np.split(self.thumbnail_bytes, self.thumbnail_ends)[: len(self.thumbnails)]
        return {int(image): part.tobytes() for image, part in zip(self.thumbnails, parts, strict=True)}

    def gallery_queries(self) -> np.ndarray:
        """int (n,), rows of `neighbours`: the gallery's queries, the worst first, then some with the first rank."""
        queries: Any = pd.DataFrame({"query": self.neighbour_queries, "rank": self.first_rank[self.neighbour_queries]})
        queries["label"] = self.labels[self.queries[self.neighbour_queries]]
        worst = queries[queries["rank"] > 1].sort_values(["rank", "query"], ascending=[False, True])
        right = queries.index[queries["rank"] == 1].to_numpy()
        worst = worst.groupby("label", sort=False).head(PER_CLASS).head(WORST)
        return np.concatenate([worst.index.to_numpy(), right[_evenly(len(right), RIGHT)]])

    def confused_classes(self) -> list[tuple[int, int, int, int]]:
        """Pairs of classes most often confused: the query's, its nearest image's, how often, a row of `neighbours`."""
        rows: Any = pd.DataFrame({"own": self.labels[self.queries[self.neighbour_queries]]})
        rows["other"], rows["row"] = self.labels[self.neighbours[:, 0]], rows.index
        is_confused = (rows["own"] != rows["other"]) & (self.neighbours[:, 0] >= 0)
        rows = rows[is_confused & (self.first_rank[self.neighbour_queries] > 0)]
        pairs = rows.groupby(["own", "other"])["row"].agg(["size", "first"]).reset_index()
        pairs = pairs.sort_values("size", ascending=False, kind="stable").head(PAIRS)
        return list(pairs.itertuples(index=False, name=None))


def describe(
    vectors: np.ndarray, columns: dict[str, np.ndarray], table: ImageTable, split: Split, thumbnails: bool
) -> Details:
    """The details of a test; with `thumbnails` also small pictures of what galleries show.

    Args:
        vectors: float32 (T, D), unit embeddings of the rows ``split.test``.
        columns: per query of ``split.query``, from the evaluator (``Evaluation.columns``).
        table: the data set; `split` that of the run.
    """
    gallery, queries = (np.searchsorted(split.test, rows) for rows in (split.gallery, split.query))
    ranks = columns["first_rank"]
    kept = np.arange(len(queries))
    if len(queries) > QUERIES_WITH_NEIGHBOURS:
        worst = np.argsort(-ranks, kind="stable")[: QUERIES_WITH_NEIGHBOURS // 10]
        kept = np.union1d(worst, _evenly(len(queries), QUERIES_WITH_NEIGHBOURS - len(worst)))
    neighbours, similarity = nearest(vectors, queries[kept], gallery)
    map_images = _evenly(len(vectors), MAP_IMAGES)
    names, labels = np.unique(table.labels[split.test], return_inverse=True)
    details = _typed(
        paths=[table.paths[row] for row in split.test],
        labels=labels,
        class_names=[table.class_names[label] for label in names],
        queries=queries,
        first_rank=ranks,
        map_at_r=columns.get("map_at_r", np.full(len(queries), np.nan)),
        neighbour_queries=kept,
        neighbours=neighbours,
        similarity=similarity,
        map_images=map_images,
        map=principal_components(vectors[map_images]),
        thumbnails=[],
        thumbnail_ends=[],
        thumbnail_bytes=[],
    )
    return _with_thumbnails(details, table.root) if thumbnails else details


def _typed(**arrays: Any) -> Details:
    return Details(**{part.name: np.asarray(arrays[part.name], part.metadata["kind"]) for part in fields(Details)})


def _evenly(count: int, most: int) -> np.ndarray:
    """int64: at most `most` of `count` numbers at even distances, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def nearest(vectors: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The :data:`NEIGHBOURS` nearest of the rows `gallery` (int (G,)) of each of the rows `queries` (int (L,)), itself
    left out: int64 (L, N) rows, -1 where there are fewer, and float32 (L, N) cosine similarities, descending, of unit
    vectors (float32 (T, D))."""
    count = min(NEIGHBOURS + 1, len(gallery))
    similarity, items = faiss.knn(vectors[queries], vectors[gallery], count, metric=faiss.METRIC_INNER_PRODUCT)
    images = gallery[items]
    is_query = images == queries[:, None]
    images, similarity = np.where(is_query, -1, images), np.where(is_query, 0, similarity)
    order = np.argsort(is_query, axis=1, kind="stable")[:, :NEIGHBOURS]  # the query itself is last
    missing = ((0, 0), (0, NEIGHBOURS - order.shape[1]))
    return (
        np.pad(np.take_along_axis(images, order, axis=1), missing, constant_values=-1),
        np.pad(np.take_along_axis(similarity, order, axis=1), missing),
    )


def _with_thumbnails(details: Details, root: Path) -> Details:
    """The same with thumbnails of all that galleries show; an image that cannot be read any more has none."""
    rows = [*details.gallery_queries(), *(example for *_, example in details.confused_classes())]
    shown = {int(details.queries[details.neighbour_queries[row]]) for row in rows}
    shown |= {int(image) for row in rows for image in details.neighbours[row] if image >= 0}
    pictures = {image: picture for image in sorted(shown) if (picture := thumbnail(root / str(details.paths[image])))}
    return _typed(
        **vars(details)
        | {
            "thumbnails": list(pictures),
            "thumbnail_ends": np.cumsum([len(picture) for picture in pictures.values()]),
            "thumbnail_bytes": np.frombuffer(b"".join(pictures.values()), dtype=np.uint8),
        }
    )


def thumbnail(path: Path) -> bytes:
    """A WebP of at most :data:`SIDE` pixels; empty for a file that is no image."""
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
    sizes = {"N": NEIGHBOURS, "2": 2}
    for part in fields(Details):
        values, kind, shape = getattr(details, part.name), part.metadata["kind"], part.metadata["shape"]
        if values.dtype.kind != np.dtype(kind).kind or values.ndim != len(shape):
            raise ValueError(f"{part.name}: expected {kind} in {len(shape)} dimensions")
        for letter, size in zip(shape, values.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{part.name}: expected {sizes[letter]} in place of {size}")
    for part in fields(Details):
        numbers, below = getattr(details, part.name), part.metadata["below"]
        if below and ((numbers < part.metadata["least"]).any() or (numbers >= sizes[below]).any()):
            raise ValueError(f"{part.name}: not all are whole numbers below {sizes[below]}")
