"""Two sides with details by hand: what is won and lost, and figures that SciPy and the statistics module give too."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from retrieval_bench.cli import main
from retrieval_bench.comparison import compare, differing, to_lines
from retrieval_bench.details import NEIGHBOURS, Details, details_path, write_details
from retrieval_bench.evaluation.statistics import bootstrap_interval, paired_permutation_test
from tests.board_records import of, save
from tests.data.data_checks import refused

LABELS = np.array([0, 0, 1, 1, 2, 2], dtype=np.int32)
FIRST = [[1, 1, 1, 2, 0, 1], [1, 3, 1, 9, 0, 1], [1, 1, 2, 5, 0, 1]]
SECOND = [[1, 2, 3, 1, 0, 1], [1, 4, 2, 1, 0, 1], [1, 2, 1, 1, 0, 1]]
"""Ranks of six queries in each of three seeds: the first finds queries 1 and 2 more often, the second query 3; query 4 has no positive."""


def details(ranks: list[int]) -> Details:
    images = np.arange(6, dtype=np.int32)
    return Details(
        paths=np.array([f"{image}.png" for image in range(6)]),
        labels=LABELS,
        class_names=np.array(["a", "b", "c"]),
        queries=images,
        first_rank=np.array(ranks, dtype=np.int32),
        map_at_r=np.array([1 / rank if rank else math.nan for rank in ranks], dtype=np.float32),
        listed=images,
        neighbours=np.full((6, NEIGHBOURS), -1, dtype=np.int32),
        similarity=np.zeros((6, NEIGHBOURS), dtype=np.float16),
        mapped=images,
        map=np.zeros((6, 2), dtype=np.float32),
        thumbnails=np.zeros(0, dtype=np.int32),
        thumbnail_ends=np.zeros(0, dtype=np.int64),
        thumbnail_bytes=np.zeros(0, dtype=np.uint8),
    )


def metrics(ranks: list[int]) -> dict[str, Any]:
    able = [rank for rank in ranks if rank]
    recalls = {f"recall_at_{k}": sum(rank <= k for rank in able) / len(able) for k in (1, 2, 4)}
    return {**recalls, "map_at_r": sum(1 / rank for rank in able) / len(able), "queries": 6}


def side(strategy: str, ranks: list[list[int]], first: int = 0) -> list[dict[str, Any]]:
    """Records of a strategy, a seed for each list of ranks."""
    found = of(strategy, *[0.5] * len(ranks), first=first)
    for entry, own in zip(found, ranks, strict=True):
        entry |= {
            "id": f"cub-{strategy}-hash{strategy}-s{entry['seed']}-cpu",
            "config_hash": f"hash{strategy}",
            "metrics": metrics(own),
        }
        entry["config"]["strategy"] = strategy
    return found


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Both sides with three seeds and their details; a third strategy without details, with seeds of its own."""
    for strategy, ranks in (("one", FIRST), ("two", SECOND)):
        for entry, own in zip(side(strategy, ranks), ranks, strict=True):
            save(tmp_path, entry)
            write_details(details(own), details_path(tmp_path, entry["id"]))
    save(tmp_path, *side("bare", SECOND), *side("late", SECOND, first=7))
    return tmp_path


def test_queries_won_and_lost_are_counted_over_the_seeds_and_the_worst_named(results: Path) -> None:
    found = compare("hashone", "hashtwo", results)
    assert found.seeds == [0, 1, 2]
    assert found.queries == 6
    assert found.won == (2, ["1.png (rank 3)", "2.png (rank 2)"]), "mean ranks of the loser, 2 2/3 and 2"
    assert found.lost == (1, ["3.png (rank 5)"])
    back = compare("hashtwo", "hashone", results)
    assert (back.won, back.lost) == (found.lost, found.won)
    for row, other in zip(found.metrics, back.metrics, strict=True):
        assert other["difference"] == pytest.approx(-row["difference"])
        assert (other["seeds_p"], other["p"]) == (pytest.approx(row["seeds_p"]), row["p"])
        assert (other["low"], other["high"]) == pytest.approx((-row["high"], -row["low"]))


