"""The optimisation step: in pieces as whole, in other precisions, where memory or numbers fail."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.autolr import AutoLR
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.training.loop import Training
from retrieval_bench.training.profile import Stopwatch
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


def gradients(training: Training, micro: int) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and state after the backward pass of the first batch."""
    training.micro = micro
    training.batches.reseed(0, "step")
    pixels, labels = next(iter(training.batches))
    training.model.train()
    for module in training.model.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
    torch.manual_seed(1)
    loss = training._gradients(pixels, labels)
    named = {**dict(training.model.named_parameters()), **dict(training.criterion.named_parameters())}
    found = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
    return loss.item(), found, state_of(training.model, training.criterion)


@pytest.mark.parametrize(
    ("strategy", "loss", "head"),
    [
        ("standard", "triplet", "linear"),
        ("standard", "proxy_anchor", "linear"),
        ("standard", "softmax", "autolr"),
        ("l2sp", "softmax", "linear"),
        ("layer_pruning", "multi_similarity", "linear"),
    ],
)
@pytest.mark.parametrize("micro", [5, 8, 100])
def test_gradients_in_pieces_are_those_of_the_whole_batch(
    strategy: str, loss: str, head: str, micro: int, synthetic: Data
) -> None:
    """Batch norms frozen. Pairs across pieces count, dropout and the penalty are the same."""

    def training() -> Training:
        config = run_config(loss, head=head, freeze_bn=True)
        return make_training(synthetic, build_strategy(strategy, StrategyOptions()), config, tiny_embedder(dim=8))

    (whole, expected, _), (pieced, found, _) = gradients(training(), 0), gradients(training(), micro)
    assert pieced == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys()
    assert any(value.abs().max() > 0 for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()) + 1e-8)


def test_statistics_of_norms_move_once_per_image(synthetic: Data) -> None:
    """Not in the pass that only makes embeddings."""
    training = make_training(synthetic, config=run_config())
    norm: Any = training.model.backbone.net.get_submodule("bn1")
    *_, state = gradients(training, 8)
    assert norm.momentum == 0.1
    assert (
        state["0.backbone.net.bn1.num_batches_tracked"]
        - tiny_embedder().state_dict()["backbone.net.bn1.num_batches_tracked"]
        == 4
    )
    other = make_training(synthetic, config=run_config())
    *_, once = gradients(other, 0)
    start, name = tiny_embedder().state_dict()["backbone.net.bn1.running_mean"], "0.backbone.net.bn1.running_mean"
    moved, expected = (now[name] - start for now in (state, once))
    assert moved.norm() < 3 * expected.norm()


def test_routes_are_drawn_alike_in_both_passes(synthetic: Data) -> None:
    training = make_training(synthetic, build_strategy("spottune", StrategyOptions()), run_config("triplet"))
    drawn: list[Tensor] = []
    training.model.backbone.register_forward_hook(lambda backbone, *_: drawn.append(backbone.decisions.detach()))  # pyright: ignore
    gradients(training, 8)
    assert len(drawn) == 4
    assert all(torch.equal(one, two) for one, two in zip(drawn[:2], drawn[2:], strict=True))


def test_pieces_are_even_so_that_none_is_a_single_image(synthetic: Data) -> None:
    """16 images, 5 at a time, at 32 pixels, where the policy's last batch norm sees one value per image and refuses a single image."""
    training = make_training(synthetic, build_strategy("spottune", StrategyOptions()), run_config("triplet"))
    sizes: list[int] = []
    training.model.backbone.register_forward_hook(lambda _, __, out: sizes.append(len(out)))
    gradients(training, 5)
    assert sizes == [4] * 8


