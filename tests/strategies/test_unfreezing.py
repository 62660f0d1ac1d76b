"""Strategies that open the network step by step: which blocks move in which epoch, and what an epoch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import EpochState, Strategy
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.frozen import Frozen
from retrieval_bench.strategies.gradual_unfreezing import GradualUnfreezing
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.strategies.lp_ft import LPFT
from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, differing, make_training, run_config, state_of, tiny_embedder


class Moved(Strategy):
    """Notes in which epoch each block's tensors changed, buffers included."""

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[set[str]] = []

    def before_training(self, train_once: Any, state: EpochState) -> None:
        self.before = state_of(state.model)

    def end_epoch(self, state: EpochState) -> None:
        after = state_of(state.model)
        names = [name.removeprefix("0.").removeprefix("backbone.net.") for name in differing(self.before, after)]
        self.moved.append({".".join(name.split(".")[: 2 if name.startswith("layer") else 1]) for name in names})
        self.before = after


def moved(data: Data, strategy: Strategy, epochs: int) -> list[set[str]]:
    watch = Moved()
    chain = Chain({"strategy": strategy, "watch": watch})
    make_training(data, chain, run_config(epochs=epochs), tiny_embedder(4)).fit()
    return watch.moved


BLOCKS = [f"layer{stage}.{index}" for stage in (4, 3, 2, 1) for index in (1, 0)]
STEM = {"conv1", "bn1"}


@pytest.mark.parametrize(
    ("every", "epochs", "counts"),
    [
        (1, 10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]),  # the paper's: 8 blocks and the stem
        (1, 5, [2, 4, 6, 8, 9]),
        (2, 6, [3, 3, 6, 6, 9, 9]),
        (2, 5, [3, 3, 6, 6, 9]),
    ],
)
def test_blocks_are_opened_from_the_last_on(every: int, epochs: int, counts: list[int], synthetic: Data) -> None:
    """The 9 units here are the blocks and the stem; embedding and proxies move from the beginning."""
    strategy = GradualUnfreezing(GradualUnfreezing.Options(every=every))
    seen = moved(synthetic, strategy, epochs)
    for names, count in zip(seen, counts, strict=True):
        assert names == {*BLOCKS[:count], *(STEM if count == 9 else ()), "embedding"}
    first = {name: counts.index(next(n for n in counts if n > index)) for index, name in enumerate([*BLOCKS, "stem"])}
    assert strategy.info() == {"opened_in_epoch": first}


def test_linear_probing_moves_the_embedding_alone_then_all_move(synthetic: Data) -> None:
    seen = moved(synthetic, LPFT(LPFT.Options(probe_epochs=2)), 3)
    assert seen == [{"embedding"}, {"embedding"}, {*BLOCKS, *STEM, "embedding"}]


def trained(data: Data, strategy: Strategy, **more: Any) -> Training:
    return make_training(data, strategy, run_config(**more), tiny_embedder(4))


def continued(data: Data, before: Training, strategy: Strategy, **more: Any) -> Training:
    """Another strategy's training of the second epoch from where `before` is, with what its optimiser knows."""
    training = trained(data, strategy, **more)
    for name in ("model", "criterion"):
        getattr(training, name).load_state_dict(getattr(before, name).state_dict())
    for old, new in zip(
        (*before.model.parameters(), *before.criterion.parameters()),
        (*training.model.parameters(), *training.criterion.parameters()),
        strict=True,
    ):
        if old in before.optimizer.state:
            training.optimizer.state[new] = before.optimizer.state[old]
    training.epoch = 1
    training.train_once()
    return training


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize(
    ("strategy", "first", "second"),
    [
        (LPFT(), Frozen(), Strategy()),
        (GradualUnfreezing(), LastK(LastK.Options(k=3)), LastK(LastK.Options(k=6))),
    ],
)
def test_two_epochs_are_those_of_two_plain_trainings(
    optimizer: str, strategy: Strategy, first: Strategy, second: Strategy, synthetic: Data
) -> None:
    """Weights that were frozen begin without momentum, the others keep theirs."""
    more = {"optimizer": optimizer, "weight_decay": 0.1}
    training = trained(synthetic, strategy, epochs=3, **more)
    losses = []
    for epoch in range(2):
        training.epoch = epoch
        losses.append(strategy.run_epoch(training.train_once, training))
    before = trained(synthetic, first, epochs=3, **more)
    assert before.train_once() == losses[0]
    expected = continued(synthetic, before, second, epochs=3, **more)
    assert not differing(state_of(expected.model, expected.criterion), state_of(training.model, training.criterion))


@pytest.mark.parametrize(
    ("strategy", "saved"),
    [
        (LPFT(LPFT.Options(probe_epochs=3)), 2 * 64),
        (GradualUnfreezing(GradualUnfreezing.Options(every=2)), 2 * 64),  # two borders, then the stem is open
    ],
)
def test_what_a_frozen_phase_makes_of_the_images_is_computed_once(
    strategy: Strategy, saved: int, synthetic: Data
) -> None:
    outcomes = []
    for limit in (0.0, 1e9):
        config = run_config(epochs=6).changed(data__views=1)
        training = make_training(synthetic, strategy, config, tiny_embedder(4), feature_cache=limit)
        training.fit()
        outcomes.append((state_of(training.model, training.criterion), training.history))
        assert training.prefix_saved == (saved if limit else 0)
    assert not differing(outcomes[0][0], outcomes[1][0])
    assert outcomes[0][1] == outcomes[1][1]


def test_probing_needs_something_new(synthetic: Data) -> None:
    with pytest.raises(UserError, match=r"^lp_ft trains an embedding layer .* give --embedding-dim, or a --loss"):
        make_training(synthetic, LPFT(), run_config("triplet")).fit()
    torch.manual_seed(0)
    make_training(synthetic, LPFT(), run_config("triplet"), tiny_embedder(4)).fit()
