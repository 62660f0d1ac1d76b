"""Gates: a trainable factor per channel, from which the importance of channels is learned; and weights drawn anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.embedder import BatchNorm, batch_norm_momentum
from retrieval_bench.models.pruning import Keep, Width


class _Gated(nn.Module):
    """Parametrisation of a norm's scale or shift: the gate's multiple of it. The gate is not registered here, so that a
    norm with frozen parameters counts as frozen and keeps its statistics."""

    def __init__(self, gate: nn.Parameter):
        super().__init__()
        self._gate = [gate]

    def forward(self, value: Tensor) -> Tensor:
        return value * self._gate[0]


class Gates(nn.ParameterList):
    """A gate per channel of each width, float (channels,), all 1 at the start, which changes nothing; it acts on one
    norm of its width, the ``first`` or ``last``, which is parametrised (Wang et al., Pruning from Scratch, AAAI 2020).

    A closed gate at the last norm does what removing its channel does; at the first of several, later ones shift it.
    """

    def __init__(self, net: nn.Module, widths: Iterable[Width], which: str = "first"):
        self.widths, self._which = tuple(widths), which
        norms: list[Any] = [net.get_submodule(width.norm(which)) for width in self.widths]
        super().__init__(nn.Parameter(torch.ones_like(norm.weight)) for norm in norms)
        for norm, gate in zip(norms, self, strict=True):
            for name in ("weight", "bias"):
                parametrize.register_parametrization(norm, name, _Gated(gate))

    def scores(self) -> dict[str, list[float]]:
        """The gates by the width's name."""
        return {width.name: gate.detach().tolist() for width, gate in zip(self.widths, self, strict=True)}

    @torch.no_grad()
    def load(self, scores: Mapping[str, Sequence[float]]) -> None:
        """Puts back gates that :meth:`scores` gave."""
        for width, gate in zip(self.widths, self, strict=True):
            gate.copy_(torch.tensor(scores[width.name]))

    @contextmanager
    def only(self, keep: Keep) -> Iterator[None]:
        """A context in which the gates of all channels but the kept ones are zero."""
        before = self.scores()
        closed = {
            name: [gate if index in kept else 0.0 for index, gate in enumerate(before[name])]
            for name, kept in keep.items()
        }
        self.load({**before, **closed})
        try:
            yield
        finally:
            self.load(before)

    def mean(self) -> Tensor:
        """Mean absolute gate over all channels of all widths, a scalar with gradient."""
        return torch.cat([gate.abs() for gate in self]).mean()

    @torch.no_grad()
    def clamp(self) -> None:
        """Puts every gate back into 0..1."""
        for gate in self:
            gate.clamp_(0, 1)

    def remove(self, net: nn.Module, fold: bool) -> None:
        """Leaves plain norms in `net`: with the gates multiplied into them (`fold`), or as they were before."""
        for width in self.widths:
            for name in ("weight", "bias"):
                parametrize.remove_parametrizations(
                    net.get_submodule(width.norm(self._which)), name, leave_parametrized=fold
                )


def initialise(backbone: Backbone, example_images: Tensor | None = None) -> None:
    """Draws all weights from torch's global generator: He's normal distribution for convolutions (fan out), norms 1, 0.
    Batch norms get the statistics of `example_images`; without, mean 0 and variance 1."""
    for module in backbone.net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | BatchNorm):
            module.reset_parameters()
    if example_images is None:
        return
    with batch_norm_momentum(backbone, None), torch.no_grad():
        backbone.train()(example_images)
    backbone.eval()


def live_norms(backbone: Backbone) -> list[RemovableHandle]:
    """Hooks by which batch norms with frozen parameters are in train mode whenever the backbone is."""

    def follow(norm: nn.Module, _: Any) -> None:
        norm.training = backbone.training

    norms = [module for module in backbone.net.modules() if isinstance(module, BatchNorm)]
    return [norm.register_forward_pre_hook(follow) for norm in norms]
