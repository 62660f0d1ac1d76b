"""The commands: the arguments of each, and what it does. Each imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from retrieval_bench.config import Machine, RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import Bench

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Run:
    """Train and evaluate one configuration, and record it."""

    config: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[Machine, Flat] = field(default_factory=Machine)

    def execute(self) -> None:
        from retrieval_bench.leaderboard import build_table, print_table
        from retrieval_bench.run import run

        print_table(build_table([run(self.config, self.machine)]))


@dataclass(frozen=True)
class BenchRuns:
    """Compare strategies under one protocol, and print the table."""

    bench: Annotated[Bench, Flat] = field(default_factory=Bench)
    machine: Annotated[Machine, Flat] = field(default_factory=Machine)

    def execute(self) -> None:
        from retrieval_bench.leaderboard import build_table, print_table, write_tables
        from retrieval_bench.run import run
        from retrieval_bench.validation import validate

        grid = self.bench.runs()
        for config in grid:
            validate(config)
        records: list[dict[str, Any]] = []
        try:
            for config in grid:
                records.append(run(config, self.machine))
        finally:  # what was finished is shown, whatever ended the rest
            if records:
                write_tables(self.machine.results)
                print_table(build_table(records))


@dataclass(frozen=True)
class Leaderboard:
    """Build leaderboard.csv and leaderboard.md from the records, and print the table."""

    results: Path = Path("results/local")
    """folder that holds runs/"""

    def execute(self) -> None:
        from retrieval_bench.leaderboard import print_table, write_tables

        if not self.results.is_dir():
            raise UserError(f"{self.results}: no such folder; --results names the one that holds runs/")
        print_table(write_tables(self.results))


@dataclass(frozen=True)
class Evaluate:
    """Recall@K of your own embeddings: an .npz file with embeddings, labels[, query_embeddings, query_labels]."""

    file: Positional[Path]
    """the .npz file"""
    k: tuple[int, ...] = (1, 2, 4, 8)
    """the K of Recall@K"""
    json: bool = False
    """print JSON"""

    def execute(self) -> None:
        from retrieval_bench.evaluation.evaluate import evaluate_file

        metrics = evaluate_file(self.file, self.k)
        if self.json:
            print(json.dumps(metrics))
            return
        for name, value in metrics.items():
            print(f"{name:26}{value:>10}" if isinstance(value, int) else f"{name:26}{value:>10.4f}")


@dataclass(frozen=True)
class Strategies:
    """List the fine-tuning strategies and their options."""

    def execute(self) -> None:
        from retrieval_bench.strategies import STRATEGIES

        for name, kind in STRATEGIES.items():
            print(f"{name:12}{(sys.modules[kind.__module__].__doc__ or '').splitlines()[0]}")
            for option in fields(kind.Options):
                print(f"{'':12}--{name.replace('_', '-')}.{option.name.replace('_', '-')} (default {option.default})")
