"""The command line: commands only, no logic. Each command imports what it needs when it runs, so that ``--help`` answers at once."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from retrieval_bench.config import Machine, RunConfig
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.experiments import BENCHES, Bench

Positional = tyro.conf.Positional
Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class Run:
    """Train and evaluate one configuration, and record it."""

    config: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    machine: Annotated[Machine, Flat] = field(default_factory=Machine)


@dataclass(frozen=True)
class BenchRuns:
    """Compare strategies under one protocol, and print the table."""

    bench: Annotated[Bench, Flat] = field(default_factory=Bench)
    machine: Annotated[Machine, Flat] = field(default_factory=Machine)


@dataclass(frozen=True)
class Leaderboard:
    """Build leaderboard.csv and leaderboard.md from the records, and print the table."""

    results: Path = Path("results/local")
    """folder that holds runs/"""


@dataclass(frozen=True)
class Evaluate:
    """Recall@K of your own embeddings: an .npz file with embeddings, labels[, query_embeddings, query_labels]."""

    file: Positional[Path]
    """the .npz file"""
    k: tuple[int, ...] = (1, 2, 4, 8)
    """the K of Recall@K"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class Data:
    """List, fetch or verify data sets."""

    action: Positional[str]
    """list, fetch NAME or verify NAME"""
    name: Positional[str] = ""
    """the data set"""
    data_root: Path | None = None
    """its folder or archive; without it the data set is downloaded"""


@dataclass(frozen=True)
class Strategies:
    """List the fine-tuning strategies and their options."""


def run_command(args: Run) -> None:
    from retrieval_bench.leaderboard import build_table, print_table
    from retrieval_bench.run import run

    print_table(build_table([run(args.config, args.machine)]))


def bench_command(args: BenchRuns) -> None:
    from retrieval_bench.leaderboard import build_table, print_table, write_tables
    from retrieval_bench.run import run
    from retrieval_bench.validation import validate

    grid = args.bench.runs()
    for config in grid:
        validate(config)
    records: list[dict[str, Any]] = []
    try:
        for config in grid:
            records.append(run(config, args.machine))
    finally:  # what was finished is shown, whatever ended the rest
        if records:
            write_tables(args.machine.results)
            print_table(build_table(records))


def leaderboard_command(args: Leaderboard) -> None:
    from retrieval_bench.leaderboard import print_table, write_tables

    if not args.results.is_dir():
        raise UserError(f"{args.results}: no such folder; --results names the one that holds runs/")
    print_table(write_tables(args.results))


def evaluate_command(args: Evaluate) -> None:
    from retrieval_bench.evaluation.evaluate import evaluate_file

    metrics = evaluate_file(args.file, args.k)
    if args.json:
        print(json.dumps(metrics))
        return
    for name, value in metrics.items():
        print(f"{name:26}{value:>10}" if isinstance(value, int) else f"{name:26}{value:>10.4f}")


def data_command(args: Data) -> None:
    from retrieval_bench.data import catalog

    if args.action == "list" and not args.name:
        for name, dataset in catalog.DATASETS.items():
            print(f"{name:12}{dataset.about}")
        return
    if args.action == "list":
        raise UserError(f"data list takes no name (given: '{args.name}')")
    if args.action not in ("fetch", "verify"):
        raise unknown("action", args.action, ("list", "fetch", "verify"))
    if not args.name:
        raise UserError(f"data {args.action}: name a data set ({', '.join(catalog.DATASETS)})")
    table, split = catalog.open_dataset(args.name, args.data_root)
    if args.action == "verify":
        from retrieval_bench.data.loading import verify_images

        verify_images(table)
    classes = len(table.class_names)
    print(f"{args.name}: {len(table):,} images of {classes:,} classes; {len(split.train):,} to train on, {len(split.test):,} to test on")


def strategies_command(args: Strategies) -> None:
    from dataclasses import fields

    from retrieval_bench.strategies import STRATEGIES

    for name, kind in STRATEGIES.items():
        print(f"{name:12}{(sys.modules[kind.__module__].__doc__ or '').splitlines()[0]}")
        for option in fields(kind.Options):
            print(f"{'':12}--{name.replace('_', '-')}.{option.name.replace('_', '-')} (default {option.default})")


@dataclass(frozen=True)
class Command:
    """One command: its arguments as a dataclass, and what it does with them."""

    arguments: Any
    execute: Callable[[Any], None]


COMMANDS: dict[str, Command] = {
    "run": Command(Run, run_command),
    "bench": Command(BenchRuns, bench_command),
    "leaderboard": Command(Leaderboard, leaderboard_command),
    "evaluate": Command(Evaluate, evaluate_command),
    "data": Command(Data, data_command),
    "strategies": Command(Strategies, strategies_command),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 after bad input (one line on standard error), or 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            return 0 if words else 2
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        command = COMMANDS[words[0]]
        command.execute(parse(command, words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing half-done was kept; the same command goes on with what is left", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or first_line(error)}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not re.search(r"out of memory|can't allocate memory|DataLoader worker .* killed|^$", str(error)):
            raise
        print("error: out of memory; lower --batch-size, --image-size or --workers", file=sys.stderr)
        return 2
    return 0


def parse(command: Command, words: Sequence[str]) -> Any:
    """The command's arguments. Raises :class:`UserError` with one line for what tyro would explain in a box."""
    name, rest = words[0], list(words[1:])
    program = f"retrieval_bench {name}"
    options: dict[str, Any] = {}
    if name == "bench":
        if not rest or rest[0] in ("-h", "--help"):
            print(bench_usage())
            raise SystemExit(0 if rest else 2)
        if rest[0] not in BENCHES:
            raise unknown("benchmark", rest[0], BENCHES)
        program, options = f"{program} {rest[0]}", {"default": BenchRuns(bench=BENCHES[rest[0]][1])}
        rest = rest[1:]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(command.arguments, args=rest, prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{one_line(said.getvalue())} (`{program} --help` lists all flags)") from None


def one_line(box: str) -> str:
    """What tyro says in a framed box, as one line without the frame."""
    rows = [re.sub(r"[│╭╮╰╯─━]+", " ", row).strip() for row in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    rows = [
        row
        for row in rows
        if row and "--help" not in row and not re.fullmatch(r"(Parsing|Unrecognized|Invalid|Required).*(error|options|input)", row)
    ]
    rows = [row for row in rows if not row.startswith("For full helptext")]
    return re.sub(r"\s+", " ", " ".join(rows).split("Argument helptext:")[0]).strip() or "the arguments cannot be understood"


def usage() -> str:
    """The text of ``--help``."""
    lines = [f"  {name:13}{command.arguments.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: python -m retrieval_bench COMMAND [--help]", "", "commands:", *lines])


def bench_usage() -> str:
    """The text of ``bench --help``."""
    lines = [f"  {name:13}{about}" for name, (about, _) in BENCHES.items()]
    return "\n".join(["usage: python -m retrieval_bench bench NAME [--help] [flags of run]", "", "benchmarks:", *lines])
