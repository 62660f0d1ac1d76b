"""Runs on every kind of split and with both readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.sets.synthetic import draw
from retrieval_bench.data.splits import Split
from retrieval_bench.errors import UserError
from retrieval_bench.measure import measure
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, EvalConfig, ModelConfig, TrainConfig

FAST = RunConfig(
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
)


def folder_of_images(root: Path) -> None:
    for label in range(4):
        (root / f"c{label}").mkdir(parents=True)
        for index in range(4):
            Image.fromarray(draw(label, index)).save(root / f"c{label}" / f"{index}.png")


def listed(root: Path) -> Path:
    """A table of 24 drawn images: two classes train; of each of four test classes one image is a query, two are in the gallery and one is
    both."""
    root.mkdir()
    rows = ["path,label,split,query,gallery"]
    for label in range(6):
        for index in range(4):
            Image.fromarray(draw(label, index)).save(root / f"{label}-{index}.png")
            role = ("train", 1, 1) if label < 2 else ("test", int(index in (0, 3)), int(index != 0))
            rows.append(f"{label}-{index}.png,{label},{role[0]},{role[1]},{role[2]}")
    (root / "images.csv").write_text("\n".join(rows))
    return root / "images.csv"


@pytest.mark.parametrize("reader", ["pil", "cache"])
@pytest.mark.parametrize("strategy", ["frozen", "standard"])
def test_queries_are_searched_in_the_gallery(strategy: str, reader: Literal["pil", "cache"], tmp_path: Path) -> None:
    data = replace(FAST.data, dataset="table", reader=reader)
    config = replace(
        FAST,
        strategy=strategy,
        data=data,
        model=replace(FAST.model, backbone="resnet18"),
        train=replace(FAST.train, batch_size=4),
    )
    record = run(config, RuntimeConfig(results=tmp_path, data_root=listed(tmp_path / "images")))
    sides = {
        name: record["data"][name]
        for name in ("train_images", "test_images", "query_images", "gallery_images", "test_classes")
    }
    assert sides == {"train_images": 8, "test_images": 16, "query_images": 8, "gallery_images": 12, "test_classes": 4}
    assert (record["metrics"]["queries"], record["metrics"]["queries_without_positive"]) == (8, 0)
    assert all(0 <= record["metrics"][f"recall_at_{k}"] <= 1 for k in (1, 2, 4, 8))


def test_measured_are_the_queries_against_the_gallery_and_not_themselves() -> None:
    """Queries 2 and 4, gallery 3, 4 and 6: image 4 would find itself; its class has 3 too."""
    vectors = {2: [1.0, 0.0], 3: [0.0, 1.0], 4: [1.0, 0.1], 6: [1.0, 0.05]}
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    split = Split(np.array([0, 1]), np.array([2, 4]), np.array([3, 4, 6]), np.array([0]))

    class Drawn(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([vectors[int(image)] for image in images])

    class Numbers(list[Any]):
        images = 4

    batches: Any = Numbers([(torch.tensor([2, 3]), torch.zeros(2)), (torch.tensor([4, 6]), torch.zeros(2))])
    embedder: Any = Drawn()
    found = measure(embedder, None, batches, labels, split, replace(FAST, evaluation=EvalConfig(k=(1, 2)))).metrics
    # 2 finds 6 (wrong), then 4, then 3; 4 finds 6 (wrong), then 3
    counts = {"queries": 2, "queries_without_positive": 0}
    assert found == {
        "recall_at_1": 0.0,
        "recall_at_2": 1.0,
        "mrr": 0.5,
        "r_precision": 0.25,
        "map_at_r": 0.125,
        **counts,
    }


@pytest.mark.parametrize("preprocessing", ["crop", "squash"])
def test_both_readers_give_close_results(preprocessing: Literal["crop", "squash"], tmp_path: Path) -> None:
    found = []
    for reader in ("pil", "cache"):
        config = replace(FAST, data=replace(FAST.data, reader=reader, preprocessing=preprocessing, stored=36))
        found.append(run(config, RuntimeConfig(results=tmp_path)))
    pil, cache = found
    assert pil["id"] != cache["id"]
    assert pil["training"]["loss_per_epoch"] == pytest.approx(cache["training"]["loss_per_epoch"], rel=0.02)
    assert pil["metrics"]["recall_at_1"] == pytest.approx(cache["metrics"]["recall_at_1"], abs=0.08)
    assert pil["cost"]["images_seen"] == cache["cost"]["images_seen"]


def test_folds_validate_different_classes(tmp_path: Path) -> None:
    frozen = replace(FAST, strategy="frozen", data=replace(FAST.data, split="kfold", folds=3))
    records = [
        run(replace(frozen, data=replace(frozen.data, fold=fold)), RuntimeConfig(results=tmp_path)) for fold in range(3)
    ]
    assert [record["data"]["test_classes"] for record in records] == [3, 3, 2]
    assert [record["data"]["train_classes"] for record in records] == [5, 5, 6]
    assert len({record["id"] for record in records}) == 3
    assert "--split kfold" in records[1]["command"]
    assert "--fold 1 --folds 3" in records[1]["command"]


def test_closed_set_trains_and_tests_on_the_same_classes(tmp_path: Path) -> None:
    for side in ("train", "test"):
        folder_of_images(tmp_path / "images" / side)
    config = replace(
        FAST, data=replace(FAST.data, dataset="folder", split="closed_set"), train=replace(FAST.train, batch_size=4)
    )
    record = run(config, RuntimeConfig(results=tmp_path, data_root=tmp_path / "images"))
    assert (record["data"]["train_classes"], record["data"]["test_classes"]) == (4, 4)
    assert (record["data"]["train_images"], record["data"]["test_images"]) == (16, 16)
    assert 0 <= record["metrics"]["recall_at_1"] <= 1


def test_cache_that_would_be_too_large_stops_before_training(tmp_path: Path) -> None:
    config = replace(FAST, data=replace(FAST.data, reader="cache", stored=39))
    with pytest.raises(UserError, match="--cache-limit-gb"):
        run(config, RuntimeConfig(results=tmp_path, cache_limit_gb=1e-6))
    assert not list(tmp_path.rglob("*.json"))
