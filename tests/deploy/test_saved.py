"""An embedder comes back from its recipe and weights as it was, whatever was cut off it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench.cli import main
from retrieval_bench.config import ModelConfig
from retrieval_bench.deploy.saved import load_embedder, save_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.layer_pruning import LayerPruning
from tests.training.helpers import random_images

SIDE = 64
IMAGES = random_images(3, side=SIDE)


def embedder_of(backbone: str, dim: int = 0) -> tuple[ModelConfig, Embedder]:
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, weights="none", embedding_dim=dim, pooling="default")
    return config, build_embedder(config, SIDE).eval()


def changed(model: Embedder, strategy: str) -> Embedder:
    options = StrategyOptions(
        layer_pruning=LayerPruning.Options("last:1"), channel_pruning=ChannelPruning.Options(budget=0.6, scores="uniform")
    )
    built = build_strategy(strategy, options)
    return built.finish(built.prepare(model, IMAGES)).eval()


@pytest.mark.parametrize("strategy", ["standard", "layer_pruning", "channel_pruning", "layer_pruning+channel_pruning"])
@pytest.mark.parametrize(("backbone", "dim"), [("resnet18", 16), ("efficientnet_lite0", 0)])
def test_the_same_embeddings(strategy: str, backbone: str, dim: int, tmp_path: Path) -> None:
    config, model = embedder_of(backbone, dim)
    model = changed(model, strategy)
    save_embedder(model, config, SIDE, tmp_path / "kept" / "one", {"flip_sum": True})
    again, recipe = load_embedder(tmp_path / "kept" / "one")
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert recipe["flip_sum"] is True
    assert bool(recipe["dropped_blocks"]) == ("layer_pruning" in strategy)
    assert bool(recipe["widths"]) == ("channel_pruning" in strategy)
    assert not again.training


def test_a_routed_network_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config, model = embedder_of("resnet18")
    with pytest.raises(UserError, match="cannot be saved as a recipe"):
        save_embedder(changed(model, "spottune"), config, SIDE, tmp_path / "one")
    assert not list(tmp_path.iterdir())


def damaged(path: Path, ending: str) -> Any:
    return path.with_name(f"{path.name}.{ending}")


@pytest.mark.parametrize("damage", ["no recipe", "no weights", "half a recipe", "half the weights", "another format", "another network"])
def test_what_cannot_be_loaded_is_refused_in_one_line(damage: str, tmp_path: Path) -> None:
    config, model = embedder_of("resnet18")
    path = tmp_path / "one"
    save_embedder(model, config, SIDE, path)
    recipe, weights = damaged(path, "json"), damaged(path, "safetensors")
    if damage.startswith("no "):
        (recipe if "recipe" in damage else weights).unlink()
    elif damage.startswith("half"):
        file = recipe if "recipe" in damage else weights
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        held = json.loads(recipe.read_text())
        held.update({"format": 7} if "format" in damage else {"model": {**held["model"], "backbone": "resnet34"}})
        recipe.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        load_embedder(path)


def test_a_run_keeps_its_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record without its embedder does not stop the run that is to keep one; with both there, nothing is run again."""
    command = ["run", "--dataset", "synthetic", "--backbone", "resnet18", "--weights", "none", "--image-size", "32", "--epochs", "0"]
    command += ["--strategy", "channel_pruning", "--results", str(tmp_path)]
    assert main(command) == 0
    assert not (tmp_path / "models").exists()
    assert main([*command, "--keep"]) == 0
    assert "the embedder is kept in" in capsys.readouterr().err
    (file,) = (tmp_path / "models").glob("*.json")
    embedder, recipe = load_embedder(file.with_suffix(""))
    assert embedder.dim == 512
    assert recipe["views"] == {"preprocessing": "crop", "resize": 0, "stored": 0}
    assert main([*command, "--keep"]) == 0
    assert "already recorded" in capsys.readouterr().err
