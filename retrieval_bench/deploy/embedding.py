"""Images to embeddings by torch, as in the evaluation; and the FAISS index over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.saved import data_config, embedder_digest, find_embedder, read_embedder
from retrieval_bench.deploy.search import Collection, IndexKind, digests_of, open_index, save_index
from retrieval_bench.device import resolve_device
from retrieval_bench.evaluation.faiss_search import index_of
from retrieval_bench.models.embedder import embed, unit


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
    known: Collection | None = None,
) -> Collection:
    """Embeds all images of a table as :func:`embed_images` does, adds them to the `known` ones of `output`, if any, and
    writes the collection there (.npz) with its index beside."""
    embeddings = embed_images(path, table, device, workers, batch_size)
    labels = np.array([table.class_names[label] for label in table.labels])
    digests = digests_of(table.root, table.paths)
    collection = Collection(embeddings, labels, np.array(table.paths), embedder_digest(path), digests)
    if known:
        nearest = open_index(known, output)
        nearest.add(embeddings)
        collection = known + collection
    else:
        nearest = build_index(embeddings, index)
    collection.write(output)
    save_index(nearest, output)
    return collection


def embedder_of(run: str, results: Path, device: str) -> tuple[str, Callable[[Sequence[Path]], np.ndarray]]:
    """The digest of the embedder that `run` names (:func:`find_embedder`), and what makes embeddings of image files
    with it (:func:`embed_images`)."""
    path, _ = find_embedder(run, results)

    def embed_files(files: Sequence[Path]) -> np.ndarray:
        labels = np.zeros(len(files), dtype=np.int64)
        return embed_images(path, ImageTable(Path(), tuple(map(str, files)), labels, ("",)), device)

    return embedder_digest(path), embed_files


def build_index(embeddings: np.ndarray, kind: IndexKind) -> Any:
    """A FAISS index of inner products over float32 (N, D)."""
    return index_of(embeddings.__getitem__, len(embeddings), embeddings.shape[1], kind)
