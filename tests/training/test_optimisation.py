"""Parameter groups, optimisers and the schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from retrieval_bench.sections import TrainConfig
from retrieval_bench.strategies.base import ParameterGroup
from retrieval_bench.training.criterion import build_criterion
from retrieval_bench.training.optimisation import OPTIMIZERS, build_optimizer, parameter_groups, schedule_factor
from tests.training.helpers import run_config, tiny_embedder


def groups_of(
    dim: int = 0, frozen: tuple[str, ...] = (), loss: str = "proxy_anchor"
) -> tuple[list[ParameterGroup], list[torch.nn.Parameter]]:
    """The groups, and the parameters that they have to cover."""
    config = run_config(loss, lr=0.01, loss_lr=0.5, weight_decay=0.1)
    model = tiny_embedder(dim)
    for block in model.backbone.blocks:
        if block.name in frozen:
            for parameter in model.backbone.block_parameters(block):
                parameter.requires_grad_(False)
    criterion = build_criterion(config.loss, 8, model.dim)
    trainable = [
        parameter for module in (model, criterion) for parameter in module.parameters() if parameter.requires_grad
    ]
    return parameter_groups(model, criterion, config.train, config.loss), trainable


@pytest.mark.parametrize("dim", [0, 12])
@pytest.mark.parametrize("frozen", [(), ("stem", "layer1.0", "layer4.1")])
def test_every_trainable_parameter_is_in_exactly_one_group(dim: int, frozen: tuple[str, ...]) -> None:
    groups, trainable = groups_of(dim, frozen)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, trainable))


def test_groups_are_named_after_blocks_embedding_and_loss() -> None:
    blocks = [block.name for block in tiny_embedder().backbone.blocks]
    assert [group["name"] for group in groups_of(12)[0]] == [*blocks, "embedding", "loss"]
    assert [group["name"] for group in groups_of(0, ("stem", "layer2.1"), "triplet")[0]] == [
        name for name in blocks if name not in ("stem", "layer2.1")
    ]


def test_loss_has_its_own_rate_and_no_weight_decay() -> None:
    for group in groups_of(12)[0]:
        assert (group["lr"], group["weight_decay"]) == ((0.5, 0.0) if group["name"] == "loss" else (0.01, 0.1))


def test_weight_decay_of_the_loss_is_its_own() -> None:
    config = run_config(weight_decay=0.1)
    config = replace(config, loss=replace(config.loss, loss_weight_decay=0.3))
    model = tiny_embedder()
    groups = parameter_groups(model, build_criterion(config.loss, 8, model.dim), config.train, config.loss)
    assert {group["name"]: group["weight_decay"] for group in groups}["loss"] == 0.3


def test_shared_parameter_is_in_one_group_only() -> None:
    config = run_config()
    model = tiny_embedder()
    criterion = torch.nn.Module()
    criterion.register_parameter("tied", next(iter(model.parameters())))
    groups = parameter_groups(model, criterion, config.train, config.loss)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_keeps_names_rates_and_weight_decay(name: str) -> None:
    optimizer = build_optimizer(name, groups_of(12)[0])
    seen = {
        group["name"]: (group["initial_lr"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups
    }
    assert seen["stem"] == (0.01, 0.01, 0.1)
    assert seen["loss"] == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_without_parameters_can_step(name: str) -> None:
    build_optimizer(name, []).step()


def test_sgd_is_nesterov_with_momentum() -> None:
    group = build_optimizer("sgd", groups_of()[0]).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def factors(progress: list[float], **train: Any) -> list[float]:
    return [schedule_factor(TrainConfig(**train), place) for place in progress]


def test_constant_schedule() -> None:
    assert factors([0.0, 0.3, 1.0], schedule="constant") == [1, 1, 1]


def test_cosine_schedule() -> None:
    assert factors([0, 1 / 3, 0.5, 2 / 3, 1], schedule="cosine") == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-12)


def test_step_schedule_falls_at_the_end_of_epoch_40_of_50() -> None:
    progress = [(epoch + step / 147) / 50 for epoch, step in ((0, 0), (39, 146), (40, 0), (49, 146))]
    assert factors(progress, schedule="step") == [1, 1, 0.2, 0.2]
    assert factors([0.4, 0.5], schedule="step", decay_at=0.5, decay_factor=0.1) == [1, 0.1]


def test_step_schedule_may_fall_twice() -> None:
    falls = {"decay_at": 15 / 40, "second_decay_at": 30 / 40, "decay_factor": 0.1}
    assert factors([0, 14.99 / 40, 15 / 40, 29.99 / 40, 30 / 40, 1], schedule="step", **falls) == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_triangular_schedule_goes_up_and_down_once_per_cycle() -> None:
    assert factors([0, 0.125, 0.25, 0.375, 0.5], schedule="triangular", cycles=2) == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert factors([0, 0.25], schedule="triangular", cycles=2, low_rate=0.2) == pytest.approx([0.2, 1])


def test_warm_restarts_begin_each_cycle_anew() -> None:
    assert factors([0, 1 / 6, 0.25, 0.499999999, 0.5], schedule="warm_restarts", cycles=2) == pytest.approx(
        [1, 0.75, 0.5, 0, 1], abs=1e-6
    )
    assert factors([0.499999999], schedule="warm_restarts", cycles=2, low_rate=0.1) == pytest.approx([0.1])
    assert factors([0.2, 0.7], schedule="warm_restarts", cycles=1) == factors([0.2, 0.7], schedule="cosine")
