"""Rollback: what is put back, what is kept, and at which rates."""

from __future__ import annotations

from torch import Tensor

from retrieval_bench.strategies.base import EpochState, TrainOnce
from retrieval_bench.strategies.rollback import Rollback
from tests.training.helpers import Data, make_training, run_config, state_of, tiny_embedder


class Watched(Rollback):
    """Keeps the network's state, the rates and the size of the optimiser's state when each pass starts."""

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        self.seen: list[tuple[dict[str, Tensor], dict[str, float], int]] = getattr(self, "seen", [])

        def watched(attempt: int = 0) -> float:
            self.seen.append((state_of(state.model), state.lrs(), len(state.optimizer.state)))
            return train_once(attempt)

        return super().run_epoch(watched, state)


def test_rollback_returns_the_higher_blocks_to_their_start(synthetic: Data) -> None:
    """Eight blocks in four periods of two epochs: kept are the stem, then two blocks more in each period."""
    strategy = Watched()
    training = make_training(synthetic, strategy, run_config(epochs=8, lr=0.01, optimizer="sgd"), tiny_embedder(4))
    names = [block.name for block in training.model.backbone.body]
    training.fit()
    assert len(strategy.seen) == 8
    start, lrs, _ = strategy.seen[0]
    for epoch, kept in ((2, 0), (4, 2), (6, 4)):
        state, now, remembered = strategy.seen[epoch]
        before = strategy.seen[epoch - 1][0]
        same = {name for name in names if all(state[key].equal(start[key]) for key in state if f".{name}." in key)}
        assert same == set(names[kept:])
        assert not state["0.backbone.net.conv1.weight"].equal(start["0.backbone.net.conv1.weight"])
        assert not state["0.embedding.weight"].equal(start["0.embedding.weight"])
        assert now == {name: lr * (0.1 if name in ("stem", *names[:kept]) else 1) for name, lr in lrs.items()}
        assert remembered == 0, "momentum starts at zero"
        assert any(not before[key].equal(start[key]) for key in before), "it had moved"
    assert [entry["epoch"] for entry in strategy.info()["periods"]] == [2, 4, 6]
