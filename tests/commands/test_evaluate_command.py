"""The `evaluate` command as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.cli import main
from retrieval_bench.evaluation.evaluate import evaluate, evaluate_in_detail
from retrieval_bench.evaluation.statistics import intervals
from tests.data.data_checks import files_below

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(6), 4)
ROWS = np.eye(8)[LABELS] + 0.5 * RNG.normal(size=(24, 8))
COUNTS = {"queries": 24, "queries_without_positive": 0}
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same embeddings in every form, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    np.savez("e.npz", embeddings=ROWS, labels=LABELS)
    np.save("e.npy", ROWS)
    np.save("labels.npy", LABELS)
    Path("labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    pd.DataFrame({"label": LABELS, "embedding": list(ROWS)}).to_parquet("lists.parquet")
    pd.DataFrame({"label": LABELS, **{f"d{i}": ROWS[:, i] for i in range(8)}}).to_parquet("columns.parquet")
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs ``evaluate`` with some words, which must succeed in silence, and gives what it printed."""

    def go(*words: str) -> str:
        assert main(["evaluate", *words]) == 0
        printed = capfd.readouterr()
        assert printed.err == ""
        return printed.out

    return go


def expected(**options: Any) -> dict[str, Any]:
    return evaluate(ROWS, LABELS, **options)


def test_fractions_are_printed_as_json(run: Run) -> None:
    np.savez("four.npz", embeddings=np.eye(4)[[0, 0, 1, 2]], labels=[0, 0, 1, 1])
    found = json.loads(run("four.npz", "--json", "--k", "1", "3"))
    half = {
        "recall_at_1": 0.5,
        "recall_at_3": 1.0,
        "mrr": (1 + 1 + 1 / 3 + 1 / 3) / 4,
        "r_precision": 0.5,
        "map_at_r": 0.5,
    }
    assert found == pytest.approx({**half, "queries": 4, "queries_without_positive": 0})


def test_the_table_has_a_line_per_figure(run: Run) -> None:
    lines = [line.split() for line in run("e.npz").splitlines()]
    wanted = expected()
    assert [line[0] for line in lines] == list(wanted)
    assert dict(lines) == {
        name: str(value) if isinstance(value, int) else f"{value:.4f}" for name, value in wanted.items()
    }
    assert {"recall_at_8", "mrr", "r_precision", "map_at_r"} <= wanted.keys()


@pytest.mark.parametrize(
    "words",
    [
        ["e.npz"],
        ["lists.parquet"],
        ["columns.parquet"],
        ["e.npy", "--labels", "labels.npy"],
        ["e.npy", "--labels", "labels.txt"],
        ["e.npz", "--labels", "labels.txt"],
        ["lists.parquet", "--labels", "labels.txt"],
    ],
    ids=" ".join,
)
def test_every_kind_of_file_gives_the_same_figures(words: list[str], run: Run) -> None:
    assert json.loads(run(*words, "--json")) == expected()


@pytest.mark.parametrize("gallery", ["e.npz", "lists.parquet", "columns.parquet", "e.npy"])
@pytest.mark.parametrize("query", ["q.npz", "q.parquet", "q.npy"])
def test_queries_and_gallery_may_be_of_any_kind(query: str, gallery: str, run: Run) -> None:
    rows, labels = ROWS[::3] + 0.1, LABELS[::3]
    np.savez("q.npz", embeddings=rows, labels=labels)
    np.save("q.npy", rows)
    np.save("q_labels.npy", labels)
    pd.DataFrame({"label": labels, "embedding": list(rows)}).to_parquet("q.parquet")
    words = ["--query", query, *(["--query-labels", "q_labels.npy"] if query == "q.npy" else [])]
    words += ["--gallery", gallery, *(["--gallery-labels", "labels.npy"] if gallery == "e.npy" else [])]
    assert json.loads(run(*words, "--json")) == evaluate(ROWS, LABELS, rows, labels)


def test_labels_of_queries_and_gallery_may_both_be_text(run: Run) -> None:
    words = [
        "--query",
        "e.npy",
        "--query-labels",
        "labels.txt",
        "--gallery",
        "lists.parquet",
        "--gallery-labels",
        "labels.txt",
    ]
    assert json.loads(run(*words, "--json"))["recall_at_1"] == 1.0  # every query is in the gallery, and finds itself


def test_an_npz_file_may_hold_its_queries(run: Run) -> None:
    np.savez("both.npz", embeddings=ROWS, labels=LABELS, query_embeddings=ROWS[:5], query_labels=LABELS[:5])
    assert json.loads(run("both.npz", "--json")) == evaluate(ROWS, LABELS, ROWS[:5], LABELS[:5])


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("engine", ["auto", "blocked", "flat"])
def test_exact_engines_agree(engine: str, distance: str, run: Run) -> None:
    rows = ROWS * np.geomspace(1, 30, 24)[:, None]  # lengths matter to one distance only
    np.savez("long.npz", embeddings=rows, labels=LABELS)
    found = json.loads(run("long.npz", "--engine", engine, "--distance", distance, "--json"))
    assert found == evaluate(rows, LABELS, distance=distance)
    assert (found == expected()) == (distance == "cosine")


