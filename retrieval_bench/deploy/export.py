"""The trained embedder of a run as a folder that can be taken elsewhere: weights, recipe, ONNX graph and card."""

from __future__ import annotations

import shutil
from pathlib import Path

from retrieval_bench.deploy.card import model_card
from retrieval_bench.deploy.onnx_graph import Graph, write_graph
from retrieval_bench.deploy.runs import NAME, Found
from retrieval_bench.deploy.saved import files_of, load_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable, whole_folder, write_text


def export(found: Found, target: Path) -> Graph:
    """Writes ``embedder.safetensors``, ``embedder.json``, ``embedder.onnx`` and ``README.md`` into a new folder, all or none.

    Args:
        found: the embedder of a run that has a record.
        target: the folder; must not exist.

    Returns:
        What became of the ONNX graph.

    Raises:
        UserError: an exported folder in place of a run, a target that is there, weights that cannot be loaded, or a graph that is not
            what torch computes.
    """
    if found.record is None:
        raise UserError(f"{found.path.parent}: is an exported folder already; export takes the id of a run")
    if target.exists():
        raise UserError(f"{target}: is there already; remove it, or choose another folder with --output")
    embedder, recipe = load_embedder(found.path)
    check_writable(target.parent, "--output")
    with whole_folder(target) as folder:
        for source, copy in zip(files_of(found.path), files_of(folder / NAME), strict=True):
            shutil.copyfile(source, copy)
        graph = write_graph(embedder, recipe["image_size"], recipe.get("flip_sum", False), folder / f"{NAME}.onnx")
        write_text(folder / "README.md", model_card(found.record, recipe, embedder.dim, graph))
    return graph
