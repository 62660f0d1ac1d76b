"""The report as a file: complete, safe, small and the same whenever it is made."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from retrieval_bench.cli import main
from retrieval_bench.details import write_details
from retrieval_bench.records import ResultsFolder
from retrieval_bench.report.page import gallery_of, write_report
from tests.board_records import details_of, of, record, save
from tests.report.conftest import HOSTILE, hand_made

VOID = {"meta", "input", "br", "img", "link", "hr", "wbr"}


class Outline(HTMLParser):
    """Elements in order; every one that is opened must be closed in its turn."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere(page: Path) -> None:
    elements = Outline(page).elements
    assert not {tag for tag, _ in elements} & {"link", "iframe", "object", "base"}
    names = ("src", "href", "xlink:href", "action")
    links = [attrs[name] or "" for _, attrs in elements for name in names if name in attrs]
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"url\((?!#)", text)
    assert set(re.findall(r'https?://[^"\s<]+', text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_names_with_html_in_them_are_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "alert(" in text, "names are shown"
    assert HOSTILE not in text
    assert "<b>" not in text
    assert sum(tag == "script" for tag, _ in Outline(page).elements) == 2


def test_every_part_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    titles = ("Accuracy against cost", "Learning curves", "Weight variation", "Routes", "Pruning")
    for part in (*titles, "On emoji (", "Gallery: ", "Confused classes", "Runs and commands"):
        assert part in text, part
    elements = Outline(page).elements
    assert all("alt" in attrs for tag, attrs in elements if tag == "img")
    assert all(attrs.get("scope") for tag, attrs in elements if tag == "th")
    figures = [attrs for tag, attrs in elements if tag == "svg"]
    assert len(figures) > 8
    assert all(attrs.get("role") == "img" for attrs in figures)
    ids = [attrs["id"] for _, attrs in elements if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_the_answer_and_its_forest_stand_before_all_tables(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    first, rest = text.split('<main id="content"')
    assert "On emoji (unseen symbols" in first
    assert "undecided: two seeds" in first
    assert "over seeds, hollow points have one seed" in first, "the words are explained"
    elements = Outline(page).elements
    tags = [tag for tag, _ in elements]
    assert 1 == tags[: tags.index("table")].count("article") <= tags[: tags.index("table")].count("svg")
    assert rest.count("<table") == text.count("<table")


def test_a_table_has_strategy_and_recall_first_and_constants_above(tmp_path: Path) -> None:
    frozen = [record("frozen", seed, 0.5, cost={"images_seen": 0}) for seed in range(3)]
    slow = of("standard(a=1)", 0.61, 0.62, 0.6, config={"train.lr": 1.0})
    save(tmp_path, *of("standard(a=2)", 0.7, 0.71, 0.72), *slow, *frozen, *of("lora", 0.9))
    write_report(ResultsFolder(tmp_path), tmp_path / "page.html", "t", 2)
    outline = Outline(tmp_path / "page.html").elements
    heads = [attrs["class"] for tag, attrs in outline if tag == "th" and attrs["scope"] == "col"]
    assert heads[:2] == ["strategy", "recall"]
    assert heads[-1] == "detail"
    rows = [attrs["class"] for tag, attrs in outline if tag == "tr" and attrs.get("class")]
    assert rows == ["undecided", "best", "below other", "below"], "one row per strategy, and those behind details"
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "All rows: loss proxy_anchor, epochs 4, optimizer adamw, batch_size 64, dim 1280, device cpu: test." in text
    assert "all 4 configurations and choices in which rows differ" in text


def test_images_that_may_not_be_kept_are_one_line_and_no_empty_boxes(tmp_path: Path) -> None:
    (entry,) = of("standard", 0.5)
    bare = details_of([1, 3, 2, 1], [0, 0, 1, 1], [[1], [2], [0], [2]])
    write_details(bare, save(tmp_path, entry).details(entry.id))
    write_report(ResultsFolder(tmp_path), tmp_path / "page.html", "t", 2)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("No pictures are kept of these images, which may not be passed on") == 1
    assert "data-thumbnail=" not in text
    assert "Confused classes" in text


def test_the_same_records_give_the_same_bytes(filled: ResultsFolder, page: Path, tmp_path: Path) -> None:
    write_report(filled, tmp_path / "again.html", f"A report {HOSTILE}", 15)
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_what_does_not_fit_is_left_out_and_counted(tmp_path: Path) -> None:
    """A gallery that does not fit leaves none of its pictures behind."""
    results = ResultsFolder(tmp_path)
    for number in range(8):
        (entry,) = of(f"s{number}", 0.5)
        save(tmp_path, entry)
        details = hand_made(number)
        noise = np.random.default_rng(number).integers(0, 256, 40_000 * len(details.thumbnails), dtype=np.uint8)
        ends = 40_000 * np.arange(1, len(details.thumbnails) + 1)
        write_details(replace(details, thumbnail_bytes=noise, thumbnail_ends=ends), results.details(entry.id))
    made = write_report(results, tmp_path / "page.html", "size", 2)
    assert made["left_out"] > 4
    assert made["galleries"] > 0
    assert made["bytes"] == (tmp_path / "page.html").stat().st_size <= 2_000_000


def test_damaged_details_cost_a_line_and_another_seed_replaces_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two, one = of("two", 0.5, 0.6), of("one", 0.4)
    results = save(tmp_path, *two, *one)
    write_details(hand_made(), results.details(two[1].id))
    for entry in (two[0], one[0]):
        results.details(entry.id).write_bytes(b"nothing")
    assert main(["report", "--results", str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("skipped") for line in lines) == 2
    assert "1 galleries" in lines[-1]
    assert f"Queries of {two[1].id}" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_odd_info_missing_metrics_and_devices_cost_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = record("autolr", 0, 0.5, info={"autolr": {"variation": "x"}})
    other = record("frozen", 0, 0.5, {"data.image_size": 96}, metrics={"recall_at_2": 0.5})
    gpu = record("autolr", 0, 0.7, id="gpu", environment={"device": "cuda: H"}, training={"converged": False})
    save(tmp_path, odd, other, gpu)
    assert main(["report", "--results", str(tmp_path)]) == 0
    assert "skipped the figures of autolr" in capsys.readouterr().err
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "R@1 was not measured." in text
    assert text.count("seed 0 R@1 50.00") == text.count("seed 0 R@1 70.00") == 1, "devices have rows of their own"
    assert text.count("The loss did not fall (seed 0).") == 1


def test_what_cannot_be_reported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--results", str(tmp_path)], ["--results", str(tmp_path / "none")], ["--megabytes", "0"]):
        assert main(["report", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    save(tmp_path, record("standard", 0, 0.5))
    for words in (["--megabytes", "nan"], ["--megabytes", "inf"], ["--output", str(tmp_path)]):
        assert main(["report", "--results", str(tmp_path), *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_gallery_marks_what_is_right_and_embeds_a_picture_once() -> None:
    details, numbers = hand_made(), {}
    gallery = gallery_of(details, numbers)
    count = len(numbers)
    assert gallery_of(details, numbers) == gallery
    assert 0 < count == len(numbers) <= len(set(details.pictures().values()))
    ranks = [query["rank"] for query in gallery["queries"]]
    failed = [rank for rank in ranks if rank > 1]
    assert ranks[: len(failed)] == sorted(failed, reverse=True), "the worst first"
    for query in gallery["queries"]:
        right = [near["right"] for near in query["neighbours"]]
        assert right == [near["name"] == query["image"]["name"] for near in query["neighbours"]]
        assert (right.index(True) + 1 if True in right else 9) == query["rank"]
    assert all(pair["query"]["name"] != pair["confused_with"]["name"] for pair in gallery["pairs"])
