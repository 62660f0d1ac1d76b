"""One run from configuration to record, and what may go wrong on the way."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from retrieval_bench import run as run_module
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.grid.carry_out import run_ids
from retrieval_bench.models.build import full_name
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions
from retrieval_bench.strategies.spottune import SpotTune

FAST = RunConfig(
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
)


def words(results: Path, *more: str) -> list[str]:
    return [
        "bench",
        "synthetic",
        "--results",
        str(results),
        "--seeds",
        "0",
        "--backbone",
        "resnet10t",
        "--epochs",
        "1",
        *more,
    ]


def test_bench_makes_records_and_a_table_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    printed = capsys.readouterr()
    assert all(name in printed.out for name in ("frozen", "last_k(k=3)", "standard", "R@1"))
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs").iterdir())]
    assert [entry["config"]["strategy"] for entry in records] == ["frozen", "last_k", "standard"]
    frozen, last_k, standard = (entry["cost"] for entry in records)
    assert (frozen["images_seen"], last_k["images_seen"], standard["images_seen"]) == (0, 64, 64)
    assert (
        frozen["trained_parameters"]
        == 0
        < last_k["trained_parameters"]
        < standard["trained_parameters"]
        == standard["parameters"]
    )
    assert (tmp_path / "leaderboard.csv").read_text().startswith("dataset,")
    assert main(words(tmp_path)) == 0
    assert capsys.readouterr().err.count("already recorded") == 3


def test_record_holds_all_that_is_promised(tmp_path: Path) -> None:
    record = run(FAST, RuntimeConfig(results=tmp_path))
    assert record == json.loads((tmp_path / "runs" / f"{record['id']}.json").read_text())
    assert record["id"] == f"synthetic-standard-{record['config_hash']}-s0-cpu"
    assert record["metrics"].keys() >= {"recall_at_1", "recall_at_2", "recall_at_4", "recall_at_8", "queries"}
    assert record["cost"].keys() >= {
        "parameters",
        "macs",
        "images_seen",
        "train_seconds",
        "test_seconds",
        "peak_memory_mb",
    }
    assert record["environment"].keys() >= {"device", "threads", "git_revision", "versions"}
    assert record["data"] == {
        "images": 128,
        "train_images": 64,
        "train_classes": 8,
        "test_images": 64,
        "test_classes": 8,
    } | {
        "query_images": 64,
        "gallery_images": 64,
    }
    assert len(record["config"]["data"]["files_fingerprint"]) == 64
    assert len(record["training"]["loss_per_epoch"]) == 1
    assert str(tmp_path) not in json.dumps(record), "no path of the machine"


def test_the_same_seed_gives_the_same_numbers_whatever_the_workers(tmp_path: Path) -> None:
    first = run(FAST, RuntimeConfig(results=tmp_path, workers=0))
    again = run(FAST, RuntimeConfig(results=tmp_path, workers=2, force=True))
    other = run(replace(FAST, seed=1), RuntimeConfig(results=tmp_path))
    for part in ("metrics", "training"):
        assert first[part] == again[part]
    assert first["training"] != other["training"]


def test_validation_split_never_touches_the_test_classes(tmp_path: Path) -> None:
    record = run(replace(FAST, data=replace(FAST.data, split="zero_shot_val")), RuntimeConfig(results=tmp_path))
    assert (record["data"]["train_classes"], record["data"]["test_classes"]) == (6, 2)


def test_weight_files_are_recorded_by_name_and_content(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    path = tmp_path / "my.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), path)
    config = replace(FAST, strategy="frozen", model=replace(FAST.model, weights=str(path)))
    first = run(config, RuntimeConfig(results=tmp_path))
    assert first["labels"]["weights"] == "my.safetensors"
    path.rename(tmp_path / "renamed.safetensors")
    renamed = replace(config, model=replace(config.model, weights=str(tmp_path / "renamed.safetensors")))
    assert run(renamed, RuntimeConfig(results=tmp_path)) == first, "the content counts, not the name"
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    save_file({name: value + 0.1 if value.is_floating_point() else value for name, value in state.items()}, path)
    assert run(config, RuntimeConfig(results=tmp_path))["config_hash"] != first["config_hash"]


def test_so_are_those_of_a_policy_network(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    path, other = tmp_path / "policy.safetensors", tmp_path / "other.safetensors"
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    save_file(state, path)
    save_file({name: value + 1 for name, value in state.items()}, other)

    def routed(file: Path) -> RunConfig:
        policy = SpotTune.Options(policy="resnet10t", policy_weights=str(file))
        return replace(
            FAST, strategy="spottune", train=replace(FAST.train, epochs=0), options=StrategyOptions(spottune=policy)
        )

    first = run(routed(path), RuntimeConfig(results=tmp_path / "results"))
    assert first["labels"]["strategy"] == "spottune(policy=resnet10t, policy_weights=policy.safetensors)"
    assert str(tmp_path) not in json.dumps(first)
    path.rename(tmp_path / "renamed.safetensors")
    assert run(routed(tmp_path / "renamed.safetensors"), RuntimeConfig(results=tmp_path / "results")) == first
    other.rename(path)
    configs = [routed(path), routed(tmp_path / "renamed.safetensors")]
    found = [run(config, RuntimeConfig(results=tmp_path / "results"))["id"] for config in configs]
    assert found[0] != found[1] == first["id"]
    assert list(run_ids(configs, RuntimeConfig(device="cpu"))) == found


@pytest.mark.parametrize("failure", ["not json", '{"schema": 1}'])
def test_a_broken_record_of_the_same_run_is_not_overwritten(failure: str, tmp_path: Path) -> None:
    record = run(replace(FAST, strategy="frozen"), RuntimeConfig(results=tmp_path))
    path = tmp_path / "runs" / f"{record['id']}.json"
    path.write_text(failure)
    with pytest.raises(UserError, match="--force"):
        run(replace(FAST, strategy="frozen"), RuntimeConfig(results=tmp_path))
    assert path.read_text() == failure


def folder_of_images(root: Path) -> Path:
    for label in range(4):
        for index in range(4):
            (root / f"c{label}").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (60 * label, 10 * index, 90)).save(root / f"c{label}" / f"{index}.jpg")
    return root


@pytest.mark.parametrize("victim", ["c0/1.jpg", "c3/2.jpg"])
def test_corrupt_image_in_training_or_test_is_named_and_nothing_is_recorded(
    victim: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of_images(tmp_path / "images")
    (root / victim).write_bytes((root / victim).read_bytes()[:200])
    options = [
        "--backbone",
        "resnet10t",
        "--weights",
        "none",
        "--image-size",
        "32",
        "--batch-size",
        "4",
        "--epochs",
        "1",
    ]
    assert (
        main(["run", "--dataset", "folder", "--data-root", str(root), "--results", str(tmp_path / "r"), *options]) == 2
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert victim in line
    assert not list((tmp_path / "r").rglob("*.json"))


def test_nan_loss_is_one_line_and_nothing_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            words(
                tmp_path,
                "--strategies",
                "standard",
                "--optimizer",
                "sgd",
                "--lr",
                "1e30",
                "--loss",
                "softmax",
                "--epochs",
                "3",
            )
        )
        == 2
    )
    assert "lower --lr" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.json"))


def failing(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


def test_disk_full_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "retrieval_bench.files.os.fsync", failing(OSError(errno.ENOSPC, "No space left on device", "leaderboard"))
    )
    assert main(words(tmp_path, "--strategies", "frozen")) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_results_folder_that_cannot_be_written_stops_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("a file, not a folder")
    assert main(words(tmp_path / "results")) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("error: ")


def test_ctrl_c_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "train", failing(KeyboardInterrupt()))
    assert main(words(tmp_path)) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("interrupted")
    assert not list(tmp_path.rglob("*.json"))


def test_what_an_interrupted_benchmark_finished_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    execute, calls = run_module.train, []

    def second_call_is_interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return execute(*args)

    monkeypatch.setattr(run_module, "train", second_call_is_interrupted)
    assert main(words(tmp_path)) == 130
    assert "frozen" in capsys.readouterr().out
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you"),
    ],
)
def test_out_of_memory_is_one_line(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "train", failing(error))
    assert main(words(tmp_path)) == 2
    assert "lower --batch-size" in capsys.readouterr().err.splitlines()[-1]


def test_a_bug_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "train", failing(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        main(words(tmp_path))


def test_the_default_tag_of_timm_weights_is_part_of_the_identity() -> None:
    assert full_name(ModelConfig(backbone="resnet18")) == "resnet18.a1_in1k"
    assert full_name(ModelConfig(backbone="resnet18", weights="none")) == "resnet18"
    assert full_name(ModelConfig(backbone="resnet18.tv_in1k")) == "resnet18.tv_in1k"


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        run(FAST, RuntimeConfig(device="cuda"))


@pytest.mark.parametrize("loss", ["multi_similarity", "proxy_anchor"])
def test_fine_tuning_beats_an_untrained_network(loss: str, tmp_path: Path) -> None:
    config = replace(FAST, loss=LossConfig(loss=loss, loss_lr=1e-2), train=replace(FAST.train, epochs=8, lr=2e-3))
    before = run(replace(config, strategy="frozen"), RuntimeConfig(results=tmp_path))["metrics"]["recall_at_1"]
    after = run(config, RuntimeConfig(results=tmp_path))["metrics"]["recall_at_1"]
    assert after > before + 0.1
