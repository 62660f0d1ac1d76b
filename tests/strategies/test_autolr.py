"""AutoLR's loop of passes: what is kept, what is undone, and the bounds where the original would run for ever."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.autolr import BOUNDS, AutoLR
from retrieval_bench.strategies.autolr_rules import initial_target
from retrieval_bench.strategies.weight_variation import WeightVariation, sorting_quality
from retrieval_bench.training.optimisation import schedule_factor
from tests.strategies.linear_state import LinearState
from tests.training.helpers import Data, differing, make_training, run_config, state_of, tiny_embedder


def autolr(**options: Any) -> AutoLR:
    return AutoLR(AutoLR.Options(**options))


def test_two_epochs_worked_out_by_hand() -> None:
    """Four blocks. First epoch: v = 8 4 2 1, Q = 0, aims at 2 2.4 2.8 3.2. Second: v = 4 2.4 1.4 3.2, Q = 1/4, step 2.6/3, middle
    block 3: -1/3 8/15 1.4 3.2, of which the first is raised to a tenth of 1.4."""
    moves = {0: (8000, 4000, 2000, 1000), 1: (16000, 4000, 1000, 1000)}
    state = LinearState(lambda epoch, _: moves[epoch], 4)
    facts = state.run(autolr(), 2)
    first, second = [0.00025, 0.0006, 0.0014, 0.0032], [0.00025 * 0.14 / 4, 0.0006 * (8 / 15) / 2.4, 0.0014, 0.0032]
    assert pytest.approx(np.array([first, second])) == np.array([facts["rates"][str(block)] for block in range(1, 5)]).T
    assert facts["rates"]["stem"] == pytest.approx([0.000125, second[0] / 2])
    assert facts["rates"]["loss"] == [0.001, 0.001]
    assert facts["target"] == [pytest.approx([2, 2.4, 2.8, 3.2]), pytest.approx([0.14, 8 / 15, 1.4, 3.2])]
    assert facts["variation"] == [pytest.approx([2, 2.4, 2.8, 3.2]), pytest.approx([0.14, 8 / 15, 1.4, 3.2])]
    assert facts["qualities"] == [[0, 1], [0.25, 1]]
    assert facts["threshold"] == pytest.approx([0.94, 0.9306])
    assert (facts["trials"], facts["passes"], facts["converged"], facts["rejected"]) == (
        [2, 2],
        [2, 2],
        [True, True],
        2,
    )
    assert facts["bounds"] == dict.fromkeys(BOUNDS, 0) | {"lifted_targets": 1}
    assert state.attempts == [[0, 1], [0, 1]], "each pass draws its own order"


def test_a_sorted_first_pass_is_kept_as_it_is() -> None:
    state = LinearState(lambda *_: (1, 2, 3), 3)
    facts = state.run(autolr(), 1)
    assert (facts["passes"], facts["rates"]["stem"], facts["target"]) == ([1], [0.001], [[None] * 3])


def test_after_the_last_trial_the_best_is_repeated_and_kept() -> None:
    """Qualities 0, 0.5, 0: the second pass wins, and is made again from the same weights with its own rates and order."""
    outcomes = [(9, 3, 2, 1), (2, 1, 4, 3), (9, 3, 2, 1)]
    state = LinearState(
        lambda _, number: (
            np.array(outcomes[min(number, 2) if number < 3 else 1]) / list(state.rate.values())[1:5]
        ).tolist(),
        4,
    )
    facts = state.run(autolr(max_trials=3), 1)
    assert facts["qualities"] == [[0, 0.5, 0]]
    assert (facts["quality"], facts["trials"], facts["passes"], facts["converged"]) == ([0.5], [3], [4], [False])
    assert state.attempts == [[0, 1, 2, 1]]
    assert facts["variation"] == [pytest.approx([2, 1, 4, 3])]


def test_rejected_passes_are_limited_in_all() -> None:
    random = np.random.default_rng(0)
    state = LinearState(lambda *_: random.permutation([1e3, 1e2, 10, 1]).tolist(), 4)
    facts = state.run(autolr(threshold=1.0, threshold_floor=1.0, max_trials=3, max_rejected=4), 6)
    assert max(facts["trials"]) <= 3
    assert facts["trials"][-1] == 1
    assert facts["rejected"] == sum(facts["passes"]) - 6 <= 4


def test_paired_trials_repeat_order_and_augmentation() -> None:
    state = LinearState(lambda *_: (4, 3, 2, 1), 4)
    state.run(autolr(paired_trials=True), 1)
    assert set(state.attempts[0]) == {0}
    assert len(state.attempts[0]) > 1


@pytest.mark.parametrize(("rules", "aimed_at"), [("code", 1), ("paper", 2)])
def test_the_paper_renews_its_target_after_every_failed_pass(rules: str, aimed_at: int) -> None:
    """Two passes fail before the third is kept. The target is that of the first failed pass, or that of the last one."""
    variations = {1: np.array([9.0, 8, 2, 1]), 2: np.array([20.0, 3, 2, 1])}

    def moves(_: int, number: int) -> list[float]:
        wanted = variations.get(number + 1, np.array([1.0, 2, 3, 4]))
        return (wanted / [state.rate[str(block)] for block in range(1, 5)]).tolist()

    state = LinearState(moves, 4)
    facts = state.run(autolr(rules=rules), 1)
    assert facts["passes"] == [3]
    assert facts["target"][0] == pytest.approx(initial_target(variations[aimed_at], rules=rules)[0])  # pyright: ignore[reportArgumentType]


def test_a_repeated_pass_that_goes_wrong_ends_the_run() -> None:
    state = LinearState(lambda _, number: [(1, 4, 3, 2), (4, 3, 2, 1), (math.nan,) * 4][number], 4)
    with pytest.raises(Diverged, match="did not come out as before"):
        state.run(autolr(max_trials=2, rules="code", high=100.0, low=0.001, threshold=1.0), 1)


def test_weights_that_are_no_numbers_count_as_diverged() -> None:
    state = LinearState(lambda _, number: (math.inf, 1, 1) if number == 0 else (1, 2, 3), 3)
    facts = state.run(autolr(), 1)
    assert facts["bounds"]["diverged"] == 1
    assert facts["qualities"] == [[None, 1]]


@pytest.mark.parametrize("schedule", ["step", "cosine", "triangular", "warm_restarts"])
def test_composes_with_schedules(synthetic: Data, schedule: str) -> None:
    """Rates are tuned as they are before the schedule's factor, which multiplies all of them."""
    config = run_config("softmax", optimizer="sgd", lr=0.01, epochs=2, schedule=schedule)
    strategy = autolr()
    training = make_training(synthetic, strategy, config)
    training.fit()
    rates = {name: values[-1] for name, values in strategy.info()["rates"].items()}
    assert rates == training.lrs()
    assert len(set(rates.values())) > 2
    factor = schedule_factor(config.train, (1 + 3 / 4) / 2)
    assert {group["name"]: group["lr"] for group in training.optimizer.param_groups} == pytest.approx(
        {name: factor * rate for name, rate in rates.items()}
    )


