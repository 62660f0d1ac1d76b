"""The search of several strategies at once: one trial of each per round, so that many can be made at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.evaluation.metrics import check_recall_at_1
from retrieval_bench.files import check_writable
from retrieval_bench.progress import logger
from retrieval_bench.strategies import only_used
from retrieval_bench.tune.journal import Search
from retrieval_bench.tune.spaces import Objective

if TYPE_CHECKING:
    from retrieval_bench.grid.carry_out import Outcome

CarryOut = Callable[[Sequence[RunConfig]], "list[Outcome]"]
"""Makes and records runs; outcomes in their order."""


def validation_configs(base: RunConfig, strategies: Sequence[str]) -> list[RunConfig]:
    """The first trial of each strategy: `base` on validation classes.

    Raises:
        UserError: a strategy twice or none, another split than ``zero_shot``, Recall@1 not measured.
    """
    if not strategies or len(set(strategies)) < len(strategies):
        raise UserError(f"strategies {' '.join(strategies)}: give at least one, each once")
    if base.data.split != "zero_shot":
        raise UserError(
            f"--split {base.data.split}: a search is scored on zero_shot_val and its choices are tested on zero_shot; leave it out"
        )
    check_recall_at_1(base.ks)
    data = replace(base.data, split="zero_shot_val")
    return [
        replace(base, data=data, strategy=strategy, options=only_used(strategy, base.options))
        for strategy in strategies
    ]


def search_machine(machine: RuntimeConfig) -> RuntimeConfig:
    """Where trials are recorded: in a results folder of their own, ``<results>/search``, so that tables of results do not show them."""
    return replace(machine, results=machine.results / "search", keep=False)


def open_searches(
    base: RunConfig, strategies: Sequence[str], objective: Objective, machine: RuntimeConfig
) -> list[Search]:
    """A search per strategy, new or gone on with, once the first trial of each has passed all checks that need no training.

    Raises:
        UserError: anything that cannot work.
    """
    from retrieval_bench.experiments.study import Row
    from retrieval_bench.experiments.study_report import rehearse
    from retrieval_bench.models.build import build_backbone

    configs = validation_configs(base, strategies)
    hashes, _ = rehearse([Row(config.strategy, config) for config in configs], machine)
    images = plain_images(configs[0], machine.data_root)
    kind = resolve_device(machine.device)
    names = [
        f"{base.data.dataset}-{config.strategy}-{hashes[config.strategy]}-s{base.seed}-{kind}-{objective}"
        for config in configs
    ]
    paths = [machine.results / "search" / f"{name}.journal" for name in names]
    blocks = len(build_backbone(replace(base.model, weights="none"), base.data.image_size).body)
    return [Search(config, path, objective, images, blocks) for config, path in zip(configs, paths, strict=True)]


def check_trials(trials: int) -> None:
    """Raises :class:`UserError` for fewer than one trial."""
    if trials < 1:
        raise UserError(f"--trials {trials}: must be at least 1")


def plain_images(config: RunConfig, data_root: Path | None) -> int:
    """Images that one pass per epoch sees."""
    data = config.data
    table, split = open_dataset(data.dataset, data_root, data.split, data.fold, data.folds, data.classes)
    sampler = BatchSampler(split.train_labels(table.labels), config.train.batch_size, config.samples_per_class)
    return config.train.epochs * sum(map(len, sampler))


def search(searches: Sequence[Search], trials: int, carry_out: CarryOut) -> None:
    """Makes trials until every search has had its number or its compute, whichever comes first.

    Args:
        searches: the strategies.
        trials: for each, and the budget: images seen by so many plain runs.
        carry_out: makes the runs of a round.

    Raises:
        UserError: fewer than one trial.
    """
    check_trials(trials)
    while waiting := [entry for entry in searches if entry.wants_more(trials)]:
        configs = [entry.ask() for entry in waiting]
        logger.info(
            f"search: trial {max(len(entry.trials) for entry in waiting) + 1} of {trials}, {len(waiting)} strategies"
        )
        for entry, outcome in zip(waiting, carry_out(configs), strict=True):
            entry.tell(outcome.config, outcome.record, outcome.error or "")
            if outcome.record is None:
                logger.info(
                    f"{entry.config.strategy}: a trial failed ({outcome.error}); to try it again, remove {entry.path}"
                )


def in_turn(configs: Sequence[RunConfig], machine: RuntimeConfig) -> list[Outcome]:
    """Makes the runs one after the other in this process; one that fails does not stop the others."""
    from retrieval_bench.grid.carry_out import Outcome
    from retrieval_bench.run import run

    check_writable(machine.results)
    outcomes = []
    for config in configs:
        try:
            record = run(config, machine)
            outcomes.append(Outcome(config, record["id"], record))
        except Exception as error:  # as in a process of its own, where anything that goes wrong is one failed trial
            outcomes.append(
                Outcome(config, "", error=str(error) if isinstance(error, UserError) else first_line(error))
            )
    return outcomes
