"""A training without gradients, in which the moves of each block are given: AutoLR's rules as plain arithmetic."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from retrieval_bench.errors import Diverged
from retrieval_bench.models.backbone import Backbone, Block
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.autolr import AutoLR

Gradients = Callable[[int, int], Sequence[float]]
"""From (epoch, number of the pass) to what block k moves by per unit of its rate; NaN for a pass that diverges."""


class LinearState:
    """In a pass, the only weight of block k moves by its rate times a given number."""

    def __init__(self, gradients: Gradients, count: int, rate: float = 0.001):
        net = nn.Sequential(nn.Conv2d(1, 1, 1), *(nn.Conv2d(1, 1, 1, bias=False) for _ in range(count + 1))).double()
        body = (Block(str(index), (str(index),)) for index in range(1, count + 1))
        blocks = (Block("stem", ("0",)), *body, Block("tail", (str(count + 1),)))
        self.model = Embedder(Backbone(net, blocks, (0.5,), (0.5,), 1))
        self.criterion: nn.Module = nn.Linear(1, 1)
        groups = [{"params": self.model.backbone.block_parameters(block), "name": block.name} for block in blocks]
        groups.append({"params": list(self.criterion.parameters()), "name": "loss"})
        self.optimizer: Any = torch.optim.SGD(groups, lr=0.0)
        self.rate = {group["name"]: rate for group in groups}
        self.gradients = gradients
        self.epoch = 0
        self.epochs = 1
        self.attempts: list[list[int]] = []
        self.passes = 0

    def snapshot(self) -> dict[str, Any]:
        return {"model": copy.deepcopy(self.model.state_dict()), "rates": dict(self.rate)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        self.model.load_state_dict(snapshot["model"])
        self.rate = dict(snapshot["rates"])

    def rebuild(self) -> None:
        raise NotImplementedError

    def holding_out(self, share: float) -> Any:
        raise NotImplementedError

    def lrs(self) -> dict[str, float]:
        return dict(self.rate)

    def set_lrs(self, rates: dict[str, float]) -> None:
        assert rates.keys() <= self.rate.keys()
        self.rate |= rates

    def train_once(self, attempt: int = 0) -> float:
        self.attempts[-1].append(attempt)
        moves = self.gradients(self.epoch, self.passes)
        self.passes += 1
        if any(math.isnan(move) for move in moves):
            raise Diverged("the loss became nan")
        with torch.no_grad():
            for block, move in zip(self.model.backbone.body, moves, strict=True):
                for parameter in self.model.backbone.block_parameters(block):
                    parameter += self.rate[block.name] * move
        return 1.0

    def run(self, strategy: AutoLR, epochs: int) -> dict[str, Any]:
        strategy.prepare(self.model, torch.zeros(1))
        for self.epoch in range(epochs):
            self.attempts.append([])
            strategy.run_epoch(self.train_once, self)
        return strategy.info()
