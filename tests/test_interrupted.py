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

FLAGS = [
    "--dataset",
    "synthetic",
    "--backbone",
    "resnet10t",
    "--weights",
    "none",
    "--image-size",
    "32",
    "--batch-size",
    "16",
]
EPOCHS = 6


def command(results: Path, *more: str, epochs: int = 3) -> list[str]:
    return ["run", *FLAGS, "--epochs", str(epochs), "--results", str(results), "--device", "cpu", *more]


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(words: list[str]) -> subprocess.Popen[str]:
    """As from a terminal: a shell that put the tests into the background made them, and what they start, deaf to Ctrl-C."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "retrieval_bench", *words]
    return subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_interrupts)


def wait_for(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < end, f"no {pattern}"
        time.sleep(0.02)


def only_record(results: Path) -> dict[str, Any]:
    (path,) = (results / "runs").glob("*.json")
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run that was left alone."""
    results = tmp_path_factory.mktemp("straight")
    assert main(command(results, epochs=EPOCHS)) == 0
    return only_record(results)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_run_goes_on_with_the_same_command_to_the_same_numbers(
    sent: signal.Signals, status: int, straight: dict[str, Any], tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    process = start(command(stopped, epochs=EPOCHS))
    wait_for(stopped, "checkpoints/*/epoch-0002")
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in said
    if sent != signal.SIGKILL:
        assert said.splitlines()[-1].startswith("interrupted: the same command goes on")
    assert not list(stopped.glob("runs/*.json"))
    (folder,) = (stopped / "checkpoints").glob("synthetic*")
    done = max(int(path.name.split("-")[1]) for path in folder.glob("epoch-*"))
    assert 2 <= done < EPOCHS
    assert len(list(folder.glob("epoch-*"))) == 2, "the last two"
    assert main(command(stopped, epochs=EPOCHS)) == 0
    assert only_record(stopped)["training"]["resumed"] == [done]
    assert not list(folder.glob("epoch-*")), "its checkpoints are gone"
    assert only_record(stopped)["metrics"] == straight["metrics"]
    assert only_record(stopped)["training"]["loss_per_epoch"] == straight["training"]["loss_per_epoch"]


def test_of_two_processes_on_one_run_one_waits_and_finds_the_record(tmp_path: Path) -> None:
    processes = [start(command(tmp_path)) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("waiting for another process that is running" in text for text in said) == 1
    assert sum("already recorded" in text for text in said) == 1
    assert sum("epoch 3/3" in text for text in said) == 1
    only_record(tmp_path)


def test_checkpoints_of_another_configuration_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start(command(tmp_path, epochs=EPOCHS))
    wait_for(tmp_path, "checkpoints/*/epoch-0001")
    process.kill()
    process.communicate()
    (folder,) = (tmp_path / "checkpoints").glob("synthetic*")
    assert main(command(tmp_path / "other", "--lr", "0.01", "--resume", str(folder), epochs=EPOCHS)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "another configuration: train.lr 0.0003, now 0.01" in line
    assert not list((tmp_path / "other").rglob("*.json"))


def test_a_negative_number_of_epochs_between_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--checkpoint-every", "-1")) == 2
    assert "--checkpoint-every -1: give a number of epochs" in capsys.readouterr().err


def test_from_the_beginning_when_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start(command(tmp_path, epochs=8))
    wait_for(tmp_path, "checkpoints/*/epoch-0001")
    process.kill()
    process.communicate()
    assert main(command(tmp_path, "--force", epochs=8)) == 0
    assert "going on after" not in capsys.readouterr().err
    assert "resumed" not in only_record(tmp_path)["training"]
