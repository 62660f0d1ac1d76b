"""One run from configuration to record, on every kind of split, and what may go wrong on the way."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import retrieval_bench
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.sets.synthetic import draw
from retrieval_bench.errors import UserError
from retrieval_bench.files import Locked
from retrieval_bench.identity import run_ids
from retrieval_bench.models.build import full_name
from retrieval_bench.records import Record, ResultsFolder, read_record
from retrieval_bench.run import run
from retrieval_bench.sections import ModelConfig
from tests.board_records import FAST, RUN

MODULE = sys.modules["retrieval_bench.run"]


def words(results: Path, *more: str) -> list[str]:
    usual = "--seeds 0 --backbone resnet10t --epochs 1".split()
    return ["bench", "synthetic", "--results", str(results), *usual, *more]


def test_bench_makes_records_and_a_table_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path)) == 0
    printed = capsys.readouterr()
    assert all(name in printed.out for name in ("frozen", "last_k(k=3)", "standard", "R@1"))
    records = ResultsFolder(tmp_path).read_records()
    assert [record.config["strategy"] for record in records] == ["frozen", "last_k", "standard"]
    frozen, last_k, standard = (record.cost for record in records)
    assert (frozen["images_seen"], last_k["images_seen"], standard["images_seen"]) == (0, 64, 64)
    trained = [cost["trained_parameters"] for cost in (frozen, last_k, standard)]
    assert 0 == trained[0] < trained[1] < trained[2] == standard["parameters"]
    assert (tmp_path / "leaderboard.csv").read_text().startswith("dataset,")
    assert main(words(tmp_path)) == 0
    assert capsys.readouterr().err.count("already recorded") == 3


def test_record_holds_all_that_is_promised_and_gives_its_run_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(FAST, RuntimeConfig(results=tmp_path))
    path = tmp_path / "runs" / f"{record.id}.json"
    assert record == read_record(path)
    assert record.id == f"synthetic-standard-{record.config_hash}-s0-cpu"
    assert record.metrics.keys() >= {"recall_at_1", "recall_at_8", "mrr", "map_at_r", "queries"}
    assert record.cost.keys() >= {"parameters", "macs", "images_seen", "train_seconds", "test_seconds", "latency_ms"}
    assert record.environment.keys() >= {"device", "threads", "git_revision", "versions"}
    sides = {"train_images": 64, "train_classes": 8, "test_images": 64, "test_classes": 8}
    assert record.data == {"images": 128, **sides, "query_images": 64, "gallery_images": 64}
    assert len(record.config["data"]["files_fingerprint"]) == 64
    assert len(record.loss_per_epoch) == 1
    assert str(tmp_path) not in path.read_text(), "no path of the machine"
    assert main(["run", "--config", str(path), "--results", str(tmp_path), "--no-keep-new"]) == 0
    assert "already recorded" in capsys.readouterr().err
    assert main(["run", f"--config={path}", "--seed", "1", "--results", str(tmp_path), "--no-keep-new"]) == 0
    assert f"is another run than {record.id}" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_numbers_whatever_the_workers(tmp_path: Path) -> None:
    first = run(FAST, RuntimeConfig(results=tmp_path, workers=0))
    again = run(FAST, RuntimeConfig(results=tmp_path, workers=2, force=True))
    other = run(replace(FAST, seed=1), RuntimeConfig(results=tmp_path))
    assert (first.metrics, first.training) == (again.metrics, again.training)
    assert first.training != other.training


def test_validation_splits_never_touch_the_test_classes(tmp_path: Path) -> None:
    record = run(FAST.changed(data__split="zero_shot_val"), RuntimeConfig(results=tmp_path))
    assert (record.data["train_classes"], record.data["test_classes"]) == (6, 2)
    folds = FAST.changed(strategy="frozen", data__split="kfold", data__folds=3)
    records = [run(folds.changed(data__fold=fold), RuntimeConfig(results=tmp_path)) for fold in range(3)]
    assert [(record.data["train_classes"], record.data["test_classes"]) for record in records] == [
        (5, 3),
        (5, 3),
        (6, 2),
    ]
    assert "--split kfold --fold 1 --folds 3" in records[1].command


@pytest.mark.parametrize("option", ["model.weights", "options.spottune.policy_weights"])
def test_weight_files_are_recorded_by_name_and_content(option: str, tmp_path: Path) -> None:
    path, other, results = tmp_path / "my.safetensors", tmp_path / "other.safetensors", tmp_path / "results"
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    save_file(state, path)
    save_file({name: value + 0.1 if value.is_floating_point() else value for name, value in state.items()}, other)
    base = FAST.changed(train__epochs=0)
    if option != "model.weights":
        base = base.changed(strategy="spottune", options__spottune__policy="resnet10t")

    def with_weights(file: Path) -> RunConfig:
        return base.changed(**{option.replace(".", "__"): str(file)})

    first = run(with_weights(path), RuntimeConfig(results=results))
    assert "my.safetensors" in first.labels["weights"] + first.strategy
    assert str(tmp_path) not in json.dumps(first.to_json())
    path.rename(tmp_path / "renamed.safetensors")
    assert run(with_weights(tmp_path / "renamed.safetensors"), RuntimeConfig(results=results)) == first
    other.rename(path)
    configs = [with_weights(path), with_weights(tmp_path / "renamed.safetensors")]
    ids = [run(config, RuntimeConfig(results=results)).id for config in configs]
    assert ids[0] != ids[1] == first.id
    assert list(run_ids(configs, RuntimeConfig(device="cpu"))) == ids


def test_a_broken_record_of_the_same_run_is_not_overwritten(tmp_path: Path) -> None:
    config = replace(FAST, strategy="frozen")
    path = ResultsFolder(tmp_path).record(run(config, RuntimeConfig(results=tmp_path)).id)
    for failure in ("not json", '{"schema": 1}'):
        path.write_text(failure)
        with pytest.raises(UserError, match="--force"):
            run(config, RuntimeConfig(results=tmp_path))
        assert path.read_text() == failure


def test_a_run_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    (run_id,) = run_ids([FAST], RuntimeConfig(device="cpu"))
    with ResultsFolder(tmp_path).lock(run_id), pytest.raises(Locked):
        run(FAST, RuntimeConfig(results=tmp_path), wait=False)
    assert run(FAST, RuntimeConfig(results=tmp_path), wait=False).id == run_id


def folder_of_images(root: Path, ending: str = "png") -> Path:
    for label in range(4):
        (root / f"c{label}").mkdir(parents=True)
        for index in range(4):
            Image.fromarray(draw(label, index)).save(root / f"c{label}" / f"{index}.{ending}")
    return root


def test_closed_set_trains_and_tests_on_the_same_classes(tmp_path: Path) -> None:
    for side in ("train", "test"):
        folder_of_images(tmp_path / "images" / side)
    config = FAST.changed(data__dataset="folder", data__split="closed_set", train__batch_size=4)
    record = run(config, RuntimeConfig(results=tmp_path, data_root=tmp_path / "images"))
    assert (record.data["train_classes"], record.data["test_classes"]) == (4, 4)
    assert (record.data["train_images"], record.data["test_images"]) == (16, 16)


def table_of_images(root: Path) -> Path:
    """24 drawn images: two classes train; of each of four test classes one image is a query, two are in the gallery and
    one is both."""
    root.mkdir()
    rows = ["path,label,split,query,gallery"]
    for label in range(6):
        for index in range(4):
            Image.fromarray(draw(label, index)).save(root / f"{label}-{index}.png")
            role = ("train", 1, 1) if label < 2 else ("test", int(index in (0, 3)), int(index != 0))
            rows.append(f"{label}-{index}.png,{label},{role[0]},{role[1]},{role[2]}")
    (root / "images.csv").write_text("\n".join(rows))
    return root / "images.csv"


@pytest.mark.parametrize("reader", ["pil", "cache"])
def test_queries_are_searched_in_the_gallery(reader: Literal["pil", "cache"], tmp_path: Path) -> None:
    config = FAST.changed(data__dataset="table", data__reader=reader, model__backbone="resnet18", train__batch_size=4)
    record = run(config, RuntimeConfig(results=tmp_path, data_root=table_of_images(tmp_path / "images")))
    names = ("train_images", "test_images", "query_images", "gallery_images", "test_classes")
    assert [record.data[name] for name in names] == [8, 16, 8, 12, 4]
    assert (record.metrics["queries"], record.metrics["queries_without_positive"]) == (8, 0)


def test_cache_that_would_be_too_large_stops_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--cache-limit-gb"):
        run(FAST.changed(data__reader="cache", data__stored=39), RuntimeConfig(results=tmp_path, cache_limit_gb=1e-6))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("victim", ["c0/1.png", "c3/2.png"])
def test_corrupt_image_in_training_or_test_is_named_and_nothing_is_recorded(
    victim: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of_images(tmp_path / "images")
    (root / victim).write_bytes((root / victim).read_bytes()[:200])
    place = ["--data-root", str(root), "--results", str(tmp_path / "r")]
    assert main([*RUN.split(), "--dataset", "folder", "--batch-size", "4", *place]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert victim in line
    assert not list((tmp_path / "r").rglob("*.json"))


def test_a_non_finite_loss_is_one_line_and_nothing_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--strategies standard --optimizer sgd --lr 1e30 --loss softmax --epochs 3".split()
    assert main(words(tmp_path, *options)) == 1
    assert "lower --lr" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def failing(error: BaseException) -> Any:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("place", "error", "code", "message"),
    [
        ((MODULE, "train"), KeyboardInterrupt(), 130, "interrupted"),
        ((MODULE, "train"), MemoryError(), 2, "--micro-batch"),
        ((MODULE, "train"), RuntimeError("CUDA out of memory. Tried"), 2, "--micro-batch"),
        ((MODULE, "train"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 2, "--micro-batch"),
        ((os, "fsync"), OSError(errno.ENOSPC, "No space left on device", "x"), 2, "x: No space left on device"),
    ],
)
def test_interrupts_exhausted_memory_and_a_full_disk_are_one_line_and_leave_nothing(
    place: tuple[Any, str],
    error: BaseException,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(*place, failing(error))
    assert main([*RUN.split(), "--strategy", "frozen", "--results", str(tmp_path)]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_bug_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "train", failing(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        main([*RUN.split(), "--results", str(tmp_path)])


def test_what_an_interrupted_benchmark_finished_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, calls = MODULE.train, []

    def second_call_is_interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(MODULE, "train", second_call_is_interrupted)
    assert main(words(tmp_path)) == 130
    assert "frozen" in capsys.readouterr().out
    assert len((tmp_path / "leaderboard.csv").read_text().splitlines()) == 2


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
    config = FAST.changed(loss__loss=loss, loss__loss_lr=1e-2, train__epochs=8, train__lr=2e-3)
    before = run(replace(config, strategy="frozen"), RuntimeConfig(results=tmp_path)).metrics["recall_at_1"]
    assert run(config, RuntimeConfig(results=tmp_path)).metrics["recall_at_1"] > before + 0.1


def test_the_public_names_are_functions_whatever_was_imported_first() -> None:
    assert retrieval_bench.run is run
    assert retrieval_bench.Record is Record
    assert all(callable(getattr(retrieval_bench, name)) for name in retrieval_bench.__all__)  # pyright: ignore[reportAttributeAccessIssue]


def test_images_that_change_give_another_run_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of the same file size and name in place of others; replaced before the run, then while it measures."""
    root = folder_of_images(tmp_path / "mine", "bmp")
    config = FAST.changed(data__dataset="folder", train__batch_size=4)
    runtime = RuntimeConfig(results=tmp_path / "results", data_root=root, thumbnails=False)
    first = run(config, runtime)
    Image.fromarray(draw(9, 9)).save(root / "c3" / "1.bmp")
    second = run(config, runtime)
    assert second.id != first.id
    measure = MODULE.measure_run

    def replaced(*values: Any) -> Any:
        Image.fromarray(draw(8, 8)).save(root / "c0" / "1.bmp")
        return measure(*values)

    monkeypatch.setattr(MODULE, "measure_run", replaced)
    with pytest.raises(UserError, match=r"c0/1\.bmp: was changed while images were read"):
        run(config, replace(runtime, force=True))
    assert len(ResultsFolder(tmp_path / "results").read_records()) == 2
