"""Classes that are held out of a training: what is measured on them, which epoch is kept, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retrieval_bench.cli import main
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.splits import hold_out
from retrieval_bench.errors import UserError
from retrieval_bench.records import load_records
from retrieval_bench.strategies import build_strategy
from retrieval_bench.strategies.wise_ft import WiseFT
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.held_out import Validation
from retrieval_bench.training.loop import Training
from tests.board_records import RUN
from tests.training.helpers import OPTIONS, Data, differing, embedder_for, make_training, run_config, state_of

FINISHED_OTHERWISE = (
    "standard ema wise_ft lora spottune global_k channel_gates l2sp layer_pruning+autolr visual_prompts"
)
RECALLS = (0.5, 0.7, 0.6, 0.7, 0.9)
"""Of epochs; with a patience of 2 the training ends after the fourth, and the second is kept."""


def with_validation(data: Data, strategy: str = "standard", checkpoints: Any = None, **train: Any) -> Training:
    split, config = hold_out(data[1], data[0], 0.25), run_config("softmax", **train)
    batches = Batches(data[0], split.validation, data[0].labels[split.validation], config.data, 0)
    options = replace(OPTIONS, wise_ft=WiseFT.Options(held_out=0.4))
    own, model = build_strategy(strategy, options), embedder_for(strategy)
    return make_training((data[0], split), own, config, model, checkpoints, validation=batches)


def states_after_epochs(training: Training) -> list[dict[str, Tensor]]:
    """Filled while it trains."""
    states: list[dict[str, Tensor]] = []

    def log(values: Mapping[str, float], step: int) -> None:
        if "loss" in values:
            states.append(state_of(training.model, training.criterion))

    training.log = log
    return states


def test_a_fifth_of_the_classes_are_those_of_zero_shot_val(synthetic: Data) -> None:
    table, split = synthetic
    held_out = hold_out(split, table, 0.2)
    assert np.array_equal(held_out.validation, open_dataset("synthetic", None, "zero_shot_val")[1].test)
    assert np.array_equal(np.union1d(held_out.train, held_out.validation), split.train)
    assert not set(table.labels[held_out.train]) & set(table.labels[held_out.validation])
    assert np.array_equal(np.unique(held_out.train_labels(table.labels)), np.arange(len(held_out.train_classes)))
    assert np.array_equal(held_out.test, split.test)
    for share in (0.01, 0.99):
        with pytest.raises(UserError, match="two must be left on each side"):
            hold_out(split, table, share)


@pytest.mark.parametrize("strategy", FINISHED_OTHERWISE.split())
def test_what_would_be_deployed_is_measured_and_the_training_is_left_alone(strategy: str, synthetic: Data) -> None:
    training = with_validation(synthetic, strategy)
    model = training.fit()
    assert training.validation
    (*_, last), batches = training.validation.recalls, training.validation.batches
    with torch.no_grad():
        vectors = torch.cat([model.eval()(images) for images, _ in batches]).double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarities = vectors @ vectors.T - 9 * np.eye(len(vectors))
    assert last == (batches.labels[similarities.argmax(1)] == batches.labels).mean()
    alone = with_validation(synthetic, strategy)
    alone.validation = None
    assert not differing(state_of(alone.fit()), state_of(model))
    assert training.images_seen == alone.images_seen + batches.images * len(training.history)
    assert training.seconds > training.validation.seconds > 0


class Interrupted(Checkpoints):
    def __init__(self, folder: Path, after: int):
        super().__init__(folder, {})
        self.after = after

    def save(self, epoch: int, state: Mapping[str, Any], kind: str = "epoch") -> None:
        super().save(epoch, state, kind)
        if epoch == self.after:
            raise KeyboardInterrupt


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Validation, "measure", lambda self, strategy, model: RECALLS[len(self.recalls)])


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(("strategy", "stops"), [("standard", (1, 4)), ("ema", (3,))])
def test_patience_keeps_the_best_epoch_also_after_interruptions(
    strategy: str, stops: tuple[int, ...], synthetic: Data, tmp_path: Path
) -> None:
    training = with_validation(synthetic, strategy, epochs=5, patience=2)
    states = states_after_epochs(training)
    model = training.fit()
    assert len(training.history) == 4
    assert training.account()["kept_epoch"] == 2
    if strategy == "standard":  # of ema only the average is left
        assert not differing(states[1], state_of(training.model, training.criterion))
    for after in stops:
        with pytest.raises(KeyboardInterrupt):
            with_validation(synthetic, strategy, Interrupted(tmp_path / str(after), after), epochs=5, patience=2).fit()
        torch.manual_seed(7)
        checkpoints = Checkpoints(tmp_path / str(after), {})
        resumed = with_validation(synthetic, strategy, checkpoints, epochs=5, patience=2)
        assert not differing(state_of(resumed.fit()), state_of(model))
        assert (resumed.history, resumed.images_seen) == (training.history, training.images_seen)
        assert resumed.account() == {**training.account(), "resumed": [after]}


@pytest.mark.usefixtures("scripted")
def test_without_patience_the_last_epoch_is_kept(synthetic: Data) -> None:
    training = with_validation(synthetic, epochs=4)
    states = states_after_epochs(training)
    training.fit()
    assert not differing(states[-1], state_of(training.model, training.criterion))
    assert training.account()["validation_recall_at_1"] == list(RECALLS[:4])
    assert "kept_epoch" not in training.account()


def test_the_record_has_recall_per_epoch_sizes_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RUN.split(), "--epochs", "2", "--results", str(tmp_path)]
    assert main([*words, "--validate", "0.25", "--patience", "2"]) == 0
    assert "on held-out classes" in capsys.readouterr().err
    (record,) = load_records(tmp_path)
    recalls = record.training["validation_recall_at_1"]
    assert len(recalls) == 2
    assert record.training["kept_epoch"] == 1 + recalls.index(max(recalls))
    assert record.cost["validation_images"] == 2 * record.data["validation_images"]
    assert 0 < record.cost["validation_seconds"] < record.cost["train_seconds"]
    assert main([*words, "--validate", "0"]) == 0
    plain = replace(min(load_records(tmp_path), key=lambda other: other.id == record.id))
    assert plain.data["train_classes"] == record.data["train_classes"] + record.data["validation_classes"]
    assert plain.data["test_images"] == record.data["test_images"]
    assert not [name for name in (*plain.data, *plain.cost, *plain.training) if "validation" in name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--patience 2", "add --validate"),
        ("--patience 2 --validate 0.2 --strategy rollback --epochs 4", "rollback trains in phases"),
        ("--patience 2 --validate 0.2 --strategy l2sp+global_k", "global_k trains in phases"),
        ("--validate 0.2 --split closed_set", "--split closed_set"),
        ("--validate 0.001", "two must be left"),
        ("--validate 1", "must be at least 0 and below 1"),
    ],
)
def test_what_cannot_work_is_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--dataset", "synthetic", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
