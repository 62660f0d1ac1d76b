"""Prompts against the paper's equations, written out over the transformer; refusals; the deployed network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.deploy.saved import read_embedder, save_embedder
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.visual_prompts import VisualPrompts
from tests.training.helpers import Data, make_training, random_images, run_config, tiny_embedder, tiny_vit


def expected(net: Any, blocks: list[Any], prompts: Sequence[Tensor], deep: bool, images: Tensor) -> Tensor:
    """Equations 4 to 7 with the plain `blocks`: the sequence is class token, prompts, patches."""
    x = net._pos_embed(net.patch_embed(images))
    first, count = net.num_prefix_tokens, prompts[0].shape[1]
    cls, patches = x[:, :first], x[:, first:]
    between = prompts[0].expand(len(x), -1, -1)
    for number, block in enumerate(blocks):
        if deep:
            between = prompts[number].expand(len(x), -1, -1)
        x = block(torch.cat([cls, between, patches], dim=1))
        cls, between, patches = x.split([first, count, x.shape[1] - first - count], dim=1)
    return net.forward_head(net.norm(torch.cat([cls, patches], dim=1)))


@pytest.mark.parametrize("kind", ["shallow", "deep"])
@pytest.mark.parametrize(
    "options",
    [{}, {"reg_tokens": 2}, {"global_pool": "avg"}, {"class_token": False, "global_pool": "map"}],
    ids=["class token", "registers", "mean", "attention"],
)
def test_network_is_the_equations_and_only_prompts_train(kind: str, options: dict[str, Any]) -> None:
    model, images = tiny_vit(dim=8, **options), random_images(3)
    net: Any = model.backbone.net
    blocks = list(net.blocks)
    strategy = VisualPrompts(VisualPrompts.Options(kind=kind, tokens=3))
    model = strategy.prepare(model, images)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    prompts = [value for name, value in trained.items() if name.endswith(".prompts")]
    names = [f"backbone.net.blocks.{number}.prompts" for number in range(4 if kind == "deep" else 1)]
    assert list(trained) == [*names, "embedding.weight", "embedding.bias"]
    bound = (6 / (3 * 8 * 8 + 24)) ** 0.5
    assert all(0.8 * bound < prompt.abs().max() <= bound for prompt in prompts)
    normalised = (images.float() / 255 - 0.5) / 0.25
    features = model.backbone(images)
    torch.testing.assert_close(features, expected(net, blocks, prompts, kind == "deep", normalised))
    gradients = torch.autograd.grad(features.square().sum(), prompts)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("backbone", ["swin_tiny_patch4_window7_224", "mixer_s32_224", "eva02_tiny_patch14_224"])
def test_backbones_without_a_sequence_that_prompts_fit_in_are_refused(backbone: str) -> None:
    with torch.device("meta"):
        model = build_embedder(ModelConfig(backbone=backbone, weights="none"), 224)
        images = torch.zeros(2, 3, 224, 224, dtype=torch.uint8)
        with pytest.raises(UserError, match=r"^visual_prompts needs ") as caught:
            VisualPrompts().prepare(model, images)
    assert "\n" not in str(caught.value)


def test_convolutions_have_no_tokens() -> None:
    with pytest.raises(UserError, match=r"^visual_prompts needs a vision transformer"):
        VisualPrompts().prepare(tiny_embedder(), random_images(2))


def test_shallow_prompts_after_a_cut_are_saved_and_loaded(synthetic: Data, tmp_path: Path) -> None:
    options = StrategyOptions(visual_prompts=VisualPrompts.Options(kind="shallow", tokens=2))
    strategy = build_strategy("layer_pruning+visual_prompts", options)
    config = ModelConfig(backbone="test_vit", weights="none")
    model: Embedder = build_embedder(config, 32)
    finished = make_training(synthetic, strategy, run_config(epochs=1), model).fit().eval()
    save_embedder(finished, config, 32, tmp_path / "one", None, strategy)
    again, recipe = read_embedder(tmp_path / "one")
    assert recipe["rebuilt"]["options"] == {"kind": "shallow", "tokens": 2}
    with torch.no_grad():
        assert torch.equal(again(random_images(4)), finished(random_images(4)))
