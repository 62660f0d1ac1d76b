"""How fast training is: ``python -m benchmarks.training_speed --dataset cub --data-root DIR``, on an idle machine.

Three ways, timed in turn in one process, ratios to the first:

- the bare step: forward, loss, backward and optimiser on a batch that is already there: what no loop can be faster
than;
- the package's own loop, with images from the decode-once cache, augmentation, schedule and strategy hooks;
- the trainer of pytorch-metric-learning (``MetricLossOnly``) with a DataLoader that decodes with PIL and augments with
torchvision, as
  its examples do it: the same network, loss and optimiser, batches of the same size, in torch's own layout.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pytorch_metric_learning import trainers
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks.timing import command_line, report, timed
from retrieval_bench.config import RunConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.losses import build_criterion
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig, TrainConfig
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.loop import Training


def bare_step(training: Training, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """One optimisation step of a training on a batch that is already there."""
    images, labels = images.to(training.device), labels.to(training.device)
    training.model.train()
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
        self.augment = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize])
        self.paths, self.labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            augmented: Any = self.augment(image.convert("RGB"))
        return augmented, int(self.labels[index])


def peer_epoch(
    model: Embedder, config: RunConfig, classes: int, images: ImageFiles, workers: int
) -> Callable[[], object]:
    """One epoch of the trainer of pytorch-metric-learning."""
    logging.getLogger("PML").setLevel(logging.ERROR)
    device, train = next(model.parameters()).device, config.train
    loss = build_criterion(config.loss, classes, model.dim).loss.to(device)
    parameters = [*model.backbone.net.parameters(), *loss.parameters()]
    trainer: Any = trainers.MetricLossOnly(
        models={"trunk": model.backbone.net.train()},
        optimizers={"trunk_optimizer": torch.optim.AdamW(parameters, train.lr, weight_decay=train.weight_decay)},
        batch_size=train.batch_size,
        loss_funcs={"metric_loss": loss},
        dataset=images,
        data_device=device,
        iterations_per_epoch=len(images) // train.batch_size,
        dataloader_num_workers=workers,
        freeze_these=(),
    )
    return lambda: trainer.train(num_epochs=1)


def main(
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
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Times training beside the bare step and beside another trainer; `steps` steps a round."""
    torch.manual_seed(0)
    usual, where = RunConfig(model=ModelConfig(backbone=backbone, weights="none")), resolve_device(device)
    data = replace(usual.data, dataset=dataset, image_size=image_size, stored=stored, reader="cache")
    train = TrainConfig(
        batch_size=batch_size, precision=precision, freeze_bn=False, schedule="constant", epochs=1, optimizer="adamw"
    )
    config = replace(usual, data=data, train=train)
    table, split = open_dataset(dataset, data_root, data.split)
    if not 1 <= steps * batch_size <= len(split.train):
        available = f"1 to {len(split.train)} images, which the training set has"
        raise UserError(f"--steps {steps} --batch-size {batch_size}: a round may have {available}")
    rows, labels = (each[: steps * batch_size] for each in (split.train, split.train_labels(table.labels)))
    sampler, decoded = BatchSampler(labels, batch_size, config.samples_per_class), open_decode_cache(table, stored, 32)
    batches = Batches(table, rows, labels, data, workers, sampler, cache=decoded, device=where)
    model, classes = build_embedder(config.model, image_size).to(where), len(split.train_classes)

    def training() -> Training:
        criterion = lambda dim: build_criterion(config.loss, classes, dim)  # noqa: E731
        return Training(copy.deepcopy(model), criterion, batches, Strategy(), config)

    step, loop = bare_step(training(), *next(iter(batches))), training()
    files = ImageFiles([table.root / table.paths[row] for row in rows], labels, image_size, model)
    ways = {
        "bare step on a batch that is there": lambda: [step() for _ in range(steps)],
        "retrieval_bench": lambda: loop.train_once(),
        f"pytorch-metric-learning, {workers} workers": peer_epoch(
            copy.deepcopy(model), config, classes, files, workers
        ),
    }
    print(f"{backbone}, {image_size} px, batches of {batch_size}, {steps} steps a round, {precision}")
    print(report(timed(ways, rounds, where, warm_up=1), where, steps * batch_size))


if __name__ == "__main__":
    command_line(main)
