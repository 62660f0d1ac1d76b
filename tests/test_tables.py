"""The formats of the leaderboard, some against committed files.

After a change of format that is meant, ``REWRITE_GOLDEN=1 pytest tests/test_tables.py`` writes ``tests/golden/`` again;
read the diff.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from retrieval_bench.cli import main
from retrieval_bench.columns import column
from retrieval_bench.groups import group_rows
from retrieval_bench.leaderboard import Format, leaderboard, protocol_tables, render, reported_tables
from retrieval_bench.records import Record
from retrieval_bench.reported import reported_rows, reported_source, reported_values
from retrieval_bench.tables import escape_latex, escape_markdown
from tests.board_records import of, save

GOLDEN = Path(__file__).with_name("golden")
AWKWARD = "k|<b>_100%\\\"'[red]:x:"
"""A label that means something in each of the formats."""


def fixed() -> list[Record]:
    """Three protocols; seeds 1 to 4; the best, ties, one significantly worse, one of a seed; a data set with reported
    numbers."""
    records = [
        *of("standard", 0.5, 0.52, 0.57, 0.55),
        *of("last_k(k=2)", 0.5, 0.53, 0.56),
        *of(AWKWARD, 0.30, 0.33, 0.37),
        *of("lucky", 0.9),
        *of("frozen", 0.41, 0.41),
        *of("standard", 0.6, 0.6, 0.6, config={"data.image_size": 96}),
        *of("l2sp", 0.6, 0.6, 0.6, config={"data.image_size": 96}),
        *of("standard", 0.7, 0.71, config={"data.dataset": "cub", "data.classes": 24}),
    ]
    # The golden files are about formats: choices that are added to the configuration later do not change them.
    kept = {"data": "dataset split classes image_size", "model": "backbone", "train": "epochs lr", "loss": "loss"}
    for number, entry in enumerate(records):
        config = {part: {name: entry.config[part][name] for name in names.split()} for part, names in kept.items()}
        if entry.strategy == "standard":
            entry.metrics["map_at_r"] = round(entry.metrics["recall_at_1"] / 2, 6)
        if entry.strategy == "frozen":
            entry.cost.update({"images_seen": 0, "train_seconds": 0.04})
        records[number] = replace(entry, config=config, environment={"device": "cpu: test", "threads": 2})
    return records


@pytest.fixture
def two_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two reported rows in place of the published ones, whose number grows."""
    rows = pd.DataFrame({"dataset": "cub", "split": "zero_shot", "backbone": "ResNet-50", "dim": [None, 512.0],
                         "loss": "softmax", "strategy": ["one", "two †"], "recall_at_1": [0.7, None],
                         "recall_at_2": [None, 0.9], "reported": "a paper"})  # fmt: skip
    module = sys.modules["retrieval_bench.leaderboard"]  # the package's attribute is the function
    monkeypatch.setattr(module, "reported_rows", lambda names: rows if "cub" in names else rows[:0])


@pytest.mark.usefixtures("two_reported")
@pytest.mark.parametrize(
    ("name", "form", "by"),
    [
        ("leaderboard.md", "markdown", ()),
        ("leaderboard.csv", "csv", ()),
        ("grouped.md", "markdown", ("image_size", "loss")),
    ],
)
def test_formats_are_as_committed(name: str, form: Format, by: tuple[str, ...]) -> None:
    table = leaderboard(fixed())
    text = render(group_rows(table, by) if by else table, form, by)
    if os.environ.get("REWRITE_GOLDEN"):
        (GOLDEN / name).write_bytes(text.encode())
    assert (GOLDEN / name).read_bytes() == text.encode()


