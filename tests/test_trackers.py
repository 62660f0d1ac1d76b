"""Trackers show what the record holds; whatever they do, the run is not harmed."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retrieval_bench.cli import main
from retrieval_bench.trackers import Trackers

RUN = "run --dataset synthetic --backbone resnet10t --weights none --image-size 32 --epochs 2 --device cpu"
CONFIG = {"train.epochs": 2}


def test_tensorboard_has_the_losses_and_metrics_of_the_record(tmp_path: Path) -> None:
    assert main([*RUN.split(), "--results", str(tmp_path), "--track", "tensorboard"]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == record["id"]
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(record["training"]["loss_per_epoch"])
    assert events.Scalars("recall_at_1")[0].value == pytest.approx(record["metrics"]["recall_at_1"])
    assert events.Scalars("rate/layer1.0")[0].value == pytest.approx(3e-4)


def fake_wandb(calls: list[Any], error: Exception | None = None) -> types.ModuleType:
    def log(values: Any, step: int) -> None:
        calls.append((values, step))
        if error:
            raise error

    module: Any = types.ModuleType("wandb")
    run = types.SimpleNamespace(log=log, finish=lambda: calls.append("finish"))
    module.init = lambda **settings: calls.append((settings["name"], settings["config"])) or run
    return module


def fake_mlflow(calls: list[Any]) -> types.ModuleType:
    module = types.ModuleType("mlflow")
    for name in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(module, name, lambda *args, name=name, **named: calls.append((name, args, named)))
    return module


def test_wandb_and_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb: list[Any] = []
    mlflow: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(wandb))
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(mlflow))
    trackers = Trackers(("wandb", "mlflow"), "run-1", CONFIG, tmp_path)
    trackers.log({"loss": 1.0}, 1)
    trackers.close()
    assert wandb == [("run-1", CONFIG), ({"loss": 1.0}, 1), "finish"]
    assert mlflow[1:] == [
        ("start_run", (), {"run_name": "run-1"}),
        ("log_params", (CONFIG,), {}),
        ("log_metrics", ({"loss": 1.0},), {"step": 1}),
        ("end_run", (), {}),
    ]


def test_a_tracker_that_fails_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, ConnectionError("no network")))
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed
    trackers = Trackers(("wandb", "mlflow"), "run-1", CONFIG, tmp_path)
    for epoch in (1, 2):
        trackers.log({"loss": 1.0}, epoch)
    trackers.close()
    printed = capsys.readouterr().err
    assert printed.count("no longer tracked with wandb: no network") == 1
    assert printed.count("not tracked with mlflow") == 1
    assert len(calls) == 2
