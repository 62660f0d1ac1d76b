"""A backbone whose blocks come in pairs, frozen and tuned, and that decides for each image which of the two it takes.

Equation 2 of SpotTune (Guo et al., CVPR 2019, arXiv 1811.08737): block l gives ``I_l(x) tuned_l(x) + (1 - I_l(x)) frozen_l(x)``, with
decisions I_l(x) in {0, 1} from a router (``retrieval_bench.models.routers``) that sees the image.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import STEM, Backbone
from retrieval_bench.models.embedder import Embedder

Decisions = Tensor | tuple[bool, ...]
"""What a router gives: 0 or 1 per image and block (B, L), 1 for the tuned block; or one decision per block for all images."""
Groups = tuple[Tensor, Tensor]
"""Rows of the batch that take the frozen block, and those that take the tuned one."""


class RoutedBlock(nn.Module):
    """A frozen block and its trainable copy.

    Attributes:
        route: set by :class:`RoutedBackbone` before each pass: one branch for all images, groups of rows, or float (B,) decisions, for
            which both branches are computed for all images, since the gradient of a decision needs both.
    """

    route: bool | Groups | Tensor

    def __init__(self, frozen: nn.Module, tuned: nn.Module):
        super().__init__()
        self.frozen = frozen
        self.tuned = tuned
        self.route = True

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.route, bool):
            return self.tuned(x) if self.route else self.frozen(x)
        if isinstance(self.route, Tensor):
            tuned = self.route.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
            return self.tuned(x) * tuned + self.frozen(x) * (1 - tuned)
        frozen_rows, tuned_rows = self.route
        frozen, tuned = self.frozen(_rows(x, frozen_rows)), self.tuned(_rows(x, tuned_rows))
        return _merged(frozen, frozen_rows, tuned, tuned_rows)


TO_LAST, FROM_LAST = (0, 2, 3, 1), (0, 3, 1, 2)


def _channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """``x[rows]`` in the layout of `x`: indexing alone gives up channels-last."""
    return x.permute(TO_LAST)[rows].permute(FROM_LAST) if _channels_last(x) else x[rows]


def _merged(one: Tensor, one_rows: Tensor, other: Tensor, other_rows: Tensor) -> Tensor:
    """A batch with `one` in some rows and `other` in the rest, in their layout."""
    if _channels_last(one) and _channels_last(other):
        return _merged(one.permute(TO_LAST), one_rows, other.permute(TO_LAST), other_rows).permute(FROM_LAST)
    whole = one.new_empty(len(one) + len(other), *one.shape[1:])
    return whole.index_copy_(0, one_rows, one).index_copy_(0, other_rows, other)


class RoutedBackbone(Backbone):
    """A backbone with :class:`RoutedBlock` in place of some of its blocks.

    In training both branches are computed; in eval mode each image runs through the branches that it takes only, so that the cost is that
    of one backbone and the router.

    Args:
        backbone: with routed blocks already in its network.
        router: images (B, 3, H, W) as the backbone takes them to :data:`Decisions` on the routed blocks in order.

    Attributes:
        decisions: (B, L) of the last pass, with its graph in training; None before the first.
        both_branches: compute both branches in eval mode too: the slow way, to compare with.
    """

    decisions: Tensor | None

    def __init__(self, backbone: Backbone, router: nn.Module):
        super().__init__(backbone.net, backbone.blocks, *backbone.normalisation, backbone.feature_dim)
        self.to(backbone.mean.device)
        self.router = router
        self.decisions = None
        self.both_branches = False

    @property
    def routed(self) -> list[RoutedBlock]:
        """The routed blocks in order."""
        modules = (self.net.get_submodule(block.name) for block in self.body)
        return [module for module in modules if isinstance(module, RoutedBlock)]

    def forward(self, images: Tensor) -> Tensor:
        decisions: Decisions = self.router(images)
        routed = self.routed
        for block, taken in zip(routed, self._routes(decisions, self.training or self.both_branches), strict=True):
            block.route = taken
        try:
            return super().forward(images)
        finally:
            for block in routed:
                block.route = True  # holds no graph
            if isinstance(decisions, tuple):
                decisions = torch.tensor(decisions, dtype=torch.float32, device=images.device).expand(len(images), -1)
            self.decisions = decisions

    @staticmethod
    def _routes(decisions: Decisions, both: bool) -> list[bool | Groups | Tensor]:
        if isinstance(decisions, tuple):
            return list(decisions)
        if both:
            return list(decisions.unbind(1))
        chosen = decisions.T.cpu() > 0.5  # one transfer, not one per block
        return [_groups(column, decisions.device) for column in chosen]


def _groups(tuned: Tensor, device: torch.device) -> bool | Groups:
    """How a block is run for the images of `tuned`, bool (B,): as one where all agree."""
    if tuned.all():
        return True
    if not tuned.any():
        return False
    return (~tuned).nonzero().flatten().to(device), tuned.nonzero().flatten().to(device)


def route(model: Embedder, router: nn.Module, names: Collection[str], code_compat: bool = False) -> RoutedBackbone:
    """Pairs each named block with a copy that is trained as the block would be; the :class:`RoutedBackbone` that `model` has then.

    The blocks themselves and the stem are frozen: no gradient, batch norms in eval mode; so is what a block owns beside its module, such as
    the downsampling before a stage of ConvNeXt, of which there is one for both.

    Args:
        model: is changed.
        router: decides on the named blocks.
        names: of body blocks.
        code_compat: freeze what SpotTune's public code freezes, the kernels of the blocks: their batch norms and the stem are trained.
    """
    backbone = model.backbone
    pairs: dict[str, RoutedBlock] = {}
    for block in backbone.blocks:
        if block.name in names:
            original = backbone.net.get_submodule(block.name)
            pairs[block.name] = RoutedBlock(original, copy.deepcopy(original))
            _freeze(
                parameter for parameter in backbone.block_parameters(block) if parameter.ndim > 1 or not code_compat
            )
        elif block.name == STEM and not code_compat:
            _freeze(iter(backbone.block_parameters(block)))
    for name, pair in pairs.items():
        backbone.net.set_submodule(name, pair)
    model.backbone = routed = RoutedBackbone(backbone, router)
    return routed


def refuse_other_blocks(model: Embedder, probe: Tensor, strategy: str) -> None:
    """Passes `probe` through; raises :class:`UserError` on behalf of `strategy` if the blocks are not called with one tensor each."""
    routed = model.backbone if isinstance(model.backbone, RoutedBackbone) else None
    try:
        with torch.no_grad():
            if routed is not None:
                routed.both_branches = True
            model.eval()(probe[:2])
    except (TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{strategy} needs blocks that map one tensor to another, which this backbone's do not ({first_line(error)})"
        ) from None
    finally:
        if routed is not None:
            routed.both_branches, routed.decisions = False, None


def _freeze(parameters: Iterator[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(False)


def unroute(model: Embedder, tuned: Collection[bool]) -> None:
    """Makes a plain backbone of a routed one: each routed block is replaced by its tuned or its frozen branch."""
    backbone = model.backbone
    assert isinstance(backbone, RoutedBackbone)
    names = [block.name for block in backbone.body if isinstance(backbone.net.get_submodule(block.name), RoutedBlock)]
    for name, routed, chosen in zip(names, backbone.routed, tuned, strict=True):
        backbone.net.set_submodule(name, routed.tuned if chosen else routed.frozen)
    model.backbone = Backbone(backbone.net, backbone.blocks, *backbone.normalisation, backbone.feature_dim).to(
        backbone.mean.device
    )


@contextmanager
def recorded_decisions(model: Embedder) -> Iterator[list[Tensor]]:
    """Collects the decisions, bool (B, L), of every pass of `model`; nothing if it is not routed."""
    taken: list[Tensor] = []
    if not isinstance(model.backbone, RoutedBackbone):
        yield taken
        return

    def note(backbone: nn.Module, *_: object) -> None:
        assert isinstance(backbone, RoutedBackbone)
        assert backbone.decisions is not None
        taken.append(backbone.decisions.detach().cpu() > 0.5)

    handle = model.backbone.register_forward_hook(note)
    try:
        yield taken
    finally:
        handle.remove()
