"""Images of your own: embedded as the evaluation embeds them (``FILE.npz``, which ``evaluate`` reads too), with a FAISS
index beside (``FILE.faiss``), and searched."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np
from PIL import Image

from retrieval_bench.data.listing import list_images
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.reading import in_threads, read_image
from retrieval_bench.data.sheet import Tile, draw_rows
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.saved import data_config, embedder_digest, read_embedder
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.faiss_search import index_of
from retrieval_bench.files import atomic_path
from retrieval_bench.models.embedder import embed, unit
from retrieval_bench.progress import logger

IndexKind = Literal["flat", "hnsw", "ivf"]


@dataclass(frozen=True)
class Collection:
    """Embedded images.

    Attributes:
        embeddings: float32 (N, D), of length 1.
        labels: (N,) text.
        paths: (N,) text, below the folder that was embedded.
        embedder: digest of the network that made the embeddings.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    paths: np.ndarray
    embedder: str

    def write(self, path: Path) -> None:
        """Writes the arrays of the same names, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **vars(self))


class Neighbour(NamedTuple):
    """An image of a collection: ``rank`` from 1, cosine ``similarity``, ``path`` and ``label`` as embedded."""

    rank: int
    similarity: float
    path: str
    label: str


def images_below(folder: Path, skip_unreadable: bool = False) -> ImageTable:
    """The images that :func:`list_images` finds below a folder; their class is the first folder on their path, "" for
    none. What is passed over is said. With `skip_unreadable` all are decoded now, and those that cannot be are left
    out, with a line each.

    Raises:
        UserError: no folder, no image in it, or a name that is no text.
    """
    listing = list_images(folder)
    paths, passed_over = listing.images, listing.passed_over()
    if paths and passed_over:
        logger.info(f"{folder}: passed over {passed_over}")
    if skip_unreadable:
        problems = in_threads(_problem_of, [folder / path for path in paths], "reading", len(paths))
        paths = [path for path, problem in zip(paths, problems, strict=True) if not problem]
    if not paths:
        others = f" (passed over {passed_over})" if passed_over else ""
        raise UserError(f"{folder}: no image in it{' that can be read' if skip_unreadable else ''}{others}")
    classes, labels = np.unique([path.rpartition("/")[0].split("/")[0] for path in paths], return_inverse=True)
    return ImageTable(folder, tuple(paths), labels.astype(np.int64), tuple(classes.tolist()))


def _problem_of(path: Path) -> str:
    """Why an image cannot be decoded, "" if it can."""
    try:
        read_image(path)
    except UserError as error:
        logger.info(f"left out: {error}")
        return str(error)
    return ""


def embed_images(path: Path, table: ImageTable, device: str, workers: int = 0, batch_size: int = 64) -> np.ndarray:
    """Float32 (N, D), of length 1: the embeddings of all images of a table, prepared as in the evaluation.

    Args:
        path: of the saved embedder, without an ending.
        table: the images.
        device: auto, cpu or cuda.
        workers: processes that decode; -1 for as many as fit the device.
        batch_size: images that pass through the network at a time.

    Raises:
        UserError: an embedder that cannot be loaded, no such device, or an image that cannot be decoded.
    """
    device = resolve_device(device)
    embedder, recipe = read_embedder(path)
    workers, rows = resolve_workers(workers, device), np.arange(len(table))
    batches = Batches(table, rows, table.labels, data_config(recipe), workers, batch_size=batch_size)
    return unit(embed(embedder.to(device), batches, recipe.get("flip_sum", False)))


def embed_table(
    path: Path,
    table: ImageTable,
    output: Path,
    index: IndexKind = "flat",
    device: str = "auto",
    workers: int = -1,
    batch_size: int = 64,
) -> Collection:
    """Embeds all images of a table as :func:`embed_images` does, and writes the collection to `output` (.npz) with its
    index beside."""
    embeddings = embed_images(path, table, device, workers, batch_size)
    labels = np.array([table.class_names[label] for label in table.labels])
    collection = Collection(embeddings, labels, np.array(table.paths), embedder_digest(path))
    collection.write(output)
    write_index(collection, output, index)
    return collection


def read_collection(path: Path) -> Collection:
    """What :meth:`Collection.write` wrote; raises :class:`UserError` for no file or another one."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `embed RUN FOLDER -o {path.name}` makes one")
    with contextlib.suppress(Exception):  # a damaged archive makes NumPy and zipfile raise a dozen types
        with np.load(path, allow_pickle=False) as arrays:
            collection = Collection(arrays["embeddings"], arrays["labels"], arrays["paths"], str(arrays["embedder"]))
        (count, _), kind = collection.embeddings.shape, collection.embeddings.dtype
        if len(collection.labels) == len(collection.paths) == count > 0 and kind == np.float32:
            return collection
    raise UserError(f"{path}: not written by `embed`, or damaged; embed the images again")


def write_index(collection: Collection, path: Path, kind: IndexKind = "flat") -> Any:
    """Builds a FAISS index of inner products over the collection at `path` and saves it beside; returns it."""
    vectors = collection.embeddings
    index = index_of(vectors.__getitem__, len(vectors), vectors.shape[1], kind)
    with atomic_path(path.with_suffix(".faiss")) as temporary:
        faiss.write_index(index, str(temporary))
    return index


def open_index(collection: Collection, path: Path) -> Any:
    """The index beside the collection at `path`; a missing, damaged or foreign one is built again, exact, and saved,
    with a line."""
    beside, vectors = path.with_suffix(".faiss"), collection.embeddings
    try:
        index = faiss.read_index(str(beside))
        fits = (index.ntotal, index.d, index.metric_type) == (*vectors.shape, faiss.METRIC_INNER_PRODUCT)
        if fits and np.array_equal(index.reconstruct_n(0, len(vectors)), vectors):
            return index
        problem = "is not the index of these embeddings"
    except RuntimeError:  # FAISS has no other
        problem = "cannot be read" if beside.exists() else "is missing"
    logger.info(f"{beside} {problem}: it is built again")
    return write_index(collection, path)


def nearest(index: Any, collection: Collection, queries: np.ndarray, k: int) -> list[list[Neighbour]]:
    """The k nearest images of each query, float32 (Q, D) of length 1; fewer where the collection, or an approximate
    index, has no more."""
    similarities, rows = index.search(queries, min(k, len(collection.paths)))
    return [
        [
            Neighbour(rank, float(similarity), str(collection.paths[item]), str(collection.labels[item]))
            for rank, (similarity, item) in enumerate(zip(*row, strict=True), start=1)
            if item >= 0
        ]
        for row in zip(similarities, rows, strict=True)
    ]


def draw_neighbours(queries: Sequence[Path], neighbours: Sequence[Sequence[Neighbour]], folder: Path) -> Image.Image:
    """A row for each query: its image, then its neighbours with rank, similarity and label.

    Raises:
        UserError: an image is not below `folder`, or cannot be decoded.
    """
    for near in (near for row in neighbours for near in row):
        if not (folder / near.path).is_file():
            raise UserError(f"{folder / near.path}: no such image; --folder FOLDER names the folder that was embedded")
    return draw_rows(
        [
            [
                Tile(query, query.name),
                *(Tile(folder / n.path, f"{n.rank}  {n.similarity:.3f}", n.label or Path(n.path).name) for n in row),
            ]
            for query, row in zip(queries, neighbours, strict=True)
        ]
    )
