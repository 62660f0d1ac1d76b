"""How far weights move: what is counted, and by what it is divided."""

from __future__ import annotations

import pytest
import torch

from retrieval_bench.models.build import build_backbone, build_embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.weight_variation import Normalizer, WeightVariation, sorting_quality, weight_variation
from tests.training.helpers import Data, make_training, run_config, state_of, tiny_embedder

COUNTED = [57_344, *[69_632] * 2, 245_760, *[278_528] * 3, 983_040, *[1_114_112] * 5, 3_932_160, *[4_456_448] * 2]


@pytest.mark.parametrize("name", ["resnet50", "torchvision/resnet50"])
def test_counted_weights_of_resnet50_are_those_of_the_paper_s_code(name: str) -> None:
    """Three kernels a block; no projection, norm or bias."""
    backbone = build_backbone(ModelConfig(backbone=name, weights="none"), 32)
    kernels = [backbone.kernels(block) for block in backbone.body]
    assert [sum(kernel.numel() for kernel in block.values()) for block in kernels] == COUNTED
    assert all(len(block) == 3 for block in kernels)


@pytest.mark.parametrize("normalizer", ["n", "sqrt_n", "relative"])
def test_variation_is_the_distance_over_the_normaliser(normalizer: Normalizer) -> None:
    model = tiny_embedder()
    before = {name[2:]: value for name, value in state_of(model).items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    variation = weight_variation(before, model, normalizer)
    assert list(variation) == [block.name for block in model.backbone.body]
    for block, value in variation.items():
        old = torch.cat([before[f"backbone.net.{block}.conv{index}.weight"].flatten() for index in (1, 2)]).double()
        new = torch.cat(
            [model.get_parameter(f"backbone.net.{block}.conv{index}.weight").detach().flatten() for index in (1, 2)]
        ).double()
        divisor = {"n": len(old), "sqrt_n": len(old) ** 0.5, "relative": float(old.norm())}[normalizer]
        assert value == pytest.approx(float((new - old).norm()) / divisor, rel=1e-6)


def test_the_paper_s_normaliser_makes_equal_moves_look_sorted_the_wrong_way() -> None:
    """If all weights of ResNet-50 move equally, v falls by a factor of 8.28 from block 1 to block 14; under sqrt_n it
    is flat."""
    model = build_embedder(ModelConfig(backbone="resnet50", weights="none"), 32)
    before = {name[2:]: value for name, value in state_of(model).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.125
    variation = list(weight_variation(before, model).values())
    assert variation[0] / variation[13] == pytest.approx(8.28, abs=0.005)
    assert sorting_quality(variation) == 0
    assert list(weight_variation(before, model, "sqrt_n").values()) == pytest.approx([0.125] * 16, rel=1e-4)


def test_a_convnext_s_downsampling_is_on_its_main_path() -> None:
    """It stands before the stage's first block, which owns it; in a ResNet it is a shortcut inside the block."""
    backbone = build_backbone(ModelConfig(backbone="test_convnext", weights="none"), 32)
    names = [name for block in backbone.body for name in backbone.kernels(block)]
    assert any("downsample" in name for name in names)


def test_frozen_blocks_are_left_out() -> None:
    model = tiny_embedder()
    for parameter in model.backbone.block_parameters(model.backbone.body[0]):
        parameter.requires_grad_(False)
    before = {name[2:]: value for name, value in state_of(model).items()}
    assert "layer1.0" not in weight_variation(before, model)


def test_measuring_changes_nothing(synthetic: Data) -> None:
    config = run_config(epochs=2)
    strategy = WeightVariation()
    watched, plain = make_training(synthetic, strategy, config), make_training(synthetic, config=config)
    watched.fit()
    plain.fit()
    assert watched.history == plain.history
    info = strategy.info()
    assert len(info["variation"]) == len(info["quality"]) == 2
    assert info["rates"]["layer1.0"] == [0.001, 0.001]
    assert info["normalizer"] == "n"
    assert all(value > 0 for epoch in info["variation"] for value in epoch)
