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

What all ways to prune channels share stands in ``strategies/budgeted_pruning.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.pruning import Channels
from retrieval_bench.models.statistics import input_moments
from retrieval_bench.strategies.base import Categorical, EpochState, Look, TrainOnce, option
from retrieval_bench.strategies.budgeted_pruning import BudgetedPruning, Scores, example_images

SCORES = ("magnitude", "bn_scale", "uniform", "random", "folded", "activation", "snip")


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

        def check(self) -> None:
            super().check()
            if self.ends and self.scores == "activation":
                raise UserError("--channel-pruning.scores activation: not with ends: no layer receives the feature")
            if self.regime == "lottery":
                raise UserError("--channel-pruning.regime lottery: nothing is trained before the cut; inherit is that")

    def before_training(self, train_once: TrainOnce, state: EpochState) -> None:
        self.note_outputs(state)
        match self.options.scores:
            case "activation":
                scores = activation_scores(state.model.backbone, self._channels, example_images(state))
            case "snip":
                scores = sensitivities(state, self._channels)
            case criterion:
                scores = channel_scores(state.model.backbone, self._channels, criterion, self.options.norm)
        self.cut(state, scores)


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
