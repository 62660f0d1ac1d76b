"""WiSE-FT: the finished weights lie between the pretrained and the tuned ones.

Wortsman et al., Robust Fine-tuning of Zero-shot Models (CVPR 2022, arXiv 2109.01903)::

    theta = (1 - alpha) theta_pretrained + alpha theta_tuned

after an ordinary training. ``alpha auto`` chooses among 0, 0.1 ... 1 on classes that the choice's own training has not
seen: a first training of all epochs leaves out ``held_out`` of the training classes, every alpha is scored on them by
Recall@1, and the best is kept, of equal ones the smaller, which is nearer to the pretrained weights. Then everything is
put back and trained anew with all classes. So auto costs about two trainings and one pass over the held-out images per
alpha, all counted, where a choice by candidates would cost a training per alpha. A number costs one training; the paper
takes 0.5 where there is nothing to choose on. The whole curve is measured after the training as the evaluation modes
``alpha=0`` to ``alpha=1``.

Interpolated are all parameters of the backbone and its buffers of floats, such as statistics of batch norms that train.
Embedding layer and loss have no pretrained weights: they stay as tuned (the paper interpolates with the classifier that
text gives), so with ``--embedding-dim`` alpha 0 is a tuned layer on pretrained features. In a chain the pretrained
weights are those of what is left of the network, modules that other parts add start at what they were drawn as, and the
first training makes plain passes where another part decides how an epoch is run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.embedder import Embedder, exchanged, floats_of
from retrieval_bench.progress import logger
from retrieval_bench.strategies.base import EpochState, Look, ParameterGroup, Strategy, TrainOnce, option

SHARES = [number / 10 for number in range(11)]


class WiseFT(Strategy):
    """Interpolates at the end. Raises :class:`UserError` for an alpha that is none."""

    look = Look("#4848fc", "h")
    averages = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        alpha: str = option(
            "auto", "share of the tuned weights, 0 to 1; auto chooses it on held-out training classes", shown=True
        )
        held_out: float = option(
            0.2, "auto: share of the training classes that the choice is made on", above=0, below=1
        )

        def check(self) -> None:
            try:
                is_share = self.alpha == "auto" or 0 <= float(self.alpha) <= 1
            except ValueError:
                is_share = False
            if not is_share:
                raise UserError(f"--wise-ft.alpha {self.alpha}: must be auto, or a number from 0 to 1")

    options: Options

    def __init__(self, options: Options | None = None):
        super().__init__(options)
        self._start: dict[str, Tensor] = {}
        self._recalls: list[float] = []
        self._alpha = 1.0 if self.options.alpha == "auto" else float(self.options.alpha)

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        # here and not in prepare, so that it also holds for modules that other strategies made
        if not self._start:
            start = {**floats_of(model.backbone.net, "net."), **model.backbone.start}
            self._start = {name: start[name].detach().clone() for name in floats_of(model.backbone.net, "net.")}
        return groups

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        if self.options.alpha != "auto":
            return
        share = self.options.held_out
        logger.info(f"wise_ft: a first training, without {share:.0%} of the classes, chooses alpha")
        before, backbone = state.snapshot(), state.model.backbone
        with state.holding_out(share) as recall_at_1:
            for epoch in range(state.epochs):
                state.epoch = epoch  # and no negative attempt, so that the rates follow the schedule
                train_once(1)
            tuned = self._copy(backbone)
            for alpha in SHARES:
                with exchanged(backbone, self._between(tuned, alpha)):
                    self._recalls.append(recall_at_1())
        state.epoch = 0
        state.restore(before)
        self._alpha = SHARES[self._recalls.index(max(self._recalls))]
        logger.info(f"wise_ft: alpha {self._alpha:g}, Recall@1 {100 * max(self._recalls):.2f} on held-out classes")

    def _copy(self, backbone: Backbone) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in floats_of(backbone.net, "net.").items()}

    def _between(self, tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
        return {name: self._start[name].to(value.device).lerp(value, alpha) for name, value in tuned.items()}

    def finalize(self, model: Embedder) -> Embedder:
        self._tuned = self._copy(model.backbone)
        model.backbone.load_state_dict(self._between(self._tuned, self._alpha), strict=False)
        return model

    def eval_modes(self, model: Embedder) -> Iterator[tuple[str, Embedder]]:
        if not self._tuned.keys() <= model.backbone.state_dict().keys():
            logger.info("wise_ft: the curve is not measured, since blocks were replaced after the training")
            return
        for alpha in SHARES:
            with exchanged(model.backbone, self._between(self._tuned, alpha)):
                yield f"alpha={alpha:g}", model

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "recalls": self._recalls, "alpha": self._alpha}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._start, self._recalls, self._alpha = state["start"], state["recalls"], state["alpha"]

    def info(self) -> dict[str, Any]:
        chosen = dict(zip(map(str, SHARES), self._recalls, strict=False))
        return {"alpha": self._alpha, **({"held_out_recall_at_1": chosen} if chosen else {})}
