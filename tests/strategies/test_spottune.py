"""SpotTune: what holds before, during and after training."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.base import check_options
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.spottune import DRAWS, EVAL_POLICIES, SpotTune
from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, differing, make_training, random_images, run_config, state_of, tiny_embedder

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
            assert ((mode.eval()(images) - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all()


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


def test_a_pass_that_is_undone_leaves_no_trace(synthetic: Data) -> None:
    """Statistics of the policy are buffers, which a snapshot holds: a repeated epoch gives the same bits."""
    training = make_training(synthetic, SpotTune(), run_config(lr=0.01))
    training.train_once()
    snapshot = training.snapshot()
    training.epoch = 1
    loss = training.train_once()
    first = state_of(training.model, training.criterion)
    training.train_once(attempt=1)
    assert differing(first, state_of(training.model, training.criterion))
    training.restore(snapshot)
    torch.manual_seed(99)
    assert training.train_once() == loss
    assert not differing(first, state_of(training.model, training.criterion))


CHAINS = [f"{first}+spottune" for first in ("layer_pruning", "channel_pruning")]
CHAINS += [f"spottune+{last}" for last in ("l2sp", "autolr", "last_k")]
CHAINS += [f"channel_gates+{last}" for last in ("l2sp", "autolr")]
CHAINS += [f"layer_pruning+{last}" for last in ("global_k", "channel_gates")]


@pytest.mark.parametrize("strategy", CHAINS)
def test_routing_and_pruning_compose(strategy: str, synthetic: Data) -> None:
    options = StrategyOptions(
        channel_gates=ChannelGates.Options(budget=0.95), channel_pruning=ChannelPruning.Options(budget=0.95)
    )
    built = build_strategy(strategy, options)
    model = make_training(synthetic, built, run_config("softmax", optimizer="sgd", lr=0.01)).fit()
    assert model.eval()(IMAGES).isfinite().all()
    assert built.info().keys() >= set(strategy.split("+")) - {"last_k"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_policy": "best"}, "eval-policy best: choose from argmax"),
        ({"eval_policy": "argmax,"}, "choose from argmax"),
        ({"eval_policy": "argmax,majority,majority"}, "each once"),
        ({"eval_policy": "sample,argmax"}, "one draw says little"),
        ({"temperature": 0.0}, "temperature 0.0: must be above 0"),
        ({"policy_weights": "policy.safetensors"}, "policy-weights policy.safetensors: the policy auto starts from"),
        ({"policy": "resnet5"}, "unknown backbone 'resnet5'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    def prepare() -> None:
        check_options("spottune", SpotTune.Options(**options))
        SpotTune(SpotTune.Options(**options)).prepare(tiny_embedder(), IMAGES)

    with pytest.raises(UserError, match=message):
        prepare()


def test_code_compat_needs_batch_norms_that_train(synthetic: Data) -> None:
    with pytest.raises(UserError, match="add --no-freeze-bn"):
        make_training(synthetic, SpotTune(SpotTune.Options(code_compat=True)), run_config(freeze_bn=True))


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
