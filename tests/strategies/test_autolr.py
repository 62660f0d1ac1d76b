"""AutoLR's loop of passes: what is kept, what is undone, and the bounds where the original would run for ever."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.models.backbone import Backbone, Block
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.autolr import BOUNDS, AutoLR
from retrieval_bench.strategies.autolr_rules import initial_target
from retrieval_bench.strategies.weight_variation import WeightVariation, sorting_quality
from retrieval_bench.training.optimizer import schedule_factor
from tests.training.helpers import Data, differing, make_training, run_config, state_of, tiny_embedder

Gradients = Callable[[int, int], Sequence[float]]
"""From (epoch, number of the pass) to what block k moves by per unit of its rate; NaN for a pass that diverges."""


class LinearState:
    """In a pass, the only weight of block k moves by its rate times a given number."""

    def __init__(self, gradients: Gradients, count: int, rate: float = 0.001):
        net = nn.Sequential(nn.Conv2d(1, 1, 1), *(nn.Conv2d(1, 1, 1, bias=False) for _ in range(count + 1))).double()
        body = (Block(str(index), (str(index),)) for index in range(1, count + 1))
        blocks = (Block("stem", ("0",)), *body, Block("tail", (str(count + 1),)))
        self.model = Embedder(Backbone(net, blocks, (0.5,), (0.5,), 1))
        self.criterion: nn.Module = nn.Linear(1, 1)
        groups = [{"params": self.model.backbone.block_parameters(block), "name": block.name} for block in blocks]
        groups.append({"params": list(self.criterion.parameters()), "name": "loss"})
        self.optimizer: Any = torch.optim.SGD(groups, lr=0.0)
        self.rate = {group["name"]: rate for group in groups}
        self.gradients = gradients
        self.epoch = 0
        self.epochs = 1
        self.images_seen = 0
        self.attempts: list[list[int]] = []
        self.passes = 0

    def snapshot(self) -> dict[str, Any]:
        return {"model": copy.deepcopy(self.model.state_dict()), "rates": dict(self.rate)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.model.load_state_dict(snapshot["model"])
        self.rate = dict(snapshot["rates"])

    def rebuild(self) -> None:
        raise NotImplementedError

    def holding_out(self, share: float) -> Any:
        raise NotImplementedError

    def example_batches(self, count: int) -> Any:
        raise NotImplementedError

    def search(self, kind: str, count: int, found: dict[str, list[Any]]) -> Any:
        raise NotImplementedError

    def lrs(self) -> dict[str, float]:
        return dict(self.rate)

    def set_lrs(self, rates: dict[str, float]) -> None:
        assert rates.keys() <= self.rate.keys()
        self.rate |= rates

    def train_once(self, attempt: int = 0, epochs: int = 0) -> float:
        self.attempts[-1].append(attempt)
        moves = self.gradients(self.epoch, self.passes)
        self.passes += 1
        if any(math.isnan(move) for move in moves):
            raise Diverged("the loss became nan")
        with torch.no_grad():
            for block, move in zip(self.model.backbone.body, moves, strict=True):
                for parameter in self.model.backbone.block_parameters(block):
                    parameter += self.rate[block.name] * move
        return 1.0

    def run(self, strategy: AutoLR, epochs: int) -> dict[str, Any]:
        strategy.prepare(self.model, torch.zeros(1))
        for self.epoch in range(epochs):
            self.attempts.append([])
            strategy.run_epoch(self.train_once, self)
        return strategy.info()


def autolr(**options: Any) -> AutoLR:
    return AutoLR(AutoLR.Options(**options))


def test_two_epochs_worked_out_by_hand() -> None:
    """Four blocks. First epoch: v = 8 4 2 1, Q = 0, target 2 2.4 2.8 3.2. Second: v = 4 2.4 1.4 3.2, Q = 1/4, step
    2.6/3, middle block 3: -1/3 8/15 1.4 3.2, of which the first is raised to a tenth of 1.4."""
    moves = {0: (8000, 4000, 2000, 1000), 1: (16000, 4000, 1000, 1000)}
    state = LinearState(lambda epoch, _: moves[epoch], 4)
    info = state.run(autolr(), 2)
    first, second = [0.00025, 0.0006, 0.0014, 0.0032], [0.00025 * 0.14 / 4, 0.0006 * (8 / 15) / 2.4, 0.0014, 0.0032]
    assert pytest.approx(np.array([first, second])) == np.array([info["rates"][str(block)] for block in range(1, 5)]).T
    assert info["rates"]["stem"] == pytest.approx([0.000125, second[0] / 2])
    assert info["rates"]["tail"] == info["rates"]["4"]
    assert info["rates"]["loss"] == [0.001, 0.001]
    assert info["target"] == [pytest.approx([2, 2.4, 2.8, 3.2]), pytest.approx([0.14, 8 / 15, 1.4, 3.2])]
    assert info["variation"] == [pytest.approx(target) for target in info["target"]]
    assert info["qualities"] == [[0, 1], [0.25, 1]]
    assert info["threshold"] == pytest.approx([0.94, 0.9306])
    assert (info["trials"], info["passes"], info["converged"], info["rejected"]) == ([2, 2], [2, 2], [True, True], 2)
    assert info["bounds"] == dict.fromkeys(BOUNDS, 0) | {"lifted_targets": 1}
    assert state.attempts == [[0, 1], [0, 1]], "each pass draws its own order"


def by_pass(*variations: tuple[float, ...]) -> LinearState:
    """A state whose pass number n has the n-th of the given variations, whatever the rates are."""
    count = len(variations[0])
    state = LinearState(lambda _, n: [v / state.rate[str(k + 1)] for k, v in enumerate(variations[n])], count)
    return state


def test_after_the_last_trial_the_best_is_repeated_and_kept() -> None:
    """Qualities 0, 0.5, 0: the second pass wins, and is repeated from the same weights with its own rates and order."""
    state = by_pass((9, 3, 2, 1), (2, 1, 4, 3), (9, 3, 2, 1), (2, 1, 4, 3))
    info = state.run(autolr(max_trials=3), 1)
    assert info["qualities"] == [[0, 0.5, 0]]
    assert (info["quality"], info["trials"], info["passes"], info["converged"]) == ([0.5], [3], [4], [False])
    assert info["rejected"] == 3
    assert state.attempts == [[0, 1, 2, 1]]
    assert info["variation"] == [pytest.approx([2, 1, 4, 3])]
    state = by_pass((9, 3, 2, 1), (2, 1, 4, 3))
    info = state.run(autolr(max_trials=2), 1)
    assert (state.attempts, info["passes"], info["converged"]) == ([[0, 1]], [2], [False]), "the last is the best"


def test_rejected_passes_are_limited_in_all() -> None:
    random = np.random.default_rng(0)
    state = LinearState(lambda *_: random.permutation([1e3, 1e2, 10, 1]).tolist(), 4)
    info = state.run(autolr(threshold=1.0, threshold_floor=1.0, max_trials=3, max_rejected=4), 6)
    assert max(info["trials"]) == 3
    assert info["trials"][-1] == 1
    assert info["rejected"] == sum(info["passes"]) - 6 <= 4


@pytest.mark.parametrize(("paired_trials", "attempts"), [(True, [0, 0]), (False, [0, 1])])
def test_paired_trials_repeat_order_and_augmentation(paired_trials: bool, attempts: list[int]) -> None:
    state = LinearState(lambda *_: (4, 3, 2, 1), 4)
    state.run(autolr(paired_trials=paired_trials, max_trials=2), 1)
    assert state.attempts[0] == attempts


@pytest.mark.parametrize(("rules", "source"), [("code", 0), ("paper", 1)])
def test_the_paper_renews_its_target_after_every_failed_pass(rules: Any, source: int) -> None:
    """Two passes fail before the third is kept. The target is that of the first failed pass, or that of the last."""
    variations = ((9, 8, 2, 1), (20, 3, 2, 1), (1, 2, 3, 4))
    info = by_pass(*variations).run(autolr(rules=rules), 1)
    assert info["passes"] == [3]
    assert info["target"][0] == pytest.approx(initial_target(np.array(variations[source]), rules=rules)[0])


@pytest.mark.parametrize(
    ("options", "rates", "bounded"),
    [({}, [5e-4, 2e-3], 0), ({"max_rise": 1.5}, [5e-4, 1.5e-3], 1), ({"max_ratio": 1.6}, [6.25e-4, 1.6e-3], 2)],
)
def test_rates_are_bounded(options: dict[str, float], rates: list[float], bounded: int) -> None:
    """v = 8 4 at a rate of 0.001; the line would not ascend and is replaced by 4 8."""
    info = LinearState(lambda *_: (8000, 4000), 2).run(autolr(**options), 1)
    assert [info["rates"][str(block)][0] for block in (1, 2)] == pytest.approx(rates)
    assert info["bounds"] == dict.fromkeys(BOUNDS, 0) | {"bounded_rates": bounded, "descending_targets": 1}
    assert info["passes"] == [2]


@pytest.mark.parametrize(
    ("state", "trials", "error", "message"),
    [
        (by_pass((1, 4, 3, 2), (4, 3, 2, 1), (math.nan,) * 4), 2, Diverged, "did not give the same result"),
        (LinearState(lambda *_: (math.nan,) * 3, 3), 4, Diverged, "all 4 passes"),
        (LinearState(lambda *_: (1,), 1), 4, UserError, "two or more blocks"),
    ],
)
def test_what_ends_the_run(state: LinearState, trials: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        state.run(autolr(max_trials=trials, threshold=1.0), 1)


def test_a_pass_that_diverged_is_undone_and_all_rates_halved() -> None:
    state = LinearState(lambda _, number: (math.nan,) * 3 if number < 2 else (1, 2, 3), 3)
    info = state.run(autolr(), 1)
    assert info["bounds"]["diverged"] == 2
    assert info["qualities"] == [[None, None, 1]]
    assert {name: rate[0] for name, rate in info["rates"].items()} == dict.fromkeys(state.rate, 0.00025)
    info = LinearState(lambda _, number: (math.inf, 1, 1) if number == 0 else (1, 2, 3), 3).run(autolr(), 1)
    assert (info["bounds"]["diverged"], info["qualities"]) == (1, [[None, 1]]), "non-finite weights"


def test_blocks_that_do_not_move_keep_their_rates() -> None:
    info = LinearState(lambda *_: (9, 0, 3, 1), 4).run(autolr(), 1)
    assert info["rates"]["2"] == [0.001]
    assert info["converged"] == [True]
    assert info["bounds"]["still_blocks"] == info["passes"][0]
    info = LinearState(lambda *_: (0, 0, 0), 3).run(autolr(), 2)
    assert (info["passes"], info["quality"]) == ([1, 1], [1, 1])


def test_where_no_block_is_trained_every_pass_is_kept(synthetic: Data) -> None:
    """A frozen backbone under an embedding layer: nothing to sort, and nothing that diverged."""
    strategy = build_strategy("frozen+autolr", StrategyOptions())
    make_training(synthetic, strategy, run_config(), tiny_embedder(4)).fit()
    info = strategy.info()["autolr"]
    assert (info["passes"], info["quality"], info["converged"], info["blocks"]) == ([1, 1], [1, 1], [True] * 2, [])
    assert info["bounds"] == dict.fromkeys(BOUNDS, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0.001, 1000), min_size=5, max_size=5), min_size=1, max_size=12), st.integers(1, 6))
def test_rates_stay_positive_and_bounded_and_trials_are_limited(moves: list[list[float]], limit: int) -> None:
    state = LinearState(lambda _, number: moves[number % len(moves)], 5)
    info = state.run(autolr(max_trials=limit, max_rise=20.0), 3)
    rates = np.array([info["rates"][str(block)] for block in range(1, 6)])
    assert ((rates >= 0.999e-6) & (rates <= 0.02001)).all()
    assert max(info["trials"]) <= limit
    assert all(passes <= trials + 1 for passes, trials in zip(info["passes"], info["trials"], strict=True))


def test_composes_with_schedules(synthetic: Data) -> None:
    """Rates are tuned as they are before the schedule's factor, which multiplies all of them."""
    config, strategy = run_config("softmax", optimizer="sgd", lr=0.01, epochs=2, schedule="cosine"), autolr()
    training = make_training(synthetic, strategy, config)
    training.fit()
    rates = {name: values[-1] for name, values in strategy.info()["rates"].items()}
    assert rates == training.lrs()
    assert len(set(rates.values())) > 2
    factor = schedule_factor(config.train, (1 + 3 / 4) / 2)
    groups = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
    assert groups == pytest.approx({name: factor * rate for name, rate in rates.items()})


