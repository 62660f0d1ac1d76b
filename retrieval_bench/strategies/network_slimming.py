"""Network Slimming: the scales of batch norms are driven towards zero in training, and the channels with the smallest ones removed.

Liu, Li, Shen, Huang, Yan and Zhang, Learning Efficient Convolutional Networks through Network Slimming (ICCV 2017, arXiv 1708.06519)::

    L = task + strength sum |gamma|        over the scales of all prunable batch norms

for ``sparse_epochs`` passes of ordinary training; then one threshold over all layers decides, and the smaller network is fine-tuned for
``--epochs`` with the weights it has. With ``--epochs 0`` only the structure is of interest, as in the similarity experiment of Pruning from
Scratch (Wang et al., AAAI 2020), which prunes after several lengths of training.

Defaults: strength 1e-4 as in the paper. Deviations: a budget of the cost in place of a share of the channels; inner widths only
(``retrieval_bench.models.channels``), scored by the scale of the first norm behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import EpochState, Look, Range, TrainOnce, option
from retrieval_bench.strategies.channel_pruning import BudgetedPruning, channel_scores

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.embedder import Embedder


class NetworkSlimming(BudgetedPruning):
    """Trains with the penalty, then prunes. Raises :class:`UserError` for options that cannot work."""

    look = Look("#fc486c", "X")
    rebuilds_blocks = True

    @dataclass(frozen=True)
    class Options(BudgetedPruning.Options):
        strength: float = option(
            1e-4, "weight of the sum of absolute scales", low=0, search=Range(1e-5, 1e-3, log=True)
        )
        sparse_epochs: int = option(2, "passes over the training images before pruning", low=0)

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        from retrieval_bench.models.embedder import trains_batch_norms

        if not trains_batch_norms(model):
            raise UserError("network_slimming trains the scales of batch norms, which are frozen: add --no-freeze-bn")
        self._channels = self.find(model, example_images)
        self._norms = [model.backbone.net.get_submodule(width.norms[0]) for width in self._channels.widths]
        self._searching = True
        return model

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        if not self._searching:
            return None
        import torch

        return self.options.strength * torch.cat([norm.weight.abs() for norm in self._norms]).sum()  # pyright: ignore[reportCallIssue,reportArgumentType]

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        for number in range(self.options.sparse_epochs):
            train_once(-1 - number)
        self._searching = False
        backbone = state.model.backbone
        self.remove(backbone, self.choose(self._channels, channel_scores(backbone, self._channels, "bn_scale")))
        state.rebuild()

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        from retrieval_bench.models.channels import remove_channels

        self._searching = False
        remove_channels(model.backbone, state["keep"], self._side)
        self._keep, self._facts = state["keep"], state["facts"]
