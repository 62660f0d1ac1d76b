"""The step and the optimiser: chunks as the whole batch, precisions, too little memory, parameter groups, schedules."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.losses import build_criterion
from retrieval_bench.models.build import build_backbone
from retrieval_bench.models.embedder import set_training_mode
from retrieval_bench.sections import ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.base import ParameterGroup
from retrieval_bench.training.loop import Training
from retrieval_bench.training.optimizer import (
    OPTIMIZERS,
    build_optimizer,
    parameter_groups,
    schedule_factor,
    step_factor,
)
from tests.training.helpers import (
    OPTIONS,
    Data,
    differing,
    make_training,
    random_images,
    run_config,
    state_of,
    tiny_embedder,
    tiny_vit,
)


def gradients(training: Training) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and state after the backward pass of the first batch."""
    training.batches.reseed(0, "step")
    images, labels = next(iter(training.batches))
    set_training_mode(training.model)
    torch.manual_seed(1)
    loss = training.step(images, labels)
    named = {**dict(training.model.named_parameters()), **dict(training.criterion.named_parameters())}
    values = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    return loss.item(), values, state_of(training.model, training.criterion)


@pytest.mark.parametrize(
    ("strategy", "loss", "head"),
    [
        ("standard", "triplet", "linear"),
        ("standard", "softmax", "autolr"),
        ("l2sp", "proxy_anchor", "linear"),
        ("layer_pruning", "multi_similarity", "linear"),
    ],
)
@pytest.mark.parametrize("micro_batch", [5, 8, 100])
def test_gradients_of_chunks_are_those_of_the_whole_batch(
    strategy: str, loss: str, head: str, micro_batch: int, synthetic: Data
) -> None:
    """Batch norms frozen. Pairs across chunks count; dropout and regularization are the same."""

    def result(micro_batch: int) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
        config = run_config(loss, head=head, freeze_bn=True, micro_batch=micro_batch)
        built = build_strategy(strategy, StrategyOptions())
        return gradients(make_training(synthetic, built, config, tiny_embedder(dim=8)))

    (whole, expected, _), (chunked, actual, _) = result(0), result(micro_batch)
    assert chunked == pytest.approx(whole, rel=1e-5)
    assert actual.keys() == expected.keys()
    assert any(value.abs().max() > 0 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-8)


@pytest.mark.parametrize("strategy", ["standard", "last_k", "lora", "visual_prompts", "progressive", "channel_pruning"])
@pytest.mark.parametrize("micro_batch", [0, 6])
def test_gradients_of_activations_that_are_computed_again_are_the_same(
    strategy: str, micro_batch: int, synthetic: Data
) -> None:
    """With stochastic depth, whose draws must be the same in both passes; blocks are called once more."""

    def result(again: bool) -> tuple[dict[str, Tensor], int]:
        model = tiny_embedder(8) if strategy in ("progressive", "channel_pruning") else tiny_vit(8, drop_path_rate=0.3)
        config, calls = run_config(freeze_bn=True, grad_checkpointing=again, micro_batch=micro_batch), []
        training = make_training(synthetic, build_strategy(strategy, OPTIONS), config, model)
        last = model.backbone.net.get_submodule(model.backbone.body[-1].name)
        last.register_forward_pre_hook(lambda *_: calls.append(1))
        return gradients(training)[1], len(calls)

    (expected, once), (actual, twice) = result(False), result(True)
    assert twice > once
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_where_activations_cannot_be_computed_again_one_line_says_so(synthetic: Data) -> None:
    config = run_config(freeze_bn=True, grad_checkpointing=True)
    for strategy in ("spottune", "channel_pruning+spottune"):
        with pytest.raises(UserError, match=r"^--grad-checkpointing: routes of images"):
            make_training(synthetic, build_strategy(strategy, OPTIONS), config).fit()
    for backbone in ("cifar_resnet20", "torchvision/resnet18"):
        with pytest.raises(UserError, match=r"^--grad-checkpointing: this backbone has none"):
            build_backbone(ModelConfig(backbone=backbone, weights="none"), 32).set_grad_checkpointing(True)
    finished = make_training(synthetic, None, config, model := tiny_vit()).fit()
    assert finished is model
    assert not model.backbone.net.grad_checkpointing


