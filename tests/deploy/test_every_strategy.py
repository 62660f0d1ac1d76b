"""What every registered strategy deploys can be saved, loaded and exported. A new strategy is tested by this once it is
registered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retrieval_bench.deploy.onnx_graph import TOLERANCE, write_graph
from retrieval_bench.deploy.saved import read_embedder, save_embedder
from retrieval_bench.models.build import build_embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import STRATEGIES, StrategyOptions, build_strategy
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from tests.training.helpers import NEEDS_TOKENS, SIDE, Data, make_training, random_images, run_config

OPTIONS = StrategyOptions(
    channel_gates=ChannelGates.Options(budget=0.7),
    channel_pruning=ChannelPruning.Options(budget=0.7),
    network_slimming=NetworkSlimming.Options(budget=0.7),
)
IMAGES = random_images(16, seed=4)
EXPORTED: set[str] = set()
"""Kinds of structures whose graph has been compared, since an export takes seconds."""


@pytest.mark.parametrize("name", STRATEGIES)
def test_saved_and_loaded_and_exported(name: str, synthetic: Data, tmp_path: Path) -> None:
    """The same bits from the recipe; the same values within 1e-4 from ONNX, if a graph can hold the network."""
    torch.manual_seed(0)
    backbone = "test_vit" if name in NEEDS_TOKENS else "test_resnet"
    config = ModelConfig(backbone=backbone, weights="none", embedding_dim=8)
    strategy = build_strategy(name, OPTIONS)
    finished = make_training(synthetic, strategy, run_config(), build_embedder(config, SIDE)).fit().eval()
    save_embedder(finished, config, SIDE, tmp_path / "one", None, strategy)
    torch.manual_seed(123)  # what loading draws is overwritten
    again, recipe = read_embedder(tmp_path / "one")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), finished(IMAGES))
    structure = f"{bool(recipe['dropped_blocks'])} {bool(recipe['widths'])} {(recipe['rebuilt'] or {}).get('strategy')}"
    if structure in EXPORTED:
        return
    EXPORTED.add(structure)
    graph = write_graph(again, SIDE, False, tmp_path / "one.onnx")
    assert (graph.difference is None) == ("checksums of the pixels" in graph.missing) == (name == "random_policy")
    assert (graph.difference or 0) <= TOLERANCE
    assert (tmp_path / "one.onnx").exists() == (graph.difference is not None)
