"""An embedder comes back from its recipe and weights as it was, whatever was removed from it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import retrieval_bench
from retrieval_bench.config import RuntimeConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.deploy import search
from retrieval_bench.deploy.embedding import embed_images
from retrieval_bench.deploy.saved import (
    data_config,
    embedder_digest,
    files_of,
    find_embedder,
    load_embedder,
    read_embedder,
    save_embedder,
)
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import LearnedRouter, RoutedBackbone
from retrieval_bench.run import run
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.layer_pruning import LayerPruning
from retrieval_bench.strategies.spottune import SpotTune
from tests.deploy.conftest import CONFIG
from tests.training.helpers import random_images

SIDE = 64
IMAGES = random_images(3, side=SIDE)


def embedder_of(backbone: str, dim: int = 0) -> tuple[ModelConfig, Embedder]:
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, weights="none", embedding_dim=dim, pooling="default")
    return config, build_embedder(config, SIDE).eval()


def deployed(model: Embedder, strategy: str) -> tuple[Embedder, Chain]:
    """As a strategy deploys it, in the layout that training gives it."""
    options = StrategyOptions(
        layer_pruning=LayerPruning.Options("last:1"),
        channel_pruning=ChannelPruning.Options(budget=0.6, scores="uniform"),
    )
    built = build_strategy(strategy, options)
    state: Any = SimpleNamespace(model=built.prepare(model, IMAGES), rebuild=lambda: None, images_seen=0)
    built.before_training(lambda attempt=0, epochs=0: 0.0, state)
    finished = built.finalize(state.model).eval()
    return finished.to(memory_format=torch.channels_last), built  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("strategy", "rebuilt"),
    [
        ("standard", None),
        ("layer_pruning+channel_pruning", None),
        ("layer_pruning+spottune", "spottune"),
        ("channel_pruning+random_policy", "random_policy"),
        ("layer_pruning+channel_pruning+progressive", "progressive"),
    ],
)
@pytest.mark.parametrize(("backbone", "dim"), [("resnet18", 16), ("test_efficientnet", 0)])
def test_the_same_embeddings(strategy: str, rebuilt: str | None, backbone: str, dim: int, tmp_path: Path) -> None:
    config, model = embedder_of(backbone, dim)
    model, built = deployed(model, strategy)
    save_embedder(model, config, SIDE, tmp_path / "kept" / "one", {"flip_sum": True}, built)
    again, recipe = read_embedder(tmp_path / "kept" / "one")
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert recipe["flip_sum"] is True
    assert bool(recipe["dropped_blocks"]) == ("layer_pruning" in strategy)
    assert bool(recipe["widths"]) == ("channel_pruning" in strategy)
    assert (recipe["rebuilt"] or {}).get("strategy") == rebuilt
    assert not again.training


def test_a_network_that_nothing_describes_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config, model = embedder_of("resnet18")
    with pytest.raises(UserError, match="cannot be saved as a recipe"):
        save_embedder(deployed(model, "spottune")[0], config, SIDE, tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_the_first_format_loads_and_the_normalisation_is_that_of_the_network(tmp_path: Path) -> None:
    """The first format had no strategy, and left the normalisation to the backbone's name."""
    config, model = embedder_of("resnet18")
    model, _ = deployed(model, "layer_pruning")
    save_embedder(model, config, SIDE, tmp_path / "one")
    recipe = json.loads((tmp_path / "one.json").read_text())
    del recipe["rebuilt"]
    recipe |= {"format": 1, "model": {**recipe["model"], "mean": None, "std": None}}
    (tmp_path / "one.json").write_text(json.dumps(recipe))
    assert torch.equal(load_embedder(tmp_path / "one").embedder(IMAGES), model(IMAGES))
    model.backbone.mean.fill_(0.3)
    save_embedder(model, config, SIDE, tmp_path / "one")
    assert load_embedder(tmp_path / "one").embedder.backbone.normalisation == model.backbone.normalisation


