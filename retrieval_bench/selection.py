"""Choices that a strategy leaves open, made on validation classes inside the training classes, never on the test classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.metrics import check_recall_at_1
from retrieval_bench.progress import logger
from retrieval_bench.strategies import STRATEGIES, split_names

COUNTED = ("images_seen", "train_seconds", "test_seconds", "total_seconds")


@dataclass(frozen=True)
class Choice:
    """A configuration with nothing left open, and what it took to get there.

    Attributes:
        config: the configuration to train and test.
        facts: per candidate its Recall@1 on the validation classes and the id of its record; which one was chosen. Empty without a choice.
        cost: what all candidates cost (images seen, seconds), which counts as cost of the run.
    """

    config: RunConfig
    facts: dict[str, Any] = field(default_factory=dict)
    cost: Counter[str] = field(default_factory=Counter)


def open_choices(config: RunConfig) -> dict[str, list[Any]]:
    """The candidates of each strategy whose options leave something open, by the strategy's name, preferred ones first.

    Raises:
        UserError: something is open, but the split is another one than ``zero_shot``, or Recall@1 is not measured.
    """
    found = {name: STRATEGIES[name].candidates(getattr(config.options, name)) for name in split_names(config.strategy)}
    found = {name: candidates for name, candidates in found.items() if candidates != [getattr(config.options, name)]}
    if found and config.data.split != "zero_shot":
        raise UserError(
            f"{config.strategy_label} chooses on the zero_shot_val split, for --split zero_shot only, not {config.data.split}"
        )
    if found:
        check_recall_at_1(config.ks)
    return found


def choose(config: RunConfig, run: Callable[[RunConfig], dict[str, Any]]) -> Choice:
    """Runs every candidate of the strategy's options on the ``zero_shot_val`` split; the best Recall@1 wins, of equal ones the first.

    Args:
        config: a configuration that may leave options of its strategies open (``Strategy.candidates``).
        run: trains, evaluates and records one configuration; a candidate that has a record costs no time.

    Raises:
        UserError: see :func:`open_choices`.
    """
    choice = Choice(config)
    for name, candidates in open_choices(config).items():
        logger.info(f"{config.strategy_label}: {len(candidates)} candidates on the validation classes")
        open_ = choice.config
        trials = [replace(open_, options=replace(open_.options, **{name: candidate})) for candidate in candidates]
        records = [run(replace(trial, data=replace(trial.data, split="zero_shot_val"))) for trial in trials]
        recalls = [record["metrics"]["recall_at_1"] for record in records]
        best = recalls.index(max(recalls))
        choice = Choice(
            trials[best],
            {
                **choice.facts,
                name: {
                    "chosen": trials[best].strategy_label,
                    "validation_recall_at_1": {
                        trial.strategy_label: recall for trial, recall in zip(trials, recalls, strict=True)
                    },
                    "records": [record["id"] for record in records],
                },
            },
            sum((Counter({key: record["cost"][key] for key in COUNTED}) for record in records), choice.cost),
        )
    return choice
