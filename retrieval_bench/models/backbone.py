"""A pretrained network as an ordered list of named blocks; strategies use these names and know no architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from retrieval_bench.errors import UserError

STEM, TAIL = "stem", "tail"
RESNET = {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)\.(\d+)"}
SERIES = {"blocks": r"^blocks\.(\d+)"}
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
    to the weights. `start` is the state that strategies hold to or go back to, where a part of a chain has trained
    before them; empty, it is the state that they find."""

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
        self.start: Mapping[str, Tensor] = {}
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

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Whether blocks are computed again in the backward pass. Raises :class:`UserError` where they cannot be."""
        try:
            self.net.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]
        except (AttributeError, AssertionError):
            raise UserError("--grad-checkpointing: this backbone has none; most of timm's networks have") from None

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
    """The blocks of a network in the order of its pass: one for each module of the series that timm's ``group_matcher``
    names. Without one, the modules of its ``blocks`` (a Sequential or ModuleList) are the blocks, or those that are
    called as in torchvision's ResNets; in a VGG each convolution with its norm is a block.

    Other parameters belong to the block of their timm group or to the one before; what comes before the first block is
    the stem, what follows the last one the tail (a final convolution or norm). Modules that timm's groups leave out are
    the stem if the network registers them before the blocks, such as a table of positions that all blocks use. A
    network whose matcher names no series is all stem: it can be trained as a whole or not at all.
    """
    order = {name: number for number, (name, _) in enumerate(net.named_parameters())}
    features = getattr(net, "features", None)
    if isinstance(features, nn.Sequential) and not any(list(part.children()) for part in features):
        return _vgg_blocks(features, list(order))
    usual = SERIES if isinstance(getattr(net, "blocks", None), nn.Sequential | nn.ModuleList) else RESNET
    matcher: Any = net.group_matcher(coarse=False) if hasattr(net, "group_matcher") else usual  # pyright: ignore[reportCallIssue]
    groups = list(group_parameters(net, matcher).values())
    matched = {} if callable(matcher) else _matched(order, matcher)
    if callable(matcher):
        series = [[], *map(_common_modules, groups[1:])]
    else:
        series = [list(dict.fromkeys(path for name in names if (path := matched.get(name)))) for names in groups]
    starts = {path: min(order[name] for name in order if name.startswith(f"{path}.")) for path in chain(*series)}
    last = max((number for number, paths in enumerate(series) if paths), default=len(groups))
    stem, tail, owned = [], [], {path: [path] for path in starts}
    before: list[str] = []
    for number, (names, paths) in enumerate(zip(groups, series, strict=True)):
        for name in names:
            if name.startswith(tuple(f"{path}." for path in paths)):
                continue
            is_early = name not in matched and "." in name and order[name] < min(starts.values(), default=0)
            if is_early or not (paths or before):
                stem.append(name)
            elif number > last or (number == last and order[name] > starts[paths[0]]):
                tail.append(name)
            else:
                owned[(paths or before)[0]] += _modules([name])
        before = paths[-1:] or before
    if any(len(paths) > 1 for paths in series):  # timm counts two series at once
        owned = dict(sorted(owned.items(), key=lambda entry: starts[entry[0]]))
    body = [Block(path, tuple(dict.fromkeys(paths))) for path, paths in owned.items()]
    return (Block(STEM, _modules(stem)), *body, *_tail(tail))


def _vgg_blocks(features: nn.Sequential, names: list[str]) -> tuple[Block, ...]:
    positions = [position for position, module in enumerate(features) if isinstance(module, nn.Conv2d)]
    blocks = [
        Block(f"features.{position}" if number else STEM, (f"features.{position}", f"features.{position + 1}"))
        for number, position in enumerate(positions)
    ]
    return (*blocks, *_tail([name for name in names if not name.startswith("features.")]))


def _tail(names: list[str]) -> list[Block]:
    return [Block(TAIL, _modules(names))] if names else []


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """The modules that hold the named parameters, each once; the network's own parameters stand for themselves."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] or name for name in names))


def _matched(names: Iterable[str], matcher: Mapping[str, Any]) -> dict[str, str]:
    """The names that a pattern matches, each with its module of a series, or with "" if the pattern counts no modules
    or gives them another's place."""
    specs = [[(spec, None)] if isinstance(spec, str) else spec for spec in matcher.values() if spec]
    patterns = [(re.compile(pattern), order) for spec in specs for pattern, order in spec]
    matched = {}
    for name in names:
        for pattern, order in patterns:
            if match := pattern.match(name):
                matched[name] = match[0] if pattern.groups and order is None else ""
                break
    return matched


def _common_modules(names: list[str]) -> list[str]:
    """The innermost module that holds all names; if there is none, the numbered ones at the top that hold some."""
    modules = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
    common = ".".join(parts[0] for parts in shared)
    numbered = [match[0] for name in names if (match := re.match(r"\w+\.\d+(?=\.)", name))]
    return [common] if common else list(dict.fromkeys(numbered))
