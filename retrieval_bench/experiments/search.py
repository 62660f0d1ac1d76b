"""Fair search: every strategy's options are chosen on validation classes, with the same number of trials and the same
compute. A search that was interrupted ends as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from retrieval_bench.config import RunConfig, RuntimeConfig, unflatten
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.experiment import Objective, Row, recorded_hashes, row_hashes
from retrieval_bench.experiments.rehearsal import rehearse
from retrieval_bench.experiments.search_space import search_space
from retrieval_bench.experiments.strategy_search import StrategySearch
from retrieval_bench.experiments.workers import JobResult
from retrieval_bench.files import locked
from retrieval_bench.identity import open_images, open_other_sets
from retrieval_bench.models.build import build_backbone
from retrieval_bench.plugins import name_of
from retrieval_bench.progress import followed_by, logger
from retrieval_bench.records import Record
from retrieval_bench.strategies import only_used


def validation_configs(
    base: RunConfig, strategies: Sequence[str], own: Mapping[str, Mapping[str, Any]] | None = None
) -> list[RunConfig]:
    """The first trial of each strategy: `base` on validation classes, with the choices of its `own`.

    Raises:
        UserError: a strategy twice or none, another split than ``zero_shot``, Recall@1 not measured.
    """
    if not strategies or len(set(strategies)) < len(strategies):
        raise UserError(f"strategies {' '.join(strategies)}: give at least one, each once")
    if base.data.split != "zero_shot":
        raise UserError(
            f"--split {base.data.split}: a search is scored on zero_shot_val and its choices are tested on zero_shot; "
            "leave it out"
        )
    if 1 not in base.ks:
        raise UserError(f"--k {' '.join(map(str, base.ks))}: choices are made by Recall@1, so 1 must be among them")
    base = base.changed(data__split="zero_shot_val", evaluation__also_test=())
    configs = [unflatten({"strategy": strategy, **(own or {}).get(strategy, {})}, base) for strategy in strategies]
    return [replace(config, options=only_used(config.strategy, config.options)) for config in configs]


def search_runtime(runtime: RuntimeConfig) -> RuntimeConfig:
    """Where trials are recorded: in a results folder of their own, ``<results>/search``, so that tables of results do
    not show them."""
    return replace(runtime, results=runtime.results / "search", keep=False, keep_new=False)


def plain_images(config: RunConfig, train_images: int) -> int:
    """Images that a run sees which makes one pass per epoch over so many."""
    size = config.train.batch_size
    return config.train.epochs * (max(1, train_images // size) * size if config.samples_per_class else train_images)


def open_searches(
    base: RunConfig,
    strategies: Sequence[str],
    trials: int,
    objective: Objective,
    runtime: RuntimeConfig,
    records: Sequence[Record] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[StrategySearch]:
    """A search per strategy, new or resumed, once the first trial of each has passed all checks that need no training.

    Args:
        base: what all trials share but for what is searched.
        strategies: one search for each.
        trials: for each, and the budget: images seen by so many plain runs.
        objective: what is maximised.
        runtime: where data and results are.
        records: of trials; if they are given, what they know takes the place of the data, and strategies without trials
            are left out.
        own: choices of single strategies in place of those of `base`; with them, strategies that the backbone cannot do
            are left out with a line.

    Raises:
        UserError: anything that cannot work.
    """
    if trials < 1:
        raise UserError(f"--trials {trials}: must be at least 1")
    configs = validation_configs(base, strategies, own)
    rows = [Row(config.strategy, config, optional=own is not None) for config in configs]
    folder = search_runtime(runtime).results
    if records is None:
        open_other_sets(base)
        rows = rehearse(rows, runtime)
        hashes = row_hashes(rows, runtime)
        train_images = len(open_images(rows[0].config.data, runtime.data_root)[1].train)
    else:
        hashes = recorded_hashes(rows, records)
        sizes = [record.data["train_images"] for record in records if record.config_hash in hashes.values()]
        if not sizes:
            raise UserError(f"{folder}: no trials of {', '.join(strategies)} to rebuild from")
        train_images, rows = sizes[0], [row for row in rows if hashes[row.name]]
    blocks = len(build_backbone(replace(base.model, weights="none"), base.data.image_size).body)
    spaces = {row.name: search_space(row.config, blocks) for row in rows}
    end = f"s{base.seed}-{resolve_device(runtime.device)}-{objective}.journal"
    paths = {row.name: folder / f"{base.data.dataset}-{name_of(row.name)}-{hashes[row.name]}-{end}" for row in rows}
    return [
        StrategySearch(
            row.config,
            spaces[row.name],
            paths[row.name],
            objective,
            trials,
            plain_images(row.config, train_images),
            base.evaluation.also_test,
        )
        for row in rows
    ]


def search(searches: Sequence[StrategySearch], run_all: Callable[[list[RunConfig]], list[JobResult]]) -> None:
    """Makes trials, one of each strategy per round, until every search has had its number or its compute, whichever
    comes first; other processes are kept from the same searches. Trials are written as Markdown, whatever ends them.

    Args:
        searches: the strategies.
        run_all: makes the runs of a round.
    """
    with ExitStack() as stack:
        for path in sorted(entry.path for entry in searches):
            stack.enter_context(locked(path, f"searching {path.stem}", "--results"))
        try:
            while waiting := [entry for entry in searches if entry.wants_more]:
                number = max(len(entry.trials) for entry in waiting) + 1
                logger.info(f"search: trial {number} of {waiting[0].budget}, {len(waiting)} strategies")
                rounds = max(entry.budget - len(entry.trials) for entry in waiting) - 1
                with followed_by(lambda seconds, rounds=rounds: rounds * seconds):
                    results = run_all([entry.ask() for entry in waiting])
                for entry, result in zip(waiting, results, strict=True):
                    entry.tell(result)
                    if result.record is None:
                        again = f"to try it again, remove {entry.path}"
                        logger.info(f"{entry.config.strategy}: a trial failed ({result.error}); {again}")
        finally:
            for entry in searches:
                if entry.trials:
                    entry.write()
