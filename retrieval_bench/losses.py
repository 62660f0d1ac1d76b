"""Losses and miners by name, from pytorch-metric-learning and the softmax loss below. To add one, add its line.

Losses receive embeddings that are not normalised and labels 0..C-1; pytorch-metric-learning's distances normalise by
themselves. The defaults are those of each loss's paper as the library documents them; ``--loss-options`` changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning import losses, miners
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.sections import LossConfig


class SoftmaxLoss(nn.Module):
    """Plain softmax cross-entropy of a classifier on the embedding, ``linear`` or ``autolr`` (see :func:`autolr_head`);
    the classifier is not part of the embedder."""

    def __init__(self, num_classes: int, embedding_size: int, head: str = "linear", label_smoothing: float = 0.0):
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing {label_smoothing} is not in 0..1")
        make_head = autolr_head if head == "autolr" else nn.Linear
        self.head = make_head(embedding_size, num_classes)
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.cross_entropy(self.get_logits(embeddings), labels)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Float (B, C); named as in pytorch-metric-learning's losses."""
        return self.head(embeddings)


def autolr_head(dim: int, classes: int) -> nn.Sequential:
    """The classifier of AutoLR (Ro and Choi, AAAI 2021): D -> 512, batch norm, LeakyReLU 0.1, dropout 0.5, 512 -> C.

    Initialised as there: first layer Kaiming normal (fan out), batch norm scale N(1, 0.02), classifier N(0, 0.001),
    biases 0. 1,050,112 + 513 C parameters for D = 2048.
    """
    bottleneck, norm, classifier = nn.Linear(dim, 512), nn.BatchNorm1d(512), nn.Linear(512, classes)
    nn.init.kaiming_normal_(bottleneck.weight, a=0, mode="fan_out")
    nn.init.normal_(norm.weight, 1.0, 0.02)
    nn.init.normal_(classifier.weight, 0.0, 0.001)
    for layer in (bottleneck, norm, classifier):
        nn.init.zeros_(layer.bias)
    return nn.Sequential(bottleneck, norm, nn.LeakyReLU(0.1), nn.Dropout(0.5), classifier)


@dataclass(frozen=True)
class Loss:
    """One entry: the class or its maker, and what it asks of a batch.

    A loss that `needs_pairs` compares images of one batch with each other, so a batch needs several images per class;
    `miner` is its usual one. The others own a classifier or proxies, made for the number of classes.
    """

    make: Callable[..., nn.Module]
    needs_pairs: bool = False
    miner: str = "none"


LOSSES: dict[str, Loss] = {
    "arcface": Loss(losses.ArcFaceLoss),
    "contrastive": Loss(losses.ContrastiveLoss, needs_pairs=True),
    "multi_similarity": Loss(losses.MultiSimilarityLoss, needs_pairs=True, miner="multi_similarity"),
    "normalized_softmax": Loss(losses.NormalizedSoftmaxLoss),
    "proxy_anchor": Loss(losses.ProxyAnchorLoss),
    "proxy_nca": Loss(losses.ProxyNCALoss),
    "softmax": Loss(SoftmaxLoss),
    "triplet": Loss(partial(losses.TripletMarginLoss, margin=0.2), needs_pairs=True, miner="semihard"),
}

MINERS: dict[str, Callable[[], nn.Module]] = {
    "batch_hard": miners.BatchHardMiner,
    "distance_weighted": miners.DistanceWeightedMiner,
    "easy_positive": partial(miners.BatchEasyHardMiner, pos_strategy="easy", neg_strategy="semihard"),
    "hard": partial(miners.TripletMarginMiner, margin=0.2, type_of_triplets="hard"),
    "multi_similarity": partial(miners.MultiSimilarityMiner, epsilon=0.1),
    "semihard": partial(miners.TripletMarginMiner, margin=0.2, type_of_triplets="semihard"),
}


class Criterion(nn.Module):
    """A loss with its miner: ``criterion(embeddings, labels)`` with float (B, D) embeddings, not normalised, and int64
    (B,) labels in 0..C-1; a scalar. `mined` counts batches with a miner, and those of which it left the loss no pair or
    triplet (int64 (2,), a buffer, so that a pass that is undone leaves no trace)."""

    mined: Tensor

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.register_buffer("mined", torch.zeros(2, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_count_from_zero)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.miner is None:
            return self.loss(embeddings, labels)
        indices = self.miner(embeddings, labels)
        if isinstance(self.loss, losses.TripletMarginLoss):
            indices = convert_to_triplets(indices, labels)
        self.mined[0] += 1
        self.mined[1] += not any(map(len, indices))
        return self.loss(embeddings, labels, indices)

    @property
    def share_without_pairs(self) -> float:
        """Of all batches, those of which the miner left no pair or triplet, so that the loss was 0."""
        batches, without = self.mined.tolist()
        return without / max(batches, 1)

    @property
    def classifies(self) -> bool:
        """Whether the loss assigns images to classes by itself, with a classifier or a proxy per class."""
        return hasattr(self.loss, "get_logits")

    def logits(self, embeddings: Tensor) -> Tensor:
        """Float (B, C), the largest for the most likely class; for losses that classify."""
        loss: Any = self.loss
        logits = loss.get_logits(embeddings)
        are_distances = hasattr(loss, "proxies") and not loss.distance.is_inverted  # of Proxy-NCA
        return -logits if are_distances else logits


def _count_from_zero(criterion: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.setdefault(f"{prefix}mined", torch.zeros(2, dtype=torch.int64))  # checkpoints of earlier versions have none


def build_criterion(config: LossConfig, classes: int, dim: int) -> Criterion:
    """The criterion for `classes` training classes and embeddings of size `dim`; draws from torch's global generator.
    Raises :class:`UserError` for an option that the loss does not know."""
    spec, options = LOSSES[config.loss], dict[str, Any](config.loss_options)
    sizes = {} if spec.needs_pairs else {"num_classes": classes, "embedding_size": dim}
    head = {"head": config.head} if config.loss == "softmax" else {}
    try:
        loss = spec.make(**sizes, **options, **head)
    except (TypeError, ValueError) as error:
        raise UserError(f"--loss-options {dict(config.loss_options)}: {config.loss} refuses them ({error})") from None
    miner = spec.miner if config.miner == "default" else config.miner
    return Criterion(loss, None if miner == "none" else MINERS[miner]())
