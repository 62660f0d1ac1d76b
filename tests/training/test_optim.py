"""Parameter groups, optimisers and the schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from retrieval_bench.losses import build_criterion
from retrieval_bench.sections import TrainConfig
from retrieval_bench.strategies.base import ParameterGroup, freeze
from retrieval_bench.training.optim import OPTIMIZERS, build_optimizer, parameter_groups, schedule_factor
from tests.training.helpers import run_config, tiny_embedder


def groups_of(dim: int = 0, frozen: tuple[str, ...] = (), loss: str = "proxy_anchor") -> list[ParameterGroup]:
    """Checks that every trainable parameter is in exactly one group."""
    config = run_config(loss, lr=0.01, loss_lr=0.5, weight_decay=0.1)
    config = replace(config, loss=replace(config.loss, loss_weight_decay=0.3))
    model = tiny_embedder(dim)
    for block in model.backbone.blocks:
        if block.name in frozen:
            freeze(model.backbone.block_parameters(block))
    criterion = build_criterion(config.loss, 8, model.dim)
    groups = parameter_groups(model, criterion, config.train, config.loss)
    trainable = [value for module in (model, criterion) for value in module.parameters() if value.requires_grad]
    assert sorted(id(value) for group in groups for value in group["params"]) == sorted(map(id, trainable))
    return groups


def test_groups_are_blocks_embedding_and_loss_with_their_rates() -> None:
    blocks = [block.name for block in tiny_embedder().backbone.blocks]
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups_of(12)}
    assert list(rates) == [*blocks, "embedding", "loss"]
    assert rates == {name: (0.5, 0.3) if name == "loss" else (0.01, 0.1) for name in rates}
    without = [name for name in blocks if name not in ("stem", "layer2.1")]
    assert [group["name"] for group in groups_of(0, ("stem", "layer2.1"), "triplet")] == without


def test_shared_parameter_is_in_one_group_only() -> None:
    config, model, criterion = run_config(), tiny_embedder(), torch.nn.Module()
    criterion.register_parameter("tied", next(iter(model.parameters())))
    groups = parameter_groups(model, criterion, config.train, config.loss)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_keeps_names_rates_and_weight_decay(name: str) -> None:
    groups = {group["name"]: group for group in build_optimizer(name, groups_of(12)).param_groups}
    for part, lr, weight_decay in (("stem", 0.01, 0.1), ("loss", 0.5, 0.3)):
        group = groups[part]
        assert (group["initial_lr"], group["lr"], group["weight_decay"]) == (lr, lr, weight_decay)
    assert (groups["stem"].get("momentum", 0.9), groups["stem"].get("nesterov", True)) == (0.9, True)
    build_optimizer(name, []).step()


CYCLES = {"schedule": "triangular", "cycles": 2}
RESTARTS = {"schedule": "warm_restarts", "cycles": 2}
TWICE = {"schedule": "step", "decay_at": 15 / 40, "second_decay_at": 30 / 40, "decay_factor": 0.1}


@pytest.mark.parametrize(
    ("train", "progress", "factors"),
    [
        ({"schedule": "constant"}, [0, 0.3, 1], [1, 1, 1]),
        ({"schedule": "cosine"}, [0, 1 / 3, 0.5, 2 / 3, 1], [1, 0.75, 0.5, 0.25, 0]),
        ({"schedule": "step"}, [0, 39.99 / 50, 40 / 50, 0.99], [1, 1, 0.2, 0.2]),  # after epoch 40 of 50
        (TWICE, [0, 14.99 / 40, 15 / 40, 29.99 / 40, 30 / 40, 1], [1, 1, 0.1, 0.1, 0.01, 0.01]),
        (CYCLES, [0, 0.125, 0.25, 0.375, 0.5], [0, 0.5, 1, 0.5, 0]),
        (CYCLES | {"low_rate": 0.2}, [0, 0.125, 0.25], [0.2, 0.6, 1]),
        (RESTARTS, [0, 1 / 6, 0.25, 0.499999999, 0.5], [1, 0.75, 0.5, 0, 1]),
        (RESTARTS | {"low_rate": 0.1}, [0.25, 0.499999999], [0.55, 0.1]),
    ],
)
def test_schedules(train: dict[str, Any], progress: list[float], factors: list[float]) -> None:
    assert [schedule_factor(TrainConfig(**train), point) for point in progress] == pytest.approx(factors, abs=1e-6)
