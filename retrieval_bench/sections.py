"""The sections of a configuration, as frozen dataclasses: data, model, loss, training, evaluation; and how a choice is
declared, in one line, here and in strategies.

``retrieval_bench.config`` puts them together. A default never changes, since runs are named by what differs from the
defaults; a new choice is a new field whose default is what was done before.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from retrieval_bench.errors import UserError, unknown

BOUNDS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}


def option(
    default: Any,
    help: str = "",
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Collection[str] = (),
    search: Any = None,
    shown: bool = False,
) -> Any:
    """A field of a section or of a strategy's ``Options``: one line declares the flag, its help, its bounds and what a
    search tries.

    The `default` never changes, since runs are named by what differs from it. `low` and `high` are allowed themselves,
    `above` and `below` are not; they hold for each number of a list. `choices` are the allowed words. `search` (a
    ``Range`` or ``Categorical``) is nothing that sets the size of the network or the length of the training. An option
    that is `shown` is part of the strategy's label in tables even at its default. A long `help` is the docstring below.
    """
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    given = {words: bound for words, bound in bounds.items() if bound is not None}
    metadata = {"bounds": given, "choices": choices, "search": search, "shown": shown}
    return field(default=default, metadata=metadata | ({"help": help} if help else {}))


def check_bounds(section: Any, prefix: str = "--") -> None:
    """Raises :class:`UserError` for the first value that is of another type than declared, not finite, out of its
    bounds or none of the choices.

    Args:
        section: a dataclass whose fields are made by :func:`option`; of others only the type is checked.
        prefix: of its flags.
    """
    for part in fields(section):
        flag, value = prefix + part.name.replace("_", "-"), getattr(section, part.name)
        hint = _hints(type(section))[part.name]
        if get_origin(hint) is Literal and isinstance(value, str) and value not in get_args(hint):
            raise unknown(f"value of {flag}", value, get_args(hint))
        if not _fits(value, hint):
            words = getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)
            raise UserError(f"{flag} {value!r:.60}: must be {words.replace('typing.', '')}, not {type(value).__name__}")
        bounds, choices = part.metadata.get("bounds", {}), part.metadata.get("choices")
        values = flat(value)
        words, numbers = " ".join(map(str, values)), [number for number in values if isinstance(number, int | float)]
        allowed = " and ".join(f"{words} {bound}" for words, bound in bounds.items())
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"{flag} {words}: must be finite")
        if not all(
            compare(number, bounds[name]) for number in numbers for name, compare in BOUNDS.items() if name in bounds
        ):
            raise UserError(f"{flag} {words}: must be {allowed}")
        if choices and value not in choices:
            raise unknown(f"value of {flag}", value, choices)


_hints = cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type; whole numbers are floats too, but truth values are no numbers."""
    kind, args = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in args
    if kind is tuple:
        kinds = args[:1] * len(value) if args[-1] is ... and isinstance(value, tuple) else args
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_fits, value, kinds))
    if args:  # a union
        return any(_fits(value, each) for each in args)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint or NoneType)


