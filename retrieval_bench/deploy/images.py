"""Images of one's own to embeddings, prepared exactly as those of the evaluation were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.parallel import in_threads
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.sets.folder import is_image
from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder, embed, unit
from retrieval_bench.progress import logger
from retrieval_bench.sections import DataConfig


def images_below(folder: Path, skip_unreadable: bool = False) -> ImageTable:
    """The images below a folder by name, hidden ones passed over; their class is the first folder on their path, "" for none.

    Args:
        folder: with images at any depth.
        skip_unreadable: read all images now and leave out, with a line each, those that cannot be decoded.

    Raises:
        UserError: no folder, no image in it, or a name that is no text.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if is_image(path, folder))
    for path in paths:
        if path != path.encode(errors="replace").decode():
            raise UserError(f"{path!a}: the file's name is no UTF-8 text; rename it")
    if skip_unreadable:
        paths = _readable(folder, paths)
    if not paths:
        raise UserError(
            f"{folder}: no image in it that can be read" if skip_unreadable else f"{folder}: no image in it"
        )
    names = [path.split("/")[0] if "/" in path else "" for path in paths]
    classes, labels = np.unique(names, return_inverse=True)
    return ImageTable(folder, tuple(paths), labels.astype(np.int64), tuple(classes.tolist()))


def _readable(folder: Path, paths: list[str]) -> list[str]:
    readable = []
    for path, fault in zip(
        paths, in_threads(_fault, [folder / path for path in paths], "reading", len(paths)), strict=True
    ):
        if fault:
            logger.info(f"left out: {fault}")
        else:
            readable.append(path)
    return readable


def _fault(path: Path) -> str:
    """Why an image cannot be decoded, "" if it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return ""


def embed_table(
    embedder: Embedder, recipe: dict[str, Any], table: ImageTable, batch_size: int, workers: int
) -> np.ndarray:
    """Float32 (N, D), of length 1: the embeddings of all images of a table.

    Args:
        embedder: from :func:`retrieval_bench.deploy.saved.load_embedder`, on the device that computes.
        recipe: its recipe, which says how images are shown to it.
        table: the images.
        batch_size: images that pass through the network at a time.
        workers: processes that decode.

    Raises:
        UserError: an image that cannot be decoded; the line names it.
    """
    config = data_config(recipe)
    batches = Batches(table, np.arange(len(table)), table.labels, config, workers, batch_size=batch_size)
    return unit(embed(embedder, batches, recipe.get("flip_sum", False)))


def data_config(recipe: dict[str, Any]) -> DataConfig:
    """How the recipe's network was shown its test images."""
    return DataConfig(image_size=recipe["image_size"], **recipe.get("views", {}))
