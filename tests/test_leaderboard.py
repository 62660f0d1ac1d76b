"""Records and the table built from them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval_bench.figures.gallery import gallery
from retrieval_bench.leaderboard import build_table, choose_rows, group_rows, row_keys, runs_by_row
from retrieval_bench.tables import print_table, readable, sections, write_tables
from tests.board_records import of, record, save
from tests.data.data_checks import refused


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


def test_a_copied_record_counts_once_and_the_newest_wins(tmp_path: Path) -> None:
    old = record("standard", 0, 0.4, id="old", finished="2026-01-01")
    new = record("standard", 0, 0.5, id="new", finished="2026-02-01")
    save(tmp_path, new, old, record("standard", 1, 0.6))
    row = write_tables(tmp_path).iloc[0]
    assert (row["seeds"], row["recall_at_1"]) == (2, pytest.approx(0.55))


def test_times_of_different_machines_are_not_averaged(tmp_path: Path) -> None:
    save(
        tmp_path,
        record("standard", 0, 0.5),
        record("standard", 1, 0.5, environment={"device": "cpu: other", "threads": 2}),
    )
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


def test_other_images_under_one_name_are_another_protocol() -> None:
    """Two folders of somebody's own, or a scaled copy: a paired test between them would say nothing."""
    one, two = (
        of(name, *values, data={"files_fingerprint": name * 64})
        for name, values in (("a", (0.9, 0.9, 0.9)), ("b", (0.5, 0.6, 0.7)))
    )
    sides = of("c", 0.5, 0.6, 0.7, data={"files_fingerprint": "a" * 64, "sides_fingerprint": "c" * 64})
    table: Any = build_table([*one, *two, *sides])
    assert table["standing"].tolist() == ["best"] * 3
    assert not table["p_value"].notna().any()
    titles = [section.title.rsplit(", ", 1)[1] for section in sections(table)]
    assert titles == ["files aaaaaaaa", "files aaaaaaaa+cccccccc", "files bbbbbbbb"]
    assert [section.title.rsplit(", ", 1)[1] for section in sections(build_table(one))] == ["72 px"], (
        "nothing to tell apart"
    )
    larger = [
        {**entry, "config_hash": f"{entry['config_hash']}-2", "cost": {**entry["cost"], "macs": 9}}
        for entry in (*one, *two)
    ]
    drawn = {shown.protocol for shown in gallery([{**entry, "facts": {}} for entry in (*one, *two, *larger)])}
    assert drawn == {section.title for section in sections(build_table([*one, *two]))}, (
        "pages find figures by the title"
    )


def test_weights_of_one_file_name_and_other_content_are_another_protocol() -> None:
    records = [*of("a", 0.9, 0.9, 0.9), *of("b", 0.5, 0.6, 0.7)]
    for entry in records:
        entry["labels"]["weights"] = "model.pth"
        entry["config"]["model"]["weights"] = f"sha256:{entry['labels']['strategy'] * 64}"
    table = build_table(records)
    assert table[["weights", "standing"]].to_numpy().tolist() == [
        ["model.pth aaaaaaaa", "best"],
        ["model.pth bbbbbbbb", "best"],
    ]
    assert build_table(records[:3])["weights"].tolist() == ["model.pth"]


def test_every_choice_is_a_column_and_what_differs_is_shown(tmp_path: Path) -> None:
    slow = record("standard", 0, 0.5, id="slow", config_hash="slow")
    slow["config"]["train"]["lr"] = 1e-5
    save(tmp_path, record("standard", 0, 0.6), slow)
    table = write_tables(tmp_path)
    config = slow["config"]
    choices = {name for section in config.values() if isinstance(section, dict) for name in section} - {
        "k",
        "embedding_dim",
    }
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


RECALLS = st.lists(st.integers(0, 1000).map(lambda count: count / 1000), min_size=1, max_size=6)


@given(values=RECALLS.filter(lambda values: len(values) > 1))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_intervals_are_scipys(values: list[float]) -> None:
    row: Any = build_table(of("standard", *values)).iloc[0]
    spread = float(stats.sem(values))
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread) if spread else (values[0], values[0])
    assert row["recall_at_1"] == pytest.approx(np.mean(values), abs=1e-6)
    assert row["recall_at_1_ci95"] == pytest.approx((high - low) / 2, abs=1e-6)


