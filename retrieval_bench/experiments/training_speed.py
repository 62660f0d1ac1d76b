"""How fast training is: ``python -m retrieval_bench.experiments.training_speed --dataset cub --data-root DIR``, on an idle machine.

Three ways, timed in turn in one process, ratios to the first:

- the bare step: forward, loss, backward and optimiser on a batch that is already there: what no loop can be faster than;
- the suite's own loop, with images from the decode-once cache, augmentation, schedule and strategy hooks;
- the trainer of pytorch-metric-learning (``MetricLossOnly``) with a DataLoader that decodes with PIL and augments with torchvision, as its
  examples do it: the same network, loss and optimiser, batches of the same size, in torch's own layout.
"""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from retrieval_bench.config import RunConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.table import ImageTable
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.timing import report, timed
from retrieval_bench.losses import build_criterion
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import ModelConfig, TrainConfig
from retrieval_bench.strategies.base import Strategy
from retrieval_bench.training.loop import Training


class Photographs(Dataset[tuple[Tensor, int]]):
    """Training images as a torchvision user would read them: float (3, S, S), normalised."""

    def __init__(self, table: ImageTable, rows: np.ndarray, labels: np.ndarray, size: int, model: Embedder):
        from torchvision import transforms

        mean, std = model.backbone.normalisation
        crop = transforms.RandomResizedCrop(size, scale=(0.2, 1.0))
        steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.view = transforms.Compose(steps)
        self.paths = [table.root / table.paths[row] for row in rows]
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            shown: Any = self.view(image.convert("RGB"))
        return shown, int(self.labels[index])


def training_ways(
    config: RunConfig, root: Path | None, device: str, steps: int, workers: int
) -> dict[str, Callable[[], object]]:
    """The ways, each of which makes `steps` steps.

    Raises:
        UserError: fewer training images than that.
    """
    data, size = config.data, config.train.batch_size
    table, split = open_dataset(data.dataset, root, data.split, classes=data.classes)
    if steps * size > len(split.train):
        raise UserError(
            f"{steps} batches of {size} need more than the {len(split.train)} training images of {data.dataset}"
        )
    rows, labels = split.train[: steps * size], split.train_labels(table.labels)[: steps * size]
    model = build_embedder(config.model, data.image_size).to(device)
    classes = len(split.train_classes)
    batches = Batches(
        table,
        rows,
        labels,
        data,
        workers,
        BatchSampler(labels, size, config.samples_per_class),
        cache=open_decode_cache(table, data.stored, 32),
        device=device,
    )

    def training() -> Training:
        return Training(
            copy.deepcopy(model), lambda dim: build_criterion(config.loss, classes, dim), batches, Strategy(), config
        )

    bare, loop = training(), training()
    batch = [part.to(device) for part in next(iter(batches))]

    def step() -> None:
        bare.optimizer.zero_grad(set_to_none=True)
        bare.criterion(bare.forward(batch[0]), batch[1]).backward()
        bare.optimizer.step()

    bare.model.train()
    for group in bare.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    peer = peer_trainer(
        copy.deepcopy(model), config, classes, Photographs(table, rows, labels, data.image_size, model), steps, workers
    )
    return {
        "bare step on a batch that is there": lambda: [step() for _ in range(steps)],
        "retrieval_bench": lambda: loop.train_once(),
        f"pytorch-metric-learning, {workers} workers": peer,
    }


def peer_trainer(
    model: Embedder, config: RunConfig, classes: int, images: Photographs, steps: int, workers: int
) -> Callable[[], object]:
    """One epoch of the trainer of pytorch-metric-learning."""
    from pytorch_metric_learning import trainers

    logging.getLogger("PML").setLevel(logging.ERROR)
    device = next(model.parameters()).device
    trunk = model.backbone.net.train()
    loss = build_criterion(config.loss, classes, model.dim).loss.to(device)
    train = config.train
    optimizer = torch.optim.AdamW(
        [*trunk.parameters(), *loss.parameters()], lr=train.lr, weight_decay=train.weight_decay
    )
    trainer: Any = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": optimizer},
        batch_size=train.batch_size,
        loss_funcs={"metric_loss": loss},
        dataset=images,
        data_device=device,
        iterations_per_epoch=steps,
        dataloader_num_workers=workers,
        freeze_these=(),
    )
    return lambda: trainer.train(num_epochs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="emoji_mini")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--stored", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    given = parser.parse_args()
    if min(given.rounds, given.steps, given.batch_size) < 1:
        parser.error("--rounds, --steps and --batch-size must be at least 1")
    torch.manual_seed(0)
    usual = RunConfig(model=ModelConfig(backbone=given.backbone, weights="none"))
    data = replace(usual.data, dataset=given.dataset, image_size=given.image_size, stored=given.stored, reader="cache")
    train = TrainConfig(
        batch_size=given.batch_size, precision=given.precision, freeze_bn=False, schedule="constant", epochs=1
    )
    try:
        device = resolve_device(given.device)
        config = replace(usual, data=data, train=train)
        ways = training_ways(config, given.data_root, device, given.steps, given.workers)
    except UserError as error:
        parser.error(str(error))
    timings = timed(ways, given.rounds, device, warm_up=1)
    print(
        f"{given.backbone}, {given.image_size} px, batches of {given.batch_size}, {given.steps} steps a round, {given.precision}"
    )
    print(f"{device}, {torch.get_num_threads()} threads")
    print(report(timings, given.steps * given.batch_size))


if __name__ == "__main__":
    main()
