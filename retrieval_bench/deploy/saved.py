"""An embedder on the disk: a recipe (JSON) that says how the network is built, beside its weights (safetensors).

A recipe names the backbone, the blocks that are gone, the channels that are left and, where a strategy's blocks stay in the place of the
backbone's own (routed blocks, columns), that strategy with its options and its memory. Loading repeats these steps on random weights, then
fills the network. Format 1 had no strategy.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, digest, write_text
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.channels import find_channels, set_widths
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.surgery import drop_blocks
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import STRATEGIES, Strategy
from retrieval_bench.strategies.chain import Chain

FORMATS = (1, 2)
Recipe = dict[str, Any]


def kept_path(results: Path, run_id: str) -> Path:
    """Where the embedder of a run is kept below the results folder, without an ending."""
    return results / "models" / run_id


def is_kept(path: Path) -> bool:
    """Whether recipe and weights of an embedder are at `path` (without an ending)."""
    return all(file.is_file() for file in files_of(path))


def files_of(path: Path) -> tuple[Path, Path]:
    """Recipe and weights of an embedder."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.safetensors")


def embedder_digest(path: Path) -> str:
    """SHA-256 over recipe and weights: copies of one embedder share it, any other network has another."""
    return hashlib.sha256("".join(digest(file) for file in files_of(path)).encode()).hexdigest()


def save_embedder(
    embedder: Embedder,
    config: ModelConfig,
    image_size: int,
    path: Path,
    about: dict[str, Any] | None = None,
    strategy: Strategy | None = None,
) -> None:
    """Writes ``<path>.json`` and ``<path>.safetensors``, each whole or not at all.

    Args:
        embedder: as a strategy left it: fewer blocks, other numbers of channels, other modules in the place of blocks.
        config: what it was built from.
        image_size: side of its input, pixels.
        path: without an ending.
        about: more to keep in the recipe, JSON types.
        strategy: what it was trained with; None where it put no modules in the place of blocks.

    Raises:
        UserError: a network that neither structure nor strategy describes.
    """
    mean, std = embedder.backbone.normalisation
    config = replace(config, weights="none", mean=mean, std=std)
    recipe = {
        "format": FORMATS[-1],
        "model": asdict(config),
        "image_size": image_size,
        **_structure(embedder, config, image_size),
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in embedder.state_dict().items()}
    shapes = {name: value.shape for name, value in weights.items()}
    for rebuilt in (None, *_rebuilding(strategy)):
        recipe["rebuilt"] = rebuilt
        if shapes == {name: value.shape for name, value in _build(recipe).state_dict().items()}:
            break
    else:
        raise UserError(
            "this network cannot be saved as a recipe: it has parts that neither its backbone nor its strategy gives it"
        )
    recipe_path, weights_path = files_of(path)
    with atomic_path(weights_path) as unfinished:
        save_file(weights, unfinished)
    write_text(recipe_path, json.dumps({**recipe, **(about or {})}, indent=2) + "\n")


def load_embedder(path: Path) -> tuple[Embedder, Recipe]:
    """The embedder that :func:`save_embedder` wrote, in eval mode on the CPU, and its recipe; nothing is downloaded.

    Its layout is channels-last, that of the networks that were evaluated, so that its embeddings are theirs bit for bit.

    Raises:
        UserError: a file that is missing, damaged or of another format.
    """
    recipe_path, weights_path = files_of(path)
    try:
        recipe = json.loads(recipe_path.read_text(encoding="utf-8"))
        if recipe.get("format") not in FORMATS:
            raise UserError(f"{recipe_path}: not a recipe of format {' or '.join(map(str, FORMATS))}")
        embedder = _build(recipe)
        embedder.load_state_dict(load_file(weights_path))
    except UserError:
        raise
    except Exception as error:  # damaged JSON, tensors and shapes fail in a dozen ways
        raise UserError(
            f"{path}: no embedder can be loaded from its .json and .safetensors ({first_line(error)})"
        ) from None
    return embedder.to(memory_format=torch.channels_last), recipe  # pyright: ignore[reportCallIssue]


def _rebuilding(strategy: Strategy | None) -> list[dict[str, Any]]:
    """The part of a chain that puts modules in the place of blocks, as a recipe holds it, if there is one."""
    parts = strategy.parts if isinstance(strategy, Chain) else {}
    return [
        {"strategy": name, "options": _offline(asdict(part.options)), "memory": part.state_dict()}
        for name, part in parts.items()
        if part.rebuilds_blocks
    ]


def _offline(options: dict[str, Any]) -> dict[str, Any]:
    """Options without pretrained weights, which are overwritten anyway."""
    return {**options, "policy_weights": "none"} if "policy_weights" in options else options


def _structure(embedder: Embedder, config: ModelConfig, image_size: int) -> dict[str, Any]:
    """In what the network differs from the one that `config` gives: blocks that are gone, numbers of channels that are others."""
    whole = build_embedder(config, image_size)
    left = {block.name for block in embedder.backbone.blocks}
    dropped = [block.name for block in whole.backbone.body if block.name not in left]
    convolutions = {
        name: module for name, module in whole.backbone.net.named_modules() if isinstance(module, torch.nn.Conv2d)
    }
    # a block that was put beside another one keeps its name, less this word
    found = {re.sub(r"\.frozen(?=\.|$)", "", name): module for name, module in embedder.backbone.net.named_modules()}
    widths = {
        name: module.out_channels
        for name, whole_module in convolutions.items()
        if isinstance(module := found.get(name), torch.nn.Conv2d) and module.out_channels != whole_module.out_channels
    }
    return {"dropped_blocks": dropped, "widths": widths}


def _build(recipe: Recipe) -> Embedder:
    size = recipe["image_size"]
    example_images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    embedder = build_embedder(_model_config(recipe["model"]), size)
    if recipe["dropped_blocks"]:
        embedder.resize_feature(drop_blocks(embedder.backbone, recipe["dropped_blocks"], example_images))
    if recipe["widths"]:
        channels = find_channels(embedder.backbone, size)
        set_widths(
            embedder.backbone,
            channels,
            {name: recipe["widths"].get(name, width) for name, width in channels.full.items()},
        )
    if rebuilt := recipe.get("rebuilt"):
        kind = STRATEGIES[rebuilt["strategy"]]
        strategy = kind(kind.Options(**rebuilt["options"]))
        embedder = strategy.prepare(embedder, example_images)
        strategy.load_state_dict(rebuilt["memory"], embedder)
    return embedder.eval()


def _model_config(fields: dict[str, Any]) -> ModelConfig:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return ModelConfig(**values)
