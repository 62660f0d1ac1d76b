"""A backbone whose blocks come in pairs, frozen and tuned, and that decides for each image which of the two it takes.

Equation 2 of SpotTune (Guo et al., CVPR 2019, arXiv 1811.08737): block l gives ``I_l(x) tuned_l(x) + (1 - I_l(x))
frozen_l(x)``, with decisions I_l(x) in {0, 1} from a router that sees the image.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import STEM, Backbone
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.seeding import generator

Decisions = Tensor | tuple[bool, ...]
"""What a router gives: 0 or 1 per image and block (B, L), 1 for the tuned block; or one decision per block for all
images."""
Rows = tuple[Tensor, Tensor]
"""Rows of the batch that take the frozen block, and those that take the tuned one."""


class RoutedBlock(nn.Module):
    """A frozen block and its trainable copy. :class:`RoutedBackbone` sets `route` before each pass: one branch for all
    images, rows per branch, or float (B,) decisions, for which both branches are computed, since the gradient of a
    decision needs both."""

    route: bool | Rows | Tensor

    def __init__(self, frozen: nn.Module, tuned: nn.Module):
        super().__init__()
        self.frozen = frozen
        self.tuned = tuned
        self.route = True

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.route, bool):
            return self.tuned(x) if self.route else self.frozen(x)
        if isinstance(self.route, Tensor):
            tuned, frozen = self.tuned(x), self.frozen(x)
            route = self.route.to(x.dtype).view(-1, *[1] * (tuned.ndim - 1))  # a block may flatten its input
            return tuned * route + frozen * (1 - route)
        frozen_rows, tuned_rows = self.route
        channels_last = _is_channels_last(x)  # indexing alone would give up this layout
        x = x.permute(0, 2, 3, 1) if channels_last else x
        inputs = x[frozen_rows], x[tuned_rows]
        frozen, tuned = (
            branch(rows.permute(0, 3, 1, 2) if channels_last else rows)
            for branch, rows in zip((self.frozen, self.tuned), inputs, strict=True)
        )
        channels_last = _is_channels_last(frozen) and _is_channels_last(tuned)
        if channels_last:
            frozen, tuned = frozen.permute(0, 2, 3, 1), tuned.permute(0, 2, 3, 1)
        both = frozen.new_empty(len(x), *frozen.shape[1:])
        both.index_copy_(0, frozen_rows, frozen).index_copy_(0, tuned_rows, tuned)
        return both.permute(0, 3, 1, 2) if channels_last else both


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


class RoutedBackbone(Backbone):
    """A backbone with :class:`RoutedBlock` in place of some of its blocks; `router` maps images (B, 3, H, W) to
    :data:`Decisions` on them in order.

    In training both branches are computed; in eval mode each image runs through the branches that it takes only, so
    that the cost is that of one backbone and the router (unless `both_branches` asks for the slow way). `decisions` are
    those of the last pass, (B, L), with their graph in training.
    """

    decisions: Tensor | None

    def __init__(self, backbone: Backbone, router: nn.Module):
        super().__init__(backbone.net, backbone.blocks, *backbone.normalisation, backbone.feature_dim)
        self.to(backbone.mean.device)
        self.router = router
        self.decisions = None
        self.both_branches = False

    def set_grad_checkpointing(self, enable: bool) -> None:
        if enable:
            raise UserError("--grad-checkpointing: routes of images are not kept for a second pass through the blocks")

    @property
    def routed(self) -> dict[str, RoutedBlock]:
        """The routed blocks in order, by name."""
        modules = {block.name: self.net.get_submodule(block.name) for block in self.body}
        return {name: module for name, module in modules.items() if isinstance(module, RoutedBlock)}

    def forward(self, images: Tensor) -> Tensor:
        decisions: Decisions = self.router(images)
        routed = self.routed.values()
        for block, route in zip(routed, self._routes(decisions), strict=True):
            block.route = route
        try:
            return super().forward(images)
        finally:
            for block in routed:
                block.route = True  # holds no graph
            if isinstance(decisions, tuple):
                decisions = torch.tensor(decisions, dtype=torch.float32, device=images.device).expand(len(images), -1)
            self.decisions = decisions

    def _routes(self, decisions: Decisions) -> list[bool | Rows | Tensor]:
        if isinstance(decisions, tuple):
            return list(decisions)
        if self.training or self.both_branches:
            return list(decisions.unbind(1))
        routes: list[bool | Rows | Tensor] = []
        for tuned in decisions.T.cpu() > 0.5:  # one transfer, not one per block
            if tuned.all() or not tuned.any():
                routes.append(bool(tuned.all()))
            else:
                rows = (~tuned).nonzero().flatten(), tuned.nonzero().flatten()
                routes.append((rows[0].to(decisions.device), rows[1].to(decisions.device)))
        return routes


def route(model: Embedder, router: nn.Module, names: Collection[str], code_compat: bool = False) -> RoutedBackbone:
    """Pairs each named body block with a copy that is trained in its place; returns the backbone that `model` has then.

    The blocks themselves and the stem are frozen: no gradient, batch norms in eval mode; so is what a block owns beside
    its module, such as the downsampling before a stage of ConvNeXt, of which there is one for both. With `code_compat`
    only the kernels of the blocks are, as in SpotTune's public code: norms and the stem train.
    """
    backbone = model.backbone
    for block in backbone.blocks:
        if block.name in names:
            frozen = backbone.net.get_submodule(block.name)
            tuned = copy.deepcopy(frozen)
            for parameter in backbone.block_parameters(block):
                if parameter.ndim > 1 or not code_compat:
                    parameter.requires_grad_(False)
            backbone.net.set_submodule(block.name, RoutedBlock(frozen, tuned))
        elif block.name == STEM and not code_compat:
            for parameter in backbone.block_parameters(block):
                parameter.requires_grad_(False)
    model.backbone = RoutedBackbone(backbone, router)
    return model.backbone


def unroute(model: Embedder, tuned: Collection[bool]) -> None:
    """Makes a plain backbone of a routed one: each routed block is replaced by its tuned or its frozen branch."""
    backbone = model.backbone
    assert isinstance(backbone, RoutedBackbone)
    for (name, block), is_tuned in zip(backbone.routed.items(), tuned, strict=True):
        backbone.net.set_submodule(name, block.tuned if is_tuned else block.frozen)
    plain = Backbone(backbone.net, backbone.blocks, *backbone.normalisation, backbone.feature_dim)
    model.backbone = plain.to(backbone.mean.device)


def refuse_other_blocks(model: Embedder, example_images: Tensor, strategy: str) -> None:
    """Raises :class:`UserError` on behalf of `strategy` if the blocks do not map one tensor to another."""
    routed = model.backbone if isinstance(model.backbone, RoutedBackbone) else None
    try:
        if routed is not None:
            routed.both_branches = True
        with torch.no_grad():
            model.eval()(example_images[:2])
    except (TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{strategy} needs blocks that map one tensor to another, unlike this backbone's ({first_line(error)})"
        ) from None
    finally:
        if routed is not None:
            routed.both_branches, routed.decisions = False, None


class LearnedRouter(nn.Module):
    """SpotTune's policy: two logits per block, with Gumbel noise in training (Guo et al. 2019, equation 3).

    `features` maps images to (B, F); `temperature` scales gradients and changes no probability. `fixed` are decisions
    for all images, in place of the policy's own. Eval mode takes the more probable blocks, or draws with the policy's
    probabilities if `draw` is a number: the same blocks for an image whenever `seed` and number are the same.
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
            p = margin.sigmoid()
            entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)
            with torch.no_grad():
                self.totals += torch.stack([hard.sum(0), (p > 0.5).sum(0), entropy.sum(0)])
                self.seen += len(hard)
            return hard + (soft - soft.detach())  # the bracket is exactly 0
        if self.draw is None:
            return (margin > 0).to(margin.dtype)
        return (pixel_noise(images, margin.shape[1], self.seed, self.draw) < margin.sigmoid()).to(margin.dtype)

    @property
    def draws(self) -> bool:
        """Whether eval mode draws blocks by the pixels of each image."""
        return self.fixed is None and self.draw is not None

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
    """Float (B, count) in [0, 1), decided by each image's pixels (uint8, or float in 0..1, which is rounded to uint8),
    the seed and the purpose alone, whatever else is in the batch."""
    pixels = images if images.dtype == torch.uint8 else (images * 255).round().to(torch.uint8)
    rows = pixels.contiguous().cpu().numpy()
    draws = [torch.rand(count, generator=generator(seed, zlib.crc32(row.tobytes()), *purpose)) for row in rows]
    return torch.stack(draws).to(images.device)
