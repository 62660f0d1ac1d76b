"""Batch norms inside convolutions: the same embeddings and gradients, the same parameters, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn

from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import BatchNorm, Embedder, freeze_batch_norms, set_training_mode
from retrieval_bench.models.folding import Pairs, foldable, folded
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import STRATEGIES, build_strategy
from tests.training.helpers import NEEDS_TOKENS, OPTIONS, Data, make_training, random_images, run_config, tiny_embedder

NETWORKS = {
    **dict.fromkeys(("resnet18", "resnet50", "efficientnet_lite0", "mobilenetv2_100", "torchvision/vgg11_bn"), 1.0),
    **{"densenet121": 59 / 121, "convnext_atto": 0.0, "vit_tiny_patch16_224": 0.0},
}
"""The share of the batch norms that follow a convolution alone."""


def lively(name: str) -> Embedder:
    """Untrained float64 network whose frozen norms are as different from each other as trained ones."""
    torch.manual_seed(0)
    model = build_embedder(ModelConfig(backbone=name, weights="none"), 32)
    for norm in [module for module in model.modules() if isinstance(module, BatchNorm)]:
        bounds: dict[Any, tuple[float, float]] = {norm.weight: (0.5, 1.5), norm.bias: (-0.3, 0.3)}
        bounds |= {norm.running_mean: (-0.2, 0.2), norm.running_var: (0.5, 1.5)}
        for value, (low, high) in bounds.items():
            nn.init.uniform_(value, low, high)
    freeze_batch_norms(model)
    return model.double()


def passes(model: Embedder, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
    """Embeddings and gradients of a training pass."""
    set_training_mode(model)
    model.zero_grad()
    torch.manual_seed(1)
    with folded(pairs):
        embeddings = model(random_images(3).double() / 255)
    embeddings.square().sum().backward()
    return embeddings.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_embeddings_and_gradients_are_the_same_and_nothing_else_changes(name: str) -> None:
    model = lively(name)
    before = dict(model.named_parameters())
    expected, gradients = passes(model, [])
    pairs = foldable(model.backbone, 32)
    actual, others = passes(model, pairs)
    assert len(pairs) == NETWORKS[name] * sum(isinstance(module, BatchNorm) for module in model.modules())
    assert others.keys() == gradients.keys()
    for one, two in ((actual, expected), *((others[key], gradients[key]) for key in gradients)):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9 * two.abs().max().item())
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
    assert torch.equal(passes(model, [])[0], expected)


TRAINS_NORMS = ("bitfit", "network_slimming", "norm_tuning")


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in NEEDS_TOKENS])
def test_every_strategy_has_the_same_gradients(name: str, synthetic: Data) -> None:
    def result(fused: bool) -> tuple[int, float, dict[str, Tensor]]:
        config = run_config(freeze_bn=name not in TRAINS_NORMS, fused=fused)
        training = make_training(synthetic, build_strategy(name, OPTIONS), config, tiny_embedder(dim=8))
        training.batches.reseed(0, "step")
        set_training_mode(training.model)
        torch.manual_seed(1)
        loss = training.step(*next(iter(training.batches))).item()
        named = training.model.named_parameters()
        return len(training.step.folds), loss, {key: value.grad for key, value in named if value.grad is not None}

    (none, loss, expected), (folds, other, actual) = result(False), result(True)
    assert none == 0 < folds
    assert other == pytest.approx(loss, rel=1e-5)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-8)


class Odd(nn.Module):
    """A convolution and a norm of which one or both do something more."""

    def __init__(self, kind: str):
        super().__init__()
        self.conv1 = (StdConv2d if kind == "computed weights" else nn.Conv2d)(3, 3, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(3, affine=kind != "no scale", track_running_stats=kind != "no statistics")
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.kind == "called twice":
            x = self.conv1(x)
        y = self.bn1(x.relu() if self.kind == "activation between" else x)
        buffer = torch.zeros_like(y)
        if self.kind == "stored too":
            buffer[:] = x
        return ((y + x if self.kind == "residual" else y) + buffer).mean((2, 3))


ODD = ["computed weights", "no scale", "no statistics", "called twice", "activation between", "residual", "stored too"]


@pytest.mark.parametrize("kind", [*ODD, "plain"])
def test_what_is_more_than_a_convolution_and_its_norm_is_left_alone(kind: str) -> None:
    net = Odd(kind)
    backbone = Backbone(net, name_blocks(net), (0.5,) * 3, (0.5,) * 3, 3)
    assert len(foldable(backbone, 16)) == (kind == "plain")


def test_norms_in_training_mode_are_not_folded_and_a_failure_leaves_no_trace() -> None:
    model = tiny_embedder()
    pairs = foldable(model.backbone, 32)
    conv, norm = pairs[0]
    weight, images = conv.weight, random_images(4)
    expected = model.eval()(images)
    norm.train()
    with folded(pairs):
        assert conv.weight is weight
    norm.eval()
    with folded(pairs):
        assert conv.weight is not weight
    with pytest.raises(ZeroDivisionError), folded(pairs):
        raise ZeroDivisionError
    assert conv.weight is weight
    assert torch.equal(model(images), expected)
