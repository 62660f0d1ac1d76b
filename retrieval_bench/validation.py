"""What a configuration must satisfy before anything is opened or trained; needs no data."""

from __future__ import annotations

import math
from typing import Any

from retrieval_bench.config import RunConfig, flag, flag_words, flat_values
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.splits import check_fold
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.evaluation.metrics import check_ks
from retrieval_bench.losses import LOSSES, MINERS
from retrieval_bench.sections import TrainConfig
from retrieval_bench.strategies import refuse_unused_options, validate_options

NOT_NEGATIVE = (
    *("seed", "data.resize", "data.stored", "data.classes", "model.embedding_dim", "loss.loss_lr"),
    *("loss.loss_weight_decay", "train.epochs", "train.lr", "train.weight_decay", "train.micro_batch"),
    *("train.skip_batches", "train.decay_at", "train.second_decay_at", "train.decay_factor", "train.low_rate"),
)
LEAST: dict[str, int] = dict.fromkeys(NOT_NEGATIVE, 0)
LEAST |= {"data.image_size": 8, "train.samples_per_class": -1, "train.batch_size": 2, "train.cycles": 1}
MOST: dict[str, int] = dict.fromkeys(("train.decay_at", "train.second_decay_at", "train.low_rate"), 1)
"""Bounds of choices; those of strategies' options stand with the options."""
SCHEDULE_OPTIONS = {
    "decay_at": ("step",),
    "decay_factor": ("step",),
    "second_decay_at": ("step",),
    "cycles": ("triangular", "warm_restarts"),
    "low_rate": ("triangular", "warm_restarts"),
}
"""The schedules that each option of a schedule belongs to."""


def validate(config: RunConfig) -> None:
    """Raises :class:`UserError` with one line for the first value that cannot work."""
    if config.data.dataset not in DATASETS:
        raise unknown("data set", config.data.dataset, DATASETS)
    if config.loss.loss not in LOSSES:
        raise unknown("loss", config.loss.loss, LOSSES)
    if config.loss.miner not in ("default", "none", *MINERS):
        raise unknown("miner", config.loss.miner, ("default", "none", *MINERS))
    refuse_unused_options([config.strategy], config.options)
    _check_numbers(config)
    _check_images(config)
    _check_schedule(config.train)
    validate_options(config.strategy, config.options, config.train.epochs)
    _check_loss(config)
    check_fold(config.data.split, config.data.fold, config.data.folds)
    check_ks(config.ks)


def _check_numbers(config: RunConfig) -> None:
    for name, value in flat_values(config):
        numbers = [number for number in _flat_list(value) if isinstance(number, int | float)]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"{' '.join(flag_words(flag(name), value))}: must be finite")
        if any(number < LEAST.get(name, -math.inf) for number in numbers):
            raise UserError(f"{flag(name)} {value}: must be at least {LEAST[name]}")
        if any(number > MOST.get(name, math.inf) for number in numbers):
            raise UserError(f"{flag(name)} {value}: must be at most {MOST[name]}")


def _flat_list(value: Any) -> list[Any]:
    return [item for entry in value for item in _flat_list(entry)] if isinstance(value, list) else [value]


def _check_images(config: RunConfig) -> None:
    data, std = config.data, config.model.std
    if std is not None and min(std) <= 0:
        raise UserError(f"--std {' '.join(map(str, std))}: must be above 0")
    if not 0 < data.crop_scale <= 1:
        raise UserError(f"--crop-scale {data.crop_scale}: must be above 0 and at most 1")
    if data.resize and data.resize < data.image_size:
        raise UserError(f"--resize {data.resize} is smaller than --image-size {data.image_size}: nothing to crop from")


def _check_schedule(train: TrainConfig) -> None:
    for name, schedules in SCHEDULE_OPTIONS.items():
        if getattr(train, name) != getattr(TrainConfig, name) and train.schedule not in schedules:
            chosen = f"--{name.replace('_', '-')} {getattr(train, name)}"
            raise UserError(f"{chosen} belongs to --schedule {' or '.join(schedules)}; --schedule is {train.schedule}")


def _check_loss(config: RunConfig) -> None:
    loss, train, per_class = config.loss, config.train, config.samples_per_class
    needs_pairs = LOSSES[loss.loss].needs_pairs
    if train.skip_batches and not train.freeze_bn:
        raise UserError(
            "--skip-batches needs frozen batch norms (--freeze-bn): a non-finite batch would spoil their statistics"
        )
    if needs_pairs and per_class < 2:
        raise UserError(f"--loss {loss.loss} compares images of one class: set --samples-per-class to 2 or more")
    if loss.miner not in ("default", "none") and not needs_pairs:
        raise UserError(f"--loss {loss.loss} uses no pairs, so --miner {loss.miner} has no effect; leave it out")
    if loss.head != "linear" and loss.loss != "softmax":
        raise UserError(f"--head {loss.head} belongs to --loss softmax; {loss.loss} has no classifier head")
    if per_class and train.batch_size % per_class:
        raise UserError(f"--batch-size {train.batch_size} is not a multiple of --samples-per-class {per_class}")
    if needs_pairs and train.batch_size == per_class:
        raise UserError(
            f"--batch-size {train.batch_size} with --samples-per-class {per_class} is one class per batch, and --loss "
            f"{loss.loss} compares classes: raise --batch-size or lower --samples-per-class"
        )
