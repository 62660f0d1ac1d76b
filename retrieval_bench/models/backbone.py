"""A pretrained network as an ordered list of named blocks. Strategies work on these names and know no architecture."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STEM, TAIL = "stem", "tail"
RESNET = {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)\.(\d+)"}
SHORTCUTS = ("downsample", "shortcut")
"""Names of the modules that project a block's input past its main path."""


@dataclass(frozen=True)
class Block:
    """A unit that strategies freeze, tune, cut or copy.

    Attributes:
        name: the block's module path (``layer1.0``, ``blocks.3.2``), ``stem`` for what comes before the blocks, ``tail`` for what follows.
        owns: paths inside the network of the modules and single parameters that belong to it; whatever a strategy puts below them does too.
    """

    name: str
    owns: tuple[str, ...]

    @property
    def is_body(self) -> bool:
        """Whether this is one of the repeated blocks (a module of its own), not the stem or the tail."""
        return self.name not in (STEM, TAIL)


class Backbone(nn.Module):
    """A network that maps images to one pooled feature vector.

    Args:
        net: module from normalised float images (B, 3, H, W) to (B, D).
        blocks: its blocks in order; every parameter of `net` in exactly one.
        mean: per channel, of inputs in 0..1; belongs to the weights.
        std: per channel, likewise.
        feature_dim: D.
    """

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

    def block_parameters(self, block: Block) -> list[nn.Parameter]:
        """The parameters that `block` owns now, also after surgery: a parameter belongs to the block that owns its longest path prefix."""
        owner = {path: entry.name for entry in self.blocks for path in entry.owns}
        return [parameter for name, parameter in self.net.named_parameters() if _owner(name, owner) == block.name]

    @property
    def body(self) -> tuple[Block, ...]:
        """The repeated blocks in order, without stem and tail."""
        return tuple(block for block in self.blocks if block.is_body)

    def kernels(self, block: Block) -> dict[str, nn.Parameter]:
        """The weights of two or more dimensions (convolutions, matrices) on the block's main path that are trained, by their name in `net`.

        The projection of a shortcut, norms and biases are left out.
        """
        own = {id(parameter) for parameter in self.block_parameters(block)}
        trained = {
            name: parameter
            for name, parameter in self.net.named_parameters()
            if id(parameter) in own and parameter.requires_grad
        }

        def is_shortcut(name: str) -> bool:
            return name.startswith(f"{block.name}.") and bool(
                set(name.removeprefix(block.name).split(".")) & set(SHORTCUTS)
            )

        return {name: parameter for name, parameter in trained.items() if parameter.ndim > 1 and not is_shortcut(name)}


def _owner(parameter: str, owner: dict[str, str]) -> str | None:
    """Name of the block that owns a parameter, from the owner of each path."""
    parts = parameter.split(".")
    paths = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((owner[path] for path in paths if path in owner), None)


def name_blocks(net: nn.Module) -> tuple[Block, ...]:
    """The blocks of a timm network, read from its own ``group_matcher``; torchvision's ResNets are matched as timm's are, each
    convolution of its VGGs with its norm is a block.

    A timm group becomes the block that its pattern names, or else the module that holds all its parameters. Parameters before the first
    block are the stem; those of the last group that are not part of its block (a final convolution or norm) are the tail. A network
    whose matcher tells no blocks apart is all stem: it can be trained as a whole or not at all.
    """
    from timm.models import group_parameters

    if isinstance(features := getattr(net, "features", None), nn.Sequential) and not hasattr(net, "group_matcher"):
        return _vgg_blocks(features)
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
        path = _path(names, patterns)
        rest = _modules(name for name in names if not (path and name.startswith(f"{path}.")))
        if names is groups[-1]:
            tail, rest = rest, ()
        if path:
            blocks.append(Block(path, (path, *rest)))
        elif rest:
            blocks[-1] = Block(blocks[-1].name, blocks[-1].owns + rest)
    return (*blocks, Block(TAIL, tail)) if tail else tuple(blocks)


def _vgg_blocks(features: nn.Sequential) -> tuple[Block, ...]:
    places = [place for place, module in enumerate(features) if isinstance(module, nn.Conv2d)]
    names = [STEM, *(f"features.{place}" for place in places[1:])]
    return tuple(
        Block(name, (f"features.{place}", f"features.{place + 1}")) for name, place in zip(names, places, strict=True)
    )


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """The modules that hold the named parameters directly (a parameter of the network itself stands for itself), each once."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _path(names: list[str], patterns: list[str]) -> str:
    """The block that a group is about: what a pattern matches, or, without patterns, the innermost module with all its parameters."""
    matched = [match[0] for name in names for pattern in patterns if (match := re.match(pattern, name))]
    if matched or patterns:
        return matched[0] if matched else ""
    modules = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    return ".".join(parts[0] for parts in shared)
