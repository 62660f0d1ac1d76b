"""How fast images are read: beside the training step of a backbone, in one process, so that the two can be compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.errors import UserError
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig


@dataclass(frozen=True)
class Rate:
    """Images per second of one way of reading: the median over repeats, and the slowest and fastest."""

    name: str
    median: float
    low: float
    high: float


def measure_speed(
    table: ImageTable,
    split: Split,
    config: DataConfig,
    backbone: str,
    batch_size: int,
    device: str,
    workers: int,
    limit_gb: float,
) -> tuple[list[Rate], float]:
    """Rates of reading training views in ways of growing completeness, the last being the bare training step of a backbone.

    Each is repeated on the same few batches in turn with the others, so that a slower moment of the machine meets all of them. No other
    work may run beside it.

    Args:
        table: the images.
        split: its training rows are read.
        config: how they are shown.
        backbone: a torchvision or timm model, untrained; its forward and backward pass and one SGD step are timed on a fixed batch.
        batch_size: images per batch.
        device: where views are made and the step is computed.
        workers: processes that decode for the DataLoader.
        limit_gb: see :func:`retrieval_bench.data.decode_cache.open_decode_cache`.

    Returns:
        The rates, and the seconds that opening the built cache took.
    """
    open_decode_cache(table, config.stored, limit_gb)
    started = time.perf_counter()
    cache = open_decode_cache(table, config.stored, limit_gb)
    opening = time.perf_counter() - started
    labels = split.train_labels(table.labels)

    def batches(cached: bool) -> Batches:
        sampler = BatchSampler(labels, batch_size, 0)
        chosen = decoded if cached else None
        return Batches(table, split.train, labels, config, workers, sampler, cache=chosen, device=device)

    if len(labels) < batch_size:
        raise UserError(f"--batch-size {batch_size}: the training split has {len(labels)} images only")
    pil, cache = batches(False), batches(True)
    count = max(1, min(8, len(cache) - 1))
    rows = [[int(split.train[index]) for index, _ in items] for items in islice(cache.order(), count)]
    step = training_step(backbone, config.image_size, batch_size, device)
    ways: dict[str, Callable[[], object]] = {
        f"PIL DataLoader ({workers} workers)": lambda: _drain(iter(pil), count),
        "cache, pixels only": lambda: [np.array(decoded[row]) for batch in rows for row in batch],
        "cache + augmentation": lambda: _drain(iter(cache), count),
        f"{backbone}: forward + backward": lambda: [step() for _ in range(count)],
    }
    seconds = {name: [] for name in ways}
    for repeat in range(6):
        for name, work in ways.items():
            for source in (pil, cache):
                source.reseed(0, repeat)
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            seconds[name].append(time.perf_counter() - started)
    images = count * batch_size
    return [_rate(name, images, taken[1:]) for name, taken in seconds.items()], opening  # the first round warms up


def training_step(backbone: str, image_size: int, batch_size: int, device: str) -> Callable[[], None]:
    """One optimisation step of a backbone with a loss on its embeddings, on a batch that is already there."""
    from retrieval_bench.losses import build_criterion
    from retrieval_bench.models.build import build_embedder
    from retrieval_bench.training.optim import build_optimizer, parameter_groups

    model = build_embedder(ModelConfig(backbone=backbone, weights="none"), image_size).to(device).train()
    loss = LossConfig()
    criterion = build_criterion(loss, 100, model.dim).to(device)
    optimizer = build_optimizer("sgd", parameter_groups(model, criterion, TrainConfig(), loss))
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
    labels = torch.arange(batch_size, device=device) % 100

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(model(images), labels).backward()
        optimizer.step()

    return step


def _drain(batches: Iterator[object], count: int) -> None:
    for _ in islice(batches, count):
        pass


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _rate(name: str, images: int, seconds: list[float]) -> Rate:
    rates = sorted(images / taken for taken in seconds)
    return Rate(name, statistics.median(rates), rates[0], rates[-1])


def report(rates: list[Rate], opening: float, images: int, device: str) -> str:
    """The rates as a table, each beside the training step, which comes last."""
    step = rates[-1].median
    lines = [f"{'':38}{'images/s':>10}{'(slowest, fastest)':>22}{'share of a training step':>28}"]
    for rate in rates:
        share = "" if rate is rates[-1] else f"{100 * step / rate.median:.1f} %"
        lines.append(f"{rate.name:38}{rate.median:>10,.0f}{f'({rate.low:,.0f}, {rate.high:,.0f})':>22}{share:>28}")
    return "\n".join(
        [
            *lines,
            f"opening the cache of {images:,} images: {opening:.3f} s; {device}, {torch.get_num_threads()} threads",
        ]
    )
