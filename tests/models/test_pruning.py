"""Pruning: the cost model, the search for a budget, the removal and the folding, beside slow and obvious ways."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.budget import Budget, choose_channels
from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.embedder import BatchNorm
from retrieval_bench.models.gates import Gates
from retrieval_bench.models.pruning import (
    Channels,
    Layer,
    Width,
    find_channels,
    remove_channels,
    set_widths,
)
from retrieval_bench.sections import ModelConfig
from tests.training.helpers import assert_near, random_images, tiny_embedder

NETWORKS = dict.fromkeys(["resnet18", "resnet50", "mobilenetv2_100", "efficientnet_lite0", "efficientnet_b0"], 64)
NETWORKS["torchvision/vgg16_bn"] = 32
Scores = dict[str, list[float]]


def lively(name: str, size: int = 64) -> Backbone:
    """Untrained, with norms as different from each other as trained ones, so that no channel is like another."""
    torch.manual_seed(0)
    backbone = build_backbone(ModelConfig(backbone=name, weights="none"), size)
    for norm in [module for module in backbone.modules() if isinstance(module, BatchNorm)]:
        bounds: dict[Any, tuple[float, float]] = {norm.weight: (0.5, 1.5), norm.bias: (-0.3, 0.3)}
        bounds |= {norm.running_mean: (-0.2, 0.2), norm.running_var: (0.5, 1.5)}
        for value, (low, high) in bounds.items():
            nn.init.uniform_(value, low, high)
    return backbone.eval()


def random_scores(channels: Channels) -> Scores:
    drawn = np.random.default_rng(1)
    return {width.name: drawn.random(width.channels).tolist() for width in channels.widths}


@pytest.mark.parametrize(
    ("name", "ends"),
    [*((name, False) for name in NETWORKS), ("torchvision/vgg16_bn", True), ("efficientnet_lite0", True)],
)
def test_what_is_left_meets_the_budget_costs_what_was_counted_and_gives_what_a_mask_gives(
    name: str, ends: bool
) -> None:
    size = NETWORKS[name]
    backbone = lively(name, size)
    channels = find_channels(backbone, size, ends)
    assert bool(channels.feature) == ends
    assert not (ends and "vgg16" in name) or len(channels.widths) == 13
    assert channels.macs(channels.full) == cost.macs(backbone, size)
    assert channels.parameters(channels.full) == cost.parameters(backbone)
    chosen = choose_channels(channels, random_scores(channels), 0.5)
    assert abs(chosen.error) <= 0.01
    masked = copy.deepcopy(backbone)
    for width in channels.widths:
        gone = sorted(set(range(width.channels)) - set(chosen.keep.get(width.name, range(width.channels))))
        norms: list[Any] = [masked.net.get_submodule(norm) for norm in width.norms]
        for value in (value for norm in norms for value in (norm.weight, norm.bias)):
            value.data[gone] = 0
    remove_channels(backbone, chosen.keep, size, ends)
    assert cost.macs(backbone, size) == channels.macs(chosen.widths)
    assert cost.parameters(backbone) == channels.parameters(chosen.widths)
    images = random_images(4, side=size)
    with torch.no_grad():
        expected, actual = masked.eval()(images), backbone.eval()(images)
    if ends:
        expected = expected[:, chosen.keep[channels.feature]]
    else:
        assert actual.shape[1] == backbone.feature_dim, "the feature keeps its size"
    assert_near(actual, expected, 1e-5)


def test_widths_in_groups_splits_and_concatenations_stay() -> None:
    """Of a DenseNet, whose second convolutions are concatenated, the first ones are free."""
    for name in ("regnetx_002", "regnety_002", "resnext50_32x4d", "res2net50_26w_4s"):
        with pytest.raises(UserError, match="no channels that can be pruned"):
            find_channels(lively(name), 64)
    backbone = lively("densenet121")
    channels = find_channels(backbone, 64)
    assert {width.name.rpartition(".")[2] for width in channels.widths} == {"conv1"}
    remove_channels(backbone, choose_channels(channels, random_scores(channels), 0.95).keep, 64)


DEPTHWISE = ["mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_lite0", "efficientnet_b0"]


@pytest.mark.parametrize("name", [*DEPTHWISE, "resnet50", "torchvision/vgg16_bn"])
def test_gates_that_close_channels_at_the_last_norm_give_what_their_removal_gives(name: str) -> None:
    """At the first norm they do not, in depthwise networks."""
    backbone, images = lively(name), random_images(4, side=64)
    channels = find_channels(backbone, 64)
    keep = choose_channels(channels, random_scores(channels), 0.5).keep
    masked = {}
    for norm in ("first", "last"):
        gated = copy.deepcopy(backbone)
        with torch.no_grad(), Gates(gated.net, channels.widths, norm).only(keep):
            masked[norm] = gated(images)
    remove_channels(backbone, keep, 64)
    with torch.no_grad():
        pruned = backbone.eval()(images)
    assert_near(masked["last"], pruned)
    distance = ((masked["first"] - pruned).norm(dim=1) / pruned.norm(dim=1)).mean()
    assert (distance > 0.02) == (name in DEPTHWISE)


def test_inner_widths_of_bottlenecks_are_free_and_nothing_else() -> None:
    """32 of them in ResNet-50: two per block (Pruning from Scratch gates the same)."""
    widths = find_channels(lively("resnet50"), 64).widths
    assert [width.name for width in widths[:3]] == ["layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1"]
    assert len(widths) == 32
    assert {width.name.rpartition(".")[2] for width in widths} == {"conv1", "conv2"}
    assert widths[0] == Width("layer1.0.conv1", 64, ("layer1.0.bn1",))
    depthwise = {width.name: width.norms for width in find_channels(lively("mobilenetv2_100"), 64).widths}
    assert depthwise["blocks.2.1.conv_pw"] == ("blocks.2.1.bn1", "blocks.2.1.bn2"), "follow their expansion"


def toy(*sizes: int) -> Channels:
    """A chain of 1x1 convolutions on one position, the first with bias: inputs times outputs each; 3 in, 5 out."""
    names = [f"c{number}" for number in range(len(sizes))]
    ends: list[Any] = [3, *names, 5]
    layers = tuple(Layer("", 1, 1, before == 3, before, after, False) for before, after in itertools.pairwise(ends))
    widths = tuple(Width(name, size, ("n",)) for name, size in zip(names, sizes, strict=True))
    return Channels(widths, layers, dict.fromkeys(names, 2), 7)


def every_share(channels: Channels, scores: Scores, count_cost: Callable[[Any], int], multiple: int) -> list[float]:
    """The oracle: for every number of kept channels, one after the other, the share of the full cost."""
    flat = sorted(
        (-score, layer, index)
        for layer, width in enumerate(channels.widths)
        for index, score in enumerate(scores[width.name])
    )
    shares = []
    for count in range(len(flat) + 1):
        widths = {}
        for layer, width in enumerate(channels.widths):
            size = max(1, sum(kept == layer for _, kept, _ in flat[:count]))
            if width.channels >= multiple and size < width.channels:  # the closest multiple, of two the even one
                size = min((abs(step - size), step // multiple % 2, step) for step in range(multiple, 99, multiple))[2]
            widths[width.name] = min(size, width.channels)
        shares.append(count_cost(widths) / count_cost(channels.full))
    return shares


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_search_comes_as_close_as_trying_every_threshold(data: st.DataObject) -> None:
    channels = toy(*data.draw(st.lists(st.integers(2, 9), min_size=1, max_size=4)))
    value = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1)  # saturated gates are many
    scores = {
        width.name: data.draw(st.lists(value, min_size=width.channels, max_size=width.channels))
        for width in channels.widths
    }
    multiple, unit = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from(["macs", "parameters"]))
    count_cost = getattr(channels, unit)
    shares = every_share(channels, scores, count_cost, multiple)
    share = data.draw(st.floats(shares[0], 1.0))
    chosen = choose_channels(channels, scores, share, unit, 0.0, multiple)
    assert abs(chosen.error) == pytest.approx(min(abs(each - share) for each in shares), abs=1e-12)
    assert chosen.error == chosen.reached - share
    assert chosen.reached == count_cost(chosen.widths) / count_cost(channels.full)
    assert chosen == choose_channels(channels, scores, share, unit, 0.0, multiple)
    for width in channels.widths:
        kept = chosen.keep.get(width.name, list(range(width.channels)))
        assert kept == sorted(kept)
        assert len(kept) == chosen.widths[width.name]
        ranks = [(-score, index) for index, score in enumerate(scores[width.name])]
        assert sorted(ranks[index] for index in kept) == sorted(ranks)[: len(kept)]


def test_ties_go_to_earlier_layers_and_lower_indices() -> None:
    chosen = choose_channels(toy(4, 4), {"c0": [1.0] * 4, "c1": [1.0] * 4}, 0.7)
    assert (chosen.widths, chosen.keep) == ({"c0": 4, "c1": 2}, {"c1": [0, 1]})


def test_smallest_widths_multiples_and_units() -> None:
    channels = toy(16, 32)
    scores = {"c0": [0.0] * 16, "c1": [1.0] * 32}
    assert choose_channels(channels, scores, 300 / 720, minimum=0.25).widths["c0"] == 4
    assert choose_channels(channels, scores, 300 / 720, minimum=0.26).widths["c0"] == 5, "rounded up"
    rounded = choose_channels(channels, random_scores(channels), 0.6, multiple=8).widths
    assert all(width % 8 == 0 for width in rounded.values())
    low, high = {"c0": [0.0] * 20, "c1": [1.0] * 32}, {"c0": [1.0] * 20, "c1": [0.0] * 32}
    assert choose_channels(toy(20, 32), low, 0.6, minimum=0.45, multiple=8).widths["c0"] == 16, "8 is below the minimum"
    assert choose_channels(toy(20, 32), high, 0.5, multiple=8).widths["c0"] == 20, "all of them"
    assert choose_channels(toy(16, 6), {"c0": [0.0] * 16, "c1": [1.0] * 6}, 0.9, multiple=8).widths["c1"] == 6
    assert choose_channels(channels, scores, 1.0) == Budget({}, {"c0": 16, "c1": 32}, 1.0, 0.0), "nothing is removed"
    assert channels.parameters({"c0": 2, "c1": 3}) == (3 + 1) * 2 + 2 * 3 + 3 * 5 + 2 * 2 + 2 * 3 + 7
    of_another = choose_channels(channels, random_scores(channels), 0.25, full_cost=2 * channels.macs(channels.full))
    assert of_another.widths == choose_channels(channels, random_scores(channels), 0.5).widths


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "efficientnet_b0"])
@pytest.mark.parametrize("factor", [0.5, 1.25])
def test_widths_can_be_set_to_any_size_and_back(name: str, factor: float) -> None:
    backbone = lively(name)
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    channels = find_channels(backbone, 64)
    widths = {name: round(factor * size) for name, size in channels.full.items()}
    set_widths(backbone, channels, widths)
    assert cost.macs(backbone, 64) == channels.macs(widths)
    assert cost.parameters(backbone) == channels.parameters(widths)
    assert backbone(random_images(2, side=64)).isfinite().all()
    resized = find_channels(backbone, 64)
    assert resized.full == widths
    set_widths(backbone, resized, channels.full)
    assert {key: value.shape for key, value in backbone.state_dict().items()} == shapes


def test_what_was_frozen_stays_frozen() -> None:
    backbone = tiny_embedder().backbone
    for name, parameter in backbone.net.named_parameters():
        parameter.requires_grad_("bn" not in name)
    channels = find_channels(backbone, 32)
    remove_channels(backbone, choose_channels(channels, random_scores(channels), 0.9).keep, 32)
    assert all(parameter.requires_grad == ("bn" not in name) for name, parameter in backbone.net.named_parameters())


def test_what_cannot_be_pruned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for share in (0.01, 1.5):
        with pytest.raises(UserError, match=r"cannot be met: 0\.\d+ to 1 can"):
            choose_channels(toy(8, 8), random_scores(toy(8, 8)), share)
    with pytest.raises(UserError, match="no channels that can be pruned"):
        find_channels(build_backbone(ModelConfig(backbone="vit_tiny_patch16_224", weights="none"), 32), 32)
    with pytest.raises(UserError, match="no such channels"):
        remove_channels(tiny_embedder().backbone, {"layer1.0.conv9": [0]}, 32)
    monkeypatch.setattr("retrieval_bench.models.pruning.macs", lambda backbone, size: 1)
    with pytest.raises(UserError, match="cannot be removed: 1 multiply-accumulates are left, counted were"):
        remove_channels(tiny_embedder().backbone, {"layer1.0.conv1": [0, 1]}, 32)
