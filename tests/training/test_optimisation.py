"""Parameter groups, optimisers and the schedule."""

from __future__ import annotations

import pytest
import torch

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
    trainable = [parameter for module in (model, criterion) for parameter in module.parameters() if parameter.requires_grad]
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
    seen = {group["name"]: (group["base_lr"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert seen["stem"] == (0.01, 0.01, 0.1)
    assert seen["loss"] == (0.5, 0.5, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_without_parameters_can_step(name: str) -> None:
    build_optimizer(name, []).step()


def test_sgd_is_nesterov_with_momentum() -> None:
    group = build_optimizer("sgd", groups_of()[0]).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_constant_schedule() -> None:
    assert [schedule_factor("constant", progress) for progress in (0.0, 0.3, 1.0)] == [1, 1, 1]


def test_cosine_schedule() -> None:
    assert [schedule_factor("cosine", progress) for progress in (0, 1 / 3, 0.5, 2 / 3, 1)] == pytest.approx(
        [1, 0.75, 0.5, 0.25, 0], abs=1e-12
    )
