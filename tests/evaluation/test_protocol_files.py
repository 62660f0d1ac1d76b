"""Protocols from columns and lists in files: the command gives what the function gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.cli import main
from retrieval_bench.evaluation.evaluate import evaluate
from tests.evaluation.retrieval_cases import clusters

ROWS, SPECIES, CAMERAS = *clusters(24, 4, copies=False), np.arange(24) % 3


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def frame(rows: slice, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"label": SPECIES, "camera": CAMERAS, "embedding": list(ROWS), **columns}).iloc[rows]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    assert main(["evaluate", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_columns_of_every_kind_of_file(capsys: pytest.CaptureFixture[str]) -> None:
    ignore = np.arange(24) < 6
    expected = evaluate(ROWS, SPECIES, cameras=CAMERAS, ignore=ignore)
    frame(slice(None), junk=ignore).to_parquet("e.parquet")
    series = {f"e{number}": column for number, column in enumerate(ROWS.T)}
    pd.DataFrame({"label": SPECIES, "camera": CAMERAS, "junk": ignore, **series}).to_csv("e.csv", index=False)
    np.savez("e.npz", embeddings=ROWS, labels=SPECIES, camera=CAMERAS, junk=ignore)
    flags = ["--camera-column", "camera", "--ignore-column", "junk"]
    for name in ("e.parquet", "e.csv", "e.npz"):
        assert shown(capsys, name, *flags) == pytest.approx(expected)
    frame(slice(0, 8)).to_parquet("q.parquet")
    frame(slice(8, 24), junk=ignore).to_parquet("g.parquet")
    np.savez(
        "both.npz",
        embeddings=ROWS[8:],
        labels=SPECIES[8:],
        camera=CAMERAS[8:],
        junk=ignore[8:],
        query_embeddings=ROWS[:8],
        query_labels=SPECIES[:8],
        query_camera=CAMERAS[:8],
    )
    apart = {"cameras": CAMERAS[8:], "query_cameras": CAMERAS[:8], "ignore": ignore[8:]}
    expected = evaluate(ROWS[8:], SPECIES[8:], ROWS[:8], SPECIES[:8], **apart, rerank=("aqe:3", "k_reciprocal:5:3:0.3"))
    modes = ["--rerank", "aqe:3", "k_reciprocal:5:3:0.3"]
    for words in (["--query", "q.parquet", "--gallery", "g.parquet"], ["both.npz"]):
        assert shown(capsys, *words, *flags, *modes) == pytest.approx(expected)


def test_several_labels_and_grades_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [[f"s{name}", f"t{camera}"] for name, camera in zip(SPECIES, CAMERAS, strict=True)]
    expected = evaluate(ROWS, sets, metrics=("ndcg", "map"))
    frame(slice(None), tags=sets).to_parquet("e.parquet")
    series = {f"e{number}": column for number, column in enumerate(ROWS.T)}
    pd.DataFrame({"tags": ["|".join(row) for row in sets], **series}).to_csv("e.csv", index=False)
    names = sorted({label for row in sets for label in row})
    np.savez("e.npz", embeddings=ROWS, tags=np.array([[name in row for name in names] for row in sets]))
    for name in ("e.parquet", "e.csv", "e.npz"):
        assert shown(capsys, name, "--labels-column", "tags", "--metrics", "ndcg", "map") == pytest.approx(expected)
    query, item = np.nonzero(np.add.outer(SPECIES, -SPECIES) == 0)
    pd.DataFrame({"query": query, "item": item, "grade": 1.5 + item % 2}).to_csv("g.csv", index=False)
    np.savez("plain.npz", embeddings=ROWS)
    grades = np.where(SPECIES[:, None] == SPECIES, 1.5 + np.arange(24) % 2, 0)
    expected = evaluate(ROWS, None, relevance=grades, metrics=("ndcg", "map"))
    words = ("plain.npz", "--relevance", "g.csv", "--metrics", "ndcg", "map")
    assert shown(capsys, *words, "--per-query", "q.csv") == pytest.approx(expected)
    assert pd.read_csv("q.csv")["label"].tolist() == list(range(24)), "without labels each query is its own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--camera-column", "cam"],
            "e.parquet: unknown column 'cam': did you mean 'camera'? (known: camera, embedding, label)",
        ),
        (["--labels-column", "tags", "--labels", "l.txt"], "labels of e.parquet are also given as l.txt"),
        (["--relevant", "hard"], "--relevant hard belongs to --relevance FILE.json"),
        (["--relevance", "easy.json"], "easy.json: --relevant easy, medium or hard goes with lists in a .json file"),
        (["--relevance", "none.json", "--relevant", "easy"], "none.json: no such file"),
        (["--relevance", "l.txt"], "l.txt: relevance is read from .json, .parquet"),
        (
            ["--relevance", "few.json", "--relevant", "easy"],
            "expected a list with an object of lists for each of 24",
        ),
        (
            ["--relevance", "lack.json", "--relevant", "hard"],
            "query 0 has no list 'hard' (there are easy, junk)",
        ),
        (["--relevance", "text.json", "--relevant", "hard"], "text.json: holds more than numbers"),
        (["--relevance", "easy.json", "--relevant", "easy"], "easy.json: item 99 is no row number from 0 to 23"),
        (["--relevance", "bad.csv"], "bad.csv: column 'grade' is missing (there are query, item, score)"),
        (["--relevance", "twice.csv"], "twice.csv: item 2 is there twice for query 1"),
        (["--relevance", "twice.csv", "--relevant", "hard"], "goes with lists in a .json file, and only with them"),
        (["--rerank", "aqe:x"], "--rerank aqe:x: expected aqe:K[:alpha]"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    frame(slice(None)).to_parquet("e.parquet")
    Path("l.txt").write_text("a\n")
    Path("few.json").write_text("[{}]")
    for name, lists in {"easy": {"easy": [99], "junk": [], "hard": []}, "lack": {"easy": [], "junk": []}}.items():
        Path(f"{name}.json").write_text(json.dumps([lists] * 24))
    Path("text.json").write_text(json.dumps([{"easy": [], "junk": [], "hard": ["a.jpg"]}] * 24))
    Path("bad.csv").write_text("query,item,score\n0,1,1\n")
    Path("twice.csv").write_text("query,item,grade\n1,2,1\n0,1,1\n1,2,0\n")
    assert main(["evaluate", "e.parquet", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
