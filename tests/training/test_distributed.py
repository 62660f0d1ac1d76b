"""Two processes train as one does, within rounding: the same losses, epoch by epoch, and one record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench.training.distributed import SINGLE_PROCESS, join

FLAGS = "--dataset synthetic --backbone resnet10t --weights none --image-size 32 --epochs 2 --lr 1e-4"


def record(results: Path, words: str, processes: int = 1) -> tuple[dict[str, Any], str]:
    """The record of a run by so many processes, and what they printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "retrieval_bench", "run", *f"{FLAGS} {words}".split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--results", str(results)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (results / "runs").glob("*.json")
    return json.loads(path.read_text()), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "--loss triplet --batch-size 20 --strategy l2sp",
        pytest.param("--loss proxy_anchor --batch-size 21 --strategy autolr --reader cache", marks=pytest.mark.slow),
    ],
    ids=["pairs across processes", "proxies, an odd batch, repeated epochs"],
)
def test_two_processes_train_as_one(words: str, tmp_path: Path) -> None:
    """Batch norms are frozen (the default), since each process would see the statistics of its own images."""
    one, _ = record(tmp_path / "one", words)
    two, printed = record(tmp_path / "two", words, processes=2)
    assert two["training"]["loss_per_epoch"] == pytest.approx(one["training"]["loss_per_epoch"], rel=1e-3)
    assert two["metrics"]["recall_at_1"] == pytest.approx(one["metrics"]["recall_at_1"], abs=0.05)
    assert two["cost"]["images_seen"] == one["cost"]["images_seen"]
    assert (one["environment"].get("processes"), two["environment"]["processes"]) == (None, 2)
    assert printed.count("epoch 1/2: loss") == 1, "only the main process logs"
    assert two["id"] == one["id"], "the number of processes is no part of the configuration"


def test_a_single_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join("cpu") is SINGLE_PROCESS
    embeddings = torch.rand(3, 2, requires_grad=True)
    assert SINGLE_PROCESS.gather(embeddings, 3) is embeddings
    assert SINGLE_PROCESS.from_main(lambda: 7) == 7
