"""Rollback: train, put the higher blocks back to their pretrained weights, and train again, several times.

Ro, Choi, Jo, Heo, Lim and Choi, Backbone Cannot Be Trained at Once: Rolling Back to Pre-Trained Network for Person
Re-Identification (AAAI 2019, arXiv 1901.06140), so that the low blocks learn more. Four periods of equal length. The
first trains everything. Each later one keeps what was learned by the stem and the first 0, 1, 2... quarters of the
blocks (and by embedding and loss), rolls the other blocks back, and trains all, what was kept of the backbone at a
tenth of the rate.

Schedule of the authors' public code, ResNet-50: periods of 40 epochs; kept are the stem, then also stage 1, then also
stage 2; momentum starts at zero in each; rates fall to a tenth in the middle of each. Deviations: parts of equal
numbers of blocks instead of stages, so that any backbone will do; within the periods the rates follow ``--schedule``
over the whole training: ``--schedule warm_restarts --cycles 4`` starts anew in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import EpochState, Look, Range, Strategy, TrainOnce, block_names, option

KEPT_RATE = Range(0.01, 1.0, log=True)


class Rollback(Strategy):
    """Needs an epoch for each period. Raises :class:`UserError` for a backbone without blocks."""

    look = Look("#786054", "s")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        periods: int = option(4, "number of periods, the first without rollback", low=2)
        kept_rate: float = option(
            0.1, "factor on the learning rate of what is kept, after the first period", low=0, search=KEPT_RATE
        )

        @property
        def epochs_needed(self) -> int:
            return self.periods

        @property
        def in_phases(self) -> bool:
            return True

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        self._blocks = block_names(model, "rollback")
        self._rolled_back: list[dict[str, Any]] = []
        return model

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        if state.epoch == 0:
            backbone = state.model.backbone
            start = {**backbone.state_dict(), **backbone.start}
            self._start = {name: value.detach().clone() for name, value in start.items()}
            self._lrs = state.lrs()
        elif (period := self._period(state.epoch, state.epochs)) != self._period(state.epoch - 1, state.epochs):
            self._roll_back(state, (period - 1) * len(self._blocks) // self.options.periods)
        return train_once()

    def _period(self, epoch: int, epochs: int) -> int:
        return epoch * self.options.periods // epochs

    def _roll_back(self, state: EpochState, kept: int) -> None:
        """Puts all blocks but the first `kept` back to their start, with the optimiser's state of everything."""
        names, backbone = self._blocks[kept:], state.model.backbone
        owned = tuple(
            f"net.{path}." for block in backbone.blocks if block.name in (*names, "tail") for path in block.owns
        )
        now = backbone.state_dict()
        with torch.no_grad():
            for name, value in self._start.items():
                if f"{name}.".startswith(owned):
                    now[name].copy_(value)
        state.optimizer.state.clear()
        slow = {"stem", *self._blocks[:kept]}
        state.set_lrs({name: lr * (self.options.kept_rate if name in slow else 1) for name, lr in self._lrs.items()})
        self._rolled_back.append({"epoch": state.epoch, "rolled_back": names})

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "lrs": self._lrs, "rolled_back": self._rolled_back}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        device = next(model.parameters()).device
        self._start = {name: value.to(device) for name, value in state["start"].items()}
        self._lrs, self._rolled_back = state["lrs"], state["rolled_back"]

    def info(self) -> dict[str, Any]:
        return {"periods": self._rolled_back}