def test_figures_are_those_of_scipy_and_of_the_queries(results: Path) -> None:
    found = compare("hashone", "hashtwo", results)
    assert [row["metric"] for row in found.metrics] == ["recall_at_1", "recall_at_2", "recall_at_4", "map_at_r"]
    able = np.array([0, 1, 2, 3, 5])
    for row in found.metrics:
        first, second = (np.array([metrics(ranks)[row["metric"]] for ranks in both]) for both in (FIRST, SECOND))
        assert row["first"] == pytest.approx(first.mean())
        assert row["second"] == pytest.approx(second.mean())
        test = stats.ttest_rel(first, second)
        low, high = test.confidence_interval()
        assert (row["difference"], row["seeds_half"]) == (
            pytest.approx((low + high) / 2),
            pytest.approx((high - low) / 2),
        )
        assert row["seeds_p"] == pytest.approx(test.pvalue)
        values = []
        for both in (FIRST, SECOND):
            ranks = np.array(both)[:, able]
            k = int(row["metric"].split("_")[-1]) if row["metric"] != "map_at_r" else 0
            values.append(((ranks <= k) if k else 1 / ranks.astype(np.float32)).mean(0))
        assert (row["low"], row["high"]) == pytest.approx(bootstrap_interval(values[0] - values[1], LABELS[able]))
        assert row["p"] == pytest.approx(paired_permutation_test(values[0], values[1], LABELS[able])[1])
        assert (values[0] - values[1]).mean() == pytest.approx(row["difference"], abs=1e-6), (
            "both describe one difference"
        )
        assert row["low"] <= row["difference"] <= row["high"]


def test_sides_are_found_by_id_by_its_beginning_by_file_and_by_hash(results: Path) -> None:
    one = "cub-one-hashone-s1-cpu"
    expected = compare(one, "cub-two-hashtwo-s1-cpu", results)
    assert expected.seeds == [1]
    for word in ("cub-one-hashone-s1", str(results / "runs" / f"{one}.json")):
        assert compare(word, "hashtwo", results).metrics[0]["difference"] == expected.metrics[0]["difference"]
    assert math.isnan(expected.metrics[0]["seeds_p"]), "one pair tells nothing over seeds"
    assert not math.isnan(expected.metrics[0]["p"])
    assert compare("cub-one", "cub-two", results).seeds == [0, 1, 2]
    with refused("unknown run 'cub-three'"):
        compare("cub-three", "hashtwo", results)
    with refused("fits 12 runs", "say more"):
        compare("cub-", "hashtwo", results)
    with refused("nowhere.json", "no such record"):
        compare("nowhere.json", "hashtwo", results)


def test_a_run_named_by_its_file_comes_with_the_details_beside_it(results: Path, tmp_path: Path) -> None:
    """The same run made again in another folder has the same id; details of the one say nothing of the other."""
    again, name = tmp_path / "again", "cub-one-hashone-s1-cpu"
    entry = next(entry for entry in side("one", FIRST) if entry["id"] == name)
    ranks = [min(rank, 1) for rank in FIRST[1]]
    save(again, {**entry, "metrics": metrics(ranks)})
    write_details(details(ranks), details_path(again, name))
    found = compare(str(again / "runs" / f"{name}.json"), name, results)
    assert found.won[0] == sum(rank > 1 for rank in FIRST[1])
    assert found.metrics[0]["low"] <= found.metrics[0]["difference"] <= found.metrics[0]["high"]


def test_what_cannot_be_compared_is_refused(results: Path) -> None:
    with refused("are the same"):
        compare("hashone", "cub-one", results)
    with refused("are the same"):
        compare("cub-one-hashone-s1-cpu", "hashone", results)
    with refused("no seed in common"):
        compare("hashone", "hashlate", results)


def test_two_runs_of_different_seeds_are_compared_as_they_are(results: Path) -> None:
    found = compare("cub-one-hashone-s0-cpu", "cub-one-hashone-s2-cpu", results)
    assert found.seeds == []
    assert found.changes == []
    assert found.metrics[0]["difference"] == pytest.approx(
        metrics(FIRST[0])["recall_at_1"] - metrics(FIRST[2])["recall_at_1"]
    )
    assert "no difference in configuration" in "\n".join(to_lines(found))


def test_without_details_there_are_figures_and_a_reason(results: Path) -> None:
    found = compare("hashone", "hashbare", results)
    assert found.queries == 0
    assert "no such file" in found.reason
    assert found.metrics[0]["seeds_p"] == compare("hashone", "hashtwo", results).metrics[0]["seeds_p"]
    assert all(math.isnan(row["p"]) for row in found.metrics)
    assert to_lines(found)[-1] == f"queries are not compared: {found.reason}"


