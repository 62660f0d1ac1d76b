"""What a configuration must satisfy before anything is opened or trained; needs neither data nor torch."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.splits import check_fold
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.evaluation.metrics import check_ks
from retrieval_bench.losses import LOSSES, MINERS
from retrieval_bench.sections import TrainConfig
from retrieval_bench.strategies import STRATEGIES, refuse_unused_options, split_names


def validate(config: RunConfig) -> None:
    """Raises :class:`UserError` with one line for the first value that cannot work."""
    if config.data.dataset not in DATASETS:
        raise unknown("data set", config.data.dataset, DATASETS)
    if config.loss.loss not in LOSSES:
        raise unknown("loss", config.loss.loss, LOSSES)
    if config.loss.miner not in ("default", "none", *MINERS):
        raise unknown("miner", config.loss.miner, ("default", "none", *MINERS))
    refuse_unused_options([config.strategy], config.options)
    _check_finite(config)
    _check_ranges(config)
    for name in split_names(config.strategy):
        needed = STRATEGIES[name].epochs_needed(getattr(config.options, name))
        if config.train.epochs < needed:
            raise UserError(f"--epochs {config.train.epochs}: {name} needs at least {needed} with its options")
    if config.train.skip_batches and not config.train.freeze_bn:
        raise UserError(
            "--skip-batches needs frozen batch norms (--freeze-bn): a spoilt batch would spoil their statistics"
        )
    per_class = config.samples_per_class
    if LOSSES[config.loss.loss].needs_pairs and per_class < 2:
        raise UserError(f"--loss {config.loss.loss} compares images of one class: set --samples-per-class to 2 or more")
    if config.loss.miner not in ("default", "none") and not LOSSES[config.loss.loss].needs_pairs:
        raise UserError(
            f"--loss {config.loss.loss} uses no pairs, so --miner {config.loss.miner} has no effect; leave it out"
        )
    if config.loss.head != "linear" and config.loss.loss != "softmax":
        raise UserError(
            f"--head {config.loss.head} belongs to --loss softmax; {config.loss.loss} has no classifier head"
        )
    if per_class and config.train.batch_size % per_class:
        raise UserError(f"--batch-size {config.train.batch_size} is not a multiple of --samples-per-class {per_class}")


def _check_finite(section: Any) -> None:
    """Raises :class:`UserError` for a NaN or infinite number anywhere below `section`."""
    for part in fields(section):
        value = getattr(section, part.name)
        if is_dataclass(value):
            _check_finite(value)
            continue
        flat = (
            [x for item in value for x in (item if isinstance(item, tuple) else (item,))]
            if isinstance(value, tuple)
            else [value]
        )
        if any(isinstance(number, float) and not math.isfinite(number) for number in flat):
            raise UserError(f"--{part.name.replace('_', '-')} {' '.join(map(str, flat))}: must be finite")


def _check_ranges(config: RunConfig) -> None:
    def least(section: Any, minimum: float, *names: str) -> None:
        for name in names:
            if not getattr(section, name) >= minimum:
                raise UserError(f"--{name.replace('_', '-')} {getattr(section, name)}: must be at least {minimum}")

    least(config, 0, "seed")
    least(config.data, 8, "image_size")
    least(config.data, 0, "resize", "stored", "classes")
    least(config.model, 0, "embedding_dim")
    least(config.loss, 0, "loss_lr", "loss_weight_decay")
    least(config.train, 0, "epochs", "lr", "weight_decay", "micro_batch", "skip_batches")
    least(config.train, -1, "samples_per_class")
    least(config.train, 2, "batch_size")
    least(config.train, 1, "cycles")
    least(config.train, 0, "decay_at", "second_decay_at", "decay_factor", "low_rate")
    if config.model.std is not None and min(config.model.std) <= 0:
        raise UserError(f"--std {' '.join(map(str, config.model.std))}: must be above 0")
    if not 0 < config.data.crop_scale <= 1:
        raise UserError(f"--crop-scale {config.data.crop_scale}: must be above 0 and at most 1")
    if config.data.resize and config.data.resize < config.data.image_size:
        raise UserError(
            f"--resize {config.data.resize} is smaller than --image-size {config.data.image_size}: nothing to crop from"
        )
    _refuse_unused_schedule(config)
    check_fold(config.data.split, config.data.fold, config.data.folds)
    check_ks(config.ks)


SCHEDULE_OPTIONS = {
    "decay_at": ("step",),
    "decay_factor": ("step",),
    "second_decay_at": ("step",),
    "cycles": ("triangular", "warm_restarts"),
    "low_rate": ("triangular", "warm_restarts"),
}
"""The schedules that each option of a schedule belongs to."""


def _refuse_unused_schedule(config: RunConfig) -> None:
    for name, schedules in SCHEDULE_OPTIONS.items():
        flag = f"--{name.replace('_', '-')} {getattr(config.train, name)}"
        if getattr(config.train, name) != getattr(TrainConfig, name) and config.train.schedule not in schedules:
            raise UserError(
                f"{flag} belongs to --schedule {' or '.join(schedules)}; --schedule is {config.train.schedule}"
            )
    for name in ("decay_at", "second_decay_at", "low_rate"):
        if getattr(config.train, name) > 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(config.train, name)}: must be at most 1")
