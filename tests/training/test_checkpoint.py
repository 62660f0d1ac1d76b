"""A training that was stopped after any epoch resumes to the same bits; unusable checkpoints are refused or skipped."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.strategies import STRATEGIES, build_strategy
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.loop import Training
from retrieval_bench.training.step import Step
from tests.training.helpers import OPTIONS, Data, differing, embedder_for, make_training, run_config, state_of

CHAINS = "layer_pruning+channel_gates channel_gates+l2sp channel_gates+autolr channel_pruning+spottune rollback+l2sp"
EPOCHS = 4
IDENTITY = {"seed": 0, "train.lr": 0.001}


class Stopping(Checkpoints):
    """Is interrupted once the checkpoint of an epoch, or of a pass before the training, is written."""

    def __init__(self, folder: Path, after: int, kind: str = "epoch"):
        super().__init__(folder, IDENTITY)
        self.after = after, kind

    def save(self, epoch: int, state: Mapping[str, Any], kind: str = "epoch") -> None:
        super().save(epoch, state, kind)
        if (epoch, kind) == self.after:
            raise KeyboardInterrupt


def made(data: Data, strategy: str, checkpoints: Checkpoints | None, loss: str = "softmax") -> Training:
    config = run_config(loss, head="autolr", epochs=EPOCHS, schedule="cosine")
    return make_training(data, build_strategy(strategy, OPTIONS), config, embedder_for(strategy), checkpoints)


def stop(data: Data, folder: Path, after: int, strategy: str = "standard", loss: str = "softmax") -> None:
    with pytest.raises(KeyboardInterrupt):
        made(data, strategy, Stopping(folder, after), loss).fit()


def outcome(training: Training) -> tuple[Any, ...]:
    model = training.fit()
    info = json.dumps(training.strategy.info(), sort_keys=True)
    state = state_of(model, training.model, training.criterion)
    return state, training.history, training.images_seen, training.lrs(), info


@pytest.mark.parametrize(
    ("strategy", "loss"),
    [
        *((name, "softmax") for name in [*STRATEGIES, *CHAINS.split()] if name != "frozen"),
        *(("standard", loss) for loss in ("triplet", "proxy_anchor", "multi_similarity")),
    ],
)
def test_stopped_after_an_epoch_it_ends_with_the_same_bits(
    strategy: str, loss: str, synthetic: Data, tmp_path: Path
) -> None:
    state, *rest = outcome(made(synthetic, strategy, None, loss))
    stop(synthetic, tmp_path, 2, strategy, loss)
    torch.manual_seed(7)
    resumed = made(synthetic, strategy, Checkpoints(tmp_path, IDENTITY), loss)
    again, *others = outcome(resumed)
    assert not differing(state, again)
    assert others == rest
    assert resumed.account()["resumed"] == [2]


@pytest.mark.parametrize(
    ("options", "kind", "passes"),
    [
        (ChannelGates.Options(budget=0.9, search_epochs=3, held_out=0.25, statistics="matched"), "search", 2),
        (ChannelGates.Options(budget=0.9, regime="from_scratch", search="public", trained_epochs=2), "search", 1),
        (ChannelGates.Options(budget=0.9, regime="lottery", trained_epochs=2, training="scratch_b"), "pass", 1),
        (NetworkSlimming.Options(budget=0.9, search="sgd", regime="lottery"), "pass", 2),
    ],
)
def test_stopped_in_a_search_it_goes_on_after_the_last_pass(
    options: Any, kind: str, passes: int, synthetic: Data, tmp_path: Path
) -> None:
    def training(checkpoints: Checkpoints | None) -> Training:
        strategy = ChannelGates(options) if isinstance(options, ChannelGates.Options) else NetworkSlimming(options)
        return make_training(synthetic, strategy, run_config("softmax"), checkpoints=checkpoints)

    state, *rest = outcome(training(None))
    with pytest.raises(KeyboardInterrupt):
        training(Stopping(tmp_path, passes, kind)).fit()
    torch.manual_seed(7)
    resumed, made_before = training(Checkpoints(tmp_path, IDENTITY)), []
    train_once = resumed.train_once
    resumed.train_once = lambda attempt=0, epochs=0: made_before.append(attempt) or train_once(attempt, epochs)
    again, *others = outcome(resumed)
    assert not differing(state, again)
    assert others == rest
    assert resumed.account()["resumed"] == [0]
    assert len(made_before) == len(set(made_before)) + len(resumed.history) - (0 in made_before)
    done = passes + (getattr(options, "trained_epochs", 0) if kind == "search" else 0)
    assert not set(range(-done, 0)) & set(made_before), "passes that were finished are not made again"


def test_the_precision_that_auto_chose_is_kept_whatever_would_be_chosen_now(
    synthetic: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training(checkpoints: Checkpoints | None) -> Training:
        return make_training(synthetic, None, run_config(precision="auto", fused=True), checkpoints=checkpoints)

    monkeypatch.setattr(Step, "faster_precision", lambda step, images: "bf16")
    state, *rest = outcome(training(None))
    with pytest.raises(KeyboardInterrupt):
        training(Stopping(tmp_path, 1)).fit()
    monkeypatch.setattr(Step, "faster_precision", lambda step, images: "float32")
    resumed = training(Checkpoints(tmp_path, IDENTITY))
    again, *others = outcome(resumed)
    assert not differing(state, again)
    assert others == rest
    assert (resumed.account()["precision"], resumed.account()["resumed"]) == ("bf16", [1])


@pytest.mark.parametrize(("every", "kept"), [(1, ["epoch-0003.pt", "epoch-0004.pt"]), (3, ["epoch-0003.pt"]), (0, [])])
def test_last_two_are_kept(every: int, kept: list[str], synthetic: Data, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", IDENTITY, every)
    made(synthetic, "standard", checkpoints).fit()
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == kept
    checkpoints.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b""])
def test_damaged_checkpoint_is_skipped_and_replaced(
    damage: Any, synthetic: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, *_ = outcome(made(synthetic, "standard", None))
    stop(synthetic, tmp_path, 3)
    path = tmp_path / "epoch-0003.pt"
    path.write_bytes(damage(path.read_bytes()))
    stop(synthetic, tmp_path, 3)
    resumed = made(synthetic, "standard", Checkpoints(tmp_path, IDENTITY))
    assert not differing(state, outcome(resumed)[0])
    assert resumed.resumed == [2, 3]
    assert "epoch-0003.pt: no whole checkpoint" in capsys.readouterr().err


def test_another_configuration_is_refused_with_the_difference(synthetic: Data, tmp_path: Path) -> None:
    made(synthetic, "standard", Checkpoints(tmp_path, IDENTITY)).fit()
    changed = {"seed": 1, "train.lr": 0.001, "train.cycles": 2}
    with pytest.raises(UserError, match=r"another configuration: seed 0, now 1; train.cycles 4, now 2$"):
        made(synthetic, "standard", Checkpoints(tmp_path, changed)).fit()
    assert Checkpoints(tmp_path, {**IDENTITY, "train.cycles": 4}).load(), "a new choice at its default changes nothing"


def test_resuming_from_another_folder(synthetic: Data, tmp_path: Path) -> None:
    stop(synthetic, tmp_path / "old", 1)
    resumed = made(synthetic, "standard", Checkpoints(tmp_path / "new", IDENTITY, source=tmp_path / "old"))
    resumed.fit()
    assert resumed.resumed == [1]
    assert len(list((tmp_path / "new").iterdir())) == 2
    with pytest.raises(UserError, match="no checkpoint here"):
        made(synthetic, "standard", Checkpoints(tmp_path / "new", IDENTITY, source=tmp_path / "nothing")).fit()


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    synthetic: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(checkpoint: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    training = made(synthetic, "standard", Checkpoints(tmp_path, IDENTITY))
    training.fit()
    assert len(training.history) == EPOCHS
    assert not list(tmp_path.iterdir())
    assert "no checkpoint after epoch 1: " in capsys.readouterr().err
