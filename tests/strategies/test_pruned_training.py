"""What pruned networks are trained from and for how long: slimming by SGD, lottery tickets, Scratch-B, gates on weights
that were trained, SNIP on random ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.pruning import find_channels
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning, sensitivities
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from tests.training.helpers import Data, differing, make_training, random_images, run_config, state_of, tiny_embedder

WIDTHS = find_channels(tiny_embedder().backbone, 32)


def test_a_step_of_sgd_moves_every_scale_by_its_gradient_and_sign(synthetic: Data) -> None:
    """Of all batch norms: less lr (gradient + strength sign), in one step over all images."""

    def scales_after_a_step(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
        options = NetworkSlimming.Options(budget=0.9, search="sgd", sgd_lr=0.05, strength=strength, sparse_epochs=1)
        training = make_training(synthetic, NetworkSlimming(options), run_config(batch_size=64, epochs=0))
        net: Any = training.model.backbone.net
        norms: Any = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert len(norms) > len(WIDTHS.widths)
        with torch.no_grad():
            for norm in norms:
                norm.weight[1], norm.weight[2] = -0.5, 0.25
        before, seen = torch.cat([norm.weight.detach().clone() for norm in norms]), []

        def train_once(attempt: int = 0, epochs: int = 0) -> float:
            loss = training.train_once(attempt, epochs)
            seen.append(torch.cat([norm.weight.detach().clone() for norm in norms]))
            return loss

        training.strategy.before_training(train_once, training)
        assert isinstance(training.optimizer, torch.optim.AdamW), "for the training after it"
        return before, seen[0]

    (before, plain), (_, sparse) = scales_after_a_step(0.0), scales_after_a_step(0.01)
    torch.testing.assert_close(sparse - plain, -0.05 * 0.01 * before.sign(), rtol=1e-3, atol=1e-7)
    assert (plain - before).abs().std() > 1e-6, "the loss's gradient moves them by unequal steps"


def test_passes_before_the_training_follow_the_schedule_over_so_many(synthetic: Data) -> None:
    config = run_config(schedule="step", decay_at=0.5, second_decay_at=0.75, decay_factor=0.1, lr=0.02)
    rates = []

    def rate(attempt: int, epochs: int) -> float:
        training = make_training(synthetic, None, config)
        training.train_once(attempt, epochs)
        return training.optimizer.param_groups[0]["lr"]

    rates = [rate(attempt, 4) for attempt in (-1, -2, -3, -4)] + [rate(-4, 0)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.0002, 0.02])
    with pytest.raises(UserError, match=r"schedule-epochs 3: fewer than .*sparse-epochs 4"):
        NetworkSlimming.Options(schedule_epochs=3, sparse_epochs=4).check()


@pytest.mark.parametrize("kind", [ChannelGates, NetworkSlimming])
def test_a_lottery_ticket_has_its_first_weights_and_scratch_has_others(kind: Any, synthetic: Data) -> None:
    """Of the kept channels, as they were before anything was trained; gates start from weights drawn in ``prepare``."""

    def pruned(regime: str) -> tuple[torch.Tensor, torch.Tensor]:
        strategy = kind(kind.Options(budget=0.9, regime=regime))
        training = make_training(synthetic, strategy, run_config(epochs=0, lr=0.05), tiny_embedder(8))
        linear = state_of(training.model.embedding)
        first = training.model.backbone.net.get_submodule("layer1.0.conv1").weight.detach().clone()  # pyright: ignore
        net: Any = training.fit().backbone.net
        assert net.layer1[0].bn1.weight.eq(1).all() == (regime != "inherit")
        is_first = not differing(linear, state_of(training.model.embedding))
        assert is_first == (regime != "inherit"), "the linear layer"
        return first[strategy._keep.get("layer1.0.conv1", range(8))], net.layer1[0].conv1.weight

    first, ticket = pruned("lottery")
    assert torch.equal(first, ticket)
    for regime in ("from_scratch", *(["inherit"] if kind is NetworkSlimming else [])):
        first, other = pruned(regime)
        assert not torch.equal(first, other)
    with pytest.raises(UserError, match="nothing is trained before the cut"):
        ChannelPruning.Options(regime="lottery").check()


def test_scratch_b_costs_what_the_whole_network_does(synthetic: Data) -> None:
    strategy = ChannelPruning(ChannelPruning.Options(budget=0.5, unit="parameters", training="scratch_b"))
    training = make_training(synthetic, strategy, run_config(epochs=12, schedule="step", decay_at=0.5))
    model, info = training.fit(), strategy.info()
    share = cost.macs(model, 32) / cost.macs(tiny_embedder(), 32)
    assert len(training.history) == info["epochs"] == round(12 / share) > 12
    assert training.images_seen == 64 * info["epochs"]
    assert training.optimizer.param_groups[0]["lr"] < training.optimizer.param_groups[0]["initial_lr"]


def test_gates_on_weights_that_are_trained_first(synthetic: Data) -> None:
    """The classifier stays as trained for the search; the search counts as cost after the training."""
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, trained_epochs=2, search_epochs=1, gate_lr=0.1))
    training = make_training(synthetic, strategy, run_config("softmax", loss_lr=0.1, epochs=0))
    heads: list[Any] = []
    train_once, fresh = training.train_once, state_of(training.criterion)

    def noting(attempt: int = 0, epochs: int = 0) -> float:
        assert hasattr(training.model.backbone, "gates") == (attempt == -3)
        assert epochs == (0 if attempt == -3 else 2)
        heads.append(state_of(training.criterion))
        return train_once(attempt, epochs)

    strategy.before_training(noting, training)
    assert differing(fresh, heads[1])
    assert differing(fresh, heads[2])
    assert strategy.info()["search_images_seen"] == 3 * 64
    assert strategy.info()["mean_gate"] != 1


def test_snip_on_random_weights_ranks_channels_in_every_layer(synthetic: Data) -> None:
    model = build_embedder(ModelConfig("cifar_resnet20", "none"), 32)
    strategy = ChannelPruning(ChannelPruning.Options(scores="snip"))
    training = make_training(synthetic, strategy, run_config("softmax", epochs=0), model)
    scores = sensitivities(training, strategy._channels)
    assert all(max(values) > min(values) >= 0 for values in scores.values())
    training.fit()
    info = strategy.info()
    shares = {round(width / info["full_widths"][name], 2) for name, width in info["widths"].items()}
    assert info["reached"] == pytest.approx(0.5, abs=0.01)
    assert len(shares) > 3, "one threshold, not one share"


@pytest.mark.parametrize("dim", [0, 8])
def test_all_convolutions_of_a_vgg_can_be_pruned(dim: int, synthetic: Data) -> None:
    """The feature shrinks with the last one, and what the loss holds of it."""
    net: Any = VGG(make_layers([8, "M", 8, "M", 16], batch_norm=True))
    net.avgpool, net.classifier = nn.AdaptiveAvgPool2d(1), nn.Identity()
    model = Embedder(Backbone(net, name_blocks(net), (0.5,) * 3, (0.25,) * 3, 16), dim)
    usual = find_channels(model.backbone, 32)
    assert len(usual.widths) == 1
    strategy = ChannelGates(ChannelGates.Options(ends=True, regime="from_scratch", expansion=2.0, budget=0.4))
    training = make_training(synthetic, strategy, run_config("softmax", epochs=1), model)
    pruned, info = training.fit(), strategy.info()
    widths = list(info["widths"].values())
    assert len(widths) == 3
    assert pruned.backbone.feature_dim == widths[-1] < 16
    assert pruned(random_images(2)).shape == (2, dim or widths[-1])
    assert cost.macs(pruned.backbone, 32) / info["full_cost"] == pytest.approx(info["reached"], abs=1e-6)
    with pytest.raises(UserError, match="activation: not with ends"):
        ChannelPruning.Options(ends=True, scores="activation").check()
