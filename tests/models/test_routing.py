"""Routed backbones: what each image passes through, and what the routers decide."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retrieval_bench import cost
from retrieval_bench.models.backbone import STEM, Backbone, Block
from retrieval_bench.models.embedder import Embedder, set_training_mode
from retrieval_bench.models.routers import LearnedRouter, RandomRouter, pixel_noise, policy_network
from retrieval_bench.models.routing import RoutedBackbone, recorded_decisions, route, unroute
from tests.training.helpers import random_images, tiny_embedder

BLOCKS = 8


class Given(nn.Module):
    """A router that decides what it is told, image by image."""

    def __init__(self, decisions: Tensor):
        super().__init__()
        self.decisions = decisions.float()

    def forward(self, images: Tensor) -> Tensor:
        return self.decisions[: len(images)]


def moved(decisions: Tensor) -> Embedder:
    """A routed network whose tuned blocks have been trained, as it were."""
    model = tiny_embedder()
    backbone = route(model, Given(decisions), [block.name for block in model.backbone.body])
    torch.manual_seed(5)
    with torch.no_grad():
        for block in backbone.routed:
            for parameter in block.tuned.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def by_hand(model: Embedder, image: Tensor, decisions: list[bool]) -> Tensor:
    """The oracle: one image through a plain network that is put together from the branches that it takes."""
    plain = copy.deepcopy(model)
    unroute(plain, decisions)
    return plain.eval()(image[None])[0]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal within float32 rounding, which depends on the size of a batch: 1e-5 of the vectors' length."""
    assert ((found - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=BLOCKS, max_size=BLOCKS), min_size=1, max_size=6))
def test_each_image_runs_through_the_branches_that_it_takes(decisions: list[list[bool]]) -> None:
    model, images = moved(torch.tensor(decisions)), random_images(len(decisions))
    with torch.no_grad():
        grouped = model(images)
        expected = torch.stack([by_hand(model, image, row) for image, row in zip(images, decisions, strict=True)])
    assert_near(grouped, expected)


def test_layout_of_the_network_is_kept_and_does_not_matter() -> None:
    decisions = torch.tensor(
        [[number % 2 == 0 for number in range(BLOCKS)], [number % 3 == 0 for number in range(BLOCKS)]]
    )
    model, images = moved(decisions), random_images(2)
    layouts: list[bool] = []
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        first: nn.Module = model.backbone.routed[0]  # pyright: ignore
        first.register_forward_hook(
            lambda _, __, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
        )
        assert_near(model(images), expected)
    assert layouts == [True]


def test_both_branches_give_the_same_and_cost_twice_as_much() -> None:
    model, images = moved(torch.rand(6, BLOCKS) < 0.5), random_images(6)
    backbone = model.backbone
    assert isinstance(backbone, RoutedBackbone)
    with torch.no_grad():
        grouped = model(images)
        once = cost.macs(model, 32)
        backbone.both_branches = True
        assert_near(model(images), grouped)
    plain = cost.macs(tiny_embedder(), 32)
    assert once == plain, "each image runs one branch of each block"
    assert 1.2 * plain < cost.macs(model, 32) < 2 * plain, "all but the stem"


def test_batch_composition_does_not_matter() -> None:
    """Nor how often an image is embedded: the same image, the same vector."""
    torch.manual_seed(0)
    model = moved(torch.ones(1, BLOCKS))
    features, _ = policy_network(tiny_embedder().backbone, 32)
    assert isinstance(model.backbone, RoutedBackbone)
    model.backbone.router = LearnedRouter(features, BLOCKS, 5.0, 0)
    images = random_images(12)
    with torch.no_grad():
        model.eval()
        together = model(images)
        assert model.backbone.decisions is not None
        assert 0.1 < model.backbone.decisions.mean() < 0.9, (
            "images take different branches, which give different vectors"
        )
        assert torch.equal(model(images), together)
        shuffled = torch.randperm(12)
        assert_near(model(images[shuffled]), together[shuffled])
        assert_near(torch.cat([model(image[None]) for image in images]), together)


