"""Records made by hand, runs that cost nothing, and a run that takes a second."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retrieval_bench.config import RunConfig, flatten, nest
from retrieval_bench.experiments.experiment import Objective
from retrieval_bench.experiments.ray_tasks import SETTINGS
from retrieval_bench.experiments.search import validation_configs
from retrieval_bench.experiments.search_space import search_space
from retrieval_bench.experiments.strategy_search import StrategySearch
from retrieval_bench.experiments.workers import JobResult
from retrieval_bench.records import Record
from retrieval_bench.sections import DataConfig, ModelConfig, TrainConfig
from tests.experiments import calls
from tests.training.helpers import run_config

FLAGS = ["--dataset", "synthetic", "--backbone", "resnet10t", "--weights", "none", "--image-size", "32"]
FLAGS += ["--batch-size", "16"]
QUICK = RunConfig(
    strategy="frozen",
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
)
DIVERGES = QUICK.changed(
    strategy="standard", loss__loss="softmax", train__optimizer="sgd", train__lr=1e30, train__epochs=3
)
TOO_DEEP = QUICK.changed(strategy="last_k", options__last_k__k=99)
PLAIN = 100
"""Images that a plain run sees."""


@contextmanager
def small_ray(**options: Any) -> Iterator[Any]:
    """Ray with two cores, or as `options` say; ended afterwards."""
    import ray
    from ray import cloudpickle

    os.environ.update(SETTINGS)
    ray.shutdown()
    ray.init(**(options or {"num_cpus": 2, "include_dashboard": False}), log_to_driver=False, logging_level=40)
    cloudpickle.register_pickle_by_value(calls)  # Ray's processes cannot import it
    try:
        yield ray
    finally:
        ray.shutdown()


def record_of(run: RunConfig, recall: float, map_at_r: float = 0.5, images: int = 1000, **changes: Any) -> Record:
    metrics = {**{f"recall_at_{k}": recall for k in run.ks}, "map_at_r": map_at_r}
    cost = {"images_seen": images, "parameters": 2e6, "macs": 3e9, "train_seconds": 5.0, "total_seconds": 10.0}
    values = {
        "id": f"{run.strategy}-s{run.seed}",
        "seed": run.seed,
        "config_hash": "00000000",
        "config": nest(flatten(run)),
        "labels": {"strategy": run.strategy_label, "weights": run.model.weights},
        "data": {},
        "metrics": metrics,
        "cost": cost,
        "environment": {"device": "cpu: a processor"},
    }
    return Record(**values | changes)


class Answers(Executor):
    """A pool in this process that gives these answers in turn, or raises them, and then makes calls itself."""

    def __init__(self, *answers: Any):
        self.answers = list(answers)

    def submit(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, function: Any, /, *arguments: Any
    ) -> Future[Any]:
        future, answer = Future[Any](), self.answers.pop(0) if self.answers else function(*arguments)
        (future.set_exception if isinstance(answer, Exception) else future.set_result)(answer)
        return future


class FakeRuns:
    """Makes nothing and remembers what it was asked for: a record is a function of its configuration, best at a
    learning rate of 0.002.

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

    def __call__(self, configs: Sequence[RunConfig]) -> list[JobResult]:
        if self.stop_after is not None and len(self.rounds) >= self.stop_after:
            raise KeyboardInterrupt
        self.rounds.append(list(configs))
        return [self._result(config) for config in configs]

    def _result(self, config: RunConfig) -> JobResult:
        if self.fails(config):
            return JobResult(config, "", error="the loss became nan")
        score, images = 1 / (1 + abs(config.train.lr - 2e-3) * 1e3), self.images.get(config.strategy, PLAIN)
        return JobResult(config, "", record_of(config, score, score / 2, images))


def searches_of(
    folder: Path, budget: int, *strategies: str, objective: Objective = "recall_at_1"
) -> list[StrategySearch]:
    return [
        StrategySearch(config, search_space(config), folder / f"{config.strategy}.journal", objective, budget, PLAIN)
        for config in validation_configs(run_config(), strategies)
    ]
