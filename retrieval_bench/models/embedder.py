"""The embedder: what is trained, evaluated and deployed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from retrieval_bench.data.loading import Batches
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.progress import track

BatchNorm = nn.modules.batchnorm._BatchNorm
"""Base of every batch norm, also of timm's with an activation inside."""


class Embedder(nn.Module):
    """Backbone and optional linear layer to size `dim`: images to vectors, not normalised. Losses and the evaluator
    normalise the vectors themselves, so that a classifier can use their length."""

    def __init__(self, backbone: Backbone, dim: int = 0):
        super().__init__()
        self.backbone = backbone
        self.embedding = nn.Linear(backbone.feature_dim, dim) if dim else nn.Identity()

    @property
    def dim(self) -> int:
        """Size D of the vectors, also after a strategy has changed the network."""
        return self.embedding.out_features if isinstance(self.embedding, nn.Linear) else self.backbone.feature_dim

    def resize_feature(self, dim: int) -> None:
        """The backbone now gives features of size `dim`: a linear layer of another width is drawn anew."""
        if isinstance(self.embedding, nn.Linear) and self.embedding.in_features != dim:
            self.embedding = nn.Linear(dim, self.embedding.out_features).to(self.embedding.weight.device)
        self.backbone.feature_dim = dim

    def forward(self, images: Tensor) -> Tensor:
        """Float (B, D) from uint8 0..255 or float 0..1 images (B, 3, H, W)."""
        return self.embedding(self.backbone(images))

    def trainable(self) -> bool:
        """Whether any parameter is left to train."""
        return any(parameter.requires_grad for parameter in self.parameters())


class UnitEmbedder(nn.Module):
    """Images to vectors of length 1, whose inner products are cosine similarities, as the evaluation makes them.

    Args:
        embedder: the network.
        flip_sum: the mean of the vectors of the image and its mirror.
    """

    def __init__(self, embedder: Embedder, flip_sum: bool = False):
        super().__init__()
        self.embedder = embedder
        self.flip_sum = flip_sum

    @property
    def dim(self) -> int:
        """Size D of the vectors."""
        return self.embedder.dim

    def forward(self, images: Tensor) -> Tensor:
        """Float32 (B, D) from uint8 0..255 or float 0..1 images (B, 3, H, W)."""
        vectors = self.embedder(images)
        if self.flip_sum:
            vectors = (vectors + self.embedder(images.flip(-1))) / 2
        return normalize(vectors.float())


def set_training_mode(model: nn.Module) -> None:
    """Train mode for what is trained. A module whose parameters are all frozen stays in eval mode: frozen batch norms
    keep their statistics, and frozen blocks apply no dropout. So do norms that :func:`keep_statistics` has marked."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        is_frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if is_frozen or getattr(module, "keeps_statistics", False):
            module.eval()


def freeze_batch_norms(model: nn.Module) -> None:
    """Freezes scale and shift of every batch norm, and with them (:func:`set_training_mode`) its statistics."""
    for parameter in _batch_norm_parameters(model):
        parameter.requires_grad_(False)


def keep_statistics(model: nn.Module) -> None:
    """Marks every batch norm of `model`, and so its copies: they are trained with the statistics that they have."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.keeps_statistics = True  # pyright: ignore[reportArgumentType]


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """A block in which no parameter of `module` is trained."""
    held = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def trains_batch_norms(model: nn.Module) -> bool:
    """Whether any batch norm of `model` is trained."""
    return any(parameter.requires_grad for parameter in _batch_norm_parameters(model))


def _batch_norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    return [parameter for norm in norms for parameter in norm.parameters(recurse=False)]


@contextmanager
def batch_norm_momentum(model: nn.Module, momentum: float | None) -> Iterator[None]:
    """A block in which batch norms have this momentum: 0 leaves their statistics alone, None averages the batches."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.momentum = value


def floats_of(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The floating-point parameters and buffers of `module` as they are, not copied, by `prefix` and name; not those of
    an average that is kept beside them."""
    state = module.state_dict(prefix=prefix)
    return {name: value for name, value in state.items() if value.is_floating_point() and name[:8] != "average."}


@contextmanager
def exchanged(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """A block in which the named parameters and buffers have these values; after it they have their own again."""
    now = module.state_dict()
    before = {name: now[name].clone() for name in values}
    try:
        module.load_state_dict(dict(values), strict=False)
        yield
    finally:
        module.load_state_dict(before, strict=False)


@torch.inference_mode()
def embed(model: Embedder, batches: Batches, flip_sum: bool = False, what: str = "embedding test images") -> np.ndarray:
    """float32 (N, D): vectors of all images of `batches`, in order, not normalised; puts the model into eval mode.

    With `flip_sum` each is the mean of the vectors of the image and its mirror (AutoLR adds them).
    """
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for images, _ in track(batches, what, batches.images, size=lambda batch: len(batch[1])):
        images = images.to(device)
        vectors = model(images)
        if flip_sum:
            vectors = (vectors + model(images.flip(-1))) / 2
        parts.append(vectors.float().cpu().numpy())
    return np.concatenate(parts)


def unit(vectors: np.ndarray) -> np.ndarray:
    """float32 (N, D), rows scaled to length 1."""
    return normalize(torch.from_numpy(vectors)).numpy()
