"""Stochastic fine-tuning: how many blocks train, and which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.stochastic import Stochastic
from tests.training.helpers import Data, make_training, run_config


def tuned(data: Data, share: float, seed: int = 0) -> list[str]:
    strategy = Stochastic(Stochastic.Options(share=share))
    training = make_training(data, strategy, replace(run_config(), seed=seed))
    chosen = strategy.info()["tuned_blocks"]
    groups = {group["name"] for group in training.optimizer.param_groups}
    assert groups == {*chosen, "loss"}, "stem and other blocks are frozen"
    return chosen


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (1.0, 8), (0.01, 1)])
def test_share_of_the_blocks_that_train(synthetic: Data, share: float, count: int) -> None:
    assert len(tuned(synthetic, share)) == count


def test_blocks_are_drawn_from_the_seed(synthetic: Data) -> None:
    drawn = [tuned(synthetic, 0.5, seed) for seed in range(4)]
    assert drawn[0] == tuned(synthetic, 0.5, 0)
    assert len({tuple(names) for names in drawn}) > 1


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_impossible_shares_are_refused(synthetic: Data, share: float) -> None:
    with pytest.raises(UserError, match=r"--stochastic\.share"):
        tuned(synthetic, share)
