"""Blocks are removed before training."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import TAIL, Backbone


@torch.no_grad()
def drop_blocks(backbone: Backbone, names: Collection[str], example_images: Tensor) -> int:
    """Removes the named body blocks in place, with all that they own, and returns the size of the feature that is left.

    What follows the blocks (the tail) stays where it fits the last block that is left, and is removed too where it does
    not: an EfficientNet's final convolution is made for the width of its last block. Two images of the shape of
    `example_images`, uint8 (B, 3, H, W), are passed through to see what fits. Raises :class:`UserError` if a block that
    stays needs the output of a dropped one, or if all images have one feature, as where a class token has lost the
    blocks that look at the image; the backbone is unusable then.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randint(256, (2, *example_images.shape[1:]), generator=generator, device="cpu")
    images = noise.to(example_images)
    problem, are_last = "", {block.name for block in backbone.body[-len(names) :]} == set(names)
    for leaving in (set(names), {TAIL}):
        going = [block for block in backbone.blocks if block.name in leaving]
        if not going:
            continue
        try:
            for path in (path for block in going for path in block.owns):
                _remove(backbone.net, path)
            backbone.blocks = tuple(block for block in backbone.blocks if block not in going)
            features = backbone.eval()(images)
            if features.ndim != 2:
                problem = f"what is left gives no vector but {tuple(features.shape[1:])}"
            elif not features.is_meta and (features[0] - features[1]).abs().max() <= 1e-6 * features.abs().max():
                problem = "what is left gives all images one vector"
            else:
                return features.shape[1]
        except Exception as error:  # networks that do not simply call block after block fail in ways of their own
            problem = first_line(error)
    way_out = "this backbone cannot be cut there" if are_last else "drop the last ones"
    raise UserError(f"without {', '.join(sorted(names))} the other blocks do not fit each other ({problem}): {way_out}")


def _remove(net: nn.Module, path: str) -> None:
    """Takes a module out of its sequence, or puts an identity in its place where it is called by name."""
    parent_path, _, name = path.rpartition(".")
    parent = net.get_submodule(parent_path)
    if name not in dict(parent.named_children()):
        return  # a parameter of the network itself, or a part of a module that is gone
    if isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        delattr(parent, name)  # the others keep their names
    else:
        setattr(parent, name, nn.Identity())
