"""An embedder on the disk: a recipe (JSON) that says how the network is built, beside its weights (safetensors).

A recipe names the backbone, the blocks that are gone, the channels that are left and, where a strategy's blocks stay in
the place of the backbone's own (routed blocks, columns), that strategy with its options and its state. Loading repeats
these steps on random weights, then fills the network. Format 1 had no strategy.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from retrieval_bench.deploy.hub import PREFIX, download
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, digest, write_text
from retrieval_bench.models.blocks import drop_blocks
from retrieval_bench.models.build import build_embedder, find_own
from retrieval_bench.models.embedder import Embedder, UnitEmbedder
from retrieval_bench.models.pruning import find_channels, set_widths
from retrieval_bench.plugins import load
from retrieval_bench.progress import logger
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.sections import DataConfig, ModelConfig
from retrieval_bench.strategies import BUILT_IN, STRATEGIES, Strategy, split_names
from retrieval_bench.strategies.chain import Chain

FORMATS = (1, 2)
NAME = "embedder"
"""What the files of an exported folder are called, without their endings."""
Recipe = dict[str, Any]


def files_of(path: Path) -> tuple[Path, Path]:
    """Recipe and weights of the embedder at `path` (without an ending)."""
    return path.with_name(f"{path.name}.json"), path.with_name(f"{path.name}.safetensors")


def is_kept(path: Path) -> bool:
    """Whether recipe and weights of an embedder are at `path` (without an ending)."""
    return all(file.is_file() for file in files_of(path))


def embedder_digest(path: Path) -> str:
    """SHA-256 over recipe and weights: copies of one embedder share it, any other network has another."""
    return hashlib.sha256("".join(map(digest, files_of(path))).encode()).hexdigest()


def data_config(recipe: Recipe) -> DataConfig:
    """How the recipe's network was shown its test images."""
    return DataConfig(image_size=recipe["image_size"], **recipe.get("views", {}))


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
    parts = strategy.parts if isinstance(strategy, Chain) else {}
    rebuilding = [
        {
            "strategy": _word(name, part),
            "options": asdict(part.options.without_downloads()),
            "memory": part.state_dict(),
        }
        for name, part in parts.items()
        if part.rebuilds_blocks
    ]
    for rebuilt in (None, *rebuilding):
        recipe["rebuilt"] = rebuilt
        if shapes == {name: value.shape for name, value in _build(recipe).state_dict().items()}:
            break
    else:
        raise UserError(
            "this network cannot be saved as a recipe: it has parts that neither its backbone nor its strategy gives it"
        )
    if sources := _own_code(recipe):
        recipe["code"] = sources
    recipe_path, weights_path = files_of(path)
    with atomic_path(weights_path) as unfinished:
        save_file(weights, unfinished)
    write_text(recipe_path, json.dumps({**recipe, **(about or {})}, indent=2) + "\n")


def load_embedder(path_or_run: Path | str, results: Path | str = "results/local") -> UnitEmbedder:
    """A trained embedder, in eval mode on the CPU: uint8 images (B, 3, S, S) to float32 vectors (B, D) of length 1,
    those of the evaluation, of ``embed`` and of the exported ONNX graph.

    Args:
        path_or_run: an exported folder; the path of a saved embedder, without an ending; the id of a run, or its
            beginning; or ``hf:OWNER/NAME[@REVISION]`` on the Hugging Face Hub (extra ``hub``), of which only JSON and
            safetensors are downloaded.
        results: the results folder of the run.

    Raises:
        UserError: no such embedder, or a file that is damaged or of another format.
    """
    embedder, recipe = read_embedder(find_embedder(str(path_or_run), Path(results).expanduser())[0])
    return UnitEmbedder(embedder, recipe.get("flip_sum", False)).eval()


def read_embedder(path: Path) -> tuple[Embedder, Recipe]:
    """The embedder that :func:`save_embedder` wrote to `path`, in eval mode on the CPU, and its recipe; nothing is
    downloaded. Its layout is channels-last, that of the networks that were evaluated, so that its embeddings are theirs
    bit for bit.

    Raises:
        UserError: a file that is missing, damaged or of another format.
    """
    recipe_path, weights_path = files_of(path)
    try:
        recipe = json.loads(recipe_path.read_text(encoding="utf-8"))
        if recipe.get("format") not in FORMATS:
            raise UserError(f"{recipe_path}: not a recipe of format {' or '.join(map(str, FORMATS))}")
        embedder = _build(recipe)
        if _own_code(recipe) != recipe.get("code", []):
            now, then = " ".join(_own_code(recipe)), " ".join(recipe.get("code", []))
            logger.info(f"{recipe_path}: was made with other code ({then}, now {now})")
        embedder.load_state_dict(load_file(weights_path))
    except UserError:
        raise
    except Exception as error:  # damaged JSON, tensors and shapes fail in a dozen ways
        reason = first_line(error)
        raise UserError(f"{path}: no embedder can be loaded from its .json and .safetensors ({reason})") from None
    return embedder.to(memory_format=torch.channels_last), recipe  # pyright: ignore[reportCallIssue]


