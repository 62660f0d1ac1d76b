"""Checkpoints: what a training needs to go on after an epoch as if nothing had happened, and when it may."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import whole_folder
from retrieval_bench.progress import logger
from retrieval_bench.seeding import set_random_states

if TYPE_CHECKING:
    from retrieval_bench.training.loop import Training

KEPT = 2
FORMAT = 1
ANOTHER = "was made by another configuration"


@dataclass(frozen=True)
class Begun:
    """A pass in the middle: steps that are done, the sum of losses over images that count, and the states of torch's generators."""

    step: int
    total: Tensor
    images: int
    random: Tensor | None = None
    random_gpu: Tensor | None = None

    def go_on(self) -> None:
        """Puts the generators back."""
        if self.random is not None:
            set_random_states((self.random, self.random_gpu))


class Checkpoints:
    """The checkpoints of one run: a folder per epoch, written whole or not at all, the last two kept.

    ``weights.safetensors`` holds network and loss, ``state.pt`` the optimiser, the strategy's memory and what was counted. Every pass draws
    its random numbers from the run's seed, the epoch and the attempt, so that only a pass that was stopped in the middle
    (``epoch-0002-step-000120``) has states of generators to keep.

    Args:
        folder: of this run; made when the first epoch ends.
        identity: the configuration, as in the record; a checkpoint of another one is refused.
        every: epochs between checkpoints, 0 for none.
        source: folder to resume from in place of `folder`, which must then hold a checkpoint.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], every: int = 1, source: Path | None = None):
        self.folder = folder
        self.identity = identity
        self.every = every
        self.source = source

    def save(self, training: Training) -> None:
        """Keeps the state after the epoch that has just ended, or in the middle of a pass (``training.begun``).

        What cannot be written costs no training: a line says so.
        """
        done, begun = len(training.history), training.begun
        if not self.every or (done % self.every and begun is None):
            return
        name = f"epoch-{done:04d}" + (f"-step-{begun.step:06d}" if begun else "")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)  # a damaged one, or one of a run that was begun again
            with whole_folder(self.folder / name) as unfinished:
                save_file(_weights(training), unfinished / "weights.safetensors")
                torch.save({"format": FORMAT, "identity": self.identity, **_state(training)}, unfinished / "state.pt")
            for old in _found(self.folder)[KEPT:]:
                shutil.rmtree(old, ignore_errors=True)
        except Exception as error:  # torch and safetensors report a full disk by errors of their own
            logger.info(f"no checkpoint after epoch {done}: {first_line(error)}; training goes on")

    def restore(self, training: Training) -> bool:
        """Puts the newest checkpoint that can be read into a training that has just been made; False if there is none.

        Raises:
            UserError: a checkpoint of another configuration, with the difference; or a `source` without any.
        """
        for path in _found(self.source or self.folder):
            try:
                weights, state = (
                    load_file(path / "weights.safetensors"),
                    torch.load(path / "state.pt", "cpu", weights_only=True),
                )
                if state["format"] != FORMAT:
                    raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
            except Exception as error:  # a damaged file fails in a dozen ways; the one before it may be whole
                logger.info(f"{path}: no whole checkpoint ({first_line(error)}); the one before it is tried")
                continue
            if differences := list(_differences(state["identity"], self.identity)):
                raise UserError(f"{path} {ANOTHER}: {'; '.join(differences)}")
            _restore(training, weights, state)
            within = f", step {training.begun.step}" if training.begun else ""
            logger.info(f"going on after epoch {len(training.history)}{within}, from {path}")
            return True
        if self.source is not None:
            raise UserError(f"{self.source}: no checkpoint here (a folder with epoch-0001 and the like)")
        return False

    def remove(self) -> None:
        """Takes all checkpoints away: the run has its record."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    return sorted(folder.glob("epoch-*"), reverse=True)


def _weights(training: Training) -> dict[str, Tensor]:
    parts = {"model": training.model, "criterion": training.criterion}
    return {
        f"{part}.{name}": value.detach().cpu().contiguous().clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def _state(training: Training) -> dict[str, Any]:
    return {
        "epoch": training.epoch,
        "history": training.history,
        "images_seen": training.images_seen,
        "seconds": training.seconds + (time.perf_counter() - training.pass_started if training.begun else 0),
        "strategy_seconds": training.strategy_seconds,
        "elapsed": time.perf_counter() - training.started,
        "resumed": training.resumed,
        "skipped": training.skipped,
        "micro": training.micro,
        "begun": asdict(training.begun) if training.begun else None,
        "optimizer": training.optimizer.state_dict(),
        "memory": training.strategy.state_dict(),
    }


def _restore(training: Training, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
    training.strategy.load_state_dict(state["memory"], training.model)
    training.rebuild()
    for part, module in {"model": training.model, "criterion": training.criterion}.items():
        module.load_state_dict(
            {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
        )
    training.optimizer.load_state_dict(state["optimizer"])
    for name in ("epoch", "history", "images_seen", "seconds", "strategy_seconds", "skipped", "micro"):
        setattr(training, name, state[name])
    training.started -= state["elapsed"]
    training.begun = Begun(**state["begun"]) if state["begun"] else None
    training.resumed = [*state["resumed"], len(training.history)]


def _differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Each value in which two configurations differ, as ``train.lr 0.001, now 0.01``."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            yield from _differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif then != now:
        yield f"{path} {then}, now {now}"
