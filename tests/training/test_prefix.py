"""Frozen prefixes: a training that reads kept features ends with the bits of one that passes every image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retrieval_bench.config import RunConfig
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies import build_strategy
from retrieval_bench.strategies.last_k import LastK
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.loop import Training
from tests.training.helpers import OPTIONS, SIDE, Data, differing, make_training, run_config, state_of, tiny_embedder

LAST_1: Any = replace(OPTIONS, last_k=LastK.Options(k=1))
VIEWS, EPOCHS = 2, 4


def prepared(
    data: Data,
    strategy: str = "last_k",
    *,
    model: Embedder | None = None,
    config: RunConfig | None = None,
    limit: float = 1e9,
    views: int = VIEWS,
    options: Any = LAST_1,
    checkpoints: Checkpoints | None = None,
) -> Training:
    config = (config or run_config(epochs=EPOCHS)).changed(data__views=views)
    built = build_strategy(strategy, options)
    return make_training(data, built, config, model or tiny_embedder(8), checkpoints, feature_cache=limit)


def assert_same_outcome(one: Training, other: Training) -> None:
    assert not differing(state_of(one.model, one.criterion), state_of(other.model, other.criterion))
    assert (one.history, one.images_seen, one.lrs()) == (other.history, other.images_seen, other.lrs())


def passed_images(training: Training) -> list[int]:
    """Sizes of the batches that pass the first block, from now on."""
    sizes: list[int] = []
    block = training.model.backbone.net.get_submodule("layer1.0")
    block.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize(
    ("strategy", "config"),
    [
        ("last_k", run_config(epochs=EPOCHS)),
        ("last_k", run_config("softmax", head="autolr", epochs=EPOCHS)),  # dropout behind the border
        ("last_k", run_config("triplet", epochs=EPOCHS, micro_batch=5, freeze_bn=True)),
        ("last_k", run_config(epochs=EPOCHS, batch_size=24, fused=True, precision="bf16")),
        ("frozen", run_config(epochs=EPOCHS)),
        ("autolr+last_k", run_config("triplet", epochs=EPOCHS, batch_size=32)),  # passes are undone
        ("layer_pruning+last_k", run_config(epochs=EPOCHS)),
    ],
)
def test_kept_features_give_the_same_bits(strategy: str, config: RunConfig, synthetic: Data) -> None:
    options = replace(LAST_1, last_k=LastK.Options(k=2)) if "autolr" in strategy else LAST_1
    plain = prepared(synthetic, strategy, config=config, limit=0.0, options=options)
    kept = prepared(synthetic, strategy, config=config, options=options)
    for training in (plain, kept):
        training.fit()
    assert_same_outcome(plain, kept)
    size = config.train.micro_batch or config.train.batch_size
    assert (plain.prefix_saved, kept.prefix_saved) == (0, kept.images_seen - VIEWS * size * -(-64 // size))


def test_an_image_passes_the_prefix_once_per_view(synthetic: Data) -> None:
    training = prepared(synthetic)
    sizes = passed_images(training)
    training.fit()
    assert sum(sizes) == 3 * 2 + VIEWS * 64, "what is tried out first are two images"
    assert training.prefix_saved == EPOCHS * 64 - VIEWS * 64


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_networks_of_other_families_are_not_taken_apart(name: str, synthetic: Data) -> None:
    def trained(limit: float) -> Training:
        torch.manual_seed(0)
        model = build_embedder(ModelConfig(backbone=name, weights="none"), SIDE)
        training = prepared(synthetic, model=model, limit=limit, config=run_config(epochs=2), views=1)
        training.fit()
        return training

    plain, kept = trained(0.0), trained(1e9)
    assert_same_outcome(plain, kept)
    assert kept.prefix_saved == 64
    assert len(kept.prefix._stand_in) == (name == "test_vit"), "the others take an empty batch"


def dropout_before_the_blocks() -> Embedder:
    model = tiny_embedder(8)
    net: Any = model.backbone.net
    net.maxpool = nn.Sequential(net.maxpool, nn.Dropout(0.1))
    return model


def size_of_the_batch_before_the_blocks() -> Embedder:
    model, sizes = tiny_embedder(8), []
    net: Any = model.backbone.net
    net.maxpool.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    net.global_pool.register_forward_hook(lambda module, inputs, output: output * sizes[-1])
    return model


@pytest.mark.parametrize(
    ("model", "limit", "message"),
    [
        (dropout_before_the_blocks, 1e9, "before layer4.1 are not kept: they are random or trained"),
        (size_of_the_batch_before_the_blocks, 1e9, "not kept: what follows cannot run alone"),
        (tiny_embedder, 2 * 64 * 64 * 4 - 1.0, "not kept: they need --feature-cache-gb 0.0"),
    ],
)
def test_what_cannot_be_kept_is_passed_as_before(
    model: Any, limit: float, message: str, synthetic: Data, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, kept = (prepared(synthetic, model=model(), limit=size) for size in (0.0, limit))
    for training in (plain, kept):
        training.fit()
    assert_same_outcome(plain, kept)
    assert kept.prefix_saved == 0
    assert capsys.readouterr().err.count(message) == 1


@pytest.mark.parametrize(("strategy", "views"), [("standard", 1), ("last_k", 0), ("spottune", 1)])
def test_nothing_is_kept_of_what_changes(strategy: str, views: int, synthetic: Data) -> None:
    training = prepared(synthetic, strategy, views=views, config=run_config(epochs=2))
    training.fit()
    assert training.prefix_saved == 0


def test_features_are_computed_again_when_a_frozen_weight_has_changed(synthetic: Data) -> None:
    training = prepared(synthetic, views=1)
    sizes = passed_images(training)
    training.train_once()
    training.train_once()
    once = sum(sizes)
    with torch.no_grad():
        next(training.model.backbone.parameters()).add_(1.0)
    training.train_once()
    assert (once, sum(sizes)) == (3 * 2 + 64, 2 * (3 * 2 + 64))


def test_a_resumed_training_ends_with_the_same_bits_and_counts(synthetic: Data, tmp_path: Path) -> None:
    whole = prepared(synthetic, checkpoints=Checkpoints(tmp_path, {}))
    whole.fit()
    (tmp_path / "epoch-0004.pt").unlink()
    resumed = prepared(synthetic, checkpoints=Checkpoints(tmp_path, {}))
    resumed.fit()
    assert resumed.resumed == [3]
    assert_same_outcome(whole, resumed)
    assert resumed.prefix_saved == whole.prefix_saved - 64, "the last view was computed again"
