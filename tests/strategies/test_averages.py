"""Weights that are deployed in place of the trained ones: ``ema`` and ``wise_ft``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import split_names
from retrieval_bench.strategies.autolr import AutoLR
from retrieval_bench.strategies.base import check_options
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.ema import EMA
from retrieval_bench.strategies.global_k import GlobalK
from retrieval_bench.strategies.wise_ft import SHARES, WiseFT
from tests.training.helpers import Data, differing, make_training, run_config, state_of, tiny_embedder


def floats(model: Embedder) -> dict[str, Tensor]:
    state = {name.removeprefix("0."): value for name, value in state_of(model).items()}
    return {name: value for name, value in state.items() if value.is_floating_point() and "average" not in name}


class Watched(EMA):
    """Keeps the weights after every step that it averages."""

    def parameter_groups(self, model: Embedder, groups: Any) -> Any:
        self.seen = [floats(model)]
        return super().parameter_groups(model, groups)

    def after_step(self, model: Embedder) -> None:
        super().after_step(model)
        self.seen.append(floats(model))


@pytest.mark.parametrize(("decay", "warm_up"), [(0.3, True), (0.9, True), (0.9, False)])
def test_the_average_is_the_sum_of_its_definition(decay: float, warm_up: bool, synthetic: Data) -> None:
    """In float64, each step with its whole weight. Batch norms train here, and their statistics are averaged too."""
    strategy = Watched(EMA.Options(decay=decay, warm_up=warm_up))
    training = make_training(synthetic, strategy, run_config(lr=1e-2), tiny_embedder(4))
    finished = training.fit()
    decays = [min(decay, (1 + step) / (10 + step)) if warm_up else decay for step in range(8)]
    weights = [0.0] * 9
    for step, value in enumerate([1.0, *(1 - each for each in decays)]):
        weights[step] = value * float(torch.tensor(decays[step:], dtype=torch.float64).prod())
    assert sum(weights) == pytest.approx(1)
    for name, value in floats(finished).items():
        expected = sum(weight * state[name].double() for weight, state in zip(weights, strategy.seen, strict=True))
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)
    deployed = state_of(finished)
    ((mode, raw),) = ((mode, floats(model)) for mode, model in strategy.eval_modes(finished))
    assert (mode, differing(raw, strategy.seen[-1])) == ("raw", set())
    assert not differing(deployed, state_of(finished)), "evaluation changes nothing"
    assert strategy.info() == {"averaged_steps": 8}
    assert not [name for name in deployed if "average" in name]


def test_a_rejected_pass_leaves_no_trace_in_the_average(synthetic: Data) -> None:
    class Rejecting(AutoLR):
        def run_epoch(self, train_once: Any, state: Any) -> float:
            before = state.snapshot()
            train_once(1)
            state.restore(before)
            return train_once()

    plain, rejecting = (
        make_training(synthetic, Chain({"autolr": kind(), "ema": EMA()}), run_config(lr=1e-2)).fit()
        for kind in (type("Plain", (AutoLR,), {"run_epoch": lambda _, train_once, state: train_once()}), Rejecting)
    )
    assert not differing(state_of(plain), state_of(rejecting))


def tuned_by_wise_ft(data: Data, alpha: str, **more: Any) -> tuple[WiseFT, Any]:
    strategy = WiseFT(WiseFT.Options(alpha=alpha))
    training = make_training(data, strategy, run_config(lr=1e-2, **more), tiny_embedder(4))
    training.fit()
    return strategy, training


def test_weights_between_the_pretrained_and_the_tuned_ones(synthetic: Data) -> None:
    """Each point of the curve against a standard training; the embedding layer is the tuned one at every point."""
    start, tuned = (
        floats(tiny_embedder(4)),
        floats(make_training(synthetic, None, run_config(lr=1e-2), tiny_embedder(4)).fit()),
    )
    strategy, training = tuned_by_wise_ft(synthetic, "0.3")
    deployed = state_of(training.embedder)
    curve = {mode: floats(model) for mode, model in strategy.eval_modes(training.embedder)}
    assert list(curve) == [f"alpha={alpha:g}" for alpha in SHARES]
    for alpha, values in zip(SHARES, curve.values(), strict=True):
        for name, value in values.items():
            share = alpha if name.startswith("backbone.") else 1
            expected = (1 - share) * start[name].double() + share * tuned[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert not differing(curve["alpha=1"], tuned)
    assert not differing(floats(training.embedder), curve["alpha=0.3"])
    assert not differing(deployed, state_of(training.embedder)), "evaluation changes nothing"
    assert strategy.info() == {"alpha": 0.3}


def test_alpha_is_chosen_in_a_training_of_its_own(synthetic: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training that follows is that without a choice, bit for bit, and everything counts."""
    strategy, training = tuned_by_wise_ft(synthetic, "auto", schedule="cosine")
    recalls = strategy.info()["held_out_recall_at_1"]
    assert list(recalls) == [str(alpha) for alpha in SHARES]
    best = next(alpha for alpha in SHARES if recalls[str(alpha)] == max(recalls.values()))
    assert strategy.info()["alpha"] == best
    _, other = tuned_by_wise_ft(synthetic, str(best), schedule="cosine")
    assert not differing(state_of(other.embedder), state_of(training.embedder))
    assert other.history == training.history
    classes, images = 8, 64
    held_out = images // classes * round(0.2 * classes)
    assert training.images_seen == other.images_seen + 2 * (images - held_out) + len(SHARES) * held_out


def test_one_average_per_chain_and_before_blocks_are_put_back(synthetic: Data) -> None:
    with pytest.raises(UserError, match="ema and wise_ft both deploy other weights"):
        split_names("ema+wise_ft")
    for alpha in ("half", "1.5", "nan"):
        with pytest.raises(UserError, match=r"--wise-ft.alpha .*: must be auto, or a number from 0 to 1"):
            check_options("wise_ft", WiseFT.Options(alpha=alpha))
    chain = Chain({"global_k": GlobalK(GlobalK.Options(k=2)), "wise_ft": WiseFT(WiseFT.Options(alpha="0"))})
    model = tiny_embedder()
    start = state_of(model)
    finished = make_training(synthetic, chain, run_config(lr=1e-2), model).fit()
    statistics = {name for name in start if "running" in name or "num_batches" in name}
    assert differing(start, state_of(finished)) <= statistics
    assert list(chain.eval_modes(finished)) == []
