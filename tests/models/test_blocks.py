"""Which block each parameter of a backbone belongs to."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.build import build_backbone
from retrieval_bench.sections import ModelConfig

RESNET18 = ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1"]
RESNET50 = [f"layer{stage + 1}.{index}" for stage, depth in enumerate((3, 4, 6, 3)) for index in range(depth)]
LITE0 = [f"blocks.{stage}.{index}" for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for index in range(depth)]
MOBILENET = [f"blocks.{stage}.{index}" for stage, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for index in range(depth)]
CONVNEXT = [f"stages.{stage}.blocks.{index}" for stage, depth in enumerate((2, 2, 6, 2)) for index in range(depth)]

EXPECTED = {
    "resnet50": ["stem", *RESNET50],
    "resnet50_caffe": ["stem", *RESNET50],
    "resnet10t": ["stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0"],
    "torchvision/resnet18": ["stem", *RESNET18],
    "torchvision/vgg11_bn": ["stem", *[f"features.{place}" for place in (4, 8, 11, 15, 18, 22, 25)]],
    "efficientnet_lite0": ["stem", *LITE0, "tail"],
    "mobilenetv2_050": ["stem", *MOBILENET, "tail"],
    "convnext_atto": ["stem", *CONVNEXT, "tail"],
    "vit_tiny_patch16_224": ["stem", *[f"blocks.{index}" for index in range(12)], "tail"],
}


@functools.cache
def backbone(name: str) -> Backbone:
    """Random weights; shared by the tests of this file, which do not change it."""
    return build_backbone(ModelConfig(backbone=name, weights="none"), 32)


@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_are_named_in_order(name: str) -> None:
    assert [block.name for block in backbone(name).blocks] == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_parameter_is_in_exactly_one_block(name: str) -> None:
    model = backbone(name)
    owned = [id(parameter) for block in model.blocks for parameter in model.block_parameters(block)]
    assert sorted(owned) == sorted(id(parameter) for parameter in model.net.parameters())


@pytest.mark.parametrize("name", EXPECTED)
def test_body_block_is_a_module_and_owns_all_its_parameters(name: str) -> None:
    model = backbone(name)
    for block in model.blocks:
        if block.is_body:
            inside = {id(parameter) for parameter in model.net.get_submodule(block.name).parameters()}
            assert inside
            assert inside <= {id(parameter) for parameter in model.block_parameters(block)}


@pytest.mark.parametrize("name", EXPECTED)
def test_feature_dim_is_the_width_of_the_features(name: str) -> None:
    model = backbone(name)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, model.feature_dim)


def test_statistics_of_the_weights_tag_are_used() -> None:
    assert backbone("vit_tiny_patch16_224").mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_what_follows_the_blocks_is_the_tail_with_any_pooling() -> None:
    """With average pooling timm's vision transformer ends in `fc_norm` in place of `norm`."""
    blocks = build_backbone(ModelConfig(backbone="vit_tiny_patch16_224", weights="none", pooling="avg"), 32).blocks
    assert [block.name for block in blocks] == EXPECTED["vit_tiny_patch16_224"]
    assert blocks[-1].owns == ("fc_norm",)


def test_a_block_owns_what_surgery_leaves_and_what_it_adds() -> None:
    model = build_backbone(ModelConfig(backbone="resnet10t", weights="none"), 32)
    last, count = model.blocks[-1], len(model.block_parameters(model.blocks[-1]))
    model.net.set_submodule("layer4.0.conv2", nn.Identity())
    assert len(model.block_parameters(last)) == count - 1
    model.net.set_submodule(
        "layer4.0", nn.ModuleDict({"frozen": model.net.get_submodule("layer4.0"), "tuned": nn.Linear(2, 2)})
    )
    assert len(model.block_parameters(last)) == count + 1


def test_caffe_resnet_strides_in_the_first_convolution() -> None:
    caffe, usual = backbone("resnet50_caffe").net, backbone("resnet50").net
    for stage in (2, 3, 4):
        for net, strides in ((caffe, ((2, 2), (1, 1))), (usual, ((1, 1), (2, 2)))):
            block = net.get_submodule(f"layer{stage}.0")
            assert (block.conv1.stride, block.conv2.stride) == strides
            for index in (1, 2):
                later = net.get_submodule(f"layer{stage}.{index}")
                assert (later.conv1.stride, later.conv2.stride) == ((1, 1), (1, 1))


class Opaque(nn.Module):
    """A network whose matcher names no blocks (as hrnet's and poolformer's) or is a function (as inception_v3's)."""

    def __init__(self, matcher: object):
        super().__init__()
        self.first, self.second, self.matcher = nn.Linear(3, 3), nn.Linear(3, 3), matcher

    def group_matcher(self, coarse: bool = False) -> object:
        return self.matcher

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images.mean((2, 3))))


@pytest.mark.parametrize(
    "matcher",
    [
        pytest.param({"stem": "^first"}, id="no-blocks"),
        pytest.param({"stem": "^first|second", "blocks": r"^stages\.(\d+)"}, id="no-match"),
    ],
)
def test_network_without_nameable_blocks_is_all_stem(matcher: dict[str, object]) -> None:
    (block,) = name_blocks(Opaque(matcher))
    assert not block.is_body
    assert block.owns == ("first", "second")


def test_groups_given_by_a_function_are_named_by_their_module() -> None:
    blocks = name_blocks(Opaque(lambda name: ("first", "second").index(name.split(".")[0])))
    assert [block.name for block in blocks] == ["stem", "second"]
