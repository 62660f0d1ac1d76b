"""A pretrained network as an ordered list of named blocks; strategies use these names and know no architecture."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

STEM, TAIL = "stem", "tail"
RESNET = {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)\.(\d+)"}
SHORTCUTS = {"downsample", "shortcut"}
"""Names of the modules that project a block's input past its main path."""


@dataclass(frozen=True)
class Block:
    """A unit that strategies freeze, tune, drop or copy. `name` is its module path (``layer1.0``), ``stem`` for what
    comes before the blocks, ``tail`` for what follows them; it `owns` these paths of modules and single parameters,
    with all that a strategy puts below them."""

    name: str
    owns: tuple[str, ...]

    @property
    def is_body(self) -> bool:
        """Whether this is one of the repeated blocks (a module of its own), not the stem or the tail."""
        return self.name not in (STEM, TAIL)


class Backbone(nn.Module):
    """A network `net` from normalised float images (B, 3, H, W) to one pooled feature vector (B, `feature_dim`), its
    `blocks` in order, every parameter in exactly one, and `mean` and `std` per channel of inputs in 0..1, which belong
    to the weights."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        blocks: tuple[Block, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        feature_dim: int,
    ):
        super().__init__()
        self.net = net
        self.blocks = blocks
        self.feature_dim = feature_dim
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, D) features of uint8 images 0..255 or float images 0..1, (B, 3, H, W)."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        return self.net((scaled - self.mean) / self.std)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std per channel."""
        return tuple(self.mean.flatten().tolist()), tuple(self.std.flatten().tolist())

    @property
    def body(self) -> tuple[Block, ...]:
        """The repeated blocks in order, without stem and tail."""
        return tuple(block for block in self.blocks if block.is_body)

    def _named_parameters(self, block: Block) -> dict[str, nn.Parameter]:
        """A parameter belongs to the block that owns the longest prefix of its path."""
        owner = {path: entry.name for entry in self.blocks for path in entry.owns}
        owned = {}
        for name, parameter in self.net.named_parameters():
            path = name
            while path and path not in owner:
                path = path.rpartition(".")[0]
            if owner.get(path) == block.name:
                owned[name] = parameter
        return owned

    def block_parameters(self, block: Block) -> list[nn.Parameter]:
        """The parameters that `block` owns now, also after a strategy has changed the network."""
        return list(self._named_parameters(block).values())

    def kernels(self, block: Block) -> dict[str, nn.Parameter]:
        """The trainable convolutions and matrices on the block's main path, by their name in `net`: no norms, biases,
        or projections of a shortcut.
        """
        return {
            name: parameter
            for name, parameter in self._named_parameters(block).items()
            if parameter.requires_grad
            and parameter.ndim > 1
            and not (name.startswith(f"{block.name}.") and SHORTCUTS & set(name.removeprefix(block.name).split(".")))
        }


@torch.no_grad()
def observe(
    backbone: Backbone,
    image_size: int,
    modules: Mapping[str, nn.Module],
    note: Callable[[str, nn.Module, tuple[Any, ...], Any], None],
) -> None:
    """Passes a black image through; calls ``note(name, module, inputs, output)`` after each of `modules`."""
    handles = [module.register_forward_hook(partial(note, name)) for name, module in modules.items()]
    try:
        backbone.eval()(torch.zeros(1, 3, image_size, image_size, device=backbone.mean.device))
    finally:
        for handle in handles:
            handle.remove()


def name_blocks(net: nn.Module) -> tuple[Block, ...]:
    """The blocks of a timm network, read from its own ``group_matcher``. torchvision's ResNets are matched like timm's;
    in its VGGs each convolution with its norm is a block.

    A timm group becomes the block that its pattern matches, or else the module that holds all its parameters.
    Parameters before the first block are the stem; those of the last group outside its block (a final convolution or
    norm) are the tail. A network whose matcher names no blocks is all stem: it can be trained as a whole or not at all.
    """
    features = getattr(net, "features", None)
    if isinstance(features, nn.Sequential) and not hasattr(net, "group_matcher"):  # torchvision's VGG
        positions = [position for position, module in enumerate(features) if isinstance(module, nn.Conv2d)]
        return tuple(
            Block(f"features.{position}" if number else STEM, (f"features.{position}", f"features.{position + 1}"))
            for number, position in enumerate(positions)
        )
    matcher: Any = net.group_matcher(coarse=False) if hasattr(net, "group_matcher") else RESNET  # pyright: ignore[reportCallIssue]
    patterns: list[str] = []
    if not callable(matcher):
        spec = matcher.get("blocks")
        if spec is None:
            return (Block(STEM, _modules(name for name, _ in net.named_parameters())),)
        patterns = [spec] if isinstance(spec, str) else [pattern for pattern, order in spec if order is None]
    stem, *groups = group_parameters(net, matcher).values()
    blocks, tail = [Block(STEM, _modules(stem))], ()
    for names in groups:
        path = _block_path(names, patterns)
        rest = _modules(name for name in names if not (path and name.startswith(f"{path}.")))
        if names is groups[-1]:
            tail, rest = rest, ()
        if path:
            blocks.append(Block(path, (path, *rest)))
        elif rest:
            blocks[-1] = Block(blocks[-1].name, blocks[-1].owns + rest)
    return (*blocks, Block(TAIL, tail)) if tail else tuple(blocks)


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """The modules that hold the named parameters, each once; the network's own parameters stand for themselves."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _block_path(names: list[str], patterns: list[str]) -> str:
    """What a pattern matches in the names, or ""; without patterns, the innermost module with all of them."""
    if patterns:
        return next((match[0] for name in names for pattern in patterns if (match := re.match(pattern, name))), "")
    modules = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    return ".".join(parts[0] for parts in shared)
