"""The commands that train: one run, a benchmark, a study of a paper; and the list of strategies."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, Any

import tyro

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.experiments import Bench, refuse_single_run
from retrieval_bench.experiments.studies import STUDIES

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")
KEEPING = partial(RuntimeConfig, keep_new=True)


@dataclass(frozen=True)
class Run:
    """Train and evaluate one configuration, and record it."""

    config: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[RuntimeConfig, Flat] = field(default_factory=KEEPING)

    def execute(self) -> None:
        from retrieval_bench.leaderboard import build_table
        from retrieval_bench.run import run
        from retrieval_bench.tables import print_table

        print_table(build_table([run(self.config, self.machine)]))


@dataclass(frozen=True)
class BenchRuns:
    """Compare strategies under one protocol, and print the table."""

    bench: Annotated[Bench, Flat] = field(default_factory=Bench)
    machine: Annotated[RuntimeConfig, Flat] = field(default_factory=KEEPING)

    def execute(self) -> None:
        from retrieval_bench.leaderboard import build_table
        from retrieval_bench.progress import is_main_process, logger
        from retrieval_bench.run import run
        from retrieval_bench.tables import print_table, write_tables
        from retrieval_bench.validation import validate

        grid = self.bench.runs()
        for config in grid:
            validate(config)
        records: list[dict[str, Any]] = []
        try:
            for config in grid:
                records.append(run(config, self.machine))
        finally:  # what was finished is shown, whatever ended the rest
            if records and is_main_process():
                write_tables(self.machine.results)
                print_table(build_table(records))
        logger.info(f"look closer: python -m retrieval_bench report --results {self.machine.results}")


@dataclass(frozen=True)
class StudyRuns:
    """Regenerate a table or figure of a paper, quoted and measured values side by side."""

    name: tyro.conf.Suppress[str] = "ablation_pruning"
    profile: tyro.conf.Suppress[str] = "cpu"
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run per row and seed"""
    rows: tuple[int, ...] = ()
    """numbers of the rows to run, from 1; without, all"""
    base: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[RuntimeConfig, Flat] = field(default_factory=RuntimeConfig)

    def execute(self) -> None:
        from retrieval_bench.experiments.study_report import run_study

        refuse_single_run(self.base, "study")
        study = STUDIES[self.name]
        profile = study.profiles[self.profile]
        path = run_study(f"{self.name}-{self.profile}", study, profile, self.base, self.seeds, self.rows, self.machine)
        print(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Strategies:
    """List the fine-tuning strategies and their options."""

    def execute(self) -> None:
        from retrieval_bench.strategies import STRATEGIES

        width = max(map(len, STRATEGIES)) + 2
        for name, kind in STRATEGIES.items():
            print(f"{name:{width}}{(sys.modules[kind.__module__].__doc__ or '').splitlines()[0]}")
            for option in fields(kind.Options):
                searched = f"; searched {kind.space[option.name]}" if option.name in kind.space else ""
                print(
                    f"{'':{width}}--{name.replace('_', '-')}.{option.name.replace('_', '-')} (default {option.default}{searched})"
                )
