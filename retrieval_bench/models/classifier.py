"""The classifier that the softmax loss trains on top of the embedding; not part of the embedder."""

from __future__ import annotations

from torch import Tensor, nn


class SoftmaxLoss(nn.Module):
    """Plain softmax cross-entropy of a classifier on the embedding.

    Args:
        classes: number of training classes C.
        dim: embedding size D.
        head: ``linear`` (D -> C) or ``autolr`` (see :func:`autolr_head`).
        label_smoothing: as in :class:`torch.nn.CrossEntropyLoss`.
    """

    def __init__(self, classes: int, dim: int, head: str = "linear", label_smoothing: float = 0.0):
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing {label_smoothing} is not in 0..1")
        self.head = autolr_head(classes, dim) if head == "autolr" else nn.Linear(dim, classes)
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.cross_entropy(self.get_logits(embeddings), labels)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """Float (B, C); named as in pytorch-metric-learning's losses."""
        return self.head(embeddings)


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
