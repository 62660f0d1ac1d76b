"""What a run measures at test: queries in a gallery, the classifier's accuracy, other evaluation modes, routes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.data.splits import Split
from retrieval_bench.losses import Criterion
from retrieval_bench.measure import accuracy, measure
from retrieval_bench.models.embedder import Embedder, embed
from retrieval_bench.records import ResultsFolder, read_record
from retrieval_bench.run import run
from tests.board_records import FAST

CLOSED = FAST.changed(data__split="closed_set", loss__loss="softmax", train__epochs=2)
ROUTED = CLOSED.changed(strategy="spottune", options__spottune__eval_policy="argmax,all_frozen,sample")


def test_queries_are_measured_against_the_gallery_and_not_against_themselves() -> None:
    """Queries 2 and 4, gallery 3, 4 and 6: image 4 would find itself; its class has 3 too."""
    vectors = {2: [1.0, 0.0], 3: [0.0, 1.0], 4: [1.0, 0.1], 6: [1.0, 0.05]}
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    split = Split(np.array([0, 1]), np.array([2, 4]), np.array([3, 4, 6]), np.array([0]))

    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([vectors[int(image)] for image in images])

    class Numbers(list[Any]):
        images = 4

    batches: Any = Numbers([(torch.tensor([2, 3]), torch.zeros(2)), (torch.tensor([4, 6]), torch.zeros(2))])
    embedder: Any = Drawn()
    config = CLOSED.changed(data__split="zero_shot", evaluation__k=(1, 2))
    evaluation, unit = measure(embedder, None, batches, labels, split, config)
    # 2 finds 6 (wrong), then 4, then 3; 4 finds 6 (wrong), then 3
    recalls = {"recall_at_1": 0.0, "recall_at_2": 1.0, "mrr": 0.5, "r_precision": 0.25, "map_at_r": 0.125}
    assert evaluation.metrics == {**recalls, "queries": 2, "queries_without_positive": 0}
    assert np.linalg.norm(unit, axis=1) == pytest.approx(1)


def test_a_closed_set_has_an_accuracy_and_a_frozen_network_a_trained_classifier(tmp_path: Path) -> None:
    """The classifier of frozen features is above chance (1 of 16), though the network itself has nothing to train."""
    frozen = CLOSED.changed(strategy="frozen", train__epochs=30)
    record = run(frozen, RuntimeConfig(results=tmp_path))
    assert (record.cost["images_seen"], record.cost["trained_parameters"]) == (30 * 64, 0)
    assert record.metrics["accuracy"] > 0.15
    untrained = run(frozen.changed(train__epochs=0), RuntimeConfig(results=tmp_path))
    assert untrained.metrics["accuracy"] < record.metrics["accuracy"]
    assert untrained.metrics["recall_at_1"] == record.metrics["recall_at_1"], "the features are the same"


@pytest.mark.parametrize("change", [{"loss__loss": "triplet"}, {"data__split": "zero_shot"}])
def test_no_accuracy_without_classifier_or_common_classes(change: dict[str, str], tmp_path: Path) -> None:
    config = CLOSED.changed(**change, train__epochs=1)
    assert "accuracy" not in run(config, RuntimeConfig(results=tmp_path)).metrics


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


def test_evaluation_modes_and_routes_are_in_the_record(tmp_path: Path) -> None:
    record = run(ROUTED, RuntimeConfig(results=tmp_path))
    assert record.eval_modes.keys() == {"all_frozen", "sample"}
    assert record.eval_modes["all_frozen"].keys() == record.metrics.keys()
    sample = record.eval_modes["sample"]
    assert (sample["draws"], sample["queries"], "queries_sd" in sample) == (3, 64, False), "counts stay counts"
    assert sample["recall_at_1_sd"] >= 0
    routes = record.info["routes"]
    assert routes["images"] == 64
    assert len(routes["rate"]) == len(record.info["spottune"]["blocks"]) == 4
    assert len(routes["rate_by_class"]) == 16
    path = ResultsFolder(tmp_path).record(record.id)
    assert read_record(path) == record
    text = path.read_text(encoding="utf-8")
    assert json.loads(text)["variants"] == record.eval_modes
    assert '"rate": [0.' in text or '"rate": [1.' in text, "numbers on one line"
    both = run(ROUTED.changed(evaluation__flip_sum=True), RuntimeConfig(results=tmp_path))
    assert both.info["routes"] == routes, "of mirrored images the routes are those of the images"


@pytest.mark.parametrize(("precision", "fused"), [("float32", True), ("bf16", False), ("bf16", True)])
def test_embedding_in_bfloat16_and_with_folded_norms(
    precision: str, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    vectors: list[np.ndarray] = []

    def spied(embedder: Embedder, *arguments: Any) -> np.ndarray:
        folds = [vars(module).get("forward") for module in embedder.modules() if isinstance(module, nn.BatchNorm2d)]
        seen.append((torch.is_autocast_enabled("cpu"), all(folds)))
        vectors.append(embed(embedder, *arguments))
        return vectors[-1]

    monkeypatch.setattr("retrieval_bench.measure.embed", spied)
    config = CLOSED.changed(strategy="frozen", train__epochs=0)
    run(config, RuntimeConfig(results=tmp_path))
    run(config.changed(evaluation__test_precision=precision, train__fused=fused), RuntimeConfig(results=tmp_path))
    assert seen == [(False, False), (precision == "bf16", fused)]
    usual, other = vectors
    assert other.dtype == np.float32
    assert not np.array_equal(usual, other)
    np.testing.assert_allclose(other, usual, atol=(0.1 if precision == "bf16" else 1e-4) * np.abs(usual).max())


def test_choices_are_made_on_validation_classes_and_counted(tmp_path: Path) -> None:
    base = CLOSED.changed(
        data__split="zero_shot", loss__loss="proxy_anchor", model__backbone="resnet18", train__epochs=1
    )
    config = replace(base, strategy="layer_pruning").changed(options__layer_pruning__drop="auto:1")
    record = run(config, RuntimeConfig(results=tmp_path))
    selection = record.info["selection"]["layer_pruning"]
    candidates = [read_record(ResultsFolder(tmp_path).record(run_id)) for run_id in selection["records"]]
    assert all(candidate.config["data"]["split"] == "zero_shot_val" for candidate in candidates)
    recalls = [candidate.metrics["recall_at_1"] for candidate in candidates]
    assert selection["chosen"] == candidates[recalls.index(max(recalls))].strategy
    chosen = base.changed(strategy="layer_pruning", options__layer_pruning__drop=selection["chosen"].split("=")[1][:-1])
    alone = run(chosen, RuntimeConfig(results=tmp_path))
    assert record.metrics == alone.metrics
    searched = sum(candidate.cost["images_seen"] for candidate in candidates)
    assert record.cost["images_seen"] == alone.cost["images_seen"] + searched
