"""Rows times seeds, the table that is made of records, and which records belong to a row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from retrieval_bench.config import RunConfig, config_hash, flatten, nest
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.experiment import (
    Experiment,
    Profile,
    Row,
    changed_words,
    grid_rows,
    recorded_hashes,
    records_of,
    row,
    runs_of,
)
from retrieval_bench.experiments.rehearsal import refuse_idle_flags
from retrieval_bench.experiments.table import measured_table, readable_table
from retrieval_bench.tables import TextTable
from tests.experiments.helpers import QUICK, record_of

ROWS = [
    Row("first", RunConfig(), {"recall_at_1": 0.5, "recall_at_2": 0.6}),
    Row("second", RunConfig(strategy="frozen"), against="first"),
    Row("third", RunConfig(strategy="last_k"), against="first"),
]


def of(config: RunConfig, *recalls: float, images: int = 1000) -> list:
    return [record_of(replace(config, seed=seed), recall, recall / 2, images) for seed, recall in enumerate(recalls)]


RECORDS = {"first": of(RunConfig(), 0.5, 0.7), "second": of(RunConfig(), 0.61, 0.8, images=0)[::-1]}


def test_means_intervals_and_differences_paired_by_seed() -> None:
    first, second, third = measured_table(ROWS, RECORDS).to_dict("records")
    assert (first["recall_at_1"], first["recall_at_1_reported"], first["recall_at_2_reported"]) == pytest.approx(
        (0.6, 0.5, 0.6)
    )
    assert first["recall_at_1_ci95"] == pytest.approx(12.7062 * 0.1, rel=1e-4), "t-interval of two values"
    assert second["difference"] == pytest.approx((0.11 + 0.10) / 2)
    assert second["difference_ci95"] == pytest.approx(12.7062 * 0.005, rel=1e-4)
    assert first["per_1000_images"] == pytest.approx(0.6)
    assert pd.isna(second["per_1000_images"]), "no image seen"
    assert third["seeds"] == 0
    assert pd.isna(third["recall_at_1"]), "a row that was not run stays empty"


def test_table_for_people() -> None:
    shown = readable_table(measured_table(ROWS, RECORDS))
    assert list(shown["R@1"]) == ["60.00 ± 127.06", "70.50 ± 120.71", ""]
    assert list(shown["reported R@1"]) == ["50.00", "", ""]
    assert "reported R@4" not in shown
    assert list(shown["R@1 difference"]) == ["", "+10.50 ± 6.35", ""]
    assert list(shown["MACs"]) == ["3000 M", "3000 M", ""]
    text = TextTable("R@K in percent", shown).to_latex()
    assert r"60.00 $\pm$ 127.06" in text
    assert "R@K in percent" in text
    one_seed = readable_table(measured_table(ROWS[:1], {"first": of(RunConfig(), 0.5)}))
    assert list(one_seed["R@1"]) == ["50.00"], "one seed shows no interval"


def test_a_row_may_be_another_way_to_use_the_same_network() -> None:
    config = RunConfig()
    rows = [
        Row("usual", config),
        Row("drawn", config, against="usual", eval_mode="sample"),
        Row("missing", config, eval_mode="all_tuned"),
    ]
    assert len(runs_of(rows, (0, 1))) == 2, "they share its runs"
    metrics = {**record_of(config, 0.25).metrics, "recall_at_1_sd": 0.02, "draws": 3}
    made = [record_of(config, 0.5, eval_modes={"sample": metrics}), record_of(replace(config, seed=1), 0.5)]
    shown = readable_table(measured_table(rows, {row.name: made for row in rows}))
    assert list(shown["R@1"]) == ["50.00", "25.00", ""]
    assert list(shown["params"]) == ["2.00 M", "", ""], "another network"
    assert list(shown["R@1 difference"]) == ["", "-25.00", ""]
    assert list(shown["R@1, sd over draws"]) == ["", "2.00", ""]


RECALLS = {"frozen": [0.5, 0.5, 0.5], "standard": [0.7, 0.72, 0.74], "l2sp": [0.71, 0.71, 0.74], "autolr": []}


def test_ranks_with_corrected_tests_against_the_best_row() -> None:
    base = RunConfig()
    rows = [Row(name, replace(base, strategy=name), more=("map_at_r",)) for name in RECALLS]
    table: Any = measured_table(rows, {name: of(base, *recalls) for name, recalls in RECALLS.items()}, ranked=True)
    assert list(table["row"]) == ["standard", "l2sp", "frozen", "autolr"]
    assert list(table["rank"].astype(object)) == [1, 1, 3, pd.NA]
    assert list(table["is_tied"]) == [None, True, False, None]
    p_frozen = stats.ttest_rel(RECALLS["frozen"], RECALLS["standard"]).pvalue
    assert table["p_value"][2] == pytest.approx(p_frozen)
    assert table["p_holm"][2] == pytest.approx(2 * p_frozen)
    assert table["p_holm"][1] == pytest.approx(1.0)
    assert table["difference"][2] == pytest.approx(-0.22)
    assert table["recall_at_1_ci95"][0] == pytest.approx(stats.t.ppf(0.975, 2) * 0.02 / 3**0.5, abs=1e-6)
    shown = readable_table(table)
    assert list(shown["rank"]) == ["1", "1 =", "3", ""]
    assert list(shown["p (Holm)"]) == ["", "1.000", "0.005", ""]
    two_seeds = {name: of(base, *recalls[:2]) for name, recalls in RECALLS.items()}
    assert list(readable_table(measured_table(rows[:3], two_seeds, ranked=True))["rank"]) == ["1", "1 ?", "3 ?"]


def test_runs_go_seed_by_seed_and_some_rows_can_be_run_alone() -> None:
    runs = [(config.strategy, config.seed) for config in runs_of(ROWS, (3, 4), (1, 3))]
    assert runs == [("standard", 3), ("last_k", 3), ("standard", 4), ("last_k", 4)]
    for seeds in ((), (1, 1)):
        with pytest.raises(UserError, match="each once"):
            runs_of(ROWS, seeds)
    with pytest.raises(UserError, match="rows 1 to 3"):
        runs_of(ROWS, (0,), (1, 4))


def test_options_reach_only_the_strategies_that_use_them() -> None:
    base = QUICK.changed(options__last_k__k=2, options__l2sp__alpha=0.5)
    assert row(base, "x", {"strategy": "last_k"}).config.strategy_label == "last_k(k=2)"
    assert row(base, "x", {"strategy": "standard"}).config.options == RunConfig().options
    rows = grid_rows(QUICK, {"strategy": ("standard", "last_k", "frozen"), "options.last_k.k": (1, 2)})
    labels = [entry.config.strategy_label for entry in rows]
    assert labels == ["standard", "last_k(k=1)", "last_k(k=2)", "frozen"], "each configuration once"


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"train.los": ("triplet",)}, "did you mean"),
        ({"train.lr": (0.1, float("nan"))}, "--lr nan: must be finite .the run with --lr nan"),
        ({"strategy": ("standard", "frozen"), "options.last_k.k": (1, 2)}, "--last-k options are set"),
        ({"strategy": ("standard", "autolr+weight_variation+autolr")}, "twice"),
    ],
)
def test_the_first_run_of_a_grid_that_cannot_work_is_refused(axes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        grid_rows(QUICK, axes)


def test_a_changed_profile_says_so_and_idle_flags_are_refused() -> None:
    experiment = Experiment("", {}, lambda base: [row(base, "only", {"strategy": "standard", "train.lr": 0.1})])
    profile = Profile("", RunConfig())
    longer = profile.base.changed(train__epochs=1, data__dataset="cars", model__weights="w.pth")
    changed = replace(profile, base=longer, axes={"strategy": ("frozen",)}, trials=3, objective="map_at_r")
    words = ["cars", "epochs-1", "frozen", "trials-3", "map_at_r"]
    assert changed_words(profile, changed) == words, "data and weights fill a profile in"
    refuse_idle_flags(experiment, profile, changed)
    for values, name in (({"train__lr": 0.5}, "--lr"), ({"options__last_k__k": 2}, "--last-k.k")):
        with pytest.raises(UserError, match=f"{name} changes nothing here"):
            refuse_idle_flags(experiment, profile, replace(profile, base=profile.base.changed(**values)))


def test_records_of_rows_are_found_without_data_and_weight_files() -> None:
    row = Row("a", QUICK.changed(model__weights="somewhere/w.pth"))
    values = flatten(row.config) | {"model.weights": "sha256:abc", "data.files_fingerprint": "f"}
    labels = {"strategy": "frozen", "weights": "w.pth"}
    record = record_of(QUICK, 0.5, config=nest(values), config_hash=config_hash(values), labels=labels)
    other = replace(record, config_hash="other", labels=labels | {"weights": "v.pth"})
    hashes = recorded_hashes([row, Row("b", QUICK)], [record, other])
    assert hashes == {"a": config_hash(values), "b": ""}
    assert records_of(hashes, [record, other]) == {"a": [record]}
