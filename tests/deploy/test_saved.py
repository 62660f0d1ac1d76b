"""An embedder comes back from its recipe and weights as it was, whatever was cut off it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from retrieval_bench.commands.runs import BenchRuns, Run, StudyRuns

from retrieval_bench.cli import main
from retrieval_bench.deploy.saved import embedder_digest, load_embedder, save_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routers import LearnedRouter
from retrieval_bench.models.routing import RoutedBackbone
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.layer_pruning import LayerPruning
from retrieval_bench.strategies.spottune import SpotTune
from tests.training.helpers import random_images

SIDE = 64
IMAGES = random_images(3, side=SIDE)


def embedder_of(backbone: str, dim: int = 0) -> tuple[ModelConfig, Embedder]:
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, weights="none", embedding_dim=dim, pooling="default")
    return config, build_embedder(config, SIDE).eval()


def changed(model: Embedder, strategy: str) -> tuple[Embedder, Chain]:
    """As a strategy deploys it, in the layout that training gives it."""
    options = StrategyOptions(
        layer_pruning=LayerPruning.Options("last:1"),
        channel_pruning=ChannelPruning.Options(budget=0.6, scores="uniform"),
    )
    built = build_strategy(strategy, options)
    deployed: Any = built.finalize(built.prepare(model, IMAGES)).eval()
    return deployed.to(memory_format=torch.channels_last), built


@pytest.mark.parametrize(
    "strategy",
    [
        "standard",
        "layer_pruning",
        "channel_pruning",
        "layer_pruning+channel_pruning",
        "layer_pruning+spottune",
        "channel_pruning+random_policy",
        "layer_pruning+channel_pruning+progressive",
    ],
)
@pytest.mark.parametrize(("backbone", "dim"), [("resnet18", 16), ("test_efficientnet", 0)])
def test_the_same_embeddings(strategy: str, backbone: str, dim: int, tmp_path: Path) -> None:
    config, model = embedder_of(backbone, dim)
    model, built = changed(model, strategy)
    save_embedder(model, config, SIDE, tmp_path / "kept" / "one", {"flip_sum": True}, built)
    again, recipe = load_embedder(tmp_path / "kept" / "one")
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert recipe["flip_sum"] is True
    assert bool(recipe["dropped_blocks"]) == ("layer_pruning" in strategy)
    assert bool(recipe["widths"]) == ("channel_pruning" in strategy)
    last = strategy.split("+")[-1]
    assert (recipe["rebuilt"] or {}).get("strategy") == (
        last if last in ("spottune", "random_policy", "progressive") else None
    )
    assert not again.training


def test_a_network_that_nothing_describes_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config, model = embedder_of("resnet18")
    routed, _ = changed(model, "spottune")
    with pytest.raises(UserError, match="cannot be saved as a recipe"):
        save_embedder(routed, config, SIDE, tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_the_first_format_loads(tmp_path: Path) -> None:
    """It had no strategy, and left the normalisation to the backbone's name."""
    config, model = embedder_of("resnet18")
    model, _ = changed(model, "layer_pruning")
    save_embedder(model, config, SIDE, tmp_path / "one")
    recipe = tmp_path / "one.json"
    held = json.loads(recipe.read_text())
    del held["rebuilt"]
    held |= {"format": 1, "model": {**held["model"], "mean": None, "std": None}}
    recipe.write_text(json.dumps(held))
    assert torch.equal(load_embedder(tmp_path / "one")[0](IMAGES), model(IMAGES))


def test_the_normalisation_is_that_of_the_network(tmp_path: Path) -> None:
    """Not that of whatever the backbone's name means later."""
    config, model = embedder_of("resnet18")
    model.backbone.mean.fill_(0.3)
    save_embedder(model, config, SIDE, tmp_path / "one")
    assert load_embedder(tmp_path / "one")[0].backbone.normalisation == model.backbone.normalisation


