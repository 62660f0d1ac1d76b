"""Channel pruning to a budget: the least important channels of the backbone are removed before fine-tuning.

Scores per channel, the highest stay, with one threshold for all layers unless said otherwise:

- ``magnitude``: L2 norm of the channel's kernel over the layer's mean norm (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017,
  with the L2 norm, scaled so that layers can be compared);
- ``bn_scale``: absolute scale of the batch norm behind the channel (Liu et al., Network Slimming, ICCV 2017, without its training);
- ``uniform``: by magnitude within each layer, the same share of every layer.

Inner widths only: residual sums and the feature keep their size (``retrieval_bench.models.channels``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retrieval_bench.strategies.base import Categorical, Look, Strategy, option

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval_bench.models.backbone import Backbone
    from retrieval_bench.models.budget import Budget
    from retrieval_bench.models.channels import Channels
    from retrieval_bench.models.embedder import Embedder

SCORES = ("magnitude", "bn_scale", "uniform")
Scores = dict[str, list[float]]


class BudgetedPruning(Strategy):
    """What strategies that prune channels to a budget share.

    Raises :class:`UserError` for a backbone without prunable channels and for a budget that cannot be met.
    """

    prunes = True

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        budget: float = option(0.5, "share of the backbone's cost that is left", above=0, high=1, shown=True)
        unit: str = option("macs", "what the budget counts: macs or parameters", choices=("macs", "parameters"))
        minimum: float = option(0.1, "smallest share of each layer's channels", low=0, high=1)
        multiple: int = option(1, "widths are multiples of this, such as 8", low=1)

    options: Any

    def find(self, model: Embedder, example_images: Tensor) -> Channels:
        """The free widths of the model's backbone, once the options have been found sensible."""
        from retrieval_bench.models.channels import find_channels

        options = self.options
        self._side = example_images.shape[-1]
        channels = find_channels(model.backbone, self._side)
        self._full = channels.full
        self._whole = channels.macs(channels.full) if options.unit == "macs" else channels.parameters(channels.full)
        return channels

    def choose(self, channels: Channels, scores: Scores) -> Budget:
        """The channels that stay within the budget, by their scores."""
        from retrieval_bench.models.budget import choose_channels

        options = self.options
        return choose_channels(
            channels, scores, options.budget, options.unit, options.minimum, options.multiple, self._whole
        )

    def remove(self, backbone: Backbone, chosen: Budget) -> None:
        """Removes the other channels, and takes note of what was reached."""
        from retrieval_bench.models.channels import remove_channels

        remove_channels(backbone, chosen.keep, self._side)
        self._keep = chosen.keep
        self._facts = {
            "widths": chosen.widths,
            "full_widths": self._full,
            "reached": round(chosen.reached, 6),
            "error": round(chosen.error, 6),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self._keep, "facts": self._facts}

    def info(self) -> dict[str, Any]:
        return self._facts


class ChannelPruning(BudgetedPruning):
    """Prunes once, before training."""

    look = Look("#249cc0", "^")

    @dataclass(frozen=True)
    class Options(BudgetedPruning.Options):
        scores: str = option(
            "magnitude",
            "how channels are ranked: magnitude, bn_scale or uniform",
            choices=SCORES,
            search=Categorical(SCORES),
        )

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        channels = self.find(model, example_images)
        self.remove(
            model.backbone, self.choose(channels, channel_scores(model.backbone, channels, self.options.scores))
        )
        return model


def channel_scores(backbone: Backbone, channels: Channels, way: str) -> Scores:
    """Importance of each channel by the width's name, in one of the :data:`SCORES`."""
    scores: Scores = {}
    for width in channels.widths:
        if way == "bn_scale":
            values: Any = backbone.net.get_submodule(width.norms[0]).weight.abs()  # pyright: ignore[reportCallIssue]
        else:
            kernel: Any = backbone.net.get_submodule(width.name).weight
            values = kernel.detach().flatten(1).norm(dim=1)
            values = values / values.mean().clamp(min=1e-12)
        if way == "uniform":  # the rank within the layer, from 0 to 1, so that one threshold takes one share of each
            values = values.argsort().argsort().double() / len(values)
        scores[width.name] = values.detach().tolist()
    return scores
