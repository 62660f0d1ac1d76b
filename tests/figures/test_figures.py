"""Figures from few hand-made rows and records: they are drawn whatever is missing, and their SVG can stand in a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from retrieval_bench.figures.canvas import Picture, save_picture, svg_text
from retrieval_bench.figures.embedding import embedding_map

from retrieval_bench.figures.curves import learning_curves
from retrieval_bench.figures.pruning import family, pruning_curve
from retrieval_bench.figures.routes import routes
from retrieval_bench.figures.tradeoff import has_cost, tradeoff
from retrieval_bench.figures.variation import variation_heat_map

NAN = float("nan")


def table(*lines: tuple[str, float, float, float], **more: list[float]) -> pd.DataFrame:
    """Rows of strategy, Recall@1, half of its interval, and multiply-accumulates."""
    return pd.DataFrame(lines, columns=["strategy", "recall_at_1", "recall_at_1_ci95", "macs"]).assign(**more)


ROWS = table(
    ("standard", 0.5, 0.02, 2e9),
    ("last_k(k=3)", 0.4, NAN, 2e9),
    ("layer_pruning(drop=last:2)", 0.45, 0.3, 1e9),
    ("layer_pruning(drop=last:4)", 0.42, NAN, 5e8),
    latency_ms=[3.0, NAN, 2.0, 1.0],
    train_seconds=[100.0, 0.0, 3.0, 4000.0],
)


def record(strategy: str, seed: int, losses: list[float | None], loss: str = "triplet") -> dict[str, Any]:
    config = {"loss": {"loss": loss}}
    return {
        "config_hash": strategy,
        "labels": {"strategy": strategy},
        "seed": seed,
        "config": config,
        "training": {"loss_per_epoch": losses},
    }


def losses() -> Picture:
    found = learning_curves(
        [
            record("standard", 0, [3.0, 1.0]),
            record("standard", 1, [2.5, None, 0.9]),
            record("<&$", 0, [9.0, 0.1], "softmax"),
        ]
    )
    assert found is not None
    return found


def variation(epochs: int = 2, **more: str) -> Picture:
    rates = {name: [1e-3] * epochs for name in "ab"}
    facts = {
        "variation": [[1e-5, 0.0]] * epochs,
        "rates": rates,
        "blocks": ["a", "b"],
        "quality": [None] * epochs,
        "trials": [1] * epochs,
    }
    return variation_heat_map(facts | more)


def spottune() -> Picture:
    learned = {"argmax_rate_per_epoch": [[0.5, 0.25]], "entropy_per_epoch": [[0.9, 0.3]]}
    tested = {
        "images": 3,
        "distinct": 2,
        "entropy_bits": 0.9,
        "rate": [0.5, 0.1],
        "rate_by_class": {"a<b": [0.5, 0.1], "$x$": [1.0, 0.0]},
    }
    return routes({"facts": {"spottune": learned, "routes": tested}})


def classes() -> Picture:
    points = np.random.default_rng(0).normal(size=(60, 2))
    return embedding_map(points, np.array([f"<class {number % 15}>" for number in range(60)]))


PICTURES: dict[str, Callable[[], Picture]] = {
    "tradeoff": lambda: tradeoff(ROWS, "macs", "a <title> & more"),
    "seconds": lambda: tradeoff(ROWS, "train_seconds"),
    "latency": lambda: tradeoff(ROWS, "latency_ms"),
    "one row": lambda: tradeoff(ROWS[:1], "macs"),
    "nothing known": lambda: tradeoff(ROWS.assign(macs=NAN), "macs"),
    "pruning": lambda: pruning_curve(ROWS),
    "pruning, latency": lambda: pruning_curve(ROWS, "latency_ms"),
    "losses": losses,
    "variation": variation,
    "one epoch": lambda: variation(1),
    "routes": spottune,
    "map": classes,
    "one point": lambda: embedding_map(np.zeros((1, 2)), np.array([7])),
}


@pytest.mark.parametrize("name", PICTURES)
def test_svg_is_an_element_for_a_page(name: str) -> None:
    picture = PICTURES[name]()
    text = svg_text(picture)
    assert text.startswith("<svg ")
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert root.get("width") == "100%"
    assert root.get("height") is None
    words = [child.text for child in root if child.tag.endswith(("title", "desc"))]
    assert words == [picture.title, picture.text]
    assert picture.text.endswith(".")
    assert not re.search(r"(?i)(fill|stroke): ?(#0{6}|#f{6}|#fff|#000|white|black)\b", text), (
        "ink and paper are the page's"
    )
    assert "currentColor" in text
    assert "<style" not in text, "it would rule the whole page"
    assert "DejaVu" not in text
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ?([\d.]+)px", text)]
    assert not sizes or min(sizes) >= 7
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


@pytest.mark.parametrize(
    ("normalizer", "unit"), [("n", "per weight"), ("sqrt_n", "root mean square"), ("relative", "relative to")]
)
def test_variations_have_the_unit_of_their_normaliser_and_rates_say_what_is_left_out(
    normalizer: str, unit: str
) -> None:
    written = "".join(ElementTree.fromstring(svg_text(variation(normalizer=normalizer))).itertext())
    assert unit in written
    assert ("per weight" in written) == (normalizer == "n")
    assert "rate before the schedule" in written


def test_the_same_picture_gives_the_same_bytes_and_another_one_other_ids() -> None:
    one, again, other = svg_text(losses()), svg_text(losses()), svg_text(variation())
    assert one == again
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (one, other)]
    assert not ids[0] & ids[1]


def test_a_png_leaves_the_picture_as_it_was(tmp_path: Path) -> None:
    picture = PICTURES["tradeoff"]()
    before = svg_text(picture)
    save_picture(picture, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert svg_text(picture) == before


def test_labels_are_escaped_and_no_formulas() -> None:
    hostile = ROWS.assign(strategy=["<b>&\"'", "$x^2$", "a\x00b", "standard"])
    written = "".join(ElementTree.fromstring(svg_text(tradeoff(hostile))).itertext())
    assert "<b>&\"'" in written
    assert "$x^2$" in written


def test_only_runs_of_two_epochs_have_a_curve_and_losses_do_not_share_a_panel() -> None:
    assert learning_curves([record("frozen", 0, []), record("standard", 0, [1.0])]) is None
    assert len(losses().figure.axes) == 2
    assert "triplet" in losses().text


def test_a_cost_is_drawn_where_it_differs() -> None:
    assert has_cost(ROWS, "macs")
    assert not has_cost(ROWS, "images_seen"), "not in the table"
    assert not has_cost(ROWS[:2], "macs"), "the same for both"
    assert not has_cost(ROWS.assign(macs=[1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3]), "macs"), "one budget, nearly met"
    assert not has_cost(ROWS[:2], "latency_ms"), "known for one"


def test_the_front_is_named_in_words() -> None:
    text = tradeoff(ROWS).text
    assert "4 configurations" in text
    assert "standard (50.0 %)" in text
    assert "last_k" not in text


@pytest.mark.parametrize(
    ("label", "line"),
    [
        ("channel_gates(budget=0.5, search_epochs=6)", "channel_gates(search_epochs=6)"),
        ("channel_pruning(budget=0.5)", "channel_pruning"),
        ("layer_pruning(drop=15,16)+low_high(low=0.2, high=5.0)", "layer_pruning+low_high(low=0.2, high=5.0)"),
    ],
)
def test_what_makes_one_line(label: str, line: str) -> None:
    assert family(label) == line


def test_other_scripts_are_drawn_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    picture = embedding_map(np.eye(2), np.array(["猫\nneko", "犬"]))
    save_picture(picture, tmp_path / "a.png")
    assert "猫" in svg_text(picture)
    assert not [str(found.message) for found in recwarn if "Glyph" in str(found.message)]
