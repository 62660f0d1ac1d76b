"""The command line: which word calls which command, and what a user sees when something is wrong.

Each command is a dataclass whose fields are its flags (read by tyro) and whose ``execute`` does the work and returns
the exit code or nothing. Commands are loaded when they are called, so that ``--help`` and a misspelt word answer at
once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from importlib.metadata import version
from typing import Any

from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.parsing import ask, listing
from retrieval_bench.presets import expand_preset
from retrieval_bench.progress import logger, replace_unknown_signs

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run_command:read_run", "Train and evaluate one configuration, and record it."),
    "recommend": (
        "experiments.recommend:Recommend",
        "Compare strategies on a folder of your own, say which to use, train it on all and index the folder.",
    ),
    "experiment": (
        "experiments.commands:experiment",
        "Make all runs of a benchmark, a paper's table or a grid, and show its table.",
    ),
    "bench": ("experiments.commands:bench", "Compare strategies under one protocol, and print the table."),
    "study": (
        "experiments.commands:study",
        "Regenerate a table or figure of a paper, reported and measured values side by side.",
    ),
    "sweep": (
        "experiments.sweep:sweep",
        "Make all runs of a grid: every flag of run takes several values, as in --seed 0,1,2.",
    ),
    "tune": (
        "experiments.commands:tune",
        "Choose options of strategies on validation classes, with equal effort for each.",
    ),
    "reality-check": (
        "experiments.commands:reality_check",
        "Compare strategies whose options were all searched with equal effort.",
    ),
    "leaderboard": (
        "leaderboard_command:Leaderboard",
        "Build leaderboard.csv and leaderboard.md from the records, and print the table.",
    ),
    "compare": ("report.commands:Compare", "Compare two runs, or two configurations over their seeds."),
    "reproduce": ("reproduce:Reproduce", "Make a recorded run again, and print what came out otherwise."),
    "report": ("report.commands:Report", "Write one HTML file with tables, figures and galleries."),
    "figures": ("figures.commands:Figures", "Draw every figure that the records give, each as SVG and as PNG."),
    "map": ("figures.commands:Map", "Draw a map of embeddings in two dimensions, coloured by class (PNG or SVG)."),
    "evaluate": (
        "evaluation.command:Evaluate",
        "Retrieval metrics of your own embeddings (.npz, .npy with --labels, .parquet).",
    ),
    "export": (
        "deploy.commands:Export",
        "Write the trained embedder of a run into a folder: weights, recipe, ONNX graph and a card.",
    ),
    "push": ("deploy.commands:Push", "Upload the trained embedder of a run to the Hugging Face Hub."),
    "embed": ("deploy.commands:Embed", "Embed all images below a folder with the embedder of a run."),
    "search": ("deploy.search_command:Search", "Find the images of an embedded folder that are nearest to queries."),
    "refit": ("refit:Refit", "Train the configuration of a run again, on all classes, and export the embedder."),
    "soup": ("soup:Soup", "Average the weights of recorded runs into one embedder, and record it; nothing is trained."),
    "data": ("data.commands:data", "List, fetch, verify, show or pack data sets."),
    "strategies": ("strategy_list:Strategies", "List the fine-tuning strategies and their options."),
    "losses": ("loss_list:Losses", "List the losses and miners and their options."),
}
"""Where each command is (a dataclass of flags, or a function from words to one), and what it does."""

TAKE_PRESETS = ("run", "experiment", "bench", "study", "sweep", "tune", "reality-check")
"""Commands with the flags of a configuration."""

SLOW_TO_LOAD = (*TAKE_PRESETS, "reproduce", "export", "embed", "search", "soup")
"""Commands that import torch and the like, which takes seconds."""
QUICK = {"-h", "--help", "--onnx"}
"""Words with which they load no torch."""

HOME = re.compile(r"(?:^|(?<=[=,]))~[^/,\s]*(?=[/,]|$)")
"""A home folder where a value begins: ``~`` or ``~user``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns 0, 1 if some of many runs failed, 2 after bad input (one line on standard error), 130 after Ctrl-C, or 143
    after SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    replace_unknown_signs()
    try:
        with sigterm_interrupts():
            return _main(words)
    except KeyboardInterrupt as stop:
        print("interrupted: the same command resumes", file=sys.stderr)
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
        if words == ["--version"]:
            print(", ".join(f"{name} {version(name)}" for name in ("retrieval_bench", "torch", "torchvision", "timm")))
            return 0
        if not words or words[0] in ("-h", "--help"):
            commands = {name: about for name, (_, about) in COMMANDS.items()}
            print(listing("COMMAND [--help] | --version", "commands", commands))
            return 0 if words else 2
        if words[0] in SLOW_TO_LOAD and words[1:] and not QUICK & set(words) and "torch" not in sys.modules:
            logger.info(f"{words[0]}: loading, a few seconds")
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
    except UnicodeEncodeError as error:
        if error.encoding.startswith("utf"):
            raise
        print(f"error: {error.object!a}: the locale's encoding lacks such names; set PYTHONUTF8=1", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not re.search(r"out of memory|can't allocate memory|DataLoader worker .* killed|^$", str(error)):
            raise
        print(
            "error: out of memory; give --micro-batch N, or lower --batch-size, --image-size or --workers",
            file=sys.stderr,
        )
        return 2


def parse(words: Sequence[str]) -> Any:
    """The command with its arguments. A ``~`` where a value begins (``--results=~/x``) is the home folder.
    Raises :class:`UserError` with one line for what cannot be understood."""
    name, *rest = (HOME.sub(lambda home: os.path.expanduser(home[0]), word) for word in words)
    if name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    module, attribute = COMMANDS[name][0].split(":")
    kind = getattr(importlib.import_module(f"retrieval_bench.{module}"), attribute)
    if name in TAKE_PRESETS:
        rest = expand_preset(rest)
        importlib.import_module("retrieval_bench.strategies").load_from_words(rest)
    return ask(kind, rest, name) if is_dataclass(kind) else kind(rest)
