"""Routers: from images to decisions between frozen and tuned blocks, learned or random."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from retrieval_bench import cost
from retrieval_bench.models.backbone import STEM, Backbone, Block
from retrieval_bench.models.routing import Decisions
from retrieval_bench.seeding import generator

WIDTHS = (64, 32, 16, 8)


class LearnedRouter(nn.Module):
    """SpotTune's policy: a network with two logits per block, and Gumbel noise in training (Guo et al. 2019, equation 3).

    Args:
        features: network from images to (B, F).
        blocks: number L of blocks that are decided on.
        temperature: of the Gumbel-softmax; scales gradients, changes no probability.
        seed: of the draws of :meth:`sample`.

    Attributes:
        fixed: decisions for all images, in place of the policy's own.
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
        self._draw: int | None = None
        # buffers, so that a pass that is undone leaves no trace
        self.register_buffer("totals", torch.zeros(3, blocks))
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, images: Tensor) -> Tensor:
        """Float32 (B, L, 2), under autocast too; index 1 is the tuned block."""
        return self.head(self.features(images)).float().unflatten(1, (-1, 2))

    def forward(self, images: Tensor) -> Decisions:
        """Float (B, L). In training drawn, exactly 0 or 1, with the gradient of the soft decisions (straight-through). In eval mode the
        more probable block, or as :meth:`argmax`, :meth:`sample` or `fixed` say."""
        if self.fixed is not None:
            return self.fixed
        logits = self.logits(images)
        if self.training:
            soft = gumbel_softmax(logits, tau=self.temperature, dim=-1)[..., 1]
            hard = (soft > 0.5).to(soft.dtype)
            self._count(hard, logits)
            return hard + (soft - soft.detach())  # the bracket is exactly 0
        margin = (logits[..., 1] - logits[..., 0]).detach()
        if self._draw is None:
            return (margin > 0).to(margin.dtype)
        noise = pixel_noise(images, margin.shape[1], self.seed, self._draw)
        return (noise < margin.sigmoid()).to(margin.dtype)

    @property
    def draws(self) -> bool:
        """Whether eval mode draws blocks, image by image."""
        return self.fixed is None and self._draw is not None

    def argmax(self) -> None:
        """Eval mode takes the more probable block from now on."""
        self.fixed = self._draw = None

    def sample(self, draw: int) -> None:
        """Eval mode draws blocks with the policy's probabilities from now on; for one `draw` an image always gets the same ones."""
        self.fixed, self._draw = None, draw

    @torch.no_grad()
    def _count(self, drawn: Tensor, logits: Tensor) -> None:
        probability = (logits[..., 1] - logits[..., 0]).sigmoid()
        entropy = -(torch.xlogy(probability, probability) + torch.xlogy(1 - probability, 1 - probability)) / math.log(2)
        self.totals += torch.stack([drawn.sum(0), (probability > 0.5).sum(0), entropy.sum(0)])
        self.seen += len(drawn)

    def statistics(self) -> dict[str, list[float]]:
        """Per block, over the training passes since :meth:`restart`: ``rate`` of tuned blocks as drawn, ``argmax_rate`` without noise, and
        ``entropy`` of the decision in bits. The policy was in training mode then, its batch norms with the statistics of each batch."""
        means = (self.totals / self.seen.clamp(min=1)).tolist()
        return dict(zip(("rate", "argmax_rate", "entropy"), means, strict=True))

    def restart(self) -> None:
        """Starts :meth:`statistics` afresh."""
        self.totals.zero_()
        self.seen.zero_()


class RandomRouter(nn.Module):
    """Tuned or frozen with equal probability: drawn anew at every training step, fixed for each image in eval mode.

    Args:
        blocks: number L of blocks that are decided on.
        seed: of the decisions in eval mode.
    """

    def __init__(self, blocks: int, seed: int):
        super().__init__()
        self.blocks = blocks
        self.seed = seed

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, L), 0 or 1."""
        if self.training:
            return torch.randint(0, 2, (len(images), self.blocks)).to(images.device, torch.float32)
        return (pixel_noise(images, self.blocks, self.seed) < 0.5).to(torch.float32)


def pixel_noise(images: Tensor, count: int, seed: int, *purpose: int) -> Tensor:
    """Float (B, count) in [0, 1), decided by each image's pixels and the seed alone, whatever else is in the batch.

    Args:
        images: uint8, or float in 0..1, which is rounded to uint8.
        count: numbers per image.
        seed: of the draws.
        purpose: tells draws of one seed apart.
    """
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    rows = pixels.contiguous().cpu().numpy()
    draws = [torch.rand(count, generator=generator(seed, zlib.crc32(row.tobytes()), *purpose)) for row in rows]
    return torch.stack(draws).to(images.device)


def policy_network(backbone: Backbone, image_size: int) -> tuple[Backbone, dict[str, Any]]:
    """A small ResNet for the policy on `backbone`, random weights, and what it is: ``width``, ``parameters``, ``macs``.

    Four basic blocks of widths w, 2w, 4w and 8w after three 3x3 convolutions; w is the largest of 64, 32, 16 and 8 for which it costs at
    most a sixth of the backbone's multiply-accumulates at this size (8 if none does). Weights are drawn from torch's global generator.
    """
    from timm.models.resnet import BasicBlock, ResNet

    allowed = cost.macs(backbone, image_size) / 6
    block: Any = BasicBlock  # timm annotates the class as an instance
    for width in WIDTHS:
        channels = (width, 2 * width, 4 * width, 8 * width)
        net = ResNet(block, (1, 1, 1, 1), num_classes=0, channels=channels, stem_type="deep", stem_width=width // 2)
        network = Backbone(net, (Block(STEM, ("",)),), *backbone.normalisation, 8 * width)
        macs = cost.macs(network, image_size)
        if macs <= allowed or width == WIDTHS[-1]:
            return network, {"width": width, "parameters": cost.parameters(network), "macs": macs}
    raise AssertionError("unreachable")
