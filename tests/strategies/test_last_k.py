"""Last-k: which blocks train."""

from __future__ import annotations

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.last_k import LastK
from tests.training.helpers import Data, differing, make_training, random_images, run_config, state_of, tiny_embedder


def prepared(name: str, k: int, dim: int = 0) -> tuple[Embedder, LastK]:
    model = build_embedder(ModelConfig(backbone=name, weights="none", embedding_dim=dim), 32)
    strategy = LastK(LastK.Options(k=k))
    return strategy.prepare(model, random_images(2)), strategy


def trainable_blocks(model: Embedder) -> list[str]:
    """Names of the blocks that train; a block of which only a part does is an error."""
    names = []
    for block in model.backbone.blocks:
        states = {parameter.requires_grad for parameter in model.backbone.block_parameters(block)}
        assert len(states) == 1, block.name
        if states == {True}:
            names.append(block.name)
    return names


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("resnet18", 1, ["layer4.1"]),
        ("resnet18", 3, ["layer3.1", "layer4.0", "layer4.1"]),
        ("resnet18", 8, [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]),
        ("efficientnet_lite0", 1, ["blocks.6.0", "tail"]),
        ("efficientnet_lite0", 3, ["blocks.5.2", "blocks.5.3", "blocks.6.0", "tail"]),
    ],
)
def test_exactly_the_last_k_blocks_and_the_tail_train(name: str, k: int, expected: list[str]) -> None:
    model, strategy = prepared(name, k)
    assert trainable_blocks(model) == expected
    assert strategy.info() == {"tuned_blocks": [block for block in expected if block != "tail"]}


def test_embedding_layer_always_trains() -> None:
    model, _ = prepared("resnet10t", 1, dim=4)
    assert all(parameter.requires_grad for parameter in model.embedding.parameters())


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_k_out_of_range_names_the_limit(k: int) -> None:
    with pytest.raises(UserError, match="choose 1 to 4") as caught:
        prepared("resnet10t", k)
    assert f"--last-k.k {k}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [1, 3])
def test_training_moves_the_last_k_blocks_and_their_statistics_only(synthetic: Data, k: int) -> None:
    model = tiny_embedder()
    training = make_training(synthetic, Chain({"last_k": LastK(LastK.Options(k=k))}), run_config(epochs=1), model)
    before = state_of(model.backbone.net)
    training.fit()
    names = [block.name for block in model.backbone.blocks if block.is_body]
    tuned = names[len(names) - k :]
    moved = {name.removeprefix("0.") for name in differing(before, state_of(model.backbone.net))}
    assert moved == {
        name for name in model.backbone.net.state_dict() if any(name.startswith(f"{block}.") for block in tuned)
    }
