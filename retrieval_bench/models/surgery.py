"""Removing whole modules: blocks before training, batch norms (folded into convolutions) after it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import TAIL, Backbone, observe
from retrieval_bench.models.embedder import BatchNorm


@torch.no_grad()
def drop_blocks(backbone: Backbone, names: Collection[str], example_images: Tensor) -> int:
    """Removes the named blocks in place, with all that they own, and returns the size of the feature that is left.

    What follows the blocks (the tail) stays where it fits the last block that is left, and is removed too where it does
    not: an EfficientNet's final convolution is made for the width of its last block.

    Args:
        backbone: is changed, ``blocks`` too.
        names: of body blocks, at least one.
        example_images: uint8 (B, 3, H, W), passed through to see what fits.

    Raises:
        UserError: a block that stays needs the output of a dropped one; the backbone is unusable then.
    """
    problem = ""
    for leaving in (set(names), {TAIL}):
        going = [block for block in backbone.blocks if block.name in leaving]
        if not going:
            continue
        try:
            for path in (path for block in going for path in block.owns):
                _remove(backbone.net, path)
            backbone.blocks = tuple(block for block in backbone.blocks if block not in going)
            return backbone.eval()(example_images[:1]).shape[1]
        except Exception as error:  # networks that do not simply call block after block fail in ways of their own
            problem = first_line(error)
    raise UserError(
        f"without {', '.join(sorted(names))} the other blocks do not fit each other ({problem}): drop the last ones"
    )


def _remove(net: nn.Module, path: str) -> None:
    """Takes a module out of its sequence, or puts an identity in its place where it is called by name."""
    parent_path, _, name = path.rpartition(".")
    parent = net.get_submodule(parent_path)
    if name not in dict(parent.named_children()):
        return  # a parameter of the network itself, or a part of a module that is gone
    if isinstance(parent, nn.Sequential | nn.ModuleList):
        delattr(parent, name)  # the others keep their names
    else:
        setattr(parent, name, nn.Identity())


def fold_norms(backbone: Backbone, image_size: int) -> int:
    """Folds every batch norm that directly follows a convolution, in place; returns how many. Outputs stay the same.

    Which norm follows which convolution is read off one pass. Blocks that it does not reach, such as those of a routed
    network, stay.
    """
    producers: dict[int, tuple[str, Tensor]] = {}  # by the id of the output, which is kept so that no other gets its id
    pairs: list[tuple[str, str]] = []

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            producers[id(output)] = name, output
        elif id(inputs[0]) in producers:
            pairs.append((producers[id(inputs[0])][0], name))

    modules = {name: part for name, part in backbone.net.named_modules() if isinstance(part, nn.Conv2d | BatchNorm)}
    observe(backbone, image_size, modules, note)
    for conv_name, norm_name in pairs:
        conv: Any = modules[conv_name]
        norm: Any = modules[norm_name]
        backbone.net.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        activation = getattr(norm, "act", None)  # of timm's norms, which hold the activation after them
        backbone.net.set_submodule(norm_name, activation if isinstance(activation, nn.Module) else nn.Identity())
    return len(pairs)
