"""The step: chunks as the whole batch, other precisions, compilers that fail, too little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import set_training_mode
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, differing, make_training, random_images, run_config, state_of, tiny_embedder


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


@pytest.mark.parametrize(
    ("micro_batch", "message"),
    [
        (0, "out of memory with 16 images at a time: add --micro-batch 8 "),
        (6, "with 6 images at a time: add --micro-batch 3 "),
    ],
)
def test_out_of_memory_is_one_line_with_the_way_out(synthetic: Data, micro_batch: int, message: str) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    training = make_training(synthetic, config=run_config("triplet", micro_batch=micro_batch))
    training.model.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=message) as caught:
        training.fit()
    assert "\n" not in str(caught.value)


def test_other_errors_pass_through(synthetic: Data) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    training = make_training(synthetic)
    training.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        training.train_once()


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
