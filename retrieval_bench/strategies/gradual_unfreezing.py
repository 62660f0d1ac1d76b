"""Gradual unfreezing: the last block is trained first, then with each epoch one more below it, at the end everything.

Howard and Ruder, ULMFiT (ACL 2018, arXiv 1801.06146), section 3.3: training all layers at once risks that what was
learned before is forgotten, so the last layer, which holds the least general knowledge, is unfrozen first and trained
for an epoch, then the next lower one with it, until all are trained to the end. A block that is not open yet is frozen
with its norms and their statistics. ULMFiT adds rates that fall towards the stem (a chain with ``layerwise_decay``) and
a rate that rises and falls once (``--schedule triangular --cycles 1``). `progressive` is another idea: networks of two
columns.

Deviations: one block after ``every`` epochs is the paper's; if the blocks are too many for the training, as many are
opened at a time as it takes for all to be open in the last ``every`` epochs. The paper's first epoch trains the new
classifier alone; here what follows the last block, embedding and loss are trained from the beginning, with the last
block (``lp_ft`` trains them alone). The stem counts as the lowest block.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrieval_bench.models.backbone import TAIL
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import EpochState, Look, Strategy, TrainOnce, block_names, option


class GradualUnfreezing(Strategy):
    """Opens the blocks from the last to the stem. Raises :class:`UserError` for a backbone without blocks."""

    look = Look("#18a860", "H")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        every: int = option(1, "epochs between openings", low=1)

        @property
        def epochs_needed(self) -> int:
            return self.every + 1

        @property
        def in_phases(self) -> bool:
            return True

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        block_names(model, "gradual_unfreezing")
        self._opened: dict[str, int] = {}
        return model

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        names = [block.name for block in state.model.backbone.blocks if block.name != TAIL]
        openings = -(-state.epochs // self.options.every)
        at_a_time = -(-len(names) // openings)
        count = min(len(names), at_a_time * (1 + state.epoch // self.options.every))
        tuned = names[len(names) - count :]
        self._opened = {name: self._opened.get(name, state.epoch) for name in tuned}
        train_only(state, [*tuned, TAIL])
        return train_once()

    def state_dict(self) -> dict[str, Any]:
        return {"opened": self._opened}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._opened = state["opened"]

    def info(self) -> dict[str, Any]:
        return {"opened_in_epoch": self._opened}


def train_only(state: EpochState, names: Collection[str]) -> None:
    """Of what the optimiser holds, freezes the blocks but those of these names, and unfreezes the rest. The optimiser
    passes over what has no gradient."""
    held = {parameter for group in state.optimizer.param_groups for parameter in group["params"]}
    for block in state.model.backbone.blocks:
        for parameter in state.model.backbone.block_parameters(block):
            parameter.requires_grad_(parameter in held and block.name in names)
