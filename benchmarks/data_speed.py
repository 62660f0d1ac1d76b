"""How fast images are read: beside the training step of a backbone, in one process, so that the two can be compared."""

from __future__ import annotations

import time
from collections import deque
from itertools import count, islice
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.timing import command_line, report, timed
from benchmarks.training_speed import bare_step
from retrieval_bench.config import RunConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.losses import build_criterion
from retrieval_bench.models.build import build_embedder
from retrieval_bench.sections import DataConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.loop import Training


def main(
    name: tyro.conf.Positional[str],
    data_root: Path | None = None,
    backbone: str = "mobilenetv2_100",
    image_size: int = 128,
    stored: int = 256,
    batch_size: int = 64,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int = -1,
    cache_limit_gb: float = 32.0,
) -> None:
    """Times reading a data set's training images; the ratio says how much of a training step it takes."""
    where = resolve_device(device)
    workers = resolve_workers(workers, where)
    table, split = open_dataset(name, data_root)
    labels = split.train_labels(table.labels)
    if not 2 <= batch_size <= len(labels):
        raise UserError(f"--batch-size {batch_size}: give 2 to {len(labels)}, the number of training images")
    data = DataConfig(dataset=name, image_size=image_size, stored=stored)
    train = TrainConfig(batch_size=batch_size, freeze_bn=False, optimizer="sgd")
    config = RunConfig(data=data, model=ModelConfig(backbone, "none"), train=train)
    open_decode_cache(table, stored, cache_limit_gb)
    started = time.perf_counter()
    decoded = open_decode_cache(table, stored, cache_limit_gb)
    opening = time.perf_counter() - started
    sampler = BatchSampler(labels, batch_size, 0)
    pil = Batches(table, split.train, labels, data, workers, sampler, device=where)
    cache = Batches(table, split.train, labels, data, workers, sampler, cache=decoded, device=where)
    model, classes = build_embedder(config.model, image_size).to(where), len(split.train_classes)
    training = Training(model, lambda dim: build_criterion(config.loss, classes, dim), cache, Strategy(), config)
    step = bare_step(training, *next(iter(cache)))
    steps, epoch = max(1, min(8, len(cache) - 1)), count()

    def read(batches: Batches) -> None:
        batches.reseed(0, next(epoch))
        deque(islice(batches, steps), maxlen=0)

    ways = {
        f"{backbone}: forward, backward, update": lambda: [step() for _ in range(steps)],
        f"PIL DataLoader ({workers} workers)": lambda: read(pil),
        "cache, pixels only": lambda: [np.array(decoded[row]) for row in split.train[: steps * batch_size].tolist()],
        "cache + augmentation": lambda: read(cache),
    }
    print(report(timed(ways, 5, where, warm_up=1), where, steps * batch_size))
    print(f"opening the cache of {len(table):,} images: {opening:.3f} s")


if __name__ == "__main__":
    command_line(main)
