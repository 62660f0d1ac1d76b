"""Batch norms that use their running statistics, computed inside the convolutions before them.

``norm(conv(x))`` is ``x`` convolved with ``weight * scale``, plus ``shift``, where ``scale = norm.weight /
sqrt(running_var + eps)`` and ``shift = norm.bias - running_mean * scale``. Gradients flow through the product to the
convolution's own weight, so parameters, optimiser, weight decay and checkpoints are what they were. Results are the
same up to rounding, without the norm's passes over each feature map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from retrieval_bench.models.backbone import Backbone, observe
from retrieval_bench.models.routing import RoutedBlock

CONVOLUTIONS = (nn.Conv2d.forward, Conv2dSame.forward)
NORMS = (nn.BatchNorm2d.forward, BatchNormAct2d.forward)
"""Passes that are known to be a convolution with ``weight`` and ``bias`` and no more, or a norm and its activation."""
Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


class _Consumers(TorchFunctionMode):
    """Counts how many operations take each tensor in `counts`, by its id. Reading a shape is none."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if result is None or any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            self.counts.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.counts)
        return result


def foldable(backbone: Backbone, image_size: int) -> Pairs:
    """The convolutions whose output only a batch norm takes, and these norms; found by passing a black image through,
    on both branches of routed blocks. Puts `backbone` into eval mode."""
    net = backbone.net
    modules = {name: part for name, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)}
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # by the output's id; outputs are kept, so that none gets it again
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d, int]] = []
    calls: Counter[nn.Module] = Counter()
    consumers = _Consumers()

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module, output
            consumers.counts[id(output)] = 0
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            found.append((made[id(inputs[0])][0], module, id(inputs[0])))

    routed = [module for module in net.modules() if isinstance(module, RoutedBlock)]
    plain = Backbone(net, backbone.blocks, *backbone.normalisation, backbone.feature_dim)
    plain.mean, plain.std = backbone.mean, backbone.std
    try:
        for block in routed:
            block.route = torch.ones(1, device=backbone.mean.device)
        with consumers:
            observe(plain, image_size, modules, note)
    finally:
        for block in routed:
            block.route = True
    return [
        (conv, norm)
        for conv, norm, output in found
        if calls[conv] == calls[norm] == consumers.counts[output] == 1 and _is_known(conv, norm)
    ]


def _is_known(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return (
        type(conv).forward in CONVOLUTIONS
        and "weight" in conv._parameters  # not computed from others
        and type(norm).forward in NORMS
        and norm.affine
        and norm.running_mean is not None
    )


@contextmanager
def folded(pairs: Iterable[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> Iterator[None]:
    """A block in which each of the norms that is in eval mode now is part of its convolution. Weights must not change
    inside it; whoever needs gradients calls ``backward`` inside or after it."""
    frozen: list[Any] = [pair for pair in pairs if not pair[1].training]
    kept = [(conv, conv.weight, conv.bias) for conv, _ in frozen]
    try:
        for conv, norm in frozen:
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            shift = norm.bias - norm.running_mean * scale
            conv._parameters["bias"] = shift if conv.bias is None else shift + conv.bias * scale
            conv._parameters["weight"] = conv.weight * scale.view(-1, 1, 1, 1)
            rest: tuple[Any, ...] = (norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else ()
            norm.forward = nn.Sequential(*rest).forward
        yield
    finally:
        for conv, weight, bias in kept:
            conv._parameters.update(weight=weight, bias=bias)
        for _, norm in frozen:
            vars(norm).pop("forward", None)
