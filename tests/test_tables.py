"""The formats of the leaderboard against committed files.

After a change of format that is meant, ``REWRITE_GOLDEN=1 pytest tests/test_tables.py`` writes ``tests/golden/`` again; read the diff.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest

from retrieval_bench import tables
from retrieval_bench.cli import main
from retrieval_bench.config import RunConfig
from retrieval_bench.experiments.published import quoted_rows
from retrieval_bench.identity import to_dict
from retrieval_bench.leaderboard import build_table, choose_rows, group_rows
from retrieval_bench.tables import (
    Format,
    latex_text,
    markdown_text,
    percent,
    quoted_sections,
    readable,
    render,
    sections,
)
from tests.board_records import of, save

GOLDEN = Path(__file__).with_name("golden")
ENDINGS = {"text": "txt", "markdown": "md", "latex": "tex", "html": "html", "csv": "csv", "json": "json"}
AWKWARD = "k|<b>_100%\\\"'[red]:x:"
"""A label that means something in each of the formats."""


def fixed() -> list[dict[str, Any]]:
    """Three protocols; seeds 1 to 4; the best, ties, one that is told apart, one of a seed; a data set with published figures."""
    config = to_dict(RunConfig())["data"] | {"image_size": 96}
    found = [
        *of("standard", 0.5, 0.52, 0.57, 0.55),
        *of("last_k(k=2)", 0.5, 0.53, 0.56),
        *of(AWKWARD, 0.30, 0.33, 0.37),
        *of("lucky", 0.9),
        *of("frozen", 0.41, 0.41),
        *of("standard", 0.6, 0.6, 0.6, data={"image_size": config["image_size"]}),
        *of("l2sp", 0.6, 0.6, 0.6, data={"image_size": config["image_size"]}),
        *of("standard", 0.7, 0.71, data={"dataset": "cub", "classes": 24}),
    ]
    for entry in found:
        entry["finished"] = "2026-01-01"
        entry["environment"] |= {"threads": 2}
        if entry["labels"]["strategy"] == "standard":
            entry["metrics"]["map_at_r"] = round(entry["metrics"]["recall_at_1"] / 2, 6)
        if entry["labels"]["strategy"] == "frozen":
            entry["cost"] |= {"images_seen": 0, "train_seconds": 0.04}
        # The golden files are about formats: choices that are added to the configuration later do not change them.
        kept = {
            "data": ("dataset", "split", "classes", "image_size"),
            "model": ("backbone",),
            "train": ("epochs", "lr"),
            "loss": ("loss",),
        }
        entry["config"] = {
            section: {name: entry["config"][section][name] for name in names} for section, names in kept.items()
        }
    return found


@pytest.fixture
def two_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quoted rows in place of the published ones, whose number grows."""
    about = {
        "dataset": "cub",
        "split": "zero_shot",
        "backbone": "ResNet-50",
        "dim": None,
        "loss": "softmax",
        "quoted": "Quoted: a paper.",
    }
    rows = [
        about | {"strategy": "one", "recall_at_1": 0.7},
        about | {"strategy": "two †", "dim": 512.0, "recall_at_2": 0.9},
    ]
    monkeypatch.setattr(tables, "quoted_rows", lambda names: pd.DataFrame(rows if "cub" in names else []))
    monkeypatch.setattr(tables, "quoted_sections", lambda names: quoted_sections(names) if "cub" in names else [])


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode())
    assert path.read_bytes() == text.encode()


@pytest.mark.usefixtures("two_quoted")
@pytest.mark.parametrize("form", get_args(Format))
def test_every_format_is_as_committed(form: Format) -> None:
    golden(f"leaderboard.{ENDINGS[form]}", render(build_table(fixed()), form))


@pytest.mark.usefixtures("two_quoted")
@pytest.mark.parametrize("form", ["markdown", "csv"])
def test_grouped_rows_are_as_committed(form: Format) -> None:
    by = ("image_size", "loss")
    golden(f"grouped.{ENDINGS[form]}", render(group_rows(build_table(fixed()), by), form, by))


def test_records_in_any_order_give_the_same_bytes() -> None:
    shuffled = fixed()
    random.Random(3).shuffle(shuffled)
    for form in ("csv", "markdown"):
        assert render(build_table(shuffled), form) == render(build_table(fixed()), form)


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table: bars that a backslash stands before divide nothing."""
    return [cell.strip() for cell in re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1]]


def test_markdown_keeps_its_columns_whatever_a_label_holds() -> None:
    table = build_table([*of("a|b\nc\\", 0.5), *of("<b>bold</b>", 0.4)])
    for section in render(table, "markdown").split("## ")[1:]:
        widths = {len(cells(line)) for line in section.splitlines() if line.startswith("|")}
        assert len(widths) == 1
    assert "\\<b>bold" in render(table, "markdown")
    assert markdown_text("a|b\nc\\") == "a\\|b c\\\\"


class Page(HTMLParser):
    """Counts tags and collects the text of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells and self.lasttag in ("td", "strong"):
            self.cells[-1] += data.strip("\n")


def test_html_shows_labels_as_they_are() -> None:
    page = Page(render(build_table(fixed()), "html"))
    assert AWKWARD in page.cells
    assert "b" not in page.opened
    assert page.opened.count("strong") == 2, "one best in each of the protocols that have three seeds"
    assert page.opened.count("table") == 4