@pytest.mark.parametrize("optimizer_state", ["fresh", "kept"])
def test_undone_passes_leave_no_trace(synthetic: Data, optimizer_state: str) -> None:
    """The state after an epoch is that of its kept pass alone, with the same rates from the same weights: also BN."""
    config = run_config("softmax", head="autolr", optimizer="sgd", lr=0.01, weight_decay=1e-3)
    strategy = autolr(optimizer_state=optimizer_state, threshold=1.0, max_trials=3)
    training, alone = make_training(synthetic, strategy, config), make_training(synthetic, autolr(), config)
    for state in (training, alone):
        state.train_once()
        state.epoch = 1
    strategy.run_epoch(training.train_once, training)
    info = strategy.info()
    assert info["passes"][0] > 1
    assert training.images_seen == 64 * (1 + info["passes"][0]), "undone passes count"
    if optimizer_state == "fresh":
        alone.optimizer.state.clear()
    alone.set_lrs({name: values[0] for name, values in info["rates"].items()})
    alone.train_once(info["qualities"][0].index(info["quality"][0]))
    assert not differing(state_of(training.model, training.criterion), state_of(alone.model, alone.criterion))


def test_autolr_sorts_what_one_rate_leaves_unsorted(synthetic: Data) -> None:
    """The paper's observation and its cure, on a small network: the variation falls from first to last block."""
    config = run_config("softmax", optimizer="sgd", lr=0.01, epochs=3)
    single = WeightVariation()
    make_training(synthetic, single, config).fit()
    assert max(single.info()["quality"]) < 0.5
    chain = build_strategy("layer_pruning+autolr", StrategyOptions())
    training = make_training(synthetic, chain, config, tiny_embedder())
    training.fit()
    info = chain.info()["autolr"]
    assert len(info["blocks"]) == 6, "two of eight are gone"
    assert all(quality >= threshold for quality, threshold in zip(info["quality"], info["threshold"], strict=True))
    assert all(info["converged"])
    assert training.images_seen == 64 * sum(info["passes"])
    assert info["quality"] == [sorting_quality(values) for values in info["variation"]]


@pytest.mark.parametrize(
    ("optimizer", "rise", "warned"),
    [("adamw", 0.0, True), ("adam", 0.0, True), ("adamw", 3.0, False), ("sgd", 0.0, False)],
)
def test_adaptive_optimisers_are_warned_of_before_the_first_pass(
    optimizer: str, rise: float, warned: bool, synthetic: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    """And `rise` holds all rates below a multiple of those at the start, sorted as they are."""
    strategy = autolr(rise=rise, max_trials=3, threshold=0.99)
    training = make_training(synthetic, strategy, run_config(optimizer=optimizer, epochs=1))
    start = training.lrs()
    training.fit()
    lines = capsys.readouterr().err.splitlines()
    assert ("warning: autolr assumes SGD" in lines[0]) == warned
    if rise:
        assert max(lr / start[name] for name, lr in training.lrs().items()) <= rise * (1 + 1e-9)
        assert strategy.info()["bounds"]["bounded_rates"] > 0
