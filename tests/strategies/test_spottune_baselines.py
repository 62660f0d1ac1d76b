"""The baselines of SpotTune's table that choose or add blocks: stochastic, random policy, progressive networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.routing import RoutedBackbone, recorded_decisions
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.progressive import Progressive
from retrieval_bench.strategies.random_policy import RandomPolicy, RandomRouter
from retrieval_bench.strategies.stochastic import Stochastic
from tests.training.helpers import Data, make_training, random_images, run_config, state_of, tiny_embedder

IMAGES = random_images(6, seed=3)


def test_stochastic_trains_a_share_of_the_blocks_that_the_seed_draws(synthetic: Data) -> None:
    def tuned(share: float, seed: int = 0) -> tuple[str, ...]:
        strategy = Stochastic(Stochastic.Options(share=share))
        training = make_training(synthetic, strategy, replace(run_config(), seed=seed))
        names = strategy.info()["tuned_blocks"]
        assert [group["name"] for group in training.optimizer.param_groups] == [*names, "loss"]
        return tuple(names)

    assert [len(tuned(share)) for share in (0.5, 1.0, 0.01)] == [4, 8, 1]
    assert tuned(0.5) == tuned(0.5)
    assert len({tuned(0.5, seed) for seed in range(4)}) > 1


def test_random_policy_tunes_the_last_blocks_always_and_half_of_the_others(synthetic: Data) -> None:
    strategy = RandomPolicy()
    model = make_training(synthetic, strategy, run_config(lr=0.01)).fit().eval()
    assert isinstance(model.backbone, RoutedBackbone)
    assert list(model.backbone.routed) == strategy.info()["random_blocks"]
    assert strategy.info()["tuned_blocks"] == [block.name for block in model.backbone.body][-3:]
    assert len(model.backbone.routed) == 5
    images = random_images(200, seed=1)
    with recorded_decisions(model) as recorded, torch.no_grad():
        first, again = model(images), model(images.flip(0)).flip(0)
    assert (recorded[0].float().mean(0) - 0.5).abs().max() < 0.15
    torch.testing.assert_close(first, again, rtol=1e-4, atol=1e-4)


def test_random_router_is_random_in_training_and_fixed_at_test() -> None:
    router, images = RandomRouter(5, seed=1), random_images(400, side=4)
    torch.manual_seed(0)
    first, second = router.train()(images), router(images)
    assert not torch.equal(first, second)
    router.eval()
    assert torch.equal(router(images), router(images.flip(0)).flip(0))
    assert not torch.equal(router(images), RandomRouter(5, seed=2).eval()(images))
    for drawn in (first, router(images)):
        assert (drawn.mean(0) - 0.5).abs().max() < 0.12


def test_progressive_starts_from_the_pretrained_features_and_keeps_its_first_column(synthetic: Data) -> None:
    model = Progressive().prepare(tiny_embedder(), IMAGES).eval()
    torch.testing.assert_close(model(IMAGES), tiny_embedder()(IMAGES), rtol=1e-4, atol=1e-4)
    training = make_training(synthetic, Progressive(), run_config(lr=0.01))
    before = state_of(training.model)
    after = state_of(training.fit())
    frozen = {key for key in before if ".frozen." in key}
    assert len(frozen) == sum(".new." in key for key in before) > 0
    assert all(before[key].equal(after[key]) for key in frozen)
    assert all(not before[key].equal(after[key]) for key in before if key.endswith("adapter.2.weight"))


def test_progressive_carries_the_features_of_the_frozen_column_over() -> None:
    """A change of the frozen column reaches the output through the adapters alone."""
    model = Progressive().prepare(tiny_embedder(), IMAGES).eval()
    block: Any = model.backbone.net.get_submodule(model.backbone.body[2].name)
    assert block.adapter[0].out_channels == 4, "a quarter of 16"
    with torch.no_grad():
        before = model(IMAGES)
        for parameter in block.frozen.parameters():
            parameter += 0.1
        torch.testing.assert_close(model(IMAGES), before, rtol=0, atol=0)
        block.adapter[2].weight += 0.1
        assert not torch.allclose(model(IMAGES), before)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(UserError, match="the backbone has 8 blocks; 0 to 7"):
        RandomPolicy(RandomPolicy.Options(last=8)).prepare(tiny_embedder(), IMAGES)
    model = build_embedder(ModelConfig(backbone="vit_tiny_patch16_224", weights="none"), 32)
    with pytest.raises(UserError, match="feature maps"):
        Progressive().prepare(model, IMAGES)
