"""Chains of two strategies: each pair of the registry trains, or is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.strategies import STRATEGIES, build_strategy, split_names
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.strategies.rollback import Rollback
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.loop import Training
from tests.training.helpers import (
    OPTIONS,
    Data,
    differing,
    embedder_for,
    make_training,
    random_images,
    run_config,
    state_of,
    tiny_embedder,
)

SHORT: Any = replace(
    OPTIONS, rollback=Rollback.Options(periods=2), network_slimming=NetworkSlimming.Options(budget=0.9, sparse_epochs=1)
)


def trained(data: Data, strategy: str, **more: Any) -> Training:
    config, model = run_config(batch_size=32, lr=0.01), embedder_for(strategy)
    training = make_training(data, build_strategy(strategy, SHORT), config, model, **more)
    training.batches = training.batches.subset(np.arange(0, 64, 2), training=True)  # a step for each epoch
    training.fit()
    return training


def is_refused(data: Data, strategy: str) -> bool:
    """Trains a chain, if it is not refused."""
    training, message = None, ""
    try:
        training = trained(data, strategy)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    if training is None:
        return True
    assert training.embedder.eval()(random_images(2)).isfinite().all()
    assert len(training.history) == (2 if training.model.trainable() else 0)
    return False


def partners(name: str, count: int) -> list[str]:
    """The next so many strategies of the registry, around its end: half of it gives each pair once."""
    names = list(STRATEGIES)
    place = names.index(name) + 1
    return (names * 2)[place : place + count]


def try_pair(data: Data, first: str, second: str) -> None:
    if is_refused(data, f"{first}+{second}"):
        is_refused(data, f"{second}+{first}")


@pytest.mark.parametrize("name", STRATEGIES)
def test_pairs_train_in_some_order_or_are_refused_in_one_line(name: str, synthetic: Data) -> None:
    """A few partners of each; all of them are tried by the slow test."""
    for other in partners(name, 4):
        try_pair(synthetic, name, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_pair_trains_in_some_order_or_is_refused_in_one_line(name: str, synthetic: Data) -> None:
    for other in partners(name, len(STRATEGIES) // 2):
        try_pair(synthetic, name, other)
        is_refused(synthetic, f"{other}+{name}")


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("channel_gates+channel_pruning", "both remove channels"),
        ("channel_gates+layer_pruning", r"layer_pruning and then channel_gates must .* layer_pruning\+channel_gates$"),
        ("last_k+channel_pruning", r"channel_pruning must come first: --strategy channel_pruning\+last_k"),
    ],
)
def test_what_prunes_comes_first_and_blocks_before_channels(strategy: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_names(strategy)


@pytest.mark.parametrize("name", ["channel_gates", "channel_pruning", "network_slimming"])
def test_what_later_parts_freeze_stays_frozen_after_the_cut(name: str, synthetic: Data) -> None:
    frozen, partly = trained(synthetic, f"{name}+frozen"), trained(synthetic, f"{name}+last_k")
    assert (frozen.model.trainable(), frozen.history) == (False, [])
    tuned, backbone = partly.strategy.info()["last_k"]["tuned_blocks"], partly.model.backbone
    for block in backbone.blocks:
        is_trained = any(parameter.requires_grad for parameter in backbone.block_parameters(block))
        assert is_trained == (block.name in (*tuned, "tail")), block.name
    changed = differing(state_of(frozen.model), state_of(partly.model))
    assert {key.split("net.")[1].split(".")[0] for key in changed} <= {block.split(".")[0] for block in tuned}


def test_slimming_holds_to_the_weights_before_it(synthetic: Data) -> None:
    """The kept channels of them, in ``l2sp`` and ``rollback``."""
    whole: Any = tiny_embedder().backbone.net.get_submodule("layer1.0.conv1")
    for name in ("l2sp", "rollback"):
        training = trained(synthetic, f"network_slimming+{name}")
        parts: Any = training.strategy
        kept = parts.parts["network_slimming"]._keep.get("layer1.0.conv1", range(8))
        start = {key.removeprefix("net."): value for key, value in parts.parts[name]._start.items()}
        assert torch.equal(start["layer1.0.conv1.weight"], whole.weight[list(kept)])


@pytest.mark.parametrize("strategy", ["channel_gates+stochastic", "network_slimming+l2sp", "channel_pruning+last_k"])
def test_a_chain_that_waits_for_the_cut_is_resumed(strategy: str, synthetic: Data, tmp_path: Path) -> None:
    whole = trained(synthetic, strategy, checkpoints=Checkpoints(tmp_path, {}))
    (tmp_path / "epoch-0002.pt").unlink()
    resumed = trained(synthetic, strategy, checkpoints=Checkpoints(tmp_path, {}))
    assert resumed.resumed == [1]
    assert not differing(state_of(whole.model), state_of(resumed.model))
    assert resumed.strategy.info() == whole.strategy.info()
