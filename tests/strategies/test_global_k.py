"""SpotTune Global-k: exactly k tuned blocks, and nothing else of the machinery is left."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.strategies.global_k import GlobalK
from tests.training.helpers import Data, make_training, random_images, run_config, state_of, tiny_embedder


@pytest.mark.parametrize(("k", "decide_at"), [(1, 0.0), (3, 0.5), (8, 0.5), (3, 1.0)])
def test_k_blocks_are_tuned_and_the_rest_is_the_pretrained_network(k: int, decide_at: float, synthetic: Data) -> None:
    strategy = GlobalK(GlobalK.Options(k=k, decide_at=decide_at))
    model = make_training(synthetic, strategy, run_config(lr=0.01)).fit()
    assert type(model.backbone) is Backbone
    assert cost.parameters(model) == cost.parameters(tiny_embedder()), "neither copies nor policy are deployed"
    before, after = state_of(tiny_embedder()), state_of(model)
    assert before.keys() == after.keys()
    moved = {
        block.name
        for block in model.backbone.body
        for name in before
        if f".{block.name}." in name and not before[name].equal(after[name])
    }
    assert sorted(moved) == strategy.info()["tuned_blocks"]
    assert len(moved) == k
    rates = dict(zip(strategy.blocks, strategy.info()["rate_per_epoch"][-1], strict=True))
    assert all(rates[tuned] >= rates[other] for tuned in moved for other in rates.keys() - moved)
    assert len(strategy.info()["rate_per_epoch"]) == (2 if decide_at == 1 else 1), "then without policy"


def test_penalty_is_that_of_the_formula() -> None:
    """At the decisions of one batch, and with a gradient towards fewer tuned blocks when there are too many."""
    strategy = GlobalK(GlobalK.Options(k=2, count_weight=0.5, entropy_weight=0.25))
    model = strategy.prepare(tiny_embedder(), random_images(2))
    assert strategy.regularization(model, random_images(2)) is None, "no pass yet"
    decisions = torch.tensor([[1.0] * 8, [1.0, 0.0] * 4], requires_grad=True)
    strategy.backbone.decisions = decisions
    penalty: Any = strategy.regularization(model, random_images(2))
    assert penalty.item() == pytest.approx(0.5 * (6 - 2) ** 2 + 0.25 * 4 * math.log(2), abs=1e-4)
    penalty.backward()
    assert decisions.grad is not None
    assert (decisions.grad[:, 1::2] > 0).all()


def test_penalty_is_finite_in_bfloat16_where_a_block_is_tuned_for_all_images() -> None:
    strategy = GlobalK()
    model = strategy.prepare(tiny_embedder(), random_images(2)).train()
    with torch.no_grad():
        strategy.router.head.bias.add_(torch.tensor([0.0, 50.0]).repeat(8))
    with torch.autocast("cpu", torch.bfloat16):
        model(random_images(4))
    penalty: Any = strategy.regularization(model, random_images(4))
    assert penalty.item() == pytest.approx(0.1 * (8 - 3) ** 2, rel=1e-3)


@pytest.mark.parametrize("k", [1, 6])
def test_penalties_drive_the_count_towards_k(k: int, synthetic: Data) -> None:
    """With the task out of the way (no rate for the network) the policy, which starts near 4 of 8 blocks, tunes about
    k."""
    options = GlobalK.Options(k=k, count_weight=1.0, entropy_weight=0.0, decide_at=1.0, policy_lr=0.05, temperature=1.0)
    strategy = GlobalK(options)
    make_training(synthetic, strategy, run_config(lr=0.0, epochs=8)).fit()
    assert abs(sum(strategy.info()["rate_per_epoch"][-1]) - k) < 0.8


def test_ties_go_to_later_blocks_and_no_training_still_gives_k() -> None:
    strategy = GlobalK(GlobalK.Options(k=2))
    strategy.finalize(strategy.prepare(tiny_embedder(), random_images(2)))
    assert strategy.info()["tuned_blocks"] == strategy.blocks[-2:]


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(UserError, match="the backbone has 8 blocks; choose 1 to 8"):
        GlobalK(GlobalK.Options(k=9)).prepare(tiny_embedder(), random_images(2))
