"""The state of a training: what checkpoints hold, what a rejected pass gives back, what was counted."""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from typing import Any

import torch

from retrieval_bench.losses import Criterion
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.seeding import random_states, set_random_states
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.held_out import Validation
from retrieval_bench.training.step import Step

COUNTS = "epoch epochs history images_seen seconds strategy_seconds skipped prefix_saved steps".split()
"""Attributes that go into checkpoints as they are."""
TRAINED = ("model", "criterion", "optimizer")
"""Those whose state a rejected pass gives back."""


class TrainingState(ABC):
    """The modules of a training, and what happened in it.

    Attributes:
        images_seen: training images passed through the network, rejected attempts included.
        prefix_saved: how many of them did not pass through its frozen prefix, since their features were kept, less
            those that passed through the prefix alone.
        seconds: wall time of all passes; `strategy_seconds` that of the strategy beside them.
        steps: of all passes.
        history: mean loss of each epoch's accepted pass.
        skipped: (epoch, step) of batches that were left out, from 0; those of rejected passes are taken back with them.
        resumed: the epochs after which the training was resumed from a checkpoint.
        precision: that of the passes; what ``auto`` means is decided by the main process before the first pass, and
            kept in checkpoints.
    """

    model: Embedder
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    step: Step
    validation: Validation | None = None

    def __init__(self, strategy: Strategy, precision: str):
        self.strategy, self.precision = strategy, precision
        self.epoch = self.images_seen = self.prefix_saved = self.steps = 0
        self.seconds = self.strategy_seconds = 0.0
        self.started = self._made = time.perf_counter()
        self.history: list[float] = []
        self.resumed: list[int] = []
        self.skipped: list[list[int]] = []

    @abstractmethod
    def rebuild(self) -> None:
        """Makes loss and optimiser anew for the model as it is now."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, after an epoch."""
        return {**self.pass_state(), "strategy": self.strategy.state_dict()}

    def pass_state(self) -> dict[str, Any]:
        """The same without what the strategy remembers, and with the state of the random numbers, which what follows a
        search draws from."""
        return {
            **({"validation": self.validation.state_dict()} if self.validation else {}),
            **{name: getattr(self, name) for name in COUNTS},
            **{name: getattr(self, name).state_dict() for name in TRAINED},
            "elapsed": time.perf_counter() - self.started,
            "resumed": self.resumed,
            "precision": self.precision,
            "random": random_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes where :meth:`state_dict` was taken, in a training that has just been made."""
        self.strategy.load_state_dict(state["strategy"], self.model)
        self.precision = state.get("precision", self.precision)  # older checkpoints are of a fixed one
        self.rebuild()
        self._load(state)

    def load_pass(self, state: dict[str, Any]) -> None:
        """Resumes where :meth:`pass_state` was taken, in a training that is about to make the next pass."""
        self.precision = self.step.precision = state["precision"]
        self._load(state)
        set_random_states(state["random"])

    def _load(self, state: dict[str, Any]) -> None:
        for name in TRAINED:
            getattr(self, name).load_state_dict(state[name])
        for name in COUNTS:
            setattr(self, name, state.get(name, getattr(self, name)))  # older checkpoints lack the newer ones
        if self.validation and "validation" in state:
            self.validation.load_state_dict(state["validation"])
        self.started = self._made - state["elapsed"]
        self.resumed = [*state["resumed"], len(self.history)]

    def snapshot(self) -> dict[str, Any]:
        states = {name: getattr(self, name).state_dict() for name in TRAINED}
        return copy.deepcopy({**states, "skipped": self.skipped})

    def restore(self, snapshot: dict[str, Any]) -> None:
        snapshot = copy.deepcopy(snapshot)
        self.skipped = snapshot["skipped"]
        for name in TRAINED:
            getattr(self, name).load_state_dict(snapshot[name])

    def lrs(self) -> dict[str, float]:
        return {group["name"]: group["initial_lr"] for group in self.optimizer.param_groups}

    def set_lrs(self, rates: dict[str, float]) -> None:
        groups = {group["name"]: group for group in self.optimizer.param_groups}
        for name, rate in rates.items():
            groups[name]["initial_lr"] = rate
