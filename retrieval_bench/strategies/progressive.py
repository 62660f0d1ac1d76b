"""Progressive networks: a frozen column of blocks, a new trainable one beside it, and lateral adapters from the first to the second.

Rusu et al., Progressive Neural Networks (arXiv 1606.04671), equation 2 for two columns, here over blocks::

    h1_l = frozen_l(h1_{l-1});   h2_l = new_l(h2_{l-1}) + U_l relu(V_l h1_l)

V_l and U_l are 1x1 convolutions to a quarter of the channels and back. A baseline of SpotTune's table; no more than these words is known
of it there. Deviations: in the paper the lateral path into layer l comes from layer l - 1 of the frozen column, and a nonlinearity follows
the sum; here it comes from block l, whose output has the same size, and blocks have their own nonlinearities. The new column starts as a
copy of the pretrained one and U_l at zero, so that training starts from the pretrained features (a column from random weights cannot be
learned from a few thousand images); no scalar before V_l, which is linear anyway; both columns share the frozen stem; what follows the
last block is trained. The cost is about that of two networks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_bench.strategies.base import Look, Strategy, block_names, freeze, option

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.embedder import Embedder


class Progressive(Strategy):
    """Raises :class:`UserError` for a backbone without blocks, or whose blocks do not give feature maps."""

    look = Look("#609060", "D")
    rebuilds_blocks = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        reduction: int = option(4, "an adapter has the channels of its block divided by this", low=1)

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        from retrieval_bench.models.columns import ColumnBlock, block_channels
        from retrieval_bench.models.routing import refuse_other_blocks

        backbone, names = model.backbone, block_names(model, "progressive")
        channels = block_channels(backbone, example_images)
        new_column = {name: copy.deepcopy(backbone.net.get_submodule(name)) for name in names}
        freeze(
            parameter
            for block in backbone.blocks
            if block.name != "tail"
            for parameter in backbone.block_parameters(block)
        )
        for name, new in new_column.items():
            frozen = backbone.net.get_submodule(name)
            width = max(1, channels[name] // self.options.reduction)
            column = ColumnBlock(frozen, new, channels[name], width, first=name == names[0], last=name == names[-1])
            backbone.net.set_submodule(name, column.to(example_images.device))
        refuse_other_blocks(model, example_images, "progressive")
        return model
