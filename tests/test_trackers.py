"""Trackers show what the record holds; whatever they do, the run is not harmed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import MagicMock, call

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retrieval_bench.cli import main
from retrieval_bench.trackers import Trackers
from tests.board_records import RUN

CONFIG = {"train.epochs": 2}
VALIDATE = ("--validate", "0.25")


def test_tensorboard_has_the_losses_and_metrics_of_the_record(tmp_path: Path) -> None:
    assert main([*RUN.split(), "--epochs", "2", "--results", str(tmp_path), "--track", "tensorboard", *VALIDATE]) == 0
    (path,) = (tmp_path / "runs").glob("*.json")
    record = json.loads(path.read_text())
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == record["id"]
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(record["training"]["loss_per_epoch"])
    losses = events.Scalars("step/loss")
    assert [event.step for event in losses] == list(range(1, len(losses) + 1))
    per_epoch = [[event.value for event in losses[place:][: len(losses) // 2]] for place in (0, len(losses) // 2)]
    assert list(map(fmean, per_epoch)) == pytest.approx(record["training"]["loss_per_epoch"])
    recalls = [event.value for event in events.Scalars("validation/recall_at_1")]
    assert recalls == pytest.approx(record["training"]["validation_recall_at_1"])
    assert events.Scalars("recall_at_1")[0].value == pytest.approx(record["metrics"]["recall_at_1"])
    assert events.Scalars("rate/layer1.0")[0].value == pytest.approx(3e-4)


def trackers(monkeypatch: pytest.MonkeyPatch, results: Path, **modules: Any) -> Trackers:
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return Trackers(modules, "run-1", CONFIG, results)


def test_wandb_and_mlflow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb, mlflow = MagicMock(), MagicMock()
    both = trackers(monkeypatch, tmp_path, wandb=wandb, mlflow=mlflow)
    both.log({"loss": 1.0}, 1)
    both.log({"step/loss": 2.0}, 7)
    both.close()
    started = call.init(project="retrieval_bench", name="run-1", config=CONFIG, dir=str(tmp_path))
    axes = [call.init().define_metric("*", step_metric="epoch")]
    axes += [call.init().define_metric("step/*", step_metric="step/number")]
    logged = [call.init().log({"loss": 1.0, "epoch": 1}), call.init().log({"step/loss": 2.0, "step/number": 7})]
    assert wandb.mock_calls == [started, *axes, *logged, call.init().finish()]
    started = [call.set_experiment("retrieval_bench"), call.start_run(run_name="run-1"), call.log_params(CONFIG)]
    logged = [call.log_metrics({"loss": 1.0}, step=1), call.log_metrics({"step/loss": 2.0}, step=7)]
    assert mlflow.mock_calls == [*started, *logged, call.end_run()]


def test_a_tracker_that_fails_costs_a_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = MagicMock()
    wandb.init.return_value.log.side_effect = ConnectionError("no network")
    failing = trackers(monkeypatch, tmp_path, wandb=wandb, mlflow=None)  # None: not installed
    for epoch in (1, 2):
        failing.log({"loss": 1.0}, epoch)
    failing.close()
    printed = capsys.readouterr().err
    assert printed.count("no longer tracked with wandb: no network") == 1
    assert printed.count("not tracked with mlflow") == 1
    assert [name for name, *_ in wandb.mock_calls].count("init().log") == 1
