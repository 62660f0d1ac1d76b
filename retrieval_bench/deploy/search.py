"""Images of your own that were embedded (``FILE.npz``, which ``evaluate`` reads too, with a FAISS index beside,
``FILE.faiss``), and the search in them; without torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import faiss
import numpy as np

from retrieval_bench.data.listing import list_images
from retrieval_bench.data.reading import in_threads, read_image
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.files import atomic_path, digest
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
        digests: (N,) bytes, SHA-256 of the image files in hexadecimal digits; empty where it is not known.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    paths: np.ndarray
    embedder: str
    digests: np.ndarray

    def write(self, path: Path) -> None:
        """Writes the arrays of the same names, atomically."""
        with atomic_path(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, **vars(self))

    def __add__(self, other: Collection) -> Collection:
        """The rows of both, which one embedder made."""
        names = ("embeddings", "labels", "paths", "digests")
        both = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        return Collection(embedder=self.embedder, **both)

    def rows_of(self, files: Sequence[Path], folder: Path | None = None) -> list[np.ndarray]:
        """For each image file the rows that are the same image: the same bytes, or, if the `folder` that was embedded
        is given, the same file."""
        rows = []
        for file in files:
            name = os.path.relpath(file.resolve(), folder.resolve()).replace(os.sep, "/") if folder else ""
            rows.append(np.flatnonzero((self.digests == digest(file).encode()) | (self.paths == name)))
        return rows


class Neighbour(NamedTuple):
    """An image of a collection: ``rank`` from 1, cosine ``similarity``, ``path`` and ``label`` as embedded."""

    rank: int
    similarity: float
    path: str
    label: str


def images_below(folder: Path, skip_unreadable: bool = False, known: Collection | None = None) -> ImageTable:
    """The images that :func:`list_images` finds below a folder; their class is the first folder on their path, "" for
    none. What is passed over is said. With `skip_unreadable` all are decoded now, and those that cannot be are left
    out, with a line each. With `known` only the images that it does not hold, by content; perhaps none.

    Raises:
        UserError: no folder, no image in it, a name that is no text, or that `known` has with other content.
    """
    listing = list_images(folder)
    paths, passed_over = listing.images, listing.passed_over()
    if paths and passed_over:
        logger.info(f"{folder}: passed over {passed_over}")
    found = bool(paths)
    if known:
        paths = _new_paths(folder, paths, known)
    if skip_unreadable:
        problems = in_threads(_problem_of, [folder / path for path in paths], "reading", len(paths))
        paths = [path for path, problem in zip(paths, problems, strict=True) if not problem]
    if not (paths or (known and found)):
        others = f" (passed over {passed_over})" if passed_over else ""
        raise UserError(f"{folder}: no image in it{' that can be read' if skip_unreadable else ''}{others}")
    classes, labels = np.unique([path.rpartition("/")[0].split("/")[0] for path in paths], return_inverse=True)
    return ImageTable(folder, tuple(paths), labels.astype(np.int64), tuple(classes.tolist()))


def digests_of(folder: Path, paths: Sequence[str]) -> np.ndarray:
    """The ``digests`` of a :class:`Collection`."""
    digests = in_threads(lambda path: digest(folder / path).encode(), paths, "comparing contents", len(paths))
    return np.array(list(digests), dtype="S64")


def _new_paths(folder: Path, paths: Sequence[str], known: Collection) -> list[str]:
    """Those of `paths` whose content `known` does not hold; where it does not know contents, paths are compared."""
    there = dict(zip(known.paths.tolist(), known.digests.tolist(), strict=True))
    contents, new = set(there.values()), []
    for path, content in zip(paths, digests_of(folder, paths).tolist(), strict=True):
        if there.get(path, content) not in (content, b""):
            raise UserError(
                f"{folder / path}: another image of this name has been embedded; embed the folder into a new file, or "
                "rename the image"
            )
        if path not in there and content not in contents:
            new.append(path)
    return new


def _problem_of(path: Path) -> str:
    """Why an image cannot be decoded, "" if it can."""
    try:
        read_image(path)
    except UserError as error:
        logger.info(f"left out: {error}")
        return str(error)
    return ""


def read_collection(path: Path) -> Collection:
    """What :meth:`Collection.write` wrote; raises :class:`UserError` for no file or another one."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `embed RUN FOLDER -o {path.name}` makes one")
    with contextlib.suppress(Exception):  # a damaged archive makes NumPy and zipfile raise a dozen types
        with np.load(path, allow_pickle=False) as arrays:
            embeddings, labels, paths = (arrays[name] for name in ("embeddings", "labels", "paths"))
            digests = arrays["digests"] if "digests" in arrays else np.zeros(len(paths), dtype="S64")  # older versions
            collection = Collection(embeddings, labels, paths, str(arrays["embedder"]), digests)
        (count, _), kind = embeddings.shape, embeddings.dtype
        if len(labels) == len(paths) == len(digests) == count > 0 and kind == np.float32:
            return collection
    raise UserError(f"{path}: not written by `embed`, or damaged; embed the images again")


def collection_of(path: Path, embedder: str, run: str) -> Collection:
    """:func:`read_collection`; raises :class:`UserError` unless it was made with the embedder of this digest, that of
    `run`."""
    collection = read_collection(path)
    if collection.embedder != embedder:
        raise UserError(
            f"{path}: was made with another embedder than {run}; embed its images with this one, or name that one"
        )
    return collection


def save_index(index: Any, path: Path) -> None:
    """Saves a FAISS index beside the collection at `path`."""
    with atomic_path(path.with_suffix(".faiss")) as temporary:
        faiss.write_index(index, str(temporary))


def open_index(collection: Collection, path: Path) -> Any:
    """The index beside the collection at `path`; a missing, damaged or foreign one is built again, exact, and saved,
    with a line."""
    beside, vectors = path.with_suffix(".faiss"), collection.embeddings
    try:
        index: Any = faiss.read_index(str(beside))
        fits = (index.ntotal, index.d, index.metric_type) == (*vectors.shape, faiss.METRIC_INNER_PRODUCT)
        if fits and np.array_equal(index.reconstruct_n(0, len(vectors)), vectors):
            return index
        problem = "is not the index of these embeddings"
    except RuntimeError:  # FAISS has no other
        problem = "cannot be read" if beside.exists() else "is missing"
    logger.info(f"{beside} {problem}: it is built again")
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    save_index(index, path)
    return index


def nearest(
    index: Any, collection: Collection, queries: np.ndarray, k: int, own: Sequence[np.ndarray]
) -> list[list[Neighbour]]:
    """The k nearest images of each query, float32 (Q, D) of length 1, without its `own` rows; fewer where the
    collection, or an approximate index, has no more."""
    length = min(k + max(map(len, own)), len(collection.paths))
    answers = []
    for similarities, rows, left_out in zip(*index.search(queries, length), own, strict=True):
        kept = np.flatnonzero((rows >= 0) & ~np.isin(rows, left_out))[:k]
        answers.append(
            [
                Neighbour(rank, float(similarities[i]), str(collection.paths[row]), str(collection.labels[row]))
                for rank, (i, row) in enumerate(zip(kept, rows[kept], strict=True), start=1)
            ]
        )
    return answers


def query_files(given: Sequence[Path]) -> list[Path]:
    """Image files, and the images below folders (:func:`images_below`); raises :class:`UserError` if one is missing."""
    files = []
    for path in given:
        if path.is_dir():
            files += [path / name for name in images_below(path).paths]
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such image file or folder")
    return files
