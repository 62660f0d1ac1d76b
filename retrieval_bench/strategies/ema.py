"""EMA: training as it is, but an exponential moving average of the weights is deployed.

Polyak and Juditsky's averaging (1992) in the exponential form that Szegedy et al. (CVPR 2016, arXiv 1512.00567) and
later recipes use. After step t (from 0)::

    average <- d_t average + (1 - d_t) weights,   d_t = min(decay, (1 + t) / (10 + t))

which starts at the pretrained weights. The second term, TensorFlow's warm-up, lets the average follow short trainings:
it is below 0.9 for 80 steps and below 0.99 for 890; ``--no-ema.warm-up`` takes ``decay`` from the first step on. 0.999
is the smallest of the values that are usually given (to 0.9999, for trainings of 100,000 steps and more).

Averaged are all parameters of the network, the embedding layer's too, and its buffers of floats: statistics of batch
norms that train are averaged like weights and not measured anew. The loss's own parameters are not averaged: in a
closed set the classifier is the last one. The weights as trained are measured too, as the evaluation mode ``raw``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.models.embedder import Embedder, exchanged, floats_of
from retrieval_bench.progress import logger
from retrieval_bench.strategies.base import Look, ParameterGroup, Range, Strategy, option


class EMA(Strategy):
    """Averages the weights after each step."""

    look = Look("#9c9084", "8")
    averages = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        decay: float = option(
            0.999, "share of the average that each step leaves", low=0, below=1, search=Range(0.9, 0.999), shown=True
        )
        warm_up: bool = option(True, "begin with a smaller decay")

    options: Options

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        """Adds the average as buffers, so that what a rejected pass did to it is undone with it. Here and not in
        ``prepare``, so that modules that other parts of a chain add are averaged too."""
        now = floats_of(model)
        average = getattr(model, "average", None)
        if average is None or [value.shape for value in average.values] != [value.shape for value in now.values()]:
            model.average = Average(list(now.values()))
        return groups

    def after_step(self, model: Embedder) -> None:
        average: Any = model.average
        steps = average.steps
        largest = (1 + steps) / (10 + steps) if self.options.warm_up else torch.ones_like(steps)
        share = 1 - largest.clamp(max=self.options.decay)
        for mean, value in zip(average.values, floats_of(model).values(), strict=True):
            mean.lerp_(value, share.to(mean.dtype))
        steps += 1

    def finalize(self, model: Embedder) -> Embedder:
        average: Any = model.average
        del model.average
        self._raw = {name: value.clone() for name, value in floats_of(model).items()}
        model.load_state_dict(dict(zip(self._raw, average.values, strict=True)), strict=False)
        self._steps = int(average.steps)
        return model

    def eval_modes(self, model: Embedder) -> Iterator[tuple[str, Embedder]]:
        if not self._raw.keys() <= model.state_dict().keys():
            logger.info("ema: the raw weights are not measured, since blocks were replaced after the training")
            return
        with exchanged(model, self._raw):
            yield "raw", model

    def info(self) -> dict[str, Any]:
        return {"averaged_steps": self._steps}


class Average(nn.Module):
    """Copies of tensors as buffers, and how many steps they average."""

    steps: Tensor

    def __init__(self, values: list[Tensor]):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64, device=values[0].device))
        for number, value in enumerate(values):
            self.register_buffer(f"value_{number}", value.clone())

    @property
    def values(self) -> list[Tensor]:
        """Those of today: a change of layout or device makes others."""
        return [value for name, value in self.named_buffers() if name != "steps"]
