"""Weight variation: standard training that records how far the weights of each block move in every epoch.

The measure of Ro and Choi, AutoLR (AAAI 2021, arXiv 2002.06048), equation 2: block k varies by
``v_k = |w_t - w_(t-1)| / n_k`` in epoch t (Euclidean norm), n_k its number of weights. Counted are the kernels of its
main path, as in the authors' code: no norms, no biases, no projection of a shortcut, and neither stem nor head. Their
claim is that under one learning rate the variation falls from the first block to the last, the reverse of what general
low layers and specific high layers would ask for.

Dividing by n_k and not by its root makes wide blocks look still: if all weights of ResNet-50 moved equally, v would
fall by a factor of 8 from block 1 to 14. ``normalizer`` offers ``sqrt_n`` (root mean square of the changes) and
``relative`` (to the norm of the weights before).

How well the variations ascend is the sorting quality, equation 9: ``Q = 1 - 2 / K^2 sum_k |k - rank(v_k)|``, 1 for
ascending ones and 0 for descending ones (K even). Deviation: equal variations rank in the order of the blocks, so that
they cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import EpochState, Look, Strategy, TrainOnce, option

Normalizer = Literal["n", "sqrt_n", "relative"]
NORMALIZER_HELP = "a block's change is divided by: n, its number of weights (paper); sqrt_n; relative, their norm"


def weight_variation(before: Mapping[str, Tensor], model: Embedder, normalizer: Normalizer = "n") -> dict[str, float]:
    """How far each block's kernels are from where they were in the state dictionary `before`, by block name, in order.

    ``n`` divides the Euclidean distance by the number of weights (the paper), ``sqrt_n`` by its root, ``relative`` by
    the norm of the weights before. Blocks without a trained kernel are left out.
    """

    def squared_norm(values: Tensor) -> float:
        return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2

    variation = {}
    for block in model.backbone.body:
        kernels = {f"backbone.net.{name}": kernel for name, kernel in model.backbone.kernels(block).items()}
        if not kernels:
            continue
        moved = sum(squared_norm(kernel.detach() - before[name]) for name, kernel in kernels.items())
        if normalizer == "relative":
            divisor = sum(squared_norm(before[name]) for name in kernels) ** 0.5
        else:
            count = sum(kernel.numel() for kernel in kernels.values())
            divisor = count if normalizer == "n" else count**0.5
        variation[block.name] = moved**0.5 / divisor if divisor else float("inf")
    return variation


def sorting_quality(variation: Sequence[float] | np.ndarray) -> float:
    """Q of equation 9, in 0..1: 1 if and only if the variations ascend (equal neighbours do); NaN if one is not finite.

    Without any variations there is nothing out of order, and Q is 1.
    """
    values = np.asarray(variation, dtype=np.float64)
    if not np.isfinite(values).all():
        return float("nan")
    count = len(values)
    order = np.argsort(values, kind="stable")
    return 1.0 - 2.0 * float(np.abs(np.arange(count) - order).sum()) / count**2 if count else 1.0


class History:
    """Variations and rates epoch by epoch, from which the figure of AutoLR is drawn."""

    def __init__(self, normalizer: Normalizer = "n") -> None:
        self.normalizer = normalizer
        self.epochs: list[dict[str, Any]] = []

    def add(self, variation: Mapping[str, float], rates: Mapping[str, float], **more: Any) -> None:
        """Adds the pass of an epoch that was kept."""
        self.epochs.append(
            {"variation": list(variation.values()), "blocks": list(variation), "rates": dict(rates), **more}
        )

    def info(self) -> dict[str, Any]:
        """Lists over epochs, by key; ``blocks`` and ``normalizer`` once; ``rates`` by group, before the schedule."""
        if not self.epochs:
            return {}
        lists = {key: [epoch[key] for epoch in self.epochs] for key in self.epochs[0] if key != "blocks"}
        groups = self.epochs[0]["rates"]
        return {
            "blocks": self.epochs[0]["blocks"],
            "normalizer": self.normalizer,
            **lists,
            "rates": {name: [epoch["rates"][name] for epoch in self.epochs] for name in groups},
        }


class WeightVariation(Strategy):
    """Standard fine-tuning that records each epoch's variation per block and their sorting quality."""

    look = Look("#606c00", "*")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        normalizer: Normalizer = option("n", NORMALIZER_HELP)

    options: Options

    def __init__(self, options: Options | None = None):
        super().__init__(options)
        self._history = History(self.options.normalizer)

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        before = state.snapshot()["model"]
        loss = train_once()
        variation = weight_variation(before, state.model, self.options.normalizer)
        self._history.add(variation, state.lrs(), quality=sorting_quality(list(variation.values())), trials=1)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self._history.epochs}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._history.epochs = state["epochs"]

    def info(self) -> dict[str, Any]:
        return self._history.info()
