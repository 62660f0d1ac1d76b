"""The trained embedder of a run as a folder that can be taken elsewhere: weights, recipe, ONNX graph and card."""

from __future__ import annotations

import shutil
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retrieval_bench.columns import COLUMNS, COSTS, column, metric_names
from retrieval_bench.deploy.onnx_graph import Graph, write_graph
from retrieval_bench.deploy.saved import NAME, Recipe, data_config, embedder_digest, files_of, read_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable, whole_folder, write_text
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import LearnedRouter
from retrieval_bench.records import Record


def export(path: Path, record: Record, target: Path) -> Graph:
    """Writes ``embedder.safetensors``, ``embedder.json``, ``embedder.onnx`` and ``README.md`` into a new folder, all or
    none.

    Args:
        path: of the saved embedder, without an ending.
        record: of its run.
        target: the folder; must not exist.

    Returns:
        What became of the ONNX graph.

    Raises:
        UserError: a target that exists, weights that cannot be loaded, or a graph that is not what torch computes.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; remove it, or choose another folder with --output")
    embedder, recipe = read_embedder(path)
    side = recipe["image_size"]
    check_writable(target.parent, "--output")
    with whole_folder(target) as folder:
        for source, copy in zip(files_of(path), files_of(folder / NAME), strict=True):
            shutil.copyfile(source, copy)
        about = {"embedder": embedder_digest(path), "image_size": side, "views": recipe.get("views", {})}
        graph = write_graph(embedder, side, recipe.get("flip_sum", False), folder / f"{NAME}.onnx", about)
        write_text(folder / "README.md", model_card(record, recipe, embedder, graph))
    return graph


def model_card(record: Record, recipe: Recipe, embedder: Embedder, graph: Graph) -> str:
    """The card as Markdown (``card.md``): what the embedder is, how good it was in the test, how it is used; all from
    its record and recipe."""
    shown = metric_names(record.metrics)
    metrics = [(column(name).title, column(name).text(record.metrics[name])) for name in shown]
    for name, value in record.metrics.items():
        if name not in shown:
            metrics.append((name.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value)))
    costs = [(COLUMNS[name], record.cost.get(name)) for name in COSTS]
    router = getattr(embedder.backbone, "router", None)
    options = record.config.get("options", {})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("card.md").render(
        record=record,
        config=record.config,
        options=", ".join(f"{part}.{name} {value}" for part in options for name, value in options[part].items()),
        costs=[(cost.axis, f"{value / cost.scale:,.5g}") for cost, value in costs if value is not None],
        metrics=metrics,
        data=data_config(recipe),
        flip_sum=recipe.get("flip_sum"),
        refit=recipe.get("refit"),
        dim=embedder.dim,
        graph=graph,
        routes_by_image=isinstance(router, LearnedRouter) and router.fixed is None and not router.draws,
    )
