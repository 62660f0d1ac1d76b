"""Layer pruning: which blocks go, what is left, and the choice of how many on validation classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench import cost
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.errors import UserError
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.records import ResultsFolder
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, EvalConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions
from retrieval_bench.strategies.layer_pruning import LayerPruning, blocks_to_drop
from tests.training.helpers import random_images, tiny_embedder


def pruned(name: str, drop: str, dim: int = 0, side: int = 32) -> tuple[Embedder, LayerPruning]:
    model = build_embedder(ModelConfig(backbone=name, weights="none", embedding_dim=dim), side)
    strategy = LayerPruning(LayerPruning.Options(drop=drop))
    return strategy.prepare(model, random_images(2, side)), strategy


@pytest.mark.parametrize("backbone", ["resnet50", "torchvision/resnet50"])
def test_resnet50_without_15_and_16_costs_what_the_paper_s_network_costs(backbone: str) -> None:
    model, strategy = pruned(backbone, "15,16", side=224)
    assert (cost.parameters(model), round(cost.macs(model, 224) / 1e9, 3)) == (14_582_848, 3.650)
    info = strategy.info()
    assert info["dropped_blocks"] == ["layer4.1", "layer4.2"]
    assert len(info["kept_blocks"]) == 14
    assert info["parameters_saved"] == 23_508_032 - 14_582_848
    assert info["macs_saved"] == 4_087_136_256 - cost.macs(model, 224)
    assert model.dim == info["feature_dim"] == 2048
    shorter, _ = pruned(backbone, "14,15,16")
    assert (cost.parameters(shorter), shorter.dim) == (8_543_296, 1024)


def test_what_stays_computes_what_it_computed_before() -> None:
    whole, cut = tiny_embedder(), tiny_embedder()
    LayerPruning(LayerPruning.Options(drop="last:3")).prepare(cut, random_images(2))
    net: Any = whole.backbone.net
    images = random_images(3, seed=5)
    with torch.no_grad():
        scaled = (images.float() / 255 - whole.backbone.mean) / whole.backbone.std
        features = net.maxpool(net.act1(net.bn1(net.conv1(scaled))))
        for stage in (net.layer1, net.layer2):
            features = stage(features)
        expected = net.layer3[0](features).mean(dim=(2, 3))
        assert torch.allclose(cut.eval()(images), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("resnet18", 0), ("efficientnet_lite0", 7), ("test_vit", 0), ("test_convnext", 7), ("regnetx_002", 0)],
)
def test_any_backbone_with_blocks_can_be_shortened_and_trained(name: str, dim: int) -> None:
    """That exactly the last block goes is tested with all families."""
    model, strategy = pruned(name, "last:1", dim, side=64)
    whole = build_embedder(ModelConfig(backbone=name, weights="none"), 64)
    assert strategy.info()["parameters_saved"] == cost.parameters(whole.backbone) - cost.parameters(model.backbone) > 0
    embeddings = model.train()(random_images(4, 64))
    assert embeddings.shape == (4, dim or strategy.info()["feature_dim"])
    embeddings.sum().backward()


def test_the_tail_goes_where_it_does_not_fit() -> None:
    """EfficientNet's last convolution takes 320 channels; without the last block there are 192."""
    model, _ = pruned("efficientnet_lite0", "last:1", side=64)
    assert model.dim == 192
    assert model.backbone.blocks[-1].is_body
    assert pruned("efficientnet_lite0", "blocks.5.3", side=64)[0].dim == 1280, "here it fits"


@pytest.mark.parametrize(
    ("name", "drop", "way_out"),
    [
        ("densenet121", "features.denseblock1.denselayer2", "drop the last ones"),
        ("resnet18", "layer2.0", "drop the last ones"),
        ("dla34", "last:3", "this backbone cannot be cut there"),
    ],
)
def test_blocks_that_the_others_need_are_refused_in_one_line(name: str, drop: str, way_out: str) -> None:
    with pytest.raises(UserError, match=f"^without .* the other blocks do not fit each other .*: {way_out}$"):
        pruned(name, drop, side=64)
    assert [block.name for block in pruned("resnet18", "layer2.1")[0].backbone.body][2:4] == ["layer2.0", "layer3.0"]


NAMES = ["a.0", "a.1", "b.0", "b.1"]


