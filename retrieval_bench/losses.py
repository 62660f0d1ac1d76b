"""Losses and miners by name, from pytorch-metric-learning and the softmax loss below. To add one, add its line.

Beside the short names stands every loss and miner of the library by its class name, but for those that cannot work
here (:data:`REFUSED`). Losses receive embeddings that are not normalised and labels 0..C-1; pytorch-metric-learning's
distances normalise by themselves; where a loss sees their length all the same, a line says so. The defaults are those
of each loss's paper as the library documents them; ``--loss-options`` and ``--miner-options`` change them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from pytorch_metric_learning.utils.loss_and_miner_utils import convert_to_triplets
from torch import Tensor, nn

from retrieval_bench import plugins
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.progress import logger
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


BASE, VIEWS = "is a base of other classes", "needs two views of each image, of which a batch here has one"
MEMORY = "holds embeddings or losses of earlier batches, which no checkpoint has"
REFUSED = {
    **dict.fromkeys(("BaseLossWrapper", "BaseMetricLossFunction", "BaseMiner", "GenericPairLoss"), BASE),
    **dict.fromkeys(("EmbeddingRegularizerMixin", "WeightRegularizerMixin"), BASE),
    **dict.fromkeys(("CrossBatchMemory", "DynamicSoftMarginLoss"), MEMORY),
    **dict.fromkeys(("SelfSupervisedLoss", "VICRegLoss"), VIEWS),
    "EmbeddingsAlreadyPackagedAsTriplets": "needs batches of anchors, positives and negatives in turn",
    "InstanceLoss": "takes the number of a class for a place in the batch: it is for pairs of image and text",
    "ManifoldLoss": "takes no labels",
    "MultipleLosses": "is a sum of other losses; name one of them",
}
"""Why classes of pytorch-metric-learning cannot be used, by name."""


def _classes(module: Any) -> dict[str, type]:
    return {name: kind for name, kind in vars(module).items() if inspect.isclass(kind) and name not in REFUSED}


def _is_for_classes(kind: type) -> bool:
    """Whether a loss's constructor, or one that it calls, asks for the number of classes."""
    own = [inspect.signature(vars(base)["__init__"]).parameters for base in kind.__mro__ if "__init__" in vars(base)]
    return any("num_classes" in names and names["num_classes"].default is inspect.Parameter.empty for names in own)


LOSSES |= {name: Loss(kind, needs_pairs=not _is_for_classes(kind)) for name, kind in _classes(losses).items()}
LOSSES["P2SGradLoss"] = Loss(
    lambda num_classes, embedding_size, **options: losses.P2SGradLoss(embedding_size, num_classes, **options)
)
LOSSES["RankedListLoss"] = Loss(partial(losses.RankedListLoss, margin=0.4, Tn=10), needs_pairs=True)  # its paper's
MINERS |= _classes(miners)


def find_loss(name: str) -> Loss:
    """The loss of that name, or one of the user's own (``package.module:Class``, or an entry point): a module that is
    called with float (B, D) embeddings and int64 (B,) labels, and whose constructor may take ``num_classes`` and
    ``embedding_size``. Raises :class:`UserError` for what is none."""
    if name in REFUSED:
        raise UserError(f"--loss {name}: this class {REFUSED[name]}")
    if name in LOSSES:
        return LOSSES[name]
    plugin = plugins.load("losses", name)
    if plugin is None:
        raise unknown("loss", name, [*LOSSES, *plugins.entry_points("losses")])
    kind = plugin.target
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise UserError(f"--loss {name}: is no subclass of torch.nn.Module")
    return Loss(kind, needs_pairs=not _is_for_classes(kind))


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
    Raises :class:`UserError` for an option that loss or miner does not know, and for a miner whose pairs the loss does
    not take."""
    spec = find_loss(config.loss)
    sizes = {} if spec.needs_pairs else {"num_classes": classes, "embedding_size": dim}
    if config.loss not in LOSSES:
        taken = inspect.signature(spec.make).parameters
        passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
        sizes = {name: size for name, size in sizes.items() if passes_on or name in taken}
    head = {"head": config.head} if config.loss == "softmax" else {}
    loss = _make("loss", config.loss, spec.make, config.loss_options, {**sizes, **head})
    name = spec.miner if config.miner == "default" else config.miner
    miner = None if name == "none" else _make("miner", name, MINERS[name], config.miner_options)
    criterion = Criterion(loss, miner)
    trial, values = copy.deepcopy(criterion), []
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # passes that leave no trace
            embeddings, lengths = torch.randn(8, dim), torch.linspace(0.5, 2, 8)[:, None]
            for factor in (torch.ones(8, 1), lengths):
                torch.manual_seed(0)
                values.append(trial(embeddings * factor, torch.arange(8) % 2))
        if not (isinstance(values[0], Tensor) and values[0].shape == ()):
            raise TypeError(f"it gives {type(values[0]).__name__} of shape {tuple(getattr(values[0], 'shape', ()))}")
    except Exception as error:  # the library checks when it is called, in many ways
        raise UserError(f"--loss {config.loss} fails with --miner {name}: {first_line(error)}") from None
    if hasattr(loss, "distance") and not torch.isclose(*values, rtol=1e-3, equal_nan=True):
        logger.info(f"--loss {config.loss} sees the length of embeddings, which the evaluation does not")
    return criterion


def _make(
    kind: str, name: str, make: Callable[..., nn.Module], options: Any, sizes: Mapping[str, Any] = {}
) -> nn.Module:
    """Calls `make` with options as the command line gives them: whole numbers become int, words truth values or objects
    of the library (``distance CosineSimilarity``)."""
    words = {"true": True, "false": False, "none": None}
    modules = (distances, reducers, regularizers)
    values = dict(sizes)
    for option, value in options:
        if isinstance(value, str):
            found = [vars(module)[value] for module in modules if inspect.isclass(vars(module).get(value))]
            value = found[0]() if found else words.get(value.lower(), value)
        elif float(value).is_integer():
            value = int(value)
        values[option] = value
    try:
        return make(**values)
    except Exception as error:
        raise UserError(f"--{kind}-options {dict(options)}: {name} refuses them ({first_line(error)})") from None
