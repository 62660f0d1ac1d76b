"""Last-k fine-tuning: the last k blocks of the backbone are trained, everything before them stays frozen.

A baseline of SpotTune's table (Guo et al., CVPR 2019, arXiv 1811.08737), there with k = 1, 2, 3 residual blocks of
ResNet-50. What follows the last block inside the backbone (a final 1x1 convolution, a final norm) is trained with it;
it is not counted as a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, Range, Strategy, block_names, freeze_other_blocks, option


class LastK(Strategy):
    """Freezes the stem and all blocks but the last k. Raises :class:`UserError` for a backbone with fewer blocks."""

    look = Look("#fc6000", "v")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        k: int = option(3, "number of trained blocks at the end", low=1, search=Range(1, 8, blocks=True), shown=True)

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        names, k = block_names(model, "last_k"), self.options.k
        if k > len(names):
            raise UserError(
                f"--last-k.k {k}: the backbone has {len(names)} blocks; 1 to {len(names)} (none: --strategy frozen)"
            )
        self._tuned = names[len(names) - k :]
        freeze_other_blocks(model, self._tuned)
        return model

    def info(self) -> dict[str, Any]:
        return {"tuned_blocks": self._tuned}
