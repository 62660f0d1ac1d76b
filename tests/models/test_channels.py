"""Channel pruning: the cost model, the search for a budget, and the removal, beside slow and obvious ways to do the same."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.budget import choose_channels
from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.channels import Channels, Width, find_channels, remove_channels, set_widths
from retrieval_bench.sections import ModelConfig
from tests.training.helpers import random_images, tiny_embedder

NETWORKS = dict.fromkeys(["resnet18", "resnet50", "mobilenetv2_100", "efficientnet_lite0", "efficientnet_b0"], 64)
NETWORKS["torchvision/vgg16_bn"] = 32
Scores = dict[str, list[float]]


def lively(name: str, size: int) -> Backbone:
    """Untrained, with norms as different from each other as trained ones, so that no channel is like another."""
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(backbone=name, weights="none"), size)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.2, 0.2),
            ):
                nn.init.uniform_(value, low, high)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    return backbone.eval()


def random_scores(channels: Channels, seed: int = 1) -> Scores:
    drawn = np.random.default_rng(seed)
    return {width.name: drawn.random(width.channels).tolist() for width in channels.widths}


@pytest.mark.parametrize("name", NETWORKS)
def test_budget_is_met_and_what_is_left_costs_what_was_counted_and_gives_what_a_mask_gives(name: str) -> None:
    size = NETWORKS[name]
    backbone = lively(name, size)
    channels = find_channels(backbone, size)
    assert channels.macs(channels.full) == cost.macs(backbone, size)
    assert channels.parameters(channels.full) == cost.parameters(backbone)
    chosen = choose_channels(channels, random_scores(channels), 0.5)
    assert abs(chosen.error) <= 0.01
    masked = copy.deepcopy(backbone)
    for width in channels.widths:
        gone = sorted(set(range(width.channels)) - set(chosen.keep.get(width.name, range(width.channels))))
        for norm in map(masked.net.get_submodule, width.norms):
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            with torch.no_grad():
                norm.weight[gone] = 0
                norm.bias[gone] = 0
    remove_channels(backbone, chosen.keep, size)
    assert cost.macs(backbone, size) == channels.macs(chosen.widths)
    assert cost.parameters(backbone) == channels.parameters(chosen.widths)
    assert backbone.net(torch.zeros(1, 3, size, size)).shape[1] == backbone.feature_dim, "the feature keeps its size"
    images = random_images(4, side=size)
    with torch.no_grad():
        expected, found = masked.eval()(images), backbone.eval()(images)
    assert ((found - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()


def test_inner_widths_of_bottlenecks_are_free_and_nothing_else() -> None:
    """32 of them in ResNet-50: two per block (Pruning from Scratch gates the same)."""
    channels = find_channels(lively("resnet50", 64), 64)
    assert [width.name for width in channels.widths[:3]] == ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"]
    assert len(channels.widths) == 32
    assert {width.name.rpartition(".")[2] for width in channels.widths} == {"conv1", "conv2"}
    assert channels.widths[0] == Width("layer1.0.conv1", 64, ("layer1.0.bn1",))


def test_depthwise_convolutions_follow_their_expansion() -> None:
    width = next(
        width for width in find_channels(lively("mobilenetv2_100", 64), 64).widths if width.name == "blocks.2.1.conv_pw"
    )
    assert width.norms == ("blocks.2.1.bn1", "blocks.2.1.bn2")


def toy(sizes: tuple[int, ...]) -> Channels:
    """A chain of 1x1 convolutions on one position: each costs its inputs times its outputs; 3 in, 5 out."""
    from retrieval_bench.models.channels import _Layer

    names = [f"c{number}" for number in range(len(sizes))]
    ends = [3, *names, 5]
    layers = tuple(_Layer("", 1, 1, False, before, after, False) for before, after in itertools.pairwise(ends))  # pyright: ignore[reportArgumentType]
    return Channels(
        tuple(Width(*entry, ("n",)) for entry in zip(names, sizes, strict=True)), layers, dict.fromkeys(names, 2), 7
    )


def closest_by_hand(channels: Channels, scores: Scores, share: float) -> float:
    """The oracle: every number of kept channels, one after the other, at least one per layer; the smallest distance to the budget."""
    full = channels.macs(channels.full)
    flat = sorted(
        (-score, layer, index)
        for layer, width in enumerate(channels.widths)
        for index, score in enumerate(scores[width.name])
    )
    errors = []
    for count in range(len(flat) + 1):
        widths = {width.name: 0 for width in channels.widths}
        for _, layer, _ in flat[:count]:
            widths[channels.widths[layer].name] += 1
        errors.append(abs(channels.macs({name: max(1, kept) for name, kept in widths.items()}) / full - share))
    return min(errors)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_search_comes_as_close_as_trying_every_threshold(data: st.DataObject) -> None:
    sizes = tuple(data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=4)))
    channels = toy(sizes)
    value = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)  # saturated gates are many
    scores = {
        width.name: data.draw(st.lists(value, min_size=width.channels, max_size=width.channels))
        for width in channels.widths
    }
    share = data.draw(st.floats(0.6, 1.0))
    chosen = choose_channels(channels, scores, share, minimum=0.0)
    assert abs(chosen.error) == pytest.approx(closest_by_hand(channels, scores, share), abs=1e-12)
    assert chosen == choose_channels(channels, scores, share, minimum=0.0), "the same scores, the same channels"
    for name, kept in chosen.keep.items():
        gone = set(range(len(scores[name]))) - set(kept)
        assert kept == sorted(kept)
        assert all((scores[name][stays], -stays) > (scores[name][index], -index) for stays in kept for index in gone)


def test_ties_go_to_earlier_layers_and_lower_indices() -> None:
    channels = toy((4, 4))
    chosen = choose_channels(channels, {"c0": [1.0] * 4, "c1": [1.0] * 4}, 0.7)
    assert chosen.widths["c0"] >= chosen.widths["c1"]
    assert all(kept == list(range(len(kept))) for kept in chosen.keep.values())


def test_smallest_widths_and_multiples() -> None:
    channels = toy((16, 32))
    scores = {"c0": [0.0] * 16, "c1": [1.0] * 32}
    assert choose_channels(channels, scores, 0.45, minimum=0.25).widths["c0"] >= 4
    widths = choose_channels(channels, random_scores(channels), 0.6, multiple=8).widths
    assert all(width % 8 == 0 for width in widths.values())
    assert choose_channels(channels, scores, 1.0).keep == {}, "nothing goes"


def test_parameters_can_be_what_is_counted() -> None:
    channels = toy((16, 32))
    chosen = choose_channels(channels, random_scores(channels), 0.5, unit="parameters")
    assert abs(channels.parameters(chosen.widths) / channels.parameters(channels.full) - 0.5) < 0.05
    assert channels.parameters({"c0": 2, "c1": 3}) == 3 * 2 + 2 * 3 + 3 * 5 + 2 * 2 + 2 * 3 + 7


@pytest.mark.parametrize("share", [0.01, 1.5])
def test_a_budget_that_cannot_be_met_is_refused_with_the_range(share: float) -> None:
    channels = toy((8, 8))
    with pytest.raises(UserError, match=r"cannot be met: 0\.\d+ to 1 can"):
        choose_channels(channels, random_scores(channels), share)


def test_a_structure_is_its_widths() -> None:
    """A smaller network is rebuilt from the number of channels per layer, and then takes the weights."""
    backbone = lively("resnet18", 64)
    channels = find_channels(backbone, 64)
    chosen = choose_channels(channels, random_scores(channels), 0.6)
    remove_channels(backbone, chosen.keep, 64)
    again = build_backbone(ModelConfig(backbone="resnet18", weights="none"), 64)
    remove_channels(again, {name: list(range(width)) for name, width in chosen.widths.items()}, 64)
    again.load_state_dict(backbone.state_dict())
    images = random_images(2, side=64)
    assert torch.equal(again.eval()(images), backbone.eval()(images))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_b0"])
@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_widths_can_be_set_to_any_size(name: str, factor: float) -> None:
    """What is built costs what the model of costs says, and works; widths set back give the network its first shapes."""
    backbone = lively(name, 64)
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    channels = find_channels(backbone, 64)
    chosen = {name: round(factor * size) for name, size in channels.full.items()}
    set_widths(backbone, channels, chosen)
    assert cost.macs(backbone, 64) == channels.macs(chosen)
    assert cost.parameters(backbone) == channels.parameters(chosen)
    assert backbone(random_images(2, side=64)).isfinite().all()
    again = find_channels(backbone, 64)
    assert again.full == chosen
    set_widths(backbone, again, channels.full)
    assert {key: value.shape for key, value in backbone.state_dict().items()} == shapes


def test_weights_beside_other_widths_stay() -> None:
    backbone, before = lively("resnet18", 64), lively("resnet18", 64).state_dict()
    channels = find_channels(backbone, 64)
    set_widths(backbone, channels, {**channels.full, "layer1.0.conv1": 20})
    after = backbone.state_dict()
    changed = {
        name for name in before if before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
    }
    assert {name.rpartition(".")[0] for name in changed} == {
        "net.layer1.0.conv1",
        "net.layer1.0.bn1",
        "net.layer1.0.conv2",
    }


def test_what_was_frozen_stays_frozen() -> None:
    model = tiny_embedder()
    for name, parameter in model.backbone.net.named_parameters():
        parameter.requires_grad_("bn" not in name)
    channels = find_channels(model.backbone, 32)
    remove_channels(model.backbone, choose_channels(channels, random_scores(channels), 0.9).keep, 32)
    assert all(
        parameter.requires_grad == ("bn" not in name) for name, parameter in model.backbone.net.named_parameters()
    )


def test_what_cannot_be_pruned_is_refused() -> None:
    with pytest.raises(UserError, match="no channels that can be pruned"):
        find_channels(build_backbone(ModelConfig(backbone="vit_tiny_patch16_224", weights="none"), 32), 32)
    with pytest.raises(UserError, match="no such channels"):
        remove_channels(tiny_embedder().backbone, {"layer1.0.conv9": [0]}, 32)
