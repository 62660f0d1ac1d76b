"""The trained embedder of a run as a folder that can be taken elsewhere: weights, recipe, ONNX graph and card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import timm
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from retrieval_bench.columns import COLUMNS, COSTS, column, metric_names
from retrieval_bench.deploy.onnx_graph import Graph, write_graph
from retrieval_bench.deploy.saved import NAME, Recipe, data_config, embedder_digest, files_of, read_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable, whole_folder, write_text
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import LearnedRouter
from retrieval_bench.records import Record

CARD = "README.md"
PIPELINE = "image-feature-extraction"
"""What the Hugging Face Hub calls the task of an embedder."""


def export(path: Path, record: Record, target: Path, licence: str = "other", onnx: bool = True) -> Graph:
    """Writes ``embedder.safetensors``, ``embedder.json``, ``embedder.onnx`` and ``README.md`` into a new folder, all or
    none.

    Args:
        path: of the saved embedder, without an ending.
        record: of its run.
        target: the folder; must not exist.
        licence: of the weights, as the Hugging Face Hub calls it.
        onnx: whether the graph is written.

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
        graph = Graph(missing="it was not asked for")
        if onnx:
            graph = write_graph(embedder, side, recipe.get("flip_sum", False), folder / f"{NAME}.onnx", about)
        metadata = yaml.safe_dump(
            hub_metadata(record, licence, graph, tested="refit" not in recipe), sort_keys=False, allow_unicode=True
        )
        card = model_card(record, recipe, embedder, graph)
        write_text(folder / CARD, f"---\n{metadata}---\n\n{card}")
    return graph


def hub_metadata(record: Record, licence: str, graph: Graph, tested: bool = True) -> dict[str, Any]:
    """What the Hugging Face Hub reads at the top of a card: tags, the data set, the metrics of the record as fractions
    (``model-index``) if they were measured with these weights (`tested`), and the published network that was tuned
    where timm took its weights from the Hub."""
    dataset, backbone = record.dataset, record.config["model"]["backbone"]
    metrics = {name: value for name, value in record.metrics.items() if tested and isinstance(value, float)}
    of_timm = record.labels.get("weights") == "imagenet" and backbone != "efficientnet_lite0"
    published = timm.get_pretrained_cfg(backbone) if of_timm else None
    strategies = record.config["strategy"].split("+")
    tags = ["image-retrieval", "metric-learning", "image-similarity", *strategies, *["onnx"] * (not graph.missing)]
    values = {
        "license": licence,
        "license_name": "licences-of-the-data-set-and-the-pretrained-weights" if licence == "other" else None,
        "library_name": "retrieval_bench",
        "pipeline_tag": PIPELINE,
        "tags": tags,
        "base_model": published.hf_hub_id if published else None,
        "datasets": [dataset] if dataset not in ("folder", "table") else None,
        "metrics": list(metrics),
        "model-index": [
            {
                "name": record.id,
                "results": [
                    {
                        "task": {"type": PIPELINE, "name": "image retrieval"},
                        "dataset": {"type": dataset, "name": f"{dataset}, {record.config['data']['split']}"},
                        "metrics": [
                            {"type": name, "name": name.replace("_", " "), "value": value}
                            for name, value in metrics.items()
                        ],
                    }
                ],
            }
        ]
        if metrics
        else None,
    }
    return {name: value for name, value in values.items() if value}


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
