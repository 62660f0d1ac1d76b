"""The commands that make many runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.experiments.grids import GRIDS
from retrieval_bench.grid.axes import Grid, read_axes, split_words
from retrieval_bench.grid.workers import Workers

if TYPE_CHECKING:
    from retrieval_bench.grid.carry_out import Outcome
    from retrieval_bench.grid.engines import Engine

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Sweep:
    """Make all runs of a grid: every flag of run takes several values, as in --seed 0,1,2.

    A grid that has a name (an unknown one lists them) may come first, and flags change it. Flags without a value, such as --no-flip, hold
    for all runs.
    """

    config: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[RuntimeConfig, Flat] = field(default_factory=RuntimeConfig)
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)
    retries: int = 1
    """how often a run that failed is tried again (bad input and a loss that is no number are not)"""
    dry_run: bool = False
    """print the plan: the runs, which of them are recorded, and how long the rest will take"""
    grid: tyro.conf.Suppress[Grid] = field(default_factory=Grid)

    def execute(self) -> int:
        """1 if any run failed."""
        if self.retries < 0:
            raise UserError(f"--retries {self.retries}: must be at least 0")
        configs = self.grid.runs()
        engine = self.workers.start(self.machine.device)
        if self.dry_run:
            self._print_plan(configs, engine)
            return 0
        from retrieval_bench.grid.carry_out import carry_out
        from retrieval_bench.leaderboard import build_table
        from retrieval_bench.tables import print_table, write_tables

        try:
            outcomes = carry_out(configs, self.machine, engine, self.retries)
        finally:  # what was finished is in the tables, whatever ended the rest
            write_tables(self.machine.results)
        print_table(build_table([outcome.record for outcome in outcomes if outcome.record is not None]))
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        print("\n".join(self._summary(outcomes, failed)))
        return 1 if failed else 0

    def _summary(self, outcomes: Sequence[Outcome], failed: Sequence[Outcome]) -> list[str]:
        from retrieval_bench.grid.call import log_path

        lines = [f"{len(outcomes)} runs: {len(outcomes) - len(failed)} recorded, {len(failed)} failed"]
        return lines + [
            f"failed: {outcome.id}: {outcome.error} ({log_path(self.machine.results, outcome.id)})"
            for outcome in failed
        ]

    def _print_plan(self, configs: list[RunConfig], engine: Engine) -> None:
        from retrieval_bench.grid.carry_out import plan, settled
        from retrieval_bench.grid.estimate import estimate
        from retrieval_bench.grid.view import duration
        from retrieval_bench.records import read_records

        machine = settled(self.machine, engine)
        planned = plan(configs, machine)
        seconds = estimate([outcome.config for outcome in planned], list(read_records(machine.results)), machine.device)
        for outcome, wanted in zip(planned, seconds, strict=True):
            told = (
                "recorded" if outcome.record else f"about {duration(wanted)}" if wanted is not None else "unknown time"
            )
            print(
                f"{outcome.id}: {outcome.config.strategy_label}, {outcome.config.loss.loss}, seed {outcome.config.seed}: {told}"
            )
        left = [wanted for outcome, wanted in zip(planned, seconds, strict=True) if outcome.record is None]
        known = [wanted for wanted in left if wanted is not None]
        print(
            f"{len(planned)} runs: {len(planned) - len(left)} recorded, {len(left)} to make, {engine.width()} at a time"
        )
        if known:
            whole = duration(sum(known) / max(1, min(engine.width(), len(left))))
            print(
                f"about {whole} for {len(known)} of them, by the median seconds per epoch of records of the same data set, image size, "
                "backbone and strategy"
            )
        if len(known) < len(left):
            print(f"time unknown for {len(left) - len(known)}: no like record in {machine.results}")


def read_sweep(words: Sequence[str], ask: Callable[[list[str], Sweep], Sweep]) -> Sweep:
    """The command from its words: a grid's name or none, then flags, of which those of ``run`` may have several values.

    Args:
        words: what follows ``sweep``.
        ask: makes the command from words without several values, and what is meant without them.
    """
    default, rest = Grid(), list(words)
    if rest and not rest[0].startswith("-"):
        if rest[0] not in GRIDS:
            raise unknown("grid", rest[0], GRIDS)
        default, rest = GRIDS[rest[0]][1], rest[1:]
    others, given = split_words(rest)
    several = {flag: values for flag, values in given.items() if len(values) > 1}
    fixed = [word for flag, values in given.items() if flag not in several for word in (f"--{flag}", *values[0])]
    command = ask([*others, *fixed], Sweep(default.base))
    kept = {flag: values for flag, values in default.axes.items() if flag not in given or flag in several}
    axes = kept | read_axes(several, lambda flags: ask(flags, Sweep()).config)
    return replace(command, grid=Grid(command.config, axes))
