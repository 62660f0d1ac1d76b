"""Checkpoints: what a training needs to resume after an epoch with the same bits, and when it may."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retrieval_bench.config import RunConfig, flat_values
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import atomic_path
from retrieval_bench.progress import logger

KEPT = 2
FORMAT = 2


class Checkpoints:
    """The checkpoints of one run: a file per `every` epochs (0 for none), written whole or not at all, the last two
    kept; and the same for each `kind` of passes before the training.

    Random states need no file: every pass draws its random numbers from the run's seed, the epoch and the attempt. A
    checkpoint of another `identity`, the flat configuration, is refused. A `source` is a folder to resume from in place
    of `folder`, which must then hold a checkpoint.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], every: int = 1, source: Path | None = None):
        self.folder = folder
        self.identity = dict(identity)
        self.every = every
        self.source = source

    def save(self, epoch: int, state: Mapping[str, Any], kind: str = "epoch") -> None:
        """Keeps the state after `epoch` epochs (tensors, numbers, strings, lists and dictionaries of them). A
        checkpoint that cannot be written does not stop the training: a line says so."""
        if not self.every or epoch % self.every:
            return
        try:
            with atomic_path(self.folder / f"{kind}-{epoch:04d}.pt") as path:
                torch.save({"format": FORMAT, "identity": self.identity, "state": dict(state)}, path)
            for old in _newest_first(self.folder, kind)[KEPT:]:
                old.unlink(missing_ok=True)
        except Exception as error:  # torch reports a full disk by errors of its own
            logger.info(f"no checkpoint after {kind} {epoch}: {first_line(error)}; training continues")

    def load(self, kind: str = "epoch") -> dict[str, Any] | None:
        """The newest state that can be read, on the CPU; None if there is none. Raises :class:`UserError` for a
        checkpoint of another configuration, with the difference, and for a `source` without any."""
        for path in _newest_first(self.source or self.folder, kind):
            try:
                checkpoint = torch.load(path, "cpu", weights_only=True)
                if checkpoint["format"] != FORMAT:
                    raise UserError(f"not of format {FORMAT}")
            except Exception as error:  # a damaged file fails in many ways; the one before it may be whole
                logger.info(f"{path}: no whole checkpoint ({first_line(error)}); trying the one before it")
                continue
            usual = dict(flat_values(RunConfig()))  # of choices that there were not yet when it was made
            then, now = {**usual, **checkpoint["identity"]}, {**usual, **self.identity}
            if changed := [
                f"{name} {then.get(name)}, now {now.get(name)}"
                for name in {**then, **now}
                if then.get(name) != now.get(name)
            ]:
                raise UserError(f"{path} was made by another configuration: {'; '.join(changed)}")
            logger.info(f"resuming from {path}")
            return checkpoint["state"]
        if self.source is not None and not _newest_first(self.source, "*"):
            raise UserError(f"{self.source}: no checkpoint here (a folder with epoch-0001.pt and the like)")
        return None

    def remove(self) -> None:
        """Removes all checkpoints: the run has its record."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _newest_first(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.pt"), reverse=True)