@given(pairs=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=6))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_p_values_are_scipys(pairs: list[tuple[int, int]]) -> None:
    first, second = (np.array(values) / 1000 for values in zip(*pairs, strict=True))
    table: Any = build_table([*of("one", *first), *of("two", *second)])
    (p_value,) = table.loc[table["standing"] != "best", "p_value"]
    same = len({one - two for one, two in pairs}) == 1
    expected = float(pairs[0][0] == pairs[0][1]) if same else stats.ttest_rel(first, second).pvalue
    assert p_value == pytest.approx(expected, abs=1e-6)
    assert (table["standing"] == "best").sum() == 1
    assert (table["standing"] == "tie").any() == (round(expected, 6) >= 0.05)


def standing(*records: dict[str, Any]) -> dict[str, str]:
    table = build_table(records)
    return dict(zip(table["strategy"], table["standing"], strict=True))


def test_fewer_than_three_seeds_never_rank() -> None:
    assert standing(*of("lucky", 0.9), *of("pair", 0.8, 0.8), *of("solid", 0.5, 0.5, 0.5)) == {
        "lucky": "",
        "pair": "",
        "solid": "best",
    }
    assert standing(*of("pair", 0.8, 0.8)) == {"pair": ""}
    gone = of("gone", 0.9, 0.9, 0.9)
    for entry in gone[1:]:
        entry["metrics"]["recall_at_1"] = None
    assert standing(*gone, *of("solid", 0.5, 0.5, 0.5)) == {"gone": "", "solid": "best"}, "three seeds, but one value"


def test_pairs_are_of_common_seeds_only() -> None:
    best, apart = of("best", 0.9, 0.8, 0.7, 0.6), of("apart", 0.59, 0.61, 0.6, first=10)
    table = build_table([*best, *apart]).set_index("strategy")
    assert pd.isna(table.loc["apart", "p_value"]), "no seed in common"
    three = of("three", 0.65, 0.62, 0.5, 0.01, first=1)
    table = build_table([*best, *three]).set_index("strategy")
    assert table.loc["three", "p_value"] == pytest.approx(
        stats.ttest_rel([0.8, 0.7, 0.6], [0.65, 0.62, 0.5]).pvalue, abs=1e-6
    )
    two = of("two", 0.65, 0.62, first=2)
    assert pd.isna(build_table([*best, *two]).set_index("strategy").loc["two", "p_value"])


def test_a_protocol_has_a_best_of_its_own_and_equal_rows_one_between_them() -> None:
    other = of("other", 0.9, 0.9, 0.9, data={"image_size": 96})
    assert standing(*of("one", 0.5, 0.5, 0.5), *other) == {"one": "best", "other": "best"}
    table = build_table([*of("b", 0.5, 0.6, 0.7), *of("a", 0.7, 0.6, 0.5)])
    assert table[["strategy", "standing"]].to_numpy().tolist() == [["a", "best"], ["b", "tie"]], (
        "the first of equal ones"
    )


STRATEGIES = st.sampled_from(["frozen", "standard", "last_k(k=2)"])
RUNS = st.lists(
    st.tuples(STRATEGIES, st.sampled_from([72, 96]), st.integers(0, 3), st.integers(0, 1000)),
    min_size=1,
    max_size=16,
    unique_by=lambda r: r[:3],
)


def runs_of(rows: list[tuple[str, int, int, int]]) -> list[dict[str, Any]]:
    return [
        of(strategy, recall / 1000, first=seed, data={"image_size": size})[0] for strategy, size, seed, recall in rows
    ]


@given(rows=RUNS, shuffle=st.randoms())
@settings(deadline=None, derandomize=True, max_examples=25)
def test_the_order_of_records_does_not_matter(rows: list[tuple[str, int, int, int]], shuffle: random.Random) -> None:
    records = runs_of(rows)
    other = shuffle.sample(records, len(records))
    assert build_table(records).to_csv() == build_table(other).to_csv()


