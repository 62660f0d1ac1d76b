"""What a run is called: its configuration with content in place of paths, and the name that follows from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from retrieval_bench.config import RunConfig, RuntimeConfig, config_hash, flatten, map_paths
from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.other_sets import parse_other_sets
from retrieval_bench.data.splits import Split, hold_out
from retrieval_bench.data.table import ImageTable
from retrieval_bench.device import resolve_device
from retrieval_bench.files import digest
from retrieval_bench.losses import LOSSES
from retrieval_bench.models.build import find_own, full_name
from retrieval_bench.models.weights import weight_files
from retrieval_bench.plugins import Plugin, load, name_of
from retrieval_bench.sections import DataConfig, EvalConfig, ModelConfig
from retrieval_bench.strategies import BUILT_IN, split_words


def open_images(data: DataConfig, data_root: Path | None) -> tuple[ImageTable, Split]:
    """The data set of a configuration, and its split, with what is held out for validation."""
    names = (data.split, data.fold, data.folds, data.classes, data.train_per_class)
    table, split = open_dataset(data.dataset, data_root, *names)
    return table, hold_out(split, table, data.validate) if data.validate else split


Opened = dict[str, tuple[ImageTable, Split]]
"""Other data sets by their labels, in order."""


def open_other_sets(config: RunConfig) -> Opened:
    """What the finished embedder is also measured on; a :class:`UserError` for what cannot be opened."""
    return {other.label: other.open() for other in parse_other_sets(config.evaluation.also_test)}


def identify(config: RunConfig, table: ImageTable, others: Opened) -> dict[str, Any]:
    """The flat configuration with the content of the data and of weight files in place of their paths."""
    identity = flatten(map_paths(config, content_of)) | sources_of(config)
    if others:
        identity["evaluation.also_fingerprints"] = [images.fingerprint() for images, _ in others.values()]
    identity["data.files_fingerprint"] = table.fingerprint()
    if config.data.split == "closed_set" and "closed_set" not in DATASETS[config.data.dataset].manifests:
        identity["data.sides_fingerprint"] = table.split_fingerprint()
    return identity | {"model.backbone": full_name(config.model)}


def own_code(config: RunConfig) -> list[Plugin]:
    """The strategies, the loss and the backbone of a configuration that are the user's own."""
    found = [load("strategies", word) for word in split_words(config.strategy) if word not in BUILT_IN]
    found += [None if config.loss.loss in LOSSES else load("losses", config.loss.loss), find_own(config.model.backbone)]
    return [plugin for plugin in found if plugin]


def sources_of(config: RunConfig) -> dict[str, list[str]]:
    """What an identity says of them: nothing if there are none."""
    sources = [plugin.source for plugin in own_code(config)]
    return {"code.sources": sources} if sources else {}


def content_of(path: Path) -> str:
    """What stands for a weight file in an identity, or for the shards of an index; a missing file is a
    :class:`UserError`."""
    digests = [digest(file) for file in weight_files(path)]
    joined = hashlib.sha256("".join(digests).encode()).hexdigest() if digests[1:] else digests[0]
    return f"sha256:{joined}"


def name_run(identity: dict[str, Any], device: str) -> str:
    """What a run is called: ``emoji_mini-standard-24efd403-s0-cpu``.

    Args:
        identity: see :func:`identify`.
        device: ``cpu`` or ``cuda``.
    """
    dataset, strategy, seed = (identity[name] for name in ("data.dataset", "strategy", "seed"))
    return f"{dataset}-{name_of(strategy)}-{config_hash(identity)}-s{seed}-{device}"


def run_ids(configs: Sequence[RunConfig], runtime: RuntimeConfig) -> Iterator[str]:
    """What :func:`run` calls each configuration; each data set and weight file is read once."""
    device = resolve_device("auto") if runtime.device == "auto" else runtime.device  # a GPU may be in other machines
    content = cache(content_of)

    @cache
    def content_of_data(data: DataConfig, model: ModelConfig, also_test: tuple[str, ...]) -> dict[str, Any]:
        config = RunConfig(data=data, model=model, evaluation=EvalConfig(also_test=also_test))
        identity = identify(config, open_images(data, runtime.data_root)[0], open_other_sets(config))
        parts = ("data.", "model.", "evaluation.also_")
        return {name: value for name, value in identity.items() if name.startswith(parts)}

    for config in configs:
        content_of_sets = content_of_data(config.data, config.model, config.evaluation.also_test)
        yield name_run(flatten(map_paths(config, content)) | sources_of(config) | content_of_sets, device)
