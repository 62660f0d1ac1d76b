"""Training classes that a search leaves out, so that it can be scored on classes that it has not seen. The test set is not involved."""

from __future__ import annotations

import numpy as np
import torch

from retrieval_bench.data.loading import Batches
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.models.embedder import Embedder, embed, unit
from retrieval_bench.seeding import generator


def hold_out(batches: Batches, share: float, seed: int) -> tuple[Batches, Batches]:
    """Training batches without some classes, and batches of those classes in order.

    Args:
        batches: of all training classes.
        share: of the classes that are held out, drawn by `seed`.
        seed: of the run.

    Raises:
        UserError: fewer than two classes on a side, or too few for a batch.
    """
    classes = np.unique(batches.labels)
    count = round(share * len(classes))
    if not 2 <= count <= len(classes) - 2:
        raise UserError(
            f"{share:g} of {len(classes)} training classes held out: at least two must be left on each side"
        )
    drawn = classes[torch.randperm(len(classes), generator=generator(seed, "held out")).numpy()[:count]]
    held = np.isin(batches.labels, drawn)
    return batches.subset(np.flatnonzero(~held), training=True), batches.subset(np.flatnonzero(held), training=False)


def recall_at_1(model: Embedder, batches: Batches) -> float:
    """Recall@1 of each image of `batches` among the others."""
    return evaluate(unit(embed(model, batches)), batches.labels, ks=(1,))["recall_at_1"]
