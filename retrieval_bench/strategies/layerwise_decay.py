"""Layer-wise decay: each block is trained more slowly than the one above it, by a fixed factor.

Discriminative fine-tuning of Howard and Ruder, ULMFiT (ACL 2018, arXiv 1801.06146), in the form that later transformer
recipes use: block k of K has the rate ``lr * decay^(K - k)``, the stem ``lr * decay^K``. ULMFiT's own factor is 1 /
2.6; the default 0.8 is one of ELECTRA's (Clark et al., ICLR 2020), milder, since convolutional networks have more
blocks. Tail, embedding and loss keep the full rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, ParameterGroup, Range, Strategy, option, scale_lrs


class LayerwiseDecay(Strategy):
    """Learning rates that fall geometrically from the last block to the stem."""

    look = Look("#9060fc", "p")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        decay: float = option(
            0.8, "a block's learning rate as a share of the next block's", above=0, search=Range(0.5, 1.0), shown=True
        )

    options: Options

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        blocks = [block.name for block in model.backbone.body]
        factors = {name: self.options.decay**below for below, name in enumerate(["stem", *blocks][::-1])}
        return scale_lrs(groups, factors)
