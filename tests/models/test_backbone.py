"""Backbones by name, their blocks, statistics and pooling, what of an embedder trains, and names that are refused."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.build import build_backbone, build_embedder, full_name
from retrieval_bench.models.embedder import freeze_batch_norms, keep_statistics, set_training_mode, trains_batch_norms
from retrieval_bench.models.pruning import find_channels
from retrieval_bench.sections import ModelConfig
from tests.training.helpers import differing, random_images, state_of, tiny_embedder

IMAGES = random_images(1, side=64, seed=1)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def numbered(pattern: str, *depths: int, first: int = 0) -> list[str]:
    return [pattern.format(stage + first, index) for stage, depth in enumerate(depths) for index in range(depth)]


RESNET50 = ["stem", *numbered("layer{}.{}", 3, 4, 6, 3, first=1)]
BLOCKS = {
    "resnet50": RESNET50,
    "resnet50_caffe": RESNET50,
    "resnet10t": ["stem", "layer1.0", "layer2.0", "layer3.0", "layer4.0"],
    "torchvision/resnet18": ["stem", *numbered("layer{}.{}", 2, 2, 2, 2, first=1)],
    "torchvision/vgg11_bn": ["stem", *[f"features.{position}" for position in (4, 8, 11, 15, 18, 22, 25)]],
    "cifar_resnet20": ["stem", *numbered("layer{}.{}", 3, 3, 3, first=1)],
    "efficientnet_lite0": ["stem", *numbered("blocks.{}.{}", 1, 2, 2, 3, 3, 4, 1), "tail"],
    "mobilenetv2_050": ["stem", *numbered("blocks.{}.{}", 1, 2, 3, 4, 3, 3, 1), "tail"],
    "convnext_atto": ["stem", *numbered("stages.{}.blocks.{}", 2, 2, 6, 2), "tail"],
    "vit_tiny_patch16_224": ["stem", *[f"blocks.{index}" for index in range(12)], "tail"],
}


@functools.cache
def build(name: str, side: int = 32, **options: Any) -> Backbone:
    """Random weights; shared by the tests of this file, which do not change it."""
    torch.manual_seed(0)
    return build_backbone(ModelConfig(backbone=name, **{"weights": "none", **options}), side)


@torch.no_grad()
def features(backbone: Backbone, images: Tensor = IMAGES) -> Tensor:
    return backbone(images)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_named_in_order(name: str) -> None:
    """That they share out every parameter is tested with all families."""
    backbone = build(name)
    assert [block.name for block in backbone.blocks] == BLOCKS[name]
    assert features(backbone, torch.zeros(1, 3, 32, 32)).shape == (1, backbone.feature_dim)
    assert not any(module.training for module in backbone.net.modules())


def test_what_follows_the_blocks_is_the_tail_with_any_pooling() -> None:
    """With average pooling timm's vision transformer ends in `fc_norm` in place of `norm`."""
    blocks = build("vit_tiny_patch16_224", pooling="avg").blocks
    assert [block.name for block in blocks] == BLOCKS["vit_tiny_patch16_224"]
    assert blocks[-1].owns == ("fc_norm",)


def test_a_block_owns_what_surgery_leaves_and_what_it_adds() -> None:
    backbone = build_backbone(ModelConfig(backbone="resnet10t", weights="none"), 32)
    last, count = backbone.blocks[-1], len(backbone.block_parameters(backbone.blocks[-1]))
    backbone.net.set_submodule("layer4.0.conv2", nn.Identity())
    assert len(backbone.block_parameters(last)) == count - 1
    pair = nn.ModuleDict({"frozen": backbone.net.get_submodule("layer4.0"), "tuned": nn.Linear(2, 2)})
    backbone.net.set_submodule("layer4.0", pair)
    assert len(backbone.block_parameters(last)) == count + 1


class Opaque(nn.Module):
    """A network whose matcher names no blocks (as hrnet's and poolformer's) or is a function (as inception_v3's)."""

    def __init__(self, matcher: object):
        super().__init__()
        self.first, self.second, self.matcher = nn.Linear(3, 3), nn.Linear(3, 3), matcher

    def group_matcher(self, coarse: bool = False) -> object:
        return self.matcher


def test_network_without_nameable_blocks_is_all_stem_and_a_function_s_groups_are_named_by_their_module() -> None:
    for matcher in ({"stem": "^first"}, {"stem": "^first|second", "blocks": r"^stages\.(\d+)"}):
        (block,) = name_blocks(Opaque(matcher))
        assert (block.is_body, block.owns) == (False, ("first", "second"))
    blocks = name_blocks(Opaque(lambda name: ("first", "second").index(name.split(".")[0])))
    assert [block.name for block in blocks] == ["stem", "second"]


