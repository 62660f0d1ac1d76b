"""Channel gates: a factor per channel behind a batch norm, before the activation (Wang et al., Pruning from Scratch, AAAI 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.channels import Keep, Width


class _Scaled(nn.Module):
    """Parametrisation of a norm's scale or shift: the gate's multiple of it. The gate is not registered here, so that a norm with frozen
    parameters counts as frozen and keeps its statistics."""

    def __init__(self, gate: nn.Parameter):
        super().__init__()
        self._gate = [gate]

    def forward(self, value: Tensor) -> Tensor:
        return value * self._gate[0]


class Gates(nn.ParameterList):
    """A gate per channel of each width, float (channels,), all 1 at the start, which changes nothing.

    Args:
        net: its norms are parametrised; a width's gate acts on its first norm.
        widths: what is gated.
    """

    def __init__(self, net: nn.Module, widths: Iterable[Width]):
        self.widths = tuple(widths)
        super().__init__(
            nn.Parameter(torch.ones(width.channels, device=_norm(net, width).weight.device)) for width in self.widths
        )
        for width, gate in zip(self.widths, self, strict=True):
            for part in ("weight", "bias"):
                parametrize.register_parametrization(_norm(net, width), part, _Scaled(gate))

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
        """A block in which the gates of all channels but those that are kept are zero."""
        scores = self.scores()
        closed = {
            name: [gate if index in kept else 0.0 for index, gate in enumerate(scores[name])]
            for name, kept in keep.items()
        }
        self.load({**scores, **closed})
        try:
            yield
        finally:
            self.load(scores)

    def mean(self) -> Tensor:
        """Mean absolute gate over all channels of all widths, a scalar with gradient."""
        return torch.cat([gate.abs() for gate in self]).mean()

    @torch.no_grad()
    def clamp(self) -> None:
        """Puts every gate back into 0..1."""
        for gate in self:
            gate.clamp_(0, 1)

    def fold(self, net: nn.Module) -> None:
        """Multiplies the gates into the norms for good; plain norms are left."""
        self._remove(net, keep_gates=True)

    def discard(self, net: nn.Module) -> None:
        """Takes the gates away; the norms are as they were before."""
        self._remove(net, keep_gates=False)

    def _remove(self, net: nn.Module, keep_gates: bool) -> None:
        for width in self.widths:
            for part in ("weight", "bias"):
                parametrize.remove_parametrizations(_norm(net, width), part, leave_parametrized=keep_gates)


def _norm(net: nn.Module, width: Width) -> nn.modules.batchnorm._BatchNorm:
    norm = net.get_submodule(width.norms[0])
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return norm


def initialise(backbone: Backbone, probe: Tensor | None = None) -> None:
    """Draws all weights anew from torch's global generator: He's normal distribution for convolutions (fan out), norms 1 and 0.

    Args:
        backbone: is changed.
        probe: images whose statistics batch norms get; without, mean 0 and variance 1.
    """
    for module in backbone.net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
    if probe is None:
        return
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the average of what is seen
    with torch.no_grad():
        backbone.train()(probe)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    backbone.eval()
