"""Recall@1 on training classes that are held out: after each epoch (``--validate``), and for choices of strategies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from retrieval_bench.data.loading import Batches
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.losses import Criterion
from retrieval_bench.models.embedder import Embedder, embed, unit
from retrieval_bench.seeding import generator
from retrieval_bench.strategies.base import Strategy


class Validation:
    """Recall@1 of `batches` after each epoch, and the epoch that is kept: with a `patience`, the best one (of equal
    ones the first), once so many have passed without a better one; without, the last.

    Attributes:
        recalls: of the epochs so far; `seconds` that they took, which also count as the training's, and `images`.
        best: the state of model and loss after the epoch that is kept.
    """

    def __init__(self, batches: Batches, patience: int = 0):
        self.batches, self.patience = batches, patience
        self.recalls: list[float] = []
        self.seconds, self.images = 0.0, 0
        self.best: dict[str, Any] = {}

    def measure(self, strategy: Strategy, model: Embedder) -> float:
        """Recall@1 of what would be deployed if the training ended here: a copy, since strategies finish in place."""
        with torch.random.fork_rng(devices=[]):
            strategy, model = copy.deepcopy((strategy, model))
            return recall_at_1(strategy.finalize(model), self.batches)

    def add(self, recall: float, model: Embedder, criterion: Criterion) -> None:
        """After an epoch: its Recall@1, and what is kept if it is the best."""
        self.recalls.append(recall)
        if self.patience and self.kept_epoch == len(self.recalls):
            self.best = copy.deepcopy({"model": model.state_dict(), "criterion": criterion.state_dict()})

    @property
    def kept_epoch(self) -> int:
        """From 1."""
        return 1 + self.recalls.index(max(self.recalls)) if self.patience else len(self.recalls)

    @property
    def is_over(self) -> bool:
        return bool(self.patience and self.recalls) and len(self.recalls) - self.kept_epoch >= self.patience

    def account(self) -> dict[str, Any]:
        """What the record says of the training."""
        kept = {"kept_epoch": self.kept_epoch} if self.patience else {}
        return {"validation_recall_at_1": self.recalls, **kept}

    def cost(self) -> dict[str, float]:
        """Of all epochs; part of the training's."""
        return {"validation_images": self.images, "validation_seconds": round(self.seconds, 2)}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("recalls", "seconds", "images", "best")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def recall_at_1(model: Embedder, batches: Batches) -> float:
    """Of the images of `batches`, each searched among the others."""
    vectors = unit(embed(model, batches, what="embedding held-out images"))
    return evaluate(vectors, batches.labels, ks=(1,))["recall_at_1"]


def split_batches(batches: Batches, share: float, seed: int) -> tuple[Batches, Batches]:
    """Training batches of the other classes, and the images of this `share` of them in order. Raises
    :class:`UserError` for fewer than two classes on a side, or too few for a batch."""
    classes = np.unique(batches.labels)
    count = round(share * len(classes))
    if not 2 <= count <= len(classes) - 2:
        raise UserError(
            f"{share:g} of {len(classes)} training classes held out: at least two must be left on each side"
        )
    order = torch.randperm(len(classes), generator=generator(seed, "held out")).numpy()
    is_held_out = np.isin(batches.labels, classes[order[:count]])
    held_out = batches.subset(np.flatnonzero(is_held_out), training=False)
    return batches.subset(np.flatnonzero(~is_held_out), training=True), held_out
