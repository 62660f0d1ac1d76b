"""Embedded images on the disk: ``FILE.npz``, which ``evaluate`` reads too, and the FAISS index ``FILE.faiss`` beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.faiss_search import index_of
from retrieval_bench.files import atomic_path
from retrieval_bench.progress import logger

Kind = Literal["flat", "hnsw", "ivf"]


@dataclass(frozen=True)
class Collection:
    """Images that can be searched.

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
            np.savez(
                stream,
                embeddings=self.embeddings,
                labels=self.labels,
                paths=self.paths,
                embedder=np.array(self.embedder),
            )


def read_collection(path: Path) -> Collection:
    """What :meth:`Collection.write` wrote.

    Raises:
        UserError: no such file, or another one.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `embed RUN FOLDER -o {path.name}` makes one")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            read = Collection(arrays["embeddings"], arrays["labels"], arrays["paths"], str(arrays["embedder"]))
    except (
        Exception
    ):  # a damaged archive makes NumPy and zipfile raise a dozen types, some with advice not to be followed
        raise UserError(f"{path}: not written by `embed`, or damaged") from None
    count = len(read.labels)
    if (
        read.embeddings.ndim != 2
        or read.embeddings.dtype != np.float32
        or not len(read.embeddings) == len(read.paths) == count > 0
    ):
        raise UserError(f"{path}: its arrays do not fit each other; embed the images again")
    return read


def index_path(path: Path) -> Path:
    """Where the index of a collection lies."""
    return path.with_suffix(".faiss")


def write_index(collection: Collection, path: Path, kind: Kind = "flat") -> Any:
    """Builds a FAISS index of inner products over the collection at `path` and saves it beside; returns it."""
    vectors = collection.embeddings
    index = index_of(vectors.__getitem__, len(vectors), vectors.shape[1], kind)
    with atomic_path(index_path(path)) as temporary:
        faiss.write_index(index, str(temporary))
    return index


def open_index(collection: Collection, path: Path) -> Any:
    """The index beside the collection at `path`; built anew, exact, and saved with a line if it is missing, damaged or of other rows."""
    beside = index_path(path)
    try:
        index = faiss.read_index(str(beside))
        if belongs(index, collection.embeddings):
            return index
        why = "is not the index of these embeddings"
    except RuntimeError:  # FAISS has no other
        why = "cannot be read" if beside.exists() else "is missing"
    logger.info(f"{beside} {why}: it is built again")
    return write_index(collection, path)


def belongs(index: Any, vectors: np.ndarray) -> bool:
    """Whether an index ranks by inner products and holds just these rows, float32 (N, D), in this order."""
    if (index.ntotal, index.d, index.metric_type) != (*vectors.shape, faiss.METRIC_INNER_PRODUCT):
        return False
    return np.array_equal(index.reconstruct_n(0, len(vectors)), vectors)  # pyright: ignore[reportCallIssue]
