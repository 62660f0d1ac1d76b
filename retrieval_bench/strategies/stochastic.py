"""Stochastic fine-tuning: a random half of the blocks is trained, the others stay frozen.

A baseline of SpotTune's table (Guo et al., CVPR 2019, arXiv 1811.08737), there with 50 % of ResNet-50's blocks. The
blocks are drawn once per run, from its seed, since the paper compares networks and not steps. The stem stays frozen;
what follows the last block is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Strategy, block_names, freeze_other_blocks
from retrieval_bench.strategies.space import Range, Space


class Stochastic(Strategy):
    """Trains a random share of the blocks, at least one. Raises :class:`UserError` for a backbone without blocks."""

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        share: float = 0.5
        """share of the blocks that are trained"""

    options: Options
    space: ClassVar[Space] = {"share": Range(0.1, 0.9)}

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        names = block_names(model, "stochastic")
        if not 0 < self.options.share <= 1:
            raise UserError(f"--stochastic.share {self.options.share}: must be above 0 and at most 1")
        drawn = torch.randperm(len(names))[: max(1, round(self.options.share * len(names)))]
        self._tuned = [names[index] for index in sorted(drawn.tolist())]
        freeze_other_blocks(model, self._tuned)
        return model

    def info(self) -> dict[str, Any]:
        return {"tuned_blocks": self._tuned}
