"""The report as a file: whole, safe, small and the same whenever it is made."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.cli import main
from retrieval_bench.details import details_path, write_details
from retrieval_bench.report.gallery import Thumbnails, gallery_of
from retrieval_bench.report.page import write_report
from retrieval_bench.report.verdict import verdict
from tests.board_records import of, record, save
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
    given = [
        value or ""
        for _, attrs in found
        for name, value in attrs.items()
        if name in ("src", "href", "xlink:href", "action")
    ]
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


def save_runs(results: Path, *records: dict[str, Any]) -> None:
    save(results, *records)
    for number, entry in enumerate(records):
        write_details(hand_made(seed=number), details_path(results, entry["id"]))


def test_damaged_details_cost_a_line_and_another_seed_stands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, one = of("two", 0.5, 0.6), of("one", 0.4)
    save_runs(tmp_path, *two, *one)
    for entry in (two[0], one[0]):
        details_path(tmp_path, entry["id"]).write_bytes(b"nothing")
    assert main(["report", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if line.startswith("skipped")]) == 2
    assert "1 galleries" in said[-1]
    assert "two-" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_keeps_to_its_size_whatever_is_refused(tmp_path: Path) -> None:
    """A gallery that does not fit leaves none of its pictures behind."""
    for number in range(8):
        records = of(f"s{number}", 0.5)
        save(tmp_path, *records)
        details = hand_made(seed=number)
        noise = np.random.default_rng(number).integers(0, 256, 40_000 * len(details.thumbnails), dtype=np.uint8)
        ends = 40_000 * np.arange(1, len(details.thumbnails) + 1)
        write_details(
            replace(details, thumbnail_bytes=noise, thumbnail_ends=ends), details_path(tmp_path, records[0]["id"])
        )
    made = write_report(tmp_path, tmp_path / "page.html", "size", 2)
    assert made["left_out"] > 4
    assert made["galleries"] > 0
    assert (tmp_path / "page.html").stat().st_size <= 2_000_000


def test_odd_facts_and_missing_metrics_cost_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = record("autolr", 0, 0.5, facts={"autolr": {"variation": "x"}})
    other = record("frozen", 0, 0.5, metrics={"recall_at_2": 0.5})
    other["config"]["data"]["image_size"] = 96
    save(tmp_path, odd, other, record("empty", 0, 0.5, training=None))
    assert main(["report", "--results", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "skipped the figures of autolr-0" in said
    assert "'training' is no dict" in said
    assert "R@1 was not measured." in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["figures", "--results", str(tmp_path)]) == 0


def test_devices_have_rows_and_runs_of_their_own(tmp_path: Path) -> None:
    save(tmp_path, record("standard", 0, 0.5), record("standard", 0, 0.7, id="gpu", environment={"device": "cuda: H"}))
    write_report(tmp_path, tmp_path / "page.html", "devices", 15)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("seed 0 R@1 50.00") == text.count("seed 0 R@1 70.00") == 1


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
    table = pd.DataFrame(list(lines), columns=list(names))
    best = table["recall_at_1"].max()
    return table.assign(recall_at_1_ci95=0.01, difference=table["recall_at_1"] - best, images_seen=1000)


def test_the_verdict_names_winner_ties_and_the_cheapest() -> None:
    said = " ".join(
        verdict(
            rows(("a", 0.8, 3, "best", None, 100e6), ("b", 0.79, 3, "tie", 0.2, 40e6), ("c", 0.7, 3, "", 0.01, 100e6))
        )
    )
    assert "a leads with R@1 80.00 ± 1.00 (3 seeds)." in said
    assert "Not told apart from it: b." in said
    assert "b is the smallest network: 40 M MACs, 40 %" in said
    assert "The first that is told apart from it: c, 10.00 points below over common seeds (p = 0.010)." in said


def test_the_verdict_ranks_nothing_without_seeds() -> None:
    assert "Not ranked" in verdict(rows(("a", 0.8, 1, "", None, 1e6), ("b", 0.7, 1, "", None, 1e6)))[0]
