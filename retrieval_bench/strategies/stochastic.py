"""Stochastic fine-tuning: a random half of the blocks is trained, the others stay frozen.

A baseline of SpotTune's table (Guo et al., CVPR 2019, arXiv 1811.08737), there with 50 % of ResNet-50's blocks. The
blocks are drawn once per run, from its seed, since the paper compares networks and not steps. The stem stays frozen;
what follows the last block is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, Range, Strategy, block_names, freeze_other_blocks, option


class Stochastic(Strategy):
    """Trains a random share of the blocks, at least one. Raises :class:`UserError` for a backbone without blocks."""

    look = Look("#c03cd8", "v")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        share: float = option(0.5, "share of the blocks that are trained", above=0, high=1, search=Range(0.1, 0.9))

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        names = block_names(model, "stochastic")
        drawn = torch.randperm(len(names))[: max(1, round(self.options.share * len(names)))]
        self._tuned = [names[index] for index in sorted(drawn.tolist())]
        freeze_other_blocks(model, self._tuned)
        return model

    def info(self) -> dict[str, Any]:
        return {"tuned_blocks": self._tuned}
