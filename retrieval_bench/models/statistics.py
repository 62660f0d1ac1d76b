"""What a network's activations are like on images, and batch norms that keep it after channels were removed.

A batch norm with fixed statistics holds the mean and variance that its input had in the whole network; once channels of
that input are gone, what it gives is shifted and scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.models.backbone import Backbone
from retrieval_bench.models.embedder import BatchNorm
from retrieval_bench.models.pruning import Channels, Keep

Moments = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance per channel, float64 (C,), by the module's name."""
FLOOR = 1e-6
"""Smallest variance before and after a cut, as a share of the norm's own: channels that hardly vary are only moved."""


@torch.no_grad()
def input_moments(
    backbone: Backbone, names: Iterable[str], batches: Iterable[Tensor], each: Callable[..., None] | None = None
) -> Moments:
    """Mean and variance of what the named modules of `backbone.net` receive, in eval mode, over all images of `batches`
    (uint8 (B, 3, H, W)) and all places; modules that the pass does not reach are left out.

    `each` is called with a module and the mean and variance of its batch before the module is.
    """
    sums: dict[str, list[Any]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double() if inputs[0].ndim == 4 else inputs[0].double().movedim(-1, 1)
        variance, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
        count = values.numel() // len(mean)
        parts = [count, count * mean, count * (variance + mean.square())]
        sums[name] = [before + now for before, now in zip(sums.get(name, [0, 0, 0]), parts, strict=True)]
        if each is not None:
            each(module, mean, variance)

    modules = {name: backbone.net.get_submodule(name) for name in names}
    handles = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
    backbone.eval()
    try:
        for images in batches:
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    means = {name: (total / count, squares / count) for name, (count, total, squares) in sums.items()}
    return {name: (mean, (squares - mean.square()).clamp(min=0)) for name, (mean, squares) in means.items()}


def norm_outputs(backbone: Backbone, batches: Iterable[Tensor]) -> Moments:
    """Mean and variance of what each batch norm gives before its scale and shift, on the images of `batches`."""
    norms = _norms(backbone)
    return {
        name: ((mean - norms[name].running_mean) / _variance(norms[name]).sqrt(), variance / _variance(norms[name]))
        for name, (mean, variance) in input_moments(backbone, norms, batches).items()
    }


def restore_outputs(
    backbone: Backbone, channels: Channels, keep: Keep, before: Moments, batches: Iterable[Tensor], deviations: bool
) -> None:
    """Sets the statistics of each batch norm of a backbone that was cut so that on the images of `batches` its output
    has the mean, and with `deviations` the variance, that it had `before` (:func:`norm_outputs` of the whole network).

    `channels` are those of the whole network, of which `keep` stay. One pass, in which each norm is set for the batch
    before the layers behind it see it; then statistics are those over all batches.
    """
    kept = {norm: keep[width.name] for width in channels.widths if width.name in keep for norm in width.norms}
    norms = {name: norm for name, norm in _norms(backbone).items() if name in before}
    names = {norm: name for name, norm in norms.items()}
    own = {norm: _variance(norm) for norm in names}
    targets = {name: [part[kept[name]] if name in kept else part for part in before[name]] for name in before}

    def match(norm: Any, mean: Tensor, variance: Tensor) -> None:
        new, (wanted_mean, wanted_variance) = own[norm], targets[names[norm]]
        if deviations:
            new = new * (variance / new + FLOOR) / (wanted_variance + FLOOR)
        norm.running_mean.copy_(mean - wanted_mean * new.sqrt())
        norm.running_var.copy_((new - norm.eps).clamp(min=0))

    for name, moments in input_moments(backbone, norms, batches, match).items():
        match(norms[name], *moments)


def _norms(backbone: Backbone) -> dict[str, Any]:
    return {name: module for name, module in backbone.net.named_modules() if isinstance(module, BatchNorm)}


def _variance(norm: Any) -> Tensor:
    return norm.running_var.double() + norm.eps
