"""SpotTune: what holds before, during and after training."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.routing import RoutedBackbone
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.spottune import DRAWS, EVAL_POLICIES, SpotTune
from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, differing, make_training, random_images, run_config, state_of, tiny_embedder

IMAGES = random_images(6, seed=3)


def prepared(**options: object) -> tuple[SpotTune, nn.Module]:
    torch.manual_seed(0)
    strategy = SpotTune(SpotTune.Options(**options))  # pyright: ignore[reportArgumentType]
    return strategy, strategy.prepare(tiny_embedder(), random_images(2)).eval()


def trained(data: Data, **options: object) -> tuple[SpotTune, Training, nn.Module]:
    strategy = SpotTune(SpotTune.Options(**options))  # pyright: ignore[reportArgumentType]
    training = make_training(data, strategy, run_config(lr=0.01))
    return strategy, training, training.fit().eval()


def test_before_training_the_output_does_not_depend_on_the_policy() -> None:
    strategy, model = prepared()
    expected = tiny_embedder()(IMAGES)
    routers = [strategy.router.argmax, lambda: strategy.router.sample(3)]
    routers += [lambda tuned=tuned: setattr(strategy.router, "fixed", (tuned,) * 8) for tuned in (True, False)]
    with torch.no_grad():
        for choose in routers:
            choose()
            torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-4)


def test_all_frozen_is_the_pretrained_network_bit_for_bit_before_and_after_training(synthetic: Data) -> None:
    """Also with batch norms in training mode and with the stem, which is frozen. In the layout of trainings, which decides rounding."""
    with torch.no_grad():
        expected = tiny_embedder().to(memory_format=torch.channels_last)(IMAGES)  # pyright: ignore[reportCallIssue]
        _, _, model = trained(synthetic, eval_policy="all_frozen")
        assert torch.equal(model(IMAGES), expected)
        _, _, model = trained(synthetic, eval_policy="all_tuned")
        assert not torch.allclose(model(IMAGES), expected), "the copies have moved"


def test_code_compat_lets_frozen_blocks_drift(synthetic: Data) -> None:
    with torch.no_grad():
        _, _, model = trained(synthetic, eval_policy="all_frozen", code_compat=True)
        assert not torch.allclose(model(IMAGES), tiny_embedder()(IMAGES))


def test_policy_has_a_rate_of_its_own_and_learns(synthetic: Data) -> None:
    strategy, training, _ = trained(synthetic, policy_lr=0.02, policy_weight_decay=0.03)
    groups = {group["name"]: group for group in training.optimizer.param_groups}
    assert (groups["policy"]["initial_lr"], groups["policy"]["weight_decay"]) == (0.02, 0.03)
    assert {id(value) for value in groups["policy"]["params"]} == {id(value) for value in strategy.router.parameters()}
    assert "embedding" not in groups
    facts = strategy.info()
    assert len(facts["rate_per_epoch"]) == len(facts["entropy_per_epoch"]) == 2
    assert all(
        0 <= value <= 1
        for rows in (facts["rate_per_epoch"], facts["entropy_per_epoch"])
        for row in rows
        for value in row
    )
    assert facts["entropy_per_epoch"][0] != facts["entropy_per_epoch"][1]
    assert json.dumps(facts)


def test_each_way_to_route_is_a_variant(synthetic: Data) -> None:
    strategy, _, model = trained(synthetic, eval_policy="majority,argmax,sample,all_frozen")
    with torch.no_grad():
        before = model(IMAGES)
        found = [(name, variant(IMAGES)) for name, variant in strategy.eval_modes(model)]  # pyright: ignore[reportArgumentType]
        assert [name for name, _ in found] == ["argmax", *["sample"] * DRAWS, "all_frozen"]
        assert not torch.equal(found[1][1], found[2][1]), "draws differ"
        assert torch.equal(model(IMAGES), before), "the first way is back"
    majority = tuple(rate > 0.5 for rate in strategy.info()["argmax_rate_per_epoch"][-1])
    assert strategy.router.fixed == majority


def test_a_pass_that_is_undone_leaves_no_trace(synthetic: Data) -> None:
    """Statistics of the policy are buffers, so that a snapshot holds them; an epoch that is repeated from one gives the same bits."""
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


@pytest.mark.parametrize(
    "strategy",
    ["layer_pruning+spottune", "spottune+l2sp", "spottune+autolr", "spottune+last_k", "layer_pruning+global_k"],
)
def test_it_composes(strategy: str, synthetic: Data) -> None:
    built = build_strategy(strategy, StrategyOptions())
    training = make_training(synthetic, built, run_config("softmax", optimizer="sgd", lr=0.01))
    model = training.fit()
    assert model.eval()(IMAGES).isfinite().all()
    assert copy.deepcopy(model)(IMAGES).shape == (6, model.dim)
    assert built.info()[strategy.split("+")[0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_policy": "best"}, "eval-policy best: choose from argmax"),
        ({"eval_policy": "argmax,"}, "choose from argmax"),
        ({"eval_policy": "argmax,majority,majority"}, "each once"),
        ({"eval_policy": "sample,argmax"}, "one draw says little"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"policy_lr": -1.0}, "not negative"),
        ({"policy": "resnet5"}, "resnet"),
        (
            {"policy_weights": "policy.safetensors"},
            "policy-weights policy.safetensors: the policy auto starts from random weights",
        ),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(**options)


def test_code_compat_needs_batch_norms_that_train(synthetic: Data) -> None:
    with pytest.raises(UserError, match="add --no-freeze-bn"):
        make_training(synthetic, SpotTune(SpotTune.Options(code_compat=True)), run_config(freeze_bn=True))


def test_any_backbone_can_be_the_policy() -> None:
    strategy, model = prepared(policy="resnet10t", policy_weights="none")
    assert model(IMAGES).shape == (6, 64)
    assert strategy.info()["policy"]["parameters"] > 4e6


def test_what_a_block_owns_beside_its_module_is_frozen_too() -> None:
    """ConvNeXt halves the resolution between its stages; that is one layer for both branches."""
    from retrieval_bench.models.build import build_embedder
    from retrieval_bench.sections import ModelConfig

    model = build_embedder(ModelConfig(backbone="convnext_atto", weights="none"), 64)
    images = random_images(3, side=64)
    with torch.no_grad():
        expected = model(images)
    strategy = SpotTune()
    strategy.prepare(model, images[:2])
    outside = [
        name for name, value in model.backbone.net.named_parameters() if value.requires_grad and ".tuned." not in name
    ]
    assert all(name.startswith(("norm_pre", "head")) for name in outside), "the tail alone"
    model(images).sum().backward()
    with torch.no_grad():
        for name, value in model.backbone.net.named_parameters():
            if value.requires_grad and name not in outside:
                value -= 0.1 * (value.grad if value.grad is not None else 1.0)
        strategy.router.fixed = (False,) * len(strategy.blocks)
        assert torch.equal(model.eval()(images), expected)


@pytest.mark.parametrize("strategy", ["spottune", "random_policy", "progressive"])
@pytest.mark.parametrize("name", ["densenet121", "swin_tiny_patch4_window7_224"])
def test_blocks_that_map_no_tensor_to_a_tensor_are_refused(name: str, strategy: str) -> None:
    """DenseNet's layers take lists; Swin's give height, width, channels, which is nothing to routes but to adapters."""
    from retrieval_bench.config import ModelConfig
    from retrieval_bench.models.build import build_embedder

    model = build_embedder(ModelConfig(backbone=name, weights="none"), 64)
    built = build_strategy(strategy, StrategyOptions())
    if name.startswith("swin") and strategy != "progressive":
        assert built.prepare(model, random_images(2, side=64)).eval()(random_images(3, side=64)).shape == (3, 768)
        return
    with pytest.raises(UserError, match=r"blocks that (map one tensor to another|give feature maps)"):
        built.prepare(model, random_images(2, side=64))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet50", "mobilenetv2_100"])
def test_other_backbones(name: str) -> None:
    """Before training every route gives what the pretrained network gives."""
    from retrieval_bench.config import ModelConfig
    from retrieval_bench.models.build import build_embedder

    torch.manual_seed(0)
    model = build_embedder(ModelConfig(backbone=name, weights="none"), 64)
    images = random_images(4, side=64)
    with torch.no_grad():
        expected = model(images)
        strategy = SpotTune(SpotTune.Options(eval_policy=",".join(EVAL_POLICIES)))
        routed = strategy.finalize(strategy.prepare(model, images[:2])).eval()
        assert isinstance(routed.backbone, RoutedBackbone)
        assert len(routed.backbone.routed) == len(routed.backbone.body)
        for _, variant in strategy.eval_modes(routed):
            found = variant.eval()(images)
            assert ((found - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all()
