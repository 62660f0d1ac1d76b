"""LP-FT: linear probing, then fine-tuning: the head is trained on frozen features first, then everything.

Kumar, Raghunathan, Jones, Ma and Liang, Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution (ICLR 2022, arXiv 2202.10054). While a random head learns, its gradients change features of the
training data and leave others as they were, which distorts them; with a head that fits already (their theorem, for two
linear layers) features hardly move. The head here is what is new: the loss's proxies or classifier and the embedding
layer. In the first ``probe_epochs`` the whole backbone is frozen, norms and statistics too; with ``--views`` its
features are computed once. Then everything is trained from that head, as in the paper.

Deviations: the paper trains each phase with a schedule and rates of its own, the head until it has converged (its
learning rate for fine-tuning is mostly the smaller one); here both phases are at the rates of the run, ``--loss-lr``
for proxies, ``--lr`` for the rest, under one ``--schedule``, and the optimiser's state of the head is kept. One epoch
is this suite's choice, for trainings of a few.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_bench.errors import UserError
from retrieval_bench.strategies.base import EpochState, Look, Strategy, TrainOnce, option
from retrieval_bench.strategies.gradual_unfreezing import train_only


class LPFT(Strategy):
    """Works on any backbone. Raises :class:`UserError` if neither the loss nor the embedder has anything new to
    train."""

    look = Look("#b46090", "h")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        probe_epochs: int = option(1, "first epochs, in which the backbone is frozen", low=1)

        @property
        def epochs_needed(self) -> int:
            return self.probe_epochs + 1

        @property
        def in_phases(self) -> bool:
            return True

    options: Options

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        new = (*state.criterion.parameters(), *state.model.embedding.parameters())
        if not any(parameter.requires_grad for parameter in new):
            raise UserError(
                "lp_ft trains an embedding layer or the loss's proxies first, and there are neither: give "
                "--embedding-dim, or a --loss with proxies"
            )

    def run_epoch(self, train_once: TrainOnce, state: EpochState) -> float:
        is_probing = state.epoch < self.options.probe_epochs
        train_only(state, () if is_probing else [block.name for block in state.model.backbone.blocks])
        return train_once()
