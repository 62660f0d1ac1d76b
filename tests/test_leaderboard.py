"""Records and the table built from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from retrieval_bench.config import RunConfig
from retrieval_bench.identity import to_dict
from retrieval_bench.leaderboard import build_table
from retrieval_bench.records import SCHEMA, read_records, record_path, write_record
from retrieval_bench.tables import print_table, readable, write_tables


def record(strategy: str, seed: int, recall: float, **changes: Any) -> dict[str, Any]:
    """A record with everything that tables need."""
    cost = dict.fromkeys(("parameters", "trained_parameters", "macs", "images_seen", "train_seconds", "peak_memory_mb"), 1000000)
    return {
        "schema": SCHEMA,
        "id": f"{strategy}-{seed}",
        "seed": seed,
        "config_hash": f"hash-{strategy}",
        "config": to_dict(RunConfig()),
        "labels": {"strategy": strategy, "weights": "imagenet", "dim": 1280},
        "data": {},
        "metrics": {"recall_at_1": recall, "recall_at_10": recall + 0.1, "queries": 9},
        "cost": cost,
        "environment": {"device": "cpu: test"},
        **changes,
    }


def save(results: Path, *records: dict[str, Any]) -> None:
    for entry in records:
        write_record(record_path(results, entry["id"]), entry)


def test_one_row_per_configuration_with_mean_and_t_interval(tmp_path: Path) -> None:
    values = [0.5, 0.52, 0.57]
    save(tmp_path, record("frozen", 0, 0.4), *(record("standard", seed, value) for seed, value in enumerate(values)))
    table = write_tables(tmp_path)
    assert table["strategy"].tolist() == ["standard", "frozen"], "best first"
    best = table.iloc[0]
    assert best["seeds"] == 3
    assert best["recall_at_1"] == pytest.approx(0.53)
    low, high = stats.t.interval(0.95, 2, loc=0.53, scale=stats.sem(values))
    assert 2 * best["recall_at_1_ci95"] == pytest.approx(high - low, abs=1e-5)
    assert pd.isna(table.iloc[1]["recall_at_1_ci95"]), "one seed shows no spread"


def test_csv_and_markdown_are_written_and_do_not_change_when_rebuilt(tmp_path: Path) -> None:
    save(tmp_path, record("standard", 0, 0.5), record("standard", 1, 0.6), record("frozen", 0, 0.4))
    write_tables(tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in ("leaderboard.csv", "leaderboard.md")}
    write_tables(tmp_path)
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
    header = first["leaderboard.csv"].decode().splitlines()[0]
    assert header.startswith(
        "dataset,split,classes,backbone,weights,dim,image_size,loss,strategy,epochs,seeds,recall_at_1,recall_at_1_ci95,"
    )
    assert header.index("recall_at_1,") < header.index("recall_at_10,")
    assert "| standard | proxy_anchor | 4 | 2 | 55.00 ± 63.53 |" in first["leaderboard.md"].decode()


def test_devices_and_configurations_are_not_mixed(tmp_path: Path) -> None:
    other = record("standard", 0, 0.9, id="other", environment={"device": "cuda: test"})
    save(tmp_path, record("standard", 0, 0.5), other)
    assert len(write_tables(tmp_path)) == 2


def test_no_records_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_tables(tmp_path)
    assert not len(table)
    print_table(table)
    assert "make bench" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_broken_and_foreign_records_are_named_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, record("standard", 0, 0.5))
    runs = tmp_path / "runs"
    no_metrics = record("x", 0, 0.5)
    del no_metrics["metrics"]
    broken = {
        "truncated": json.dumps(record("x", 0, 0.5))[:100],
        "empty": "",
        "list": "[]",
        "no-recall": json.dumps(record("x", 0, 0.5) | {"metrics": {}}),
        "other-schema": json.dumps({"schema": 99}),
        "no-metrics": json.dumps(no_metrics),
        "text-seed": json.dumps(record("x", 0, 0.5) | {"seed": "zero"}),
    }
    for name, text in broken.items():
        (runs / f"{name}.json").write_text(text)
    (runs / "binary.json").write_bytes(b"\xff\xfe\x00")
    (runs / "folder.json").mkdir()
    assert [entry["id"] for entry in read_records(tmp_path)] == ["standard-0"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(broken) + 2
    assert all(line.startswith("skipped ") and any(name in line for name in (*broken, "binary", "folder")) for line in lines)


def test_nan_becomes_null_in_a_record(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", record("x", 0, 0.5, facts={"rates": [1.0, float("nan")], "k": float("inf")}))
    assert json.loads((tmp_path / "r.json").read_text())["facts"] == {"rates": [1.0, None], "k": None}


def test_a_copied_record_counts_once_and_the_newest_wins(tmp_path: Path) -> None:
    old = record("standard", 0, 0.4, id="old", finished="2026-01-01")
    new = record("standard", 0, 0.5, id="new", finished="2026-02-01")
    save(tmp_path, new, old, record("standard", 1, 0.6))
    row = write_tables(tmp_path).iloc[0]
    assert (row["seeds"], row["recall_at_1"]) == (2, pytest.approx(0.55))


def test_times_of_different_machines_are_not_averaged(tmp_path: Path) -> None:
    save(tmp_path, record("standard", 0, 0.5), record("standard", 1, 0.5, environment={"device": "cpu: other", "threads": 2}))
    row = write_tables(tmp_path).iloc[0]
    assert row["seeds"] == 2, "recall is comparable"
    assert pd.isna(row["train_seconds"]), "time is not"
    assert row["device"] == "cpu: other; cpu: test"


def test_records_with_other_k_or_without_a_cost_do_not_break_the_table(tmp_path: Path) -> None:
    other = record("other", 0, 0.5, metrics={"recall_at_1": 0.5, "recall_at_5": 0.7})
    del other["cost"]["macs"]
    save(tmp_path, record("standard", 0, 0.6), other)
    table = write_tables(tmp_path)
    assert table["recall_at_5"].isna().tolist() == [True, False]
    assert table["macs"].isna().tolist() == [False, True]
    assert readable(table)["MACs"].tolist() == ["1 M", ""]


def test_loss_and_epochs_are_blank_where_nothing_was_trained(tmp_path: Path) -> None:
    frozen = record("frozen", 0, 0.4)
    frozen["cost"]["images_seen"] = 0
    shown = readable(build_table([record("standard", 0, 0.5), frozen]))
    assert shown[["loss", "epochs"]].to_numpy().tolist() == [["proxy_anchor", "4"], ["-", "-"]]


def test_protocols_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    other = record("standard", 0, 0.9, id="other", config_hash="other")
    other["config"]["data"]["image_size"] = 96
    save(tmp_path, record("standard", 0, 0.5), other)
    write_tables(tmp_path)
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.index("72 px") < text.index("50.00") < text.index("96 px") < text.index("90.00")


def test_every_choice_is_a_column_and_what_differs_is_shown(tmp_path: Path) -> None:
    slow = record("standard", 0, 0.5, id="slow", config_hash="slow")
    slow["config"]["train"]["lr"] = 1e-5
    save(tmp_path, record("standard", 0, 0.6), slow)
    table = write_tables(tmp_path)
    config = slow["config"]
    choices = {name for section in config.values() if isinstance(section, dict) for name in section} - {"k", "embedding_dim"}
    assert choices - {"standard"} <= set(table)
    assert readable(table)["lr"].tolist() == ["0.0003", "1e-05"]
    assert "optimizer" not in readable(table)


def test_readable_table_has_percentages(capsys: pytest.CaptureFixture[str]) -> None:
    table = build_table([record("standard", 0, 0.5), record("frozen", 0, 0.25)])
    assert readable(table)["R@1"].tolist() == ["50.00", "25.00"]
    print_table(table)
    printed = capsys.readouterr().out
    assert "emoji_mini, zero_shot, efficientnet_lite0 (imagenet), 72 px" in printed
    assert "50.00" in printed


def test_folds_are_protocols_of_their_own(tmp_path: Path) -> None:
    folds = []
    for fold in (0, 1):
        entry = record("standard", 0, 0.5 + fold / 5, id=f"fold-{fold}", config_hash=f"fold-{fold}")
        entry["config"]["data"] |= {"split": "kfold", "fold": fold}
        folds.append(entry)
    save(tmp_path, record("standard", 0, 0.4), *folds)
    table = write_tables(tmp_path)
    assert sorted(table["split"]) == ["kfold 0 of 4", "kfold 1 of 4", "zero_shot"]
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.index("kfold 1 of 4") < text.index("70.00")


def test_a_choice_that_an_old_record_lacks_does_not_differ(tmp_path: Path) -> None:
    old = record("frozen", 0, 0.4)
    for name in ("fold", "folds", "stored", "reader"):
        del old["config"]["data"][name]
    shown = readable(build_table([record("standard", 0, 0.5), old]))
    assert not {"fold", "folds", "stored", "reader"} & set(shown)


def test_map_at_r_stands_after_recall_where_it_was_measured() -> None:
    older, newer = record("frozen", 0, 0.4), record("standard", 0, 0.5)
    newer["metrics"]["map_at_r"] = 0.25
    shown = readable(build_table([older, newer]))
    assert shown.columns.tolist().index("MAP@R") == shown.columns.tolist().index("R@10") + 1
    assert shown["MAP@R"].tolist() == ["25.00", ""]
    assert "MAP@R" not in readable(build_table([older]))