def test_caffe_resnet_strides_in_the_first_convolution() -> None:
    for name, strides in (("resnet50_caffe", ((2, 2), (1, 1))), ("resnet50", ((1, 1), (2, 2)))):
        for block_name in RESNET50[1:]:
            block = build(name).net.get_submodule(block_name)
            downsamples = block_name[-1] == "0" and block_name != "layer1.0"
            assert (block.conv1.stride, block.conv2.stride) == (strides if downsamples else ((1, 1), (1, 1)))


@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        ("resnet10t", IMAGENET),
        ("torchvision/resnet18", IMAGENET),
        ("efficientnet_lite0", ((0.498,) * 3, (0.502,) * 3)),
        ("resnet50_caffe", ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)),
        ("vit_tiny_patch16_224", ((0.5,) * 3, (0.5,) * 3)),
    ],
)
def test_input_statistics_are_those_of_the_weights(name: str, statistics: tuple[tuple[float, ...], ...]) -> None:
    assert build(name).normalisation == tuple(pytest.approx(values) for values in statistics)


def test_images_are_normalised_once_in_either_type() -> None:
    default = build("resnet10t")
    torch.testing.assert_close(features(default), features(default, IMAGES.float() / 255))
    raw = build("resnet10t", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(features(raw, (IMAGES.float() / 255 - default.mean) / default.std), features(default))
    assert not torch.allclose(features(raw), features(default))


@pytest.mark.parametrize("name", ["resnet10t", "torchvision/resnet18"])
def test_pooling(name: str) -> None:
    average, largest, both = (features(build(name, pooling=pooling)) for pooling in ("avg", "max", "avgmax"))
    torch.testing.assert_close(both, (average + largest) / 2)
    assert (largest >= average).all()
    assert (largest > average).any()
    torch.testing.assert_close(features(build(name)), average)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet_50", {}, "did you mean 'resnet50'"),
        ("torchvision/resnet51", {}, "did you mean 'torchvision/resnet5"),
        ("torchvision/vgg16", {}, "unknown backbone 'torchvision/vgg16'"),
        ("eficientnet_lite0", {}, "did you mean 'efficientnet_lite0'"),
        ("resnet51_caffe", {}, "did you mean 'resnet5"),
        ("resnet18_caffe", {}, "bottleneck"),
        ("resnet10t.no_such_tag", {}, "no_such_tag"),
        ("", {}, "unknown backbone"),
        ("resnet50_caffe", {"weights": "imagenet"}, "--weights FILE"),
        ("convnext_atto", {"side": 8}, "--image-size 8"),
        ("torchvision/resnet18", {"drop_path": 0.1}, "--drop-path 0.1: torchvision/resnet18 has none"),
        ("vgg11", {"drop_path": 0.1, "weights": "imagenet"}, "cannot build vgg11: "),
    ],
)
def test_what_cannot_be_built_gives_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build(name, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_stochastic_depth_grows_with_the_block_and_rests_at_test() -> None:
    plain, dropping = (build("test_vit", drop_path=rate) for rate in (0.0, 0.3))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in dropping.net.blocks]  # pyright: ignore[reportGeneralTypeIssues]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    dropping.load_state_dict(plain.state_dict())
    assert torch.equal(features(dropping), features(plain))
    assert not torch.equal(dropping.train()(IMAGES), dropping(IMAGES))


def test_full_name_says_which_weights_timm_takes() -> None:
    with_weights = {"resnet50": "resnet50.a1_in1k"}
    for name in ("resnet50", "resnet50.tv_in1k", "efficientnet_lite0", "torchvision/resnet50"):
        assert full_name(ModelConfig(backbone=name, weights="imagenet")) == with_weights.get(name, name)
        assert full_name(ModelConfig(backbone=name, weights="none")) == name


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


def test_marked_batch_norms_and_their_copies_train_without_moving_statistics() -> None:
    model = tiny_embedder(dim=5)
    keep_statistics(model)
    model.add_module("twin", copy.deepcopy(model.backbone.net))
    model.add_module("policy", nn.BatchNorm1d(5))
    set_training_mode(model)
    norms = nn.modules.batchnorm._BatchNorm
    assert [name for name, norm in model.named_modules() if isinstance(norm, norms) and norm.training] == ["policy"]
    assert trains_batch_norms(model)
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


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (56, 853_018)])
def test_resnets_of_cifar_have_the_layers_and_size_of_the_paper(depth: int, count: int) -> None:
    """The usual count, without its classifier (650) and with the projections that stand in for padded shortcuts."""
    backbone = build(f"cifar_resnet{depth}")
    assert cost.parameters(backbone) == count - 650 + 2752
    convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)]
    assert len(convs) == depth - 1
    assert len(backbone.body) == (depth - 2) // 2
    assert backbone.feature_dim == 64
    widths = find_channels(backbone, 32).widths
    assert [width.name.rpartition(".")[2] for width in widths] == ["conv1"] * len(backbone.body), "inner widths"
    with pytest.raises(UserError, match="no published weights"):
        build(f"cifar_resnet{depth}", weights="imagenet")
