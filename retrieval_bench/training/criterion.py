"""The loss as one module: a loss from the registry, its miner, and the parameters that it owns (proxies, classifier)."""

from __future__ import annotations

from torch import Tensor, nn

from retrieval_bench.config import LossConfig
from retrieval_bench.errors import UserError
from retrieval_bench.losses import LOSSES, MINERS


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


class SoftmaxLoss(nn.Module):
    """Plain softmax cross-entropy of a classifier on the embedding; the classifier is dropped after training.

    Args:
        classes: number of training classes C.
        dim: embedding size D.
        head: ``linear`` (D -> C) or ``autolr`` (see :func:`autolr_head`).
        label_smoothing: as in :class:`torch.nn.CrossEntropyLoss`.
    """

    def __init__(self, classes: int, dim: int, head: str = "linear", label_smoothing: float = 0.0):
        super().__init__()
        self.head = autolr_head(classes, dim) if head == "autolr" else nn.Linear(dim, classes)
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.cross_entropy(self.head(embeddings), labels)


def autolr_head(classes: int, dim: int) -> nn.Sequential:
    """The classifier of AutoLR (Ro and Choi, AAAI 2021): D -> 512, batch norm, LeakyReLU 0.1, dropout 0.5, 512 -> C.

    Initialised as there: first layer Kaiming normal (fan out), batch norm scale N(1, 0.02), classifier N(0, 0.001), biases 0.
    1,050,112 + 513 C parameters for D = 2048.
    """
    bottleneck, norm, classifier = nn.Linear(dim, 512), nn.BatchNorm1d(512), nn.Linear(512, classes)
    nn.init.kaiming_normal_(bottleneck.weight, a=0, mode="fan_out")
    nn.init.normal_(norm.weight, 1.0, 0.02)
    nn.init.normal_(classifier.weight, 0.0, 0.001)
    for layer in (bottleneck, norm, classifier):
        nn.init.zeros_(layer.bias)
    return nn.Sequential(bottleneck, norm, nn.LeakyReLU(0.1), nn.Dropout(0.5), classifier)


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
