"""Channel pruning: which widths of a backbone are free, what a choice of widths costs, and the removal of channels.

Channels that several convolutions share through residual sums, and those of the feature, keep their width. Which layers depend on a width
is found by torch-pruning's dependency graph (Fang et al., DepGraph, CVPR 2023), which also removes the channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import Backbone

Keep = dict[str, list[int]]
"""Indices of the channels that stay, ascending, by the name of the convolution that makes them; convolutions that keep all are left out."""


@dataclass(frozen=True)
class Width:
    """A width that can be chosen.

    Attributes:
        name: path in the network of the convolution that makes these channels.
        channels: how many there are.
        norms: paths of the batch norms over them, in order.
    """

    name: str
    channels: int
    norms: tuple[str, ...]


@dataclass(frozen=True)
class _Layer:
    """A convolution or matrix: its cost is ``positions * inputs * outputs``, each side a fixed number or a free width."""

    name: str
    positions: int
    kernel: int
    bias: bool
    inputs: int | str
    outputs: int | str
    depthwise: bool


@dataclass(frozen=True)
class Channels:
    """The free widths of a backbone and the cost of any choice of them.

    Attributes:
        widths: in the order of the network.
        layers: what is multiplied.
        norm_parameters: parameters per channel in norms, by the width's name.
        fixed_parameters: all others.
    """

    widths: tuple[Width, ...]
    layers: tuple[_Layer, ...]
    norm_parameters: Mapping[str, int]
    fixed_parameters: int

    @property
    def full(self) -> dict[str, int]:
        """Every width at its full size."""
        return {width.name: width.channels for width in self.widths}

    def macs(self, chosen: Mapping[str, int]) -> int:
        """Multiply-accumulates of one image with the `chosen` widths, by name; as ``retrieval_bench.cost.macs`` counts them."""
        return sum(layer.positions * _weights(layer, chosen) for layer in self.layers)

    def parameters(self, chosen: Mapping[str, int]) -> int:
        """Number of parameters with the `chosen` widths."""
        weights = sum(
            _weights(layer, chosen) + (_size(layer.outputs, chosen) if layer.bias else 0) for layer in self.layers
        )
        return weights + sum(chosen[name] * each for name, each in self.norm_parameters.items()) + self.fixed_parameters


def _size(side: int | str, chosen: Mapping[str, int]) -> int:
    return chosen[side] if isinstance(side, str) else side


def _weights(layer: _Layer, chosen: Mapping[str, int]) -> int:
    outputs = _size(layer.outputs, chosen)
    return layer.kernel * outputs * (1 if layer.depthwise else _size(layer.inputs, chosen))


def find_channels(backbone: Backbone, image_size: int) -> Channels:
    """The free widths of `backbone` for inputs of `image_size` pixels.

    A width is free if a convolution of a body block makes it, a batch norm follows, no other block adds to it, and it is not the
    feature's: the inner widths of ResNet's blocks and of inverted residuals, and every convolution of a VGG.

    Raises:
        UserError: there is none, or the network cannot be traced.
    """
    graph = _graph(backbone, image_size)
    owner = {id(parameter): block.name for block in backbone.body for parameter in backbone.block_parameters(block)}
    names = {id(module): name for name, module in backbone.net.named_modules()}
    widths: list[Width] = []
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for name, module in backbone.net.named_modules():
        if not isinstance(module, nn.Conv2d) or module.groups > 1 or id(module.weight) not in owner or name in outputs:
            continue
        members, reaches_output = _members(graph, module)
        makers = [
            cast("nn.Conv2d", member)
            for member, made in members
            if made and _weighs(member) and not _is_depthwise(member)
        ]
        norms = tuple(names[id(member)] for member, _ in members if isinstance(member, nn.modules.batchnorm._BatchNorm))
        if (
            reaches_output
            or not norms
            or {owner.get(id(maker.weight)) for maker in makers} != {owner[id(module.weight)]}
        ):
            continue
        widths.append(Width(name, module.out_channels, norms))
        for member, made in members:
            if _weighs(member):
                (outputs if made else inputs)[names[id(member)]] = name
                if _is_depthwise(member):
                    inputs[names[id(member)]] = name
    if not widths:
        raise UserError(
            "this backbone has no channels that can be pruned: a convolution with a batch norm after it, inside a block"
        )
    return _count(backbone, image_size, widths, inputs, outputs)


def _graph(backbone: Backbone, image_size: int) -> Any:
    import torch_pruning

    trained = {parameter: parameter.requires_grad for parameter in backbone.parameters()}
    images = torch.zeros(1, 3, image_size, image_size, device=backbone.mean.device)
    try:
        for parameter in trained:
            parameter.requires_grad_(True)  # the graph is read off autograd's
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(
                backbone.eval(), example_inputs=images, verbose=False
            )
    finally:
        for parameter, was in trained.items():
            parameter.requires_grad_(was)


def _members(graph: Any, module: nn.Conv2d) -> tuple[list[tuple[nn.Module, bool]], bool]:
    """The modules that change with the channels of `module`, each with whether it makes them (else it receives them); and whether the
    channels reach the network's output."""
    import torch_pruning

    group = graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, idxs=[0])
    members = [(dependency.target, graph.is_out_channel_pruning_fn(dependency.handler)) for dependency, _ in group]
    return [(node.module, made) for node, made in members], any(made and not node.outputs for node, made in members)


