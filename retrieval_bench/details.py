"""What a run found image by image, in a file beside its record: ranks and neighbours of queries, a map of embeddings, thumbnails.

``<results>/details/<id>.npz`` holds plain arrays (no pickles). A record is complete without; comparisons of queries, galleries and maps in
the report are made from it, so that neither the images nor the network are needed again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.splits import Split
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.pca import principal_components
from retrieval_bench.files import atomic_path
from retrieval_bench.seeding import derive

NEIGHBOURS = 6
"""Nearest images that are kept of a query."""
LISTED = 10_000
"""Queries whose neighbours are kept; of more, at most so many drawn at random, the worst among them."""
MAPPED = 1_000
"""Test images on the map."""
SHOWN, PER_CLASS, FOUND = 12, 2, 4
"""Queries of the gallery: the worst, at most so many of a class, and some that were found."""
PAIRS = 8
"""Confused pairs of classes in the gallery."""
SIDE = 72
"""Longer side of a thumbnail, pixels."""


@dataclass(frozen=True)
class Details:
    """Arrays about T test images, Q queries and L of them whose neighbours are known. Images are named by their place in the test.

    Attributes:
        paths: (T,) names of the test images.
        labels: int32 (T,), into `class_names`.
        class_names: (C,).
        queries: int32 (Q,), images that were searched with.
        first_rank: int32 (Q,), rank of the best positive, 0 for a query without one.
        map_at_r: float32 (Q,), NaN for a query without a positive.
        listed: int32 (L,), places in `queries`.
        neighbours: int32 (L, N), nearest images of the gallery first, the query itself left out; -1 where there are fewer.
        similarity: float16 (L, N), their cosine similarities.
        mapped: int32 (M,), images on the map.
        map: float32 (M, 2), the first two principal components of their embeddings.
        thumbnails: int32 (P,), images that have one.
        thumbnail_ends: int64 (P,), where each one's bytes end in `thumbnail_bytes`.
        thumbnail_bytes: uint8, WebP files one after another.
    """

    paths: np.ndarray
    labels: np.ndarray
    class_names: np.ndarray
    queries: np.ndarray
    first_rank: np.ndarray
    map_at_r: np.ndarray
    listed: np.ndarray
    neighbours: np.ndarray
    similarity: np.ndarray
    mapped: np.ndarray
    map: np.ndarray
    thumbnails: np.ndarray
    thumbnail_ends: np.ndarray
    thumbnail_bytes: np.ndarray

    def pictures(self) -> dict[int, bytes]:
        """The thumbnails by image."""
        starts = np.concatenate([[0], self.thumbnail_ends])[:-1]
        return {
            int(image): self.thumbnail_bytes[start:end].tobytes()
            for image, start, end in zip(self.thumbnails, starts, self.thumbnail_ends, strict=True)
        }

    def shown(self) -> np.ndarray:
        """int (n,): places in `listed` of the gallery's queries: the worst first, then some that were found at once."""
        ranks = self.first_rank[self.listed]
        order = np.lexsort((self.listed, -ranks))
        worst: list[int] = []
        taken: dict[int, int] = {}
        for place in order[ranks[order] > 1]:
            label = int(self.labels[self.queries[self.listed[place]]])
            if taken.setdefault(label, 0) < PER_CLASS and len(worst) < SHOWN:
                taken[label] += 1
                worst.append(int(place))
        found = np.flatnonzero(ranks == 1)
        spread = (
            found[np.unique(np.linspace(0, len(found) - 1, min(FOUND, len(found))).round().astype(int))]
            if len(found)
            else found
        )
        return np.concatenate([np.array(worst, dtype=np.int64), spread])

    def confused(self) -> list[tuple[int, int, int, int]]:
        """The pairs of classes that are most often taken for one another: (class of the query, class of its nearest image, how often, an
        example's place in `listed`)."""
        nearest = self.neighbours[:, 0] if self.neighbours.shape[1] else np.full(len(self.listed), -1)
        own = self.labels[self.queries[self.listed]]
        other = np.where(nearest >= 0, self.labels[nearest], own)
        wrong = np.flatnonzero((own != other) & (self.first_rank[self.listed] > 0))
        pairs, first, counts = np.unique(
            np.stack([own[wrong], other[wrong]], axis=1), axis=0, return_index=True, return_counts=True
        )
        order = np.argsort(-counts, kind="stable")[:PAIRS]
        return [(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i]), int(wrong[first[i]])) for i in order]


def describe(
    vectors: np.ndarray,
    columns: dict[str, np.ndarray],
    table: ImageTable,
    split: Split,
    seed: int,
    device: str,
    pictures: bool,
) -> Details:
    """The details of a test.

    Args:
        vectors: float32 (T, D), unit embeddings of the rows ``split.test``.
        columns: per query of ``split.query``, from the evaluator (``Evaluation.columns``).
        table: the data set.
        split: of the run.
        seed: of the run.
        device: where similarities are computed.
        pictures: keep thumbnails of what galleries show.
    """
    gallery, queries = (np.searchsorted(split.test, rows) for rows in (split.gallery, split.query))
    ranks = columns["first_rank"]
    listed = _spread(len(queries), ranks, seed)
    neighbours, similarity = nearest(vectors, queries[listed], gallery, device)
    mapped = np.unique(np.linspace(0, len(vectors) - 1, min(MAPPED, len(vectors))).round().astype(int))
    names, labels = np.unique(table.labels[split.test], return_inverse=True)
    nothing = np.zeros(0)
    bare = Details(
        np.array([table.paths[row] for row in split.test]),
        labels.astype(np.int32),
        np.array([table.class_names[label] for label in names]),
        queries.astype(np.int32),
        ranks.astype(np.int32),
        columns.get("map_at_r", np.full(len(queries), np.nan)).astype(np.float32),
        listed.astype(np.int32),
        neighbours.astype(np.int32),
        similarity.astype(np.float16),
        mapped.astype(np.int32),
        principal_components(vectors[mapped]),
        *(nothing.astype(kind) for kind in (np.int32, np.int64, np.uint8)),
    )
    return _with_thumbnails(bare, table.root) if pictures else bare