def test_stem_and_frozen_blocks_are_frozen_and_copies_are_not() -> None:
    model = tiny_embedder()
    backbone = route(model, Given(torch.ones(2, BLOCKS)), [block.name for block in model.backbone.body])
    set_training_mode(model)
    for block in backbone.routed:
        assert not any(parameter.requires_grad for parameter in block.frozen.parameters())
        assert all(parameter.requires_grad for parameter in block.tuned.parameters())
        assert not any(module.training for module in block.frozen.modules())
        assert all(module.training for module in block.tuned.modules())
    stem = next(block for block in backbone.blocks if block.name == STEM)
    assert not any(parameter.requires_grad for parameter in backbone.block_parameters(stem))


def test_code_compat_freezes_kernels_only() -> None:
    model = tiny_embedder()
    backbone = route(
        model, Given(torch.ones(2, BLOCKS)), [block.name for block in model.backbone.body], code_compat=True
    )
    set_training_mode(model)
    for block in backbone.routed:
        trained = {parameter.ndim for parameter in block.frozen.parameters() if parameter.requires_grad}
        assert trained == {1}, "batch norms"
        assert all(module.training for module in block.frozen.modules() if isinstance(module, nn.BatchNorm2d)), (
            "statistics drift"
        )
    stem = next(block for block in backbone.blocks if block.name == STEM)
    assert all(parameter.requires_grad for parameter in backbone.block_parameters(stem))


def test_decisions_are_recorded() -> None:
    decisions = torch.rand(4, BLOCKS) < 0.5
    model = moved(decisions)
    with recorded_decisions(model) as taken, torch.no_grad():
        model(random_images(4))
        model(random_images(2))
    assert [len(rows) for rows in taken] == [4, 2]
    assert torch.equal(taken[0], decisions)
    with torch.no_grad():
        model(random_images(4))
    assert len(taken) == 2, "only inside the block"
    with recorded_decisions(tiny_embedder()) as nothing:
        pass
    assert nothing == []


