"""Figures from few hand-made records: they are drawn whatever is missing, and their SVG can stand in a page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from retrieval_bench.config import RunConfig, flatten, nest
from retrieval_bench.figures import style
from retrieval_bench.figures.curves import learning_curves
from retrieval_bench.figures.embedding_map import embedding_map
from retrieval_bench.figures.forest import forest
from retrieval_bench.figures.losses import ranking_by_loss
from retrieval_bench.figures.pruning import correlations, family, pruning_curve, shortened, structure_similarity
from retrieval_bench.figures.routes import routes
from retrieval_bench.figures.style import Plot
from retrieval_bench.figures.tradeoff import has_cost, tradeoff
from retrieval_bench.figures.variation import weight_variation
from retrieval_bench.records import Record

NAN = float("nan")
SECONDS = "training, seconds"
ROWS: Any = pd.DataFrame(
    {
        "strategy": ["standard", "last_k(k=3)", "layer_pruning(drop=last:2)", "layer_pruning(drop=last:4)"],
        "recall_at_1": [0.5, 0.4, 0.45, 0.42],
        "recall_at_1_ci95": [0.02, NAN, 0.3, NAN],
        "macs": [2e9, 2e9, 1e9, 5e8],
        "latency_ms": [3.0, NAN, 2.0, 1.0],
        "train_seconds": [100.0, 0.0, 3.0, 4000.0],
    }
)

FOREST = ROWS.assign(
    name=["standard", "last_k", "layer_pruning", "a_very_long_name+of_a_chain"],
    verdict=["best", "tie", "below", "undecided"],
    epochs=[3, 3, 9, 3],
    trained=True,
)


def record(strategy: str, seed: int = 0, recall: float = 0.5, loss: str = "triplet", **more: Any) -> Record:
    config = nest(flatten(RunConfig().changed(loss__loss=loss)))
    cost = {"parameters": 1e6, "macs": 1e8, **more.pop("cost", {})}
    labels, metrics = {"strategy": strategy, "weights": "imagenet", "dim": 8}, {"recall_at_1": recall}
    environment = {"device": "cpu: test", "threads": 1}
    code = f"{strategy} {loss}"
    return Record(f"{code}-{seed}", seed, code, config, labels, {}, metrics, cost, environment, **more)


def losses(**curves: Sequence[Sequence[float | None]]) -> dict[str, list[Record]]:
    return {
        row: [record(row, seed, training={"loss_per_epoch": run}) for seed, run in enumerate(runs)]
        for row, runs in curves.items()
    }


def history(epochs: int = 2, **more: str) -> dict[str, Any]:
    rates = {name: [1e-3] * epochs for name in "ab"}
    values = {"variation": [[1e-5, 0.0]] * epochs, "rates": rates, "blocks": ["a", "b"]}
    return {"any": values | {"quality": [None] * epochs, "trials": [1] * epochs} | more}


def routed(row: str) -> Record:
    tested = {"images": 3, "distinct": 2, "entropy_bits": 0.9, "rate": [0.5, 0.1]}
    tested["rate_by_class"] = {"a<b": [0.5, 0.1], "$x$": [1.0, 0.0]}
    learned = {"argmax_rate_per_epoch": [[0.5, 0.25]], "entropy_per_epoch": [[0.9, 0.3]]}
    return record(row, info={"any": learned, "routes": tested})


def pruned(row: str, macs: float, *recalls: float) -> list[Record]:
    info = {"any": {"widths": {"a": 1, "b": int(macs / 1e7)}, "full_widths": {"a": 4, "b": 10}}}
    cost = {"macs": macs, "parameters": 1e6 * (1 + macs / 1e12)}
    return [record(row, seed, recall, info=info, cost=cost) for seed, recall in enumerate(recalls)]


GATED = {"any": {"widths": {"a": 1, "b": 5}, "full_widths": {"a": 4, "b": 10}}}
PRUNED = {
    "Whole network": [record("standard", 0, 0.6)],
    "Gates 0.5": pruned("channel_gates(budget=0.5)", 5e7, 0.2, 0.3, 0.4),
    "Gates 0.7": pruned("channel_gates(budget=0.7)", 7e7, 0.4),
    "Uniform 0.5": pruned("channel_pruning(budget=0.5)", 5e7, 0.1),
}
BY_LOSS = {
    f"{name}, {loss}": [record(name, seed, recall + 0.01 * seed, loss) for seed in (0, 1)]
    for loss, recalls in {"triplet": (0.5, 0.6, 0.4), "softmax": (0.7, 0.8, 0.01)}.items()
    for name, recall in zip(("Standard", "Good, as it is", "Bad"), recalls, strict=True)
}
CURVES = losses(standard=[[3.0, 1.0], [2.5, None, 0.9]]) | {
    "<&$": [record("<&$", loss="softmax", training={"loss_per_epoch": [9.0, 0.1]})]
}
CLASSES = np.array([f"<class {number % 15}>" for number in range(60)])
PLOTS: dict[str, Callable[[], Plot | None]] = {
    "forest": lambda: forest(FOREST, "a <title> & more"),
    "forest of one seed": lambda: forest(FOREST.assign(recall_at_1_ci95=NAN, verdict="undecided")),
    "tradeoff": lambda: tradeoff(ROWS, title="a <title> & more"),
    "tradeoff, a cost of 0": lambda: tradeoff(ROWS, ["train_seconds"]),
    "tradeoff, a cost unknown": lambda: tradeoff(ROWS, ["latency_ms"]),
    "pruning": lambda: pruning_curve(PRUNED),
    "similarity": lambda: structure_similarity(PRUNED),
    "by loss": lambda: ranking_by_loss({**BY_LOSS, "Frozen": [record("frozen")]}),
    "losses": lambda: learning_curves(CURVES),
    "variation": lambda: weight_variation({"a": [record("a", info=history())]}),
    "routes": lambda: routes({"a": [routed("a")]}),
    "map": lambda: embedding_map(np.random.default_rng(0).normal(size=(60, 2)), CLASSES),
    "map, one point": lambda: embedding_map(np.zeros((1, 2)), np.array([7])),
}


def points(artists: Any) -> dict[str, list[Any]]:
    """The coordinates of each line, by its label."""
    return {line.get_label(): line.get_xydata().tolist() for line in artists.lines}


def drawn(name: str) -> Plot:
    plot = PLOTS[name]()
    assert plot is not None
    return plot


def letters(plot: Plot | None) -> str:
    assert plot is not None
    return "".join(ElementTree.fromstring(plot.svg()).itertext())


@pytest.mark.parametrize("name", PLOTS)
def test_svg_is_an_element_for_a_page(name: str) -> None:
    plot = drawn(name)
    text = plot.svg()
    assert text.startswith("<svg ")
    root = ElementTree.fromstring(text)
    assert (root.get("role"), root.get("width"), root.get("height")) == ("img", "100%", None)
    assert [child.text for child in root if child.tag.endswith(("title", "desc"))] == [plot.title, plot.summary]
    assert plot.summary.endswith(".")
    page_colours = r"(?i)(fill|stroke): ?(#0{6}|#f{6}|#fff|#000|white|black)\b"
    assert not re.search(page_colours, text), "ink and paper are the page's"
    assert "currentColor" in text
    assert not re.search("<style|DejaVu", text), "both would rule the whole page"
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: ?([\d.]+)px", text)]
    assert not sizes or min(sizes) >= 7
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


def test_the_same_plot_gives_the_same_bytes_and_another_one_other_ids(tmp_path: Path) -> None:
    plot = drawn("tradeoff")
    before = plot.svg()
    plot.save(tmp_path / "a.png")
    plot.save(tmp_path / "a.svg")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "a.svg").read_text() == before == plot.svg() == drawn("tradeoff").svg()
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (before, drawn("variation").svg())]
    assert not ids[0] & ids[1]


def test_labels_are_escaped_and_no_formulas_and_other_scripts_stay(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    written = letters(forest(FOREST.assign(name=["<b>&\"'", "$x^2$", "a\x00b", "standard"])))
    assert "<b>&\"'" in written
    assert "$x^2$" in written
    plot = embedding_map(np.eye(2), np.array(["猫\nneko", "犬"]))
    plot.save(tmp_path / "a.png")
    assert "猫" in letters(plot)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_the_forest_has_a_row_per_strategy_with_its_interval_and_verdict() -> None:
    plot = drawn("forest")
    (axes,) = plot.figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        *("standard", "last_k", "layer_pruning, 9 ep.", "a_very_long_name+of_a_chain")
    ]
    assert [text.get_text() for text in axes.texts] == "50.0 best 40.0 tie 45.0 below 42.0 undecided".split()
    lines = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    assert [[48, 0], [52, 0]] in lines, "95 % interval"
    assert [[40, 1]] in lines
    assert axes.lines[lines.index([[40, 1]])].get_markerfacecolor() == "none", "no spread is known"
    assert [[15, 2], [75, 2]] in lines
    assert axes.get_xlim()[0] > 15, "a wide interval does not press the others together"
    assert "standard 50.0 (best), last_k 40.0 (tie)" in plot.summary
    assert forest(FOREST[:1]) is None
    far = FOREST.assign(recall_at_1=[0.5, 0.49, 0.48, 0.05])
    far = forest(pd.concat([far, far[:3], far[:3]]))
    assert far is not None
    assert [line.get_marker() for line in far.figure.axes[0].lines].count("<") == 1


def test_the_words_of_33_rows_stand_inside_the_forest_and_apart() -> None:
    rows = pd.concat([FOREST] * 9)[:33].assign(name=[f"layer_pruning+strategy_{row}" for row in range(33)])
    plot = forest(rows)
    assert plot is not None
    plot.figure.draw_without_rendering()
    (axes,) = plot.figure.axes
    boxes = [text.get_window_extent() for text in [*axes.get_yticklabels(), *axes.texts]]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    width = plot.figure.bbox.width
    assert min(box.x0 for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= width
    assert axes.bbox.width > 0.25 * width


def test_the_tradeoff_has_a_panel_per_cost_with_one_legend_and_names_the_front() -> None:
    plot = drawn("tradeoff")
    assert [axes.get_xlabel() for axes in plot.figure.axes] == ["multiply-accumulates per image, millions", SECONDS]
    points = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in plot.figure.axes[0].lines}
    assert points["standard"] == [[2000, 50]]
    assert points["layer_pruning"] == [[1000, 45], [500, 42]]
    assert [axes.get_legend() is not None for axes in plot.figure.axes] == [False, True]
    assert "4 configurations" in plot.summary
    assert "per image, millions: layer_pruning, standard;" in plot.summary
    assert "training, seconds: last_k, layer_pruning, standard." in plot.summary
    assert tradeoff(ROWS[:1]) is None
    assert tradeoff(ROWS.assign(macs=NAN), ["macs"]) is None
    assert "latency" not in plot.summary, "records do not say what the machine did beside it"


def test_a_figure_has_a_dozen_series_at_most_and_a_panel_of_curves_per_strategy() -> None:
    names = [*(f"strategy_{number}(k={number})" for number in range(20)), "frozen", "standard"]
    series = style.series_of(names)
    assert len(set(series)) == style.SERIES
    assert series[:2] == ["strategy_0", "strategy_1"], "the first ones"
    assert series[-2:] == ["frozen", "standard"]
    assert series[15] == style.OTHERS
    assert style.series_of(["b(x=1)", "b"]) == ["b", "b"]
    many = learning_curves(losses(**{f"last_k(k={k})": [[2.0, 1.0]] for k in range(14)}))
    assert letters(many).count("last_k") == 1
    labels = ["a(x=1, y=2)", "a(x=1, y=3), 9 epochs", "b(x=1)"]
    assert shortened(labels) == ["a, y=2", "a, y=3, 9 epochs", "b, x=1"]


def test_a_cost_is_drawn_where_it_differs() -> None:
    assert has_cost(ROWS, "macs")
    assert not has_cost(ROWS, "images_seen"), "not in the table"
    assert not has_cost(ROWS[:2], "macs"), "the same for both"
    assert not has_cost(ROWS.assign(macs=[1e9, 1e9 + 1, 1e9 + 2, 1e9 + 3]), "macs"), "one budget, nearly met"
    assert not has_cost(ROWS[:2], "latency_ms"), "known for one"
    assert has_cost(ROWS.assign(device="cpu: a", threads=2), "latency_ms")
    assert not has_cost(ROWS.assign(device="cpu: a", threads=[1, 1, 2, 2]), "latency_ms"), "of two numbers of threads"
    assert has_cost(ROWS.assign(device="cpu: a", threads=[1, 1, 2, 2]), "macs")


def test_only_runs_of_two_epochs_have_a_curve_and_losses_do_not_share_a_panel() -> None:
    assert learning_curves(losses(frozen=[[]], standard=[[1.0]])) is None
    plot = drawn("losses")
    softmax, triplet = plot.figure.axes
    assert np.asarray(softmax.lines[0].get_ydata()).tolist() == [9.0, 0.1]
    assert np.asarray(triplet.lines[0].get_ydata()).tolist() == [2.75, 1.0, 0.9], "means over seeds"
    assert triplet.get_title("left") == "standard\ntriplet"
    assert "softmax, triplet" in plot.summary


@pytest.mark.parametrize(
    ("normalizer", "unit"), [("n", "per weight"), ("sqrt_n", "root mean square"), ("relative", "relative to")]
)
def test_variations_have_the_unit_of_their_normaliser(normalizer: str, unit: str) -> None:
    plot = weight_variation({"a": [record("a", info=history(normalizer=normalizer))]})
    assert unit in letters(plot)
    assert "rate before the schedule" in letters(plot)


def test_rows_without_a_history_or_without_routes_are_left_out() -> None:
    nothing = {"frozen": [record("frozen", info={"any": {"variation": [[]], "blocks": []}, "routes": {}})], "b": []}
    assert weight_variation(nothing) is None
    both = weight_variation({"a": [record("a", info=history())], "c": [record("c", info=history(1))], **nothing})
    assert "a, seed 0" in letters(both)
    assert "c, seed 0" in letters(both)
    assert routes(nothing) is None
    one_run = routed("a")
    plot = routes({"argmax": [one_run], "majority": [one_run], **nothing})
    assert plot is not None
    assert plot.summary.count("2 distinct routes of 3 test images") == 1, "one run, used in two ways"


def test_pruning_has_a_line_per_way_through_the_means_with_the_intervals_of_tables() -> None:
    plot = drawn("pruning")
    (axes,) = plot.figure.axes  # parameters hardly differ
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines["not pruned"] == [[100, 60]]
    assert lines["Gates"] == [[50, pytest.approx(30)], [70, pytest.approx(40)]]
    assert lines["Uniform"] == [[50, pytest.approx(10)]]
    half = 4.302653 * 10 / 3**0.5
    containers: Any = axes.containers
    assert containers[0][2][0].get_segments()[0][:, 1].tolist() == pytest.approx([30 - half, 30 + half], abs=1e-3)
    assert pruning_curve({row: PRUNED[row] for row in ("Whole network", "Gates 0.5")}) is None, "one size"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("Blocks -4", "Blocks"),
        ("channel_gates(budget=0.5, search_epochs=6)", "channel_gates(search_epochs=6)"),
        ("channel_pruning(budget=0.5), lr 0.01", "channel_pruning, lr 0.01"),
        ("layer_pruning(drop=15,16)+low_high(low=0.2, high=5.0)", "layer_pruning+low_high(low=0.2, high=5.0)"),
    ],
)
def test_what_makes_one_line(row: str, line: str) -> None:
    assert family(row) == line


def test_strategies_under_two_losses_are_compared_with_standard_and_their_orders_with_each_other() -> None:
    plot = drawn("by loss")
    axes = plot.figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["Good, as it is", "Standard", "Bad"]
    assert np.asarray(axes.lines[0].get_xdata()).tolist() == pytest.approx([0, 10, -10])
    assert plot.notes[1:] == ("- triplet and softmax: 1.00",)
    swapped = {
        **BY_LOSS,
        "Bad, softmax": BY_LOSS["Good, as it is, softmax"],
        "Good, as it is, softmax": BY_LOSS["Bad, softmax"],
    }
    other = ranking_by_loss(swapped)
    assert other is not None
    assert other.notes[1:] == ("- triplet and softmax: -1.00",)
    assert ranking_by_loss({name: several for name, several in BY_LOSS.items() if "softmax" not in name}) is None


def test_structures_are_compared_between_seeds() -> None:
    assert structure_similarity({"a": [record("a")]}) is None
    correlation, heading, spread = drawn("similarity").notes[1:]
    assert correlation == "- Gates 0.5: 1.000 (1.000, 1.000), 3 pairs"
    assert "in millions: mean ± standard deviation" in heading
    several = [record("a", 0, info=GATED, cost={"macs": size, "parameters": 3e6}) for size in (1e6, 2e6)]
    several[1] = replace(several[1], seed=1)
    plot = structure_similarity({"a": several})
    assert plot is not None
    sizes = "3.000 ± 0.000 (3.000 to 3.000) parameters, 1.500 ± 0.707 (1.000 to 2.000) macs, 2 seeds"
    assert plot.notes[-1] == f"- a: {sizes}"
    assert spread.endswith("macs, 3 seeds")
    matrix = correlations(np.array([[0.1, 0.5, 0.9], [0.9, 0.5, 0.1], [0.3, 0.3, 0.3]]))
    np.testing.assert_allclose(matrix, [[1, -1, np.nan], [-1, 1, np.nan], [np.nan] * 3])
