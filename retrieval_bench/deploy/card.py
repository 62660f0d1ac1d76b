"""The card of an exported embedder: what it is, how good it was found to be, and how it is used; all from its record and recipe."""

from __future__ import annotations

from typing import Any

from retrieval_bench.deploy.images import data_config
from retrieval_bench.deploy.onnx_graph import Graph
from retrieval_bench.deploy.saved import Recipe
from retrieval_bench.sections import DataConfig

Record = dict[str, Any]


def model_card(record: Record, recipe: Recipe, dim: int, graph: Graph) -> str:
    """The card as Markdown.

    Args:
        record: of the run.
        recipe: of its embedder.
        dim: D of the vectors.
        graph: what became of the ONNX graph.
    """
    parts = (
        f"# {record['id']}",
        "An image embedder: pictures in, vectors out; the inner product of two vectors says how alike their pictures are. Made by "
        f"retrieval_bench {record['environment']['versions'].get('retrieval_bench', '')}, which compares ways to fine-tune networks.",
        _table(_facts(record)),
        "## Metrics",
        f"On {record['data']['test_images']:,} test images, scored once, after training:",
        _table(_metrics(record["metrics"])),
        "## Input and output",
        _input(recipe, dim),
        "## Use",
        _use(recipe, graph),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(record, graph)),
        "## Made by",
        f"```sh\n{record.get('command', '')}\n```",
    )
    return "\n\n".join(parts) + "\n"


def _facts(record: Record) -> dict[str, str]:
    config, data, cost = record["config"], record["data"], record["cost"]
    train = config["train"]
    options = [f"{part}.{name} {value}" for part, values in config["options"].items() for name, value in values.items()]
    chosen = [f"{part}: {found['chosen']}" for part, found in record.get("facts", {}).get("selection", {}).items()]
    return {
        "network": f"{config['model']['backbone']}, weights before training: {record['labels']['weights']}",
        "data set": f"{config['data']['dataset']}, split {config['data']['split']}: {data['train_images']:,} images of "
        f"{data['train_classes']:,} classes to train on, {data['test_images']:,} of {data['test_classes']:,} to test on",
        "strategy": record["labels"]["strategy"]
        + (f" (chosen on validation classes: {', '.join(chosen)})" if chosen else ""),
        "its options": ", ".join(options) or "none",
        "training": "none: the pretrained features as they are"
        if not cost["images_seen"]
        else f"epochs {train['epochs']}, loss {config['loss']['loss']}, batches of {train['batch_size']}, {train['optimizer']}, "
        f"rate {train['lr']:g}, {train['schedule']}",
        "seed": str(record["seed"]),
        "size": f"{_number(cost, 'parameters')} parameters, {_number(cost, 'macs')} multiply-accumulates for an image",
        "cost": f"{_number(cost, 'images_seen')} images seen in {_number(cost, 'train_seconds')} s of training; an image takes "
        f"{_number(cost, 'latency_ms')} ms "
        f"({record['environment']['device']}, torch)",
    }


def _number(cost: dict[str, Any], name: str) -> str:
    """A cost as text; older records lack some."""
    value = cost.get(name)
    return "an unknown number of" if value is None else f"{value:,}"


def _metrics(metrics: dict[str, Any]) -> dict[str, str]:
    """Fractions in percent, Recall@K first; counts as they are."""
    names = {
        f"recall_at_{k}": f"Recall@{k}"
        for k in sorted(int(name[10:]) for name in metrics if name.startswith("recall_at_"))
    }
    names |= {
        "mrr": "mean reciprocal rank",
        "r_precision": "R-precision",
        "map_at_r": "MAP@R",
        "accuracy": "accuracy of the classifier",
    }
    fractions = {title: f"{100 * metrics[name]:.2f} %" for name, title in names.items() if name in metrics}
    return fractions | {name.replace("_", " "): str(value) for name, value in metrics.items() if name not in names}


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _input(recipe: Recipe, dim: int) -> str:
    config = data_config(recipe)
    square, side = config.image_size, config.resize_to
    both = f"scaled to {side} x {side} pixels whatever its shape (bicubic)"
    steps = f"scaled to a shorter side of {side} pixels (bilinear)" if config.preprocessing == "crop" else both
    if config.stored:
        steps = f"scaled down to a shorter side of at most {config.stored} pixels (Lanczos), then {steps}"
    mirror = " Each vector is the mean of those of the image and of its mirror image." if recipe.get("flip_sum") else ""
    return (
        f"In: RGB images, uint8 (N, 3, {square}, {square}), any N. An image, transparency laid over white, is {steps}; of that the middle "
        f"{square} x {square} is taken. Values are normalised inside the network.\n\n"
        f"Out: float32 (N, {dim}); each vector has length 1, so that inner products are cosine similarities.{mirror}"
    )


def _use(recipe: Recipe, graph: Graph) -> str:
    embed = (
        "With retrieval_bench, in this folder, to find the nearest of one's own pictures:\n\n```sh\n"
        "python -m retrieval_bench embed . PICTURES -o pictures.npz\n"
        "python -m retrieval_bench search . QUERY.jpg --gallery pictures.npz --folder PICTURES --sheet found.png\n```"
    )
    if graph.difference is None:
        return f"{embed}\n\nThere is no ONNX graph here: {graph.missing}."
    return f"With onnxruntime:\n\n```python\n{snippet(data_config(recipe))}\n```\n\n{embed}"


def snippet(config: DataConfig) -> str:
    """Lines that embed ``picture.jpg`` with onnxruntime, for people without this package."""
    side, square = config.resize_to, config.image_size
    size = (
        f"[length * {side} // min(image.size) for length in image.size]"
        if config.preprocessing == "crop"
        else f"({side}, {side})"
    )
    stored = f"[length * {config.stored} // min(image.size) for length in image.size], Image.Resampling.LANCZOS"
    lines = [
        "import numpy, onnxruntime",
        "from PIL import Image, ImageOps",
        'image = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGBA")',
        'image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")',
        *([f"image = image.resize({stored}) if min(image.size) > {config.stored} else image"] if config.stored else []),
        f"image = image.resize({size}, Image.Resampling.{'BILINEAR' if config.preprocessing == 'crop' else 'BICUBIC'})",
        f"left, top = (round((length - {square}) / 2) for length in image.size)",
        f"pixels = numpy.asarray(image.crop((left, top, left + {square}, top + {square}))).transpose(2, 0, 1)[None]",
        'vector = onnxruntime.InferenceSession("embedder.onnx").run(None, {"images": pixels})[0]',
    ]
    return "\n".join(lines)


def _limits(record: Record, graph: Graph) -> list[str]:
    closed = record["config"]["data"]["split"] == "closed_set"
    limits = [
        "The metrics are of one seed, and say nothing of the spread over seeds.",
        f"They hold for images like those of {record['config']['data']['dataset']}, "
        + ("of the classes that it was trained on." if closed else "of classes that it was not trained on."),
        "The licences of the data set and of the pretrained weights are not given here; ask those who publish them.",
    ]
    if graph.difference is not None:
        limits.append(
            f"The ONNX graph differs from torch by at most {graph.difference:.1e} in a value, on random images."
        )
    routing = record["config"]["options"].get("spottune")
    if routing is not None and routing.get("eval_policy", "argmax").startswith(
        "argmax"
    ):  # all others fix one route for all images
        limits.append(
            "A policy network decides which blocks an image takes; where it is undecided, rounding may decide, and another route gives "
            "another vector."
        )
    return limits
