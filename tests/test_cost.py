"""Parameters, multiply-accumulates, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from retrieval_bench import cost
from retrieval_bench.models.build import build_embedder
from retrieval_bench.sections import ModelConfig


def small_net() -> nn.Sequential:
    """At 10 x 10: a 3x3 convolution 3 -> 4 with stride 2 to 5 x 5, a grouped one 4 -> 8, pooling, a linear layer 8 ->
    6."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 8, 1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
    )


def test_macs_by_hand() -> None:
    assert cost.macs(small_net(), 10) == 25 * 4 * 3 * 9 + 25 * 8 * 2 + 8 * 6


def test_parameters_by_hand_frozen_ones_included() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    assert cost.parameters(net) == (4 * 3 * 9 + 4) + (8 * 2 + 8) + (8 * 6 + 6)


class Attention(nn.Module):
    """Self-attention of the pixels of a row, as torch's fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        tokens = images * self.scale
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_macs_of_attention_count_both_products() -> None:
    """3 heads, 16 tokens of 16 channels: Q K^T and its product with V."""
    assert cost.macs(Attention(), 16) == 3 * 2 * 16 * 16 * 16


@pytest.mark.parametrize("name", ["resnet50", "torchvision/resnet50"])
def test_resnet50_has_the_published_size(name: str) -> None:
    model = build_embedder(ModelConfig(backbone=name, weights="none"), 32)
    assert cost.parameters(model) == 23_508_032
    assert cost.macs(model.to("meta"), 224) == 4_087_136_256


def test_macs_include_the_embedding_layer() -> None:
    plain, with_head = (
        build_embedder(ModelConfig(backbone="resnet10t", weights="none", embedding_dim=dim), 32) for dim in (0, 10)
    )
    assert cost.macs(with_head, 32) - cost.macs(plain, 32) == 512 * 10


def test_peak_memory_covers_what_is_held() -> None:
    held = torch.ones(2**18)
    assert cost.peak_memory_mb("cpu") > held.numel() * 4 / 2**20
    before = cost.peak_memory_mb("cpu")
    more = torch.ones(2**26)
    assert cost.peak_memory_mb("cpu") >= before
    assert cost.peak_memory_mb("cpu") > more.numel() * 4 / 2**20


def test_latency_is_positive_and_grows_with_the_image() -> None:
    """No seconds are asserted: four times the pixels in a network without fixed cost to speak of is not in doubt."""
    model = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), nn.Conv2d(64, 16, 9, padding=4))

    class FromBytes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images.float())

    small, large = (cost.latency_ms(FromBytes(), side, passes=5) for side in (16, 160))
    assert 0 < small < large
