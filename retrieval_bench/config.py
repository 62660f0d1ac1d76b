"""One run as data: what its numbers depend on, how it is written down, and what it is called.

:class:`RunConfig` holds choices; :class:`RuntimeConfig` holds where and how they are carried out. No field of the
second may change a metric, so it is neither hashed nor recorded. A configuration is flat: ``flatten(config)`` gives
``{"train.lr": 3e-4, ...}``, and hash, difference, flags, axes of a grid, values of a search, trackers and columns of
tables are dictionary operations on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.other_sets import without_folders
from retrieval_bench.errors import unknown
from retrieval_bench.losses import find_loss
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig, flat, option
from retrieval_bench.strategies import STRATEGIES, StrategyOptions, label, load_own, split_names, split_words

Flat = tyro.conf.arg(name="")
RETIRED = {"train.out_of_memory": "stop"}
"""Choices that there are no more, with what all runs have: older records hold them."""
CONTENT = ("data.files_fingerprint", "data.sides_fingerprint", "evaluation.also_fingerprints", "code.sources")
"""What a record's configuration has beside the choices: the content of the data, and the user's own code."""


@dataclass(frozen=True)
class RunConfig:
    """One training and evaluation run."""

    strategy: str = option(
        "standard",
        f"fine-tuning strategy, or package.module:Class; join several with +: {', '.join(STRATEGIES)}",
    )
    seed: int = option(0, "seed of initialisation, sampling and augmentation", low=0)
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
        return 4 if find_loss(self.loss.loss).needs_pairs else 0

    def changed(self, **values: Any) -> RunConfig:
        """The configuration with other values, by their dotted names with ``__`` for the dot:
        ``changed(train__lr=1e-4)``."""
        return unflatten({name.replace("__", "."): value for name, value in values.items()}, self)


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is carried out."""

    data_root: Path | None = option(None, "folder (or archive) of the data set; without it the data set is downloaded")
    results: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = option(
        Path("results/local"), "folder for records (`runs/`) and tables"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes a GPU when there is one")
    workers: int = option(-1, "processes that decode images; -1 means none on a CPU, up to 8 beside a GPU")
    cache_limit_gb: float = option(32.0, "room for caches of decoded images (--reader cache), 10^9 bytes", low=0)
    feature_cache_gb: float = option(2.0, low=0)
    """room for features of frozen blocks, 10^9 bytes: with --views, they are computed once per image and view; 0 passes
    every image through them in each epoch"""
    checkpoint_every: int = option(1, low=0)
    """epochs between checkpoints, which lie in checkpoints/ until the run has its record; 0 for none"""
    resume: Path | None = None
    """folder of checkpoints to resume from, such as one copied from another machine; a run finds its own by itself"""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """also show losses, learning rates and metrics there (the package must be installed); the record is complete
    without"""
    profile: bool = option(False, "print where the time of the training's steps goes")
    deterministic: bool = False
    """on a GPU, use operations that give the same bits each time where torch has them, which is slower; on a CPU they
    all do"""
    keep_new: bool = False
    """keep the embedder of a run that is made now in models/, as a recipe (JSON) and weights (safetensors)"""
    keep: bool = option(False, "the same, and make a recorded run whose embedder is missing again")
    thumbnails: bool = option(True, "keep small pictures of some test images beside the record, for the report")
    force: bool = option(False, "run from the beginning even if the same configuration has a record or checkpoints")

    def __post_init__(self) -> None:
        for name in ("data_root", "results", "resume"):
            if isinstance(path := getattr(self, name), str | Path):
                object.__setattr__(self, name, Path(path).expanduser())


def flatten(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON types by dotted names (``train.lr``, ``options.autolr.low``) in one spelling: defaults
    resolved, floats as floats, only options of strategies that take part."""
    names = split_names(config.strategy)
    values = dict(flat_values(config))
    values |= {
        "strategy": "+".join(split_words(config.strategy)),
        "train.samples_per_class": config.samples_per_class,
        "evaluation.k": list(config.ks),
    }
    unused = tuple(f"options.{name}." for name in STRATEGIES if name not in names)
    return {name: value for name, value in values.items() if not name.startswith(unused)}


def flat_values(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below a section by its dotted name, as JSON types."""
    for part in fields(section):
        value, name = getattr(section, part.name), f"{prefix}{part.name}"
        if is_dataclass(value):
            yield from flat_values(value, f"{name}.")
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
    load_own(str(values.get("strategy", config.strategy)))  # whose options are choices then
    known = dict(flat_values(config))
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

    Only what differs from the defaults is hashed, so that a new field or strategy changes no hash; therefore a default
    never changes (a test holds the hash of the default run): a new choice is a new field whose default is what was done
    before. ``seed`` is left out, so that the runs of several seeds share the hash.

    Args:
        values: :func:`flatten` with paths replaced by content (see ``retrieval_bench.run.identify``).
    """
    default = {**dict(flat_values(RunConfig())), **flatten(RunConfig()), **RETIRED}
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
    usual = dict(flat_values(default))
    return [flag_words(flag(name), value) for name, value in flat_values(config) if value != usual[name]]


def flag_words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [name if value else name.replace("--", "--no-", 1)]
    if not isinstance(value, list):
        return [name, str(value)]
    return [name, *map(str, flat(value))]


def to_command(config: Any, default: Any = None) -> list[str]:
    """The ``run`` arguments that give `config`: the flags of every value that differs from `default` (a fresh
    RunConfig)."""
    return [word for words in changed_flags(config, default or RunConfig()) for word in words]


def runtime_command(runtime: RuntimeConfig) -> list[str]:
    """The ``run`` arguments that give `runtime`; ``run`` keeps embedders by default."""
    return to_command(runtime, RuntimeConfig(keep_new=True))


def map_paths(config: RunConfig, change: Callable[[Path], str]) -> RunConfig:
    """The configuration with ``change(path)`` in place of each path of a weight file (the backbone's, and those of
    policy networks), and without the folders of other data sets."""
    values = {name: value for name, value in flat_values(config) if name.endswith("weights")}
    paths = {name: Path(value).expanduser() for name, value in values.items() if value not in ("imagenet", "none")}
    values = {name: change(path) for name, path in paths.items()}
    return unflatten({**values, "evaluation.also_test": without_folders(config.evaluation.also_test)}, config)


def portable(config: RunConfig) -> RunConfig:
    """The configuration with names in place of paths: of weight files, and of other data sets."""
    return map_paths(config, lambda path: path.name)
