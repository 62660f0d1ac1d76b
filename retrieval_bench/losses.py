"""Losses and miners by name, all from pytorch-metric-learning. To add one, add its line.

Losses receive embeddings that are not normalised and labels 0..C-1; pytorch-metric-learning's distances normalise by themselves. The
defaults are those of each loss's paper as the library documents them; ``--loss-options`` changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Options = dict[str, Any]


@dataclass(frozen=True)
class Loss:
    """One entry: how to make it from (number of classes C, embedding size D, options), and what it asks of a batch."""

    make: Callable[[int, int, Options], nn.Module]
    needs_pairs: bool = False
    """compares images of one batch with each other, so a batch needs several images per class; may use a miner"""
    miner: str = "none"


def _pml(name: str, has_classes: bool = True, **defaults: float) -> Callable[[int, int, Options], nn.Module]:
    """A maker of the pytorch-metric-learning loss called `name`."""

    def make(classes: int, dim: int, options: Options) -> nn.Module:
        from pytorch_metric_learning import losses

        sizes = {"num_classes": classes, "embedding_size": dim} if has_classes else {}
        return getattr(losses, name)(**sizes, **{**defaults, **options})

    return make


def _softmax(classes: int, dim: int, options: Options) -> nn.Module:
    from retrieval_bench.models.classifier import SoftmaxLoss

    return SoftmaxLoss(classes, dim, **options)


LOSSES: dict[str, Loss] = {
    "arcface": Loss(_pml("ArcFaceLoss")),
    "contrastive": Loss(_pml("ContrastiveLoss", has_classes=False), needs_pairs=True),
    "multi_similarity": Loss(
        _pml("MultiSimilarityLoss", has_classes=False), needs_pairs=True, miner="multi_similarity"
    ),
    "normalized_softmax": Loss(_pml("NormalizedSoftmaxLoss")),
    "proxy_anchor": Loss(_pml("ProxyAnchorLoss")),
    "proxy_nca": Loss(_pml("ProxyNCALoss")),
    "softmax": Loss(_softmax),
    "triplet": Loss(_pml("TripletMarginLoss", has_classes=False, margin=0.2), needs_pairs=True, miner="semihard"),
}


def _miner(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from pytorch_metric_learning import miners

        return getattr(miners, name)(**options)

    return make


MINERS: dict[str, Callable[[], nn.Module]] = {
    "batch_hard": _miner("BatchHardMiner"),
    "distance_weighted": _miner("DistanceWeightedMiner"),
    "easy_positive": _miner("BatchEasyHardMiner", pos_strategy="easy", neg_strategy="semihard"),
    "hard": _miner("TripletMarginMiner", margin=0.2, type_of_triplets="hard"),
    "multi_similarity": _miner("MultiSimilarityMiner", epsilon=0.1),
    "semihard": _miner("TripletMarginMiner", margin=0.2, type_of_triplets="semihard"),
}
