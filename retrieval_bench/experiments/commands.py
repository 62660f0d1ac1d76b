"""The commands that make many runs: ``experiment``, for which ``bench``, ``study`` and ``reality-check`` are other
words; and ``tune``, the search alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import tyro

from retrieval_bench.answer import print_answers
from retrieval_bench.config import Flat, RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.experiments.experiment import (
    Experiment,
    Objective,
    Profile,
    Records,
    Row,
    changed_words,
    recorded_hashes,
    records_of,
    row_hashes,
    runs_of,
)
from retrieval_bench.experiments.plan import print_plan
from retrieval_bench.experiments.reality_check import search_note, searched_rows
from retrieval_bench.experiments.registry import EXPERIMENTS
from retrieval_bench.experiments.rehearsal import able_runs, hidden_flags, refuse_idle_flags
from retrieval_bench.experiments.search import open_searches, search, search_runtime
from retrieval_bench.experiments.strategy_search import StrategySearch
from retrieval_bench.experiments.table import write_experiment
from retrieval_bench.experiments.workers import JobResult, Workers, run_all
from retrieval_bench.leaderboard import leaderboard, print_table, write_tables
from retrieval_bench.parsing import ask, choose, split_values
from retrieval_bench.progress import is_main_process, logger
from retrieval_bench.records import ResultsFolder
from retrieval_bench.strategies import STRATEGIES, refuse_unused_options


@dataclass(frozen=True)
class ManyRuns:
    """Where and by what runs are made."""

    base: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    runtime: Annotated[RuntimeConfig, Flat] = field(default_factory=RuntimeConfig)
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)

    @property
    def results(self) -> ResultsFolder:
        return ResultsFolder(self.runtime.results)

    def make(
        self,
        configs: Sequence[RunConfig],
        rows: Sequence[Row],
        seeds: Collection[int],
        show: Callable[[Records], object],
        isolate: bool = False,
        rebuild: bool = False,
    ) -> int:
        """Makes the runs that have no record, and shows the records of the rows with these seeds, whatever ends the
        runs; with `rebuild` nothing is run, and records count without data and weight files.

        Returns: The exit code: 1 if any run failed.
        """
        runtime = self.workers.settle(self.runtime)
        hashes = recorded_hashes(rows, self.results.read_records()) if rebuild else row_hashes(rows, runtime)
        if rebuild and not any(hashes.values()):
            raise UserError(f"{self.results.runs}: no records to rebuild the table from")
        made: list[JobResult] = []
        try:
            made = [] if rebuild else run_all(configs, self.runtime, self.workers, isolate)
        finally:
            records = [record for record in self.results.read_records() if record.kind == runtime.device]
            if is_main_process():
                show(records_of(hashes, [record for record in records if record.seed in seeds]))
        failed = [result for result in made if result.error is not None]
        logger.info(f"{len(made)} runs: {len(made) - len(failed)} recorded, {len(failed)} failed")
        for result in failed:
            log = self.results.log(result.id)
            logger.info(f"failed: {result.id}: {result.error}{f' ({log})' if log.exists() else ''}")
        return 1 if failed else 0

    def search(
        self,
        base: RunConfig,
        strategies: Sequence[str],
        trials: int,
        objective: Objective,
        rebuild: bool = False,
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[StrategySearch]:
        """The searches of the strategies, with all their trials; with `rebuild`, those that are recorded. With `own`
        choices of strategies, those that the backbone cannot do are left out with a line."""
        self.workers.settle(self.runtime)
        records = self.results.search.read_records() if rebuild else None
        searches = open_searches(base, strategies, trials, objective, self.runtime, records, own)
        if not rebuild:
            search(searches, lambda configs: run_all(configs, search_runtime(self.runtime), self.workers))
        return searches

    def show_leaderboard(self, records: Records) -> None:
        """Writes the table of all records of the folder, and prints that of these."""
        if records:
            write_tables(self.results)
            shown = [record for several in records.values() for record in several]
            table = leaderboard(shown)
            print_answers(shown, table)
            print_table(table)
            logger.info(f"look closer: python -m retrieval_bench report --results {self.runtime.results}")


@dataclass(frozen=True)
class SharedConfig(RunConfig):
    """What all runs of an experiment share: no flags for what differs between them."""

    strategy: Annotated[str, tyro.conf.Suppress, tyro.conf.Fixed, tyro.conf.arg(name="any-strategy")] = (
        RunConfig.strategy
    )
    seed: Annotated[int, tyro.conf.Suppress, tyro.conf.Fixed, tyro.conf.arg(name="any-seed")] = RunConfig.seed


@dataclass(frozen=True)
class RunExperiment(ManyRuns):
    """Make all runs of an experiment that have no record, and show its table.

    The table shows every recorded run of its rows, whichever were asked for this time; interrupted, what is there.
    """

    base: Annotated[SharedConfig, Flat] = field(default_factory=SharedConfig)
    name: tyro.conf.Suppress[str] = ""
    profile: tyro.conf.Suppress[str] = ""
    seed: Annotated[tuple[int, ...], tyro.conf.arg(aliases=["--seeds"])] = (0, 1, 2)
    """one run per row and seed: 0,1,2"""
    rows: tuple[int, ...] = ()
    """numbers of the rows to run, from 1; without, all"""
    strategy: Annotated[
        tuple[str, ...],
        tyro.conf.arg(aliases=["--strategies"], help=f"strategies to compare, with commas: {', '.join(STRATEGIES)}"),
    ] = ()
    trials: int = 0
    """where options are searched first: trials for each strategy; what costs more than a plain run gets fewer"""
    objective: Objective = "recall_at_1"
    """what the search maximises on the validation classes"""
    dry_run: bool = False
    """print the plan: the runs, which of them are recorded, and how long the rest will take"""
    rebuild: bool = False
    """write the table from the records that there are, without data and weight files; run nothing"""

    def execute(self) -> int:
        """1 if any run failed."""
        experiment = EXPERIMENTS[self.name]
        profile = experiment.profiles[self.profile]
        changed, notes, searches = self._changed(profile), (), []
        refuse_idle_flags(experiment, profile, changed)
        rows = experiment.rows_of(changed)
        configs = runs_of(rows, changed.seeds, self.rows)
        if profile.trials:
            if self.dry_run:
                raise UserError("--dry-run: the runs of an experiment that searches depend on what its trials give")
            searches = self.search(
                changed.base, changed.axes["strategy"], changed.trials, changed.objective, self.rebuild, profile.own
            )
            rows, notes = searched_rows(searches)
            notes = (search_note(searches[0], changed.seeds, self.results.search), *notes)
            configs = runs_of(rows, changed.seeds, self.rows)
        if self.dry_run:
            print_plan(rows, configs, self.runtime, self.workers)
            return 0
        if not self.rebuild:
            configs = able_runs(rows, configs, self.workers.settle(self.runtime))
        stem = self.results.experiments / "-".join([self.name, self.profile, *changed_words(profile, changed)])

        def show_table(records: Records) -> None:
            print(write_experiment(stem, experiment, profile, changed, rows, records, notes))

        show = self.show_leaderboard if experiment.in_leaderboard else show_table
        code = self.make(configs, rows, {*profile.seeds, *changed.seeds}, show, rebuild=self.rebuild)
        for entry in searches:
            if entry.best is None:
                again = f"{entry.path} remembers: remove it to try again"
                logger.info(f"failed: every trial of {entry.config.strategy}; {again}")
        return code or int(len(rows) < len(searches))

    def _changed(self, profile: Profile) -> Profile:
        """The profile with what the flags change. Raises :class:`UserError` for flags that have no effect on it."""
        if self.strategy and "strategy" not in profile.axes:
            raise UserError("--strategy: the rows of this experiment are its own; --rows chooses among them")
        if not profile.trials and (self.trials or self.objective != profile.objective):
            raise UserError("--trials and --objective: this experiment searches no options; `tune` does")
        axes = {**profile.axes, **({"strategy": self.strategy} if self.strategy else {})}
        changed = replace(profile, base=RunConfig(**vars(self.base)), seeds=self.seed, axes=axes)
        return replace(changed, trials=self.trials, objective=self.objective)


@dataclass(frozen=True)
class Tune(ManyRuns):
    """Choose options of strategies on validation classes, equally hard for each: --strategy autolr,standard."""

    trials: int = 20
    """for each; what costs more than a plain run gets fewer"""
    objective: Objective = "recall_at_1"
    """what is maximised on the validation classes"""

    def execute(self) -> None:
        strategies = tuple(split_values("--strategy", self.base.strategy))
        refuse_unused_options(strategies, self.base.options)
        for entry in self.search(self.base, strategies, self.trials, self.objective):
            print(entry.path.with_suffix(".md").read_text(encoding="utf-8"))


def _read(word: str, experiments: Mapping[str, Experiment], words: Sequence[str]) -> RunExperiment:
    """The command from the name of an experiment, its profile if one follows, and flags."""
    about = {name: f"{entry.about} ({', '.join(entry.profiles)})" for name, entry in experiments.items()}
    title = "experiments, and their profiles (cpu is usual)"
    name = choose(words, word, about, f"{word} NAME [PROFILE] [--help] [flags of run]", title)
    entry, rest, size = experiments[name], list(words[1:]), experiments[name].usual_profile
    if rest and not rest[0].startswith("-"):
        size = rest.pop(0)
        if size not in entry.profiles:
            raise unknown("profile", size, entry.profiles)
    profile = entry.profiles[size]
    usual = RunExperiment(
        SharedConfig(**vars(profile.base)),
        RuntimeConfig(keep_new=entry.in_leaderboard),
        name=name,
        profile=size,
        seed=profile.seeds,
        strategy=profile.axes.get("strategy", ()),
        trials=profile.trials,
        objective=profile.objective,
    )
    hidden = hidden_flags(entry, profile) if {"-h", "--help"} & set(rest) else ()
    return ask(RunExperiment, rest, f"{word} {name} {size}", usual, hidden)


experiment = partial(_read, "experiment", EXPERIMENTS)
bench = partial(_read, "bench", {name: entry for name, entry in EXPERIMENTS.items() if entry.in_leaderboard})
study = partial(_read, "study", {name: entry for name, entry in EXPERIMENTS.items() if not entry.in_leaderboard})


def reality_check(words: Sequence[str]) -> RunExperiment:
    """``experiment reality_check``; its hours of work start with the name of a profile."""
    about = {name: profile.about for name, profile in EXPERIMENTS["reality_check"].profiles.items()}
    choose(words, "profile", about, "reality-check PROFILE [--help] [flags of run]", "profiles (cpu is usual)")
    return _read("reality-check", EXPERIMENTS, ["reality_check", *words])


def tune(words: Sequence[str]) -> Tune:
    """The command from its flags; without any, the strategies that it could tune."""
    if not words:
        about = {name: sys.modules[kind.__module__].__doc__ or "" for name, kind in STRATEGIES.items()}
        choose(words, "strategy", about, "tune --strategy NAME,NAME [--help] [flags of run]", "strategies")
    return ask(Tune, words, "tune", hidden=("--resume", "--split", "--fold", "--folds"))
