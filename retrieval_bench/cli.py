"""The command line: which words call which command, and what a user sees when something is wrong."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from retrieval_bench.commands import data, deploy, figures, grids, reports, runs, tuning
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.evaluation.command import Evaluate
from retrieval_bench.experiments import BENCHES
from retrieval_bench.experiments.reality_check import CHECKS
from retrieval_bench.experiments.studies import STUDIES

COMMANDS: dict[str, Any] = {
    "run": runs.Run,
    "bench": runs.BenchRuns,
    "study": runs.StudyRuns,
    "sweep": grids.Sweep,
    "tune": tuning.Tune,
    "reality-check": tuning.RealityCheck,
    "leaderboard": reports.Leaderboard,
    "compare": reports.Compare,
    "report": reports.Report,
    "figures": figures.Figures,
    "map": figures.Map,
    "evaluate": Evaluate,
    "export": deploy.Export,
    "embed": deploy.Embed,
    "search": deploy.Search,
    "data": data.Data,
    "strategies": runs.Strategies,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns 0, 1 if some of many runs failed, 2 after bad input (one line on standard error), 130 after Ctrl-C, or 143 after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with sigterm_interrupts():
            return _main(words)
    except KeyboardInterrupt as stop:
        print("interrupted: the same command goes on with what is left", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it before they kill."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """A block in which SIGTERM raises :class:`Terminated`, so that what is under way is cleaned up."""

    def stop(*_: object) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(words: list[str]) -> int:
    try:
        if not words or words[0] in ("-h", "--help"):
            print(usage())
            return 0 if words else 2
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
        return parse(words).execute() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
        print(
            "error: out of memory; lower --batch-size, --image-size or --workers, or let --out-of-memory halve pass images in pieces",
            file=sys.stderr,
        )
        return 2


def parse(words: Sequence[str]) -> Any:
    """The command with its arguments. Raises :class:`UserError` with one line for what tyro would explain in a box."""
    name, rest = words[0], list(words[1:])
    kind, program = COMMANDS[name], f"retrieval_bench {name}"
    options: dict[str, Any] = {}
    if name in GROUPS:
        if name == "reality-check" and (not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help"))):
            rest = ["cpu", *rest]
        what, members, text = GROUPS[name]
        if not rest or rest[0] in ("-h", "--help"):
            print(text())
            raise SystemExit(0 if rest else 2)
        if rest[0] not in members:
            raise unknown(what, rest[0], members)
        program = f"{program} {rest[0]}"
        if name == "bench":
            options = {"default": kind(bench=BENCHES[rest[0]][1])}
        elif name == "study":
            size, rest = _profile(rest)
            program = f"{program} {size}"
            profile = STUDIES[rest[0]].profiles[size]
            options = {"default": kind(rest[0], size, profile.seeds, base=profile.base)}
        elif name == "reality-check":
            options = {"default": tuning.of_profile(rest[0])}
        else:
            kind = members[rest[0]]
        rest = rest[1:]
    if name == "sweep":
        return grids.read_sweep(rest, lambda words, default: ask(kind, words, program, {"default": default}))
    return ask(kind, rest, program, options)


def ask(kind: Any, words: Sequence[str], program: str, options: dict[str, Any]) -> Any:
    """What tyro makes of `words`; what it would explain in a box is one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=_separated(words, set(_lists(kind))), prog=program, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{one_line(said.getvalue())} (`{program} --help` lists all flags)") from None


def _lists(kind: Any) -> Iterator[str]:
    """The flags of a command that take any number of values, without dashes."""
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from _lists(hint)
        elif get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is not tuple and get_args(hint)[0] is not Path:
            yield name.replace("_", "-")


def _separated(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """The words, with commas between the values of such flags taken for spaces; not inside ``label(a=1,b=2)``."""
    found, inside = [], False
    for word in words:
        flag, values = "", word
        if word.startswith("--"):
            flag, _, values = word.partition("=")
            inside = flag[2:].replace("_", "-") in lists
        if not inside or "," not in values or {"(", "="} & set(values):
            found.append(word)
        else:
            found += [*([flag] if flag else []), *values.split(",")]
    return found


def _profile(words: list[str]) -> tuple[str, list[str]]:
    """The profile that follows a study's name, ``cpu`` where a flag or nothing does, and the words without it."""
    if len(words) < 2 or words[1].startswith("-"):
        return "cpu", words
    profiles = STUDIES[words[0]].profiles
    if words[1] not in profiles:
        raise unknown("profile", words[1], profiles)
    return words[1], [words[0], *words[2:]]


def one_line(box: str) -> str:
    """What tyro says in a framed box, as one line without the frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    frame = re.compile(r"[│╭╮╰╯─━]+|^[|+]|[|+]$|-{3,}")  # the last three where the terminal is not UTF-8
    title = re.compile(r"(Parsing|Unrecognized|Invalid|Required).*(error|options|input)|.* --help")
    rows = [frame.sub(" ", row).strip() for row in plain.splitlines()]
    rows = [row for row in rows if row and not title.fullmatch(row)]
    return (
        re.sub(r"\s+", " ", " ".join(rows).split("Argument helptext:")[0]).strip()
        or "the arguments cannot be understood"
    )


def usage() -> str:
    """The text of ``--help``."""
    return _listing("COMMAND [--help]", "commands", {name: kind.__doc__ for name, kind in COMMANDS.items()})


def bench_usage() -> str:
    """The text of ``bench --help``."""
    return _listing(
        "bench NAME [--help] [flags of run]", "benchmarks", {name: about for name, (about, _) in BENCHES.items()}
    )


def study_usage() -> str:
    """The text of ``study --help``."""
    about = {name: f"{study.about} ({', '.join(study.profiles)})" for name, study in STUDIES.items()}
    return _listing(
        "study NAME [PROFILE] [--help] [flags of run]", "studies, and their profiles (cpu is the default)", about
    )


def check_usage() -> str:
    """The text of ``reality-check --help``."""
    about = {name: check.about for name, check in CHECKS.items()}
    return _listing("reality-check [PROFILE] [--help] [flags of run]", "profiles (cpu is the default)", about)


def data_usage() -> str:
    """The text of ``data --help``."""
    return _listing(
        "data ACTION [--help] [NAME]", "actions", {name: kind.__doc__ for name, kind in data.ACTIONS.items()}
    )


def _listing(form: str, title: str, entries: dict[str, str]) -> str:
    width = max(13, *(len(name) + 2 for name in entries))
    lines = [f"  {name:{width}}{about.splitlines()[0]}" for name, about in entries.items()]
    return "\n".join([f"usage: python -m retrieval_bench {form}", "", f"{title}:", *lines])


GROUPS = {
    "bench": ("benchmark", BENCHES, bench_usage),
    "study": ("study", STUDIES, study_usage),
    "reality-check": ("profile", CHECKS, check_usage),
    "data": ("action", data.ACTIONS, data_usage),
}
"""Commands whose second word is a name: what it names, the names, and the text that lists them."""
