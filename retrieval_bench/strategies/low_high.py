"""Low and high rates by hand: the lower half of the blocks is trained more slowly, the upper half faster.

The settings marked with a dagger, a double dagger and a star in the ablation of Ro and Choi, AutoLR (AAAI 2021, arXiv 2002.06048):
lowering the low layers' rate, raising the high layers' rate, and both. The paper's factors are in none of our sources; a fifth and five
times are ours. The stem belongs to the lower half, the tail to the upper; of an odd number of blocks the middle one is low. Embedding and
loss keep the rates they have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from retrieval_bench.strategies.base import Look, ParameterGroup, Range, Strategy, option, scale_rates

if TYPE_CHECKING:
    from retrieval_bench.models.embedder import Embedder


class LowHigh(Strategy):
    """One rate for the lower half of the blocks, another for the upper half. Raises :class:`UserError` for negative factors."""

    look = Look("#7860b4", "X")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        low: float = option(
            0.2,
            "factor on the learning rate of stem and lower half",
            low=0,
            search=Range(0.05, 1.0, log=True),
            shown=True,
        )
        high: float = option(
            5.0, "factor on the learning rate of the upper half", low=0, search=Range(1.0, 10.0, log=True), shown=True
        )

    options: Options

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        low, high = self.options.low, self.options.high
        names = [block.name for block in model.backbone.body]
        half = -(-len(names) // 2)
        return scale_rates(
            groups, {"stem": low, "tail": high, **dict.fromkeys(names[:half], low), **dict.fromkeys(names[half:], high)}
        )
