"""Stochastic fine-tuning: a random half of the blocks is trained, the others stay frozen.

A baseline of SpotTune's table (Guo et al., CVPR 2019, arXiv 1811.08737), there with 50 % of ResNet-50's blocks. The blocks are drawn once
per run, from its seed, since the paper compares networks and not steps. The stem stays frozen; what follows the last block is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import Strategy, block_names, freeze_other_blocks
from retrieval_bench.strategies.space import Range, Space

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.embedder import Embedder


class Stochastic(Strategy):
    """Trains a random share of the blocks, at least one. Raises :class:`UserError` for another share or a backbone without blocks."""

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        share: float = 0.5
        """share of the blocks that are trained"""

    options: Options
    space: ClassVar[Space] = {"share": Range(0.1, 0.9)}

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        import torch

        names = block_names(model, "stochastic")
        if not 0 < self.options.share <= 1:
            raise UserError(f"--stochastic.share {self.options.share}: must be above 0 and at most 1")
        count = max(1, round(self.options.share * len(names)))
        chosen = set(torch.randperm(len(names))[:count].tolist())
        self._tuned = [name for place, name in enumerate(names) if place in chosen]
        freeze_other_blocks(model, self._tuned)
        return model

    def info(self) -> dict[str, Any]:
        return {"tuned_blocks": self._tuned}
