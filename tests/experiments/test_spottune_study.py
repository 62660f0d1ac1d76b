"""The SpotTune paper's table, the figure of routes, and the table of all strategies."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig
from retrieval_bench.experiments.spottune import COMPARED, PROFILES, SETS, STUDIES, TABLE, ZERO_SHOT
from retrieval_bench.experiments.study import Row, measured_table, readable_table
from retrieval_bench.strategies import STRATEGIES, split_names

SMALL = ["smoke", "--backbone", "resnet10t", "--seeds", "0", "--results"]


def rows_of(dataset: str) -> dict[str, Row]:
    base = PROFILES["paper"].base
    return {
        entry.name: entry
        for entry in STUDIES["table_spottune"].rows(replace(base, data=replace(base.data, dataset=dataset)))
    }


def test_the_paper_s_setting() -> None:
    base = PROFILES["paper"].base
    train = base.train
    assert (base.data.split, base.data.image_size, base.loss.loss, base.loss.head) == (
        "closed_set",
        224,
        "softmax",
        "linear",
    )
    assert (train.epochs, train.batch_size, train.optimizer, train.lr, train.freeze_bn) == (40, 32, "sgd", 0.01, False)
    assert (train.schedule, train.decay_at * 40, train.second_decay_at * 40, train.decay_factor) == (
        "step",
        15,
        30,
        0.1,
    )
    assert base.options.spottune.policy_lr == base.options.global_k.policy_lr == 1e-4


@pytest.mark.parametrize(("place", "dataset"), list(enumerate(SETS)))
def test_quoted_values_are_those_of_the_data_set(place: int, dataset: str) -> None:
    rows = rows_of(dataset)
    assert {name: entry.quoted for name, entry in rows.items() if name != "Rollback"} == {
        name: {"accuracy": values[place]} for name, values in TABLE.items()
    }
    assert rows["Rollback"].quoted == {}, "the paper has no such row"


def test_known_cells_and_another_data_set() -> None:
    assert rows_of("cub")["SpotTune"].quoted == {"accuracy": 84.03}
    assert rows_of("wikiart")["SpotTune, tuned blocks only"].quoted == {"accuracy": 67.27}
    assert rows_of("flowers")["SpotTune Global-k"].quoted == {"accuracy": 96.60}
    assert not any(entry.quoted for entry in rows_of("folder").values())


def test_the_deeper_network_is_a_plain_configuration_where_its_weights_can_be_had() -> None:
    assert rows_of("cub")["ResNet-101"].config.model.backbone == "torchvision/resnet101"
    assert rows_of("cub")["ResNet-101"].config.strategy == "standard"
    base = PROFILES["paper"].base
    file = replace(base, model=replace(base.model, weights="resnet50.pth"))
    assert "ResNet-101" not in {entry.name for entry in STUDIES["table_spottune"].rows(file)}


def test_every_strategy_is_compared() -> None:
    """But for weight_variation, which trains as standard does, and network_slimming, which needs norms that train."""
    compared = {name for strategy in COMPARED.values() for name in split_names(strategy)}
    assert compared == set(STRATEGIES) - {"weight_variation", "network_slimming"}
    assert len(ZERO_SHOT["emoji"].seeds) >= 3


def test_a_row_may_be_another_way_to_use_the_same_network() -> None:
    config = RunConfig()
    rows = [
        Row("usual", config),
        Row("drawn", config, against="usual", variant="sample"),
        Row("missing", config, variant="all_tuned"),
    ]
    metrics: dict[str, Any] = {f"recall_at_{k}": 0.5 for k in (1, 2, 4, 8)}
    sample = {**dict.fromkeys(metrics, 0.25), "recall_at_1_sd": 0.02, "draws": 3}
    cost = {"parameters": 2e6, "macs": 3e9, "images_seen": 1000, "train_seconds": 1.0}
    record = {"seed": 0, "metrics": metrics, "variants": {"sample": sample}, "cost": cost}
    without = {**record, "seed": 1}
    del without["variants"]  # a record from before, or of another strategy
    table = measured_table(rows, {row.name: [record, without] for row in rows})
    shown = readable_table(table)
    assert list(shown["R@1"]) == ["50.00", "25.00", ""]
    assert list(shown["params"]) == ["2.00 M", "", ""], "another network"
    assert list(shown["R@1 difference"]) == ["", "-25.00", ""]
    assert list(shown["R@1, sd over draws"]) == ["", "2.00", ""]


def test_table_has_accuracies_and_shares_runs_with_the_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "table_spottune", *SMALL, str(tmp_path), "--rows", "2", "10", "12"]) == 0
    printed = capsys.readouterr()
    assert "| top-1 |" in printed.out
    lines = list(csv.DictReader((tmp_path / "studies" / "table_spottune-smoke.csv").open(encoding="utf-8")))
    measured = {line["row"]: line["accuracy"] for line in lines if line["accuracy"]}
    assert measured.keys() == {"Standard", "SpotTune, tuned blocks only", "SpotTune"}
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert main(["study", "figure_routes", *SMALL, str(tmp_path)]) == 0
    assert "already recorded" in capsys.readouterr().err
    assert (tmp_path / "studies" / "figure_routes-smoke.png").read_bytes().startswith(b"\x89PNG")


def test_figure_is_drawn_without_the_images_and_not_without_routes(tmp_path: Path) -> None:
    import numpy as np

    from retrieval_bench.data.table import ImageTable
    from retrieval_bench.figures.routes import draw

    images = ImageTable(tmp_path, (), np.zeros(0, dtype=np.int64), ())
    draw({"standard": [{"facts": {}, "seed": 0}]}, tmp_path / "nothing.png", "heading", images, [])
    assert not list(tmp_path.iterdir())
    rates = [[0.5, 0.25]]
    learned = {"argmax_rate_per_epoch": rates, "entropy_per_epoch": rates}
    tested = {"images": 3, "distinct": 2, "entropy_bits": 0.9, "rate": [0.5, 0.1], "rate_by_class": {"a": [0.5, 0.1]}}
    facts = json.loads(
        json.dumps({"spottune": learned, "routes": {**tested, "examples": {"gone.jpg": "01", "away.jpg": "11"}}})
    )
    data = {"dataset": "cub", "split": "zero_shot", "image_size": 96, "classes": 4}
    config = {"data": data, "model": {"backbone": "resnet50"}, "train": {"epochs": 2}}
    record = {"facts": facts, "config": config, "finished": "2026-01-01", "seed": 0}
    draw({"spottune": [record]}, tmp_path / "routes.png", "heading", images, [record, {"facts": {}}])
    assert (tmp_path / "routes.png").stat().st_size > 10_000