def test_batch_norm_statistics_move_once_per_image(synthetic: Data) -> None:
    """Not in the pass that only makes embeddings."""
    training = make_training(synthetic, config=run_config(micro_batch=8))
    norm: Any = training.model.backbone.net.get_submodule("bn1")
    start = norm.running_mean.clone()
    moved = gradients(training)[2]["0.backbone.net.bn1.running_mean"] - start
    once = gradients(make_training(synthetic))[2]["0.backbone.net.bn1.running_mean"] - start
    assert norm.momentum == 0.1
    assert 0 < moved.norm() < 3 * once.norm()


def test_chunks_draw_the_same_routes_twice_and_are_even(synthetic: Data) -> None:
    """16 images, 5 at a time: 4 each, since SpotTune's policy has a batch norm that refuses a single image."""
    strategy = build_strategy("spottune", StrategyOptions())
    training = make_training(synthetic, strategy, run_config("triplet", micro_batch=5))
    drawn: list[Tensor] = []
    training.model.backbone.register_forward_hook(lambda backbone, *_: drawn.append(backbone.decisions.detach()))  # pyright: ignore
    gradients(training)
    assert [len(decisions) for decisions in drawn] == [4] * 8
    assert all(torch.equal(one, two) for one, two in zip(drawn[:4], drawn[4:], strict=True))


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(
    ("error", "micro_batch", "kind", "message"),
    [
        (OUT_OF_MEMORY, 0, UserError, "out of memory with 16 images at a time: add --micro-batch 8 "),
        (OUT_OF_MEMORY, 6, UserError, "with 6 images at a time: add --micro-batch 3 "),
        (RuntimeError("shapes do not match"), 0, RuntimeError, "shapes do not match"),
    ],
)
def test_out_of_memory_is_one_line_with_the_way_out_and_other_errors_pass_through(
    error: Exception, micro_batch: int, kind: type[Exception], message: str, synthetic: Data
) -> None:
    def fail(*_: Any) -> None:
        raise error

    training = make_training(synthetic, config=run_config("triplet", micro_batch=micro_batch))
    training.model.register_forward_pre_hook(fail)
    with pytest.raises(kind, match=message) as caught:
        training.fit()
    assert "\n" not in str(caught.value)


