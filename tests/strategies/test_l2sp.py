"""L2-SP: the penalty, and where it pulls."""

from __future__ import annotations

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.l2sp import L2SP
from tests.training.helpers import Data, flatten, make_training, random_images, run_config, tiny_embedder


def test_penalty_is_zero_at_the_start_and_half_the_squared_distance_after() -> None:
    model = tiny_embedder(dim=4)
    strategy = L2SP(L2SP.Options(alpha=0.5, beta=0.25))
    strategy.parameter_groups(strategy.prepare(model, random_images(2)), [])
    new = sum(float(parameter.detach().square().sum()) for parameter in model.embedding.parameters())
    assert strategy.regularization(model, random_images(2)).item() == pytest.approx(0.125 * new, rel=1e-6), (
        "nothing has moved"
    )
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter += 0.01
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert strategy.regularization(model, random_images(2)).item() == pytest.approx(
        0.25 * count * 1e-4 + 0.125 * new, rel=1e-4
    )


def test_it_pulls_towards_the_start_and_not_towards_zero() -> None:
    model = tiny_embedder()
    strategy = L2SP()
    strategy.parameter_groups(strategy.prepare(model, random_images(2)), [])
    start = flatten(model.backbone).clone()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter += 0.1
    strategy.regularization(model, random_images(2)).backward()
    gradient = torch.cat(
        [parameter.grad.flatten() for parameter in model.backbone.parameters() if parameter.grad is not None]
    )
    torch.testing.assert_close(gradient, 0.1 * (flatten(model.backbone) - start))


def test_it_holds_the_network_near_its_start(synthetic: Data) -> None:
    def distance(alpha: float) -> float:
        strategy = L2SP(L2SP.Options(alpha=alpha))
        make_training(synthetic, strategy, run_config(optimizer="sgd", lr=0.01)).fit()
        return strategy.info()["distance_to_start"]

    assert 0 < distance(10.0) < 0.5 * distance(0.0)


def test_weight_decay_towards_zero_is_off(synthetic: Data) -> None:
    training = make_training(synthetic, L2SP(), run_config(weight_decay=0.1), tiny_embedder(4))
    assert {group["weight_decay"] for group in training.optimizer.param_groups} == {0.0}


def test_it_composes_with_pruning_and_autolr(synthetic: Data) -> None:
    strategy = build_strategy("layer_pruning+l2sp+autolr", StrategyOptions())
    make_training(synthetic, strategy, run_config("softmax", optimizer="sgd", lr=0.01)).fit()
    facts = strategy.info()
    assert facts["l2sp"]["distance_to_start"] > 0
    assert len(facts["autolr"]["blocks"]) == 6


def test_negative_weights_are_refused() -> None:
    with pytest.raises(UserError, match="must not be negative"):
        L2SP(L2SP.Options(alpha=-1)).prepare(tiny_embedder(), random_images(2))
