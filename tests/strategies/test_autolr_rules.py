"""AutoLR's arithmetic and the variation it acts on: golden vectors worked out by hand, laws, counted weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval_bench.models.build import build_backbone
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.autolr_rules import (
    initial_target,
    is_sorted_enough,
    later_target,
    raised,
    target_rates,
    threshold_at,
)
from retrieval_bench.strategies.weight_variation import Normalizer, WeightVariation, sorting_quality, weight_variation
from tests.oracles import autolr as oracle
from tests.training.helpers import Data, make_training, run_config, state_of, tiny_embedder

VARIATION = [9, 8.5, 8, 7, 6.5, 6, 5.5, 4, 3.5, 3, 2.5, 2, 1.5, 1]
RATES = [0.000222, 0.000250, 0.000281, 0.000338, 0.000383, 0.000436, 0.000498]
RATES += [0.000715, 0.000853, 0.001036, 0.001292, 0.001677, 0.002318, 0.003600]
THRESHOLDS = [0.94, 0.9306, 0.9213, 0.9121, 0.9030, 0.8939, 0.8850, 0.8761, 0.8674]
THRESHOLDS += [0.8587, 0.8501, 0.8416, 0.8332, 0.8249, 0.8166, 0.8085, 0.8004, 0.7924, 0.7924]
positive = st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=20)
finite = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20)


def unbounded_rates(variation: list[float], target: np.ndarray) -> list[float]:
    """From a rate of 0.001 each, within bounds so wide that they do not matter."""
    v = np.array(variation, dtype=float)
    return target_rates(np.full(len(v), 0.001), v, target, 0.0, 1e9, 1e9)[0].tolist()


def test_sorting_quality() -> None:
    by_hand: list[list[float]] = [[1, 3, 2, 4], [3, 1, 2, 4], [4, 3, 2, 1], [5, 4, 3, 2, 1], [1, 2, 6, 3, 2, 4], []]
    assert [sorting_quality(values) for values in by_hand] == pytest.approx([0.75, 0.5, 0, 0.04, 2 / 3, 1])
    for broken in (math.nan, math.inf):
        quality = sorting_quality([1, broken, 3])
        assert math.isnan(quality)
        assert not is_sorted_enough(quality, 0.0)
        assert not is_sorted_enough(quality, 0.0, "paper")


@given(finite, st.sampled_from([0.25, 2.0, 1024.0]))
def test_sorting_quality_is_that_of_the_oracle_and_1_only_for_ascending_values(
    values: list[float], factor: float
) -> None:
    quality = sorting_quality(values)
    assert quality == pytest.approx(oracle.sorting_quality(values))
    assert 0 <= quality <= 1
    assert (quality == 1) == (sorted(values) == values)
    assert sorting_quality([factor * value for value in values]) == quality


def test_thresholds_of_the_code_and_when_a_pass_is_kept() -> None:
    """The code rounds to three decimals and keeps what reaches the threshold; the paper asks for more than that."""
    assert [threshold_at(epoch) for epoch in range(19)] == pytest.approx(THRESHOLDS, abs=5e-5)
    assert threshold_at(1, 0.8, 0.5, 0.8) == 0.8, "lowered only above the floor"
    assert is_sorted_enough(0.9396, 0.94)
    assert not is_sorted_enough(0.9388, 0.94)
    assert not is_sorted_enough(0.94, 0.94, "paper")
    assert is_sorted_enough(0.9401, 0.94, "paper")


def test_initial_target_and_rates() -> None:
    target, replaced = initial_target(np.array(VARIATION))
    assert not replaced
    assert target.tolist() == pytest.approx(oracle.initial_target(VARIATION, 2, 0.4))
    assert (target[0], target[-1]) == pytest.approx((2.0, 3.6))
    assert unbounded_rates(VARIATION, target) == pytest.approx(RATES, abs=5e-7)
    target, _ = initial_target(np.array(VARIATION), rules="paper")
    assert (target[0], target[-1]) == pytest.approx((1.0, 1 + 0.4 * 9 - 2)), "from min v, with the same step"


@pytest.mark.parametrize("variation", [[1, 1.1, 1.2, 1.3], [5, 4, 3, 2, 1]])
def test_a_first_line_that_would_not_ascend_is_replaced(variation: list[float]) -> None:
    """5 = 2 / 0.4 is the limit: there it would be level."""
    target, replaced = initial_target(np.array(variation))
    assert replaced
    assert target.tolist() == pytest.approx(np.linspace(min(variation), max(variation), len(variation)))


def test_later_target_and_rates_and_what_falls_below_zero_is_raised() -> None:
    target = later_target(np.array([1.0, 2, 6, 3, 2, 4]))
    assert target.tolist() == [1, 2, 2, 3, 4, 4]
    rates = unbounded_rates([1.0, 2, 6, 3, 2, 4], target)
    assert rates == pytest.approx([0.001, 0.001, 0.000333, 0.001, 0.002, 0.001], abs=5e-7)
    variation = np.array([10.0, 9, 8, 1, 7, 6, 5])
    target = later_target(variation)
    assert target.tolist() == [-3.5, -2, -0.5, 1, 7, 8.5, 10]
    lifted, count = raised(target, variation)
    assert count == 3
    assert lifted.tolist() == pytest.approx([0.1, 0.4, 0.7, 1, 7, 8.5, 10])
    assert raised(np.array([0.1, 0.2]), np.array([1.0, 2.0]))[1] == 0, "a tenth of the smallest is high enough"
    lifted, count = raised(np.array([-2.0, -1.0]), np.array([1.0, 2.0]))
    assert (lifted.tolist(), count) == (pytest.approx([0.1, 0.15]), 2)


@given(positive)
def test_targets_ascend_and_are_positive(values: list[float]) -> None:
    variation = np.array(values)
    later = later_target(variation)
    assert later.tolist() == pytest.approx(oracle.later_target(values))
    for target in (initial_target(variation)[0], initial_target(variation, rules="paper")[0], later):
        lifted, _ = raised(target, variation)
        assert (lifted > 0).all()
        assert (np.diff(lifted) >= -1e-12 * lifted.max()).all()
        assert len(lifted) == len(values)


def test_rates_within_each_bound() -> None:
    """Exact rates 0.2, 0.02, 30, 0.4: kept, raised to a tenth of the old rate, lowered to the highest, kept."""
    rates, variation, target = np.array([0.1, 1.0, 1.0, 0.2]), np.ones(4), np.array([2.0, 0.02, 30.0, 2.0])
    bounded, count = target_rates(rates, variation, target, 0.01, np.array([1, 1, 5, 1]), 10.0)
    assert (bounded.tolist(), count) == (pytest.approx([0.2, 0.1, 5.0, 0.4]), 2)
    assert target_rates(rates, variation, target, 0.3, 9.0, 100.0)[0].tolist() == pytest.approx([0.3, 0.3, 9.0, 0.4])
    assert target_rates(rates, variation, target, 0.0, 99.0, 10.0)[0].tolist() == pytest.approx([0.2, 0.1, 10.0, 0.4])


COUNTED = [57_344, *[69_632] * 2, 245_760, *[278_528] * 3, 983_040, *[1_114_112] * 5, 3_932_160, *[4_456_448] * 2]


@pytest.mark.parametrize("name", ["resnet50", "torchvision/resnet50"])
def test_counted_weights_of_resnet50_are_those_of_the_paper_s_code(name: str) -> None:
    """Three kernels a block; no projection, norm or bias."""
    backbone = build_backbone(ModelConfig(backbone=name, weights="none"), 32)
    kernels = [backbone.kernels(block) for block in backbone.body]
    assert [sum(kernel.numel() for kernel in block.values()) for block in kernels] == COUNTED
    assert all(len(block) == 3 for block in kernels)


@pytest.mark.parametrize("normalizer", ["n", "sqrt_n", "relative"])
def test_variation_is_the_distance_over_the_normaliser(normalizer: Normalizer) -> None:
    model = tiny_embedder()
    before = {name[2:]: value for name, value in state_of(model).items()}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    variation = weight_variation(before, model, normalizer)
    assert list(variation) == [block.name for block in model.backbone.body]
    for block, value in variation.items():
        names = [f"backbone.net.{block}.conv{index}.weight" for index in (1, 2)]
        old = torch.cat([before[name].flatten() for name in names]).double()
        new = torch.cat([model.get_parameter(name).detach().flatten() for name in names]).double()
        divisor = {"n": len(old), "sqrt_n": len(old) ** 0.5, "relative": float(old.norm())}[normalizer]
        assert value == pytest.approx(float((new - old).norm()) / divisor, rel=1e-6)


def test_a_convnext_s_downsampling_is_on_its_main_path() -> None:
    """It stands before the stage's first block, which owns it; in a ResNet it is a shortcut inside the block."""
    backbone = build_backbone(ModelConfig(backbone="test_convnext", weights="none"), 32)
    names = [name for block in backbone.body for name in backbone.kernels(block)]
    assert any("downsample" in name for name in names)


