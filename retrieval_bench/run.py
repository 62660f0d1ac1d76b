"""One run, the sentence of the design: configuration, images, embeddings under a strategy, neighbours, metrics, record."""

from __future__ import annotations

import datetime
import math
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval_bench import cost
from retrieval_bench.config import Machine, RunConfig, config_hash, to_command, to_dict
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.splits import Split
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.embed import embed
from retrieval_bench.evaluation.evaluate import evaluate
from retrieval_bench.files import check_writable, digest
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import announce
from retrieval_bench.records import SCHEMA, environment, read_record, record_path, write_record
from retrieval_bench.seeding import derive
from retrieval_bench.strategies import build_strategy
from retrieval_bench.training.criterion import build_criterion
from retrieval_bench.training.loop import Training
from retrieval_bench.validation import validate


def run(config: RunConfig, machine: Machine) -> dict[str, Any]:
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
    device = resolve_device(machine.device)
    table, split = open_dataset(config.data.dataset, machine.data_root, config.data.split)
    identity = identify(config, table)
    run_id = f"{config.data.dataset}-{config.strategy}-{config_hash(identity)}-s{config.seed}"
    path = record_path(machine.results, run_id)
    if path.exists() and not machine.force:
        try:
            record = read_record(path)
            announce(f"{run_id}: already recorded in {path} (--force runs it again)")
            return record
        except ValueError as error:
            raise UserError(f"{path}: {error}; remove the file, or run again with --force") from None
    check_writable(path.parent)
    announce(f"{run_id}: {config.strategy_label} on {config.data.dataset}, seed {config.seed}, {device}")
    record = _execute(config, table, split, device, resolve_workers(machine.workers, device))
    record |= {"schema": SCHEMA, "id": run_id, "config": identity, "config_hash": config_hash(identity), "seed": config.seed}
    record["labels"] |= {"strategy": config.strategy_label, "weights": identity["model"]["weights"]}
    write_record(path, record)
    announce(f"{run_id}: R@1 {100 * record['metrics'].get('recall_at_1', math.nan):.2f}, recorded in {path}")
    return record


def identify(config: RunConfig, table: ImageTable) -> dict[str, Any]:
    """The configuration as JSON types with the content of the data and of a weight file in place of their paths."""
    identity = to_dict(config)
    identity["data"]["files_sha256"] = table.fingerprint()
    if config.model.weights not in ("imagenet", "none"):
        path = Path(config.model.weights).expanduser()
        identity["model"]["weights"] = f"{path.name}@{digest(path)[:8]}"
    return identity


def resolve_device(device: str) -> str:
    """``cpu`` or ``cuda``; raises :class:`UserError` if a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU on this machine; use --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _execute(config: RunConfig, table: ImageTable, split: Split, device: str, workers: int) -> dict[str, Any]:
    """Trains and evaluates; returns the measured part of the record."""
    started = time.perf_counter()
    cost.reset_peak_memory(device)
    labels = split.train_labels(table.labels)
    sampler = BatchSampler(labels, config.train.batch_size, config.samples_per_class)
    torch.manual_seed(derive(config.seed, "initialisation"))
    embedder = build_embedder(config.model, config.data.image_size).to(device)
    criterion = build_criterion(config.loss, len(split.train_classes), embedder.dim).to(device)
    batches = Batches(table, split.train, labels, config.data, workers, sampler)
    strategy = build_strategy(config.strategy, config.options)
    training = Training(embedder, criterion, batches, strategy, config)
    trained_parameters = sum(parameter.numel() for parameter in training.model.parameters() if parameter.requires_grad)
    embedder = training.fit()
    test_started = time.perf_counter()
    metrics = measure(embedder, table, split.test, config, workers)
    weights = config.model.weights
    portable = replace(config, model=replace(config.model, weights=weights if weights in ("imagenet", "none") else Path(weights).name))
    return {
        "command": shlex.join(["python", "-m", "retrieval_bench", "run", *to_command(portable)]),
        "labels": {"dim": embedder.dim},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "images": len(table),
            "train_images": len(split.train),
            "train_classes": len(split.train_classes),
            "test_images": len(split.test),
            "test_classes": len(np.unique(table.labels[split.test])),
        },
        "metrics": metrics,
        "training": {"loss_per_epoch": training.history},
        "facts": strategy.facts(),
        "cost": {
            "parameters": cost.parameters(embedder),
            "trained_parameters": trained_parameters,
            "macs": cost.macs(embedder, config.data.image_size),
            "images_seen": training.images_seen,
            "train_seconds": round(training.seconds, 2),
            "test_seconds": round(time.perf_counter() - test_started, 2),
            "total_seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": round(cost.peak_memory_mb(device)),
        },
        "environment": environment(device),
    }


def measure(embedder: Embedder, table: ImageTable, rows: np.ndarray, config: RunConfig, workers: int) -> dict[str, Any]:
    """Metrics of the embedder on the given rows, each a query against all the others."""
    embeddings = embed(embedder, Batches(table, rows, table.labels[rows], config.data, workers), config.evaluation.flip_sum)
    return evaluate(embeddings, table.labels[rows], ks=config.evaluation.k)
