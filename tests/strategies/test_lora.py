"""Low-rank updates against their equation, the merged network, chains, and the library of another group."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import RoutedBlock
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.strategies.lora import LoRA, LowRank, add_adapter, is_matrix, merge
from tests.training.helpers import random_images, tiny_embedder, tiny_vit


def adapted(model: Embedder, **options: Any) -> tuple[LoRA, dict[str, Any]]:
    """`model` with updates that are not zero, and the adapted layers by name."""
    strategy = LoRA(LoRA.Options(**options))
    strategy.prepare(model, random_images(2))
    layers = {name: layer for name, layer in model.backbone.net.named_modules() if isinstance(layer, LowRank)}
    for layer in layers.values():
        nn.init.normal_(layer.adapter[1].weight)  # pyright: ignore[reportArgumentType]
    return strategy, layers


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 10), (3, 5, 6)),
        (nn.Linear(6, 10, bias=False), (3, 6)),
        (nn.Conv2d(6, 10, 1), (3, 6, 8, 8)),
        (nn.Conv2d(6, 10, 1, stride=2, bias=False), (3, 6, 7, 7)),
    ],
)
def test_update_is_the_equation_and_merged_weights_give_the_same(layer: Any, shape: tuple[int, ...]) -> None:
    plain, kind, x = copy.deepcopy(layer), type(layer), torch.randn(shape)
    add_adapter(layer, 4, 1.5)
    assert torch.equal(layer(x), plain(x)), "B is zero at the start"
    nn.init.normal_(layer.adapter[1].weight)
    a, b = (part.weight.double().flatten(1) for part in layer.adapter)
    matrix = (plain.weight.double().flatten(1) + 1.5 * b @ a).view_as(plain.weight)
    bias = None if plain.bias is None else plain.bias.double()
    expected = conv2d(x.double(), matrix, bias, plain.stride) if x.ndim == 4 else linear(x.double(), matrix, bias)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    merge(layer)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert type(layer) is kind
    assert layer.state_dict().keys() == plain.state_dict().keys()


def test_layers_with_groups_or_larger_kernels_are_no_matrix() -> None:
    assert not any(map(is_matrix, (nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, padding=1))))


@pytest.mark.parametrize(
    ("layers", "count"), [("all", 16), ("linear", 16), ("qkv", 4), ("qkv,fc2", 8), ("attn", 8), ("blocks", 16)]
)
def test_chosen_layers_train_and_nothing_else_and_finalize_keeps_the_embeddings(layers: str, count: int) -> None:
    model, images = tiny_vit(dim=8), random_images(4)
    names = model.state_dict().keys()
    strategy, found = adapted(model, layers=layers)
    assert strategy.info() == {"adapted_layers": list(found)}
    assert len(found) == count
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    updates = {f"backbone.net.{name}.adapter.{part}.weight" for name in found for part in (0, 1)}
    assert trained == updates | {"embedding.weight", "embedding.bias"}
    before = model(images)
    torch.testing.assert_close(strategy.finalize(model)(images), before, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == names


@pytest.mark.parametrize(("layers", "model"), [("conv", tiny_vit), ("linear", tiny_embedder), ("qkw", tiny_vit)])
def test_nothing_to_adapt_is_one_line(layers: str, model: Any) -> None:
    with pytest.raises(UserError, match=f"^--lora.layers {layers}: no such linear layer"):
        adapted(model(), layers=layers)


def test_layers_whose_weights_are_read_without_a_call_are_left_alone() -> None:
    model = tiny_vit()
    for block in model.backbone.net.blocks:  # pyright: ignore[reportGeneralTypeIssues]
        block.attn.qkv.forward = None
        block.attn.forward = lambda x, attn=block.attn, **_: attn.proj(
            linear(x, attn.qkv.weight, attn.qkv.bias)[..., :24]
        )
    assert not any("qkv" in name for name in adapted(model)[1])


def test_in_a_chain_frozen_layers_stay_frozen() -> None:
    model = tiny_vit()
    options = StrategyOptions(last_k=LastK.Options(k=1))
    chain = build_strategy("last_k+lora", options)
    chain.prepare(model, random_images(2))
    assert {name.split(".")[1] for name in chain.info()["lora"]["adapted_layers"]} == {"3"}
    chain = build_strategy("spottune+lora", StrategyOptions())
    chain.prepare(model := tiny_embedder(), random_images(2))
    blocks = [module for module in model.modules() if isinstance(module, RoutedBlock)]
    assert not any(isinstance(module, LowRank) for block in blocks for module in block.frozen.modules())
    assert all(".tuned." in name for name in chain.info()["lora"]["adapted_layers"])
    assert all(parameter.requires_grad for parameter in chain.parts["spottune"].router.parameters())  # pyright: ignore[reportAttributeAccessIssue]


def test_training_and_merged_weights_are_those_of_peft() -> None:
    """Three steps of SGD on fused qkv and the MLP, from the same A."""
    peft = pytest.importorskip("peft")

    def train(net: nn.Module, parameters: Sequence[Tensor]) -> list[float]:
        optimizer, history = torch.optim.SGD(parameters, lr=0.1), []
        for step in range(3):
            optimizer.zero_grad()
            loss = net(random_images(8, seed=step).float() / 255).square().mean()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        return history

    ours, theirs = tiny_vit().backbone.net, tiny_vit().backbone.net
    model = tiny_vit()
    model.backbone.net = ours
    strategy = LoRA(LoRA.Options(rank=4, alpha=16.0, layers="qkv,fc1"))
    strategy.prepare(model, random_images(2))
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["qkv", "fc1"], bias="none")
    wrapped = peft.get_peft_model(theirs, config)
    parts = dict(wrapped.named_modules())
    for name in strategy.info()["adapted_layers"]:
        down = ours.get_submodule(f"{name}.adapter.0").weight
        parts[f"base_model.model.{name}"].lora_A["default"].weight.data.copy_(down)
    mine, other = ([p for p in net.parameters() if p.requires_grad] for net in (ours, wrapped))
    assert sum(p.numel() for p in mine) == sum(p.numel() for p in other)
    assert train(ours, mine) == pytest.approx(train(wrapped, other), rel=1e-5)
    strategy.finalize(model)
    merged = wrapped.merge_and_unload().state_dict()
    assert merged.keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-5, atol=1e-6)
