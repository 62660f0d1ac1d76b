"""Channel gates, pruning to a budget, Network Slimming: what they promise beyond the shared suite."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.pruning import find_channels
from retrieval_bench.models.statistics import norm_outputs
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import (
    SCORES,
    ChannelPruning,
    activation_scores,
    channel_scores,
    sensitivities,
)
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from tests.training.helpers import (
    Data,
    assert_near,
    differing,
    make_training,
    random_images,
    run_config,
    state_of,
    tiny_embedder,
)

IMAGES = random_images(5, seed=3)
WIDTHS = find_channels(tiny_embedder().backbone, 32)


def gated(**options: Any) -> tuple[ChannelGates, Embedder, Any]:
    """The strategy, its model and its gates."""
    strategy = ChannelGates(ChannelGates.Options(**{"budget": 0.9, **options}))
    model = strategy.prepare(tiny_embedder(), random_images(8)).eval()
    return strategy, model, strategy._gates


def test_gates_of_one_change_nothing_and_closed_ones_open_again() -> None:
    _, model, gates = gated()
    expected, before = tiny_embedder()(IMAGES), gates.scores()
    assert torch.equal(model(IMAGES), expected), "bit for bit"
    name, width = gates.widths[0].name, gates.widths[0].channels
    with gates.only({name: [1, 2]}):
        assert gates.scores()[name] == [0.0, 1.0, 1.0, *[0.0] * (width - 3)]
        assert not torch.equal(model(IMAGES), expected)
    assert gates.scores() == before


@pytest.mark.parametrize("regime", ["inherit", "from_scratch"])
def test_only_gates_change_in_the_search_and_stay_between_0_and_1(regime: str, synthetic: Data) -> None:
    """Neither weights nor statistics of norms; the loss's own parameters do, but training begins with fresh ones."""
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, regime=regime, gate_lr=0.5))
    training = make_training(synthetic, strategy, run_config(lr=0.01))
    before, loss = state_of(training.model), state_of(training.criterion)
    training.train_once(-1)
    changed = differing(before, state_of(training.model))
    assert changed
    assert all(".gates." in name for name in changed)
    assert differing(loss, state_of(training.criterion))
    gates = torch.cat(list(training.model.backbone.gates))  # pyright: ignore
    assert (gates.min(), gates.max()) == (0, 1), "clamped"


def test_the_search_of_the_public_code(synthetic: Data) -> None:
    """Adam, norms that normalise by the batch, a classifier that stays as drawn; the training is as usual again."""
    options: Any = {"search": "public", "gamma": 50.0, "gate_lr": 0.05, "search_epochs": 4}
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, regime="from_scratch", **options))
    training = make_training(synthetic, strategy, run_config(optimizer="sgd"))
    before, loss = state_of(training.model), state_of(training.criterion)
    seen = []

    def train_once(attempt: int = 0, epochs: int = 0) -> float:
        seen.append(type(training.optimizer))
        return training.train_once(attempt, epochs)

    strategy.before_training(train_once, training)
    assert set(seen) == {torch.optim.Adam}
    assert isinstance(training.optimizer, torch.optim.SGD)
    assert not differing(loss, state_of(training.criterion)), "drawn alike, and not trained"
    assert any(key.endswith("running_mean") for key in differing(before, state_of(training.model)))
    assert strategy.info()["mean_gate"] < 0.75
    assert not any(module._forward_pre_hooks for module in training.model.modules())
    assert "warning" in strategy.info(), "of a mean gate far from r"
    cases: list[Any] = [{"search": "public"}, {"regime": "from_scratch", "statistics": "mean"}]
    for misplaced in cases:
        with pytest.raises(UserError, match=r"not with .*regime"):
            ChannelGates.Options(**misplaced).check()


def test_penalty_pulls_the_mean_to_the_sparsity_and_vanishes_there() -> None:
    strategy, model, gates = gated(gamma=2.0, sparsity=0.25)
    penalty: Any = strategy.regularization(model, IMAGES)
    torch.testing.assert_close(penalty.detach(), torch.tensor(2.0 * 0.75**2))
    gates.load({name: [0.25] * size for name, size in WIDTHS.full.items()})
    penalty = strategy.regularization(model, IMAGES)
    assert penalty.item() == 0
    strategy, model, gates = gated(form="l1", gamma=0.5)
    penalty = strategy.regularization(model, IMAGES)
    assert penalty.item() == pytest.approx(0.5 * sum(WIDTHS.full.values()))


