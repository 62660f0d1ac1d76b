"""Progressive networks: a frozen column of blocks, a new trainable one beside it, and adapters from first to second.

Rusu et al., Progressive Neural Networks (arXiv 1606.04671), equation 2 for two columns, here over blocks::

    h1_l = frozen_l(h1_{l-1});   h2_l = new_l(h2_{l-1}) + U_l relu(V_l h1_l)

V_l and U_l are 1x1 convolutions to a quarter of the channels and back. A baseline of SpotTune's table, which says no
more about it than its name. Deviations: in the paper the lateral path into layer l comes from layer l - 1 of the frozen
column, and a nonlinearity follows the sum; here it comes from block l, whose output has the same size, and blocks have
their own nonlinearities. The new column starts as a copy of the pretrained one and U_l at zero, so that training starts
from the pretrained features (a column from random weights cannot be learned from a few thousand images); no scalar
before V_l, which is linear anyway; both columns share the frozen stem; what follows the last block is trained. The cost
is about that of two networks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import observe
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import refuse_other_blocks
from retrieval_bench.strategies.base import Look, Strategy, block_names, freeze_other_blocks, option


class Progressive(Strategy):
    """Raises :class:`UserError` for a backbone without blocks, or whose blocks do not give feature maps."""

    rebuilds_blocks = True
    look = Look("#609060", "D")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        reduction: int = option(4, "an adapter has the channels of its block divided by this", low=1)

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        backbone, names = model.backbone, block_names(model, "progressive")
        frozen = {name: backbone.net.get_submodule(name) for name in names}
        channels: dict[str, int] = {}

        def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
            widths = {layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)}
            if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[1] not in widths:
                raise UserError(
                    "progressive needs convolutional blocks that give feature maps, such as ResNet's and EfficientNet's"
                )
            channels[name] = output.shape[1]

        observe(backbone, example_images.shape[-1], frozen, note)
        new = copy.deepcopy(frozen)
        freeze_other_blocks(model, ())
        for name in names:
            width = max(1, channels[name] // self.options.reduction)
            is_first, is_last = name == names[0], name == names[-1]
            column = ColumnBlock(frozen[name], new[name], channels[name], width, is_first, is_last)
            backbone.net.set_submodule(name, column.to(example_images.device))
        refuse_other_blocks(model, example_images, "progressive")
        return model


class ColumnBlock(nn.Module):
    """A block of both columns, whose outputs have `channels` channels, and the adapter of `width` channels from the
    frozen to the new one.

    Between blocks both columns travel as one batch, first the frozen one's rows, then the new one's: the first block
    takes one input for both, the last gives the new column only.
    """

    def __init__(self, frozen: nn.Module, new: nn.Module, channels: int, width: int, is_first: bool, is_last: bool):
        super().__init__()
        self.frozen = frozen
        self.new = new
        expand = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(expand.weight)
        nn.init.zeros_(expand.bias)  # pyright: ignore[reportArgumentType]
        self.adapter = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), expand)
        self.is_first = is_first
        self.is_last = is_last

    def forward(self, x: Tensor) -> Tensor:
        old, new = (x, x) if self.is_first else x.unflatten(0, (2, -1)).unbind()
        old = self.frozen(old.detach())  # one batch holds both, so autograd would follow the frozen column too
        new = self.new(new) + self.adapter(old)
        return new if self.is_last else torch.cat([old, new])
