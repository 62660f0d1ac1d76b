"""Runs that are stopped from outside, and runs that meet each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.cli import main
from tests.board_records import RUN


def command(results: Path, more: str = "", epochs: int = 6) -> list[str]:
    return [*f"{RUN} --epochs {epochs} {more}".split(), "--results", str(results)]


def start(words: list[str]) -> subprocess.Popen[str]:
    """As from a terminal: tests in the background of a shell ignore Ctrl-C, and so would what they start."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "retrieval_bench", *words]
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=listen)


def stop(words: list[str], results: Path, pattern: str, sent: signal.Signals) -> tuple[int, str]:
    """Sends a signal to the command once a checkpoint is there; its exit status and what it printed."""
    process, end = start(words), time.monotonic() + 120
    while not list(results.glob(f"checkpoints/*/{pattern}")):
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.02)
    process.send_signal(sent)
    _, printed = process.communicate(timeout=60)
    return process.returncode, printed


def only_record(results: Path) -> dict[str, Any]:
    (path,) = (results / "runs").glob("*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    results = tmp_path_factory.mktemp("undisturbed")
    assert main(command(results)) == 0
    return only_record(results)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_is_resumed_by_the_same_command_to_the_same_numbers(
    sent: signal.Signals, status: int, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    returned, printed = stop(command(tmp_path), tmp_path, "epoch-0002.pt", sent)
    assert returned == status
    assert "Traceback" not in printed
    if sent != signal.SIGKILL:
        assert printed.splitlines()[-1].startswith("interrupted: the same command")
    assert not list(tmp_path.glob("runs/*.json"))
    checkpoints = sorted(tmp_path.glob("checkpoints/*/epoch-*.pt"))
    assert len(checkpoints) == 2, "the last two"
    assert main(command(tmp_path)) == 0
    record = only_record(tmp_path)
    assert record["training"]["resumed"] == [int(checkpoints[-1].stem.split("-")[1])]
    assert not list(tmp_path.glob("checkpoints/*/*")), "its checkpoints are gone"
    assert record["metrics"] == undisturbed["metrics"]
    assert record["training"]["loss_per_epoch"] == undisturbed["training"]["loss_per_epoch"]


def test_of_two_processes_on_one_run_one_waits_and_finds_the_record(tmp_path: Path) -> None:
    processes = [start(command(tmp_path, epochs=3)) for _ in range(2)]
    printed = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    for text in ("waiting for another process", "already recorded", "epoch 3/3"):
        assert sum(text in words for words in printed) == 1, text
    only_record(tmp_path)


def test_checkpoints_of_another_configuration_are_refused_and_forced_runs_begin_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop(command(tmp_path), tmp_path, "epoch-0001.pt", signal.SIGKILL)
    (folder,) = (tmp_path / "checkpoints").glob("synthetic*")
    assert main(command(tmp_path / "other", f"--lr 0.01 --resume {folder}")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "another configuration: train.lr 0.0003, now 0.01" in line
    assert not list((tmp_path / "other").rglob("*.json"))
    assert main(command(tmp_path, "--force")) == 0
    assert "resumed" not in only_record(tmp_path)["training"]
