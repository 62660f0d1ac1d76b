"""Two sides with details by hand: what is won and lost, and numbers that SciPy and the statistics module give too."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from retrieval_bench.cli import main
from retrieval_bench.comparison import compare, to_lines
from retrieval_bench.details import write_details
from retrieval_bench.evaluation.statistics import bootstrap_interval, paired_permutation_test
from retrieval_bench.records import Record, ResultsFolder
from tests.board_records import details_of, of, record, save
from tests.data.data_checks import refused

LABELS = [0, 0, 1, 1, 2, 2]
FIRST = [[1, 1, 1, 2, 0, 1], [1, 3, 1, 9, 0, 1], [1, 1, 2, 5, 0, 1]]
SECOND = [[1, 2, 3, 1, 0, 1], [1, 4, 2, 1, 0, 1], [1, 2, 1, 1, 0, 1]]
"""Ranks of six queries in each of three seeds: queries 1 and 2 are right more often on the first side, query 3 on the
second; query 4 has no positive."""


details = partial(details_of, labels=LABELS)


def metrics(ranks: list[int]) -> dict[str, Any]:
    able = [rank for rank in ranks if rank]
    recalls = {f"recall_at_{k}": sum(rank <= k for rank in able) / len(able) for k in (1, 2, 4)}
    return {**recalls, "map_at_r": sum(1 / rank for rank in able) / len(able), "queries": 6}


def side(name: str, ranks: list[list[int]], first: int = 0) -> list[Record]:
    """Records of a strategy, a seed for each list of ranks."""
    return [
        record(name, seed, 0, {"strategy": name}, id=f"cub-{name}-hash{name}-s{seed}-cpu", config_hash=f"hash{name}",
               metrics=metrics(own))
        for seed, own in enumerate(ranks, first)
    ]  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> ResultsFolder:
    """Both sides with three seeds and their details; a third strategy without details, with seeds of its own."""
    folder = save(tmp_path, *side("bare", SECOND), *side("late", SECOND, first=7))
    for name, ranks in (("one", FIRST), ("two", SECOND)):
        for entry, own in zip(side(name, ranks), ranks, strict=True):
            save(tmp_path, entry)
            write_details(details(own), folder.details(entry.id))
    return folder


def test_queries_won_and_lost_are_counted_over_the_seeds_and_the_worst_named(results: ResultsFolder) -> None:
    comparison = compare("hashone", "hashtwo", results)
    assert comparison.seeds == [0, 1, 2]
    assert comparison.queries == 6
    assert comparison.won == (2, ["1.png (rank 3)", "2.png (rank 2)"]), "mean ranks of the loser, 2 2/3 and 2"
    assert comparison.lost == (1, ["3.png (rank 5)"])
    assert comparison.changes == [("strategy", "one", "two")]
    back = compare("hashtwo", "hashone", results)
    assert (back.won, back.lost) == (comparison.lost, comparison.won)
    for row, other in zip(comparison.metrics, back.metrics, strict=True):
        assert other["difference"] == pytest.approx(-row["difference"])
        assert (other["seeds_p"], other["p"]) == (pytest.approx(row["seeds_p"]), row["p"])
        assert (other["low"], other["high"]) == pytest.approx((-row["high"], -row["low"]))


def test_numbers_are_those_of_scipy_and_of_the_queries(results: ResultsFolder) -> None:
    rows = compare("hashone", "hashtwo", results).metrics
    assert [row["metric"] for row in rows] == ["recall_at_1", "recall_at_2", "recall_at_4", "map_at_r"]
    able = np.array([0, 1, 2, 3, 5])
    classes = np.array(LABELS)[able]
    for row in rows:
        first, second = (np.array([metrics(ranks)[row["metric"]] for ranks in both]) for both in (FIRST, SECOND))
        assert (row["first"], row["second"]) == (pytest.approx(first.mean()), pytest.approx(second.mean()))
        test = stats.ttest_rel(first, second)
        low, high = test.confidence_interval()
        assert row["difference"] == pytest.approx((low + high) / 2)
        assert row["seeds_half"] == pytest.approx((high - low) / 2)
        assert row["seeds_p"] == pytest.approx(test.pvalue)
        k = int(row["metric"].removeprefix("recall_at_")) if row["metric"] != "map_at_r" else 0
        both = [np.array(ranks)[:, able] for ranks in (FIRST, SECOND)]
        one, other = (((ranks <= k) if k else 1 / ranks.astype(np.float32)).mean(0) for ranks in both)
        assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(one - other, classes))
        assert row["p"] == pytest.approx(paired_permutation_test(one, other, classes)[1])
        assert (one - other).mean() == pytest.approx(row["difference"], abs=1e-6), "both are one difference"


def test_sides_are_found_by_id_by_its_beginning_by_file_and_by_hash(results: ResultsFolder) -> None:
    one = "cub-one-hashone-s1-cpu"
    expected = compare(one, "cub-two-hashtwo-s1-cpu", results)
    assert expected.seeds == [1]
    assert math.isnan(expected.metrics[0]["seeds_p"]), "one pair shows nothing over seeds"
    assert not math.isnan(expected.metrics[0]["p"])
    for word in ("cub-one-hashone-s1", str(results.record(one))):
        assert compare(word, "hashtwo", results).metrics[0]["difference"] == expected.metrics[0]["difference"]
    assert compare("cub-one", "cub-two", results).seeds == [0, 1, 2]


def test_a_run_named_by_its_file_comes_with_the_details_beside_it(results: ResultsFolder, tmp_path: Path) -> None:
    """The same run made again in another folder has the same id; details of the one say nothing of the other."""
    name, ranks = "cub-one-hashone-s1-cpu", [min(rank, 1) for rank in FIRST[1]]
    entry = next(entry for entry in side("one", FIRST) if entry.id == name)
    again = save(tmp_path / "again", replace(entry, metrics=metrics(ranks)))
    write_details(details(ranks), again.details(name))
    comparison = compare(str(again.record(name)), name, results)
    assert comparison.won[0] == sum(rank > 1 for rank in FIRST[1])
    assert comparison.metrics[0]["low"] <= comparison.metrics[0]["difference"] <= comparison.metrics[0]["high"]


def test_two_runs_of_different_seeds_are_compared_as_they_are(results: ResultsFolder) -> None:
    comparison = compare("cub-one-hashone-s0-cpu", "cub-one-hashone-s2-cpu", results)
    assert (comparison.seeds, comparison.changes) == ([], [])
    expected = metrics(FIRST[0])["recall_at_1"] - metrics(FIRST[2])["recall_at_1"]
    assert comparison.metrics[0]["difference"] == pytest.approx(expected)
    assert "no difference in configuration" in "\n".join(to_lines(comparison))


def test_choices_that_came_later_are_at_their_defaults(tmp_path: Path) -> None:
    """An older record lacks them; a strategy that takes no part has no options."""
    older, newer = record("last_k", 0, 0.5, {"strategy": "last_k", "options.last_k.k": 3}), record("standard", 0, 0.6)
    assert older.config["train"].pop("fused") is False
    results = save(tmp_path, replace(older, id="older"), replace(newer, id="newer"))
    changes = compare("older", "newer", results).changes
    assert changes == [("options.last_k.k", "3", "-"), ("strategy", "last_k", "standard")]


def test_without_details_there_are_metrics_and_a_reason(results: ResultsFolder) -> None:
    comparison = compare("hashone", "hashbare", results)
    assert comparison.queries == 0
    assert "no such file" in comparison.reason
    assert comparison.metrics[0]["seeds_p"] == compare("hashone", "hashtwo", results).metrics[0]["seeds_p"]
    assert all(math.isnan(row["p"]) for row in comparison.metrics)
    assert to_lines(comparison)[-1] == f"queries are not compared: {comparison.reason}"


@pytest.mark.parametrize("change", ["paths", "both sides", "labels", "queries", "damaged"])
def test_details_of_other_images_are_not_compared(results: ResultsFolder, change: str) -> None:
    path = results.details("cub-two-hashtwo-s2-cpu")
    other = details(SECOND[2])
    paths = np.array([f"other-{image}.png" for image in range(6)])
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:500])
    elif change == "queries":
        names = ("queries", "first_rank", "map_at_r", "neighbour_queries", "neighbours", "similarity")
        write_details(replace(other, **{name: getattr(other, name)[:5] for name in names}), path)
    elif change == "labels":
        write_details(replace(other, labels=np.array([0, 0, 1, 1, 2, 0], dtype=np.int32)), path)
    else:
        write_details(replace(other, paths=paths), path)
        if change == "both sides":  # they agree within the seed, but it is of other images than the others
            write_details(replace(details(FIRST[2]), paths=paths), results.details("cub-one-hashone-s2-cpu"))
    comparison = compare("hashone", "hashtwo", results)
    assert comparison.queries == 0
    assert ("same images" if change != "damaged" else str(path)) in comparison.reason
    assert len(comparison.metrics) == 4


def test_queries_without_any_positive_leave_nothing_to_test(results: ResultsFolder) -> None:
    for name in ("one", "two"):
        write_details(details([0] * 6), results.details(f"cub-{name}-hash{name}-s0-cpu"))
    comparison = compare("cub-one-hashone-s0-cpu", "cub-two-hashtwo-s0-cpu", results)
    assert (comparison.won[0], comparison.lost[0]) == (0, 0)
    assert all(math.isnan(row["p"]) for row in comparison.metrics)


def test_metrics_that_one_side_lacks_are_left_out(results: ResultsFolder) -> None:
    entries = side("old", SECOND)
    for entry in entries:
        del entry.metrics["map_at_r"]
    entries[0].metrics["recall_at_4"] = None
    save(results.root, *entries)
    assert [row["metric"] for row in compare("hashone", "hashold", results).metrics] == ["recall_at_1", "recall_at_2"]


def test_choices_that_differ_are_listed_without_the_seed(tmp_path: Path) -> None:
    one = record("one", 0, 0.5, {"data.image_size": 96, "train.new": [1]})
    results = save(tmp_path, one, record("two", 1, 0.5, {"options.last_k.k": 2}))
    assert compare("one", "two", results).changes == [
        ("data.image_size", "96", "72"),
        ("options.last_k.k", "-", "2"),
        ("train.new", "[1]", "-"),
    ]


def test_the_command_prints_lines_or_json(results: ResultsFolder, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "hashone", "hashtwo", "--results", str(results.root)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "strategy: one | two" in printed
    assert "of 6 queries, the first finds 2 at rank 1 in more seeds than the second; the reverse holds for 1" in printed
    assert "  more often the second: 3.png (rank 5)" in printed
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["won"][0] == 2
    assert main(["compare", "hashone", "hashbare", *words[3:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["metrics"][0]["p"] is None


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        (["hashone", "hashone"], "are the same"),
        (["cub-one-hashone-s1-cpu", "hashone"], "are the same"),
        (["hashone", "hashtwp"], "unknown run 'hashtwp'"),
        (["hashone", "hashlate"], "no seed in common"),
        (["nowhere.json", "hashone"], "nowhere.json: no such record"),
        (["cub-", "hashone"], "fits 12 runs"),
        (["hashone", ""], "say more"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    results: ResultsFolder, capsys: pytest.CaptureFixture[str], sides: list[str], message: str
) -> None:
    assert main(["compare", *sides, "--results", str(results.root)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""


def test_runs_on_two_kinds_of_devices_are_not_mixed(tmp_path: Path) -> None:
    (cpu,) = of("standard", 0.5)
    gpu = replace(cpu, id=f"{cpu.id}-cuda", environment={"device": "cuda: H"})
    with refused("name runs by their ids"):
        compare(cpu.id[:-1], "frozen", save(tmp_path, cpu, gpu, *of("frozen", 0.4)))
