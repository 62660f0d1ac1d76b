"""The loss as one module: a loss from the registry, its miner, and the parameters that it owns (proxies, classifier)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.losses import LOSSES, MINERS
from retrieval_bench.sections import LossConfig


class Criterion(nn.Module):
    """``criterion(embeddings, labels)`` with float (B, D) embeddings, not normalised, and int64 (B,) labels in 0..C-1; a scalar."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.miner is None:
            return self.loss(embeddings, labels)
        return self.loss(embeddings, labels, self.miner(embeddings, labels))

    @property
    def classifies(self) -> bool:
        """Whether the loss tells classes apart by itself, with a classifier or a proxy per class."""
        return hasattr(self.loss, "get_logits")

    def logits(self, embeddings: Tensor) -> Tensor:
        """Float (B, C), the largest for the most likely class; for losses that classify."""
        loss: Any = self.loss
        logits = loss.get_logits(embeddings)
        return (
            -logits if hasattr(loss, "proxies") and not loss.distance.is_inverted else logits
        )  # Proxy-NCA gives distances


def build_criterion(config: LossConfig, classes: int, dim: int) -> Criterion:
    """The criterion for `classes` training classes and embeddings of size `dim`; draws from torch's global generator.

    Raises:
        UserError: an option that the loss does not know.
    """
    spec = LOSSES[config.loss]
    options = {**dict(config.loss_options), **({"head": config.head} if config.loss == "softmax" else {})}
    try:
        loss = spec.make(classes, dim, options)
    except (TypeError, ValueError) as error:
        raise UserError(f"--loss-options {dict(config.loss_options)}: {config.loss} refuses them ({error})") from None
    miner = spec.miner if config.miner == "default" else config.miner
    return Criterion(loss, None if miner == "none" else MINERS[miner]())
