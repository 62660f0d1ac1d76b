"""The work of one run: an embedder is trained, then everything about it is measured."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from retrieval_bench import cost
from retrieval_bench.config import RunConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.details import Details, describe
from retrieval_bench.measure import measure_routes, measure_variants
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import logger
from retrieval_bench.records import environment
from retrieval_bench.seeding import derive
from retrieval_bench.strategies import build_strategy
from retrieval_bench.trackers import Trackers
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.criterion import Criterion, build_criterion
from retrieval_bench.training.distributed import Group
from retrieval_bench.training.loop import Training

Read = Callable[..., Batches]
"""Makes batches of given rows and labels."""


def train(
    config: RunConfig,
    table: ImageTable,
    split: Split,
    device: str,
    read: Read,
    checkpoints: Checkpoints,
    group: Group,
    profile: bool,
    trackers: Trackers,
) -> tuple[Embedder, Training]:
    """The finished embedder, and the training behind it.

    Args:
        config: the run, with nothing left to choose.
        table: the data set.
        split: its training side is used.
        device: where to train.
        read: see :data:`Read`.
        checkpoints: to go on from, and to keep.
        group: the processes that train together.
        profile: print where the time went.
        trackers: are told of every epoch.
    """
    environment(device)  # the revision of the code is noted before it can change
    cost.reset_peak_memory(device)
    labels = split.train_labels(table.labels)
    sampler = BatchSampler(labels, config.train.batch_size, config.samples_per_class)
    torch.manual_seed(derive(config.seed, "embedder"))
    embedder = build_embedder(config.model, config.data.image_size).to(device)

    def make_criterion(dim: int) -> Criterion:
        torch.manual_seed(derive(config.seed, "loss"))
        return build_criterion(config.loss, len(split.train_classes), dim)

    batches = read(split.train, labels, sampler=sampler, share=group.share)
    strategy = build_strategy(config.strategy, config.options)
    training = Training(embedder, make_criterion, batches, strategy, config, checkpoints, group, profile, trackers)
    embedder = training.fit()
    if profile and training.images_seen:
        logger.info(training.watch.report(training.seconds, training.images_seen))
    return embedder, training


def measured(
    embedder: Embedder, training: Training, table: ImageTable, split: Split, read: Read, pictures: bool
) -> tuple[dict[str, Any], Details]:
    """The measured part of a record: the one look at the test images, and what it all cost; and what was found image by image."""
    config, strategy, device = training.config, training.strategy, training.device.type
    trained_parameters = sum(parameter.numel() for parameter in training.model.parameters() if parameter.requires_grad)
    started = time.perf_counter()
    batches = read(split.test, table.labels[split.test])
    test, routes = measure_routes(embedder, training.criterion, batches, table, split, config)
    seconds = {
        "train_seconds": round(training.seconds, 2),
        "strategy_seconds": round(training.strategy_seconds, 3),
        "test_seconds": round(time.perf_counter() - started, 2),
    }
    variants = measure_variants(strategy, embedder, training.criterion, batches, table.labels, split, config)
    seconds["total_seconds"] = round(time.perf_counter() - training.started, 2)
    record = {
        "labels": {"dim": embedder.dim},
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": {
            "images": len(table),
            "train_images": len(split.train),
            "train_classes": len(split.train_classes),
            "test_images": len(split.test),
            "test_classes": len(np.unique(table.labels[split.test])),
            "query_images": len(split.query),
            "gallery_images": len(split.gallery),
        },
        "metrics": test.metrics,
        **({"variants": variants} if variants else {}),
        "training": training.account(),
        "facts": {**strategy.info(), **({"routes": routes} if routes else {})},
        "cost": {
            "parameters": cost.parameters(embedder),
            "trained_parameters": trained_parameters,
            "images_seen": training.images_seen,
            **seconds,
            "peak_memory_mb": round(cost.peak_memory_mb(device)),
            "macs": cost.macs(embedder, config.data.image_size),
            "latency_ms": round(cost.latency_ms(embedder, config.data.image_size), 3),
        },
        "environment": {
            **environment(device),
            **({"processes": training.group.size} if training.group.size > 1 else {}),
        },
    }
    return record, describe(test.vectors, test.columns, table, split, config.seed, device, pictures)
