"""Three strategies of the kinds to come, to show that the hooks are enough for them: retried epochs, surgery, a distance penalty."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from retrieval_bench import cost
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.base import EpochState, Strategy, TrainOnce
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.last_k import LastK
from tests.training.helpers import (
    Data,
    differing,
    flatten,
    make_training,
    random_images,
    run_config,
    state_of,
    tiny_embedder,
)


class Attempts(Strategy):
    """Runs the given attempts of each epoch and keeps the last; with `rates`, a rejected attempt also changes the rates."""

    def __init__(self, attempts: tuple[int, ...], rates: bool = False):
        super().__init__()
        self.attempts, self.rates = attempts, rates

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        loss, start = math.nan, state.snapshot()
        for number, attempt in enumerate(self.attempts):
            if number:
                state.restore(start)
            if self.rates and attempt != self.attempts[-1]:
                state.set_lrs(dict.fromkeys(state.lrs(), 0.1))
            loss = train_once(attempt=attempt)
        return loss


@pytest.mark.parametrize("rates", [False, True])
def test_rejected_attempt_leaves_no_trace_but_is_counted(synthetic: Data, rates: bool) -> None:
    direct = make_training(synthetic, Chain({"a": Attempts((1,))}), run_config("softmax", head="autolr"))
    retried = make_training(synthetic, Chain({"a": Attempts((0, 1), rates)}), run_config("softmax", head="autolr"))
    direct.fit()
    retried.fit()
    assert not differing(state_of(direct.model, direct.criterion), state_of(retried.model, retried.criterion))
    assert direct.history == retried.history
    assert direct.lrs() == retried.lrs()
    assert (direct.images_seen, retried.images_seen) == (2 * 64, 4 * 64)


class Cut(Strategy):
    """Replaces the last block, or removes it from its stage."""

    def __init__(self, remove: bool):
        super().__init__()
        self.remove = remove

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        stage_name, _, index = [block.name for block in model.backbone.blocks if block.is_body][-1].rpartition(".")
        stage = model.backbone.net.get_submodule(stage_name)
        assert isinstance(stage, nn.Sequential)
        if self.remove:
            del stage[int(index)]
        else:
            stage[int(index)] = nn.Identity()
        return model


@pytest.mark.parametrize("remove", [False, True])
def test_network_that_was_cut_still_trains_and_embeds(synthetic: Data, remove: bool) -> None:
    whole = tiny_embedder()
    lost = sum(parameter.numel() for parameter in whole.backbone.block_parameters(whole.backbone.blocks[-1]))
    training = make_training(synthetic, Chain({"cut": Cut(remove), "last_k": LastK(LastK.Options(k=2))}))
    finished = training.fit()
    assert cost.parameters(finished) == cost.parameters(whole) - lost
    assert cost.macs(finished, 32) < cost.macs(whole, 32)
    assert training.history[-1] < training.history[0]
    assert [group["name"] for group in training.optimizer.param_groups] == ["layer4.0", "loss"]
    with torch.no_grad():
        assert finished.eval()(random_images(2)).shape == (2, 64)


def test_resnet18_can_be_cut_and_trained(synthetic: Data) -> None:
    model = build_embedder(ModelConfig(backbone="resnet18", weights="none"), 32)
    training = make_training(synthetic, Chain({"cut": Cut(remove=True)}), run_config(epochs=1, lr=1e-4), model)
    training.fit()
    assert "layer4.1" not in training.lrs()
    assert training.images_seen == 64


class StayNear(Strategy):
    """L2-SP: half of alpha times the squared distance of the backbone from its start."""

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha
        self.first: float | None = None

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        self.start = [parameter.detach().clone() for parameter in model.backbone.parameters()]
        return model

    def regularization(self, model: Embedder, images: Tensor) -> Tensor:
        pairs = zip(model.backbone.parameters(), self.start, strict=True)
        term = self.alpha / 2 * sum(((parameter - start).square().sum() for parameter, start in pairs), torch.zeros(()))
        self.first = term.item() if self.first is None else self.first
        return term


def test_distance_penalty_is_zero_at_the_start_and_keeps_the_weights_near(synthetic: Data) -> None:
    distances = []
    for alpha in (0.0, 10.0):
        strategy = StayNear(alpha)
        finished = make_training(
            synthetic, Chain({"stay_near": strategy}), run_config(optimizer="sgd", lr=0.01, weight_decay=0.0)
        ).fit()
        assert strategy.first == 0
        distances.append((flatten(finished.backbone) - flatten(strategy.start)).norm().item())
    assert 0 < distances[1] < 0.8 * distances[0]
