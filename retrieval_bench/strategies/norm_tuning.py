"""Norm tuning: only scale and shift of the norms are trained, with what is new: embedding layer and loss.

Frankle, Schwab and Morcos, Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs
(ICLR 2021, arXiv 2003.00152): ``gamma x + beta`` of every batch norm is trained, all else is kept. Deviations: the
paper keeps random features, here they are pretrained; layer norms, group norms and RMS norms count too, so that it also
works on transformers.

It is the reverse of ``--freeze-bn`` (the default), which trains all but the batch norms: on a network that has no other
norms it needs ``--no-freeze-bn``, and is refused without, since nothing would train. A batch norm that is trained uses
the statistics of the batch and updates the running ones, as in the paper; so the network changes even where scale and
shift move little, unless ``--keep-statistics`` is given too. Rates above those for whole networks suit it: raise
``--lr``. In a chain, what other parts freeze stays frozen.
"""

from __future__ import annotations

from torch import Tensor, nn

from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, Strategy
from retrieval_bench.strategies.bitfit import freeze_other_parameters


class NormTuning(Strategy):
    """Trains the norms. Raises :class:`UserError` if the backbone has none that are trained."""

    look = Look("#cc18a8", "d")

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        freeze_other_parameters(model, "norm_tuning", lambda module, _: is_norm(module))
        return model


def is_norm(module: nn.Module) -> bool:
    """Whether this is a norm, by its class's name, since timm has many of its own, and its parameters: scale and shift,
    one number per channel."""
    own = dict(module.named_parameters(recurse=False))
    return (
        "norm" in type(module).__name__.lower()
        and own.keys() <= {"weight", "bias"}
        and all(parameter.ndim == 1 for parameter in own.values())
    )