@pytest.mark.parametrize("engine", ["ivf", "hnsw"])
def test_approximate_engines_say_how_well_they_search(engine: str, run: Run) -> None:
    found = json.loads(run("e.npz", "--engine", engine, "--json"))
    assert found["index_recall_at_10"] == 1.0
    assert found["recall_at_1"] == expected()["recall_at_1"]


def test_only_the_metrics_and_k_that_are_named_are_computed(run: Run) -> None:
    found = json.loads(run("e.npz", "--k", "2", "5", "--metrics", "precision", "map", "--json"))
    assert found.keys() == {"precision_at_2", "precision_at_5", "map", *COUNTS}
    assert found == expected(ks=(2, 5), metrics=("precision", "map"))
    assert json.loads(run("e.npz", "--metrics", "clustering", "health", "--json")).keys() == {
        *COUNTS, "nmi", "ami", "intra_distance", "inter_distance", "density", "spectral_decay",
    }  # fmt: skip


def test_little_memory_changes_nothing(run: Run) -> None:
    assert json.loads(run("e.npz", "--memory-gb", "0", "--json")) == expected()


def strict(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


def test_what_cannot_be_measured_is_still_json(run: Run) -> None:
    np.savez("one.npz", embeddings=ROWS, labels=np.zeros(24))
    found = json.loads(run("one.npz", "--metrics", "health", "--json"), parse_constant=strict)
    assert found["density"] is None


def test_intervals_stand_beside_the_figures(run: Run) -> None:
    wanted = intervals(evaluate_in_detail(ROWS, LABELS).columns)
    found = json.loads(run("e.npz", "--intervals", "--json"))
    assert {name: tuple(found[name]) for name in wanted} == wanted
    assert {name: value for name, value in found.items() if name not in wanted} == expected()
    lines = {line.split()[0]: line for line in run("e.npz", "--intervals").splitlines()}
    for name in ("recall_at_1", "map_at_r"):
        for over in ("queries", "classes"):
            low, high = wanted[f"{name}_over_{over}"]
            assert low <= expected()[name] <= high
            assert f"[{low:.4f}, {high:.4f}] over {over}" in lines[name]
    assert "[" not in lines["queries"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_hold_what_was_found(suffix: str, run: Run) -> None:
    np.savez("lone.npz", embeddings=ROWS, labels=[*LABELS[:23], 99])
    names = [f"{name}{suffix}" for name in ("query", "class", "curve")]
    run("lone.npz", "--per-query", names[0], "--per-class", f"new/{names[1]}", "--curve", names[2])
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    queries, classes, curve = read(names[0]), read(f"new/{names[1]}"), read(names[2])
    wanted = evaluate(ROWS, np.array([*LABELS[:23], 99]))
    assert queries["query"].tolist() == list(range(24))
    assert queries["label"].tolist() == [*LABELS[:23], 99]
    for name in ("recall_at_1", "mrr", "r_precision", "map_at_r"):
        assert np.nanmean(queries[name]) == pytest.approx(wanted[name])
        assert np.average(classes[name], weights=classes["queries"]) == pytest.approx(wanted[name])
    assert np.isnan(queries["mrr"]).tolist() == [False] * 23 + [True]
    assert [queries[name].tolist()[23] for name in ("positives", "first_rank")] == [0, 0]
    assert classes["label"].tolist() == list(range(6))
    assert classes["queries"].tolist() == [4, 4, 4, 4, 4, 3]
    assert curve["recall"].tolist() == pytest.approx(np.linspace(0, 1, 101))
    assert curve["precision"].is_monotonic_decreasing


def test_the_curve_adds_nothing_to_what_is_printed(run: Run) -> None:
    assert run("e.npz", "--json", "--curve", "curve.csv") == run("e.npz", "--json")


def test_text_labels_reach_the_tables(run: Run) -> None:
    names = np.array([["b, c", "ä"][label % 2] for label in LABELS])
    np.savez("text.npz", embeddings=ROWS, labels=names)
    run("text.npz", "--per-query", "q.csv", "--per-class", "c.parquet")
    assert pd.read_csv("q.csv")["label"].tolist() == names.tolist()
    assert pd.read_parquet("c.parquet")["label"].tolist() == ["b, c", "ä"]


def test_an_old_table_is_replaced_whole(run: Run, here: Path) -> None:
    Path("q.csv").write_text("old\n" * 1000)
    before = files_below(here)
    run("e.npz", "--per-query", "q.csv")
    assert len(pd.read_csv("q.csv")) == 24
    assert files_below(here) == before