@pytest.mark.parametrize("name", ["cait_xxs24_224", "volo_d1_224", "xcit_nano_12_p16_224"])
def test_blocks_without_which_all_images_are_alike_are_refused(name: str) -> None:
    embedder = build_embedder(ModelConfig(backbone=name, weights="none"), 32)
    with pytest.raises(UserError, match=r"all images one vector\): this backbone cannot be cut there"):
        LayerPruning(LayerPruning.Options(drop="last:2")).prepare(embedder, random_images(1))


def test_what_drop_means() -> None:
    last = ["b.0", "b.1"]
    meanings = {"last:0": [], "last:2": last, "4,3": last, " a.1 , 4": ["a.1", "b.1"], "2,2": ["a.1"]}
    assert {drop: blocks_to_drop(drop, NAMES) for drop in meanings} == meanings


def test_what_drop_cannot_mean() -> None:
    messages = {"last:4": "4 blocks; last:0 to last:3", "last:x": "last:0 to last:3", "a.2": "did you mean 'a."}
    messages |= {"0": "numbered from 1 to 4", "5": "numbered from 1 to 4", "1,2,3,4": "not all", "": "not none"}
    for drop, message in messages.items():
        with pytest.raises(UserError, match=message):
            blocks_to_drop(drop, NAMES)
    with pytest.raises(UserError, match="names its blocks"):
        blocks_to_drop("last:1", [])


def test_candidates() -> None:
    smaller_first = ["last:3", "last:2", "last:1", "last:0"]  # so that it wins a draw
    choices = {"16": ["16"], "auto:2": smaller_first[1:], "auto": smaller_first, "auto:0": ["last:0"]}
    for drop, expected in choices.items():
        assert [option.drop for option in LayerPruning.Options(drop=drop).candidates()] == expected
    with pytest.raises(UserError, match="auto:3"):
        LayerPruning.Options(drop="auto:x").candidates()


def options(drop: str) -> Any:
    return replace(StrategyOptions(), layer_pruning=LayerPruning.Options(drop=drop))


AUTO = RunConfig(
    strategy="layer_pruning",
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
    options=options("auto:2"),
)


def test_the_number_of_blocks_is_chosen_on_validation_classes(tmp_path: Path) -> None:
    record = run(AUTO, RuntimeConfig(results=tmp_path))
    choice = record.info["selection"]["layer_pruning"]
    recalls = choice["validation_recall_at_1"]
    assert list(recalls) == [f"layer_pruning(drop=last:{count})" for count in (2, 1, 0)]
    assert choice["chosen"] == max(recalls, key=lambda name: recalls[name])
    chosen = int(choice["chosen"].rstrip(")")[-1])
    assert len(record.info["layer_pruning"]["dropped_blocks"]) == chosen
    assert record.labels["strategy"] == "layer_pruning(drop=auto:2)"
    assert "auto:2" in record.command
    assert record.cost["images_seen"] == 64 + 3 * 48, "what the choice took counts"
    assert record.cost["total_seconds"] >= record.cost["train_seconds"]
    validation = replace(AUTO, data=replace(AUTO.data, split="zero_shot_val"), options=options("last:1"))
    trial = run(validation, RuntimeConfig(results=tmp_path))
    assert trial.id in choice["records"]
    assert trial.data["test_classes"] == 2
    plain = run(replace(AUTO, options=options(f"last:{chosen}")), RuntimeConfig(results=tmp_path))
    assert plain.metrics == record.metrics


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(AUTO, evaluation=EvalConfig(k=(5, 10))), "--k 5 10: choices are made by Recall@1"),
        (replace(AUTO, data=replace(AUTO.data, split="zero_shot_val")), "zero_shot_val"),
    ],
)
def test_impossible_choices_are_refused_before_anything_is_trained(
    config: RunConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(config, RuntimeConfig(results=tmp_path))
    assert not list(tmp_path.rglob("*.json"))


def test_the_choice_is_made_inside_the_classes_that_the_run_trains_on(tmp_path: Path) -> None:
    few = replace(AUTO, data=replace(AUTO.data, classes=5), options=options("auto:0"))
    record = run(few, RuntimeConfig(results=tmp_path))
    selection = record.info["selection"]["layer_pruning"]
    assert selection["chosen"] == "layer_pruning(drop=last:0)"
    assert (record.data["train_classes"], record.data["test_classes"]) == (5, 5)
    trial = ResultsFolder(tmp_path).find(selection["records"][0])[0].data
    assert (trial["train_classes"], trial["test_classes"]) == (4, 1)
