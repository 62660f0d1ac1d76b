"""SpotTune, Global-k, and the baselines of their table: what holds before, during and after training."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import RoutedBackbone
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.global_k import GlobalK
from retrieval_bench.strategies.progressive import Progressive
from retrieval_bench.strategies.random_policy import RandomPolicy, RandomRouter
from retrieval_bench.strategies.spottune import DRAWS, EVAL_POLICIES, SpotTune
from retrieval_bench.strategies.stochastic import Stochastic
from retrieval_bench.training.loop import Training
from tests.training.helpers import (
    OPTIONS,
    Data,
    assert_near,
    make_training,
    random_images,
    run_config,
    state_of,
    tiny_embedder,
)

IMAGES = random_images(6, seed=3)


def trained(data: Data, **options: Any) -> tuple[SpotTune, Training, Embedder]:
    strategy = SpotTune(SpotTune.Options(**options))
    training = make_training(data, strategy, run_config(lr=0.01))
    return strategy, training, training.fit().eval()


def untrained(name: str) -> Embedder:
    torch.manual_seed(0)
    return build_embedder(ModelConfig(backbone=name, weights="none"), 64)


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0", "mobilenetv2_100"])
def test_before_training_every_route_gives_what_the_pretrained_network_gives(name: str) -> None:
    model, images = tiny_embedder() if name == "tiny" else untrained(name), random_images(4, side=64)
    with torch.no_grad():
        expected = model(images)
        strategy = SpotTune(SpotTune.Options(eval_policy=",".join(EVAL_POLICIES)))
        routed = strategy.finalize(strategy.prepare(model, images[:2])).eval()
        assert strategy.blocks == [block.name for block in routed.backbone.body] == list(strategy.backbone.routed)
        for _, mode in strategy.eval_modes(routed):
            assert_near(mode.eval()(images), expected, 1e-4)


def test_all_frozen_is_the_pretrained_network_bit_for_bit_also_after_training(synthetic: Data) -> None:
    """With batch norms in training mode, and with the stem, which is frozen; in the layout of trainings."""
    with torch.no_grad():
        expected = tiny_embedder().to(memory_format=torch.channels_last)(IMAGES)  # pyright: ignore[reportCallIssue]
        _, _, model = trained(synthetic, eval_policy="all_frozen")
        assert torch.equal(model(IMAGES), expected)
        _, _, model = trained(synthetic, eval_policy="all_tuned")
        assert not torch.allclose(model(IMAGES), expected), "the copies have moved"
        _, _, model = trained(synthetic, eval_policy="all_frozen", code_compat=True)
        assert not torch.allclose(model(IMAGES), expected), "frozen blocks drift with the batch norms of the code"


def test_policy_has_a_rate_of_its_own_and_learns(synthetic: Data) -> None:
    strategy, training, _ = trained(synthetic, policy_lr=0.02, policy_weight_decay=0.03)
    groups = {group["name"]: group for group in training.optimizer.param_groups}
    assert (groups["policy"]["initial_lr"], groups["policy"]["weight_decay"]) == (0.02, 0.03)
    assert {id(value) for value in groups["policy"]["params"]} == {id(value) for value in strategy.router.parameters()}
    info = strategy.info()
    assert json.dumps(info)
    first, second = info["entropy_per_epoch"]
    assert first != second
    assert strategy.router.seen == 0, "each epoch counts its own decisions"
    assert all(0 <= value <= 1 for row in (first, second, *info["rate_per_epoch"]) for value in row)


def test_each_eval_policy_is_an_eval_mode(synthetic: Data) -> None:
    strategy, _, model = trained(synthetic, eval_policy="majority,argmax,sample,all_frozen")
    majority = tuple(rate > 0.5 for rate in strategy.info()["argmax_rate_per_epoch"][-1])
    assert strategy.router.fixed == majority
    with torch.no_grad():
        before = model(IMAGES)
        modes = [(name, mode(IMAGES)) for name, mode in strategy.eval_modes(model)]
        assert [name for name, _ in modes] == ["argmax", *["sample"] * DRAWS, "all_frozen"]
        assert not torch.equal(modes[1][1], modes[2][1]), "draws differ"
        assert torch.equal(modes[-1][1], tiny_embedder().to(memory_format=torch.channels_last)(IMAGES))  # pyright: ignore
        assert torch.equal(model(IMAGES), before), "the first way is back"


CHAINS = [f"{first}+spottune" for first in ("layer_pruning", "channel_pruning")]
CHAINS += [f"spottune+{last}" for last in ("l2sp", "autolr", "last_k")]
CHAINS += [f"channel_gates+{last}" for last in ("l2sp", "autolr")]
CHAINS += [f"layer_pruning+{last}" for last in ("global_k", "channel_gates", "l2sp+autolr")]


@pytest.mark.parametrize("strategy", CHAINS)
def test_routing_and_pruning_compose(strategy: str, synthetic: Data) -> None:
    built = build_strategy(strategy, OPTIONS)
    model = make_training(synthetic, built, run_config("softmax", optimizer="sgd", lr=0.01)).fit()
    assert model.eval()(IMAGES).isfinite().all()
    assert built.info().keys() >= set(strategy.split("+")) - {"last_k"}


def test_any_backbone_can_be_the_policy() -> None:
    strategy = SpotTune(SpotTune.Options(policy="resnet10t", policy_weights="none"))
    assert strategy.prepare(tiny_embedder(), IMAGES).eval()(IMAGES).shape == (6, 64)
    assert strategy.info()["policy"]["parameters"] > 4e6


def test_what_a_block_owns_beside_its_module_is_frozen_too() -> None:
    """ConvNeXt halves the resolution between its stages; that is one layer for both branches."""
    model = untrained("convnext_atto")
    SpotTune().prepare(model, random_images(2, side=64))
    trained = {name for name, value in model.backbone.net.named_parameters() if value.requires_grad}
    outside = [name for name in trained if ".tuned." not in name]
    assert outside
    assert all(name.startswith(("norm_pre", "head")) for name in outside), "the tail alone"


@pytest.mark.parametrize("strategy", ["spottune", "random_policy", "progressive"])
@pytest.mark.parametrize("name", ["densenet121", "swin_tiny_patch4_window7_224"])
def test_blocks_that_map_no_tensor_to_a_tensor_are_refused(name: str, strategy: str) -> None:
    """DenseNet's layers take lists; Swin's give (B, H, W, C), which routes can use but adapters cannot."""
    model, built = untrained(name), build_strategy(strategy, StrategyOptions())
    if name.startswith("swin") and strategy != "progressive":
        assert built.prepare(model, random_images(2, side=64)).eval()(random_images(3, side=64)).shape == (3, 768)
        return
    with pytest.raises(UserError, match=r"blocks that (map one tensor to another|give feature maps)"):
        built.prepare(model, random_images(2, side=64))


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
