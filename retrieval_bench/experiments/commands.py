"""The commands that make many runs: ``experiment``, for which ``bench``, ``study`` and ``reality-check`` are other
words; ``sweep``, a grid without a name; and ``tune``, the search alone."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from retrieval_bench.config import Flat, RunConfig, RuntimeConfig, flag, flat_values, flatten, unnest
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.experiments.experiment import (
    Experiment,
    Objective,
    Profile,
    Records,
    Row,
    changed_words,
    grid_rows,
    recorded_hashes,
    records_of,
    refuse_idle_flags,
    rehearse,
    row_hashes,
    runs_of,
)
from retrieval_bench.experiments.reality_check import search_note, searched_rows
from retrieval_bench.experiments.registry import EXPERIMENTS
from retrieval_bench.experiments.search import StrategySearch, open_searches, search, search_runtime
from retrieval_bench.experiments.table import write_experiment
from retrieval_bench.experiments.workers import JobResult, Workers, duration, run_all
from retrieval_bench.identity import run_ids
from retrieval_bench.leaderboard import leaderboard, print_table, write_tables
from retrieval_bench.parsing import ask, choose
from retrieval_bench.progress import is_main_process, logger
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.strategies import refuse_unused_options

LISTS = ("--layer-pruning.drop",)
"""Flags whose values have commas of their own; for several values the flag is given several times."""


@dataclass(frozen=True)
class ManyRuns:
    """Where, by what and how persistently runs are made."""

    base: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    runtime: Annotated[RuntimeConfig, Flat] = field(default_factory=RuntimeConfig)
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)

    @property
    def results(self) -> ResultsFolder:
        return ResultsFolder(self.runtime.results)

    def run_all(self, configs: Sequence[RunConfig], isolate: bool = False) -> list[JobResult]:
        return run_all(configs, self.runtime, self.workers, isolate)

    def search(self, searches: Sequence[StrategySearch], trials: int) -> None:
        """Makes the trials that are missing."""
        search(searches, trials, replace(self, runtime=search_runtime(self.runtime)).run_all)

    def records_of(self, hashes: Mapping[str, str], seeds: Collection[int]) -> Records:
        """The recorded runs of rows with these seeds."""
        records = [record for record in self.results.read_records() if record.seed in seeds]
        return records_of(hashes, records, self.workers.settle(self.runtime).device)

    def show_leaderboard(self, records: Records) -> None:
        """Writes the table of all records of the folder, and prints that of these."""
        if records and is_main_process():
            write_tables(self.results)
            print_table(leaderboard([record for several in records.values() for record in several]))
            logger.info(f"look closer: python -m retrieval_bench report --results {self.runtime.results}")

    def exit_code(self, made: Sequence[JobResult]) -> int:
        """1 if any run failed; lists those that did."""
        failed = [result for result in made if result.error is not None]
        logger.info(f"{len(made)} runs: {len(made) - len(failed)} recorded, {len(failed)} failed")
        for result in failed:
            log = self.results.log(result.id)
            logger.info(f"failed: {result.id}: {result.error}{f' ({log})' if log.exists() else ''}")
        return 1 if failed else 0


@dataclass(frozen=True)
class RunExperiment(ManyRuns):
    """Make all runs of an experiment that have no record, and show its table.

    The table shows every recorded run of its rows, whichever were asked for this time; interrupted, what is there.
    """

    name: tyro.conf.Suppress[str] = ""
    profile: tyro.conf.Suppress[str] = ""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run per row and seed"""
    rows: tuple[int, ...] = ()
    """numbers of the rows to run, from 1; without, all"""
    strategies: tuple[str, ...] = ()
    """strategies to compare, where the experiment has no rows of its own"""
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
        changed, runtime = self._changed(profile), self.workers.settle(self.runtime)
        searches = self._search(changed) if changed.trials else []
        if searches:
            rows, notes = searched_rows(searches, changed.trials)
            notes = (search_note(searches[0], changed, self.results.search), *notes)
        else:
            refuse_idle_flags(experiment, profile, changed)
            rows, notes = experiment.rows_of(changed), ()
        configs = runs_of(rows, changed.seeds, self.rows)
        if self.dry_run:
            print_plan(configs, self)
            return 0
        if self.rebuild:
            hashes = recorded_hashes(rows, self.results.read_records())
        else:
            rehearse(rows, runtime)
            hashes = row_hashes(rows, runtime)
        made: list[JobResult] = []
        try:
            made = [] if self.rebuild else self.run_all(configs)
        finally:  # what has finished is shown, whatever ended the rest
            if experiment.in_leaderboard:
                self.show_leaderboard(self.records_of(hashes, changed.seeds))
            elif is_main_process():
                stem = self.results.experiments / "-".join([self.name, self.profile, *changed_words(profile, changed)])
                records = self.records_of(hashes, {*profile.seeds, *changed.seeds})
                print(write_experiment(stem, experiment, profile, changed, rows, records, notes))
        for entry in searches:
            if entry.best(changed.trials) is None:
                again = f"{entry.path} remembers: remove it to try again"
                logger.info(f"failed: every trial of {entry.config.strategy}; {again}")
        return self.exit_code(made) or int(len(rows) < len(searches))

    def _changed(self, profile: Profile) -> Profile:
        """The profile with what the flags change. Raises :class:`UserError` for flags that have no effect on it."""
        if (self.base.strategy, self.base.seed) != (RunConfig.strategy, RunConfig.seed):
            instead = "use --strategies and --seeds in place of --strategy and --seed"
            raise UserError(f"an experiment compares several runs: {instead}")
        axes = dict(profile.axes)
        if self.strategies and "strategy" not in axes:
            raise UserError("--strategies: the rows of this experiment are its own; --rows chooses among them")
        if self.strategies:
            axes["strategy"] = self.strategies
            refuse_unused_options(self.strategies, self.base.options, profile.base.options)
        if not profile.trials and (self.trials or self.objective != profile.objective):
            raise UserError("--trials and --objective: this experiment searches no options; `tune` does")
        if profile.trials and self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1")
        changed = replace(profile, base=self.base, seeds=self.seeds, axes=axes)
        return replace(changed, trials=self.trials, objective=self.objective)

    def _search(self, changed: Profile) -> list[StrategySearch]:
        """The searches of the strategies, with all their trials."""
        runs_of([Row("", changed.base)], changed.seeds)  # refuses seeds given twice before any trial
        if self.dry_run:
            raise UserError("--dry-run: the runs of an experiment that searches depend on what its trials give")
        records = self.results.search.read_records() if self.rebuild else None
        searches = open_searches(changed.base, changed.axes["strategy"], changed.objective, self.runtime, records)
        if not self.rebuild:
            self.search(searches, changed.trials)
        return searches


