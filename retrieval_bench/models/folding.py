"""Batch norms folded into the convolutions before them: what a network that is only used, not trained, should look like."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from retrieval_bench.models.backbone import Backbone

Norm = nn.modules.batchnorm._BatchNorm


def fold_norms(backbone: Backbone, image_size: int) -> int:
    """Folds, in place, every batch norm that directly follows a convolution; the outputs stay the same within rounding.

    Which norm follows which convolution is seen in one pass. Blocks that a pass does not reach, as those of a routed network, are left.

    Returns:
        How many were folded.
    """
    pairs = _pairs(backbone.eval(), image_size)
    for conv_name, norm_name in pairs:
        conv, norm = backbone.net.get_submodule(conv_name), backbone.net.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, Norm)
        backbone.net.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        activation = getattr(norm, "act", None)  # timm's norms hold what follows them
        backbone.net.set_submodule(norm_name, activation if isinstance(activation, nn.Module) else nn.Identity())
    return len(pairs)


def _pairs(backbone: Backbone, image_size: int) -> list[tuple[str, str]]:
    made: dict[int, tuple[str, Tensor]] = {}
    """Name of the convolution that made a tensor, by its id; the tensor is held, so that no other gets its id."""
    found: list[tuple[str, str]] = []
    handles = []
    for name, module in backbone.net.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                made[id(output)] = name, output

            handles.append(module.register_forward_hook(keep))
        elif isinstance(module, Norm):

            def note(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                if id(inputs[0]) in made:
                    found.append((made[id(inputs[0])][0], name))

            handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.no_grad():
            backbone(torch.zeros(1, 3, image_size, image_size, device=backbone.mean.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
