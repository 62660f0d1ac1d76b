"""The embedder's linear layer, and what trains and evaluates in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import freeze_batch_norms, set_training_mode, trains_batch_norms
from retrieval_bench.sections import ModelConfig
from tests.training.helpers import differing, random_images, state_of, tiny_embedder


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize("dim", [0, 1, 24])
def test_embedding_dim(dim: int) -> None:
    model = build_embedder(ModelConfig(backbone="resnet10t", weights="none", embedding_dim=dim), 32)
    assert model.dim == (dim or model.backbone.feature_dim)
    with torch.no_grad():
        vectors = model(random_images(3))
    assert vectors.shape == (3, model.dim)
    assert (vectors.norm(dim=1) - 1).abs().min() > 1e-3, "not normalised"
    assert len(list(model.embedding.parameters())) == (2 if dim else 0)


def test_a_linear_layer_follows_the_size_of_the_feature() -> None:
    model = tiny_embedder(dim=5)
    layer = model.embedding
    model.resize_feature(64)
    assert model.embedding is layer
    model.resize_feature(48)
    assert (model.embedding.in_features, model.dim) == (48, 5)
    plain = tiny_embedder()
    plain.resize_feature(48)
    assert plain.dim == 48


def test_trainable() -> None:
    model = tiny_embedder(dim=5)
    model.backbone.requires_grad_(False)
    assert model.trainable()
    model.embedding.requires_grad_(False)
    assert not model.trainable()


def test_frozen_blocks_stay_in_eval_mode() -> None:
    model = tiny_embedder()
    names = [block.name for block in model.backbone.blocks]
    for block in model.backbone.blocks[:4]:
        for parameter in model.backbone.block_parameters(block):
            parameter.requires_grad_(False)
    model.backbone.net.get_submodule(names[1]).add_module("drop", nn.Dropout(0.5))
    set_training_mode(model)
    before = state_of(model)
    model(random_images(8, seed=5))
    moved = {name for name in differing(before, state_of(model)) if name.endswith("running_mean")}
    assert moved == {
        f"0.{name}.running_mean" for name in batch_norms(model) if any(f".{block}." in name for block in names[4:])
    }
    assert not model.backbone.net.get_submodule(f"{names[1]}.drop").training
    assert model.backbone.net.get_submodule(names[-1]).training


def test_frozen_batch_norms_stay_and_added_ones_train() -> None:
    model = tiny_embedder(dim=5)
    assert trains_batch_norms(model)
    freeze_batch_norms(model)
    assert not trains_batch_norms(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"{name}.{kind}" for name in batch_norms(model) for kind in ("weight", "bias")}
    model.add_module("policy", nn.BatchNorm1d(5))
    set_training_mode(model)
    norms = nn.modules.batchnorm._BatchNorm
    assert [name for name, norm in model.named_modules() if isinstance(norm, norms) and norm.training] == ["policy"]
    assert model.embedding.training


def test_batch_norms_with_an_activation_inside_can_be_frozen() -> None:
    """EfficientNet's and MobileNet's batch norms in timm are subclasses of torch's."""
    model = build_embedder(ModelConfig(backbone="mobilenetv2_050", weights="none"), 32)
    freeze_batch_norms(model)
    set_training_mode(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(random_images(4))
    assert len(before) > 100
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
