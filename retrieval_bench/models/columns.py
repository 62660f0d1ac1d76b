"""Two columns of blocks side by side, for progressive networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone


class ColumnBlock(nn.Module):
    """A block of both columns and the adapter from the frozen to the new one.

    Between blocks both columns travel as one batch, first the frozen one's rows, then the new one's.

    Args:
        frozen: block of the first column.
        new: block of the second column.
        channels: C of their outputs (B, C, H, W).
        width: channels inside the adapter.
        first: takes one input for both columns.
        last: gives the new column only.
    """

    def __init__(self, frozen: nn.Module, new: nn.Module, channels: int, width: int, first: bool, last: bool):
        super().__init__()
        self.frozen = frozen
        self.new = new
        expand = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(expand.weight)
        nn.init.zeros_(expand.bias)  # pyright: ignore[reportArgumentType]
        self.adapter = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), expand)
        self.first = first
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        old, new = (x, x) if self.first else x.unflatten(0, (2, -1)).unbind()
        old = self.frozen(old.detach())  # one batch holds both, so autograd would follow the frozen column too
        new = self.new(new) + self.adapter(old)
        return new if self.last else torch.cat([old, new])


@torch.no_grad()
def block_channels(backbone: Backbone, probe: Tensor) -> dict[str, int]:
    """Channels of each body block's output, by its name; raises :class:`UserError` where that is no feature map (B, C, H, W)."""
    channels: dict[str, int] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        widths = {layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)}
        if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[1] not in widths:
            raise UserError(
                "progressive needs convolutional blocks that give feature maps, such as those of ResNet and EfficientNet"
            )
        channels[name] = output.shape[1]

    handles = [
        backbone.net.get_submodule(block.name).register_forward_hook(partial(note, block.name))
        for block in backbone.body
    ]
    try:
        backbone.eval()(probe[:1])
    finally:
        for handle in handles:
            handle.remove()
    return channels
