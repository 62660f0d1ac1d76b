"""Looks and fronts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.answer import strategy_name
from retrieval_bench.figures.embedding_map import distant_looks
from retrieval_bench.figures.style import line_style, look_of
from retrieval_bench.figures.tradeoff import pareto_front
from retrieval_bench.strategies import STRATEGIES
from retrieval_bench.strategies.base import Strategy

LOOKS = [kind.look for kind in STRATEGIES.values()]
NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]) | st.floats(-5, 5)


def luminance(colour: str) -> float:
    """As WCAG defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("colour", [look.colour for look in (*LOOKS, Strategy.look)])
def test_colours_can_be_read_on_a_light_and_a_dark_page(colour: str) -> None:
    for page in ("#ffffff", "#16181d"):
        dark, bright = sorted((luminance(colour), luminance(page)))
        assert (bright + 0.05) / (dark + 0.05) >= 3


def test_markers_that_look_alike_differ_without_red_and_green() -> None:
    """Red and green taken as one (their weighted sum), strategies of one marker still differ in that or in blue."""

    def seen(colour: str) -> np.ndarray:
        red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
        return np.array([0.25 * red + 0.75 * green, blue])

    alike = [(one.colour, other.colour) for one, other in combinations(LOOKS, 2) if one.marker == other.marker]
    assert len(alike) == 12
    assert all(np.abs(seen(one) - seen(other)).max() > 40 for one, other in alike)


def test_chains_options_and_strangers() -> None:
    label = "layer_pruning(drop=15,16)+low_high(low=0.2, high=5.0), softmax, 2 epochs"
    assert strategy_name(label) == "layer_pruning+low_high"
    assert look_of("last_k(k=3)") == look_of("last_k")
    chain, first, last = (look_of(name) for name in ("layer_pruning(drop=last:2)+autolr", "layer_pruning", "autolr"))
    assert chain == {"color": first["color"], "marker": last["marker"], "markeredgecolor": last["color"]}
    assert sorted(map(str, distant_looks())) == sorted(map(str, LOOKS))
    assert look_of("of another version")["color"] == Strategy.look.colour


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_front_is_that_of_its_definition(points: list[tuple[float, float]]) -> None:
    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and (one[0] < other[0] or one[1] > other[1])

    known = [point for point in points if point[0] == point[0] and point[1] == point[1]]
    expected = [point in known and not any(beats(other, point) for other in known) for point in points]
    cost, value = np.array(points).reshape(-1, 2).T
    assert pareto_front(cost, value).tolist() == expected


def test_lines_of_one_look_all_differ() -> None:
    looks = [{"color": "red"}] * 6 + [{"color": "blue"}]
    styles = [str(line_style(looks, number)) for number in range(7)]
    assert len(set(styles[:6])) == 6
    assert styles[6] == styles[0]
