"""What a run measures at test beside Recall@K: the classifier's accuracy, other ways to use the network, routes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.models.route_stats import describe_routes
from retrieval_bench.losses import LOSSES
from retrieval_bench.measure import accuracy
from retrieval_bench.records import write_record
from retrieval_bench.run import run
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions
from retrieval_bench.strategies.spottune import SpotTune
from retrieval_bench.training.criterion import Criterion, build_criterion

CLOSED = RunConfig(
    data=DataConfig(dataset="synthetic", split="closed_set", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    loss=LossConfig(loss="softmax", loss_lr=1e-2),
    train=TrainConfig(epochs=2, batch_size=16, freeze_bn=False),
)
ROUTED = replace(
    CLOSED,
    strategy="spottune",
    options=StrategyOptions(spottune=SpotTune.Options(eval_policy="argmax,all_frozen,sample")),
)


def test_a_closed_set_has_an_accuracy_and_a_frozen_network_a_trained_classifier(tmp_path: Path) -> None:
    """The classifier of frozen features is above chance (1 of 16), though the network itself has nothing to train."""
    frozen = replace(CLOSED, strategy="frozen", train=replace(CLOSED.train, epochs=30))
    record = run(frozen, RuntimeConfig(results=tmp_path))
    assert record["cost"]["images_seen"] == 30 * 64
    assert record["cost"]["trained_parameters"] == 0
    assert record["metrics"]["accuracy"] > 0.15
    untrained = run(replace(frozen, train=replace(frozen.train, epochs=0)), RuntimeConfig(results=tmp_path))
    assert untrained["metrics"]["accuracy"] < record["metrics"]["accuracy"]
    assert untrained["metrics"]["recall_at_1"] == record["metrics"]["recall_at_1"], "the features are the same"


def test_no_accuracy_without_classes_or_classifier(tmp_path: Path) -> None:
    triplet = replace(CLOSED, loss=LossConfig(loss="triplet"), train=replace(CLOSED.train, epochs=1))
    assert "accuracy" not in run(triplet, RuntimeConfig(results=tmp_path))["metrics"]
    zero_shot = replace(CLOSED, data=replace(CLOSED.data, split="zero_shot"), train=replace(CLOSED.train, epochs=1))
    assert "accuracy" not in run(zero_shot, RuntimeConfig(results=tmp_path))["metrics"]


def test_accuracy_by_hand() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))

        def get_logits(self, embeddings: torch.Tensor) -> torch.Tensor:
            return embeddings @ self.weight

    embeddings = np.array([[3, 1, 2], [1, 5, 2], [0, 0, 1], [9, 0, 1]], dtype=np.float32)
    logits = [[2.0, 3, 1], [2, 1, 5], [1, 0, 0], [1, 9, 0]]
    torch.testing.assert_close(Criterion(Loss()).logits(torch.from_numpy(embeddings)).detach(), torch.tensor(logits))
    assert accuracy(Criterion(Loss()), embeddings, np.array([1, 2, 0, 2])) == 0.75


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_a_vector_per_class_classify(name: str) -> None:
    """Also after steps that pull each embedding to its class: the classes are found again."""
    torch.manual_seed(0)
    criterion = build_criterion(LossConfig(loss=name), 4, 8)
    assert criterion.classifies != LOSSES[name].needs_pairs
    if criterion.classifies:
        labels = torch.arange(4).repeat(8)
        embeddings = torch.randn(4, 8)[labels] + 0.1 * torch.randn(32, 8)
        optimizer = torch.optim.Adam(criterion.parameters(), lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            criterion(embeddings, labels).backward()
            optimizer.step()
        assert accuracy(criterion, embeddings.numpy(), labels.numpy()) > 0.9


def test_variants_and_routes_are_in_the_record(tmp_path: Path) -> None:
    record = run(ROUTED, RuntimeConfig(results=tmp_path))
    assert record["variants"].keys() == {"all_frozen", "sample"}
    assert record["variants"]["all_frozen"].keys() == record["metrics"].keys()
    sample = record["variants"]["sample"]
    assert sample["draws"] == 3
    assert (sample["queries"], "queries_sd" in sample) == (64, False), "counts stay counts"
    assert sample["recall_at_1_sd"] >= 0
    routes = record["facts"]["routes"]
    assert routes["images"] == 64
    assert len(routes["rate"]) == len(record["facts"]["spottune"]["blocks"]) == 4
    assert len(routes["rate_by_class"]) == 16
    assert sum(routes["commonest"].values()) <= 64
    text = (tmp_path / "runs" / f"{record['id']}.json").read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert '"rate": [0.' in text or '"rate": [1.' in text, "numbers on one line"


def test_routes_with_mirrored_images_are_those_of_the_images(tmp_path: Path) -> None:
    from retrieval_bench.config import EvalConfig

    both = run(replace(ROUTED, evaluation=EvalConfig(flip_sum=True)), RuntimeConfig(results=tmp_path))
    assert both["facts"]["routes"] == run(ROUTED, RuntimeConfig(results=tmp_path))["facts"]["routes"]


def test_routes_described() -> None:
    decisions = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=bool)
    found = describe_routes(decisions, np.array([0, 0, 2, 2]), ["a", "b", "c"], ["w", "x", "y", "z"])
    assert found["rate"] == [0.75, 0.25]
    assert found["rate_by_class"] == {"a": [1.0, 0.0], "c": [0.5, 0.5]}
    assert found["distinct"] == 3
    assert found["entropy_bits"] == 1.5
    assert found["commonest"] == {"10": 2, "11": 1, "00": 1}
    assert found["examples"] == {"z": "00", "w": "10", "x": "10", "y": "11"}
    same = describe_routes(np.ones((3, 2), dtype=bool), np.zeros(3, dtype=int), ["a"], ["x", "y", "z"])
    assert (same["distinct"], same["entropy_bits"]) == (1, 0.0)


def test_lists_of_numbers_are_written_on_one_line_and_others_as_they_were(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "a": [1, -2.5e-7, float("nan")],
        "b": ["[1,", " 2]", "img [ 1,  2 ].jpg"],
        "c": [[1, 2], []],
        "d": {"e": [True]},
    }
    path = tmp_path / "record.json"
    write_record(path, record)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {**record, "a": [1, -2.5e-7, None]}
    assert "[1, 2]" in text
