"""Depth pruning: whole blocks leave a backbone, and its feature takes the width that is left."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import TAIL, Backbone


def drop_blocks(backbone: Backbone, names: Collection[str], probe: Tensor) -> int:
    """Removes the named blocks in place, with all that they own.

    What follows the blocks (the tail) stays where it fits the last block that is left, and leaves with them where it does not: an
    EfficientNet's final convolution is made for the width of its last block.

    Args:
        backbone: is changed, ``blocks`` too.
        names: of body blocks.
        probe: uint8 (B, 3, H, W), passed through to see what fits.

    Returns:
        The size of the feature that is left.

    Raises:
        UserError: a block that stays needs what a dropped one would have given; the backbone is of no use then.
    """
    reason: Exception | None = None
    for leaving in (set(names), {TAIL}):
        if not any(block.name in leaving for block in backbone.blocks):
            continue
        try:
            for block in backbone.blocks:
                if block.name in leaving:
                    _remove(backbone.net, block.owns)
            backbone.blocks = tuple(block for block in backbone.blocks if block.name not in leaving)
            return _feature_dim(backbone, probe)
        except (
            Exception
        ) as error:  # a network that is called in another way than block after block fails in ways of its own
            reason = error
    said = first_line(reason) if reason else "nothing was dropped"
    raise UserError(
        f"without {', '.join(sorted(names))} the other blocks do not fit each other ({said}): drop the last ones"
    )


def _remove(net: nn.Module, paths: tuple[str, ...]) -> None:
    """Takes modules out of `net`: out of their sequence, or by an identity where they are called by name."""
    for path in paths:
        parent_path, _, name = path.rpartition(".")
        parent = net.get_submodule(parent_path)
        if name not in dict(parent.named_children()):
            continue  # a parameter of the network itself, or a part of a module that is gone
        if isinstance(parent, nn.Sequential | nn.ModuleList):
            delattr(parent, name)  # the others keep their names
        else:
            setattr(parent, name, nn.Identity())


def _feature_dim(backbone: Backbone, probe: Tensor) -> int:
    backbone.eval()
    with torch.no_grad():
        return backbone(probe[:1]).shape[1]