def find_embedder(run: str, results: Path) -> tuple[Path, Record | None]:
    """Where an embedder is (a path without an ending), and the record of its run; None for one that is named by path.

    Args:
        run: the id of a record in `results`, or the beginning of one; an exported folder; the path of an embedder; or
            ``hf:OWNER/NAME[@REVISION]``, which is downloaded.
        results: folder that holds ``runs/`` and ``models/``.

    Raises:
        UserError: no such run or folder, several, or a run whose embedder was not kept, with the command that makes it
            again.
    """
    given = Path(run).expanduser()
    if run.startswith(PREFIX):
        given = download(run, [file.name for file in files_of(Path(NAME))])
    path = given / NAME if given.is_dir() else given
    if is_kept(path):
        return path, None
    if given.is_dir() or run.startswith(PREFIX):
        names = " and ".join(file.name for file in files_of(Path(NAME)))
        raise UserError(f"{run}: not an exported folder, which holds {names}; give one, or the id of a run")
    records = ResultsFolder(results).find(run)
    if len(records) > 1:
        raise UserError(f"'{run}' begins {len(records)} runs; give one: {', '.join(record.id for record in records)}")
    path = ResultsFolder(results).model(records[0].id)
    if not is_kept(path):
        where = "" if results == Path("results/local") else f" --results {shlex.quote(str(results))}"
        raise UserError(
            f"the embedder of {path.name} was not kept; this makes it again: {records[0].command} --keep{where}"
        )
    return path, records[0]


def _structure(embedder: Embedder, config: ModelConfig, image_size: int) -> dict[str, Any]:
    """In what the network differs from the one that `config` gives: blocks that are gone, other numbers of channels."""
    original = build_embedder(config, image_size).backbone
    blocks = {block.name for block in embedder.backbone.blocks}
    # a block that has a copy beside it is called as before, but for this word
    modules = {re.sub(r"\.frozen(?=\.|$)", "", name): module for name, module in embedder.backbone.net.named_modules()}
    widths = {
        name: modules[name].out_channels
        for name, module in original.net.named_modules()
        if isinstance(module, torch.nn.Conv2d)
        and isinstance(modules.get(name), torch.nn.Conv2d)
        and modules[name].out_channels != module.out_channels
    }
    return {"dropped_blocks": [block.name for block in original.body if block.name not in blocks], "widths": widths}


def _word(name: str, part: Strategy) -> str:
    """How a recipe names a strategy, so that it can be found again."""
    return name if name in BUILT_IN else f"{type(part).__module__}:{type(part).__qualname__}"


def _own_code(recipe: Recipe) -> list[str]:
    """The user's own backbone and strategy that a recipe needs, each with its digest."""
    strategy = (recipe.get("rebuilt") or {"strategy": "standard"})["strategy"]
    found = [find_own(recipe["model"]["backbone"]), None if strategy in BUILT_IN else load("strategies", strategy)]
    return [plugin.source for plugin in found if plugin]


def _build(recipe: Recipe) -> Embedder:
    """The network of a recipe, with random weights."""
    size = recipe["image_size"]
    example_images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    fields: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in recipe["model"].items()}
    embedder = build_embedder(ModelConfig(**fields), size)
    if recipe["dropped_blocks"]:
        embedder.resize_feature(drop_blocks(embedder.backbone, recipe["dropped_blocks"], example_images))
    if recipe["widths"]:
        channels = find_channels(embedder.backbone, size)
        widths = {name: recipe["widths"].get(name, width) for name, width in channels.full.items()}
        set_widths(embedder.backbone, channels, widths)
    if rebuilt := recipe.get("rebuilt"):
        kind = STRATEGIES[split_names(rebuilt["strategy"])[0]]
        strategy = kind(kind.Options(**rebuilt["options"]))
        embedder = strategy.prepare(embedder, example_images)
        strategy.load_state_dict(rebuilt["memory"], embedder)
    return embedder.eval()
