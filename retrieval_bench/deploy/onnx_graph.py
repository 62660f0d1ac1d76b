"""An embedder as an ONNX graph, compared with torch before it is given away."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.deploy.onnx_embedder import METADATA
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.embedder import Embedder, UnitEmbedder
from retrieval_bench.models.routing import LearnedRouter, RoutedBackbone, unroute
from retrieval_bench.progress import logger
from retrieval_bench.seeding import generator

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
COMPARED = (1, 3)
"""Sizes of the batches that are compared."""


@dataclass(frozen=True)
class Graph:
    """What became of the graph: the largest difference from torch, or why there is none."""

    difference: float | None = None
    missing: str = ""


class GraphEmbedder(UnitEmbedder):
    """Uint8 images (N, 3, S, S) to float32 vectors (N, D) of length 1, as a graph can hold them.

    The embedder is copied. Where each image takes its own blocks, both branches are computed, so that one graph holds
    all routes; where all images take the same ones, only those are left.
    """

    def __init__(self, embedder: Embedder, flip_sum: bool = False):
        super().__init__(copy.deepcopy(embedder), flip_sum)
        backbone = self.embedder.backbone
        if isinstance(backbone, RoutedBackbone):
            fixed = getattr(backbone.router, "fixed", None)
            if fixed is not None:
                unroute(self.embedder, fixed)
            else:
                backbone.both_branches = True
        self.eval()  # all of it: exporters put back the mode that they find

    def forward(self, images: Tensor) -> Tensor:
        """Float32 (N, D)."""
        vectors = super().forward(images.float() / 255)
        if isinstance(self.embedder.backbone, RoutedBackbone):
            self.embedder.backbone.decisions = None  # an exporter refuses a module that is left changed
        return vectors


def write_graph(
    embedder: Embedder, image_size: int, flip_sum: bool, path: Path, about: dict[str, Any] | None = None
) -> Graph:
    """Writes the graph of ``images`` uint8 (N, 3, S, S), any N, to ``embeddings`` float32 (N, D), with `about` in its
    metadata (:data:`METADATA`), and compares it with torch. Nothing is written for a network that no graph can hold,
    and where a package is missing; the reason is returned.

    Raises:
        UserError: torch cannot export the network, or graph and torch differ by more than :data:`TOLERANCE`.
    """
    router = embedder.backbone.router if isinstance(embedder.backbone, RoutedBackbone) else None
    if router is not None and (not isinstance(router, LearnedRouter) or router.draws):
        return Graph(missing="its routes are drawn from checksums of the pixels, which ONNX does not have")
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return Graph(missing=f'{" and ".join(absent)} must be installed first: pip install "retrieval_bench[export]"')
    logger.info("writing the ONNX graph (half a minute)")
    model = GraphEmbedder(embedder, flip_sum)
    try:
        difference = _export(model, image_size, path, about)
    except Exception as error:  # anywhere in the exporter; a graph that it fixed to one N fails when it is run
        raise UserError(f"this network cannot be exported to ONNX: {first_line(error)}") from None
    if not difference <= TOLERANCE:
        raise UserError(
            f"the ONNX graph differs from torch by {difference:.1e}, more than {TOLERANCE:.0e}: nothing is written"
        )
    return Graph(difference)


def _export(model: GraphEmbedder, image_size: int, path: Path, about: dict[str, Any] | None) -> float:
    """Writes the graph; returns its largest difference from torch on random images."""
    import onnxruntime

    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["embeddings"]}
    options |= {"dynamic_shapes": ({0: torch.export.Dim("N", min=1)},), "verbose": False}
    with _silence(), torch.no_grad():
        program: Any = torch.onnx.export(model, (_random_images(2, image_size),), None, dynamo=True, **options)
        if about:
            program.model.metadata_props[METADATA] = json.dumps(about)
        program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in COMPARED:
        images = _random_images(count, image_size)
        vectors: Any = session.run(None, {"images": images.numpy()})[0]
        with torch.no_grad():
            expected = model(images)
        if vectors.shape != expected.shape:
            raise ValueError(f"the graph gives {tuple(vectors.shape)} for {tuple(expected.shape)}")
        largest = max(largest, (torch.from_numpy(vectors) - expected).abs().max().item())
    return largest


def _random_images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator(0, "export", count))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """A block in which exporters, which write to log, warnings and both streams, are not heard."""
    disabled, nowhere = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
