"""Routed backbones: what each image passes through, what the routers decide, and statistics of routes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm import create_model
from torch import Tensor, nn

from retrieval_bench import cost
from retrieval_bench.models.backbone import STEM, Backbone, Block
from retrieval_bench.models.embedder import Embedder, set_training_mode
from retrieval_bench.models.routes import describe_routes, recorded_decisions
from retrieval_bench.models.routing import LearnedRouter, RoutedBackbone, RoutedBlock, route, unroute
from retrieval_bench.strategies.spottune import policy_network
from tests.training.helpers import assert_near, random_images, tiny_embedder

BLOCKS = 8


class Given(nn.Module):
    """A router whose decisions are given, image by image."""

    def __init__(self, decisions: Tensor):
        super().__init__()
        self.decisions = decisions.float()

    def forward(self, images: Tensor) -> Tensor:
        return self.decisions[: len(images)]


def routed(decisions: Tensor) -> tuple[Embedder, RoutedBackbone]:
    """A routed network whose tuned blocks differ from the frozen ones, as after training."""
    model = tiny_embedder()
    backbone = route(model, Given(decisions), [block.name for block in model.backbone.body])
    torch.manual_seed(5)
    with torch.no_grad():
        for block in backbone.routed.values():
            for parameter in block.tuned.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval(), backbone


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=BLOCKS, max_size=BLOCKS), min_size=1, max_size=6))
def test_each_image_runs_through_the_branches_that_it_takes(decisions: list[list[bool]]) -> None:
    """The oracle passes each image through a plain network that is put together from its branches."""
    (model, backbone), images = routed(torch.tensor(decisions)), random_images(len(decisions))
    with torch.no_grad():
        rows = []
        for image, row in zip(images, decisions, strict=True):
            plain = copy.deepcopy(model)
            for name, tuned in zip(backbone.routed, row, strict=True):
                block = plain.backbone.net.get_submodule(name)
                plain.backbone.net.set_submodule(name, block.get_submodule("tuned" if tuned else "frozen"))
            plain.backbone = Backbone(plain.backbone.net, backbone.blocks, *backbone.normalisation, 64)
            rows.append(plain.eval()(image[None]))
        expected = torch.cat(rows)
        assert_near(model(images), expected)
        backbone.both_branches = True
        assert_near(model(images), expected)
        backbone.router = Given(torch.tensor(decisions[:1]))
        unroute(model, decisions[0])
        assert type(model.backbone) is Backbone
        assert_near(model.eval()(images[:1]), expected[:1])


def test_eval_costs_one_branch_per_block_and_training_two() -> None:
    model, backbone = routed(torch.rand(6, BLOCKS) < 0.5)
    plain = cost.macs(tiny_embedder(), 32)
    assert cost.macs(model, 32) == plain
    backbone.both_branches = True
    assert 1.2 * plain < cost.macs(model, 32) < 2 * plain, "all but the stem"


def test_gradient_of_a_decision_is_the_difference_of_its_branches() -> None:
    model, backbone = routed(torch.ones(1, BLOCKS))
    decisions = torch.tensor([[1.0, 0.0] * 4], requires_grad=True)
    backbone.router, backbone.both_branches = Given(decisions), True
    backbone.router.decisions = decisions
    inputs: list[Tensor] = []
    last = list(backbone.routed.values())[-1]
    last.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(random_images(1)).sum().backward()
    with torch.no_grad():
        difference = (last.tuned(inputs[0]) - last.frozen(inputs[0])).mean((2, 3)).sum()
    assert decisions.grad is not None
    torch.testing.assert_close(decisions.grad[0, -1], difference, rtol=1e-4, atol=1e-5)


def test_branches_may_flatten_what_they_get() -> None:
    """As the last stage of an EfficientFormer does."""
    block, images = RoutedBlock(nn.Flatten(), nn.Sequential(nn.Flatten(), nn.ReLU())), torch.randn(3, 2, 4, 4)
    expected = torch.stack([images[0].flatten(), images[1].flatten().relu(), images[2].flatten()])
    for way in (torch.tensor([0.0, 1.0, 0.0]), (torch.tensor([0, 2]), torch.tensor([1]))):
        block.route = way
        assert torch.equal(block(images), expected)


def test_batch_composition_does_not_matter() -> None:
    """Nor how often an image is embedded: the same image, the same vector."""
    torch.manual_seed(0)
    model, backbone = routed(torch.ones(1, BLOCKS))
    backbone.router = LearnedRouter(policy_network(tiny_embedder().backbone, 32)[0], BLOCKS, 5.0, 0)
    images, shuffled = random_images(12), torch.randperm(12)
    with torch.no_grad():
        together = model.eval()(images)
        assert backbone.decisions is not None
        assert 0.1 < backbone.decisions.mean() < 0.9, "images take different branches, which give different vectors"
        assert torch.equal(model(images), together)
        assert_near(model(images[shuffled]), together[shuffled])
        assert_near(torch.cat([model(image[None]) for image in images]), together)


@pytest.mark.parametrize("code_compat", [False, True])
def test_what_is_frozen(code_compat: bool) -> None:
    """All of the frozen blocks and the stem; in the way of SpotTune's code, the kernels of the blocks alone."""
    model = tiny_embedder()
    names = [block.name for block in model.backbone.body]
    backbone = route(model, Given(torch.ones(2, BLOCKS)), names, code_compat)
    set_training_mode(model)
    for block in backbone.routed.values():
        trained = {parameter.ndim for parameter in block.frozen.parameters() if parameter.requires_grad}
        assert trained == ({1} if code_compat else set())
        norms = [module for module in block.frozen.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {norm.training for norm in norms} == {code_compat}, "statistics"
        assert all(parameter.requires_grad for parameter in block.tuned.parameters())
        assert all(module.training for module in block.tuned.modules())
    stem = next(block for block in backbone.blocks if block.name == STEM)
    assert {parameter.requires_grad for parameter in backbone.block_parameters(stem)} == {code_compat}


def test_decisions_are_recorded_inside_the_context_only() -> None:
    decisions = torch.rand(4, BLOCKS) < 0.5
    model, backbone = routed(decisions)
    with recorded_decisions(model) as recorded, torch.no_grad():
        model(random_images(4))
        model(random_images(2))
        backbone.router.forward = lambda images: (True, False) * 4  # one route for all images
        model(random_images(2))
    expected = [decisions, decisions[:2], torch.tensor([[True, False] * 4] * 2)]
    with torch.no_grad():
        model(random_images(4))
    assert all(torch.equal(rows, given) for rows, given in zip(recorded, expected, strict=True))
    with recorded_decisions(tiny_embedder()) as nothing:
        tiny_embedder()(random_images(1))
    assert nothing == []


def constant_router(logits: Tensor, temperature: float = 5.0) -> LearnedRouter:
    """A router with the same (L, 2) `logits` for every image."""
    features = Backbone(nn.Flatten(), (Block(STEM, ("",)),), (0.0,) * 3, (1.0,) * 3, 3)
    made = LearnedRouter(features, len(logits), temperature, 0)
    with torch.no_grad():
        made.head = nn.Linear(3, logits.numel())
        made.head.weight.zero_()
        made.head.bias.copy_(logits.flatten())
    return made


def decide(router: LearnedRouter, images: Tensor) -> Tensor:
    decisions = router(images)
    assert isinstance(decisions, Tensor)
    return decisions


@settings(max_examples=20, deadline=None)
@given(st.floats(-4, 4).filter(lambda margin: abs(margin) > 1e-3), st.sampled_from([0.5, 1.0, 5.0]))
def test_probability_of_tuning_is_the_sigmoid_of_the_margin_at_any_temperature(
    margin: float, temperature: float
) -> None:
    torch.manual_seed(0)
    count = 20_000
    router = constant_router(torch.tensor([[0.3, 0.3 + margin]]), temperature).train()
    drawn = decide(router, torch.zeros(count, 3, 1, 1))
    p = 1 / (1 + math.exp(-margin))
    assert abs(drawn.mean().item() - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1e-6
    statistics = router.statistics()
    assert statistics["rate"][0] == pytest.approx(drawn.mean().item(), abs=1e-6)
    assert statistics["argmax_rate"] == [float(margin > 0)]
    assert statistics["entropy"][0] == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p), abs=1e-4)
    router.reset_statistics()
    assert router.statistics()["rate"] == [0.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_decisions_are_one_hot_and_their_gradient_is_that_of_the_soft_ones(seed: int) -> None:
    images = torch.zeros(6, 3, 1, 1)
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    router = constant_router(torch.randn(3, 2, generator=torch.Generator().manual_seed(seed + 1)), 2.0).train()
    torch.manual_seed(seed)
    hard = decide(router, images)
    assert set(hard.flatten().tolist()) <= {0.0, 1.0}, "exactly, not within rounding"
    straight = torch.autograd.grad((hard * weights).sum(), router.head.bias)
    torch.manual_seed(seed)
    soft = nn.functional.gumbel_softmax(router.logits(images), tau=2.0, dim=-1)[..., 1]
    torch.testing.assert_close(straight, torch.autograd.grad((soft * weights).sum(), router.head.bias))


def test_policy_decides_in_float32_where_the_network_runs_in_bfloat16() -> None:
    """Rounded to bfloat16, soft decisions near 0.5 would count as frozen: 1 % of an even choice."""
    torch.manual_seed(0)
    router = constant_router(torch.zeros(1, 2)).train()
    with torch.autocast("cpu", torch.bfloat16):
        drawn = decide(router, torch.zeros(200_000, 3, 1, 1))
    assert drawn.dtype == torch.float32
    assert abs(drawn.mean().item() - 0.5) < 0.005


def test_draws_at_test_depend_on_the_image_and_the_draw_alone() -> None:
    router = constant_router(torch.tensor([[0.0, 0.5], [0.5, 0.0], [0.0, 0.5]])).eval()
    images = random_images(400, side=1)
    router.draw = 0
    first = decide(router, images)
    assert router.draws
    assert torch.equal(decide(router, images.flip(0)), first.flip(0))
    assert torch.equal(decide(router, images.float() / 255), first), "however the image is given"
    router.draw = 1
    assert not torch.equal(decide(router, images), first)
    probability = torch.tensor([0.5, -0.5, 0.5]).sigmoid()
    assert (first.mean(0) - probability).abs().max() < 0.1
    router.draw = None
    assert decide(router, images)[0].tolist() == [1.0, 0.0, 1.0], "the more probable block"
    router.fixed = (False, True, True)
    assert router(images) == (False, True, True)
    assert not router.draws


def test_policy_network_costs_at_most_a_sixth_where_it_can() -> None:
    backbone = Backbone(create_model("resnet50", num_classes=0), (), (0.5,) * 3, (0.5,) * 3, 2048)
    network, about = policy_network(backbone, 128)
    assert about == {"width": 32, "parameters": cost.parameters(network), "macs": cost.macs(network, 128)}
    assert about["macs"] <= cost.macs(backbone, 128) / 6
    assert network(random_images(2, side=128)).shape == (2, 256)
    smallest, about = policy_network(tiny_embedder().backbone, 32)
    assert about["width"] == 8
    assert smallest.feature_dim == 64


def test_routes_are_described_by_rates_distinct_routes_and_examples() -> None:
    decisions = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=bool)
    paths = [f"{row}.png" for row in range(4)]
    described = describe_routes(decisions, np.array([0, 0, 2, 2]), ["a", "b", "c"], paths, examples=3)
    assert described == {
        "images": 4,
        "rate": [0.75, 0.25],
        "rate_by_class": {"a": [1.0, 0.0], "c": [0.5, 0.5]},
        "distinct": 3,
        "entropy_bits": 1.5,
        "commonest": {"10": 2, "11": 1, "00": 1},
        "examples": {"3.png": "00", "1.png": "10", "2.png": "11"},
    }
    many = describe_routes(np.ones((300, 2), dtype=bool), np.arange(300), list(map(str, range(300))), list("p" * 300))
    assert (len(many["rate_by_class"]), many["entropy_bits"], many["distinct"]) == (200, 0.0, 1)