def _weighs(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels


def _count(
    backbone: Backbone, image_size: int, widths: list[Width], inputs: dict[str, str], outputs: dict[str, str]
) -> Channels:
    """The cost model, from one pass that notes how many positions each layer is applied at."""
    positions: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            positions[name] = positions.get(name, 0) + output[0].numel() // (
                output.shape[1] if output.ndim == 4 else output.shape[-1]
            )

        return hook

    weighing = {name: module for name, module in backbone.net.named_modules() if _weighs(module)}
    handles = [module.register_forward_hook(note(name)) for name, module in weighing.items()]
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, 3, image_size, image_size, device=backbone.mean.device))
    finally:
        for handle in handles:
            handle.remove()
    layers = []
    for name, module in weighing.items():
        layer = cast("nn.Conv2d | nn.Linear", module)
        received, made, *kernel = (layer.weight.shape[1], layer.weight.shape[0], *layer.weight.shape[2:])
        area = kernel[0] * kernel[1] if kernel else 1
        sides = inputs.get(name, received), outputs.get(name, made)
        layers.append(_Layer(name, positions.get(name, 0), area, layer.bias is not None, *sides, _is_depthwise(module)))
    norms = {
        width.name: sum(_norm_parameters(backbone.net.get_submodule(norm)) for norm in width.norms) for width in widths
    }
    found = Channels(tuple(widths), tuple(layers), norms, 0)
    return Channels(
        found.widths,
        found.layers,
        norms,
        sum(value.numel() for value in backbone.parameters()) - found.parameters(found.full),
    )


def _norm_parameters(norm: nn.Module) -> int:
    return len(list(norm.parameters(recurse=False)))


def set_widths(backbone: Backbone, channels: Channels, chosen: Mapping[str, int]) -> None:
    """Gives free widths other sizes, smaller or larger, in place; layers that change draw new weights from torch's global generator.

    Args:
        backbone: is changed.
        channels: of this backbone as it is.
        chosen: size of every width, by name.
    """
    for layer in channels.layers:
        if not isinstance(layer.inputs, str) and not isinstance(layer.outputs, str):
            continue
        module = cast("nn.Conv2d | nn.Linear", backbone.net.get_submodule(layer.name))
        received, made = _size(layer.inputs, chosen), _size(layer.outputs, chosen)
        if isinstance(module, nn.Conv2d):
            module.in_channels, module.out_channels = received, made
            module.groups = received if layer.depthwise else module.groups
        else:
            module.in_features, module.out_features = received, made
        _resize(module, weight=(made, 1 if layer.depthwise else received, *module.weight.shape[2:]), bias=(made,))
    for width in channels.widths:
        for norm in map(backbone.net.get_submodule, width.norms):
            size = chosen[width.name]
            norm.num_features = size  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
            _resize(norm, **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (size,)))


def _resize(module: nn.Module, **shapes: tuple[int, ...]) -> None:
    changed = False
    for name, shape in shapes.items():
        old = getattr(module, name)
        if old is None or old.shape == shape:
            continue
        new = old.new_zeros(shape)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        changed = True
    if changed:
        module.reset_parameters()  # pyright: ignore[reportCallIssue]


def remove_channels(backbone: Backbone, keep: Keep, image_size: int) -> None:
    """Removes, in place, all channels but those in `keep`: a plain smaller network is left.

    Raises:
        UserError: a name that is no convolution of the network, or indices that it does not have.
    """
    import torch_pruning

    trained = {name: parameter.requires_grad for name, parameter in backbone.net.named_parameters()}
    for name, kept in keep.items():
        module = dict(backbone.net.named_modules()).get(name)
        if not isinstance(module, nn.Conv2d) or not kept or not set(kept) <= set(range(module.out_channels)):
            raise UserError(f"channels {len(kept)} of {name}: the network has no such channels")
        going = sorted(set(range(module.out_channels)) - set(kept))
        if going:
            graph = _graph(backbone, image_size)
            graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, idxs=going).prune()
    for name, parameter in backbone.net.named_parameters():
        parameter.requires_grad_(trained[name])  # they are new ones now