def failing_above(model: Embedder, limit: int) -> None:
    def look(module: Any, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.register_forward_pre_hook(look)


def test_where_memory_does_not_suffice_half_as_many_images_pass_at_a_time(
    synthetic: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config("triplet", freeze_bn=True, out_of_memory="halve", epochs=2)
    training = make_training(synthetic, config=config)
    failing_above(training.model, 5)
    training.fit()
    straight = make_training(synthetic, config=run_config("triplet", freeze_bn=True, epochs=2))
    straight.fit()
    assert training.account()["micro_batch"] == 4
    assert training.history == pytest.approx(straight.history, rel=1e-3)
    assert "out of memory with 16 images at a time: 8 from here on" in capsys.readouterr().err


def test_without_that_it_stops(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config("triplet"))
    failing_above(training.model, 5)
    with pytest.raises(torch.OutOfMemoryError):
        training.fit()


def test_not_even_one_image(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config("softmax", out_of_memory="halve"))
    failing_above(training.model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        training.fit()


class Spoiling(Strategy):
    """The loss of the given steps is no number."""

    def __init__(self, steps: set[int]):
        super().__init__()
        self.steps, self.step = steps, -1

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        self.step += 1
        return torch.tensor(float("nan")) if self.step in self.steps else None


def test_some_batches_may_be_left_out_and_change_nothing(
    synthetic: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = make_training(synthetic, Spoiling({1, 6}), run_config(skip_batches=2, freeze_bn=True))
    before: list[Tensor] = []
    step = training._step

    def noted(*batch: Tensor) -> Tensor:
        before.append(flatten(training.model))
        return step(*batch)

    monkeypatch.setattr(training, "_step", noted)
    training.fit()
    assert training.account()["skipped_batches"] == [[0, 1], [1, 2]]
    assert torch.equal(before[1], before[2])
    assert not torch.equal(before[2], before[3])
    assert "epoch 1, step 2 is nan: the batch is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match="epoch 2, step 3"):
        make_training(synthetic, Spoiling({1, 6}), run_config(skip_batches=1, freeze_bn=True)).fit()


class SpoilingImages(Strategy):
    """The loss of one batch is no number, whenever the same images come again."""

    batch: Tensor | None = None

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        self.batch = images.clone() if self.batch is None else self.batch
        return torch.tensor(float("nan")) if torch.equal(images, self.batch) else None


def test_batches_of_undone_passes_do_not_use_up_those_that_may_be_left_out(synthetic: Data) -> None:
    """No pass is sorted enough; the first is the best, leaves a batch out, and does so again when it is repeated."""
    options = AutoLR.Options(max_trials=3, threshold=1.0, max_ratio=1.0)
    strategy = Chain({"spoiling": SpoilingImages(), "autolr": AutoLR(options)})
    config = run_config("softmax", optimizer="sgd", lr=0.01, freeze_bn=True, skip_batches=1, epochs=1)
    training = make_training(synthetic, strategy, config)
    training.fit()
    facts = strategy.info()["autolr"]
    assert facts["passes"] == [4], "three, and the first once more"
    assert facts["quality"][0] == facts["qualities"][0][0]
    assert training.account()["skipped_batches"] == [[0, 0]]


def test_all_batches_left_out_is_no_training(synthetic: Data) -> None:
    with pytest.raises(Diverged):
        make_training(synthetic, Spoiling(set(range(8))), run_config(skip_batches=8, freeze_bn=True)).fit()


def test_bfloat16_passes_give_float32_embeddings_and_weights(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config(precision="bf16"))
    kinds: set[torch.dtype] = set()
    convolution = training.model.backbone.net.get_submodule("layer1.0.conv1")
    convolution.register_forward_hook(lambda _, __, out: kinds.add(out.dtype))
    training.criterion.register_forward_pre_hook(lambda _, given: kinds.add(given[0].dtype))
    training.fit()
    assert kinds == {torch.bfloat16, torch.float32}
    assert training.history[-1] < training.history[0]
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())


def test_a_compiler_that_fails_costs_nothing(
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
    assert capsys.readouterr().err.count("torch.compile failed, training goes on without it: no C++ compiler here") == 1


def test_network_is_stored_channels_last(synthetic: Data) -> None:
    training = make_training(synthetic)
    convolution: Any = training.model.backbone.net.get_submodule("layer2.0.conv1")
    training.train_once()
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert training.model(random_images(2)).shape == (2, 64)


def test_profile_names_the_parts_of_a_step(synthetic: Data) -> None:
    training = make_training(synthetic)
    training.watch = Stopwatch(on=True)
    training.train_once()
    assert set(training.watch.seconds) == {"data", "forward", "loss", "backward", "optimiser"}
    assert sum(training.watch.seconds.values()) <= training.seconds
    assert training.watch.report(training.seconds, 64).count("%") == 6
    silent = make_training(synthetic)
    silent.train_once()
    assert silent.watch.seconds == {}
