"""One run as data: what the numbers depend on, what it is called, and what it must satisfy.

:class:`RunConfig` holds choices; :class:`RuntimeConfig` holds where and how they are carried out. No field of the second may change a
metric, so it is neither hashed nor recorded. A configuration is flat: ``flatten(config)`` gives ``{"train.lr": 3e-4, ...}``, and hash,
difference, flags, axes of a grid, values of a search, trackers and columns of tables are dictionary operations on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.splits import check_fold
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.evaluation.choices import check_ks
from retrieval_bench.losses import LOSSES, MINERS
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import STRATEGIES, StrategyOptions, label, refuse_unused_options, split_names

Flat = tyro.conf.arg(name="")
RETIRED = {"train.out_of_memory": "stop"}
"""Choices that there are no more, with what all runs have: older records hold them."""
CONTENT = ("data.files_fingerprint", "data.sides_fingerprint")
"""What a record's configuration has beside the choices: the content of the data."""


@dataclass(frozen=True)
class RunConfig:
    """One training and evaluation run."""

    strategy: str = "standard"
    """fine-tuning strategy; join several with +"""
    seed: int = 0
    """seed of initialisation, sampling and augmentation"""
    data: Annotated[DataConfig, Flat] = field(default_factory=DataConfig)
    model: Annotated[ModelConfig, Flat] = field(default_factory=ModelConfig)
    loss: Annotated[LossConfig, Flat] = field(default_factory=LossConfig)
    train: Annotated[TrainConfig, Flat] = field(default_factory=TrainConfig)
    evaluation: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)
    options: Annotated[StrategyOptions, Flat] = field(default_factory=StrategyOptions)  # pyright: ignore[reportInvalidTypeForm]

    @property
    def strategy_label(self) -> str:
        """The strategy with its telling options, as tables show it."""
        return label(self.strategy, self.options)

    @property
    def ks(self) -> tuple[int, ...]:
        """The K of Recall@K, with the default resolved."""
        return self.evaluation.k or DATASETS[self.data.dataset].ks

    @property
    def samples_per_class(self) -> int:
        """Images of each class in a batch, with the default resolved."""
        if self.train.samples_per_class >= 0:
            return self.train.samples_per_class
        return 4 if LOSSES[self.loss.loss].needs_pairs else 0

    def changed(self, **values: Any) -> RunConfig:
        """The configuration with other values, by their dotted names with ``__`` for the dot: ``changed(train__lr=1e-4)``."""
        return unflatten({name.replace("__", "."): value for name, value in values.items()}, self)


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is carried out."""

    data_root: Path | None = None
    """folder (or archive) of the data set; without it the data set is downloaded"""
    results: Path = Path("results/local")
    """folder for records (`runs/`) and tables"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one"""
    workers: int = -1
    """processes that decode images; -1 means none on a CPU, up to 8 beside a GPU"""
    cache_limit_gb: float = 32.0
    """room on the disk for the caches of decoded images (--reader cache), 10^9 bytes"""
    checkpoint_every: int = 1
    """epochs between checkpoints, which lie in checkpoints/ until the run has its record; 0 for none"""
    resume: Path | None = None
    """folder of checkpoints to resume from, such as one copied from another machine; a run finds its own by itself"""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """also show losses, learning rates and metrics there (the package must be installed); the record is complete without"""
    profile: bool = False
    """print where the time of the training's steps goes"""
    deterministic: bool = False
    """on a GPU, use operations that give the same bits each time where torch has them, which is slower; on a CPU they all do"""
    keep_new: bool = False
    """keep the embedder of a run that is made now in models/, as a recipe (JSON) and weights (safetensors)"""
    keep: bool = False
    """the same, and make a recorded run whose embedder is missing again"""
    thumbnails: bool = True
    """keep small pictures of some test images beside the record, for galleries of the report"""
    force: bool = False
    """run from the beginning even if the same configuration has a record or checkpoints"""


