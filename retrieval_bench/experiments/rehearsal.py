"""What is refused before anything is trained: flags without effect, and rows that cannot work."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch

from retrieval_bench.config import RunConfig, RuntimeConfig, flag, flat_values, unflatten
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.experiment import Experiment, Profile, Row
from retrieval_bench.identity import open_images, open_other_sets
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder, freeze_batch_norms
from retrieval_bench.progress import logger
from retrieval_bench.run import open_choices
from retrieval_bench.strategies import StrategyOptions, build_strategy, split_names
from retrieval_bench.validation import validate


def refuse_idle_flags(experiment: Experiment, profile: Profile, changed: Profile) -> None:
    """Raises :class:`UserError` for a choice in the changed profile that changes no row, since the rows make that
    choice themselves."""
    rows, usual = experiment.rows_of(changed), dict(flat_values(profile.base))
    for name, value in flat_values(changed.base):
        if value != usual[name]:
            without = replace(changed, base=unflatten({name: usual[name]}, changed.base))
            if experiment.rows_of(without) == rows:
                raise UserError(
                    f"{flag(name)} changes nothing here: the rows of this experiment set it themselves, or do without"
                )


def hidden_flags(experiment: Experiment, profile: Profile) -> list[str]:
    """The flags that an experiment refuses with any value, which its help leaves out."""
    hidden = ["--resume", "--dry-run"] if profile.trials else ["--resume", "--trials", "--objective"]
    if "strategy" not in profile.axes:
        hidden += ["--strategy"]
    if experiment.rows is None:
        return hidden + [flag(name) for name in profile.axes if name != "strategy"]
    others = {
        name: not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else "other"
        for name, value in flat_values(profile.base)
        if name not in ("strategy", "seed") and not isinstance(value, list | None)
    }
    with suppress(UserError):  # rows that refuse such values depend on them
        usual, changed = experiment.rows(profile.base), experiment.rows(unflatten(others, profile.base))
        pairs = [
            (dict(flat_values(a.config)), dict(flat_values(b.config))) for a, b in zip(usual, changed, strict=True)
        ]
        hidden += [flag(name) for name in others if all(first[name] == second[name] for first, second in pairs)]
    return hidden


def able_runs(
    rows: Sequence[Row], configs: Sequence[RunConfig], runtime: RuntimeConfig, downloads: bool = True
) -> list[RunConfig]:
    """Those of the runs whose rows can be run (:func:`rehearse`). Without `downloads` networks have random weights."""
    checked = rows if downloads else [replace(row, config=_without_downloads(row.config)) for row in rows]
    names = {row.name for row in rehearse(checked, runtime)}
    able = {replace(row.config, seed=0) for row in rows if row.name in names}
    return [config for config in configs if replace(config, seed=0) in able]


def _without_downloads(config: RunConfig) -> RunConfig:
    own = {name: getattr(config.options, name).without_downloads() for name in split_names(config.strategy)}
    weights = "none" if config.model.weights == "imagenet" else config.model.weights
    return replace(config.changed(model__weights=weights), options=replace(config.options, **own))


def rehearse(rows: Sequence[Row], runtime: RuntimeConfig) -> list[Row]:
    """Passes every row through all checks that need no training: options, data, classes of a batch, and blocks of the
    backbone, on a batch of zeros.

    Returns:
        The rows that can be run: all, but for optional ones of which the backbone is not capable with any options'
        defaults either, which are named.

    Raises:
        UserError: for everything else, and if no row is left.
    """
    for entry in rows:
        validate(entry.config)
    for config in {entry.config.evaluation.also_test: entry.config for entry in rows}.values():
        open_other_sets(config)
    splits, models, able, error = {}, {}, [], UserError("no row to run")
    for entry in rows:
        config, size = entry.config, entry.config.data.image_size
        if config.data not in splits:
            splits[config.data] = open_images(config.data, runtime.data_root)
        table, split = splits[config.data]
        BatchSampler(split.train_labels(table.labels), config.train.batch_size, config.samples_per_class)
        if (config.model, size) not in models:
            models[config.model, size] = build_embedder(config.model, size)
        try:
            _prepare(config, models[config.model, size])
        except UserError as reason:
            usual = replace(config, options=StrategyOptions())
            if not entry.optional or (usual != config and _can_be_prepared(usual, models[config.model, size])):
                raise
            error = reason
            logger.info(f"left out: {entry.name}: {error}")
        else:
            able.append(entry)
    if not able:
        raise error
    return able


def _prepare(config: RunConfig, network: Embedder) -> None:
    """Raises :class:`UserError` for a strategy that a copy of the network cannot be prepared for."""
    model, size = copy.deepcopy(network), config.data.image_size
    if config.train.freeze_bn:
        freeze_batch_norms(model)
    preferred = {name: candidates[0] for name, candidates in open_choices(config).items()}
    strategy = build_strategy(config.strategy, replace(config.options, **preferred))
    strategy.parameter_groups(strategy.prepare(model, torch.zeros(2, 3, size, size, dtype=torch.uint8)), [])


def _can_be_prepared(config: RunConfig, network: Embedder) -> bool:
    with suppress(UserError):
        _prepare(config, network)
        return True
    return False