def test_bfloat16_passes_give_float32_embeddings_and_weights(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config(precision="bf16"))
    kinds: list[torch.dtype] = []
    convolution: Any = training.model.backbone.net.get_submodule("layer1.0.conv1")
    convolution.register_forward_hook(lambda _, __, out: kinds.append(out.dtype))
    training.criterion.register_forward_pre_hook(lambda _, inputs: kinds.append(inputs[0].dtype))
    training.fit()
    assert kinds[:2] == [torch.bfloat16, torch.float32]
    assert training.history[-1] < training.history[0]
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("units", "slow", "chosen"), [(True, "float32", "bf16"), (True, "bf16", "float32"), (False, "float32", "float32")]
)
def test_auto_takes_bfloat16_where_it_is_faster_and_leaves_the_model_as_it_was(
    units: bool, slow: str, chosen: str, synthetic: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval_bench.training.step.has_bfloat16", lambda device: units)
    training = make_training(synthetic, config=run_config(precision="auto", micro_batch=8))
    before, forward = state_of(training.model), training.step.forward
    sizes: list[int] = []

    def delayed(images: Tensor) -> Tensor:
        sizes.append(len(images))
        time.sleep(0.05 * (training.step.precision == slow))
        return forward(images)

    training.step.forward = delayed
    assert training.step.faster_precision(random_images(16)) == chosen
    assert sizes == [8] * 8 * units
    assert not differing(state_of(training.model), before)
    assert all(value.grad is None for value in training.model.parameters())
    monkeypatch.setattr(training.step, "faster_precision", lambda images: chosen)
    training.fit()
    assert (training.step.precision, training.account()["precision"]) == (chosen, chosen)


def test_a_compiler_that_fails_costs_a_line(
    synthetic: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: Any, **options: Any) -> Any:
        def fail(images: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler here")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    compiled, plain = (make_training(synthetic, config=run_config(compile=value)) for value in (True, False))
    compiled.fit()
    plain.fit()
    assert not differing(state_of(compiled.model), state_of(plain.model))
    assert capsys.readouterr().err.count("torch.compile failed, training continues without it: no C++ compiler") == 1


def test_frozen_blocks_at_the_start_build_no_graph(synthetic: Data) -> None:
    strategy = build_strategy("last_k", StrategyOptions())
    training = make_training(synthetic, strategy, run_config(freeze_bn=True))
    net, graphs = training.model.backbone.net, []
    for block in training.model.backbone.body:
        net.get_submodule(block.name).register_forward_hook(lambda _, __, out: graphs.append(out.requires_grad))
    gradients(training)
    assert graphs == [False] * 5 + [True] * 3


def test_profile_names_the_parts_of_a_step(synthetic: Data, capsys: pytest.CaptureFixture[str]) -> None:
    training = make_training(synthetic, profile=True)
    training.fit()
    assert set(training.watch.seconds) == {"data", "forward", "loss", "backward", "optimiser"}
    assert sum(training.watch.seconds.values()) <= training.seconds
    assert capsys.readouterr().err.count(" %") == 6
    silent = make_training(synthetic)
    silent.train_once()
    assert not silent.watch.seconds
    assert silent.model(random_images(2)).shape == (2, 64)


def groups_of(dim: int = 0, frozen: tuple[str, ...] = (), loss: str = "proxy_anchor") -> list[ParameterGroup]:
    config = run_config(loss, lr=0.01, loss_lr=0.5, weight_decay=0.1)
    config = replace(config, loss=replace(config.loss, loss_weight_decay=0.3))
    model = tiny_embedder(dim)
    for block in model.backbone.blocks:
        for parameter in model.backbone.block_parameters(block):
            parameter.requires_grad_(block.name not in frozen)
    criterion = build_criterion(config.loss, 8, model.dim)
    return parameter_groups(model, criterion, config.train, config.loss)


def test_groups_are_blocks_embedding_and_loss_with_their_rates() -> None:
    blocks = [block.name for block in tiny_embedder().backbone.blocks]
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups_of(12)}
    assert list(rates) == [*blocks, "embedding", "loss"]
    assert rates == {name: (0.5, 0.3) if name == "loss" else (0.01, 0.1) for name in rates}
    without = [name for name in blocks if name not in ("stem", "layer2.1")]
    assert [group["name"] for group in groups_of(0, ("stem", "layer2.1"), "triplet")] == without


def test_the_embedding_layer_has_a_multiple_of_the_rate() -> None:
    config = run_config(lr=0.01, embedding_lr=10.0)
    model = tiny_embedder(12)
    groups = parameter_groups(model, build_criterion(config.loss, 8, 12), config.train, config.loss)
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates.pop("embedding") == pytest.approx(0.1)
    assert {rates[block.name] for block in model.backbone.blocks} == {0.01}


@pytest.mark.parametrize(
    ("warmup", "factors"),
    [
        (0.0, [1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2]),
        (1.0, [0.25, 0.5, 0.75, 1, 0.2, 0.2, 0.2, 0.2]),
        (0.5, [0.5, 1, 1, 1, 0.2, 0.2, 0.2, 0.2]),
        (2.0, [0.125, 0.25, 0.375, 0.5, 0.125, 0.15, 0.175, 0.2]),
    ],
)
def test_rates_rise_linearly_and_follow_the_schedule(warmup: float, factors: list[float], synthetic: Data) -> None:
    """Two epochs of four steps; the schedule falls to a fifth in the middle. As computed, and as set by the loop."""
    config = run_config(warmup=warmup, schedule="step", decay_at=0.5, lr=1.0)
    computed = [step_factor(config.train, epoch, step, 4, 2) for epoch in range(2) for step in range(4)]
    assert computed == pytest.approx(factors)
    training, seen = make_training(synthetic, None, replace(config, train=replace(config.train, lr=1e-3))), []
    training.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    training.fit()
    assert seen == pytest.approx([1e-3 * factor for factor in factors])


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
