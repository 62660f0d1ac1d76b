"""A training that was stopped after any epoch goes on to the same bits; a checkpoint that cannot be used is refused or passed over."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import STRATEGIES, StrategyOptions, build_strategy
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.loop import Training
from tests.training.helpers import Data, differing, make_training, run_config, state_of

OPTIONS = StrategyOptions(
    channel_gates=ChannelGates.Options(budget=0.9, search_epochs=2, held_out=0.25),
    channel_pruning=ChannelPruning.Options(budget=0.9),
    network_slimming=NetworkSlimming.Options(budget=0.9),
)
CHAINS = [
    "layer_pruning+channel_gates",
    "channel_gates+l2sp",
    "channel_gates+autolr",
    "channel_pruning+spottune",
    "rollback+l2sp",
]
EPOCHS = 4
IDENTITY = {"seed": 0, "train": {"lr": 0.001, "epochs": EPOCHS}}


class Stopping(Checkpoints):
    """Is interrupted once the checkpoint of an epoch is written."""

    def __init__(self, folder: Path, after: int):
        super().__init__(folder, IDENTITY)
        self.after = after

    def save(self, training: Training) -> None:
        super().save(training)
        if training.epoch + 1 == self.after:
            raise KeyboardInterrupt


def begun(data: Data, strategy: str, checkpoints: Checkpoints | None, loss: str = "softmax") -> Training:
    config = run_config(loss, head="autolr", epochs=EPOCHS, schedule="cosine")
    return make_training(data, build_strategy(strategy, OPTIONS), config, checkpoints=checkpoints)


def outcome(training: Training) -> tuple[Any, ...]:
    model = training.fit()
    facts = json.dumps(training.strategy.info(), sort_keys=True)
    return (
        state_of(model, training.model, training.criterion),
        training.history,
        training.images_seen,
        training.lrs(),
        facts,
    )


UNDISTURBED: dict[str, tuple[Any, ...]] = {}


def undisturbed(data: Data, strategy: str) -> tuple[Any, ...]:
    """The outcome of a training that was left alone; made once per strategy."""
    if strategy not in UNDISTURBED:
        UNDISTURBED[strategy] = outcome(begun(data, strategy, None))
    return UNDISTURBED[strategy]


@pytest.mark.parametrize("strategy", [*STRATEGIES, *CHAINS])
def test_stopped_after_an_epoch_it_ends_as_if_it_had_not_been(strategy: str, synthetic: Data, tmp_path: Path) -> None:
    state, *rest = undisturbed(synthetic, strategy)
    stopped = begun(synthetic, strategy, Stopping(tmp_path, 2))
    if not stopped.model.trainable():
        return  # nothing is trained, so nothing is kept
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    torch.manual_seed(7)
    resumed = begun(synthetic, strategy, Checkpoints(tmp_path, IDENTITY))
    again, *others = outcome(resumed)
    assert not differing(state, again)
    assert others == rest
    assert resumed.resumed == [2]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were put into the background, in which shells make processes deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting(Strategy):
    """Sends Ctrl-C to this process after a number of steps."""

    def __init__(self, step: int):
        super().__init__()
        self.left = step

    def after_step(self, model: Embedder) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)


def interrupted(data: Data, strategy: str, folder: Path, step: int, loss: str = "softmax") -> Training:
    """A training that got a signal in step `step`, from 1, and has ended as it would; four steps are an epoch."""
    training = begun(data, strategy, Checkpoints(folder, IDENTITY), loss)
    training.strategy.parts["interrupting"] = Interrupting(step)  # pyright: ignore[reportAttributeAccessIssue]
    load: Any = training.strategy.load_state_dict
    training.strategy.load_state_dict = lambda state, model: load({"interrupting": {}, **state}, model)
    with pytest.raises(KeyboardInterrupt):
        training.fit()
    return training


@pytest.mark.parametrize("strategy", [*STRATEGIES, *CHAINS])
def test_interrupted_within_an_epoch_it_ends_as_if_it_had_not_been(
    strategy: str, synthetic: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With routes, dropout and proxies in the middle of their random numbers; strategies that repeat epochs begin the epoch again."""
    if not begun(synthetic, strategy, None).model.trainable():
        return
    state, *rest = undisturbed(synthetic, strategy)
    search = sum({"channel_gates": 6, "network_slimming": 8}.get(name, 0) for name in strategy.split("+"))
    stopped = interrupted(synthetic, strategy, tmp_path, search + 6)
    within = stopped.strategy.goes_on_within_epochs
    whole = [f"epoch-{number + 1:04d}" for number in range(len(stopped.history))]
    assert (kept(tmp_path) if tmp_path.exists() else []) == ([*whole, "epoch-0001-step-000002"] if within else whole)
    assert "stopping after this step" in capsys.readouterr().err
    resumed = begun(synthetic, strategy, Checkpoints(tmp_path, IDENTITY))
    again, *others = outcome(resumed)
    assert not differing(state, again)
    assert others[0] == rest[0], "losses"
    assert others[2:] == rest[2:]
    if within:
        assert others[1] == rest[1], "images seen"
        assert "going on after epoch 1, step 2" in capsys.readouterr().err


