"""Many runs by an engine: what is recorded is left alone, what fails is tried again and then listed, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path, check_writable
from retrieval_bench.grid.call import Call, Ended, make_run
from retrieval_bench.grid.engines import Engine
from retrieval_bench.grid.view import watch
from retrieval_bench.identity import machine_words, map_weight_files, to_command, to_dict
from retrieval_bench.records import read_record
from retrieval_bench.run import Goal, content_of, identify, name_run
from retrieval_bench.sections import DataConfig, ModelConfig
from retrieval_bench.validation import validate


@dataclass(frozen=True)
class Outcome:
    """What came of one configuration: a record, or an error in one line.

    Attributes:
        config: the run.
        id: its name.
        record: its record, new or old; None if it failed or was not made yet.
        error: why it failed.
    """

    config: RunConfig
    id: str
    record: dict[str, Any] | None = None
    error: str | None = None


def carry_out(configs: Sequence[RunConfig], machine: RuntimeConfig, engine: Engine, retries: int = 1) -> list[Outcome]:
    """Makes all runs that have no record yet, each in a process of its own.

    Args:
        configs: the runs; one that comes twice is made once.
        machine: where data and results are, and how runs are made; ``device`` is settled by the engine.
        engine: what carries the runs out.
        retries: how often a run that failed is tried again. Bad input, or a loss that is no number, would only fail again.

    Returns:
        The outcome of each configuration, in their order. Runs that fail do not stop the others.

    Raises:
        UserError: a configuration that cannot work, a data set that cannot be opened, or a results folder that cannot be written to.
    """
    for config in configs:
        validate(config)
    machine = settled(machine, engine)
    found = {outcome.id: outcome for outcome in plan(configs, machine)}
    waiting = [outcome for outcome in found.values() if outcome.record is None]
    if waiting:
        check_writable(machine.results / "logs")
    calls = [_call(outcome, machine, engine, retries) for outcome in waiting]
    with watch(len(calls), engine.width) as show, closing(engine.carry_out(make_run, calls)) as ended:
        for number, result in ended:
            outcome = found[waiting[number].id] = _outcome(waiting[number], result, machine)
            show(outcome, result)
    return [
        replace(found[name], config=config) for name, config in zip(run_ids(configs, machine), configs, strict=True)
    ]


def plan(configs: Sequence[RunConfig], machine: RuntimeConfig) -> list[Outcome]:
    """The runs without those that come a second time, with the records that there are already; nothing is made.

    Args:
        configs: the runs.
        machine: see :func:`settled`.
    """
    named = dict(zip(run_ids(configs, machine), configs, strict=True))
    return [Outcome(config, name, Goal(name, machine).record()) for name, config in named.items()]


def settled(machine: RuntimeConfig, engine: Engine) -> RuntimeConfig:
    """`machine` as other processes and machines may be told of it: the device decided, paths absolute."""
    if machine.resume is not None:
        raise UserError("--resume is for one run; the runs of a grid go on from their own checkpoints by themselves")
    return replace(
        machine,
        device=engine.device(machine.device),
        results=_absolute(machine.results),
        data_root=_absolute(machine.data_root) if machine.data_root else None,
    )


def run_ids(configs: Sequence[RunConfig], machine: RuntimeConfig) -> Iterator[str]:
    """The name of each run, as :func:`retrieval_bench.run.run` gives it; each data set and weight file is read once."""

    @cache
    def identity(data: DataConfig, model: ModelConfig) -> dict[str, Any]:
        table, _ = open_dataset(data.dataset, machine.data_root, data.split, data.fold, data.folds, data.classes)
        return identify(RunConfig(data=data, model=model), table)

    once = cache(content_of)
    for config in configs:
        known = identity(config.data, config.model)
        own = to_dict(map_weight_files(config, once))
        yield name_run({**own, "data": known["data"], "model": known["model"]}, machine.device)


def _call(outcome: Outcome, machine: RuntimeConfig, engine: Engine, retries: int) -> Call:
    config = map_weight_files(outcome.config, lambda path: str(_absolute(path)))
    words = ("run", *to_command(config), *machine_words(replace(machine, results=RuntimeConfig.results)))
    return Call(outcome.id, words, machine.results if engine.shared else None, retries)


def _outcome(outcome: Outcome, result: Ended | Exception, machine: RuntimeConfig) -> Outcome:
    if isinstance(result, Exception):
        return replace(outcome, error=f"{type(result).__name__}: {first_line(result)}")
    for name, content in result.files.items():
        with atomic_path(machine.results / name) as temporary:
            temporary.write_bytes(content)
    if result.error is not None:
        return replace(outcome, error=result.error)
    try:
        return replace(outcome, record=read_record(Goal(outcome.id, machine).path))
    except (OSError, ValueError) as error:
        return replace(
            outcome, error=f"no record where it was to be ({first_line(error)}); is the results folder shared?"
        )


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()