def test_markdown_keeps_its_columns_whatever_a_label_holds() -> None:
    text = render(leaderboard([*of("a|b\nc\\", 0.5), *of("<b>bold</b>", 0.4)]), "markdown")
    bars = [re.sub(r"(?:\\\\)*\\\|", "", line).count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(bars) == 4
    assert len(set(bars)) == 1
    assert "\\<b>bold" in text
    assert escape_markdown("a|b\nc\\") == "a\\|b c\\\\"


def test_every_format_shows_labels_as_they_are_and_marks_the_best() -> None:
    table = leaderboard([*fixed(), *of("long" * 40, 0.1)])
    page = render(table, "html")
    assert {AWKWARD, "long" * 40} <= set(map(html.unescape, re.findall(r"<td>(.*)</td>", page)))
    assert "<b>" not in page
    assert page.count("<strong>") == 2, "one best in each of the protocols that have three seeds"
    assert page.count("<table") == 4
    text = render(table, "text")
    assert AWKWARD in text, "neither markup nor emoji"
    assert len(re.findall(r" \*( |\n)", text)) == 2
    assert "\x1b" not in text
    latex = render(table, "latex")
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 4
    assert latex.count(r"\textbf{") == 2
    bare = re.sub(r"\\[%&_#${}]|\$[<>=]\$|\$\\(pm|dagger|ddagger|star)\$", "", latex)
    assert not re.search(r"[%#<>±†‡☆]|(?<!\\)_", bare)
    assert escape_latex("50 % & $x_1$ #2 {a} ~^\\ <b>") == (
        r"50 \% \& \$x\_1\$ \#2 \{a\} \textasciitilde{}\textasciicircum{}\textbackslash{} $<$b$>$"
    )


def test_csv_and_json_hold_the_table() -> None:
    table = leaderboard(fixed())
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    both = json.loads(render(table, "json"))
    assert len(rows) == len(both["measured"]) + len(both["reported"])
    assert [row["strategy"] for row in rows[: len(table)]] == table["strategy"].tolist()
    for row, entry in zip(rows, both["measured"], strict=False):
        assert float(row["recall_at_1"]) == entry["recall_at_1"]
        assert (row["significance"], row["reported"]) == (entry["significance"], "")
        for name in ("seeds", "classes", "epochs", "dim", "image_size", "parameters"):
            assert row[name] == str(entry[name]), f"{name} is a whole number"
    assert all(row["reported"] and not row["significance"] for row in rows[len(table) :])
    assert {entry["dataset"] for entry in both["reported"]} == {"cub"}


def test_reported_rows_are_of_data_sets_that_are_there_and_never_marked() -> None:
    bare = leaderboard([entry for entry in fixed() if entry.dataset == "emoji_mini"])
    assert not any("reported in papers" in render(bare, form) for form in get_args(Format))
    (table,) = reported_tables(["cub", "cub", "synthetic"])
    assert table.title.startswith("cub: reported in papers, not measured here")
    assert len(table.cells) == len(reported_rows(["cub"])) == 40
    assert table.marked(str, "BEST {}", "TIE {}").to_numpy().tolist() == table.cells.to_numpy().tolist()
    assert all("source" not in part.cells for part in protocol_tables(bare))


def test_reported_numbers_are_fractions_with_a_source() -> None:
    rows: Any = reported_rows(["cub", "cars", "sop", "inshop", "flowers", "wikiart", "sketches"])
    numbers = rows[[name for name in rows if str(name).startswith(("recall", "accuracy"))]]
    assert len(rows) == 148
    assert numbers.notna().any(axis=1).all()
    assert numbers.max().max() < 1
    assert numbers.min().min() > 0.1
    assert rows["reported"].str.len().min() > 10
    expected = {"recall_at_1": 0.67, "recall_at_2": 0.7849, "recall_at_4": 0.8685, "recall_at_8": 0.9207}
    assert reported_values("ablation_pruning", "Pruning 15, 16", "cub") == expected
    assert reported_values("table_spottune", "SpotTune Global-k", "flowers") == {"accuracy": 0.966}
    assert reported_values("table_spottune", "Rollback", "cub") == {}
    assert "Guo" in reported_source("table_spottune")
    assert not len(reported_rows(["synthetic"]))


def test_numbers_as_text() -> None:
    recall = column("recall_at_1")
    assert [recall.text(value) for value in (None, float("nan"), 0.12345, 1)] == ["", "", "12.35", "100.00"]
    assert [recall.text(0.5, half) for half in (0.01, float("nan"), 0)] == ["50.00 ± 1.00", "50.00", "50.00"]
    assert recall.text(0.5, sign="+") == "+50.00"
    assert column("macs").text(2.5e6) == "2 M"
    with pytest.raises(KeyError):
        column("recall_at_0")


@pytest.mark.parametrize("form", get_args(Format))
def test_the_command_prints_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: Format
) -> None:
    save(tmp_path, *fixed())
    words = ["leaderboard", "--results", str(tmp_path), "--dataset", "emoji_mini", "--format", form]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out").read_text(encoding="utf-8") == printed
    assert not list(tmp_path.glob("leaderboard.*")), "a part of the table is not written as the whole"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "emoji_mimi"], "did you mean 'emoji_mini'?"),
        (["--where", "epochs"], "COLUMN=VALUE"),
        (["--where", "epoch=4"], "did you mean 'epochs'?"),
        (["--where", "epochs=5"], "unknown epochs '5'"),
        (["--loss", "triplet", "--where", "loss=softmax"], "unknown loss"),
        (["--by", "recall_at_1"], "unknown column 'recall_at_1'"),
        (["--dataset", "cub", "--strategy", "frozen"], "no row has"),
        (["--output", "FOLDER"], "is a folder"),
        (["--results", "FOLDER/none"], "no such folder"),
        (["--results", "FOLDER/empty", "--format", "csv"], "no records"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    save(tmp_path, *fixed())
    (tmp_path / "empty").mkdir()
    words = [word.replace("FOLDER", str(tmp_path)) for word in words]
    assert main(["leaderboard", "--results", str(tmp_path), *words]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
