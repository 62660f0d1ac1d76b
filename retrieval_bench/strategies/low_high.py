"""Low and high rates by hand: the lower half of the blocks is trained more slowly, the upper half faster.

The settings marked with a dagger, a double dagger and a star in the ablation of Ro and Choi, AutoLR (AAAI 2021, arXiv
2002.06048): lowering the low layers' rate, raising the high layers' rate, and both. The paper's factors are in none of
our sources; a fifth and five times are ours. The stem belongs to the lower half, the tail to the upper; of an odd
number of blocks the middle one is low. Embedding and loss keep the rates they have.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, ParameterGroup, Range, Strategy, option, scale_lrs

LOW = Range(0.05, 1.0, log=True)
HIGH = Range(1.0, 10.0, log=True)


class LowHigh(Strategy):
    """One learning rate for the lower half of the blocks, another for the upper half."""

    look = Look("#7860b4", "X")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        low: float = option(0.2, "factor on the rate of stem and lower half", low=0, search=LOW, shown=True)
        high: float = option(5.0, "factor on the rate of the upper half", low=0, search=HIGH, shown=True)

    options: Options

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        names = [block.name for block in model.backbone.body]
        half = -(-len(names) // 2)
        lower = dict.fromkeys(["stem", *names[:half]], self.options.low)
        upper = dict.fromkeys([*names[half:], "tail"], self.options.high)
        return scale_lrs(groups, lower | upper)
