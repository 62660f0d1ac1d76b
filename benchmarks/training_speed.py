"""How fast training is: ``python -m benchmarks.training_speed train --dataset cub --data-root DIR``, undisturbed.

Ways are timed in turn in one process, ratios are to the first: the bare step (forward, loss, backward and optimiser on
a batch that is already there), than which no loop can be faster. ``train`` times beside it, all with the same network,
loss, optimiser, precision and size of batches, and with frozen batch norms unless ``--no-freeze-bn``:

- the package's own loop, with images from the decode-once cache, augmentation, schedule and strategy hooks;
- bare step and loop with ``--fused``;
- the loop with all but the last block frozen (``last_k``), and with features of the frozen ones kept (``--views 1``);
- the trainer of pytorch-metric-learning (``MetricLossOnly``) with a DataLoader that decodes with PIL and augments with
  torchvision, as its examples do it;
- a loop like that of timm's training script, with timm's loader, transforms, optimiser and frozen norms.

``data`` times reading the same images: by PIL in a DataLoader, and from the cache, without and with augmentation.
"""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from pytorch_metric_learning import trainers
from timm.data.loader import create_loader
from timm.layers.norm_act import freeze_batch_norm_2d
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks.timing import command_line, report, timed
from retrieval_bench.config import RunConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.decode_cache import DecodeCache, open_decode_cache
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.losses import build_criterion
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder, set_training_mode
from retrieval_bench.sections import ModelConfig, TrainConfig
from retrieval_bench.strategies import build_strategy
from retrieval_bench.training.loop import Training


