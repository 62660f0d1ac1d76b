"""Learning rates that differ by block and stay as they are."""

from __future__ import annotations

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.strategies import Strategy
from retrieval_bench.strategies.layerwise_decay import LayerwiseDecay
from retrieval_bench.strategies.low_high import LowHigh
from tests.training.helpers import Data, make_training, run_config, tiny_embedder


def rates(data: Data, strategy: Strategy) -> dict[str, float]:
    return make_training(data, strategy, run_config(lr=1.0, loss_lr=0.5), tiny_embedder(4)).lrs()


def test_layerwise_decay(synthetic: Data) -> None:
    found = rates(synthetic, LayerwiseDecay(LayerwiseDecay.Options(decay=0.5)))
    assert list(found)[:2] == ["stem", "layer1.0"]
    assert list(found.values()) == [*[0.5**power for power in range(8, -1, -1)], 1.0, 0.5]


def test_low_and_high(synthetic: Data) -> None:
    found = rates(synthetic, LowHigh(LowHigh.Options(low=0.1, high=3.0)))
    assert list(found.values()) == [*[0.1] * 5, *[3.0] * 4, 1.0, 0.5]


@pytest.mark.parametrize(
    "strategy", [LayerwiseDecay(LayerwiseDecay.Options(decay=0)), LowHigh(LowHigh.Options(low=-1))]
)
def test_impossible_factors_are_refused(synthetic: Data, strategy: Strategy) -> None:
    with pytest.raises(UserError, match="must"):
        rates(synthetic, strategy)
