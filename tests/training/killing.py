"""Kills trainings and resumes them: ``python -m tests.training.killing FOLDER KILLS STRATEGY...``.

A run of each strategy is a process of its own and gets SIGKILL after a random time, KILLS times; then it may finish.
Its metrics and its embedder must be those of an undisturbed run, bit for bit. Prints a line per strategy; the exit
status is 1 if any differs.
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
    "visual_prompts": "--backbone test_vit",
    "channel_gates": "--channel-gates.budget 0.8 --channel-gates.search-epochs 2",
    "network_slimming": "--network-slimming.budget 0.8",
    "channel_pruning": "--channel-pruning.budget 0.8",
}
RUN = """run --dataset synthetic --backbone resnet10t --weights none --image-size 32 --epochs 6 --batch-size 16
    --lr 1e-3 --no-freeze-bn --keep --device cpu"""


def command(strategy: str, results: Path) -> list[str]:
    """A run of a few seconds that leaves its embedder, not only its record, to compare."""
    flags = " ".join(FLAGS.get(name, "") for name in strategy.split("+"))
    return [*RUN.split(), "--strategy", strategy, *flags.split(), "--results", str(results)]


def start(words: list[str]) -> int:
    """Runs the command in a forked process, which spares it the imports; returns its number."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    os._exit(main(words))


def finish(words: list[str]) -> float:
    """Runs the command to its end; returns the seconds that it took."""
    started = time.perf_counter()
    _, status = os.waitpid(start(words), 0)
    if status:
        raise SystemExit(f"{' '.join(words)}: ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started


def kill(words: list[str], results: Path, length: float, kills: int, random_: random.Random) -> None:
    """Kills the command `kills` times at random moments within `length` seconds; one that ends before begins anew."""
    while kills:
        child = start(words)
        time.sleep(random_.uniform(0.02, length))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            kills -= 1
        else:
            shutil.rmtree(results)


def result(results: Path) -> tuple[Any, ...]:
    """Metrics, losses and info of the only record, and the weights of the embedder."""
    (path,) = (results / "runs").glob("*.json")
    record = json.loads(path.read_text())
    weights = b"".join(path.read_bytes() for path in sorted((results / "models").glob("*.safetensors")))
    return record["metrics"], record["training"]["loss_per_epoch"], record["facts"], weights


def survives(strategy: str, folder: Path, kills: int) -> bool:
    """Whether killed and undisturbed runs of a strategy end alike."""
    undisturbed, killed = folder / strategy / "undisturbed", folder / strategy / "killed"
    length = finish(command(strategy, undisturbed))
    kill(command(strategy, killed), killed, length, kills, random.Random(strategy))
    finish(command(strategy, killed))
    same = result(undisturbed) == result(killed)
    outcome = "the same bits" if same else "DIFFERENT"
    print(f"{strategy}: {outcome} after {kills} kills in a run of {length:.1f} s", flush=True)
    return same


if __name__ == "__main__":
    folder, kills, *names = sys.argv[1:]
    torch.set_num_threads(1)
    sys.exit(not all(survives(name, Path(folder), int(kills)) for name in names))
