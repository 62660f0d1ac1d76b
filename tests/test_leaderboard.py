"""The table that is built from records: rows, means, intervals, significance, selection and groups."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval_bench.errors import UserError
from retrieval_bench.groups import group_rows
from retrieval_bench.leaderboard import (
    distinct_labels,
    leaderboard,
    print_table,
    protocols,
    readable,
    row_keys,
    runs_by_row,
    write_tables,
)
from retrieval_bench.leaderboard_command import select_rows
from retrieval_bench.records import Record
from tests.board_records import of, record, save
from tests.data.data_checks import refused

few = settings(deadline=None, derandomize=True, max_examples=25)
THREADS = {"device": "cpu: other", "threads": 2}


def significance(*records: Record) -> dict[str, str]:
    table = leaderboard(records)
    return dict(zip(table["strategy"], table["significance"], strict=True))


def test_a_row_per_configuration_best_first_in_files_that_do_not_change_when_rebuilt(tmp_path: Path) -> None:
    results = save(tmp_path, *of("standard", 0.5, 0.6), *of("frozen", 0.4))
    table = write_tables(results)
    first = {name: (tmp_path / name).read_bytes() for name in ("leaderboard.csv", "leaderboard.md")}
    write_tables(results)
    assert first == {name: (tmp_path / name).read_bytes() for name in first}
    assert table["strategy"].tolist() == ["standard", "frozen"]
    assert table["recall_at_1_ci95"].isna().tolist() == [False, True], "one seed shows no spread"
    assert first["leaderboard.csv"].startswith(
        b"dataset,split,classes,backbone,weights,dim,image_size,loss,strategy,epochs,seeds,"
        b"recall_at_1,recall_at_1_ci95,recall_at_10,recall_at_10_ci95,significance,difference,p_value,parameters,"
    )
    assert "55.00 ± 63.53" in first["leaderboard.md"].decode()


def test_no_records_is_no_error_and_of_processes_that_work_together_one_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_table(write_tables(save(tmp_path)))
    assert "make bench" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        print_table(leaderboard(of("standard", 0.5)))
        assert bool(capsys.readouterr().out) == (rank == "0")


def test_devices_have_rows_of_their_own_and_the_newest_of_copies_counts() -> None:
    old = record("a", 0, 0.4, id="old", finished="2026-01-01")
    new = record("a", 0, 0.5, id="new", finished="2026-02-01")
    other = record("a", 0, 0.6, id="gpu", environment={"device": "cuda: H"})
    rows = runs_by_row([new, old, other])
    ids = {kind: [entry.id for entry in runs] for (_, kind), runs in rows.items()}
    assert ids == {"cpu": ["new"], "cuda": ["gpu"]}
    table = leaderboard([new, old, other])
    assert set(row_keys(table)) == set(rows)
    assert table["recall_at_1"].tolist() == [0.6, 0.5]


def test_times_of_different_machines_are_not_averaged() -> None:
    row = leaderboard([record("standard", 0, 0.5), record("standard", 1, 0.5, environment=THREADS)]).iloc[0]
    assert row["seeds"] == 2, "recall is comparable"
    assert pd.isna(row["train_seconds"]), "time is not"
    assert row["device"] == "cpu: other; cpu: test"
    grouped = group_rows(leaderboard([*of("slow", 0.5), record("fast", 0, 0.6, environment=THREADS)]), ["loss"])
    assert grouped["train_seconds"].isna().tolist() == [True]
    assert grouped["macs"].tolist() == [1000000]


def test_metrics_and_costs_that_some_records_lack_are_empty_in_their_rows() -> None:
    other = record("other", 0, 0.5, metrics={"recall_at_1": 0.5, "recall_at_5": 0.7, "map_at_r": 0.25}, cost={})
    table = leaderboard([record("standard", 0, 0.6), other])
    assert table["recall_at_5"].isna().tolist() == [True, False]
    shown = readable(table)
    assert shown["MACs"].tolist() == ["1 M", ""]
    assert shown["MAP@R"].tolist() == ["", "25.00"]
    assert [name for name in shown if "@" in name] == ["R@1", "R@5", "R@10", "MAP@R"]
    assert "MAP@R" not in readable(leaderboard(of("standard", 0.6)))


def test_readable_rows_show_the_choices_that_differ_and_no_training_where_there_was_none() -> None:
    slow = record("standard", 0, 0.5, {"train.lr": 1e-5})
    frozen = record("frozen", 0, 0.4, cost={"images_seen": 0})
    for name in ("fold", "folds", "stored", "reader"):
        del frozen.config["data"][name]  # an old record
    table = leaderboard([slow, record("standard", 0, 0.6), frozen])
    shown = readable(table)
    assert shown.columns.tolist()[:5] == ["strategy", "loss", "epochs", "lr", "seeds"]
    assert shown["lr"].tolist() == ["0.0003", "1e-05", "0.0003"]
    assert shown["loss"].tolist() == ["proxy_anchor", "proxy_anchor", "-"]
    choices = {name for part in slow.config.values() if isinstance(part, dict) for name in part} - {"k"}
    assert choices <= set(table), "every choice is a column"
    assert not shown.duplicated().any()
    assert distinct_labels(table).tolist() == ["standard, lr 0.0003", "standard, lr 1e-05", "frozen"]


@pytest.mark.parametrize(
    ("one", "two", "titles"),
    [
        ({}, {"data.image_size": 96}, ["zero_shot, efficientnet_lite0 (imagenet), 72 px", "(imagenet), 96 px"]),
        ({}, {"data.split": "kfold", "data.fold": 1}, ["kfold 1 of 4", "zero_shot"]),
        ({}, {"data.classes": 24}, ["zero_shot, efficientnet", "first 24 classes"]),
        ({}, {"data.train_per_class": 5}, ["zero_shot, efficientnet", "first 5 training images of each class"]),
        ({"data.files_fingerprint": "a" * 64}, {"data.files_fingerprint": "b" * 64}, ["aaaaaaaa", "bbbbbbbb"]),
        (
            {"data.files_fingerprint": "a" * 64},
            {"data.files_fingerprint": "a" * 64, "data.sides_fingerprint": "c" * 64},
            ["px, files aaaaaaaa", "px, files aaaaaaaa+cccccccc"],
        ),
    ],
)
def test_rows_of_different_protocols_are_not_compared(
    one: dict[str, Any], two: dict[str, Any], titles: list[str]
) -> None:
    table: Any = leaderboard([*of("a", 0.9, 0.9, 0.9, config=one), *of("b", 0.5, 0.6, 0.7, config=two)])
    assert table["significance"].tolist() == ["best"] * 2
    assert not table["p_value"].notna().any()
    assert all(part in title for part, (title, _) in zip(titles, protocols(table), strict=True))
    assert "files" not in protocols(leaderboard(of("a", 0.5, config=one)))[0][0], "nothing to distinguish"


def test_weights_of_one_file_name_and_other_content_are_another_protocol() -> None:
    records = of("a", 0.5, config={"model.weights": f"sha256:{'a' * 64}"})
    records += of("b", 0.5, config={"model.weights": f"sha256:{'b' * 64}"})
    for entry in records:
        entry.labels["weights"] = "model.pth"
    assert leaderboard(records)["weights"].tolist() == ["model.pth aaaaaaaa", "model.pth bbbbbbbb"]
    assert leaderboard(records[:1])["weights"].tolist() == ["model.pth"]


@given(pairs=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=6))
@few
def test_p_values_are_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array(values) / 1000 for values in zip(*pairs, strict=True))
    table: Any = leaderboard([*of("one", *first), *of("two", *second)])
    (p_value,) = table.loc[table["significance"] != "best", "p_value"]
    same = len({one - two for one, two in pairs}) == 1
    expected = float(pairs[0][0] == pairs[0][1]) if same else stats.ttest_rel(first, second).pvalue
    assert p_value == pytest.approx(expected, abs=1e-6)
    assert (table["significance"] == "best").sum() == 1
    assert (table["significance"] == "tie").any() == (round(expected, 6) >= 0.05)


def test_fewer_than_three_seeds_never_rank() -> None:
    solid = of("solid", 0.5, 0.5, 0.5)
    expected = {"lucky": "", "pair": "", "solid": "best"}
    assert significance(*of("lucky", 0.9), *of("pair", 0.8, 0.8), *solid) == expected
    assert significance(*of("pair", 0.8, 0.8)) == {"pair": ""}
    assert significance(*of("b", 0.5, 0.6, 0.7), *of("a", 0.7, 0.6, 0.5)) == {"a": "best", "b": "tie"}, "the first"
    one, *others = of("gone", 0.9, 0.9, 0.9)
    gone = [one, *(replace(entry, metrics={"recall_at_1": None}) for entry in others)]
    assert significance(*gone, *solid) == {"gone": "", "solid": "best"}, "three seeds, but one value"


def test_rows_are_compared_over_common_seeds_only() -> None:
    best = of("best", 0.9, 0.8, 0.7, 0.6)

    def compared(*recalls: float, first: int) -> Any:
        table = leaderboard([*best, *of("other", *recalls, first=first)])
        return table.set_index("strategy").loc["other", ["significance", "difference", "p_value"]].tolist()

    assert pd.isna(compared(0.59, 0.61, 0.6, first=10)[2]), "no seed in common"
    assert pd.isna(compared(0.65, 0.62, first=2)[2]), "two are too few"
    _, difference, p_value = compared(0.65, 0.62, 0.5, 0.01, first=1)
    assert p_value == pytest.approx(stats.ttest_rel([0.8, 0.7, 0.6], [0.65, 0.62, 0.5]).pvalue, abs=1e-6)
    assert difference == pytest.approx(-0.11)
    # The best mean may come from seeds that the other row does not have; on the common ones it may be the lower.
    table = leaderboard([*of("many", 0.5, 0.5, 0.5, 0.9, 0.9), *of("few", 0.6, 0.6, 0.6)]).set_index("strategy")
    assert table["significance"].to_dict() == {"many": "best", "few": "tie"}
    assert table.loc["few", "difference"] == pytest.approx(0.1)


STRATEGIES, SIZES = st.sampled_from(["frozen", "standard", "last_k(k=2)"]), st.sampled_from([72, 96])
RUN = st.tuples(STRATEGIES, SIZES, st.integers(0, 3), st.integers(0, 1000))
RUNS = st.lists(RUN, min_size=1, max_size=16, unique_by=lambda run: run[:3])


def half_interval(values: list[float]) -> float:
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count) if count > 1 else math.nan


@given(rows=RUNS, shuffle=st.randoms())
@few
def test_means_and_groups_are_those_of_plain_python_in_any_order_of_records(
    rows: list[tuple[str, int, int, int]], shuffle: random.Random
) -> None:
    records = [record(name, seed, recall / 1000, {"data.image_size": size}) for name, size, seed, recall in rows]
    table: Any = leaderboard(records)
    assert table.to_csv() == leaderboard(shuffle.sample(records, len(records))).to_csv()
    recalls: dict[tuple[str, int], list[float]] = {}
    for strategy, size, _, recall in rows:
        recalls.setdefault((strategy, size), []).append(recall / 1000)
    assert len(table) == len(recalls)
    for _, row in table.iterrows():
        values = recalls[row["strategy"], row["image_size"]]
        assert row["seeds"] == len(values)
        assert row["recall_at_1"] == pytest.approx(fmean(values), abs=1e-6)
        assert row["recall_at_1_ci95"] == pytest.approx(half_interval(values), abs=1e-6, nan_ok=True)
    for size, group in table.groupby("image_size"):
        assert group["recall_at_1"].is_monotonic_decreasing, size
    groups: Any = group_rows(table, ["image_size"])
    assert groups["recall_at_1"].is_monotonic_decreasing
    assert len(groups) == len({size for _, size in recalls})
    for _, row in groups.iterrows():
        means = [fmean(values) for (_, size), values in recalls.items() if size == row["image_size"]]
        assert (row["configurations"], row["recall_at_1"]) == (len(means), pytest.approx(fmean(means), abs=2e-6))
        assert row["recall_at_1_ci95"] == pytest.approx(half_interval(means), abs=5e-6, nan_ok=True)


def test_a_filter_hides_rows_and_changes_none() -> None:
    table: Any = leaderboard([*of("good", 0.9), *of("fair", 0.6), *of("poor", 0.2)])
    shown = select_rows(table, {"strategy": ["fair", "poor"]})
    pd.testing.assert_frame_equal(shown, table[table["strategy"] != "good"].reset_index(drop=True))
    assert "best" not in set(shown["significance"])


def test_rows_are_selected_by_what_people_type() -> None:
    names = ["last_k(k=2)", "last_k(k=3)", "l2sp+last_k(k=2)", "frozen"]
    records = [entry for number, name in enumerate(names) for entry in of(name, 0.5 - number / 10, 0.1)]
    table = leaderboard([*records, *of("a", 0.5, config={"data.dataset": "synthetic"})])

    def selected(**conditions: list[str]) -> list[str]:
        return [*select_rows(table, conditions)["strategy"]]

    assert selected(strategy=["last_k"]) == ["last_k(k=2)", "last_k(k=3)"]
    assert selected(strategy=["last_k(k=3)", "frozen"]) == ["last_k(k=3)", "frozen"]
    assert selected(strategy=["l2sp+last_k"]) == ["l2sp+last_k(k=2)"]
    chosen = {"epochs": ["4"], "image_size": ["72.0"], "flip": ["True"], "lr": ["0.0003"], "dataset": ["emoji_mini"]}
    assert selected(**chosen) == names
    for conditions, words in (
        ({"epoch": ["4"]}, ["unknown column 'epoch'", "did you mean 'epochs'"]),
        ({"strategy": ["last_q"]}, ["unknown strategy 'last_q'", "did you mean 'last_k'"]),
        ({"dataset": ["synthetic"], "strategy": ["frozen"]}, ["no row has dataset synthetic, strategy frozen"]),
    ):
        with refused(*words):
            select_rows(table, conditions)


def test_groups_of_mixed_values_and_of_a_column_twice() -> None:
    table = leaderboard([*of("standard", 0.5), *of("odd", 0.4, config={"train.lr": "fast"})])
    assert group_rows(table, ["lr", "lr"])["lr"].tolist() == [0.0003, "fast"]
    for name in ("recall_at_1", "recall_at_1_ci95", "macs", "significance", "nothing"):
        with pytest.raises(UserError, match=f"unknown column '{name}'"):
            group_rows(table, [name])
    everything = ["dataset", "split", "classes", "backbone", "weights", "image_size"]
    assert [title for title, _ in protocols(group_rows(table, everything), everything)] == ["all rows"]
