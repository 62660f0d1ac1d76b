"""Network Slimming: training drives the scales of batch norms to zero; channels with the smallest ones are removed.

Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through Network Slimming (ICCV 2017,
arXiv 1708.06519)::

    L = task + strength sum |gamma|        over the scales of all prunable batch norms

for ``sparse_epochs`` passes of ordinary training; then one threshold over all layers decides, and the smaller network
is fine-tuned for ``--epochs`` with the weights it has. With ``--epochs 0`` only the structure is of interest, as in the
similarity experiment of Pruning from Scratch (Wang et al., AAAI 2020), which prunes after several lengths of training.
In a chain, ``l2sp`` and ``rollback`` hold to the weights before the sparse training, of the channels that stay.

``search sgd`` is the paper's sparse training: SGD with momentum 0.9 at ``sgd_lr``, and the penalty on the scales of all
batch norms, so that a first step moves each by sgd_lr (gradient + weight decay gamma + strength sign gamma). AdamW,
the usual optimiser of a run, divides that by its own size: all scales fall by equal steps, and layers decide more than
channels.

Defaults: strength 1e-4 as in the paper. Deviations: a budget of the cost in place of a share of the channels; inner
widths only (``retrieval_bench.models.pruning``), scored by the scale of the
first norm behind them (``norm last``: the last).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import BatchNorm, Embedder, trains_batch_norms
from retrieval_bench.models.pruning import Keep
from retrieval_bench.strategies.base import EpochState, Look, Range, TrainOnce, option
from retrieval_bench.strategies.budgeted_pruning import BudgetedPruning
from retrieval_bench.strategies.channel_pruning import channel_scores

GROUP = ("name", "params", "lr", "initial_lr", "weight_decay")
"""What an optimiser's groups have whatever it is."""


class NetworkSlimming(BudgetedPruning):
    """Trains with the penalty, then prunes. Raises :class:`UserError` for options that cannot work."""

    rebuilds_blocks = True
    look = Look("#fc486c", "X")

    @dataclass(frozen=True)
    class Options(BudgetedPruning.Options):
        strength: float = option(
            1e-4, "weight of the sum of absolute scales", low=0, search=Range(1e-5, 1e-3, log=True)
        )
        sparse_epochs: int = option(2, "passes over the training images before pruning", low=0)
        search: str = option(
            "own",
            "the sparse training: own, with the run's optimiser; sgd, SGD at --network-slimming.sgd-lr with the "
            "penalty on all batch norms",
            choices=("own", "sgd"),
        )
        sgd_lr: float = option(0.1, "search sgd: learning rate of the network", low=0)
        schedule_epochs: int = option(
            0, "epochs that the run's schedule takes over the sparse training (0: at the full rate)", low=0
        )

        def check(self) -> None:
            super().check()
            if 0 < self.schedule_epochs < self.sparse_epochs:
                raise UserError(
                    f"--network-slimming.schedule-epochs {self.schedule_epochs}: fewer than "
                    f"--network-slimming.sparse-epochs {self.sparse_epochs}"
                )

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        if not trains_batch_norms(model):
            raise UserError("network_slimming trains the scales of batch norms, which are frozen: add --no-freeze-bn")
        super().prepare(model, example_images)
        names = [width.norm(self.options.norm) for width in self._channels.widths]
        self._norms: list[Any] = list(map(model.backbone.net.get_submodule, names))
        if self.options.search == "sgd":
            self._norms = [
                module for module in model.backbone.modules() if isinstance(module, BatchNorm) and module.affine
            ]
        return model

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        """The penalty on the scales, until the channels are pruned."""
        if not self._norms:
            return None
        return self.options.strength * torch.cat([norm.weight.abs() for norm in self._norms]).sum()

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        if self.options.search == "sgd":
            groups = [{name: group[name] for name in GROUP} for group in state.optimizer.param_groups]
            state.optimizer = SGD(groups, momentum=0.9)
            state.set_lrs({name: self.options.sgd_lr for name in state.lrs() if name != "loss"})
        self.train_whole(train_once, state, self.options.sparse_epochs, self.options.schedule_epochs)
        scores = channel_scores(state.model.backbone, self._channels, "bn_scale", self.options.norm)
        self.note_outputs(state)
        self.cut(state, scores)

    def prune(self, model: Embedder, keep: Keep) -> None:
        self._norms = []
        super().prune(model, keep)