@dataclass(frozen=True)
class Sweep(ManyRuns):
    """Make all runs of a grid: every flag of run takes several values, as in --seed 0,1,2.

    The grid of a benchmark (an unknown name lists them) may come first, and flags change it. Flags without a value,
    such as --no-flip, hold for all runs.
    """

    dry_run: bool = False
    """print the plan: the runs, which of them are recorded, and how long the rest will take"""
    axes: tyro.conf.Suppress[Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Row]:
        return grid_rows(self.base, {name: values for name, values in self.axes.items() if name != "seed"})

    @property
    def configs(self) -> list[RunConfig]:
        return runs_of(self.rows, self.axes.get("seed", (self.base.seed,)))

    def execute(self) -> int:
        """1 if any run failed."""
        configs = self.configs
        if self.dry_run:
            print_plan(configs, self)
            return 0
        hashes, made = row_hashes(self.rows, self.workers.settle(self.runtime)), []
        try:
            made = self.run_all(configs, isolate=True)
        finally:  # what has finished is in the tables, whatever ended the rest
            self.show_leaderboard(self.records_of(hashes, {config.seed for config in configs}))
        return self.exit_code(made)


@dataclass(frozen=True)
class Tune(ManyRuns):
    """Choose options of strategies on validation classes, equally hard for each: --strategy autolr,standard."""

    trials: int = 20
    """for each; what costs more than a plain run gets fewer"""
    objective: Objective = "recall_at_1"
    """what is maximised on the validation classes"""

    def execute(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1")
        strategies = tuple(self.base.strategy.split(","))
        refuse_unused_options(strategies, self.base.options)
        self.workers.settle(self.runtime)
        searches = open_searches(self.base, strategies, self.objective, self.runtime)
        self.search(searches, self.trials)
        for entry in searches:
            print(entry.path.with_suffix(".md").read_text(encoding="utf-8"))


def experiment(words: Sequence[str]) -> RunExperiment:
    return _read("experiment", words, EXPERIMENTS)


def bench(words: Sequence[str]) -> RunExperiment:
    return _read("bench", words, {name: entry for name, entry in EXPERIMENTS.items() if entry.in_leaderboard})


def study(words: Sequence[str]) -> RunExperiment:
    return _read("study", words, {name: entry for name, entry in EXPERIMENTS.items() if not entry.in_leaderboard})


def reality_check(words: Sequence[str]) -> RunExperiment:
    profiles = EXPERIMENTS["reality_check"].profiles
    if words and words[0] in ("-h", "--help"):
        about = {name: profile.about for name, profile in profiles.items()}
        choose(words, "profile", about, "reality-check [PROFILE] [--help] [flags of run]", "profiles (cpu is usual)")
    return _read("reality-check", ["reality_check", *words], EXPERIMENTS)


def _read(word: str, words: Sequence[str], experiments: Mapping[str, Experiment]) -> RunExperiment:
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
        profile.base,
        RuntimeConfig(keep_new=entry.in_leaderboard),
        name=name,
        profile=size,
        seeds=profile.seeds,
        strategies=profile.axes.get("strategy", ()),
        trials=profile.trials,
        objective=profile.objective,
    )
    return ask(RunExperiment, rest, f"{word} {name} {size}", usual)


