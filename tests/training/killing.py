"""Kills trainings and lets them go on: ``python -m tests.training.killing FOLDER KILLS STRATEGY...``.

A run of each strategy is started as a process of its own and gets SIGKILL after a random time, again and again, until it has been killed
KILLS times; then it may finish. Its metrics and its embedder must be those of a run that was left alone, bit for bit. Prints a line per
strategy; the exit status is 1 if any differs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from retrieval_bench.cli import main

FLAGS = {
    "channel_gates": ["--channel-gates.budget", "0.8", "--channel-gates.search-epochs", "2"],
    "network_slimming": ["--network-slimming.budget", "0.8"],
    "channel_pruning": ["--channel-pruning.budget", "0.8"],
}
EPOCHS = 6


def command(strategy: str, results: Path) -> list[str]:
    """A run of a few seconds that leaves its last checkpoint, not only its record, to compare."""
    words = [
        "run",
        "--strategy",
        strategy,
        "--dataset",
        "synthetic",
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--image-size",
        "32",
    ]
    words += [
        "--epochs",
        str(EPOCHS),
        "--batch-size",
        "16",
        "--no-freeze-bn",
        "--lr",
        "1e-3",
        "--results",
        str(results),
        "--keep",
    ]
    return words + [flag for name in strategy.split("+") for flag in FLAGS.get(name, [])]


def start(words: list[str]) -> int:
    """Runs the command in a forked process, which spares it the imports; its number."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(main(words))


def finished(words: list[str]) -> float:
    """Runs the command to its end; seconds that it took."""
    started = time.perf_counter()
    _, status = os.waitpid(start(words), 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started


def kill(words: list[str], results: Path, length: float, kills: int, drawn: random.Random) -> None:
    """Kills the command `kills` times at random moments within `length` seconds. If it ends before it is killed, it begins from nothing."""
    while kills:
        child = start(words)
        time.sleep(drawn.uniform(0.02, length))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills -= 1
        else:
            shutil.rmtree(results)


def result(results: Path) -> tuple[Any, bytes]:
    """Metrics, losses and facts of the only record, and the weights that were kept."""
    (path,) = (results / "runs").glob("*.json")
    record = json.loads(path.read_text())
    weights = b"".join(path.read_bytes() for path in sorted((results / "models").glob("*.safetensors")))
    return (
        record["metrics"],
        record["training"]["loss_per_epoch"],
        record["facts"],
        record["cost"]["images_seen"],
    ), weights


def survives(strategy: str, folder: Path, kills: int) -> bool:
    """Whether killed and undisturbed runs of a strategy end alike."""
    alone, disturbed = folder / strategy / "alone", folder / strategy / "killed"
    length = finished(command(strategy, alone))
    kill(command(strategy, disturbed), disturbed, length, kills, random.Random(strategy))
    finished(command(strategy, disturbed))
    same = result(alone) == result(disturbed)
    print(
        f"{strategy}: {'the same bits' if same else 'DIFFERENT'} after {kills} kills in a run of {length:.1f} s",
        flush=True,
    )
    return same


if __name__ == "__main__":
    folder, kills, *names = sys.argv[1:]
    torch.set_num_threads(1)
    sys.exit(not all(survives(name, Path(folder), int(kills)) for name in names))
