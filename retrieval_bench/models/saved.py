"""An embedder on the disk: a recipe (JSON) that says how the network is built, beside its weights (safetensors)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from retrieval_bench.config import ModelConfig
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, write_text
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.channels import find_channels, set_widths
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.surgery import drop_blocks

FORMAT = 1


def save_embedder(embedder: Embedder, config: ModelConfig, image_size: int, path: Path, about: dict[str, Any] | None = None) -> None:
    """Writes ``<path>.json`` and ``<path>.safetensors``, each whole or not at all.

    Args:
        embedder: whole, or with fewer blocks or channels than `config` gives.
        config: what it was built from.
        image_size: side of its input, pixels.
        path: without an ending.
        about: more to keep in the recipe, JSON types.

    Raises:
        UserError: a network that a recipe cannot describe, such as a routed one.
    """
    config = replace(config, weights="none")
    recipe = {"format": FORMAT, "model": asdict(config), "image_size": image_size, **_structure(embedder, config, image_size)}
    weights = {name: value.detach().cpu().contiguous() for name, value in embedder.state_dict().items()}
    shapes = {name: value.shape for name, value in weights.items()}
    if shapes != {name: value.shape for name, value in _build(recipe).state_dict().items()}:
        raise UserError(
            "this network cannot be saved as a recipe: it has parts that its backbone has not, such as routed blocks or columns"
        )
    with atomic_path(path.with_name(f"{path.name}.safetensors")) as unfinished:
        save_file(weights, unfinished)
    write_text(path.with_name(f"{path.name}.json"), json.dumps({**recipe, **(about or {})}, indent=2) + "\n")


def load_embedder(path: Path) -> tuple[Embedder, dict[str, Any]]:
    """The embedder that :func:`save_embedder` wrote, in eval mode on the CPU, and its recipe.

    Raises:
        UserError: a file that is missing, damaged or of another format.
    """
    recipe_path, weights_path = (path.with_name(f"{path.name}.{ending}") for ending in ("json", "safetensors"))
    try:
        recipe = json.loads(recipe_path.read_text(encoding="utf-8"))
        if recipe.get("format") != FORMAT:
            raise UserError(f"{recipe_path}: not a recipe of format {FORMAT}")
        embedder = _build(recipe)
        embedder.load_state_dict(load_file(weights_path))
    except UserError:
        raise
    except Exception as error:  # damaged JSON, tensors and shapes fail in a dozen ways
        raise UserError(f"{path}: no embedder can be loaded from its .json and .safetensors ({first_line(error)})") from None
    return embedder.eval(), recipe


def _structure(embedder: Embedder, config: ModelConfig, image_size: int) -> dict[str, Any]:
    """In what the network differs from the one that `config` gives: blocks that are gone, numbers of channels that are others."""
    whole = build_embedder(config, image_size)
    left = {block.name for block in embedder.backbone.blocks}
    dropped = [block.name for block in whole.backbone.body if block.name not in left]
    convolutions = {name: module for name, module in whole.backbone.net.named_modules() if isinstance(module, torch.nn.Conv2d)}
    found = dict(embedder.backbone.net.named_modules())
    widths = {
        name: module.out_channels
        for name, whole_module in convolutions.items()
        if isinstance(module := found.get(name), torch.nn.Conv2d) and module.out_channels != whole_module.out_channels
    }
    return {"dropped_blocks": dropped, "widths": widths}


def _build(recipe: dict[str, Any]) -> Embedder:
    size = recipe["image_size"]
    embedder = build_embedder(_model_config(recipe["model"]), size)
    if recipe["dropped_blocks"]:
        probe = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        embedder.resize_feature(drop_blocks(embedder.backbone, recipe["dropped_blocks"], probe))
    if recipe["widths"]:
        channels = find_channels(embedder.backbone, size)
        set_widths(embedder.backbone, channels, {name: recipe["widths"].get(name, width) for name, width in channels.full.items()})
    return embedder.eval()


def _model_config(fields: dict[str, Any]) -> ModelConfig:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return ModelConfig(**values)
