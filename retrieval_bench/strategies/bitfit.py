"""BitFit: only the biases are trained, with what is new: embedding layer and loss.

Ben Zaken, Goldberg and Ravfogel, BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models (ACL 2022, arXiv 2106.10199). All bias terms count, those of norms too (the paper's 0.1 % of BERT); the
paper searches rates from 1e-4 to 1e-2, well above those that suit whole networks, so raise ``--lr``.

Convolutional networks have their biases in batch norms, which ``--freeze-bn`` (the default) keeps as pretrained: there
BitFit needs ``--no-freeze-bn``, and is refused without, since nothing would train. A norm whose bias is trained uses
the statistics of the batch and updates the running ones, unless ``--keep-statistics`` is given too. Deviation: the
paper is about transformers, where no statistic moves; any backbone with biases will do here. In a chain, what other
parts freeze stays frozen.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.embedder import BatchNorm, Embedder
from retrieval_bench.strategies.base import Look, Strategy


def freeze_other_parameters(model: Embedder, strategy: str, is_kept: Callable[[nn.Module, str], bool]) -> None:
    """Freezes all of the backbone but the parameters for which ``is_kept(module, name)`` holds.

    Raises:
        UserError: nothing would train, with the way out where it is the batch norms that are frozen.
    """
    for module in model.backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(parameter.requires_grad and is_kept(module, name))
    if any(parameter.requires_grad for parameter in model.backbone.parameters()):
        return
    has_norms = any(isinstance(module, BatchNorm) for module in model.modules())
    way_out = "; batch norms are frozen: add --no-freeze-bn" if has_norms else ""
    raise UserError(f"{strategy} would train nothing of this backbone{way_out}")


class BitFit(Strategy):
    """Trains the biases. Raises :class:`UserError` if the backbone has none that are trained."""

    look = Look("#843ce4", ">")

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        freeze_other_parameters(model, "bitfit", lambda module, name: name.endswith("bias"))
        return model
