"""Soups: means of recorded runs against means worked out from their files, and choices on validation classes only."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from retrieval_bench import load_embedder, soup
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.run import run
from tests.board_records import FAST


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[RuntimeConfig, list[Record], list[Record]]:
    """Three runs from one file of weights, of two seeds and two rates, and their twins on the validation split."""
    folder = tmp_path_factory.mktemp("soup")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), folder / "start.safetensors")
    runtime = RuntimeConfig(results=folder, keep=True, device="cpu", thumbnails=False)
    base = FAST.changed(model__weights=str(folder / "start.safetensors"), train__lr=1e-2)
    configs = [base, base.changed(seed=1), base.changed(train__lr=3e-2)]
    records = [run(config, runtime) for config in configs]
    return runtime, records, [run(config.changed(data__split="zero_shot_val"), runtime) for config in configs]


def weights(runtime: RuntimeConfig, record: Record) -> dict[str, torch.Tensor]:
    return load_file(runtime.results / "models" / f"{record.id}.safetensors")


def ids(records: list[Record]) -> list[str]:
    return [record.id for record in records]


def test_uniform_is_the_mean_of_all_and_has_a_record_of_its_own(
    kept: tuple[RuntimeConfig, list[Record], list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    runtime, records, _ = kept
    results = str(runtime.results)
    assert main(["soup", *ids(records), "--results", results, "--device", "cpu"]) == 0
    assert "soup(uniform, 3 of 3) of standard" in capsys.readouterr().out
    (record,) = (one for one in ResultsFolder(runtime.results).read_records() if "soup" in one.info)
    mean = weights(runtime, record)
    for name, value in mean.items():
        if value.is_floating_point():
            total = sum(weights(runtime, each)[name].double() for each in records)
            torch.testing.assert_close(value.double(), total / 3, rtol=1e-6, atol=1e-7)
    embedder = load_embedder(record.id, runtime.results).embedder
    assert all(torch.equal(value, mean[name]) for name, value in embedder.state_dict().items())
    assert record.info["soup"]["kept"] == ids(records)
    assert (record.info["soup"]["epochs"], record.training) == (0, {})
    assert record.cost["images_seen"] == sum(each.cost["images_seen"] for each in records)
    assert record.cost["train_seconds"] == pytest.approx(sum(each.cost["train_seconds"] for each in records), abs=0.1)
    assert main(["soup", *ids(records), "--results", results, "--device", "cpu"]) == 0
    assert "already recorded" in capsys.readouterr().err
    for words in (["leaderboard"], ["compare", record.id, records[0].id], ["report"]):
        assert main([*words, "--results", results]) == 0


def test_greedy_keeps_what_helps_on_validation_classes(
    kept: tuple[RuntimeConfig, list[Record], list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best twin alone, then means with the next ones: a worse one is left out, one that is as good is kept. The
    test classes are looked at once, for the runs of these twins."""
    runtime, records, twins = kept
    order = sorted(range(3), key=lambda number: -twins[number].metrics["recall_at_1"])
    best = twins[order[0]].metrics["recall_at_1"]
    scripted = {(order[0], order[1]): best - 0.1, (order[0], order[2]): best}
    looks: list[str] = []

    def measured(embedder: Embedder, config: RunConfig, runtime: RuntimeConfig) -> Any:
        looks.append(config.data.split)
        if config.data.split == "zero_shot":
            return measure(embedder, config, runtime)
        first = embedder.state_dict()["backbone.net.conv1.0.weight"]
        members = {
            pair: sum(weights(runtime, twins[each])["backbone.net.conv1.0.weight"] for each in pair) / 2
            for pair in scripted
        }
        (pair,) = (pair for pair, mean in members.items() if torch.allclose(first, torch.as_tensor(mean), atol=1e-6))
        return SimpleNamespace(metrics={"recall_at_1": scripted[pair]}), None, 16

    measure = soup._measure
    monkeypatch.setattr(soup, "_measure", measured)
    record = soup.make_soup(ids(records), "greedy", runtime)
    assert looks == ["zero_shot_val", "zero_shot_val", "zero_shot"]
    info = record.info["soup"]
    assert info["kept"] == [records[order[0]].id, records[order[2]].id]
    assert info["validation_records"] == [twins[number].id for number in order]
    assert info["validation_recall_at_1"] == [best, best - 0.1, best]
    name = "backbone.net.conv1.0.weight"
    mean = (weights(runtime, records[order[0]])[name] + weights(runtime, records[order[2]])[name]) / 2
    torch.testing.assert_close(weights(runtime, record)[name], mean)
    assert record.cost["images_seen"] == sum(each.cost["images_seen"] for each in (*records, *twins)) + 2 * 16


@pytest.mark.parametrize(
    ("change", "way", "message"),
    [
        ({"train__epochs": 2}, "uniform", "differ in train.epochs: only seed, train.lr, loss.loss_lr may"),
        ({"model__weights": "none", "seed": 1}, "uniform", "differ in model.weights"),
        ({"seed": 2}, "greedy", "on the validation split: python .* --seed 2 .*--split zero_shot_val --keep --results"),
    ],
)
def test_what_makes_no_soup(
    change: dict[str, Any],
    way: soup.Way,
    message: str,
    kept: tuple[RuntimeConfig, list[Record], list[Record]],
) -> None:
    runtime, records, _ = kept
    config = FAST.changed(model__weights=str(runtime.results / "start.safetensors"), train__lr=1e-2)
    other = run(config.changed(**change), runtime)
    with pytest.raises(UserError, match=message):
        soup.make_soup([records[0].id, other.id], way, runtime)


def test_runs_from_random_weights_of_two_seeds_and_single_runs_make_no_soup(tmp_path: Path) -> None:
    runtime = RuntimeConfig(results=tmp_path, keep=True, device="cpu", thumbnails=False)
    names = ids([run(FAST.changed(seed=seed, train__epochs=0), runtime) for seed in (0, 1)])
    with pytest.raises(UserError, match="start from other weights, drawn by seed"):
        soup.make_soup(names, "uniform", runtime)
    for few in (names[:1], names[:1] * 2):
        with pytest.raises(UserError, match="give at least two runs, each once"):
            soup.make_soup(few, "uniform", runtime)
