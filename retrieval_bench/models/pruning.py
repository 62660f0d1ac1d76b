"""Pruning: which channels of a backbone are free, what any choice of them costs, and networks of other widths.

Channels that several convolutions share through residual sums, and those of the feature, keep their width. Which layers
depend on a width is read off torch-pruning's dependency graph (Fang et al., DepGraph, CVPR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch_pruning
from torch import nn

from retrieval_bench.cost import macs
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import SHORTCUTS, Backbone, observe
from retrieval_bench.models.embedder import BatchNorm

Keep = dict[str, list[int]]
"""Indices of the channels that stay, ascending, by the name of the convolution that makes them; convolutions that keep
all are left out."""
Widths = Mapping[str, int]
"""Number of channels by the name of the convolution that makes them."""


@dataclass(frozen=True)
class Width:
    """A width that can be chosen: the `channels` that the convolution at path `name` makes, and the paths of the batch
    norms over them in order."""

    name: str
    channels: int
    norms: tuple[str, ...]

    def norm(self, which: str) -> str:
        """Path of the ``first`` norm, or of the ``last``, which may stand behind a depthwise convolution."""
        return self.norms[-1 if which == "last" else 0]


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix. Its inputs and outputs are a fixed number each, or the name of a free width; at each
    position it costs one multiply-accumulate per weight."""

    name: str
    positions: int
    kernel: int
    bias: bool
    inputs: int | str
    outputs: int | str
    depthwise: bool

    def sizes(self, widths: Widths) -> tuple[int, int]:
        """Numbers of inputs and outputs."""
        inputs, outputs = (widths[side] if isinstance(side, str) else side for side in (self.inputs, self.outputs))
        return inputs, outputs

    def weights(self, widths: Widths) -> int:
        """Number of weights, without bias."""
        inputs, outputs = self.sizes(widths)
        return self.kernel * outputs * (1 if self.depthwise else inputs)


@dataclass(frozen=True)
class Channels:
    """The free widths of a backbone, in the order of the network, and what any choice of them costs."""

    widths: tuple[Width, ...]
    layers: tuple[Layer, ...]
    norm_parameters: Mapping[str, int]
    """per channel, by the width's name"""
    fixed_parameters: int
    """all that depend on no width and are in no layer"""
    feature: str = ""
    """name of the width that is the feature's, if that is free"""

    @property
    def full(self) -> dict[str, int]:
        """Every width at its full size."""
        return {width.name: width.channels for width in self.widths}

    def macs(self, widths: Widths) -> int:
        """Multiply-accumulates of one image, as ``retrieval_bench.cost.macs`` counts them."""
        return sum(layer.positions * layer.weights(widths) for layer in self.layers)

    def parameters(self, widths: Widths) -> int:
        """Number of parameters."""
        layers = sum(layer.weights(widths) + layer.bias * layer.sizes(widths)[1] for layer in self.layers)
        norms = sum(widths[name] * each for name, each in self.norm_parameters.items())
        return layers + norms + self.fixed_parameters


def find_channels(backbone: Backbone, image_size: int, ends: bool = False) -> Channels:
    """The free widths of `backbone` for inputs of `image_size` pixels; raises :class:`UserError` if there is none.

    A width is free if a convolution of a body block makes it, a batch norm follows, no other block adds to it, it is
    not the feature's, and all that use it use all of it and nothing else: no groups but depthwise ones, no
    concatenation, no split. That is the inner widths of ResNet's blocks and of inverted residuals, and every
    convolution of a VGG but the first and the last. With `ends` the widths that the stem and the tail make are free by
    the same rules, and the feature's is: every convolution of a VGG.
    """
    graph = _graph(backbone, image_size)
    blocks = backbone.blocks if ends else backbone.body
    block_of = {id(parameter): block.name for block in blocks for parameter in backbone.block_parameters(block)}
    names = {module: name for name, module in backbone.net.named_modules()}
    widths: list[Width] = []
    feature_width = ""
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    convs = {name: part for part, name in names.items() if isinstance(part, nn.Conv2d) and part.groups == 1}
    for name, module in convs.items():
        if id(module.weight) not in block_of or name in outputs:
            continue
        every = list(range(module.out_channels))
        group = graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, idxs=every)
        members = [(part.target, graph.is_out_channel_pruning_fn(part.handler)) for part, _ in group]
        layers = [(node.module, makes) for node, makes in members if _is_layer(node.module)]
        makers = {block_of.get(id(layer.weight)) for layer, makes in layers if makes and not _is_depthwise(layer)}
        norms = tuple(names[node.module] for node, _ in members if isinstance(node.module, BatchNorm))
        is_feature = any(makes and not node.outputs for node, makes in members)
        sizes = [layer.weight.shape[not makes and not _is_depthwise(layer)] for layer, makes in layers]
        sizes += [len(reached) for _, reached in group] + [
            backbone.net.get_submodule(norm).num_features for norm in norms
        ]
        in_groups = any(getattr(layer, "groups", 1) > 1 and not _is_depthwise(layer) for layer, _ in layers)
        is_shortcut = any(makes and SHORTCUTS & set(names[layer].split(".")) for layer, makes in layers)
        if (is_feature and not ends) or not norms or in_groups or is_shortcut or set(sizes) != {module.out_channels}:
            continue
        if makers != {block_of[id(module.weight)]}:
            continue
        widths.append(Width(name, module.out_channels, norms))
        feature_width = name if is_feature else feature_width
        for layer, makes in layers:
            (outputs if makes else inputs)[names[layer]] = name
            if _is_depthwise(layer):
                inputs[names[layer]] = name
    if not widths:
        raise UserError(
            "this backbone has no channels that can be pruned: a convolution with a batch norm after it, inside a block"
        )

    positions: dict[str, int] = {}

    def note(name: str, module: nn.Module, _: Any, output: Any) -> None:
        channels = output.shape[1 if output.ndim == 4 else -1]
        positions[name] = positions.get(name, 0) + output[0].numel() // channels

    weighted: dict[str, Any] = {name: module for module, name in names.items() if _is_layer(module)}
    observe(backbone, image_size, weighted, note)
    cost_layers = []
    for name, layer in weighted.items():
        made, received, *kernel = map(int, layer.weight.shape)
        sides = inputs.get(name, received), outputs.get(name, made)
        counts = positions.get(name, 0), math.prod(kernel), layer.bias is not None
        cost_layers.append(Layer(name, *counts, *sides, _is_depthwise(layer)))
    norm_parameters = {
        width.name: sum(len(list(backbone.net.get_submodule(norm).parameters(recurse=False))) for norm in width.norms)
        for width in widths
    }
    counted = Channels(tuple(widths), tuple(cost_layers), norm_parameters, 0, feature_width)
    total = sum(parameter.numel() for parameter in backbone.parameters())
    return replace(counted, fixed_parameters=total - counted.parameters(counted.full))