def sweep(words: Sequence[str]) -> Sweep:
    """The command from the name of a benchmark that has a grid, or none, and flags, of which those of ``run`` may have
    several values."""
    grids = {name: entry.profiles["grid"] for name, entry in EXPERIMENTS.items() if "grid" in entry.profiles}
    profile, rest = Profile("", RunConfig(), ()), list(words)
    if rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name not in grids:
            raise unknown("grid", name, grids)
        profile = grids[name]
    others, given = split_words(rest)
    several = {name: values for name, values in given.items() if len(values) > 1}
    single = [word for name, values in given.items() if name not in several for word in (flag(name), *values[0])]
    command = ask(Sweep, [*others, *single], "sweep", Sweep(profile.base))
    axes = dict(profile.axes) | ({"seed": profile.seeds} if profile.seeds else {})
    axes = {name: values for name, values in axes.items() if name not in given}
    for name, values in several.items():
        parsed = [ask(Sweep, [flag(name), *value], "sweep").base for value in values]
        axes[name] = tuple(dict(flat_values(config))[name] for config in parsed)
    return replace(command, axes=axes)


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, list[list[str]]]]:
    """Separates flags of ``run`` from other words.

    Args:
        words: of the command line. A flag takes several values, separated by commas or as words of their own; where one
            value is several words (``--loss-options margin 0.1,0.2``) commas separate, and they are combined. Of a flag
            that is given several times the last counts, but for those in :data:`LISTS`.

    Returns:
        The words that are no flags of ``run``, and for each choice, by its dotted name, its values as words.

    Raises:
        UserError: an empty value, or one that is given twice.
    """
    usual = dict(flat_values(RunConfig()))
    names = {flag(name): name for name in usual}
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append(word.split("=", 1))
        else:
            groups[-1].append(word)
    others: list[str] = []
    given: dict[str, list[list[str]]] = {}
    for group in groups:
        word = group[0].replace("_", "-")
        if word not in names or len(group) == 1:
            others += group
            continue
        name = names[word]
        parts = [[part] if word in LISTS else part.split(",") for part in group[1:]]
        values = [list(value) for value in itertools.product(*parts)]  # a value is several words
        if not isinstance(usual[name], list):
            values = [[part] for several in parts for part in several]
        values = [*given.get(name, []), *values] if word in LISTS else values
        if len(parts) < len(values) and any("" in value for value in values):
            raise UserError(f"{' '.join(group)}: a value is missing beside a comma")
        for place, value in enumerate(values):
            if value in values[:place]:
                raise UserError(f"{word} {' '.join(value)} is given twice")
        given[name] = values
    return others, given


def print_plan(configs: Sequence[RunConfig], command: ManyRuns) -> None:
    """Prints the runs, which of them are recorded, and how long the rest will take."""
    runtime = command.workers.settle(command.runtime)
    jobs = dict(zip(run_ids(configs, runtime), configs, strict=True))
    width, records = command.workers.width(runtime.device), command.results.read_records()
    is_recorded = set() if runtime.force else {record.id for record in records}
    times = dict(zip(jobs, estimate(list(jobs.values()), records, runtime.device), strict=True))
    for run_id, config in jobs.items():
        plan = "unknown time" if times[run_id] is None else f"about {duration(times[run_id] or 0)}"
        plan = "recorded" if run_id in is_recorded else plan
        print(f"{run_id}: {config.strategy_label}, {config.loss.loss}, seed {config.seed}: {plan}")
    waiting = [seconds for run_id, seconds in times.items() if run_id not in is_recorded]
    known = [seconds for seconds in waiting if seconds is not None]
    print(f"{len(jobs)} runs: {len(jobs) - len(waiting)} recorded, {len(waiting)} to make, {width} at a time")
    if known:
        whole = duration(sum(known) / max(1, min(width, len(waiting))))
        print(f"about {whole} for {len(known)} of them, by the median seconds per epoch of like records")
    if len(known) < len(waiting):
        print(f"time unknown for {len(waiting) - len(known)}: no like record in {command.runtime.results}")


def estimate(configs: Sequence[RunConfig], records: Sequence[Record], kind: str) -> list[float | None]:
    """Seconds per run: the median over like records of their seconds per epoch, times the epochs; None where there is
    no like record.

    Alike are runs of one data set, image size, backbone and strategy on the same kind of device. Epochs count as at
    least one, since testing takes its time too.
    """
    rates: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        seconds, values = record.cost.get("total_seconds"), unnest(record.config)
        if seconds is not None and record.kind == kind:
            rates.setdefault(_likeness(values), []).append(seconds / max(1, values["train.epochs"]))
    keys = [_likeness(flatten(config)) for config in configs]
    return [
        statistics.median(rates[key]) * max(1, config.train.epochs) if key in rates else None
        for key, config in zip(keys, configs, strict=True)
    ]


def _likeness(values: Mapping[str, Any]) -> tuple[Any, ...]:
    backbone = values["model.backbone"].split(".")[0]
    return values["data.dataset"], values["data.image_size"], backbone, values["strategy"]
