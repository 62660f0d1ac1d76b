"""Rollback and what cannot be combined: what each promises beyond the shared suite."""

from __future__ import annotations

import pytest
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce
from retrieval_bench.strategies.rollback import Rollback
from tests.training.helpers import Data, make_training, random_images, run_config, state_of, tiny_embedder

IMAGES = random_images(6, seed=3)


class Watched(Rollback):
    """Notes the network's state when each pass starts."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        self.seen: list[tuple[dict[str, Tensor], dict[str, float], int]] = getattr(self, "seen", [])

        def noted(attempt: int = 0) -> float:
            self.seen.append((state_of(state.model), state.lrs(), len(state.optimizer.state)))
            return train_once(attempt)

        return super().run_epoch(noted, state)


def test_rollback_returns_the_higher_blocks_to_their_start(synthetic: Data) -> None:
    """Eight blocks in four periods of two epochs: kept are the stem, then two blocks more in each period."""
    strategy = Watched()
    training = make_training(synthetic, strategy, run_config(epochs=8, lr=0.01, optimizer="sgd"), tiny_embedder(4))
    names = [block.name for block in training.model.backbone.body]
    training.fit()
    assert len(strategy.seen) == 8
    start, rates, _ = strategy.seen[0]
    for epoch, kept in ((2, 0), (4, 2), (6, 4)):
        state, now, remembered = strategy.seen[epoch]
        before = strategy.seen[epoch - 1][0]
        same = {name for name in names if all(state[key].equal(start[key]) for key in state if f".{name}." in key)}
        assert same == set(names[kept:])
        assert not state["0.backbone.net.conv1.weight"].equal(start["0.backbone.net.conv1.weight"])
        assert not state["0.embedding.weight"].equal(start["0.embedding.weight"])
        assert now == {name: rate * (0.1 if name in ("stem", *names[:kept]) else 1) for name, rate in rates.items()}
        assert remembered == 0, "momentum starts at zero"
        assert any(not before[key].equal(start[key]) for key in before), "it had moved"
    assert [entry["epoch"] for entry in strategy.info()["periods"]] == [2, 4, 6]


def test_rollback_needs_an_epoch_per_period(capsys: pytest.CaptureFixture[str]) -> None:
    from retrieval_bench.cli import main

    assert main(["run", "--dataset", "synthetic", "--strategy", "rollback", "--epochs", "3"]) == 2
    assert "--epochs 3: rollback needs at least 4" in capsys.readouterr().err
    with pytest.raises(UserError, match="at least 2"):
        Rollback(Rollback.Options(periods=1)).prepare(tiny_embedder(), IMAGES)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("spottune+progressive", "both rebuild the blocks"),
        ("random_policy+global_k", "both rebuild the blocks"),
        ("rollback+autolr", "both decide how an epoch is run"),
        ("spottune+layer_pruning", r"layer_pruning must come first: --strategy layer_pruning\+spottune"),
    ],
)
def test_what_cannot_be_combined(strategy: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_strategy(strategy, StrategyOptions())


def test_end_of_an_epoch_is_told_to_every_part(synthetic: Data) -> None:
    from retrieval_bench.strategies.chain import Chain

    class Counting(Strategy):
        def __init__(self) -> None:
            super().__init__()
            self.epochs: list[int] = []

        def end_epoch(self, state: EpochState) -> None:
            self.epochs.append(state.epoch)

    first, second = Counting(), Counting()
    make_training(synthetic, Chain({"first": first, "second": second}), run_config()).fit()
    assert first.epochs == second.epochs == [0, 1]
