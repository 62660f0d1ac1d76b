"""L2-SP: weight decay towards the pretrained weights instead of towards zero.

Xuhong, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning with Convolutional Networks (ICML 2018,
arXiv 1802.01483): the loss gets ``alpha / 2 |w_S - w_S0|^2 + beta / 2 |w_new|^2``, w_S the weights that come from
pretraining, w_S0 their start, w_new those of new layers. A baseline of SpotTune's table. beta 0.01 and alpha 0.1 are
the values that are usually given for it.

Deviations: w_S are all trained parameters of the backbone, scale and shift of batch norms among them where they are
trained; w_new is the embedding layer, while the loss's own parameters have ``--loss-weight-decay``. The optimiser's
weight decay of backbone and embedding is put to 0, since this takes its place. Combined with ``layer_pruning`` only the
blocks that are left are held, combined with ``spottune`` the tuned copies; ``progressive``'s adapters are new and not
held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, ParameterGroup, Range, Strategy, option

ALPHA = Range(1e-3, 1.0, log=True)
BETA = Range(1e-4, 0.1, log=True)


class L2SP(Strategy):
    """Adds the regularization to every step."""

    look = Look("#6090fc", "P")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        alpha: float = option(0.1, "weight of the squared distance to the pretrained weights", low=0, search=ALPHA)
        beta: float = option(0.01, "weight of the squared norm of the embedding layer", low=0, search=BETA)

    options: Options

    def __init__(self, options: Options | None = None):
        super().__init__(options)
        self._distance = 0.0
        self._resumed: dict[str, Tensor] = {}

    def parameter_groups(self, model: Embedder, groups: list[ParameterGroup]) -> list[ParameterGroup]:
        # here and not in prepare, so that blocks that other strategies made are held too
        trained = [(name, value) for name, value in model.backbone.net.named_parameters() if value.requires_grad]
        held = {name: value for name, value in trained if ".adapter." not in name}
        start = {name.removeprefix("net."): value for name, value in model.backbone.start.items()} | self._resumed
        self._start = {
            name: start.get(name, value).detach().to(value.device, copy=True) for name, value in held.items()
        }
        self._held = [(value, self._start[name]) for name, value in held.items()]
        return [group if group["name"] in ("loss", "policy") else {**group, "weight_decay": 0.0} for group in groups]

    def regularization(self, model: Embedder, images: Tensor) -> Tensor:
        new = [parameter.square().sum() for parameter in model.embedding.parameters()]
        return sum(new, 0.0) * self.options.beta / 2 + self._squared_distance() * self.options.alpha / 2

    def finalize(self, model: Embedder) -> Embedder:
        self._distance = float(self._squared_distance().detach()) ** 0.5
        return model

    def state_dict(self) -> dict[str, Any]:
        return self._start

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._resumed = state

    def info(self) -> dict[str, Any]:
        return {"distance_to_start": self._distance}

    def _squared_distance(self) -> Tensor:
        return sum(((now - start).square().sum() for now, start in self._held), torch.zeros(()))