def test_interrupted_twice_it_goes_on_from_the_later_place(synthetic: Data, tmp_path: Path) -> None:
    state, *_ = undisturbed(synthetic, "standard")
    interrupted(synthetic, "standard", tmp_path, 1)
    assert kept(tmp_path) == ["epoch-0000-step-000001"]
    interrupted(synthetic, "standard", tmp_path, 2)
    assert kept(tmp_path) == ["epoch-0000-step-000001", "epoch-0000-step-000003"]
    resumed = begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY))
    assert not differing(state, outcome(resumed)[0])
    assert resumed.resumed == [0, 0]


@pytest.mark.parametrize("loss", ["triplet", "proxy_anchor", "multi_similarity"])
def test_losses_with_proxies_and_miners_go_on_too(loss: str, synthetic: Data, tmp_path: Path) -> None:
    state, *rest = outcome(begun(synthetic, "standard", None, loss))
    with pytest.raises(KeyboardInterrupt):
        begun(synthetic, "standard", Stopping(tmp_path, 2), loss).fit()
    again, *others = outcome(begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY), loss))
    assert not differing(state, again)
    assert others == rest


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_last_two_are_kept(synthetic: Data, tmp_path: Path) -> None:
    begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY)).fit()
    assert kept(tmp_path) == ["epoch-0003", "epoch-0004"]


def test_every_so_many_epochs(synthetic: Data, tmp_path: Path) -> None:
    begun(synthetic, "standard", Checkpoints(tmp_path / "three", IDENTITY, every=3)).fit()
    begun(synthetic, "standard", Checkpoints(tmp_path / "never", IDENTITY, every=0)).fit()
    assert kept(tmp_path) == ["three"]
    assert kept(tmp_path / "three") == ["epoch-0003"]


@pytest.mark.parametrize("damage", ["half", "empty", "gone"])
@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(
    file: str, damage: str, synthetic: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, *_ = undisturbed(synthetic, "standard")
    with pytest.raises(KeyboardInterrupt):
        begun(synthetic, "standard", Stopping(tmp_path, 3)).fit()
    path = tmp_path / "epoch-0003" / file
    path.write_bytes(path.read_bytes()[: {"half": path.stat().st_size // 2, "empty": 0, "gone": 0}[damage]])
    if damage == "gone":
        path.unlink()
    resumed = begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY))
    again, *_ = outcome(resumed)
    assert resumed.resumed == [2]
    assert not differing(state, again)
    assert "epoch-0003: no whole checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_replaced(synthetic: Data, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        begun(synthetic, "standard", Stopping(tmp_path, 3)).fit()
    (tmp_path / "epoch-0003" / "state.pt").write_bytes(b"")
    with pytest.raises(KeyboardInterrupt):
        begun(synthetic, "standard", Stopping(tmp_path, 3)).fit()
    resumed = begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY))
    resumed.fit()
    assert resumed.resumed == [2, 3]


def test_interrupted_in_the_last_step_of_an_epoch_it_stops_after_it(synthetic: Data, tmp_path: Path) -> None:
    for step, epochs in ((4, 1), (12, 4)):
        stopped = interrupted(synthetic, "standard", tmp_path, step)
        assert len(stopped.history) == epochs


def test_another_configuration_is_refused_with_the_difference(synthetic: Data, tmp_path: Path) -> None:
    begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY)).fit()
    changed = {"seed": 1, "train": {"lr": 0.01, "epochs": EPOCHS}}
    with pytest.raises(UserError, match=r"another configuration: seed 0, now 1; train.lr 0.001, now 0.01$"):
        begun(synthetic, "standard", Checkpoints(tmp_path, changed)).fit()


def test_another_folder_may_be_gone_on_from_and_must_hold_something(synthetic: Data, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        begun(synthetic, "standard", Stopping(tmp_path / "old", 1)).fit()
    resumed = begun(synthetic, "standard", Checkpoints(tmp_path / "new", IDENTITY, source=tmp_path / "old"))
    resumed.fit()
    assert resumed.resumed == [1]
    assert kept(tmp_path / "new") == ["epoch-0003", "epoch-0004"]
    with pytest.raises(UserError, match="no checkpoint here"):
        begun(synthetic, "standard", Checkpoints(tmp_path / "new", IDENTITY, source=tmp_path / "nothing")).fit()


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    synthetic: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("retrieval_bench.training.checkpoint.save_file", full)
    training = begun(synthetic, "standard", Checkpoints(tmp_path, IDENTITY))
    training.fit()
    assert len(training.history) == EPOCHS
    assert kept(tmp_path) == []
    assert "no checkpoint after epoch 1: " in capsys.readouterr().err
