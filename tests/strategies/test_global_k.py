"""SpotTune Global-k: exactly k tuned blocks, and nothing else of the machinery is left."""

from __future__ import annotations

import pytest
import torch

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.routing import RoutedBackbone
from retrieval_bench.strategies.global_k import GlobalK
from tests.training.helpers import Data, make_training, random_images, run_config, state_of, tiny_embedder


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("decide_at", [0.0, 0.5, 1.0])
def test_exactly_k_blocks_are_tuned_and_the_rest_is_the_pretrained_network(
    k: int, decide_at: float, synthetic: Data
) -> None:
    strategy = GlobalK(GlobalK.Options(k=k, decide_at=decide_at))
    model = make_training(synthetic, strategy, run_config(lr=0.01)).fit()
    assert not isinstance(model.backbone, RoutedBackbone)
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


def test_penalty_is_that_of_the_formula() -> None:
    """At the decisions of one batch, and with a gradient towards fewer tuned blocks when there are too many."""
    strategy = GlobalK(GlobalK.Options(k=2, count_weight=0.5, entropy_weight=0.25))
    model = strategy.prepare(tiny_embedder(), random_images(2))
    assert strategy.regularization(model, random_images(2)) is None, "no pass yet"
    decisions = torch.tensor([[1.0] * 8, [1.0, 0.0] * 4], requires_grad=True)
    strategy.backbone.decisions = decisions
    penalty = strategy.regularization(model, random_images(2))
    assert penalty is not None
    entropy = 4 * torch.log(torch.tensor(2.0)) + 4 * 0.0
    torch.testing.assert_close(penalty, 0.5 * (6.0 - 2) ** 2 + 0.25 * entropy, rtol=1e-4, atol=1e-4)
    penalty.backward()
    assert decisions.grad is not None
    assert (decisions.grad[:, 1::2] > 0).all()


def test_penalty_is_a_number_in_bfloat16_where_a_block_is_tuned_for_all_images() -> None:
    strategy = GlobalK()
    model = strategy.prepare(tiny_embedder(), random_images(2)).train()
    with torch.no_grad():
        strategy.router.head.bias.add_(torch.tensor([0.0, 50.0]).repeat(8))
    with torch.autocast("cpu", torch.bfloat16):
        model(random_images(4))
    assert strategy.backbone.decisions is not None
    assert strategy.backbone.decisions.min() == 1
    penalty = strategy.regularization(model, random_images(4))
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.1 * (8 - 3) ** 2, rel=1e-3)


@pytest.mark.parametrize("k", [1, 6])
def test_penalties_drive_the_count_towards_k(k: int, synthetic: Data) -> None:
    """With the task out of the way (no rate for the network) the policy, which starts near 4 of 8 blocks, tunes about k."""
    options = GlobalK.Options(k=k, count_weight=1.0, entropy_weight=0.0, decide_at=1.0, policy_lr=0.05, temperature=1.0)
    strategy = GlobalK(options)
    make_training(synthetic, strategy, run_config(lr=0.0, epochs=8)).fit()
    assert abs(sum(strategy.info()["rate_per_epoch"][-1]) - k) < 0.8


def test_ties_go_to_later_blocks_and_no_training_still_gives_k() -> None:
    strategy = GlobalK(GlobalK.Options(k=2))
    strategy.finalize(strategy.prepare(tiny_embedder(), random_images(2)))
    assert strategy.info()["tuned_blocks"] == strategy.blocks[-2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "choose 1 to 8"),
        ({"k": 9}, "has 8 blocks"),
        ({"decide_at": 1.5}, "from 0 to 1"),
        ({"count_weight": -1.0}, "not negative"),
    ],
)
def test_wrong_options(options: dict[str, float], message: str) -> None:
    strategy = GlobalK(GlobalK.Options(**options))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=message):
        strategy.prepare(tiny_embedder(), random_images(2))