def test_latex_escapes_what_has_a_meaning_there() -> None:
    assert latex_text("50 % & $x_1$ #2 {a} ~^\\ <b>") == (
        r"50 \% \& \$x\_1\$ \#2 \{a\} \textasciitilde{}\textasciicircum{}\textbackslash{} $<$b$>$"
    )
    text = render(build_table(fixed()), "latex")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 4
    assert text.count(r"\textbf{") == 2
    bare = re.sub(r"\\[%&_#${}]|\$[<>=]\$|\$\\pm\$", "", text)
    assert not re.search(r"[%#<>]|(?<!\\)_", bare)


def test_text_shows_labels_as_they_are_and_marks_the_best() -> None:
    text = render(build_table(fixed()), "text")
    assert AWKWARD in text, "neither markup nor emoji"
    assert text.count(" *\n") + text.count(" * ") == 2
    assert "\x1b" not in text


def test_of_processes_that_work_together_one_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, spoken in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        tables.print_table(build_table(fixed()))
        assert bool(capsys.readouterr().out) == spoken


def test_csv_and_json_hold_the_table(tmp_path: Path) -> None:
    table = build_table(fixed())
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    both = json.loads(render(table, "json"))
    assert len(rows) == len(both["measured"]) + len(both["quoted"])
    assert [row["strategy"] for row in rows[: len(table)]] == table["strategy"].tolist()
    for row, entry in zip(rows, both["measured"], strict=False):
        assert float(row["recall_at_1"]) == entry["recall_at_1"]
        assert row["standing"] == entry["standing"]
        assert row["quoted"] == ""
        for name in ("seeds", "classes", "epochs", "dim", "image_size", "parameters"):
            assert row[name] == str(entry[name]), f"{name} is a whole number"
    assert all(row["quoted"].startswith("Quoted: ") and not row["standing"] for row in rows[len(table) :])
    back: Any = pd.read_csv(io.StringIO(render(table, "csv")))
    assert back["recall_at_1"].tolist()[: len(table)] == table["recall_at_1"].tolist()


def test_quoted_rows_are_of_data_sets_that_are_there_in_sections_of_their_own() -> None:
    table = build_table(fixed())
    assert {row["dataset"] for row in json.loads(render(table, "json"))["quoted"]} == {"cub"}
    bare = choose_rows(table, {"dataset": ["emoji_mini"]})
    for form in get_args(Format):
        assert "quoted from papers" not in render(bare, form)
        assert "Quoted" not in render(bare, form)
    assert [section.title for section in quoted_sections(["cub", "cub", "synthetic"])] == [
        "cub: quoted from papers, not measured here; settings differ from row to row"
    ]
    own = quoted_sections(["cub"])[0]
    assert len(own.shown) == len(quoted_rows(["cub"]))
    assert own.marked("BEST {}", "TIE {}") == own.shown.to_numpy().tolist(), "never marked"
    for section in sections(table):
        assert "source" not in section.shown


def test_quoted_figures_are_fractions_with_a_source() -> None:
    quoted = quoted_rows(["cub", "cars", "sop", "inshop"])
    assert set(quoted["dataset"]) == {"cub", "cars", "sop", "inshop"}
    figures = quoted[[name for name in quoted if str(name).startswith("recall")]]
    assert figures.max().max() < 1
    assert figures.min().min() > 0.1
    assert quoted["quoted"].str.len().min() > len("Quoted: ")
    assert not len(quoted_rows(["synthetic"]))


def test_percentages() -> None:
    assert [percent(value) for value in (None, float("nan"), 0.12345, 1)] == ["", "", "12.35", "100.00"]
    assert percent(0.5, 0.01) == "50.00 ± 1.00"
    assert percent(0.5, float("nan")) == "50.00"
    assert percent(0.5, sign="+") == "+50.00"


def test_protocol_columns_that_are_grouped_by_are_shown_side_by_side() -> None:
    table = group_rows(build_table(fixed()), ("image_size",))
    parts = {section.title: section.shown for section in sections(table, ("image_size",))}
    shown = parts["emoji_mini, zero_shot, efficientnet_lite0 (imagenet)"]
    assert shown[["image_size", "configurations"]].to_numpy().tolist() == [["96", "2"], ["72", "5"]]


def test_two_rows_that_differ_never_look_alike() -> None:
    table = build_table(fixed())
    for section in sections(table):
        assert not section.shown.duplicated().any()
    assert readable(table.iloc[:0]).empty


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
    ("words", "said"),
    [
        (["--dataset", "emoji_mimi"], "did you mean 'emoji_mini'?"),
        (["--where", "epochs"], "COLUMN=VALUE"),
        (["--where", "epoch=4"], "did you mean 'epochs'?"),
        (["--where", "epochs=5"], "unknown epochs '5'"),
        (["--by", "recall_at_1"], "unknown column 'recall_at_1'"),
        (["--by", "parameters"], "unknown column 'parameters'"),
        (["--dataset", "cub", "--strategy", "frozen"], "no row has"),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    save(tmp_path, *fixed())
    assert main(["leaderboard", "--results", str(tmp_path), *words]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert len(found.err.splitlines()) == 1
    assert found.out == ""


def test_no_records_in_another_format_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["leaderboard", "--results", str(tmp_path), "--format", "csv"]) == 2
    assert "no records" in capsys.readouterr().err
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0


def test_committed_results_are_what_their_records_give(tmp_path: Path) -> None:
    """``results/leaderboard.csv`` and ``.md`` are built from ``results/runs`` by ``make leaderboard`` and by nothing else."""
    results = Path(__file__).parents[1] / "results"
    (tmp_path / "runs").symlink_to(results / "runs")
    assert main(["leaderboard", "--results", str(tmp_path)]) == 0
    for name in ("leaderboard.csv", "leaderboard.md"):
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes(), (
            f"{name}: run `make leaderboard RESULTS=results`"
        )
