"""An exported ONNX graph in use: Pillow, NumPy and onnxruntime, without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.data.crop import crop_pixels, eval_crop
from retrieval_bench.data.reading import read_image, shrink
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.progress import track
from retrieval_bench.sections import DataConfig

METADATA = "retrieval_bench"
"""Key of a graph's metadata: JSON with the digest of its embedder, and ``image_size`` and ``views`` of its recipe."""
BATCH = 16


def open_graph(path: Path) -> tuple[str, Callable[[Sequence[Path]], np.ndarray]]:
    """The digest of the embedder that a graph was made from, and what makes float32 (N, D) of N image files with the
    graph: the embeddings of that embedder within the graph's difference from torch.

    Raises:
        UserError: no such file, no graph of `export`, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError("--onnx: onnxruntime must be installed first: pip install onnxruntime") from None
    if not path.is_file():
        raise UserError(f"{path}: no such ONNX graph; `export RUN` makes one")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        about = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "null"))
    except Exception as error:  # onnxruntime has a dozen types
        raise UserError(f"{path}: not an ONNX graph ({first_line(error)})") from None
    if about is None:
        raise UserError(f"{path}: does not say how images are prepared for it; `export` its run again")
    config = DataConfig(image_size=about["image_size"], **about["views"])

    def embed_files(files: Sequence[Path]) -> np.ndarray:
        parts: list[Any] = []
        batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
        for batch in track(batches, "embedding images", len(files), size=len):
            images = np.stack([_prepared(file, config) for file in batch])
            parts.append(session.run(None, {"images": images})[0])
        return np.concatenate(parts)

    return about["embedder"], embed_files


def _prepared(file: Path, config: DataConfig) -> np.ndarray:
    """uint8 (3, S, S), as the evaluation prepares an image."""
    image = shrink(read_image(file), config.stored)
    return crop_pixels(image, eval_crop(image.height, image.width, config), config)