def flatten(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON types by dotted names (``train.lr``, ``options.autolr.low``) in one spelling: defaults resolved, floats as
    floats, only options of strategies that take part."""
    names = split_names(config.strategy)
    values = dict(_values(config))
    values |= {
        "strategy": "+".join(names),
        "train.samples_per_class": config.samples_per_class,
        "evaluation.k": list(config.ks),
    }
    unused = tuple(f"options.{name}." for name in STRATEGIES if name not in names)
    return {name: value for name, value in values.items() if not name.startswith(unused)}


def _values(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a section by its dotted name, as JSON types."""
    for part in fields(section):
        value, name = getattr(section, part.name), f"{prefix}{part.name}"
        if is_dataclass(value):
            yield from _values(value, f"{name}.")
        else:
            yield name, _as_json(value, str(part.type))


def _as_json(value: Any, kind: str) -> Any:
    if isinstance(value, tuple):
        return [_as_json(item, "float" if "float" in kind else "") for item in value]
    return float(value) if kind.endswith("float") and isinstance(value, int) else value


def unflatten(values: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """`base` (the defaults) with other values, by their dotted names; lists become tuples.

    Raises:
        UserError: a name that is none of a configuration's.
    """
    config = base or RunConfig()
    known = dict(_values(config))
    for name, value in values.items():
        if name not in known:
            raise unknown("choice", name, known)
        config = _put(config, name.split("."), _as_tuple(value))
    return config


def _put(section: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return replace(section, **{name: _put(getattr(section, name), rest, value) if rest else value})


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted names as nested dictionaries: the ``config`` of a record's file."""
    nested: dict[str, Any] = {"options": {}}
    for name, value in values.items():
        *path, last = name.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return nested


def unnest(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of :func:`nest`."""
    values: dict[str, Any] = {}
    for name, value in nested.items():
        values |= unnest(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return values


def recorded_config(nested: Mapping[str, Any], weights: str) -> RunConfig:
    """The configuration of a record, to be run again: ``run --config results/runs/<id>.json``.

    Args:
        nested: the record's ``config``.
        weights: the record's label of the weights, which names the file where ``config`` has its digest.
    """
    values = {name: value for name, value in unnest(nested).items() if name not in (*RETIRED, *CONTENT)}
    if str(values.get("model.weights")).startswith("sha256:"):
        values["model.weights"] = weights
    return unflatten(values)


def config_hash(values: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name a configuration, independent of key order, machine and Python version.

    Only what differs from the defaults is hashed, so that a new field or strategy changes no hash; therefore a default never changes (a
    test holds the hash of the default run): a new choice is a new field whose default is what was done before. ``seed`` is left out, so
    that the runs of several seeds share the hash.

    Args:
        values: :func:`flatten` with paths replaced by content (see ``retrieval_bench.run.identify``).
    """
    default = {**dict(_values(RunConfig())), **flatten(RunConfig()), **RETIRED}
    changed = {
        name: value
        for name, value in values.items()
        if name != "seed" and (name not in default or value != default[name])
    }
    nested = {name: value for name, value in nest(changed).items() if value != {}}
    return hashlib.sha256(json.dumps(nested, sort_keys=True).encode()).hexdigest()[:8]


def flag(name: str) -> str:
    """The flag of ``run`` for a dotted name: ``train.lr`` is ``--lr``, ``options.last_k.k`` is ``--last-k.k``."""
    section, _, rest = name.partition(".")
    last = rest if section == "options" else name.rpartition(".")[2]
    return "--" + last.replace("_", "-")


def changed_flags(config: Any, default: Any) -> list[list[str]]:
    """The flags of every value in which `config` differs from `default`, each with its values as words."""
    usual = dict(_values(default))
    return [_words(flag(name), value) for name, value in _values(config) if value != usual[name]]


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if not isinstance(value, list):
        return [name, str(value)]
    return [name, *(str(word) for item in value for word in (item if isinstance(item, list) else [item]))]


def to_command(config: RunConfig, default: RunConfig | None = None) -> list[str]:
    """The ``run`` arguments that give `config`: the flags of every value that differs from `default` (a fresh RunConfig)."""
    return [word for words in changed_flags(config, default or RunConfig()) for word in words]


def runtime_command(runtime: RuntimeConfig) -> list[str]:
    """The ``run`` arguments that give `runtime`; ``run`` keeps embedders unless told otherwise."""
    return [word for words in changed_flags(runtime, RuntimeConfig(keep_new=True)) for word in words]


def map_weight_files(config: RunConfig, change: Any) -> RunConfig:
    """The configuration with ``change(path)`` in place of each path of a weight file: the backbone's, and those of policy networks."""
    names = [name for name in dict(_values(config)) if name.endswith("weights") and "loss_weight" not in name]
    paths = {name: value for name, value in _values(config) if name in names and value not in ("imagenet", "none")}
    return unflatten({name: change(Path(value).expanduser()) for name, value in paths.items()}, config)


def portable(config: RunConfig) -> RunConfig:
    """The configuration with the names of weight files in place of their paths."""
    return map_weight_files(config, lambda path: path.name)


BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, math.inf),
    "data.image_size": (8, math.inf),
    "data.resize": (0, math.inf),
    "data.stored": (0, math.inf),
    "data.classes": (0, math.inf),
    "model.embedding_dim": (0, math.inf),
    "loss.loss_lr": (0, math.inf),
    "loss.loss_weight_decay": (0, math.inf),
    "train.epochs": (0, math.inf),
    "train.lr": (0, math.inf),
    "train.weight_decay": (0, math.inf),
    "train.micro_batch": (0, math.inf),
    "train.skip_batches": (0, math.inf),
    "train.samples_per_class": (-1, math.inf),
    "train.batch_size": (2, math.inf),
    "train.cycles": (1, math.inf),
    "train.decay_at": (0, 1),
    "train.second_decay_at": (0, 1),
    "train.decay_factor": (0, math.inf),
    "train.low_rate": (0, 1),
}
"""Least and greatest value of each choice that has one; those of strategies' options stand with the options."""
SCHEDULE_OPTIONS = {
    "decay_at": ("step",),
    "decay_factor": ("step",),
    "second_decay_at": ("step",),
    "cycles": ("triangular", "warm_restarts"),
    "low_rate": ("triangular", "warm_restarts"),
}
"""The schedules that each option of a schedule belongs to."""


def validate(config: RunConfig) -> None:
    """Raises :class:`UserError` with one line for the first value that cannot work; needs no data."""
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
    for name in split_names(config.strategy):
        least = STRATEGIES[name].epochs_needed(getattr(config.options, name))
        if config.train.epochs < least:
            raise UserError(f"--epochs {config.train.epochs}: {name} needs at least {least} with its options")
    _check_loss(config)
    check_fold(config.data.split, config.data.fold, config.data.folds)
    check_ks(config.ks)


def _check_numbers(config: RunConfig) -> None:
    for name, value in _values(config):
        numbers = [number for number in _flat_list(value) if isinstance(number, int | float)]
        if not all(map(math.isfinite, numbers)):
            raise UserError(f"{' '.join(_words(flag(name), value))}: must be finite")
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if any(number < low for number in numbers):
            raise UserError(f"{flag(name)} {value}: must be at least {low:g}")
        if any(number > high for number in numbers):
            raise UserError(f"{flag(name)} {value}: must be at most {high:g}")


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
