"""The optimiser: one group of parameters per block, its update, and the schedule of the learning rates."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.sections import LossConfig, TrainConfig
from retrieval_bench.strategies.base import ParameterGroup

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


def parameter_groups(
    model: Embedder, criterion: nn.Module, train: TrainConfig, loss: LossConfig
) -> list[ParameterGroup]:
    """One group per block, then ``embedding`` (whatever of the model is in no block), then ``loss``; frozen parameters
    and empty groups are left out, every trainable parameter is in exactly one group."""
    seen: set[nn.Parameter] = set()

    def group(name: str, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> ParameterGroup:
        new = [parameter for parameter in parameters if parameter.requires_grad and parameter not in seen]
        seen.update(new)
        return {"name": name, "params": new, "lr": lr, "weight_decay": weight_decay}

    rates = {"embedding": train.lr * train.embedding_lr}
    parts = [(block.name, model.backbone.block_parameters(block)) for block in model.backbone.blocks]
    parts.append(("embedding", list(model.parameters())))
    groups = [group(name, parameters, rates.get(name, train.lr), train.weight_decay) for name, parameters in parts]
    groups.append(group("loss", list(criterion.parameters()), loss.loss_lr, loss.loss_weight_decay))
    return [entry for entry in groups if entry["params"]]


def build_optimizer(name: str, groups: list[ParameterGroup], fused: bool = False) -> torch.optim.Optimizer:
    """The optimiser over `groups` (which may be none); each group's rate before the schedule is kept as ``initial_lr``.

    With `fused`, and always on a GPU, all parameters are updated in one operation.
    """
    based: list[dict[str, Any]] = [{**group, "initial_lr": group["lr"]} for group in groups]
    fused = fused or (bool(groups) and all(parameter.is_cuda for group in groups for parameter in group["params"]))
    return OPTIMIZERS[name](based or [{"params": []}], lr=0.0, fused=fused or None)


def step_factor(train: TrainConfig, epoch: int, step: int, steps: int, epochs: int) -> float:
    """Factor on every learning rate at a step of so many per epoch, both from 0: that of the schedule over so many
    `epochs`, and in the first ``--warmup`` of them one that rises linearly and is 1 at their last step."""
    factor = schedule_factor(train, (epoch + step / steps) / epochs)
    return factor * min(1.0, (epoch + (step + 1) / steps) / train.warmup) if train.warmup else factor


def schedule_factor(train: TrainConfig, progress: float) -> float:
    """Factor on every learning rate at `progress` in 0..1 of the training.

    ``constant`` 1; ``cosine`` half a cosine from 1 to 0; ``step`` 1, then ``decay_factor``, then its square;
    ``warm_restarts`` (Loshchilov and Hutter, SGDR, ICLR 2017, equation 5) one half cosine per cycle; ``triangular``
    (Smith, Cyclical Learning Rates, WACV 2017) up and down once per cycle, from ``low_rate`` to 1 and back. Cycles are
    of equal length.
    """
    cycle = progress * train.cycles % 1
    span = 1 - train.low_rate
    match train.schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            decays = sum(progress >= start - 1e-9 for start in (train.decay_at, train.second_decay_at))
            return train.decay_factor**decays
        case "warm_restarts":
            return train.low_rate + span * 0.5 * (1 + math.cos(math.pi * cycle))
        case "triangular":
            return train.low_rate + span * (1 - abs(2 * cycle - 1))
        case _:
            return 1.0
