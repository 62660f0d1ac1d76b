"""Channel gates, pruning to a budget, Network Slimming: what they promise beyond the shared suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from retrieval_bench import cost
from retrieval_bench.errors import UserError
from retrieval_bench.models.gates import Gates
from retrieval_bench.strategies import StrategyOptions, build_strategy
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning, channel_scores
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from tests.training.helpers import Data, differing, make_training, random_images, run_config, state_of, tiny_embedder

IMAGES = random_images(5, seed=3)


def gated(**options: Any) -> tuple[ChannelGates, Any]:
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, **options))
    return strategy, strategy.prepare(tiny_embedder(), random_images(8)).eval()


def test_gates_of_one_change_nothing_bit_for_bit() -> None:
    _, model = gated()
    assert torch.equal(model(IMAGES), tiny_embedder()(IMAGES))


@pytest.mark.parametrize("regime", ["inherit", "from_scratch"])
def test_only_gates_change_in_the_search(regime: str, synthetic: Data) -> None:
    """Neither weights nor statistics of norms; the loss's own parameters do, but training begins with fresh ones."""
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, regime=regime))
    training = make_training(synthetic, strategy, run_config(lr=0.01))
    before, loss = state_of(training.model), state_of(training.criterion)
    training.train_once(-1)
    changed = differing(before, state_of(training.model))
    assert changed
    assert all(".gates." in name for name in changed)
    assert all(gate.min() >= 0 and gate.max() <= 1 for gate in training.model.backbone.gates)  # pyright: ignore
    assert differing(loss, state_of(training.criterion))


def test_penalty_pulls_the_mean_to_the_sparsity_and_vanishes_there() -> None:
    strategy, model = gated(gamma=2.0, sparsity=0.25)
    penalty = strategy.regularization(model, IMAGES)
    assert penalty is not None
    torch.testing.assert_close(penalty.detach(), torch.tensor(2.0 * 0.75**2))
    gates: Gates = model.backbone.gates
    with torch.no_grad():
        for gate in gates:
            gate.fill_(0.25)
    found = strategy.regularization(model, IMAGES)
    assert found is not None
    assert found.item() == 0
    plain, other = gated(form="l1", gamma=0.5)
    total = plain.regularization(other, IMAGES)
    assert total is not None
    assert total.item() == pytest.approx(0.5 * sum(gate.numel() for gate in other.backbone.gates))


def test_clamped() -> None:
    strategy, model = gated()
    with torch.no_grad():
        for gate in model.backbone.gates:
            gate += torch.linspace(-2, 1, len(gate))
    strategy.after_step(model)
    assert all(gate.min() >= 0 and gate.max() <= 1 for gate in model.backbone.gates)


def test_inherit_gives_what_the_gated_network_gives_where_only_dead_channels_go() -> None:
    """Channels with gate zero are removed, the others' gates are folded in: the same embeddings."""
    strategy, model = gated()
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in model.backbone.gates:
            gate.copy_(torch.rand(len(gate)) * 0.5 + 0.5)
            gate[torch.randperm(len(gate))[: len(gate) // 2]] = 0
    alive = sum(int((gate > 0).sum()) for gate in model.backbone.gates)
    channels = strategy._channels
    widths = {
        width.name: int((gate > 0).sum()) for width, gate in zip(channels.widths, model.backbone.gates, strict=True)
    }
    strategy.options = ChannelGates.Options(budget=channels.macs(widths) / channels.macs(channels.full))
    with torch.no_grad():
        expected = model(IMAGES)
        strategy.end_search(model)
        found = model.eval()(IMAGES)
    assert sum(strategy.info()["widths"].values()) == alive
    assert ((found - expected).norm(dim=1) <= 1e-5 * expected.norm(dim=1)).all()
    plain = {name for name, _ in tiny_embedder().named_parameters()}
    assert {name for name, _ in model.named_parameters()} == plain, "a plain network is left"
    assert not hasattr(model.backbone, "gates")


def test_from_scratch_trains_other_random_weights_than_it_searched_on(synthetic: Data) -> None:
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, regime="from_scratch"))
    training = make_training(synthetic, strategy, run_config(lr=0.0, epochs=0))
    searched = training.model.backbone.net.get_submodule("conv1").weight.detach().clone()  # pyright: ignore
    assert not torch.equal(searched, tiny_embedder().backbone.net.get_submodule("conv1").weight)  # pyright: ignore
    model = training.fit()
    assert not torch.equal(searched, model.backbone.net.get_submodule("conv1").weight)  # pyright: ignore
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_search_counts_as_cost_and_the_same_seed_gives_the_same_widths(synthetic: Data) -> None:
    def searched() -> tuple[int, dict[str, Any]]:
        strategy = ChannelGates(ChannelGates.Options(budget=0.9, search_epochs=3))
        training = make_training(synthetic, strategy, run_config(epochs=1))
        training.fit()
        return training.images_seen, strategy.info()

    images, facts = searched()
    assert images == 4 * 64
    assert facts == searched()[1]
    assert abs(facts["error"]) < 0.01
    assert len(facts["search_losses"]) == 3
    assert len(facts["widths"]) == 8


