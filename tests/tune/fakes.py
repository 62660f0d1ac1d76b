"""Runs that cost nothing: a record is a function of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.grid.carry_out import Outcome
from retrieval_bench.tune.journal import Search
from retrieval_bench.tune.search import validation_configs
from retrieval_bench.tune.spaces import Objective
from tests.training.helpers import run_config

PLAIN = 100
"""Images that a plain run sees."""


def score(config: RunConfig) -> float:
    """Best at a learning rate of 0.002."""
    return 1 / (1 + abs(config.train.lr - 2e-3) * 1e3)


def record_of(config: RunConfig, recall: float, map_at_r: float, images: int) -> dict[str, Any]:
    metrics = {**{f"recall_at_{k}": recall for k in config.ks}, "map_at_r": map_at_r}
    cost = {"images_seen": images, "parameters": 2e6, "macs": 3e9, "train_seconds": 5.0}
    return {"id": f"{config.strategy}-s{config.seed}", "seed": config.seed, "metrics": metrics, "cost": cost}


class Runs:
    """Carries out nothing and remembers what it was asked for.

    Args:
        images: what a run of a strategy sees; others see :data:`PLAIN`.
        fails: which configurations fail.
        stop_after: rounds after which Ctrl-C comes.
    """

    def __init__(
        self,
        images: dict[str, int] | None = None,
        fails: Callable[[RunConfig], bool] = lambda config: False,
        stop_after: int | None = None,
    ):
        self.images, self.fails, self.stop_after = images or {}, fails, stop_after
        self.rounds: list[list[RunConfig]] = []

    def __call__(self, configs: Sequence[RunConfig]) -> list[Outcome]:
        if self.stop_after is not None and len(self.rounds) >= self.stop_after:
            raise KeyboardInterrupt
        self.rounds.append(list(configs))
        return [self._outcome(config) for config in configs]

    def _outcome(self, config: RunConfig) -> Outcome:
        if self.fails(config):
            return Outcome(config, "", error="the loss became nan")
        return Outcome(
            config, "", record_of(config, score(config), score(config) / 2, self.images.get(config.strategy, PLAIN))
        )


def searches_of(folder: Path, *strategies: str, objective: Objective = "recall_at_1") -> list[Search]:
    configs = validation_configs(run_config(), strategies)
    return [Search(config, folder / f"{config.strategy}.journal", objective, PLAIN) for config in configs]
