"""The report in a real browser (headless Chromium); skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync.sync_playwright() as player:
        launched = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def tab(browser: Any, page: Path) -> Iterator[Any]:
    """The page in a window, in which nothing goes wrong: no message on the console, no request but for the file."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    tab, wrong = context.new_page(), []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("request", lambda asked: asked.url.startswith(("data:", page.as_uri())) or wrong.append(asked.url))
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert wrong == []


def column(tab: Any, title: str) -> list[str]:
    """The visible cells of a column of the first table."""
    return tab.evaluate(
        """title => { const table = document.querySelector('table');
        const column = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === title);
        const rows = [...table.tBodies[0].rows].filter(row => row.offsetParent !== null);
        return rows.map(row => row.cells[column].textContent.trim()); }""",
        title,
    )


def recalls(tab: Any) -> list[float]:
    return [float(cell.split()[0]) for cell in column(tab, "R@1")]


def test_columns_sort_by_click_and_by_key(tab: Any) -> None:
    head = tab.locator("table").first.locator("thead th")
    number = head.all_inner_texts().index(next(text for text in head.all_inner_texts() if text.startswith("R@1")))
    assert recalls(tab) == sorted(recalls(tab), reverse=True), "as it comes"
    button = head.nth(number).locator("button")
    button.click()
    assert head.nth(number).get_attribute("aria-sort") == "descending"
    button.focus()
    tab.keyboard.press("Enter")
    assert head.nth(number).get_attribute("aria-sort") == "ascending"
    assert recalls(tab) == sorted(recalls(tab))
    head.nth(0).locator("button").click()
    names = [name.split("(")[0] for name in column(tab, "strategy")]
    assert names == sorted(names, key=str.lower)
    assert tab.locator("th[aria-sort]").count() == 1


def test_rows_filter_by_words_and_protocol(tab: Any) -> None:
    tab.get_by_label("Filter rows").fill("AutoLR")
    assert column(tab, "strategy")
    assert all("autolr" in name for name in column(tab, "strategy"))
    assert "row" in tab.locator("#shown").inner_text()
    tab.get_by_label("Filter rows").fill("nothing like this")
    assert tab.locator("section.protocol:visible").count() == 0
    assert tab.locator("#shown").inner_text() == "0 rows"
    tab.get_by_label("Filter rows").fill("")
    shown = tab.locator("section.protocol:visible").count()
    assert shown >= 2
    tab.locator("#protocol").select_option(index=1)
    assert tab.locator("section.protocol:visible").count() == 1


def test_details_show_every_configuration_and_a_filter_calls_the_same_best(tab: Any) -> None:
    def best() -> list[str]:
        words = tab.locator("td.recall:visible").all_inner_texts()
        return [word for word in words if "best" in word]

    before, rows = best(), tab.locator("tbody tr:visible").count()
    tab.get_by_label("Filter rows").fill("autolr")
    assert best() == [word for word in before if word in best()]
    tab.get_by_label("Filter rows").fill("")
    for switch in tab.locator(".switch input").all():
        switch.check()
    assert tab.locator("tbody tr:visible").count() >= rows
    assert best() == before
    assert tab.locator("th.detail:visible").count() > 0


def test_links_work_under_every_filter(tab: Any) -> None:
    for words in ("nothing like this", "autolr", ""):
        for protocol in (0, 1, 2):
            tab.get_by_label("Filter rows").fill(words)
            tab.locator("#protocol").select_option(index=protocol)
            for link in tab.locator('nav a, .answer a[href^="#"]').all():
                target = link.get_attribute("href")
                link.click()
                assert tab.locator(target).is_visible(), (words, protocol, target)
                assert abs(tab.locator(target).bounding_box()["y"]) < 900


@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_strategy_and_recall_stay_in_sight_at_every_width(tab: Any, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.locator(".answer p").first.bounding_box()["y"] < 300, "the answer is on the first screen"
    for switch in tab.locator(".switch input").all():
        switch.check()
    tab.evaluate("document.querySelectorAll('.scroll').forEach(box => { box.scrollLeft = 10000; })")
    cells = [tab.locator(f"tbody tr:visible > {kind}").first.bounding_box() for kind in ("th", "td.recall")]
    assert cells[0]["x"] >= 0
    assert cells[0]["x"] + cells[0]["width"] <= cells[1]["x"] + 1
    assert cells[1]["x"] + cells[1]["width"] <= 0.75 * width


def test_a_gallery_opens_and_shows_its_pictures(tab: Any) -> None:
    gallery = tab.locator("details.gallery").first
    assert gallery.locator("img[src]").count() == 0, "nothing is decoded before it is looked at"
    tab.locator("details.galleries > summary").first.click()
    gallery.locator("summary").click()
    tab.wait_for_function("[...document.querySelectorAll('details.gallery[open] img')].every(e => e.naturalWidth > 0)")
    for name, border in (("right", "solid"), ("wrong", "dashed")):  # distinct without colours
        image = gallery.locator(f"figure.{name} img").first
        assert image.evaluate("e => getComputedStyle(e).borderStyle") == border
        assert image.bounding_box()["width"] >= 100, "large enough to judge"
    captions = gallery.locator("figcaption").evaluate_all("all => all.every(e => e.scrollHeight <= e.clientHeight + 1)")
    assert captions, "none is clipped"
    gallery.locator(".enlarge").first.click()
    assert tab.locator("#viewer img").evaluate("e => e.naturalWidth > 0 && e.clientWidth >= 300")
    assert ".png" in tab.locator("#viewer p").inner_text()
    tab.keyboard.press("Escape")
    assert not tab.locator("#viewer").is_visible()


def test_light_and_dark(tab: Any) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    tab.emulate_media(color_scheme="dark")
    assert tab.evaluate(paper) == "rgb(22, 24, 29)"
    ink = tab.locator("svg text").first.evaluate("e => getComputedStyle(e).fill")
    assert ink == "rgb(232, 234, 237)", "figures follow"
    tab.locator("#theme").click()
    assert tab.evaluate(paper) == "rgb(255, 255, 255)", "chosen by hand"
    tab.reload()
    assert tab.locator("#theme").inner_text() == "Theme: light"


def test_a_phone_scrolls_tables_and_not_the_page_and_the_first_tab_leads_to_them(tab: Any) -> None:
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the tables"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"