@given(rows=RUNS)
@settings(deadline=None, derandomize=True, max_examples=25)
def test_means_and_groups_are_those_of_plain_python(rows: list[tuple[str, int, int, int]]) -> None:
    found: dict[tuple[str, int], list[float]] = {}
    for strategy, size, _, recall in rows:
        found.setdefault((strategy, size), []).append(recall / 1000)
    table: Any = build_table(runs_of(rows))
    assert len(table) == len(found)
    for _, row in table.iterrows():
        values = found[row["strategy"], row["image_size"]]
        assert (row["seeds"], row["recall_at_1"]) == (len(values), pytest.approx(fmean(values), abs=1e-6))
    for size, group in table.groupby("image_size"):
        assert group["recall_at_1"].is_monotonic_decreasing, size
    by_size: dict[int, list[float]] = {}
    for (_, size), values in found.items():
        by_size.setdefault(size, []).append(fmean(values))
    groups: Any = group_rows(table, ["image_size"])
    for _, row in groups.iterrows():
        means = by_size.pop(row["image_size"])
        assert (row["configurations"], row["recall_at_1"]) == (len(means), pytest.approx(fmean(means), abs=2e-6))
        half = stats.t.ppf(0.975, len(means) - 1) * stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
        assert row["recall_at_1_ci95"] == pytest.approx(half, abs=5e-6, nan_ok=True)
    assert not by_size
    assert groups["recall_at_1"].is_monotonic_decreasing


def test_rows_are_chosen_by_what_people_type() -> None:
    table = build_table(
        [*of("last_k(k=2)", 0.5), *of("last_k(k=3)", 0.4), *of("l2sp+last_k(k=2)", 0.3), *of("frozen", 0.2)]
    )

    def chosen(**wanted: list[str]) -> list[str]:
        return choose_rows(table, wanted)["strategy"].tolist()

    assert chosen(strategy=["last_k"]) == ["last_k(k=2)", "last_k(k=3)"]
    assert chosen(strategy=["last_k(k=3)", "frozen"]) == ["last_k(k=3)", "frozen"]
    assert chosen(strategy=["l2sp+last_k"]) == ["l2sp+last_k(k=2)"]
    assert len(chosen(epochs=["4"], image_size=["72"], flip=["True"], lr=["0.0003"])) == 4
    with refused("unknown column 'epoch'", "did you mean 'epochs'"):
        chosen(epoch=["4"])
    with refused("unknown strategy 'last_q'", "did you mean 'last_k'"):
        chosen(strategy=["last_q"])
    other = build_table([*of("a", 0.5), *of("b", 0.5, data={"dataset": "synthetic"})])
    with refused("no row has dataset synthetic, strategy a"):
        choose_rows(other, {"dataset": ["synthetic"], "strategy": ["a"]})


def test_groups_of_mixed_values_and_of_a_column_twice() -> None:
    odd = of("odd", 0.4)
    odd[0]["config"]["train"]["lr"] = "fast"
    table = build_table([*of("standard", 0.5), *odd])
    assert group_rows(table, ["lr", "lr"])["lr"].tolist() == [0.0003, "fast"]
    for column in ("recall_at_1", "recall_at_1_ci95", "macs", "standing", "nothing"):
        with refused("unknown column", column):
            group_rows(table, [column])


def test_a_row_is_worse_only_over_the_seeds_that_both_have() -> None:
    """The best mean may come from seeds that the other row does not have; on the common ones it may be the lower."""
    table = build_table([*of("many", 0.5, 0.5, 0.5, 0.9, 0.9), *of("few", 0.6, 0.6, 0.6)])
    rows = table.set_index("strategy")
    assert rows["standing"].to_dict() == {"many": "best", "few": "tie"}
    assert rows.loc["few", "difference"] == pytest.approx(0.1)


def test_differences_are_paired_by_seed() -> None:
    table = build_table([*of("best", 0.8, 0.81, 0.82), *of("other", 0.7, 0.72, 0.71)]).set_index("strategy")
    assert table.loc["other", "difference"] == pytest.approx(-0.1)
    assert table.loc["other", "standing"] == ""


def test_groups_do_not_average_times_of_different_machines() -> None:
    slow, fast = of("slow", 0.5), of("fast", 0.6)
    fast[0]["environment"] = {"device": "cuda: H"}
    grouped = group_rows(build_table([*slow, *fast]), ["loss"])
    assert len(grouped) == 1
    assert pd.isna(grouped.loc[0, "train_seconds"])
    assert grouped.loc[0, "macs"] == 1000000


def test_runs_by_row_keeps_devices_apart_and_the_newest() -> None:
    old, new = (
        record("a", 0, 0.4, id="old", finished="2026-01-01"),
        record("a", 0, 0.5, id="new", finished="2026-02-01"),
    )
    other = record("a", 0, 0.6, id="gpu", environment={"device": "cuda: H"})
    found = runs_by_row([new, old, other])
    assert {key: [entry["id"] for entry in runs] for key, runs in found.items()} == {
        ("hash-a", "cpu"): ["new"],
        ("hash-a", "cuda"): ["gpu"],
    }
    assert set(row_keys(build_table([new, old, other]))) == set(found)
