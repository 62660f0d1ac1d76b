"""Colours, labels and fronts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_bench.figures.colours import LOOKS, OTHER, colour_of, look_of, parts
from retrieval_bench.figures.labels import short_labels
from retrieval_bench.figures.pareto import pareto_front

from retrieval_bench.strategies import STRATEGIES

NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, float("nan")]) | st.floats(-5, 5)


def light(colour: str) -> float:
    """Relative luminance as WCAG defines it."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_strategy_has_a_look_that_no_other_has() -> None:
    assert LOOKS.keys() == STRATEGIES.keys()
    assert len(set(LOOKS.values())) == len(STRATEGIES)
    assert len({colour for colour, _ in LOOKS.values()}) == len(STRATEGIES)
    assert {name: colour_of(name) for name in STRATEGIES} == {name: colour for name, (colour, _) in LOOKS.items()}


@pytest.mark.parametrize("colour", [*(colour for colour, _ in LOOKS.values()), OTHER[0]])
def test_colours_can_be_read_on_a_light_and_a_dark_page(colour: str) -> None:
    for page in ("#ffffff", "#16181d"):
        dark, bright = sorted((light(colour), light(page)))
        assert (bright + 0.05) / (dark + 0.05) >= 3


def test_who_sees_no_red_or_green_tells_alike_markers_apart() -> None:
    """Red and green taken as one (their weighted sum), strategies of one marker still differ in that or in blue."""

    def seen(colour: str) -> np.ndarray:
        red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
        return np.array([0.25 * red + 0.75 * green, blue])

    alike = [(one, other) for one, other in combinations(LOOKS.values(), 2) if one[1] == other[1]]
    assert len(alike) == 9
    assert all(np.abs(seen(one[0]) - seen(other[0])).max() > 40 for one, other in alike)


def test_chains_options_and_strangers() -> None:
    assert parts("layer_pruning(drop=15,16)+low_high(low=0.2, high=5.0), softmax, 2 epochs") == [
        "layer_pruning",
        "low_high",
    ]
    assert colour_of("last_k(k=3)") == colour_of("last_k")
    chain = look_of("layer_pruning(drop=last:2)+autolr")
    assert chain.colour == colour_of("layer_pruning")
    assert (chain.marker, chain.edge) == (look_of("autolr").marker, colour_of("autolr"))
    assert look_of("layer_pruning+l2sp") != chain
    assert colour_of("of another version") == OTHER[0]


def test_labels_keep_what_tells_them_apart() -> None:
    labels = [
        "gates(budget=0.3, search_epochs=6)",
        "gates(budget=0.5, search_epochs=6)",
        "last_k(k=3)",
        "a_long_name(option=argmax,all_tuned)",
    ]
    assert short_labels(labels) == ["gates(budget=0.3)", "gates(budget=0.5)", "last_k(k=3)", "a_long_name"]


def slow_front(cost: list[float], value: list[float]) -> list[bool]:
    def beats(one: int, other: int) -> bool:
        better = cost[one] < cost[other] or value[one] > value[other]
        return cost[one] <= cost[other] and value[one] >= value[other] and better

    known = [place for place in range(len(cost)) if cost[place] == cost[place] and value[place] == value[place]]
    return [place in known and not any(beats(other, place) for other in known) for place in range(len(cost))]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12))
def test_front_is_that_of_its_definition(points: list[tuple[float, float]]) -> None:
    cost, value = [point[0] for point in points], [point[1] for point in points]
    assert pareto_front(np.array(cost), np.array(value)).tolist() == slow_front(cost, value)