def test_a_pass_that_diverged_is_undone_and_all_rates_halved() -> None:
    state = LinearState(lambda _, number: (math.nan,) * 3 if number < 2 else (1, 2, 3), 3)
    facts = state.run(autolr(), 1)
    assert facts["bounds"]["diverged"] == 2
    assert facts["qualities"] == [[None, None, 1]]
    assert {name: rate[0] for name, rate in facts["rates"].items()} == dict.fromkeys(state.rate, 0.00025)


def test_only_diverging_passes_end_the_run() -> None:
    state = LinearState(lambda *_: (math.nan,) * 3, 3)
    with pytest.raises(Diverged, match="all 4 passes"):
        state.run(autolr(max_trials=4), 1)


def test_blocks_that_do_not_move_keep_their_rates() -> None:
    state = LinearState(lambda *_: (9, 0, 3, 1), 4)
    facts = state.run(autolr(), 1)
    assert facts["rates"]["2"] == [0.001]
    assert facts["converged"] == [True]
    assert facts["bounds"]["still_blocks"] >= 1


def test_nothing_moves() -> None:
    facts = LinearState(lambda *_: (0, 0, 0), 3).run(autolr(), 2)
    assert (facts["passes"], facts["quality"]) == ([1, 1], [1, 1])


def test_where_no_block_is_trained_every_pass_is_kept(synthetic: Data) -> None:
    """A frozen backbone under an embedding layer: nothing to sort, and nothing that diverged."""
    strategy = build_strategy("frozen+autolr", StrategyOptions())
    training = make_training(synthetic, strategy, run_config(), tiny_embedder(4))
    training.fit()
    facts = strategy.info()["autolr"]
    assert (facts["passes"], facts["quality"], facts["converged"], facts["blocks"]) == (
        [1, 1],
        [1, 1],
        [True, True],
        [],
    )
    assert facts["bounds"] == dict.fromkeys(BOUNDS, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0.001, 1000), min_size=5, max_size=5), min_size=1, max_size=12), st.integers(1, 6))