@pytest.mark.parametrize("policy", ["argmax", "majority", "all_frozen", "sample"])
def test_what_decides_at_the_test_survives(policy: str, tmp_path: Path) -> None:
    """The fixed routes, and the seed of the draws of single images; the policy's weights are not fetched again."""
    config, model = embedder_of("test_resnet")
    strategy = SpotTune(SpotTune.Options(eval_policy=policy if policy != "sample" else "argmax"))
    strategy.prepare(model, IMAGES)
    strategy.history = {"argmax_rate": [[0.9, 0.1, 0.9, 0.2]]}
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.1 if ".tuned" in name else 0.0)
    model = strategy.finalize(model).eval()
    save_embedder(model, config, SIDE, tmp_path / "one", None, Chain({"spottune": strategy}))
    again, recipe = read_embedder(tmp_path / "one")
    assert recipe["rebuilt"]["options"]["policy_weights"] == "none"
    decisions = []
    for network in (model.to(memory_format=torch.channels_last), again):  # pyright: ignore[reportCallIssue]
        assert isinstance(network.backbone, RoutedBackbone)
        assert isinstance(network.backbone.router, LearnedRouter)
        if policy == "sample":
            network.backbone.router.draw = 2
        decisions += [network(IMAGES), network.backbone.decisions]
    assert torch.equal(decisions[0], decisions[2])
    assert torch.equal(decisions[1], decisions[3])


def test_copies_share_a_digest_and_other_weights_or_recipes_have_another(tmp_path: Path) -> None:
    config, model = embedder_of("test_resnet")
    digests = []
    for about in ({}, {}, {"flip_sum": True}):
        save_embedder(model, config, SIDE, tmp_path / "one", about)
        digests.append(embedder_digest(tmp_path / "one"))
    next(model.parameters()).data.add_(1e-3)
    save_embedder(model, config, SIDE, tmp_path / "one")
    digests.append(embedder_digest(tmp_path / "one"))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("damage", ["missing", "half", "format", "backbone"])
@pytest.mark.parametrize("file", [0, 1])
def test_what_cannot_be_loaded_is_refused_in_one_line(file: int, damage: str, tmp_path: Path) -> None:
    config, model = embedder_of("resnet18")
    save_embedder(model, config, SIDE, tmp_path / "one")
    path = files_of(tmp_path / "one")[file]
    if damage == "missing":
        path.unlink()
    elif damage == "half" or file:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        recipe = json.loads(path.read_text())
        recipe |= {"format": 7} if damage == "format" else {"model": {**recipe["model"], "backbone": "resnet34"}}
        path.write_text(json.dumps(recipe))
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        read_embedder(tmp_path / "one")


def test_a_run_keeps_its_embedder_and_the_api_gives_the_unit_vectors_that_embed_gives(
    results: Path, pictures: Path
) -> None:
    (file,) = (results / "models").glob("*.safetensors")
    path = file.with_suffix("")
    table = search.images_below(pictures)
    embedded = torch.from_numpy(embed_images(path, table, "cpu"))
    _, recipe = read_embedder(path)
    assert recipe["flip_sum"]
    images = next(iter(Batches(table, np.arange(len(table)), table.labels, data_config(recipe), 0)))[0]
    assert recipe["views"] == {"preprocessing": "crop", "resize": 0, "stored": 0}
    for named in (path, str(path), path.name, "synthetic-standard"):
        vectors = retrieval_bench.load_embedder(named, results)(images)
        torch.testing.assert_close(vectors, embedded[: len(vectors)])
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


@pytest.mark.parametrize(
    ("run_id", "message"),
    [
        ("synthetic-standart", "did you mean 'synthetic-standard-"),
        ("synthetic-", "fits 2 runs"),
        ("synthetic-frozen", "again: python -m retrieval_bench run --strategy frozen --dataset synthetic"),
        ("synthetic-frozen", " --keep --results "),
        ("{results}", "not an exported folder, which holds embedder.json and embedder.safetensors"),
    ],
)
def test_runs_without_an_embedder(run_id: str, message: str, results: Path) -> None:
    with pytest.raises(UserError) as raised:
        find_embedder(run_id.format(results=results), results)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_several_seeds_are_not_one_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        run(CONFIG.changed(strategy="frozen", seed=seed), RuntimeConfig(results=tmp_path))
    with pytest.raises(UserError, match=r"'synthetic-frozen' begins 2 runs; give one: synthetic-frozen-.*-s0-cpu, "):
        load_embedder("synthetic-frozen", tmp_path)
