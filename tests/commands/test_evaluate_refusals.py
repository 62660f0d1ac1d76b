"""What the `evaluate` command refuses: one line, exit code 2, nothing half-written, and no search first if that can be told before."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from retrieval_bench.cli import main
from tests.data.data_checks import files_below

LABELS = np.repeat(np.arange(6), 4)
ROWS = np.eye(8)[LABELS] + 0.5 * np.random.default_rng(0).normal(size=(24, 8))
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with embeddings and labels, in which the command runs."""
    monkeypatch.chdir(tmp_path)
    np.savez("e.npz", embeddings=ROWS, labels=LABELS)
    np.save("e.npy", ROWS)
    np.save("labels.npy", LABELS)
    Path("labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    return tmp_path


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs ``evaluate`` with some words, which must end with one line and exit code 2, and gives the line."""

    def go(*words: str) -> str:
        assert main(["evaluate", *words]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert re.fullmatch(r"error: .+\n", printed.err)
        return printed.err

    return go


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluator must not be reached."""

    def work(*given: Any, **options: Any) -> None:
        raise AssertionError("evaluated before everything was checked")

    monkeypatch.setattr("retrieval_bench.evaluation.evaluate.evaluate_in_detail", work)


def test_an_old_table_stays_when_writing_fails(refusal: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(frame: pd.DataFrame, path: Path, **options: Any) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    Path("q.csv").write_text("old")
    before = files_below(here)
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    assert "No space left" in refusal("e.npz", "--per-query", "q.csv")
    assert Path("q.csv").read_text() == "old"
    assert files_below(here) == before


@pytest.mark.parametrize("flag", ["--per-query", "--per-class", "--curve"])
@pytest.mark.parametrize("name", ["table.txt", "table", "table.CSV"])
def test_other_endings_are_refused_before_any_work(flag: str, name: str, refusal: Run, no_work: None) -> None:
    assert f"{name}: a table is written as .csv or .parquet" in refusal("e.npz", flag, name)
    assert not Path(name).exists()


@pytest.mark.parametrize("name", ["folder.csv", "labels.txt/table.csv"])
def test_places_that_cannot_be_written_are_refused_before_any_work(name: str, refusal: Run, no_work: None) -> None:
    Path("folder.csv").mkdir()
    assert f"error: {name}: " in refusal("e.npz", "--per-query", name)


def test_two_tables_in_one_file_are_refused(refusal: Run, no_work: None) -> None:
    assert "q.csv" in refusal("e.npz", "--per-query", "q.csv", "--per-class", "q.csv")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_one_line(refusal: Run) -> None:
    assert "--device" in refusal("e.npz", "--device", "cuda")


@pytest.mark.parametrize(
    "words",
    [
        ["e.npz", "--query-labels", "labels.npy"],
        ["e.npz", "--gallery-labels", "labels.npy"],
        ["--query", "e.npz", "--gallery", "e.npz", "--labels", "labels.npy"],
    ],
    ids=" ".join,
)
def test_labels_of_a_file_that_is_not_given_are_refused(words: list[str], refusal: Run) -> None:
    assert "labels" in refusal(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a file with embeddings and labels, or --query FILE and --gallery FILE"),
        (["missing.npz"], "missing.npz: no such file"),
        (["e.npy"], "e.npy: labels are missing (give them with --labels FILE)"),
        (["e.npy", "--labels", "missing.txt"], "missing.txt: no such file"),
        (["e.npy", "--labels", "short.txt"], "expected shape (24,) to match its embeddings, found (2,)"),
        (["labels.npy", "--labels", "labels.npy"], "expected numbers of shape (images, dimensions)"),
        (["labels.txt"], "labels.txt: not an .npz, .npy or .parquet file"),
        (["."], ".: not an .npz, .npy or .parquet file"),
        (["--query", "e.npz"], "--gallery FILE"),
        (["--gallery", "e.npz"], "--query FILE"),
        (["e.npz", "--query", "e.npz"], "give one file, or --query and --gallery, not both"),
        (["e.npz", "--gallery", "e.npz"], "give one file, or --query and --gallery, not both"),
        (["--query", "missing.npz", "--gallery", "e.npz"], "missing.npz: no such file"),
        (["--query", "e.npz", "--gallery", "e.npy"], "e.npy: labels are missing"),
        (["--query", "narrow.npz", "--gallery", "e.npz"], "3 dimensions"),
        (
            ["--query", "e.npy", "--query-labels", "labels.txt", "--gallery", "e.npz"],
            "one is text and the other numbers",
        ),
        (["alone.npz"], "no query has an item of its class in the gallery"),
        (["zero.npz"], "row 2 is a zero vector"),
        (["e.npz", "--k", "0"], "--k 0: give distinct whole numbers from 1 up"),
        (["e.npz", "--k", "2", "2"], "--k 2 2: give distinct"),
        (["e.npz", "--k"], "give distinct whole numbers"),
        (["e.npz", "--k", "one"], "--k"),
        (["e.npz", "--metrics", "recal"], "'r_precision'"),
        (["e.npz", "--engine", "fast"], "'hnsw'"),
        (["e.npz", "--distance", "l1"], "'l2'"),
        (["e.npz", "--device", "tpu"], "'cuda'"),
        (["e.npz", "--memory-gb", "much"], "--memory-gb"),
        (["e.npz", "--per-querry", "a.csv"], "--per-querry"),
        (["e.npz", "e.npz"], "e.npz"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], message: str, refusal: Run) -> None:
    Path("short.txt").write_text("a\nb\n")
    np.savez("narrow.npz", embeddings=ROWS[:, :3], labels=LABELS)
    np.savez("alone.npz", embeddings=ROWS, labels=np.arange(24))
    np.savez("zero.npz", embeddings=np.where(np.arange(24)[:, None] == 2, 0, ROWS), labels=LABELS)
    assert message in refusal(*words)