@pytest.mark.parametrize("change", ["paths", "labels", "queries", "damaged"])
def test_details_of_other_images_are_not_compared(results: Path, change: str) -> None:
    path = details_path(results, "cub-two-hashtwo-s2-cpu")
    other = details(SECOND[2])
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:500])
    elif change == "paths":
        write_details(replace(other, paths=other.paths[::-1]), path)
    elif change == "labels":
        write_details(replace(other, labels=np.array([0, 0, 1, 1, 2, 0], dtype=np.int32)), path)
    else:
        fewer = {
            name: getattr(other, name)[:5]
            for name in ("queries", "first_rank", "map_at_r", "listed", "neighbours", "similarity")
        }
        write_details(replace(other, **fewer), path)
    found = compare("hashone", "hashtwo", results)
    assert found.queries == 0
    assert ("same images" if change != "damaged" else str(path)) in found.reason
    assert len(found.metrics) == 4


def test_seeds_of_different_tests_are_not_averaged_query_by_query(results: Path) -> None:
    """Both sides agree within each seed, but one seed is of other images than the others."""
    for strategy, ranks in (("one", FIRST), ("two", SECOND)):
        other = replace(details(ranks[1]), paths=np.array([f"other-{image}.png" for image in range(6)]))
        write_details(other, details_path(results, f"cub-{strategy}-hash{strategy}-s1-cpu"))
    found = compare("hashone", "hashtwo", results)
    assert (found.queries, "same images" in found.reason) == (0, True)


def test_queries_without_any_positive_leave_nothing_to_test(results: Path) -> None:
    for strategy in ("one", "two"):
        write_details(details([0] * 6), details_path(results, f"cub-{strategy}-hash{strategy}-s0-cpu"))
    found = compare("cub-one-hashone-s0-cpu", "cub-two-hashtwo-s0-cpu", results)
    assert (found.won[0], found.lost[0]) == (0, 0)
    assert all(math.isnan(row["p"]) for row in found.metrics)


def test_metrics_that_one_side_lacks_are_left_out(results: Path) -> None:
    entries = side("old", SECOND)
    for entry in entries:
        del entry["metrics"]["map_at_r"]
    entries[0]["metrics"]["recall_at_4"] = None
    save(results, *entries)
    found = compare("hashone", "hashold", results)
    assert [row["metric"] for row in found.metrics] == ["recall_at_1", "recall_at_2"], "null is no figure either"


def test_choices_that_differ_are_listed_without_the_seed(results: Path) -> None:
    assert compare("hashone", "hashtwo", results).changes == [("strategy", "one", "two")]
    one, two = {"seed": 0, "data": {"a": 1, "b": [1]}, "new": {"x": 1}}, {"seed": 1, "data": {"a": 2, "b": [1]}}
    assert differing(one, two) == [("data.a", "1", "2"), ("new.x", "1", "-")]
    assert differing({"options": 1}, {"options": {"x": 1}}) == [("options", "1", "{'x': 1}")]
    assert differing(one, one) == []


def test_the_command_prints_lines_or_json(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "hashone", "hashtwo", "--results", str(results)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "strategy: one | two" in printed
    assert "of 6 queries the first finds 2 in more seeds than the other, the second 1" in printed
    assert "  more often the second: 3.png (rank 5)" in printed
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["won"] == [2, ["1.png (rank 3)", "2.png (rank 2)"]]
    assert main(["compare", "hashone", "hashbare", "--results", str(results), "--json"]) == 0
    bare = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert bare["metrics"][0]["p"] is None


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        (["hashone", "hashone"], "are the same"),
        (["hashone", "hashtwp"], "unknown run 'hashtwp'"),
        (["hashone", "hashlate"], "no seed in common"),
        (["hashone", "nowhere.json"], "nowhere.json: no such record"),
        (["hashone", ""], "say more"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    results: Path, capsys: pytest.CaptureFixture[str], sides: list[str], said: str
) -> None:
    assert main(["compare", *sides, "--results", str(results)]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert len(found.err.splitlines()) == 1
    assert found.out == ""


def test_a_record_without_an_id_is_refused(results: Path) -> None:
    path = results / "runs" / "cub-two-hashtwo-s0-cpu.json"
    path.write_text(path.read_text().replace('"id"', '"name"'))
    with refused(path, "'id'"):
        compare("hashone", "hashtwo", results)


def test_runs_on_two_kinds_of_devices_are_not_mixed(tmp_path: Path) -> None:
    cpu, gpu = of("standard", 0.5), of("standard", 0.7)
    gpu[0] |= {"id": f"{gpu[0]['id']}-cuda", "environment": {"device": "cuda: H"}}
    save(tmp_path, *cpu, *gpu, *of("frozen", 0.4))
    with refused("name runs by their ids"):
        compare(cpu[0]["id"][:-1], "frozen", tmp_path)
