"""Trackers are told what the record holds; whatever they do, the run is not harmed."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.cli import main
from retrieval_bench.trackers import Trackers, flat


def run(results: Path, *track: str) -> dict[str, Any]:
    words = [
        "run",
        "--dataset",
        "synthetic",
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--epochs",
        "2",
    ]
    assert main([*words, "--results", str(results), "--device", "cpu", "--track", *track]) == 0
    (path,) = (results / "runs").glob("*.json")
    return json.loads(path.read_text())


def test_tensorboard_has_the_losses_and_metrics_of_the_record(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == record["id"]
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(record["training"]["loss_per_epoch"])
    assert events.Scalars("recall_at_1")[0].value == pytest.approx(record["metrics"]["recall_at_1"])
    assert events.Scalars("rate/layer1.0")[0].value == pytest.approx(3e-4)


def fake_wandb(calls: list[Any], failing: bool) -> types.ModuleType:
    def log(values: Any, step: int) -> None:
        calls.append((values, step))
        if failing:
            raise ConnectionError("no network")

    module = types.ModuleType("wandb")
    made = types.SimpleNamespace(log=log, finish=lambda: calls.append("finish"))
    module.init = lambda **given: calls.append(given) or made  # pyright: ignore[reportAttributeAccessIssue]
    return module


def fake_mlflow(calls: list[Any]) -> types.ModuleType:
    module = types.ModuleType("mlflow")
    for name in ("set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        setattr(module, name, lambda *given, name=name, **named: calls.append((name, given, named)))
    return module


def test_the_others_are_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb, mlflow = [], []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(wandb, failing=False))
    monkeypatch.setitem(sys.modules, "mlflow", fake_mlflow(mlflow))
    record = run(tmp_path, "wandb", "mlflow")
    assert wandb[0]["name"] == record["id"]
    assert wandb[0]["config"]["train.epochs"] == 2
    assert [step for _, step in wandb[1:-1]] == [1, 2, 2]
    assert wandb[-1] == "finish"
    logged = [(given[0], named["step"]) for name, given, named in mlflow if name == "log_metrics"]
    assert logged == wandb[1:-1]
    assert mlflow[-1][0] == "end_run"


def test_one_that_fails_costs_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(calls, failing=True))
    monkeypatch.setitem(sys.modules, "mlflow", None)  # not installed
    run(tmp_path, "wandb", "mlflow")
    said = capsys.readouterr().err
    assert said.count("no longer tracked with wandb: no network") == 1
    assert said.count("not tracked with mlflow") == 1
    assert len(calls) == 2


def test_nothing_to_tell_is_nothing_done() -> None:
    trackers = Trackers()
    trackers.log({"loss": 1.0}, 1)
    trackers.close()
    assert flat({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
