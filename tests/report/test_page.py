"""The report as a file: whole, safe, small and the same whenever it is made."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from retrieval_bench.cli import main
from retrieval_bench.report.gallery import Thumbnails, gallery_of
from retrieval_bench.report.page import write_report
from retrieval_bench.report.verdict import verdict
from tests.report.conftest import HOSTILE, hand_made

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Outline(HTMLParser):
    """Elements in order; every one that is opened must be closed in its place."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(path: Path) -> Outline:
    parser = Outline()
    parser.feed(path.read_text(encoding="utf-8"))
    assert not parser.open
    return parser


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    found = outline(page).found
    assert not [tag for tag, _ in found if tag in ("link", "iframe", "object", "base")]
    given = [value or "" for _, attrs in found for name, value in attrs.items() if name in ("src", "href", "xlink:href", "action")]
    assert given
    assert all(value.startswith(("#", "data:image/")) for value in given)
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"url\((?!#)", text)
    assert set(re.findall(r'https?://[^"\s<]+', text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_names_with_html_in_them_are_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "alert(" in text, "names are shown"
    assert HOSTILE not in text
    assert "<b>" not in text
    assert sum(tag == "script" for tag, _ in outline(page).found) == 2


def test_every_part_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in (
        "Accuracy against cost",
        "Learning curves",
        "Weight variation",
        "Routes",
        "Pruning",
        "Gallery: ",
        "Classes taken",
        "Runs and",
    ):
        assert part in text, part
    found = outline(page).found
    assert all("alt" in attrs for tag, attrs in found if tag == "img")
    assert all(attrs.get("scope") for tag, attrs in found if tag == "th")
    pictures = [attrs for tag, attrs in found if tag == "svg"]
    assert len(pictures) > 8
    assert all(attrs.get("role") == "img" for attrs in pictures)
    ids = [attrs["id"] for _, attrs in found if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_the_same_records_give_the_same_bytes(filled: Path, page: Path, tmp_path: Path) -> None:
    write_report(filled, tmp_path / "again.html", f"A report {HOSTILE}", 15)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_what_does_not_fit_is_left_out_and_counted(filled: Path, page: Path, tmp_path: Path) -> None:
    made = write_report(filled, tmp_path / "small.html", "small", 0.3)
    assert made["left_out"] > 0
    assert (tmp_path / "small.html").stat().st_size < 300_000 < page.stat().st_size


def test_damaged_details_cost_their_gallery_and_a_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (results / "details" / "hostile.npz").write_bytes(b"nothing")
    assert main(["report", "--results", str(results)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("skipped") and "hostile.npz" in line]) == 1
    assert "1 galleries" in said[-1]
    assert (results / "report.html").exists()


def test_no_records_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--results", str(tmp_path)], ["--results", str(tmp_path / "none")], ["--megabytes", "0"]):
        assert main(["report", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_is_embedded_once() -> None:
    thumbnails = Thumbnails()
    details = hand_made()
    first = gallery_of(details, thumbnails)
    size = thumbnails.size
    assert gallery_of(details, thumbnails) == first
    assert thumbnails.size == size
    assert 0 < len(thumbnails.encoded()) <= len(set(details.pictures().values()))
    json.dumps(first)


def test_the_gallery_says_what_is_right(filled: Path) -> None:
    details = hand_made()
    found = gallery_of(details, Thumbnails())
    ranks = [query["rank"] for query in found["queries"]]
    failed = [rank for rank in ranks if rank > 1]
    assert failed == sorted(failed, reverse=True)
    assert ranks[: len(failed)] == failed, "the worst first"
    for query in found["queries"]:
        right = [near["right"] for near in query["neighbours"]]
        assert right == [near["name"] == query["image"]["name"] for near in query["neighbours"]]
        assert (right.index(True) + 1 if True in right else 9) == query["rank"]
    assert all(pair["query"]["name"] != pair["taken_for"]["name"] for pair in found["pairs"])


def rows(*lines: tuple[str, float, int, str, float | None, float]) -> pd.DataFrame:
    names = ("strategy", "recall_at_1", "seeds", "standing", "p_value", "macs")
    return pd.DataFrame(list(lines), columns=list(names)).assign(recall_at_1_ci95=0.01)


def test_the_verdict_names_winner_ties_and_the_cheapest() -> None:
    said = " ".join(verdict(rows(("a", 0.8, 3, "best", None, 100e6), ("b", 0.79, 3, "tie", 0.2, 40e6), ("c", 0.7, 3, "", 0.01, 100e6))))
    assert "a leads with R@1 80.00 ± 1.00 (3 seeds)." in said
    assert "Not told apart from it: b." in said
    assert "b costs least: 40 M MACs, 40 %" in said
    assert "The first that is told apart from it: c, 10.00 points below (p = 0.010)." in said


def test_the_verdict_ranks_nothing_without_seeds() -> None:
    assert "nothing is ranked" in " ".join(verdict(rows(("a", 0.8, 1, "", None, 1e6), ("b", 0.7, 1, "", None, 1e6))))
