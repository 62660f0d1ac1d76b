"""SpotTune Global-k: one choice of k fine-tuned blocks for all images, so that only k copies are deployed.

A variant in Guo et al., SpotTune (CVPR 2019, arXiv 1811.08737). With v_l the share of a batch's images that take the
tuned block l, two penalties join the task's loss (formulas from memory of the paper, their weights unknown there)::

    L_k = (sum_l v_l - k)^2          k blocks are tuned
    L_e = sum_l -v_l log v_l         each of them for all images or for none

Here: weights 0.1 and 0.1; the entropy counts both outcomes, ``-v log v - (1 - v) log(1 - v)``, since the one-sided form
pulls v to 0 from below 1/e and pushes it to 1 from above. The penalties need not succeed: after a share of the epochs
the k blocks with the highest rates (of equal rates, later blocks) are chosen, and the rest of the training runs with
them alone, without policy. ``finalize`` leaves a plain network: the k tuned blocks in the place of the pretrained ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import unroute
from retrieval_bench.progress import logger
from retrieval_bench.strategies.base import EpochState, Look, Range, option
from retrieval_bench.strategies.spottune import LearnedRouting

WEIGHTS = Range(0.01, 1.0, log=True)


class GlobalK(LearnedRouting):
    """All images take one route with k tuned blocks. Raises :class:`UserError` if the backbone has fewer than k."""

    look = Look("#c01884", "p")

    @dataclass(frozen=True)
    class Options(LearnedRouting.Options):
        k: int = option(3, "number of tuned blocks", low=1, search=Range(1, 6, blocks=True), shown=True)
        count_weight: float = option(
            0.1, "weight of the penalty on another number of tuned blocks than k", low=0, search=WEIGHTS
        )
        entropy_weight: float = option(
            0.1, "weight of the penalty on blocks that are tuned for some images only", low=0, search=WEIGHTS
        )
        decide_at: float = option(
            0.5,
            "share of the epochs after which the blocks are chosen, at least one epoch; the rest trains them alone",
            low=0,
            high=1,
        )

        @property
        def in_phases(self) -> bool:
            return True

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        count = len(model.backbone.body)
        if self.options.k > count > 0:
            raise UserError(f"--global-k.k {self.options.k}: the backbone has {count} blocks; choose 1 to {count}")
        return super().prepare(model, example_images)

    def regularization(self, model: Embedder, images: Tensor) -> Tensor | None:
        """lambda_1 L_k + lambda_2 L_e of this batch's decisions; None once the blocks are chosen."""
        decisions = self.backbone.decisions
        if self.router.fixed is not None or decisions is None:
            return None
        rates = decisions.mean(0)
        inside = rates.clamp(1e-6, 1 - 1e-6)
        entropy = -(inside * inside.log() + (1 - inside) * (1 - inside).log()).sum()
        return self.options.count_weight * (rates.sum() - self.options.k) ** 2 + self.options.entropy_weight * entropy

    def end_epoch(self, state: EpochState) -> None:
        if self.router.fixed is not None:
            return
        rates = self.router.statistics()["rate"]
        super().end_epoch(state)
        if state.epoch + 1 >= self.options.decide_at * state.epochs:
            self._choose(rates)
            logger.info(f"global_k: {', '.join(self._tuned)} are tuned from here on, the others frozen")

    def _choose(self, rates: list[float]) -> None:
        best = sorted(range(len(rates)), key=lambda block: (rates[block], block))[-self.options.k :]
        self.router.fixed = tuple(block in best for block in range(len(rates)))

    @property
    def _tuned(self) -> list[str]:
        return [name for name, is_tuned in zip(self.blocks, self.router.fixed or (), strict=False) if is_tuned]

    def finalize(self, model: Embedder) -> Embedder:
        if self.router.fixed is None:  # no epoch was trained
            self._choose([0.0] * len(self.blocks))
        deployed = copy.deepcopy(model)
        unroute(deployed, self.router.fixed or ())
        return deployed

    def info(self) -> dict[str, Any]:
        return {**super().info(), "tuned_blocks": self._tuned}