def _graph(backbone: Backbone, image_size: int) -> Any:
    trained = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    images = torch.zeros(1, 3, image_size, image_size, device=backbone.mean.device)
    try:
        for parameter in trained:
            parameter.requires_grad_(True)  # torch-pruning reads the graph off autograd's
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(backbone.eval(), images, verbose=False)
    finally:
        for parameter, was_trained in trained.items():
            parameter.requires_grad_(was_trained)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels


def set_widths(backbone: Backbone, channels: Channels, widths: Widths, keep: Keep | None = None) -> None:
    """Resizes free widths, those of `channels`, in place. What changes its size draws new weights from torch's global
    generator, or with `keep` holds those of the channels that stay."""
    for layer in channels.layers:
        if isinstance(layer.inputs, int) and isinstance(layer.outputs, int):
            continue
        module: Any = backbone.net.get_submodule(layer.name)
        inputs, outputs = layer.sizes(widths)
        if isinstance(module, nn.Conv2d):
            module.in_channels, module.out_channels = inputs, outputs
            module.groups = inputs if layer.depthwise else module.groups
        else:
            module.in_features, module.out_features = inputs, outputs
        shape = (outputs, 1 if layer.depthwise else inputs, *module.weight.shape[2:])
        kept = None if keep is None else (keep.get(str(layer.outputs)), keep.get(str(layer.inputs)))
        _resize(module, kept, weight=shape, bias=(outputs,))
    for width in channels.widths:
        for norm in map(backbone.net.get_submodule, width.norms):
            size = (widths[width.name],)
            norm.num_features = size[0]  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
            kept = None if keep is None else (keep.get(width.name), None)
            _resize(norm, kept, **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), size))


def _resize(
    module: nn.Module, kept: tuple[list[int] | None, list[int] | None] | None, **shapes: tuple[int, ...]
) -> None:
    """Replaces parameters and buffers of other shapes by their kept rows and columns (None: all), or without `kept` by
    zeros; then the module is initialised."""
    changed = {name: value for name in shapes if (value := getattr(module, name)) is not None}
    changed = {name: value for name, value in changed.items() if value.shape != shapes[name]}
    for name, value in changed.items():
        new = value.new_zeros(shapes[name])
        if kept is not None:
            rows, columns = kept
            new = value.detach() if rows is None else value.detach()[rows]
            new = new if columns is None or new.shape == shapes[name] else new[:, columns]
            new = new.clone()
        setattr(module, name, nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new)
    if changed and kept is None:
        module.reset_parameters()  # pyright: ignore[reportCallIssue]


def remove_channels(backbone: Backbone, keep: Keep, image_size: int, ends: bool = False) -> None:
    """Removes, in place, all channels but those in `keep`: a plain smaller network is left. Raises :class:`UserError`
    for a name that is no free width of the network, for indices that it does not have, and if the smaller network does
    not cost what was counted. `ends` is that of :func:`find_channels`."""
    channels = find_channels(backbone, image_size, ends)
    for name, kept in keep.items():
        if not kept or not set(kept) <= set(range(channels.full.get(name, 0))):
            raise UserError(f"channels {len(kept)} of {name}: the network has no such channels")
    widths = {**channels.full, **{name: len(kept) for name, kept in keep.items()}}
    set_widths(backbone, channels, widths, keep)
    try:
        measured = macs(backbone, image_size)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"channels of this backbone cannot be removed: the rest does not fit ({first_line(error)})"
        ) from None
    if measured != channels.macs(widths):
        raise UserError(
            f"channels of this backbone cannot be removed: {measured:,} multiply-accumulates are left, counted were "
            f"{channels.macs(widths):,}"
        )