def bare_step(training: Training, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One optimisation step of a training on a batch that is already there."""
    images, labels = images.to(training.device), labels.to(training.device)
    set_training_mode(training.model)
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"]

    def step() -> None:
        training.optimizer.zero_grad(set_to_none=True)
        training.criterion(training.step.forward(images), labels).backward()
        training.optimizer.step()

    return step


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Training images as a torchvision user would read them: float (3, S, S), normalised."""

    def __init__(self, paths: list[Path], labels: np.ndarray, size: int, model: Embedder):
        crop = transforms.RandomResizedCrop(size, scale=(0.2, 1.0))
        normalize = transforms.Normalize(*model.backbone.normalisation)
        self.transform: Any = transforms.Compose(
            [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
        )
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), int(self.labels[index])


def metric_learning_trainer(
    model: Embedder, config: RunConfig, classes: int, images: ImageFiles, workers: int
) -> Callable[[], None]:
    """An epoch of pytorch-metric-learning's trainer."""
    logging.getLogger("PML").setLevel(logging.ERROR)
    device, train = next(model.parameters()).device, config.train
    loss = build_criterion(config.loss, classes, model.dim).loss.to(device)
    parameters = [*model.backbone.net.parameters(), *loss.parameters()]
    trainer = trainers.MetricLossOnly(
        models={"trunk": model.backbone.net.train()},
        optimizers={"trunk_optimizer": torch.optim.AdamW(parameters, train.lr, weight_decay=train.weight_decay)},
        batch_size=train.batch_size,
        loss_funcs={"metric_loss": loss},
        dataset=images,
        data_device=device,
        iterations_per_epoch=len(images) // train.batch_size,
        dataloader_num_workers=workers,
        freeze_these=(),
        freeze_trunk_batchnorm=train.freeze_bn,
    )

    def epoch() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            trainer.train(num_epochs=1)

    return epoch


def timm_loop(model: Embedder, config: RunConfig, classes: int, images: ImageFiles, workers: int) -> Callable[[], None]:
    """An epoch as timm's training script makes it."""
    device, train, size = next(model.parameters()).device, config.train, config.data.image_size
    criterion = build_criterion(config.loss, classes, model.dim).to(device)
    net: Any = freeze_batch_norm_2d(model.backbone.net) if train.freeze_bn else model.backbone.net
    net.train().to(memory_format=torch.channels_last)
    trained = [*net.parameters(), *criterion.parameters()]
    optimizer = create_optimizer_v2(trained, train.optimizer, train.lr, train.weight_decay)
    mean, std = model.backbone.normalisation
    views = {"scale": (0.2, 1.0), "color_jitter": None, "re_prob": 0.0, "mean": mean, "std": std}
    dataset: Any = images
    loader = create_loader(
        dataset,
        (3, size, size),
        train.batch_size,
        is_training=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        use_prefetcher=False,
        **views,
    )

    def epoch() -> None:
        for batch, labels in loader:
            batch = batch.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                features = net(batch)
            optimizer.zero_grad()
            criterion(features.float(), labels.to(device)).backward()
            optimizer.step()

    return epoch


def reading_ways(
    batches: Callable[..., Batches], cache: DecodeCache, rows: np.ndarray, workers: int
) -> dict[str, Callable[[], object]]:
    """The ways of ``data`` to read the images at `rows`."""
    pil, cached, epoch = batches(), batches(cache=cache), count()

    def read(source: Batches) -> None:
        source.reseed(0, next(epoch))
        deque(source, maxlen=0)

    return {
        f"PIL DataLoader ({workers} workers)": lambda: read(pil),
        "cache, pixels only": lambda: [np.array(cache[row]) for row in rows.tolist()],
        "cache + augmentation": lambda: read(cached),
    }


def main(
    what: tyro.conf.Positional[Literal["train", "data"]],
    dataset: str = "emoji_mini",
    data_root: Path | None = None,
    backbone: str = "mobilenetv2_100",
    image_size: int = 128,
    stored: int = 256,
    batch_size: int = 32,
    steps: int = 4,
    rounds: int = 5,
    workers: int = 0,
    precision: Literal["float32", "bf16"] = "float32",
    freeze_bn: bool = True,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Times training, or reading its images, beside the bare step; `steps` steps a round, `workers` -1 for as many as
    fit."""
    torch.manual_seed(0)
    usual, where = RunConfig(model=ModelConfig(backbone=backbone, weights="none")), resolve_device(device)
    workers = resolve_workers(workers, where)
    data = replace(usual.data, dataset=dataset, image_size=image_size, stored=stored, reader="cache")
    train = TrainConfig(batch_size=batch_size, precision=precision, freeze_bn=freeze_bn, schedule="constant", epochs=1)
    config = replace(usual, data=data, train=train)
    table, split = open_dataset(dataset, data_root, data.split)
    if not 1 <= steps * batch_size <= len(split.train):
        available = f"1 to {len(split.train)} images, which the training set has"
        raise UserError(f"--steps {steps} --batch-size {batch_size}: a round may have {available}")
    rows, labels = (each[: steps * batch_size] for each in (split.train, split.train_labels(table.labels)))
    open_decode_cache(table, stored, 32)  # decoded now, if it was not
    started = time.perf_counter()
    decoded = open_decode_cache(table, stored, 32)
    opening = f"opening the cache of {len(table):,} images: {time.perf_counter() - started:.3f} s"
    sampler = BatchSampler(labels, batch_size, config.samples_per_class)
    batches = partial(Batches, table, rows, labels, data, workers, sampler, device=where)
    cached = batches(cache=decoded)
    one_view = replace(cached, config=replace(data, views=1))
    last_block = config.changed(strategy="last_k", options__last_k__k=1)
    model, classes = build_embedder(config.model, image_size).to(where), len(split.train_classes)

    def training(config: RunConfig, source: Batches = cached) -> Training:
        criterion = lambda dim: build_criterion(config.loss, classes, dim)  # noqa: E731
        strategy = build_strategy(config.strategy, config.options)
        return Training(copy.deepcopy(model), criterion, source, strategy, config, feature_cache=2e9)

    def bare(config: RunConfig) -> Callable[[], object]:
        step = bare_step(training(config), *next(iter(cached)))
        return lambda: [step() for _ in range(steps)]

    ways: dict[str, Callable[[], object]] = {"bare step on a batch": bare(config)}
    if what == "train":
        fused = config.changed(train__fused=True)
        ways["retrieval_bench"] = training(config).train_once
        ways["bare step, fused"] = bare(fused)
        ways["retrieval_bench --fused"] = training(fused).train_once
        ways["retrieval_bench, last_k"] = training(last_block).train_once
        ways["retrieval_bench, last_k, features kept"] = training(last_block, one_view).train_once
        for name, peer in (("pytorch-metric-learning", metric_learning_trainer), ("timm's loop", timm_loop)):
            files = ImageFiles([table.root / table.paths[row] for row in rows], labels, image_size, model)
            ways[f"{name}, {workers} workers"] = peer(copy.deepcopy(model), config, classes, files, workers)
    else:
        ways |= reading_ways(batches, decoded, rows, workers)
    print(
        f"{backbone}, {image_size} px, batches of {batch_size}, {steps} steps a round, {precision}"
        f"{', frozen norms' if freeze_bn else ''}; {opening}"
    )
    print(report(timed(ways, rounds, where, warm_up=1), where, steps * batch_size))


if __name__ == "__main__":
    command_line(main)