def flat(value: Any) -> list[Any]:
    """The values in a value that may be a list of lists."""
    return [item for entry in value for item in flat(entry)] if isinstance(value, list | tuple) else [value]


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split and how they are shown to the network."""

    dataset: str = option("emoji_mini")
    """data set: cub, cars, sop, inshop, flowers, cifar10, wikiart, sketches, emoji, emoji_mini, synthetic, or images of
    your own, folder and table (`data list` says more)"""
    split: Literal["zero_shot", "zero_shot_val", "kfold", "closed_set"] = "zero_shot"
    """zero_shot: train and test classes are disjoint; zero_shot_val, kfold: the same inside the training classes,
    to make choices on; closed_set: the official split of the images, all classes on both sides"""
    fold: int = option(0, "kfold: which fold validates, from 0")
    folds: int = option(4, "kfold: how many")
    classes: int = option(0, "use only the first so many classes on each side of the split; 0 uses all", low=0)
    train_per_class: int = option(0, "train on the first so many images of each class; 0 uses all", low=0)
    validate: float = option(0.0, low=0, below=1)
    """share of the training classes that are held out of the training: Recall@1 on them is measured after each epoch
    and counted as cost (0.2 of --split zero_shot: those of zero_shot_val); 0 trains on all"""
    image_size: int = option(72, "side of the square that the network sees, pixels", low=8)
    preprocessing: Literal["crop", "squash"] = "crop"
    """crop: random resized crops, tested on resize + centre crop; squash: aspect ratio not kept, no training crop
    (AutoLR)"""
    resize: int = option(0, low=0)
    """size of the image before the test's centre crop, pixels; 0 means image_size * 256 / 224"""
    crop_scale: float = option(0.2, "smallest share of the image's area that a training crop covers", above=0, high=1)
    flip: bool = option(True, "mirror half of the training images")
    stored: int = option(0, low=0)
    """shorter side that images are scaled down to before anything else, pixels; 0 leaves them as they are"""
    reader: Literal["pil", "cache"] = "pil"
    """pil: decode each image whenever it is read; cache: decode all once into a memory-mapped file, then cut views
    on the device"""
    views: int = option(0, low=0)
    """fixed random views of each training image, one per epoch in turn, so that what frozen blocks make of them is
    computed once; 0 draws a new view whenever an image is shown"""

    @property
    def fixed_views(self) -> int:
        """Views of each training image, 1 without any augmentation; 0 if each is drawn anew."""
        return 1 if self.preprocessing == "squash" and not self.flip else self.views

    @property
    def resize_to(self) -> int:
        """Pixels of the shorter side (crop) or of both sides (squash) before the centre crop."""
        return self.resize or round(self.image_size * 256 / 224)


@dataclass(frozen=True)
class ModelConfig:
    """Backbone, its weights, and the embedding made from it."""

    backbone: str = "efficientnet_lite0"
    """efficientnet_lite0, any timm model, torchvision/resnet50, resnet50_caffe (stride in the first 1x1 convolution),
    or package.module:function"""
    weights: str = option("imagenet", "imagenet, none, or a local .safetensors / .pth file")
    pooling: Literal["default", "avg", "max", "avgmax"] = "default"
    """how the feature map becomes one vector; default is the backbone's own"""
    embedding_dim: int = option(0, "size of a linear embedding layer; 0 uses the pooled feature itself", low=0)
    drop_path: float = option(0.0, low=0, below=1)
    """stochastic depth in training (timm's drop_path_rate): the last block's path is left out with this probability,
    earlier ones with less"""
    mean: tuple[float, float, float] | None = None
    """input normalisation when a weight file differs from its architecture's usual one (inputs in 0..1)"""
    std: tuple[float, float, float] | None = option(None, "see mean", above=0)


