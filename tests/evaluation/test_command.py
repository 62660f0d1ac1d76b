"""The `evaluate` command as a user meets it: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
import re
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

LABELS = np.repeat(np.arange(6), 4)
ROWS = np.eye(8)[LABELS] + 0.5 * np.random.default_rng(0).normal(size=(24, 8))
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
    return tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs ``evaluate`` with some words, which must succeed in silence, and gives what it printed."""

    def go(*words: str) -> str:
        assert main(["evaluate", *words]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return go


def expected(**options: Any) -> dict[str, Any]:
    return evaluate(ROWS, LABELS, **options)


def test_the_table_has_a_line_per_figure(run: Run) -> None:
    lines = dict(
        line.split(maxsplit=1) for line in run("e.npz", "--metrics", "recall", "map_at_r", "health").splitlines()
    )
    values = expected(metrics=("recall", "map_at_r", "health"))
    assert lines.keys() == values.keys()
    assert lines["recall_at_1"] == f"{100 * values['recall_at_1']:.2f} %", "as all tables show it"
    assert lines["queries"] == str(values["queries"])
    assert lines["spectral_decay"] == f"{values['spectral_decay']:.4f}", "no share"


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["lists.parquet"], {}),
        (["e.npy", "--labels", "labels.txt"], {}),
        (["e.npz", "--labels", "labels.npy"], {}),
        (["e.npz", "--memory-gb", "0", "--engine", "blocked", "--device", "cpu"], {}),
        (["e.npz", "--engine", "flat"], {}),
        (["e.npz", "--engine", "reference", "--distance", "l2"], {"distance": "l2"}),
        (["e.npz", "--engine", "ivf"], {"engine": "ivf"}),
        ("e.npz --k 2 5 --metrics precision map".split(), {"ks": (2, 5), "metrics": ("precision", "map")}),
        (["e.npz", "--metrics", "clustering", "health"], {"metrics": ("clustering", "health")}),
        (["e.npz", "--ties", "bounds"], {"ties": "bounds"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_are_arguments_of_the_evaluator(words: list[str], options: dict[str, Any], run: Run) -> None:
    assert json.loads(run(*words, "--json")) == expected(**options)


def test_queries_and_gallery_may_be_of_any_kind(run: Run) -> None:
    rows, labels = ROWS[::3] + 0.1, LABELS[::3]
    np.savez("q.npz", embeddings=rows, labels=labels)
    np.save("q.npy", rows)
    np.save("q_labels.npy", labels)
    np.savez("both.npz", embeddings=ROWS, labels=LABELS, query_embeddings=rows, query_labels=labels)
    for words in (
        ["--query", "q.npz", "--gallery", "lists.parquet"],
        ["--query", "q.npy", "--query-labels", "q_labels.npy", "--gallery", "e.npy", "--gallery-labels", "labels.npy"],
        ["both.npz"],
    ):
        assert json.loads(run(*words, "--json")) == evaluate(ROWS, LABELS, rows, labels)
    own = np.arange(0, 24, 3)
    np.savez("both.npz", embeddings=ROWS, labels=LABELS, query_embeddings=rows, query_labels=labels, same_item=own)
    np.savez("q.npz", embeddings=rows, labels=labels, same_item=own)
    np.save("own.npy", own)
    Path("own.txt").write_text("".join(f"{row}\n" for row in own))
    apart = ["--query", "q.npy", "--query-labels", "q_labels.npy", "--gallery", "e.npz", "--same-item"]
    for words in (["both.npz"], ["--query", "q.npz", "--gallery", "e.npz"], [*apart, "own.npy"], [*apart, "own.txt"]):
        assert json.loads(run(*words, "--json")) == evaluate(ROWS, LABELS, rows, labels, same_item=own)
    text = ["--query", "e.npy", "--query-labels", "labels.txt", "--gallery", "e.npy", "--gallery-labels", "labels.txt"]
    assert json.loads(run(*text, "--json"))["recall_at_1"] == 1.0  # every query finds itself


def test_what_cannot_be_measured_is_still_json(run: Run) -> None:
    np.savez("one.npz", embeddings=ROWS, labels=np.zeros(24))
    assert re.search(r'"density": null', run("one.npz", "--metrics", "health", "--json"))


def test_intervals_are_beside_the_figures(run: Run) -> None:
    ranges = intervals(evaluate_in_detail(ROWS, LABELS).columns)
    found = json.loads(run("e.npz", "--intervals", "--json"))
    assert found == {**expected(), **{name: list(ends) for name, ends in ranges.items()}}
    lines = {line.split()[0]: line for line in run("e.npz", "--intervals").splitlines()}
    for name in ("recall_at_1", "map_at_r"):
        for over in ("queries", "classes"):
            low, high = ranges[f"{name}_over_{over}"]
            assert low <= expected()[name] <= high
            assert f"[{100 * low:.2f} %, {100 * high:.2f} %] over {over}" in lines[name]
    assert "[" not in lines["queries"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_hold_what_the_evaluator_gives(suffix: str, run: Run, here: Path) -> None:
    labels = np.array(["b, c", "ä"])[LABELS % 2]
    labels[23] = "alone"
    np.savez("text.npz", embeddings=ROWS, labels=labels)
    names = [f"{name}{suffix}" for name in ("query", "class", "curve")]
    Path(names[0]).write_text("old\n" * 1000)
    before = files_below(here)
    words = ("text.npz", "--per-query", names[0], "--per-class", f"new/{names[1]}", "--curve", names[2])
    assert run(*words) == run("text.npz"), "the curve adds nothing to what is printed"
    assert set(files_below(here)) - set(before) == {"new", f"new/{names[1]}", names[2]}
    found = evaluate_in_detail(ROWS, labels, metrics=("recall", "mrr", "r_precision", "map_at_r", "curve"))
    frames = (found.per_query(), found.per_class(), found.curve_frame())
    for name, frame in zip((names[0], f"new/{names[1]}", names[2]), frames, strict=True):
        read = pd.read_csv(name) if suffix == ".csv" else pd.read_parquet(name)
        pd.testing.assert_frame_equal(read, frame, check_dtype=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a file with embeddings and labels, or --query FILE and --gallery FILE"),
        (["missing.npz"], "missing.npz: no such file"),
        (["e.npy"], "e.npy: labels are missing (give them with --labels FILE)"),
        (["e.npy", "--labels", "short.txt"], "expected shape (24,) to match its embeddings, found (2,)"),
        (["e.npz", "--query-labels", "labels.npy"], "--query-labels and --gallery-labels belong to"),
        (["e.npz", "--gallery-labels", "labels.npy"], "--query-labels and --gallery-labels belong to"),
        (["--query", "e.npz", "--gallery", "e.npz", "--labels", "labels.npy"], "--labels belongs to a single file"),
        (["--query", "e.npz"], "--gallery FILE"),
        (["e.npz", "--same-item", "short.txt"], "short.txt: not a whole number per line"),
        (["e.npz", "--same-item", "labels.npy"], "same_item: without query_embeddings"),
        (["e.npz", "--query", "e.npz"], "give one file, or --query and --gallery, not both"),
        (["--query", "e.npz", "--gallery", "e.npy"], "e.npy: labels are missing"),
        (["alone.npz"], "no query has an item of its class in the gallery"),
        (["e.npz", "--k", "0"], "--k 0: give distinct whole numbers from 1 up"),
        (["e.npz", "--k"], "give distinct whole numbers"),
        (["e.npz", "--metrics", "recal"], "'r_precision'"),
        (["e.npz", "--engine", "fast"], "'hnsw'"),
        (["e.npz", "--per-querry", "a.csv"], "--per-querry"),
        (["e.npz", "e.npz"], "e.npz"),
        # Tables that cannot be written are refused before anything is read.
        (["missing.npz", "--per-query", "table.txt"], "table.txt: a table is written as .csv or .parquet"),
        (["missing.npz", "--per-class", "table"], "table: a table is written"),
        (["missing.npz", "--curve", "table.CSV"], "table.CSV: a table is written"),
        (["missing.npz", "--per-query", "folder.csv"], "error: folder.csv: "),
        (["missing.npz", "--per-query", "labels.txt/table.csv"], "error: labels.txt/table.csv: "),
        (["missing.npz", "--per-query", "q.csv", "--per-class", "q.csv"], "q.csv"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("short.txt").write_text("a\nb\n")
    Path("folder.csv").mkdir()
    np.savez("alone.npz", embeddings=ROWS, labels=np.arange(24))
    before = files_below(here)
    assert main(["evaluate", *words]) == 2
    out, err = capfd.readouterr()
    assert (out, re.fullmatch(r"error: .+\n", err) is None) == ("", False)
    assert message in err
    assert files_below(here) == before


@pytest.mark.parametrize("side", ["query", "gallery"])
def test_arrays_that_would_not_be_used_are_refused(side: str, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez("both.npz", embeddings=ROWS, labels=LABELS, query_embeddings=ROWS[:2], query_labels=LABELS[:2])
    files = {"query": "e.npz", "gallery": "e.npz", side: "both.npz"}
    assert main(["evaluate", "--query", files["query"], "--gallery", files["gallery"]]) == 2
    assert "both.npz: holds query_embeddings, query_labels too" in capfd.readouterr().err
