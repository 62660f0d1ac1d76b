"""Channel pruning to a budget: the least important channels of the backbone are removed before fine-tuning.

Scores per channel, the highest stay, with one threshold for all layers unless said otherwise:

- ``magnitude``: L2 norm of the channel's kernel over the layer's mean norm (Li et al., Pruning Filters for Efficient
  ConvNets, ICLR 2017, with the L2 norm, scaled so that layers can be compared);
- ``bn_scale``: absolute scale of the batch norm behind the channel (Liu et al., Network Slimming, ICCV 2017, without
  its training);
- ``uniform``: by magnitude within each layer, the same share of every layer;
- ``random``: a random order;
- ``folded``: L2 norm of the kernel once its norm is folded into it;
- ``activation``: variance of the channel where the next layers receive it, times the squared L2 norm of their weights
  for it, as a share of the layer's sum: the share of what they give that varies with it; what removed channels give on
  average is put into the next norm by ``statistics mean``;
- ``snip``: |gradient times weight| of the training loss of one batch in eval mode, summed over the channel's kernel
  (Lee, Ajanthan and Torr, SNIP, ICLR 2019, there per weight and before any training).

``statistics matched`` sets every batch norm once after the cut, so that on training images its output before scale and
shift has the mean and deviation that it had in the whole network; ``mean`` puts back the mean only; ``stale`` leaves
them. Each pass over images for scores or statistics, :data:`EXAMPLES` of them, counts as cost.

``norm first`` is what was done before ``last`` could be chosen, and what the records of EfficientNet-lite0 have: in
depthwise networks a closed gate then leaves what the second norm adds, so ``held_out`` scores another network than the
pruned one. After ``layer_pruning`` the budget is a share of what that leaves (``full_cost`` in the record).

Inner widths only: residual sums and the feature keep their size (``retrieval_bench.models.pruning``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.budget import Budget, choose_channels
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.pruning import Channels, Keep, find_channels, remove_channels
from retrieval_bench.models.statistics import input_moments, norm_outputs, restore_outputs
from retrieval_bench.strategies.base import Categorical, EpochState, Look, Strategy, TrainOnce, option

EXAMPLES = 1024
"""Training images at least that statistics are taken from, or all if there are fewer."""
SCORES = ("magnitude", "bn_scale", "uniform", "random", "folded", "activation", "snip")
Scores = dict[str, list[float]]
"""One per channel, by the width's name."""


class BudgetedPruning(Strategy):
    """What strategies that prune channels to a budget share; each calls :meth:`cut` in ``before_training``.

    Raises :class:`UserError` for a backbone without prunable channels and for a budget that cannot be met.
    """

    prunes = "channels"

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        budget: float = option(0.5, "share of the backbone's cost that is left", above=0, high=1, shown=True)
        unit: str = option("macs", "what the budget counts: macs or parameters", choices=("macs", "parameters"))
        minimum: float = option(0.1, "smallest share of each layer's channels", low=0, high=1)
        multiple: int = option(1, "widths are multiples of this, such as 8", low=1)
        statistics: str = option(
            "stale",
            "batch norms after the cut: stale, those of the whole network; mean and matched, set so that on training "
            "images their outputs have the mean, and matched also the deviation, that they had in the whole network",
            choices=("stale", "mean", "matched"),
        )
        norm: str = option(
            "first",
            "of several norms of a width, as in depthwise networks, that of gates, penalties, scales: first or last",
            choices=("first", "last"),
        )

    options: Any

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        self._channels = self.find_channels(model, example_images)
        self.refuse_budget()
        return model

    def refuse_budget(self) -> None:
        """Refuses, before a search, a budget that no choice can meet."""
        self.choose(self._channels, {width.name: [1.0] * width.channels for width in self._channels.widths})

    def find_channels(self, model: Embedder, example_images: Tensor) -> Channels:
        """The free widths of the model's backbone, whose full cost the budget is a share of."""
        self._image_size = example_images.shape[-1]
        channels = find_channels(model.backbone, self._image_size)
        self._full_widths = channels.full
        self._full_cost = (channels.macs if self.options.unit == "macs" else channels.parameters)(channels.full)
        return channels

    def choose(self, channels: Channels, scores: Scores) -> Budget:
        """The channels that stay within the budget, by their scores."""
        options = self.options
        return choose_channels(
            channels, scores, options.budget, options.unit, options.minimum, options.multiple, self._full_cost
        )

    def note_outputs(self, state: EpochState) -> None:
        """Notes what the norms of the whole network give, if they are to give it after the cut."""
        if self.options.statistics != "stale":
            self._outputs = norm_outputs(state.model.backbone, _images(state))

    def cut(self, state: EpochState, scores: Scores) -> None:
        """Prunes by `scores` and sets the statistics of norms as the options say."""
        self.prune_by(state.model, scores)
        if (statistics := self.options.statistics) != "stale":
            backbone, images = state.model.backbone, _images(state)
            restore_outputs(backbone, self._channels, self._keep, self._outputs, images, statistics == "matched")
        state.rebuild()

    def prune(self, model: Embedder, keep: Keep) -> None:
        """Removes all channels but those in `keep`."""
        remove_channels(model.backbone, keep, self._image_size)

    def prune_by(self, model: Embedder, scores: Scores) -> None:
        """Prunes to the budget by `scores`, for the record too."""
        chosen = self.choose(self._channels, scores)
        self.prune(model, chosen.keep)
        self._keep = chosen.keep
        self._info: dict[str, Any] = {
            "widths": chosen.widths,
            "full_widths": self._full_widths,
            "full_cost": self._full_cost,
            "reached": round(chosen.reached, 6),
            "error": round(chosen.error, 6),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self._keep, "facts": self._info}

    def load_state_dict(self, state: dict[str, Any], model: Embedder) -> None:
        self._keep, self._info = state["keep"], state["facts"]
        self.prune(model, self._keep)

    def info(self) -> dict[str, Any]:
        return self._info