def test_inherit_gives_what_the_gated_network_gives_where_only_closed_channels_are_removed() -> None:
    """Channels with gate zero are removed, the others' gates are folded in: the same embeddings."""
    torch.manual_seed(0)
    scores = {
        name: [*torch.rand(size // 2).tolist(), *[0.0] * (size - size // 2)] for name, size in WIDTHS.full.items()
    }
    open_gates = {name: sum(gate > 0 for gate in gates) for name, gates in scores.items()}
    strategy, model, gates = gated(budget=WIDTHS.macs(open_gates) / WIDTHS.macs(WIDTHS.full))
    gates.load(scores)
    with torch.no_grad():
        expected = model(IMAGES)
        strategy.prune_by(model, gates.scores())
        actual = model.eval()(IMAGES)
    assert strategy.info()["widths"] == open_gates
    assert_near(actual, expected)
    plain = {name for name, _ in tiny_embedder().named_parameters()}
    assert {name for name, _ in model.named_parameters()} == plain, "a plain network is left"


def test_from_scratch_trains_other_random_weights_than_it_searched_on(synthetic: Data) -> None:
    def stem(training: Any) -> torch.Tensor:
        return training.model.backbone.net.conv1.weight.detach().clone()

    strategy = ChannelGates(ChannelGates.Options(budget=0.9, regime="from_scratch"))
    training = make_training(synthetic, strategy, run_config(lr=0.0, epochs=0))
    searched = stem(training)
    assert not torch.equal(searched, tiny_embedder().backbone.net.get_submodule("conv1").weight)  # pyright: ignore
    model = training.fit()
    assert training.images_seen == 64, "the search counts as cost"
    assert not torch.equal(searched, stem(training))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_pass_with_the_best_recall_on_held_out_classes_gives_the_gates(
    synthetic: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are given here, and the gates of each pass noted: those of the best pass give the widths."""
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, search_epochs=3, held_out=0.25, gate_lr=0.1))
    training = make_training(synthetic, strategy, run_config(epochs=0))
    recalls, choose, noted = iter([0.5, 0.75, 0.75]), strategy.choose, []

    def recall_at_1() -> float:
        gates: Any = training.model.backbone.gates
        assert any((gate == 0).any() for gate in gates), "scored as it will be pruned"
        return next(recalls)

    monkeypatch.setattr(training, "holding_out", lambda share: nullcontext(recall_at_1))
    monkeypatch.setattr(strategy, "choose", lambda channels, scores: noted.append(scores) or choose(channels, scores))
    training.fit()
    assert noted[3] == noted[1] != noted[2], "the first of the best"
    assert strategy.info()["held_out_recall_at_1"] == [0.5, 0.75, 0.75]
    assert len(strategy.info()["search_losses"]) == 3
    assert abs(strategy.info()["error"]) < 0.01


def test_expansion_searches_a_wider_network_for_the_budget_of_the_usual_one(synthetic: Data) -> None:
    options = ChannelGates.Options(budget=0.9, regime="from_scratch", expansion=1.5, gate_lr=0.1, search_epochs=2)
    strategy = ChannelGates(options)
    training = make_training(synthetic, strategy, run_config(epochs=0))
    assert strategy._channels.full == {name: round(1.5 * size) for name, size in WIDTHS.full.items()}
    model, info = training.fit(), strategy.info()
    assert info["full_widths"] == WIDTHS.full
    assert cost.macs(model, 32) / cost.macs(tiny_embedder(), 32) == pytest.approx(info["reached"], abs=1e-6)
    assert info["reached"] == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("scores", SCORES)
def test_every_score_prunes_to_the_budget(scores: str, synthetic: Data) -> None:
    strategy = ChannelPruning(ChannelPruning.Options(budget=0.9, scores=scores))
    training = make_training(synthetic, strategy, run_config(epochs=0))
    model = training.fit()
    assert training.images_seen == {"activation": 64, "snip": 16}.get(scores, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert cost.macs(model, 32) / cost.macs(tiny_embedder(), 32) == pytest.approx(0.9, abs=0.01)
    shares = [width / WIDTHS.full[name] for name, width in strategy.info()["widths"].items()]
    if scores == "uniform":
        assert max(shares) - min(shares) <= 1 / 8, "the same share of each layer, within one channel"


def test_scores_by_hand() -> None:
    backbone: Any = tiny_embedder().backbone
    with torch.no_grad():
        backbone.net.layer1[0].conv1.weight[3] *= 100
        backbone.net.layer1[0].bn1.weight[2] *= -3
    criteria = ("magnitude", "bn_scale", "uniform", "folded")
    magnitude, scale, uniform, folded = (channel_scores(backbone, WIDTHS, each)["layer1.0.conv1"] for each in criteria)
    assert max(range(8), key=magnitude.__getitem__) == 3
    assert sum(magnitude) / 8 == pytest.approx(1, rel=1e-5)
    assert scale == [1.0, 1.0, 3.0, *[1.0] * 5]
    assert sorted(uniform) == [rank / 8 for rank in range(8)]
    assert uniform[3] == 7 / 8
    norm, lengths = backbone.net.layer1[0].bn1, backbone.net.layer1[0].conv1.weight.flatten(1).norm(dim=1)
    expected = lengths * norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(torch.tensor(folded), expected)


def test_measured_scores_by_hand(synthetic: Data) -> None:
    """Activation: what the next convolution gives varies by that much if this channel alone does. SNIP: by the loss's
    change when a channel's kernel is scaled, where all products of gradient and weight have one sign."""
    training = make_training(synthetic, None, run_config())
    backbone: Any = training.model.backbone
    name, conv = "layer4.1.conv1", backbone.net.layer4[1].conv2
    seen: list[torch.Tensor] = []
    handle = conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, labels = next(training.example_batches(1))
    with torch.no_grad():
        backbone.eval()(images)
        handle.remove()
        deviations = seen[0].std(dim=(0, 2, 3), correction=0)
        expected = deviations * torch.stack([conv.weight[:, channel].norm() for channel in range(64)])
    scores = activation_scores(backbone, WIDTHS, [images])[name]
    torch.testing.assert_close(torch.tensor(scores), expected.square() / expected.square().sum())
    measured = sensitivities(training, WIDTHS)[name]
    weight = backbone.net.layer4[1].conv1.weight
    training.criterion(training.model.eval()(images), labels).backward()
    torch.testing.assert_close(torch.tensor(measured), (weight.grad * weight).abs().sum(dim=(1, 2, 3)))


def test_slimming_shrinks_the_scales_and_prunes_after_training(synthetic: Data) -> None:
    def trained(strength: float) -> tuple[float, dict[str, Any]]:
        strategy = NetworkSlimming(NetworkSlimming.Options(budget=0.9, strength=strength, sparse_epochs=3))
        training = make_training(synthetic, strategy, run_config(lr=0.02, epochs=0, weight_decay=0.0))
        norms: list[Any] = [training.model.backbone.net.get_submodule(width.norms[0]) for width in WIDTHS.widths]
        training.train_once(-1)
        scale = torch.cat([norm.weight.detach().abs() for norm in norms]).mean().item()
        training.fit()
        assert training.images_seen == 4 * 64
        return scale, strategy.info()

    (weak_scale, weak), (strong_scale, strong) = trained(0.0), trained(1.0)
    assert strong_scale < weak_scale
    assert abs(strong["error"]) < 0.01
    assert strong["widths"] != weak["widths"]


@pytest.mark.parametrize("kind", [ChannelGates, ChannelPruning, NetworkSlimming])
def test_matched_norms_give_what_they_gave_in_the_whole_network(kind: Any, synthetic: Data) -> None:
    """Without the option the outputs of norms behind a cut are others; the images count as cost."""

    def outputs(statistics: str) -> tuple[Any, Any, int]:
        strategy = kind(kind.Options(budget=0.9, statistics=statistics))
        training = make_training(synthetic, strategy, run_config(epochs=0, lr=0.0, batch_size=64))
        images = [images for images, _ in training.example_batches(64)]
        before = norm_outputs(tiny_embedder().backbone, images)
        training.images_seen = 0
        model = training.fit()
        return before, norm_outputs(model.backbone, images), training.images_seen

    searched = {ChannelGates: 1, NetworkSlimming: 2}.get(kind, 0) * 64
    before, stale, seen = outputs("stale")
    _, mean, _ = outputs("mean")
    _, matched, seen_matched = outputs("matched")
    assert (seen, seen_matched) == (searched, searched + 2 * 64)
    if kind is not NetworkSlimming:  # whose statistics move in training
        for name in ("layer1.0.bn2", "layer4.0.bn2", "layer4.1.bn2"):
            torch.testing.assert_close(matched[name], before[name], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(mean[name][0], before[name][0], rtol=1e-3, atol=1e-3)
        assert (stale["layer4.1.bn2"][0] - before["layer4.1.bn2"][0]).abs().max() > 0.01
