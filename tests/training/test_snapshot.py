"""Snapshots, and the counting of attempts that are thrown away."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, make_training, run_config, state_of

OPTIMIZERS = ["adamw", "adam", "sgd"]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A nested state dictionary as one level, for comparison."""
    if isinstance(value, dict | list | tuple):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, item in entries for name, leaf in flat(item, f"{path}/{key}").items()}
    return {path: value.clone() if isinstance(value, Tensor) else value}


def everything(training: Training) -> dict[str, Any]:
    return {**state_of(training.model, training.criterion), **flat(copy.deepcopy(training.optimizer.state_dict()))}


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, Tensor) else a == b

    return first.keys() == second.keys() and all(same(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trained_before", [False, True])
def test_restore_is_bit_for_bit_and_can_be_repeated(synthetic: Data, optimizer: str, trained_before: bool) -> None:
    training = make_training(
        synthetic, config=run_config("softmax", head="autolr", optimizer=optimizer, weight_decay=0.01)
    )
    if trained_before:
        training.train_once()
    start, snapshot = everything(training), training.snapshot()
    for attempt in (1, 2):
        training.train_once(attempt)
        training.set_lrs({"stem": 0.5})
        assert not equal(start, everything(training))
        training.restore(snapshot)
        assert equal(start, everything(training))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_after_restore_goes_on_as_if_nothing_had_happened(synthetic: Data, optimizer: str) -> None:
    straight, detour = (make_training(synthetic, config=run_config(optimizer=optimizer)) for _ in range(2))
    straight.train_once()
    snapshot = detour.snapshot()
    for _ in range(2):
        detour.train_once()
        detour.restore(snapshot)
    detour.train_once()
    assert equal(everything(straight), everything(detour))


def test_batch_norm_statistics_are_part_of_the_snapshot(synthetic: Data) -> None:
    training = make_training(synthetic, config=run_config(lr=0.0, loss_lr=0.0))
    before, snapshot = {name: value.clone() for name, value in training.model.named_buffers()}, training.snapshot()
    training.train_once()
    assert any(not torch.equal(value, before[name]) for name, value in training.model.named_buffers())
    training.restore(snapshot)
    assert all(torch.equal(value, before[name]) for name, value in training.model.named_buffers())


def test_snapshot_shares_no_memory_with_the_training(synthetic: Data) -> None:
    training = make_training(synthetic)
    training.train_once()
    snapshot = training.snapshot()
    kept = flat(copy.deepcopy(snapshot))
    training.train_once()
    training.restore(snapshot)
    training.train_once()
    assert equal(kept, flat(snapshot))


def test_rejected_attempts_are_counted(synthetic: Data) -> None:
    training = make_training(synthetic)
    snapshot = training.snapshot()
    training.train_once()
    seconds = training.seconds
    training.restore(snapshot)
    assert (training.images_seen, training.seconds) == (64, seconds)
    training.train_once(attempt=1)
    assert training.images_seen == 128
    assert training.seconds > seconds