def test_the_pass_with_the_best_recall_on_held_out_classes_gives_the_gates(
    synthetic: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are given here, and the gates of each pass noted: those of the best pass are what the widths come from."""
    strategy = ChannelGates(ChannelGates.Options(budget=0.9, search_epochs=3, held_out=0.25, gate_lr=0.1))
    training = make_training(synthetic, strategy, run_config(epochs=0))
    classes = set(training.batches.labels)
    passes: list[Any] = []
    given = iter([0.5, 0.75, 0.75])

    def score(model: Any, held: Any) -> float:
        closed = sum(int((gate == 0).sum()) for gate in strategy._gates)
        passes.append((training.batches.labels, held.labels, closed, held.sampler))
        return next(given)

    monkeypatch.setattr("retrieval_bench.training.loop.recall_at_1", score)
    found: list[Any] = []
    choose = strategy.choose
    monkeypatch.setattr(strategy, "choose", lambda channels, scores: found.append(scores) or choose(channels, scores))
    training.fit()
    assert found[3] == found[1] != found[2], "the first of the best"
    for trained, held, closed, sampler in passes:
        assert set(trained) | set(held) == classes
        assert len(set(held)) == round(0.25 * len(classes))
        assert not set(trained) & set(held)
        assert closed > 0, "scored as it will be pruned"
        assert sampler is None, "in order, not augmented"
    assert strategy.info()["held_out_recall_at_1"] == [0.5, 0.75, 0.75]
    assert set(training.batches.labels) == classes, "all classes are back"
    assert training.images_seen == 3 * 64, "those that are trained on, and those that are scored"


def test_expansion_searches_a_wider_network_for_the_budget_of_the_usual_one(synthetic: Data) -> None:
    options = ChannelGates.Options(budget=0.9, regime="from_scratch", expansion=1.5, gate_lr=0.1, search_epochs=2)
    strategy = ChannelGates(options)
    training = make_training(synthetic, strategy, run_config(epochs=0))
    assert strategy._channels.full == {name: round(1.5 * size) for name, size in strategy._full.items()}
    model = training.fit()
    facts = strategy.info()
    assert cost.macs(model, 32) / cost.macs(tiny_embedder(), 32) == pytest.approx(facts["reached"], abs=1e-6)
    assert facts["reached"] == pytest.approx(0.9, abs=0.01)


def test_gates_that_were_closed_for_a_while_are_as_before() -> None:
    _, model = gated()
    gates: Gates = model.backbone.gates
    before = gates.scores()
    name = gates.widths[0].name
    with gates.only({name: [1, 2]}):
        assert gates.scores()[name] == [0.0, 1.0, 1.0, *[0.0] * (gates.widths[0].channels - 3)]
        assert not torch.equal(model(IMAGES), tiny_embedder()(IMAGES))
    assert gates.scores() == before


@pytest.mark.parametrize("scores", ["magnitude", "bn_scale", "uniform"])
def test_pruning_at_once(scores: str) -> None:
    strategy = ChannelPruning(ChannelPruning.Options(budget=0.9, scores=scores))
    model = strategy.prepare(tiny_embedder(), random_images(2))
    assert cost.macs(model, 32) / cost.macs(tiny_embedder(), 32) == pytest.approx(0.9, abs=0.01)
    shares = [width / strategy.info()["full_widths"][name] for name, width in strategy.info()["widths"].items()]
    if scores == "uniform":
        assert max(shares) - min(shares) <= 1 / 8, "the same share of each layer, within one channel"


def test_scores_by_hand() -> None:
    model = tiny_embedder()
    strategy = ChannelPruning(ChannelPruning.Options(budget=0.9))
    channels = strategy.find(model, random_images(2))
    first: Any = model.backbone.net.get_submodule("layer1.0.conv1")
    with torch.no_grad():
        first.weight[3] *= 100
    scores = {
        way: channel_scores(model.backbone, channels, way)["layer1.0.conv1"]
        for way in ("magnitude", "bn_scale", "uniform")
    }
    assert max(range(8), key=scores["magnitude"].__getitem__) == 3
    assert sum(scores["magnitude"]) / 8 == pytest.approx(1, rel=1e-5)
    assert scores["bn_scale"] == [1.0] * 8
    assert sorted(scores["uniform"]) == [place / 8 for place in range(8)]


def test_slimming_shrinks_the_scales_and_prunes_after_training(synthetic: Data) -> None:
    def trained(strength: float) -> tuple[float, NetworkSlimming]:
        strategy = NetworkSlimming(NetworkSlimming.Options(budget=0.9, strength=strength, sparse_epochs=3))
        training = make_training(synthetic, strategy, run_config(lr=0.02, epochs=0, weight_decay=0.0))
        norms: list[Any] = strategy._norms
        training.train_once(-1)
        scale = torch.cat([norm.weight.detach().abs() for norm in norms]).mean().item()
        training.fit()
        return scale, strategy

    weak, strong = trained(0.0), trained(1.0)
    assert strong[0] < weak[0]
    assert abs(strong[1].info()["error"]) < 0.01
    assert strong[1].info()["widths"] != weak[1].info()["widths"]


@pytest.mark.parametrize(
    "strategy",
    ["layer_pruning+channel_gates", "channel_gates+autolr", "channel_pruning+spottune", "channel_gates+l2sp"],
)
def test_they_compose(strategy: str, synthetic: Data) -> None:
    options = StrategyOptions(
        channel_gates=ChannelGates.Options(budget=0.95), channel_pruning=ChannelPruning.Options(budget=0.95)
    )
    built = build_strategy(strategy, options)
    model = make_training(synthetic, built, run_config("softmax", optimizer="sgd", lr=0.01)).fit()
    assert model.eval()(IMAGES).isfinite().all()
    assert built.info().keys() >= set(strategy.split("+"))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (ChannelPruning(ChannelPruning.Options(budget=0.1)), "cannot be met"),
        (ChannelPruning(ChannelPruning.Options(scores="taylor")), "taylor"),
        (ChannelPruning(ChannelPruning.Options(unit="flops")), "flops"),
        (ChannelPruning(ChannelPruning.Options(budget=0.0)), "above 0"),
        (ChannelGates(ChannelGates.Options(budget=0.1)), "cannot be met"),
        (ChannelGates(ChannelGates.Options(regime="scratch")), "from_scratch"),
        (ChannelGates(ChannelGates.Options(form="l2")), "l2"),
        (ChannelGates(ChannelGates.Options(gamma=-1.0)), "not be negative"),
        (ChannelGates(ChannelGates.Options(held_out=0.2)), "at least two search-epochs"),
        (ChannelGates(ChannelGates.Options(expansion=2.0)), "1 in the regime inherit"),
        (NetworkSlimming(NetworkSlimming.Options(strength=-1.0)), "not be negative"),
    ],
)
def test_wrong_options(strategy: Strategy, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strategy.prepare(tiny_embedder(), random_images(2))


@pytest.mark.parametrize(
    "strategy", [ChannelGates(ChannelGates.Options(budget=0.9, regime="from_scratch")), NetworkSlimming()]
)
def test_batch_norms_must_train(strategy: Strategy, synthetic: Data) -> None:
    with pytest.raises(UserError, match="add --no-freeze-bn"):
        make_training(synthetic, strategy, run_config(freeze_bn=True))


def test_onnx_gives_the_same_embeddings(tmp_path: Any) -> None:
    import onnxruntime

    model = ChannelPruning(ChannelPruning.Options(budget=0.9)).prepare(tiny_embedder(), random_images(2)).eval()
    path = tmp_path / "pruned.onnx"
    images = IMAGES.float() / 255
    torch.onnx.export(model, (images,), str(path), input_names=["images"], dynamo=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    expected = model(images).detach()
    assert ((found - expected).norm(dim=1) <= 1e-4 * expected.norm(dim=1)).all()
    assert isinstance(model, nn.Module)
