"""The commands that search: ``tune`` chooses options, ``reality-check`` compares strategies whose options were chosen with equal means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import tyro

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.experiments import refuse_single_run
from retrieval_bench.experiments.reality_check import CHECKS
from retrieval_bench.grid.workers import Workers
from retrieval_bench.strategies import refuse_unused_options
from retrieval_bench.tune.spaces import Objective

if TYPE_CHECKING:
    from retrieval_bench.tune.search import CarryOut

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Tune:
    """Choose options of strategies on validation classes, equally hard for each: --strategy autolr,standard."""

    trials: int = 20
    """for each; what costs more than a plain run gets fewer"""
    objective: Objective = "recall_at_1"
    """what is maximised on the validation classes"""
    base: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[RuntimeConfig, Flat] = field(default_factory=RuntimeConfig)
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)

    def execute(self) -> None:
        from retrieval_bench.experiments.reality_report import run_searches
        from retrieval_bench.tune.search import check_trials, open_searches, search_machine

        check_trials(self.trials)

        strategies = tuple(self.base.strategy.split(","))
        refuse_unused_options(strategies, self.base.options)
        searches = open_searches(self.base, strategies, self.objective, self.machine)
        run_searches(searches, self.trials, carrier(self.workers, self.machine)(search_machine(self.machine)))
        for entry in searches:
            print(entry.path.with_suffix(".md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class RealityCheck:
    """Compare strategies whose options were all searched with equal means: retrained, tested once, ranked with tests."""

    profile: tyro.conf.Suppress[str] = "cpu"
    strategies: tuple[str, ...] = ()
    """strategies to compare"""
    trials: int = 0
    """for each; what costs more than a plain run gets fewer"""
    objective: Objective = "recall_at_1"
    """what the search maximises on the validation classes"""
    seeds: tuple[int, ...] = ()
    """of the final runs of each choice"""
    base: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[RuntimeConfig, Flat] = field(default_factory=RuntimeConfig)
    workers: Annotated[Workers, Flat] = field(default_factory=Workers)

    def execute(self) -> None:
        from retrieval_bench.experiments.reality_report import run_check
        from retrieval_bench.tune.search import check_trials

        refuse_single_run(self.base, "reality check", " --strategies and")
        check_trials(self.trials)
        profile = CHECKS[self.profile]
        refuse_unused_options(self.strategies, self.base.options, profile.base.options)
        wanted = replace(
            profile,
            base=self.base,
            seeds=self.seeds,
            strategies=self.strategies,
            trials=self.trials,
            objective=self.objective,
        )
        path = run_check(self.profile, profile, wanted, self.machine, carrier(self.workers, self.machine))
        print(path.read_text(encoding="utf-8"))


def of_profile(name: str) -> RealityCheck:
    """The command with a profile's choices."""
    check = CHECKS[name]
    return RealityCheck(name, check.strategies, check.trials, check.objective, check.seeds, check.base)


def carrier(workers: Workers, machine: RuntimeConfig) -> Callable[[RuntimeConfig], CarryOut]:
    """What makes runs, given where results go: this process where one run goes on at a time, else the processes of an engine."""
    from retrieval_bench.grid.carry_out import carry_out, settled
    from retrieval_bench.grid.engines import Local
    from retrieval_bench.tune.search import in_turn

    engine = workers.start(machine.device)
    if isinstance(engine, Local) and engine.width() == 1:
        return lambda place: partial(in_turn, machine=settled(place, engine))
    return lambda place: partial(carry_out, machine=place, engine=engine)