@dataclass(frozen=True)
class LossConfig:
    """The metric-learning loss."""

    loss: str = option("proxy_anchor")
    """arcface, contrastive, multi_similarity, normalized_softmax, proxy_anchor, proxy_nca, softmax, triplet, a class
    of pytorch-metric-learning (`losses` lists all with their options), or module:Class"""
    miner: str = option("default")
    """which pairs or triplets of a batch count: default (the loss's usual one), none, batch_hard, distance_weighted,
    easy_positive, hard, multi_similarity, semihard, or a class of pytorch-metric-learning (`losses` lists all)"""
    loss_options: tuple[tuple[str, float | str], ...] = ()
    """pairs NAME VALUE passed to the loss, such as margin 0.1 alpha 32 or distance CosineSimilarity"""
    miner_options: tuple[tuple[str, float | str], ...] = ()
    """pairs NAME VALUE passed to the miner, such as epsilon 0.2 or type_of_triplets hard"""
    loss_lr: float = option(1e-2, "learning rate of the loss's own parameters (proxies, classifier)", low=0)
    proxy_warmup: int = option(0, low=0)
    """passes before the training, counted as cost, in which the backbone is frozen and only embedding layer and
    proxies learn, at the full rate (Proxy-Anchor's code: 1)"""
    loss_weight_decay: float = option(0.0, "weight decay of the loss's own parameters", low=0)
    head: Literal["linear", "autolr"] = "linear"
    """classifier of the softmax loss: one linear layer, or AutoLR's 512-unit bottleneck"""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation."""

    epochs: int = option(4, "passes over the training images", low=0)
    patience: int = option(0, low=0)
    """with --validate: end the training after so many epochs without a better Recall@1, and take the weights of the
    best epoch; 0 takes those of the last"""
    batch_size: int = option(64, "images per step", low=2)
    samples_per_class: int = option(-1, low=-1)
    """images of each class in a batch; 0 draws batches without regard to classes; -1 means 4 for losses that
    compare pairs, 0 for others"""
    optimizer: Literal["adamw", "adam", "sgd"] = option("adamw", "optimiser (sgd: Nesterov, momentum 0.9)")
    lr: float = option(3e-4, "learning rate of the backbone and the embedding layer", low=0)
    embedding_lr: float = option(1.0, "learning rate of the embedding layer, as a multiple of --lr", low=0)
    warmup: float = option(0.0, low=0)
    """epochs in which all learning rates rise linearly from 0, before the schedule's factor; 0.5 is half an epoch"""
    weight_decay: float = option(1e-4, low=0)
    """weight decay of the network; --loss-weight-decay is that of the loss's parameters"""
    schedule: Literal["constant", "cosine", "step", "triangular", "warm_restarts"] = "cosine"
    """factor on all learning rates, by step; step: --decay-factor from --decay-at on; triangular (Smith 2017) and
    warm_restarts (Loshchilov and Hutter 2016): --cycles equal cycles between --low-rate and 1"""
    decay_at: float = option(0.8, "step: share of the training after which the rates fall", low=0, high=1)
    decay_factor: float = option(0.2, "step: factor from then on", low=0)
    second_decay_at: float = option(1.0, low=0, high=1)
    """step: share of the training after which the rates fall once more by the same factor"""
    cycles: int = option(4, "triangular, warm_restarts: how many", low=1)
    low_rate: float = option(0.0, "triangular, warm_restarts: lowest factor of a cycle", low=0, high=1)
    freeze_bn: bool = option(True, "keep batch normalisation (statistics, scale and shift) as pretrained")
    keep_statistics: bool = False
    """with --no-freeze-bn: scale and shift of batch norms are trained, their statistics stay as pretrained"""
    precision: Literal["float32", "bf16", "auto"] = "float32"
    """of the network's passes in training; weights and losses stay float32. bf16: autocast to bfloat16, for GPUs and
    processors with matrix units; auto: bf16 if the device has such units and a timing at the start finds this network
    faster with it; the record says what was chosen"""
    fused: bool = False
    """the same but for rounding, faster: batch norms that use their running statistics (frozen ones in training, all at
    test) are computed inside the convolutions before them, and the optimiser updates all parameters in one operation"""
    compile: bool = False
    """compile the network with torch.compile; where that fails, a line says why and training continues without
    it"""
    micro_batch: int = option(0, low=0)
    """most images that pass through the network at a time; the loss still sees the whole batch; 0 passes all at
    once"""
    grad_checkpointing: bool = False
    """compute the blocks' activations a second time in the backward pass in place of keeping them: the same gradients
    in less memory, about a third slower; timm's networks, frozen batch norms"""
    skip_batches: int = option(0, low=0)
    """batches of the whole training whose loss may be non-finite; they are skipped (recorded); not with trained
    batch norms, whose statistics would be spoilt"""


@dataclass(frozen=True)
class EvalConfig:
    """What is measured, once, after training."""

    k: tuple[int, ...] = option((), "the K of Recall@K; without, those that papers report on the data set")
    flip_sum: bool = option(False, "embed the image and its mirror and take the mean of the two (AutoLR adds them)")
    test_precision: Literal["float32", "bf16"] = "float32"
    """of the network's passes over the test images; the embeddings are float32"""
    also_test: tuple[str, ...] = ()
    """other data sets whose test classes the finished embedder is measured on, without training there: NAME or
    NAME:FOLDER, with :COUNT behind it for so many images, the same number of each class (cub:1000)"""
