"""The embedder's head and its train and eval modes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import freeze_batch_norms, set_training_mode
from retrieval_bench.sections import ModelConfig
from tests.training.helpers import random_images, tiny_embedder


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.mark.parametrize("dim", [0, 1, 24])
def test_embedding_dim(dim: int) -> None:
    model = build_embedder(ModelConfig(backbone="resnet10t", weights="none", embedding_dim=dim), 32)
    assert model.dim == (dim or model.backbone.feature_dim)
    with torch.no_grad():
        assert model(random_images(3)).shape == (3, model.dim)
    assert len(list(model.embedding.parameters())) == (2 if dim else 0)


def test_embeddings_are_not_normalised() -> None:
    with torch.no_grad():
        lengths = tiny_embedder()(random_images(4)).norm(dim=1)
    assert (lengths - 1).abs().min() > 1e-3


def test_trainable() -> None:
    model = tiny_embedder(dim=5)
    assert model.trainable()
    model.backbone.requires_grad_(False)
    assert model.trainable()
    model.embedding.requires_grad_(False)
    assert not model.trainable()


def test_statistics_of_frozen_blocks_do_not_move_in_training() -> None:
    model = tiny_embedder()
    names = [block.name for block in model.backbone.blocks]
    for block in model.backbone.blocks[:4]:
        for parameter in model.backbone.block_parameters(block):
            parameter.requires_grad_(False)
    set_training_mode(model)
    before = {
        name: norm.running_mean.clone() for name, norm in batch_norms(model).items() if norm.running_mean is not None
    }
    model(random_images(8, seed=5))
    moved = {
        name
        for name, norm in batch_norms(model).items()
        if norm.running_mean is not None and not torch.equal(norm.running_mean, before[name])
    }
    assert moved == {name for name in before if any(f".{block}." in name for block in names[4:])}
    assert not model.backbone.net.get_submodule(names[1]).training
    assert model.backbone.net.get_submodule(names[-1]).training


def test_dropout_of_a_frozen_block_is_off() -> None:
    model = tiny_embedder()
    block = model.backbone.net.get_submodule("layer1.0")
    block.add_module("drop", nn.Dropout(0.5))
    block.requires_grad_(False)
    set_training_mode(model)
    assert not block.get_submodule("drop").training


def test_frozen_batch_norms_keep_their_statistics_and_added_ones_do_not() -> None:
    model = tiny_embedder(dim=5)
    set_training_mode(model)
    assert all(norm.training for norm in batch_norms(model).values())
    freeze_batch_norms(model)
    model.add_module("policy", nn.BatchNorm1d(5))
    set_training_mode(model)
    assert [
        name
        for name, norm in model.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training
    ] == ["policy"]
    assert model.embedding.training


def test_freeze_bn_also_holds_for_batch_norms_with_an_activation_inside() -> None:
    """EfficientNet's and MobileNet's batch norms in timm are subclasses of torch's."""
    model = build_embedder(ModelConfig(backbone="mobilenetv2_050", weights="none"), 32)
    freeze_batch_norms(model)
    set_training_mode(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(random_images(4))
    assert len(before) > 100
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_freeze_batch_norms_takes_scale_and_shift_and_nothing_else_out_of_training() -> None:
    model = tiny_embedder(dim=5)
    freeze_batch_norms(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"{name}.{kind}" for name in batch_norms(model) for kind in ("weight", "bias")}
