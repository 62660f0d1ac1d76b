"""Backbones by name: normalisation, pooling, and what the user is told about names that cannot be built."""

from __future__ import annotations

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.build import build_backbone
from retrieval_bench.sections import ModelConfig


def build(name: str = "resnet10t", side: int = 32, **options: object) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(ModelConfig(backbone=name, **{"weights": "none", **options}), side)  # pyright: ignore[reportArgumentType]


def images(side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    return backbone(pixels)


def test_backbone_is_in_eval_mode() -> None:
    assert not any(module.training for module in build().net.modules())


def test_uint8_and_unit_floats_give_the_same_features() -> None:
    backbone = build()
    torch.testing.assert_close(features(backbone, images()), features(backbone, images().float() / 255))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("resnet10t", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("torchvision/resnet18", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("efficientnet_lite0", (0.498,) * 3, (0.502,) * 3),
        ("resnet26_caffe", (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
    ],
)
def test_input_statistics_are_those_of_the_weights(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    backbone = build(name)
    assert backbone.mean.flatten().tolist() == pytest.approx(mean)
    assert backbone.std.flatten().tolist() == pytest.approx(std)


def test_mean_and_std_override() -> None:
    raw = build(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    usual = build()
    normalised = (images().float() / 255 - usual.mean) / usual.std
    torch.testing.assert_close(features(raw, normalised), features(usual, images()))
    assert not torch.allclose(features(raw, images()), features(usual, images()))


@pytest.mark.parametrize("name", ["resnet10t", "torchvision/resnet18"])
def test_pooling(name: str) -> None:
    maps: dict[str, torch.Tensor] = {
        pooling: features(build(name, pooling=pooling), images(64)) for pooling in ("avg", "max", "avgmax")
    }
    torch.testing.assert_close(maps["avgmax"], (maps["avg"] + maps["max"]) / 2)
    assert (maps["max"] >= maps["avg"]).all()
    assert (maps["max"] > maps["avg"]).any()
    torch.testing.assert_close(features(build(name), images(64)), maps["avg"])


def test_same_torch_seed_gives_the_same_random_weights() -> None:
    first, second = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet51", "did you mean 'resnet5"),
        ("torchvision/resnet51", "did you mean 'torchvision/resnet5"),
        ("torchvision/vgg16", "unknown backbone 'torchvision/vgg16'"),
        ("eficientnet_lite0", "did you mean 'efficientnet_lite0'"),
        ("resnet51_caffe", "did you mean 'resnet5"),
        ("resnet18_caffe", "bottleneck"),
        ("resnet10t.no_such_tag", "no_such_tag"),
        ("", "unknown backbone"),
    ],
)
def test_name_that_cannot_be_built_gives_one_line(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_nearest_name_to_a_misspelt_resnet50() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet50'"):
        build("resnet_50")


def test_caffe_weights_cannot_be_downloaded() -> None:
    with pytest.raises(UserError, match="--weights FILE") as caught:
        build("resnet50_caffe", weights="imagenet")
    assert "\n" not in str(caught.value)


def test_image_too_small_for_the_backbone_gives_one_line() -> None:
    with pytest.raises(UserError, match="--image-size 8") as caught:
        build("convnext_atto", 8)
    assert "\n" not in str(caught.value)