def _spread(count: int, ranks: np.ndarray, seed: int) -> np.ndarray:
    """Sorted places of the queries whose neighbours are kept."""
    if count <= LISTED:
        return np.arange(count)
    worst = np.argsort(-ranks, kind="stable")[: LISTED // 10]
    draws = np.random.Generator(np.random.PCG64(derive(seed, "details")))
    return np.unique(np.concatenate([worst, draws.choice(count, LISTED - len(worst), replace=False)]))


@torch.inference_mode()
def nearest(
    vectors: np.ndarray, queries: np.ndarray, gallery: np.ndarray, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The :data:`NEIGHBOURS` nearest images of each query.

    Args:
        vectors: float32 (T, D), unit rows.
        queries: int (L,), rows.
        gallery: int (G,), rows that are searched; a query among them is not its own neighbour.
        device: where products are computed.

    Returns:
        int64 (L, N) rows, -1 where the gallery has fewer, and float32 (L, N) cosine similarities, descending.
    """
    rows = torch.from_numpy(vectors).to(device)
    items, place = rows[torch.from_numpy(gallery).to(device)], np.full(len(vectors), -1)
    place[gallery] = np.arange(len(gallery))
    found = np.full((len(queries), NEIGHBOURS), -1)
    similarity = np.zeros((len(queries), NEIGHBOURS), dtype=np.float32)
    width = min(NEIGHBOURS, len(gallery))
    for start in range(0, len(queries), 1024):
        part = queries[start : start + 1024]
        products = rows[torch.from_numpy(part).to(device)] @ items.T
        own = np.flatnonzero(place[part] >= 0)
        products[torch.from_numpy(own), torch.from_numpy(place[part][own])] = -torch.inf
        values, best = (tensor.cpu().numpy() for tensor in products.topk(width))
        found[start : start + len(part), :width] = np.where(np.isfinite(values), gallery[best], -1)
        similarity[start : start + len(part), :width] = np.where(np.isfinite(values), values, 0)
    return found, similarity


def _with_thumbnails(details: Details, root: Path) -> Details:
    """The same with thumbnails of all that galleries show; an image that cannot be read any more has none."""
    places = [*details.shown(), *(example for *_, example in details.confused())]
    rows = [details.queries[details.listed[place]] for place in places]
    wanted = sorted(
        {int(row) for row in rows} | {int(row) for place in places for row in details.neighbours[place] if row >= 0}
    )
    pictures = {row: picture for row in wanted if (picture := thumbnail(root / str(details.paths[row])))}
    ends = np.cumsum([len(picture) for picture in pictures.values()], dtype=np.int64)
    joined = np.frombuffer(b"".join(pictures.values()), dtype=np.uint8)
    made = {"thumbnails": np.array(list(pictures), dtype=np.int32), "thumbnail_ends": ends, "thumbnail_bytes": joined}
    return Details(**{field.name: made.get(field.name, getattr(details, field.name)) for field in fields(Details)})


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


def details_path(results: Path, run_id: str) -> Path:
    """Where the details of a run are kept below the results folder."""
    return results / "details" / f"{run_id}.npz"


def write_details(details: Details, path: Path) -> None:
    """Writes the file atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{field.name: getattr(details, field.name) for field in fields(Details)})


def read_details(path: Path) -> Details:
    """The details in a file; raises :class:`UserError` for one that is missing, damaged or something else."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Details(**{field.name: arrays[field.name] for field in fields(Details)})
            _check(found)
            return found
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; runs write it beside their record") from None
    except Exception as error:  # a damaged member makes NumPy and zipfile raise a dozen types
        raise UserError(f"{path}: no details of a run can be read from it ({first_line(error)}); remove it") from None


def _check(found: Details) -> None:
    """Raises ValueError unless the arrays fit together, so that nothing that is made of them can fail later."""
    images, queries, listed = len(found.paths), len(found.queries), len(found.listed)
    shapes = {
        **{
            "labels": (images,),
            "queries": (queries,),
            "first_rank": (queries,),
            "map_at_r": (queries,),
            "listed": (listed,),
        },
        **{"neighbours": (listed, NEIGHBOURS), "similarity": (listed, NEIGHBOURS), "map": (len(found.mapped), 2)},
        "thumbnail_ends": found.thumbnails.shape,
    }
    below = {"labels": len(found.class_names), "listed": queries, "thumbnail_ends": len(found.thumbnail_bytes) + 1}
    below |= dict.fromkeys(("queries", "neighbours", "mapped", "thumbnails"), images)
    for name, shape in shapes.items():
        if getattr(found, name).shape != shape:
            raise ValueError(f"{name}: expected shape {shape}")
    for name, end in below.items():
        places = getattr(found, name)
        if places.dtype.kind != "i" or (places < -(name == "neighbours")).any() or (places >= end).any():
            raise ValueError(f"{name}: not all are whole numbers below {end}")
