"""One run, the sentence of the design: configuration, images, embeddings under a strategy, neighbours, metrics, record."""

from __future__ import annotations

import math
import shlex
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.catalog import DATASETS, open_dataset
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.saved import files_of, is_kept, kept_path, save_embedder
from retrieval_bench.details import details_path, write_details
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import check_writable, digest, locked
from retrieval_bench.identity import config_hash, map_weight_files, portable, to_command, to_dict
from retrieval_bench.models.build import full_name
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import logger
from retrieval_bench.records import SCHEMA, read_record, record_path, write_record
from retrieval_bench.selection import choose
from retrieval_bench.strategies import Strategy
from retrieval_bench.trackers import Trackers
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.distributed import join
from retrieval_bench.trial import measured, train
from retrieval_bench.validation import validate


def run(config: RunConfig, machine: RuntimeConfig) -> dict[str, Any]:
    """Trains, evaluates once and records one configuration; a configuration that has a record is not run again unless forced.

    Args:
        config: everything the numbers depend on.
        machine: where the data is, where results go, on which device.

    Returns:
        The record (``retrieval_bench.records``), as written to ``<results>/runs/<id>.json``.

    Raises:
        UserError: bad input, with one line that says what to do. Nothing is written then.
    """
    validate(config)
    if machine.checkpoint_every < 0:
        raise UserError(
            f"--checkpoint-every {machine.checkpoint_every}: give a number of epochs, or 0 for no checkpoints"
        )
    device = resolve_device(machine.device, machine.deterministic)
    group = join(device)
    if group.size > 1 and config.train.out_of_memory == "halve":
        raise UserError(
            "--out-of-memory halve is for one process, since others would wait for it; give --micro-batch N"
        )
    workers = resolve_workers(machine.workers, device)
    data = config.data
    table, split = open_dataset(data.dataset, machine.data_root, data.split, data.fold, data.folds, data.classes)
    identity = identify(config, table)
    run_id = name_run(identity, device)
    goal = Goal(run_id, machine)
    if record := group.leader(goal.reached):
        return record
    check_writable(goal.path.parent)
    with locked(goal.checkpoints, f"running {run_id}", "--results") if group.is_main_process else nullcontext():
        if record := group.leader(goal.reached):  # by the process that was waited for
            return record
        checkpoints = Checkpoints(goal.checkpoints, identity, machine.checkpoint_every, machine.resume)
        if machine.force and machine.resume is None and group.is_main_process:
            checkpoints.remove()
        logger.info(f"{run_id}: {config.strategy_label} on {config.data.dataset}, seed {config.seed}, {device}")
        choice = choose(config, partial(run, machine=replace(machine, resume=None, keep=False, keep_new=False)))
        cache = open_decode_cache(table, data.stored, machine.cache_limit_gb) if data.reader == "cache" else None
        read = partial(Batches, table, config=data, workers=workers, cache=cache, device=device)
        with closing(
            Trackers(machine.track if group.is_main_process else (), run_id, identity, machine.results)
        ) as trackers:
            embedder, training = train(
                choice.config, table, split, device, read, checkpoints, group, machine.profile, trackers
            )
            record, details = group.leader(
                partial(measured, embedder, training, table, split, read, machine.thumbnails)
            )
            trackers.log(
                {name: value for name, value in record["metrics"].items() if isinstance(value, float)},
                config.train.epochs,
            )
        named = portable(config)
        record["labels"] = {"strategy": named.strategy_label, "weights": named.model.weights, **record["labels"]}
        record["command"] = shlex.join(["python", "-m", "retrieval_bench", "run", *to_command(named)])
        if choice.facts:
            record["facts"]["selection"] = choice.facts
            record["cost"] |= {name: round(record["cost"][name] + more, 2) for name, more in choice.cost.items()}
        record |= {
            "schema": SCHEMA,
            "id": run_id,
            "config": identity,
            "config_hash": config_hash(identity),
            "seed": config.seed,
        }
        if group.is_main_process:
            write_details(details, goal.details)
            for file in files_of(goal.kept):  # of an earlier record
                file.unlink(missing_ok=True)
            write_record(goal.path, record)
            if machine.keep or machine.keep_new:
                _keep(embedder, choice.config, training.strategy, goal.kept)
            checkpoints.remove()
    logger.info(f"{run_id}: R@1 {100 * record['metrics'].get('recall_at_1', math.nan):.2f}, recorded in {goal.path}")
    return record


@dataclass(frozen=True)
class Goal:
    """What a run leaves below the results folder."""

    run_id: str
    machine: RuntimeConfig

    @property
    def path(self) -> Path:
        """Its record."""
        return record_path(self.machine.results, self.run_id)

    @property
    def details(self) -> Path:
        """What it found image by image."""
        return details_path(self.machine.results, self.run_id)

    @property
    def kept(self) -> Path:
        """Its embedder, without an ending."""
        return kept_path(self.machine.results, self.run_id)

    @property
    def checkpoints(self) -> Path:
        """Its checkpoints, until it has a record."""
        return self.machine.results / "checkpoints" / self.run_id

    def reached(self) -> dict[str, Any] | None:
        """:meth:`record`, which is told to the user."""
        if record := self.record():
            logger.info(f"{self.run_id}: already recorded in {self.path} (--force runs it again)")
        return record

    def record(self) -> dict[str, Any] | None:
        """The record, if the run need not be made (again).

        Raises:
            UserError: a record that cannot be read.
        """
        missing = self.machine.keep and not is_kept(self.kept)
        if not self.path.exists() or self.machine.force or missing:
            return None
        try:
            return read_record(self.path)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}; remove the file, or run again with --force") from None


def identify(config: RunConfig, table: ImageTable) -> dict[str, Any]:
    """The configuration as JSON types with the content of the data and of weight files in place of their paths."""
    identity = to_dict(map_weight_files(config, content_of))
    identity["data"]["files_fingerprint"] = table.fingerprint()
    if config.data.split == "closed_set" and "closed_set" not in DATASETS[config.data.dataset].manifests:
        identity["data"]["sides_fingerprint"] = table.split_fingerprint()
    identity["model"]["backbone"] = full_name(config.model)
    return identity


def content_of(path: Path) -> str:
    """What stands for a weight file in an identity; a missing file is a :class:`UserError`."""
    return f"sha256:{digest(path)}"


def name_run(identity: dict[str, Any], device: str) -> str:
    """What a run is called: its record is ``<results>/runs/<name>.json``.

    Args:
        identity: see :func:`identify`.
        device: ``cpu`` or ``cuda``.
    """
    return f"{identity['data']['dataset']}-{identity['strategy']}-{config_hash(identity)}-s{identity['seed']}-{device}"


def _keep(embedder: Embedder, config: RunConfig, strategy: Strategy, path: Path) -> None:
    """Saves the embedder with how it is shown images; one that cannot be saved costs no record."""
    views = {name: getattr(config.data, name) for name in ("preprocessing", "resize", "stored")}
    about = {"views": views, "flip_sum": config.evaluation.flip_sum}
    try:
        save_embedder(embedder, config.model, config.data.image_size, path, about, strategy)
        logger.info(f"the embedder is kept in {path}.json and .safetensors")
    except (UserError, OSError, SafetensorError) as error:
        logger.info(f"the embedder is not kept: {first_line(error)}")