class Linear(nn.Module):
    """Features that are the image's first pixel, so that logits can be set."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1, 0, 0].float()


def router(logits: Tensor, temperature: float = 5.0) -> LearnedRouter:
    """A router with the same (L, 2) `logits` for every image."""
    made = LearnedRouter(
        Backbone(Linear(), (Block(STEM, ("",)),), (0.0,) * 3, (1.0,) * 3, 1), len(logits), temperature, 0
    )
    with torch.no_grad():
        made.head.weight.zero_()
        made.head.bias.copy_(logits.flatten())
    return made


def decide(made: LearnedRouter, images: Tensor) -> Tensor:
    decisions = made(images)
    assert isinstance(decisions, Tensor)
    return decisions


@settings(max_examples=20, deadline=None)
@given(st.floats(-4, 4).filter(lambda margin: abs(margin) > 1e-3), st.sampled_from([0.5, 1.0, 5.0]))
def test_probability_of_tuning_is_the_sigmoid_of_the_margin_at_any_temperature(
    margin: float, temperature: float
) -> None:
    torch.manual_seed(0)
    count = 20_000
    made = router(torch.tensor([[0.3, 0.3 + margin]]), temperature).train()
    drawn = decide(made, torch.zeros(count, 3, 1, 1))
    expected = torch.tensor(margin).sigmoid().item()
    assert abs(drawn.mean().item() - expected) < 5 * (expected * (1 - expected) / count) ** 0.5 + 1e-6
    assert made.statistics()["rate"][0] == pytest.approx(drawn.mean().item(), abs=1e-6)
    assert made.statistics()["argmax_rate"] == [float(margin > 0)]
    assert made.statistics()["entropy"][0] == pytest.approx(_bits(expected), abs=1e-4)
    made.restart()
    assert made.statistics()["rate"] == [0.0]


def _bits(probability: float) -> float:
    p = torch.tensor([probability, 1 - probability], dtype=torch.float64)
    return float(-(torch.xlogy(p, p)).sum() / torch.log(torch.tensor(2.0)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_decisions_are_one_hot_and_their_gradient_is_that_of_the_soft_ones(seed: int) -> None:
    images = torch.zeros(6, 3, 1, 1)
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    made = router(torch.randn(3, 2, generator=torch.Generator().manual_seed(seed + 1)), temperature=2.0).train()
    torch.manual_seed(seed)
    hard = decide(made, images)
    assert set(hard.flatten().tolist()) <= {0.0, 1.0}, "exactly, not within rounding"
    (hard * weights).sum().backward()
    assert made.head.bias.grad is not None
    straight = made.head.bias.grad.clone()
    made.head.bias.grad = None
    torch.manual_seed(seed)
    soft = nn.functional.gumbel_softmax(made.logits(images), tau=2.0, dim=-1)[..., 1]
    (soft * weights).sum().backward()
    torch.testing.assert_close(straight, made.head.bias.grad)


def test_policy_decides_in_float32_where_the_network_runs_in_bfloat16() -> None:
    """Rounded to bfloat16, soft decisions near 0.5 would count as frozen: 1 % of an even choice."""
    torch.manual_seed(0)
    made = router(torch.zeros(1, 2)).train()
    with torch.autocast("cpu", torch.bfloat16):
        drawn = decide(made, torch.zeros(200_000, 3, 1, 1))
    assert drawn.dtype == torch.float32
    assert abs(drawn.mean().item() - 0.5) < 0.005


def test_sampling_at_test_depends_on_the_image_and_the_draw_alone() -> None:
    made = router(torch.tensor([[0.0, 0.5]] * 6)).eval()
    images = random_images(200, side=4)
    made.sample(0)
    first = decide(made, images)
    assert torch.equal(decide(made, images.flip(0)), first.flip(0))
    assert torch.equal(decide(made, images.float() / 255), first), "however the image is given"
    made.sample(1)
    assert not torch.equal(decide(made, images), first)
    assert abs(first.mean().item() - torch.tensor(0.5).sigmoid().item()) < 0.06
    made.argmax()
    assert decide(made, images).all()


def test_random_router_is_random_in_training_and_fixed_at_test() -> None:
    made, images = RandomRouter(5, seed=1), random_images(400, side=4)
    torch.manual_seed(0)
    first, second = made.train()(images), made(images)
    assert not torch.equal(first, second)
    made.eval()
    assert torch.equal(made(images), made(images.flip(0)).flip(0))
    assert not torch.equal(made(images), RandomRouter(5, seed=2).eval()(images))
    for drawn in (first, made(images)):
        assert (drawn.mean(0) - 0.5).abs().max() < 0.12


def test_pixel_noise_is_uniform() -> None:
    noise = pixel_noise(random_images(500, side=4), 4, 0).flatten()
    assert 0 <= noise.min() < noise.max() < 1
    assert (torch.histc(noise, 10, 0, 1) / len(noise) - 0.1).abs().max() < 0.03


def test_policy_network_costs_at_most_a_sixth_where_it_can() -> None:
    from timm import create_model

    net = create_model("resnet50", num_classes=0)
    backbone = Backbone(net, (), (0.5,) * 3, (0.5,) * 3, 2048)
    network, about = policy_network(backbone, 128)
    assert about == {"width": 32, "parameters": cost.parameters(network), "macs": cost.macs(network, 128)}
    assert about["macs"] <= cost.macs(backbone, 128) / 6
    assert network(random_images(2, side=128)).shape == (2, 256)
    smallest, about = policy_network(tiny_embedder().backbone, 32)
    assert about["width"] == 8
    assert smallest.feature_dim == 64