def test_measuring_changes_nothing(synthetic: Data) -> None:
    config = run_config(epochs=2)
    strategy = WeightVariation()
    watched, plain = make_training(synthetic, strategy, config), make_training(synthetic, config=config)
    watched.fit()
    plain.fit()
    assert watched.history == plain.history
    info = strategy.info()
    assert len(info["variation"]) == len(info["quality"]) == 2
    assert info["rates"]["layer1.0"] == [0.001, 0.001]
    assert info["normalizer"] == "n"
    assert all(value > 0 for epoch in info["variation"] for value in epoch)


@given(st.lists(st.tuples(*[st.floats(1e-3, 1e3)] * 3), min_size=1, max_size=8), st.floats(1, 10))
def test_a_ceiling_scales_all_rates_down_together(values: list[tuple[float, float, float]], rise: float) -> None:
    """So what was sorted stays sorted; rates below it stay as they are."""
    rates, variation, target = np.array(values).T
    free, _ = target_rates(rates, variation, target, 0.0, 1e9, 1e9)
    held, changed = target_rates(rates, variation, target, 0.0, 1e9, 1e9, rise * rates)
    assert (held <= rise * rates * (1 + 1e-9)).all()
    quotients = free / held
    assert quotients == pytest.approx(quotients[0]), "one number for all"
    assert quotients[0] == pytest.approx(max(1.0, float((free / rates).max()) / rise))
    assert changed == (len(rates) if quotients[0] > 1 else 0)