def test_rates_stay_positive_and_bounded_and_trials_are_limited(moves: list[list[float]], limit: int) -> None:
    state = LinearState(lambda _, number: moves[number % len(moves)], 5)
    facts = state.run(autolr(max_trials=limit, max_rise=20.0), 3)
    rates = np.array([facts["rates"][str(block)] for block in range(1, 6)])
    assert ((rates >= 0.999e-6) & (rates <= 0.02001)).all()
    assert max(facts["trials"]) <= limit
    assert all(passes <= trials + 1 for passes, trials in zip(facts["passes"], facts["trials"], strict=True))


@pytest.mark.parametrize(
    "option", ["max_trials", "max_ratio", "max_rise", "low", "high", "threshold_decay", "stem_factor"]
)
def test_options_that_cannot_work_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=option.replace("_", "-")):
        autolr(**{option: 0})


@pytest.mark.parametrize(
    "options", [{"threshold": 1.01}, {"threshold": 1.0, "rules": "paper"}, {"threshold_decay": 1.01}]
)
def test_thresholds_that_no_pass_can_reach_are_refused(options: dict[str, Any]) -> None:
    """Every epoch would be repeated until its limit; where nothing moves there would not even be a target."""
    with pytest.raises(UserError, match=r"must be (at most|below) 1"):
        autolr(**options)
    autolr(threshold=1.0, threshold_decay=1.0)


def test_needs_two_blocks() -> None:
    with pytest.raises(UserError, match="two or more blocks"):
        LinearState(lambda *_: (1,), 1).run(autolr(), 1)


@pytest.mark.parametrize("optimizer_state", ["fresh", "kept"])
def test_undone_passes_leave_no_trace(synthetic: Data, optimizer_state: str) -> None:
    """The state after an epoch is that of its kept pass alone, made with the same rates from the same weights: also BN and loss."""
    config = run_config("softmax", head="autolr", optimizer="sgd", lr=0.01, weight_decay=1e-3)
    strategy = autolr(optimizer_state=optimizer_state, threshold=1.0, max_trials=3)
    training = make_training(synthetic, strategy, config)
    training.train_once()
    training.epoch = 1
    strategy.run_epoch(training.train_once, training)
    facts = strategy.info()
    assert facts["passes"][0] > 1
    assert training.images_seen == 64 * (1 + facts["passes"][0]), "undone passes count"

    alone = make_training(synthetic, autolr(), config)
    alone.train_once()
    alone.epoch = 1
    if optimizer_state == "fresh":
        alone.optimizer.state.clear()
    alone.set_lrs({name: values[0] for name, values in facts["rates"].items()})
    kept = facts["qualities"][0].index(facts["quality"][0])
    alone.train_once(kept)
    assert not differing(state_of(training.model, training.criterion), state_of(alone.model, alone.criterion))


def test_autolr_sorts_what_one_rate_leaves_unsorted(synthetic: Data) -> None:
    """The paper's observation and its cure, on a small network: the variation falls from first to last block, until rates are tuned."""
    config = run_config("softmax", optimizer="sgd", lr=0.01, epochs=3)
    single = WeightVariation()
    make_training(synthetic, single, config).fit()
    assert max(single.info()["quality"]) < 0.5
    options = StrategyOptions()
    chain = build_strategy("layer_pruning+autolr", options)
    training = make_training(synthetic, chain, config, tiny_embedder())
    training.fit()
    facts = chain.info()["autolr"]
    assert len(facts["blocks"]) == 6, "two of eight are gone"
    assert all(quality >= threshold for quality, threshold in zip(facts["quality"], facts["threshold"], strict=True))
    assert all(facts["converged"])
    assert training.images_seen == 64 * sum(facts["passes"])
    assert facts["quality"] == [sorting_quality(values) for values in facts["variation"]]
