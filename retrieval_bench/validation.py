"""What a configuration must satisfy before anything is opened or trained; needs no data."""

from __future__ import annotations

from collections.abc import Iterator

from retrieval_bench.config import RunConfig
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.other_sets import parse_other_sets
from retrieval_bench.data.splits import check_fold
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.evaluation.metrics import check_ks
from retrieval_bench.losses import MINERS, REFUSED, find_loss
from retrieval_bench.sections import TrainConfig, check_bounds
from retrieval_bench.strategies import refuse_unused_options, split_names, validate_options

SCHEDULE_OPTIONS = dict.fromkeys(("decay_at", "decay_factor", "second_decay_at"), ("step",))
SCHEDULE_OPTIONS |= dict.fromkeys(("cycles", "low_rate"), ("triangular", "warm_restarts"))
"""The schedules that each option of a schedule belongs to."""


def validate(config: RunConfig) -> None:
    """Raises :class:`UserError` with one line for the first value that cannot work."""
    if not isinstance(config, RunConfig):
        raise UserError(f"run takes a RunConfig, not {type(config).__name__}")
    check_bounds(config)
    for section in (config.data, config.model, config.loss, config.train, config.evaluation):
        check_bounds(section)
    dataset, miner = config.data.dataset, config.loss.miner
    if dataset not in DATASETS:
        raise unknown("data set", dataset, DATASETS)
    find_loss(config.loss.loss)
    if miner in REFUSED:
        raise UserError(f"--miner {miner}: this class {REFUSED[miner]}")
    if miner not in ("default", "none", *MINERS):
        raise unknown("miner", miner, ["default", "none", *MINERS])
    refuse_unused_options([config.strategy], config.options)
    validate_options(config.strategy, config.options, config.train.epochs)
    for problem in _problems(config):
        raise UserError(problem)
    check_fold(config.data.split, config.data.fold, config.data.folds)
    check_ks(config.ks)
    parse_other_sets(config.evaluation.also_test)


def _problems(config: RunConfig) -> Iterator[str]:
    """What is wrong with choices that do not go together."""
    data, loss, train, per_class = config.data, config.loss, config.train, config.samples_per_class
    needs_pairs, usual_miner = find_loss(loss.loss).needs_pairs, find_loss(loss.loss).miner
    if data.resize and data.resize < data.image_size:
        yield f"--resize {data.resize} is smaller than --image-size {data.image_size}: nothing to crop from"
    for name, schedules in SCHEDULE_OPTIONS.items():
        if getattr(train, name) != getattr(TrainConfig, name) and train.schedule not in schedules:
            chosen = f"--{name.replace('_', '-')} {getattr(train, name)}"
            yield f"{chosen} belongs to --schedule {' or '.join(schedules)}; --schedule is {train.schedule}"
    if train.keep_statistics and train.freeze_bn:
        yield "--keep-statistics belongs to --no-freeze-bn: frozen batch norms keep their statistics anyway"
    if train.skip_batches and not train.freeze_bn:
        yield "--skip-batches needs frozen batch norms (--freeze-bn): a non-finite batch would spoil their statistics"
    if train.warmup > train.epochs:
        yield f"--warmup {train.warmup:g} is longer than --epochs {train.epochs}: the rates would never be reached"
    if train.grad_checkpointing and not train.freeze_bn:
        yield "--grad-checkpointing needs frozen batch norms (--freeze-bn): a second pass counts in their statistics"
    if train.grad_checkpointing and train.fused:
        yield "--grad-checkpointing and --fused: the second pass would find other weights; leave one of them out"
    if needs_pairs and per_class < 2:
        yield f"--loss {loss.loss} compares images of one class: set --samples-per-class to 2 or more"
    if loss.miner_options and (loss.miner == "none" or (loss.miner == "default" and usual_miner == "none")):
        yield "--miner-options are set but there is no miner: name one with --miner"
    if loss.proxy_warmup and needs_pairs and not config.model.embedding_dim:
        yield f"--proxy-warmup {loss.proxy_warmup}: {loss.loss} has no proxies, so give --embedding-dim too"
    if loss.miner not in ("default", "none") and not needs_pairs:
        yield f"--loss {loss.loss} uses no pairs, so --miner {loss.miner} has no effect; leave it out"
    if loss.head != "linear" and loss.loss != "softmax":
        yield f"--head {loss.head} belongs to --loss softmax; {loss.loss} has no classifier head"
    if per_class and train.batch_size % per_class:
        yield f"--batch-size {train.batch_size} is not a multiple of --samples-per-class {per_class}"
    also, own = config.evaluation.also_test, DATASETS[data.dataset]
    if also and data.split in ("zero_shot_val", "kfold"):
        yield f"--also-test {' '.join(also)} looks at test classes; --split {data.split} makes choices without them"
    if own.counts and data.dataset in (word.partition(":")[0] for word in also):
        yield f"--also-test {' '.join(also)}: {data.dataset} is the data set that is trained on"
    if train.patience and not data.validate:
        yield f"--patience {train.patience} looks at Recall@1 on held-out classes: add --validate 0.2"
    if data.validate and data.split == "closed_set":
        yield f"--validate {data.validate:g} holds out classes, all of which --split closed_set trains and tests"
    in_phases = [name for name in split_names(config.strategy) if getattr(config.options, name).in_phases]
    if train.patience and in_phases:
        yield f"--patience {train.patience}: {in_phases[0]} trains in phases, so no epoch before the last can be kept"
    if needs_pairs and train.batch_size == per_class:
        yield (
            f"--batch-size {train.batch_size} with --samples-per-class {per_class} is one class per batch, and --loss "
            f"{loss.loss} compares classes: raise --batch-size or lower --samples-per-class"
        )