class ChannelPruning(BudgetedPruning):
    """Prunes once, before training."""

    look = Look("#249cc0", "^")

    @dataclass(frozen=True)
    class Options(BudgetedPruning.Options):
        scores: str = option(
            "magnitude",
            "how channels are ranked: magnitude, bn_scale, uniform, random, folded, activation or snip",
            choices=SCORES,
            search=Categorical(SCORES[:3]),
        )

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        self.note_outputs(state)
        match self.options.scores:
            case "activation":
                scores = activation_scores(state.model.backbone, self._channels, _images(state))
            case "snip":
                scores = sensitivities(state, self._channels)
            case criterion:
                scores = channel_scores(state.model.backbone, self._channels, criterion, self.options.norm)
        self.cut(state, scores)


def _images(state: EpochState) -> Iterator[Tensor]:
    return (images for images, _ in state.example_batches(EXAMPLES))


def channel_scores(backbone: Backbone, channels: Channels, criterion: str, norm: str = "first") -> Scores:
    """Importance of each channel by a criterion in :data:`SCORES` that needs no images, with scales of the ``first`` or
    ``last`` `norm`; ``random`` draws from torch's global generator."""
    net: Any = backbone.net
    scores: Scores = {}
    for width in channels.widths:
        conv, first, scaled = map(net.get_submodule, (width.name, width.norms[0], width.norm(norm)))
        lengths = conv.weight.detach().flatten(1).norm(dim=1)
        values = lengths / lengths.mean().clamp(min=1e-12)
        match criterion:
            case "bn_scale":
                values = scaled.weight.abs()
            case "folded":
                values = lengths * first.weight.abs() / (first.running_var + first.eps).sqrt()
            case "random":
                values = torch.rand(width.channels)
            case "uniform":  # the rank within the layer: one threshold takes one share of each
                values = values.argsort().argsort().double() / len(values)
        scores[width.name] = values.detach().tolist()
    return scores


def activation_scores(backbone: Backbone, channels: Channels, batches: Iterable[Tensor]) -> Scores:
    """Variance of each channel where layers receive it, on the images of `batches`, times the squared L2 norm of their
    weights for it, as a share of the sum over the layer."""
    readers = [layer for layer in channels.layers if isinstance(layer.inputs, str) and not layer.depthwise]
    moments = input_moments(backbone, [layer.name for layer in readers], batches)
    squares = {width.name: torch.zeros(width.channels, dtype=torch.float64) for width in channels.widths}
    for layer in readers:
        module: Any = backbone.net.get_submodule(layer.name)
        columns = module.weight.detach().double().transpose(0, 1).flatten(1).square().sum(dim=1)
        squares[str(layer.inputs)] += (moments[layer.name][1] * columns).cpu()
    return {name: (values / values.sum().clamp(min=1e-12)).tolist() for name, values in squares.items()}


def sensitivities(state: EpochState, channels: Channels) -> Scores:
    """Sum over each channel's kernel of |gradient times weight|, the gradient that of the training loss of a batch."""
    images, labels = next(state.example_batches(1))
    net: Any = state.model.backbone.net
    weights = [net.get_submodule(width.name).weight for width in channels.widths]
    gradients = torch.autograd.grad(state.criterion(state.model.eval()(images), labels), weights)
    products = [(gradient * weight).abs() for gradient, weight in zip(gradients, weights, strict=True)]
    names = [width.name for width in channels.widths]
    return {name: each.flatten(1).sum(dim=1).tolist() for name, each in zip(names, products, strict=True)}