@pytest.mark.parametrize("policy", ["argmax", "majority", "all_frozen", "sample"])
def test_what_decides_at_the_test_survives(policy: str, tmp_path: Path) -> None:
    """The fixed routes, and the seed that the draws of single images come from; the policy's weights are not fetched again."""
    config, model = embedder_of("test_resnet")
    strategy = SpotTune(SpotTune.Options(eval_policy=policy if policy != "sample" else "argmax"))
    strategy.prepare(model, IMAGES)
    strategy.history = {"argmax_rate": [[0.9, 0.1, 0.9, 0.2]]}
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.1 if ".tuned" in name else 0.0)
    model = strategy.finalize(model).eval()
    save_embedder(model, config, SIDE, tmp_path / "one", None, Chain({"spottune": strategy}))
    again, recipe = load_embedder(tmp_path / "one")
    assert recipe["rebuilt"]["options"]["policy_weights"] == "none"
    if policy == "sample":
        for network in (model, again):
            assert isinstance(network.backbone, RoutedBackbone)
            assert isinstance(network.backbone.router, LearnedRouter)
            network.backbone.router.draw = 2
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert isinstance(model.backbone, RoutedBackbone)
    assert isinstance(again.backbone, RoutedBackbone)
    assert model.backbone.decisions is not None
    assert again.backbone.decisions is not None
    assert torch.equal(again.backbone.decisions, model.backbone.decisions)


def test_copies_share_a_digest_and_other_weights_have_another(tmp_path: Path) -> None:
    config, model = embedder_of("test_resnet")
    for name in ("one", "two"):
        save_embedder(model, config, SIDE, tmp_path / name)
    assert embedder_digest(tmp_path / "one") == embedder_digest(tmp_path / "two")
    next(model.parameters()).data.add_(1e-3)
    save_embedder(model, config, SIDE, tmp_path / "two")
    assert embedder_digest(tmp_path / "one") != embedder_digest(tmp_path / "two")
    save_embedder(model, config, SIDE, tmp_path / "one", {"flip_sum": True})
    assert embedder_digest(tmp_path / "one") != embedder_digest(tmp_path / "two")


def damaged(path: Path, ending: str) -> Any:
    return path.with_name(f"{path.name}.{ending}")


@pytest.mark.parametrize(
    "damage", ["no recipe", "no weights", "half a recipe", "half the weights", "another format", "another network"]
)
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


def test_single_runs_and_benchmarks_keep_and_studies_do_not() -> None:
    assert Run().machine.keep_new
    assert BenchRuns().machine.keep_new
    assert not StudyRuns().machine.keep_new
    assert not any(kind().machine.keep for kind in (Run, BenchRuns, StudyRuns))


def test_a_run_keeps_its_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record without its embedder does not stop the run that is to keep one; with both there, nothing is run again."""
    command = [
        "run",
        "--dataset",
        "synthetic",
        "--backbone",
        "resnet18",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--epochs",
        "0",
    ]
    command += ["--strategy", "channel_pruning", "--results", str(tmp_path)]
    assert main([*command, "--no-keep-new"]) == 0
    assert not (tmp_path / "models").exists()
    assert main(command) == 0
    assert "already recorded" in capsys.readouterr().err
    assert main([*command, "--keep"]) == 0
    assert "the embedder is kept in" in capsys.readouterr().err
    (file,) = (tmp_path / "models").glob("*.json")
    embedder, recipe = load_embedder(file.with_suffix(""))
    assert embedder.dim == 512
    assert recipe["views"] == {"preprocessing": "crop", "resize": 0, "stored": 0}
    assert main([*command, "--keep"]) == 0
    assert "already recorded" in capsys.readouterr().err
    assert main([*command, "--seed", "1"]) == 0
    assert len(list((tmp_path / "models").glob("*.safetensors"))) == 2, "a run that is made now keeps its embedder"
    assert main([*command, "--force", "--no-keep-new"]) == 0
    assert not file.exists(), "one of an earlier record is not taken for the new record's"
    assert not file.with_suffix(".safetensors").exists()
