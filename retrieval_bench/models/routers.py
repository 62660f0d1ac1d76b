"""Learned decisions between frozen and tuned blocks, and random numbers that depend on an image's pixels."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from retrieval_bench import cost
from retrieval_bench.models.backbone import STEM, Backbone, Block
from retrieval_bench.models.routing import Decisions
from retrieval_bench.seeding import generator


class LearnedRouter(nn.Module):
    """SpotTune's policy: two logits per block, with Gumbel noise in training (Guo et al. 2019, equation 3).

    Args:
        features: network from images to (B, F).
        blocks: number L of blocks that are decided on.
        temperature: of the Gumbel-softmax; scales gradients, changes no probability.
        seed: of the draws in eval mode.

    Attributes:
        fixed: decisions for all images, in place of the policy's own.
        draw: eval mode draws with the policy's probabilities, the same blocks for an image whenever the number is the
            same; None: eval mode takes the more probable blocks.
    """

    totals: Tensor
    seen: Tensor

    def __init__(self, features: Backbone, blocks: int, temperature: float, seed: int):
        super().__init__()
        self.features = features
        self.head = nn.Linear(features.feature_dim, 2 * blocks)
        self.temperature = temperature
        self.seed = seed
        self.fixed: tuple[bool, ...] | None = None
        self.draw: int | None = None
        # buffers, so that a pass that is undone leaves no trace
        self.register_buffer("totals", torch.zeros(3, blocks))
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, images: Tensor) -> Tensor:
        """Float32 (B, L, 2), under autocast too; index 1 is the tuned block."""
        return self.head(self.features(images)).float().unflatten(1, (-1, 2))

    def forward(self, images: Tensor) -> Decisions:
        """`fixed`, or float (B, L): in training exactly 0 or 1, with the gradient of the soft decisions."""
        if self.fixed is not None:
            return self.fixed
        logits = self.logits(images)
        margin = (logits[..., 1] - logits[..., 0]).detach()
        if self.training:
            soft = gumbel_softmax(logits, tau=self.temperature, dim=-1)[..., 1]
            hard = (soft > 0.5).to(soft.dtype)
            self._count(hard, margin.sigmoid())
            return hard + (soft - soft.detach())  # the bracket is exactly 0
        if self.draw is None:
            return (margin > 0).to(margin.dtype)
        return (pixel_noise(images, margin.shape[1], self.seed, self.draw) < margin.sigmoid()).to(margin.dtype)

    @property
    def draws(self) -> bool:
        """Whether eval mode draws blocks by the pixels of each image."""
        return self.fixed is None and self.draw is not None

    @torch.no_grad()
    def _count(self, drawn: Tensor, probability: Tensor) -> None:
        entropy = -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability)) / math.log(2)
        self.totals += torch.stack([drawn.sum(0), (probability > 0.5).sum(0), entropy.sum(0)])
        self.seen += len(drawn)

    def statistics(self) -> dict[str, list[float]]:
        """Per block, over the training passes since :meth:`reset_statistics`: ``rate`` of tuned blocks as drawn,
        ``argmax_rate`` without noise, and ``entropy`` of the decision in bits. The policy was in training mode, its
        batch norms with the statistics of each batch."""
        means = (self.totals / self.seen.clamp(min=1)).tolist()
        return dict(zip(("rate", "argmax_rate", "entropy"), means, strict=True))

    def reset_statistics(self) -> None:
        """Starts :meth:`statistics` afresh."""
        self.totals.zero_()
        self.seen.zero_()


def pixel_noise(images: Tensor, count: int, seed: int, *purpose: int) -> Tensor:
    """Float (B, count) in [0, 1), decided by each image's pixels and the seed alone, whatever else is in the batch.

    Args:
        images: uint8, or float in 0..1, which is rounded to uint8.
        count: numbers per image.
        seed: of the draws.
        purpose: distinguishes draws of one seed.
    """
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    rows = pixels.contiguous().cpu().numpy()
    draws = [torch.rand(count, generator=generator(seed, zlib.crc32(row.tobytes()), *purpose)) for row in rows]
    return torch.stack(draws).to(images.device)


def policy_network(backbone: Backbone, image_size: int) -> tuple[Backbone, dict[str, Any]]:
    """A small ResNet for the policy on `backbone`, random weights, and its ``width``, ``parameters`` and ``macs``.

    Four basic blocks of widths w, 2w, 4w and 8w after three 3x3 convolutions; w is the largest of 64, 32, 16 and 8 for
    which it costs at most a sixth of the backbone's multiply-accumulates at this size (8 if none does). Weights are
    drawn from torch's global generator.
    """
    limit = cost.macs(backbone, image_size) / 6
    block: Any = BasicBlock  # timm annotates the class as an instance
    width = 64
    while True:
        channels = (width, 2 * width, 4 * width, 8 * width)
        net = ResNet(block, (1, 1, 1, 1), num_classes=0, channels=channels, stem_type="deep", stem_width=width // 2)
        network = Backbone(net, (Block(STEM, ("",)),), *backbone.normalisation, 8 * width)
        macs = cost.macs(network, image_size)
        if macs <= limit or width == 8:
            return network, {"width": width, "parameters": cost.parameters(network), "macs": macs}
        width //= 2
