"""Many runs: what is recorded is left alone, what fails is listed, the others go on; outcomes come in the order of the configurations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.grid import call
from retrieval_bench.grid.carry_out import carry_out, run_ids, settled
from retrieval_bench.grid.engines import Local, Place, Work
from retrieval_bench.grid.estimate import estimate
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig

BASE = RunConfig(
    strategy="frozen",
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
)
DIVERGES = replace(
    BASE,
    strategy="standard",
    loss=LossConfig(loss="softmax"),
    train=replace(BASE.train, optimizer="sgd", lr=1e30, epochs=3),
)
TOO_DEEP = replace(BASE, strategy="last_k", options=replace(BASE.options, last_k=type(BASE.options.last_k)(k=99)))


class InTurn(Local):
    """Carries out jobs one after the other, in this thread, so that what they say can be told apart."""

    def carry_out(self, work: Work, jobs: Sequence[Any]) -> Generator[tuple[int, Any]]:
        for number, job in enumerate(jobs):
            try:
                result = work(job, Place())
            except Exception as error:
                result = error
            yield number, result


def in_process(words: Sequence[str], log: Path, place: Place) -> int:
    """Stands for a process: the same command in this one, which spares it the imports."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output, contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        return main(words)


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of the processes that were begun."""
    commands: list[list[str]] = []

    def process(words: Sequence[str], log: Path, place: Place) -> int:
        commands.append(list(words))
        return in_process(words, log, place)

    monkeypatch.setattr(call, "run_process", process)
    monkeypatch.setattr("retrieval_bench.grid.engines.local_engine", lambda jobs, device: InTurn(jobs))
    return commands


def test_failures_are_listed_and_the_others_go_on(
    tmp_path: Path, begun: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    configs = [replace(BASE, seed=1), DIVERGES, TOO_DEEP, BASE]
    outcomes = carry_out(configs, RuntimeConfig(results=tmp_path), InTurn(), retries=3)
    assert [outcome.config for outcome in outcomes] == configs
    assert [outcome.record is None for outcome in outcomes] == [outcome.error is not None for outcome in outcomes]
    assert [outcome.error for outcome in outcomes if outcome.record] == [None, None]
    assert "lower --lr" in (outcomes[1].error or "")
    assert (outcomes[2].error or "").startswith("--last-k.k 99: the backbone has")
    assert len(begun) == 4, "what would only fail again is not tried again"
    for outcome in outcomes:
        log = (tmp_path / "logs" / f"{outcome.id}.log").read_text()
        assert (outcome.error or "recorded in") in log
        if outcome.record:
            assert outcome.record == json.loads((tmp_path / "runs" / f"{outcome.id}.json").read_text())
            assert outcome.record["id"] == outcome.id
            assert outcome.record["seed"] == outcome.config.seed
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["1/4", "2/4", "3/4", "4/4"]
    assert [line.split()[2] for line in said] == ["R@1", "failed:", "failed:", "R@1"]


def test_recorded_runs_are_not_made_again_and_equal_ones_once(tmp_path: Path, begun: list[list[str]]) -> None:
    configs = [BASE, replace(BASE, seed=1), BASE]
    run(configs[1], RuntimeConfig(results=tmp_path))
    outcomes = carry_out(configs, RuntimeConfig(results=tmp_path), InTurn())
    assert len(begun) == 1
    assert [outcome.config.seed for outcome in outcomes] == [0, 1, 0]
    assert outcomes[0].record == outcomes[2].record
    assert carry_out(configs, RuntimeConfig(results=tmp_path), InTurn()) == outcomes
    assert len(begun) == 1
    carry_out(configs[:1], RuntimeConfig(results=tmp_path, force=True), InTurn())
    assert "--force" in begun[1]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_run_that_breaks_down_is_tried_again_so_often(
    failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([-9, 1][:failures])

    def breaks(words: Sequence[str], log: Path, place: Place) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output:
            output.write("Traceback (most recent call last):\n  somewhere\nRuntimeError: shapes do not match\n\n")
        return next(codes, None) or in_process(words, log, place)

    monkeypatch.setattr(call, "run_process", breaks)
    (outcome,) = carry_out([BASE], RuntimeConfig(results=tmp_path), InTurn(), retries=1)
    assert (outcome.record is not None) == (failures == 1)
    assert outcome.error == (None if failures == 1 else "exit code 1: RuntimeError: shapes do not match")
    assert (tmp_path / "logs" / f"{outcome.id}.log").read_text().count("Traceback") == 2


@pytest.mark.parametrize(
    ("code", "text", "error"),
    [
        (-9, "epoch 1\n", "killed by SIGKILL"),
        (2, "epoch 1\nerror: no such thing\ntail\n", "no such thing"),
        (3, "\n", "exit code 3: it said nothing"),
    ],
)
def test_a_failure_is_what_was_said_last(code: int, text: str, error: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("error: of an earlier attempt\n" + text)
    assert call.last_error(log, len("error: of an earlier attempt\n"), code) == error


def test_an_engine_that_loses_a_job_has_failed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: Any) -> None:
        raise ConnectionError("the node has died\nand more")

    monkeypatch.setattr("retrieval_bench.grid.carry_out.make_run", lost)
    (outcome,) = carry_out([BASE], RuntimeConfig(results=tmp_path), InTurn())
    assert outcome.error == "ConnectionError: the node has died"


def test_a_record_that_is_not_there_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "run_process", lambda *_: 0)
    (outcome,) = carry_out([BASE], RuntimeConfig(results=tmp_path), InTurn())
    assert "is the results folder shared?" in (outcome.error or "")


def test_what_is_not_shared_is_collected(tmp_path: Path, own_cache: Path) -> None:
    apart = tmp_path / "driver"
    configs = [BASE, TOO_DEEP]
    outcomes = carry_out(configs, RuntimeConfig(results=apart, keep=True), InTurn(shared=False))
    assert outcomes[0].record == json.loads((apart / "runs" / f"{outcomes[0].id}.json").read_text())
    assert (apart / "models" / f"{outcomes[0].id}.safetensors").stat().st_size > 1000
    assert [(apart / "logs" / f"{outcome.id}.log").exists() for outcome in outcomes] == [True, True]
    assert outcomes[1].error
    left = [path for path in (own_cache / "collected").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not left, "the machine that made them keeps none"


def test_names_and_flags_are_those_of_the_run(tmp_path: Path, begun: list[list[str]]) -> None:
    weights = tmp_path / "w.safetensors"
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), weights)
    config = replace(BASE, model=replace(BASE.model, weights=str(weights)))
    machine = RuntimeConfig(results=tmp_path, workers=1, track=("tensorboard",), checkpoint_every=0, profile=True)
    (name,) = run_ids([config], settled(machine, InTurn()))
    assert run(config, replace(machine, track=()))["id"] == name
    carry_out([config], replace(machine, force=True, track=()), InTurn())
    words = " ".join(begun[0])
    assert all(
        flag in words
        for flag in (
            "--workers 1",
            "--checkpoint-every 0",
            "--profile",
            "--force",
            f"--weights {weights}",
            "--device cpu",
        )
    )


def test_nothing_is_begun_if_one_run_cannot_work(tmp_path: Path, begun: list[list[str]]) -> None:
    with pytest.raises(UserError, match="unknown loss"):
        carry_out([BASE, replace(BASE, loss=LossConfig(loss="none"))], RuntimeConfig(results=tmp_path), InTurn())
    with pytest.raises(UserError, match="--resume"):
        carry_out([BASE], RuntimeConfig(results=tmp_path, resume=tmp_path), InTurn())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        carry_out([BASE], RuntimeConfig(results=tmp_path / "file"), InTurn())
    assert not begun


def words(results: Path, *more: str) -> list[str]:
    flags = [
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--batch-size",
        "16",
        "--epochs",
        "1",
        "--no-freeze-bn",
    ]
    return ["sweep", "--dataset", "synthetic", *flags, "--results", str(results), *more]


def test_the_command_prints_a_plan_then_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: list[list[str]]
) -> None:
    grid = words(tmp_path, "--strategy", "frozen,standard", "--seed", "0,1")
    assert main([*grid, "--dry-run"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert len(plan) == 4 + 2
    assert "4 runs: 0 recorded, 4 to make, 1 at a time" in plan
    assert plan[-1].startswith("time unknown for 4")
    assert not begun
    assert main([*grid, "--strategy", "frozen"]) == 0
    assert "2 runs: 2 recorded, 0 failed" in capsys.readouterr().out
    assert main([*grid, "--dry-run", "--epochs", "3"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert sum(": about " in line for line in plan) == 2
    assert plan[-1].startswith("time unknown for 2")
    assert main(grid) == 0
    assert len(begun) == 4
    printed = capsys.readouterr()
    assert all(text in printed.out for text in ("frozen", "standard", "R@1", "4 runs: 4 recorded, 0 failed"))
    assert printed.err.count("\n") == 2, "two were recorded"
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 3


def test_the_command_ends_with_1_and_a_line_for_each_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path, "--strategy", "frozen,last_k", "--last-k.k", "99")) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2] == "2 runs: 1 recorded, 1 failed"
    assert printed[-1].startswith("failed: synthetic-last_k-")
    assert "--last-k.k 99: the backbone has" in printed[-1]
    assert str(tmp_path / "logs") in printed[-1]


def test_time_is_the_median_of_like_runs_by_epoch() -> None:
    def record(seconds: float, epochs: int, **other: Any) -> dict[str, Any]:
        config = {
            "strategy": "standard",
            "data": {"dataset": "cub", "image_size": 64},
            "model": {"backbone": "resnet18.a1_in1k"},
        }
        return {
            "config": {**config, "train": {"epochs": epochs}, **other},
            "cost": {"total_seconds": seconds},
            "environment": {"device": "cpu: a processor"},
        }

    records = [
        record(10, 1),
        record(60, 2),
        record(40, 2),
        record(999, 1, strategy="frozen"),
        record(999, 1, model={"backbone": "vit"}),
    ]
    config = RunConfig(
        data=DataConfig(dataset="cub", image_size=64),
        model=ModelConfig(backbone="resnet18"),
        train=TrainConfig(epochs=4),
    )
    assert estimate([config, replace(config, strategy="l2sp")], records, "cpu") == [80, None]
    assert estimate([config], records, "cuda") == [None]
