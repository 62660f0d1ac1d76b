"""Pruning: which channels of a backbone are free, what they cost, which stay within a budget, gates, and the removal.

Channels that several convolutions share through residual sums, and those of the feature, keep their width. Which layers
depend on a width is read off torch-pruning's dependency graph (Fang et al., DepGraph, CVPR 2023), which also removes
the channels. Whole blocks are removed too, before training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.utils import parametrize

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.models.backbone import TAIL, Backbone, observe
from retrieval_bench.models.embedder import BatchNorm, batch_norm_momentum

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


def find_channels(backbone: Backbone, image_size: int) -> Channels:
    """The free widths of `backbone` for inputs of `image_size` pixels; raises :class:`UserError` if there is none.

    A width is free if a convolution of a body block makes it, a batch norm follows, no other block adds to it, and it
    is not the feature's: the inner widths of ResNet's blocks and of inverted residuals, and every convolution of a VGG.
    """
    graph = _graph(backbone, image_size)
    block_of = {id(parameter): block.name for block in backbone.body for parameter in backbone.block_parameters(block)}
    names = {module: name for name, module in backbone.net.named_modules()}
    widths: list[Width] = []
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    convs = {name: part for part, name in names.items() if isinstance(part, nn.Conv2d) and part.groups == 1}
    for name, module in convs.items():
        if id(module.weight) not in block_of or name in outputs:
            continue
        group = graph.get_pruning_group(module, torch_pruning.prune_conv_out_channels, idxs=[0])
        members = [(part.target, graph.is_out_channel_pruning_fn(part.handler)) for part, _ in group]
        layers = [(node.module, makes) for node, makes in members if _is_layer(node.module)]
        makers = {block_of.get(id(layer.weight)) for layer, makes in layers if makes and not _is_depthwise(layer)}
        norms = tuple(names[node.module] for node, _ in members if isinstance(node.module, BatchNorm))
        is_feature = any(makes and not node.outputs for node, makes in members)
        if is_feature or not norms or makers != {block_of[id(module.weight)]}:
            continue
        widths.append(Width(name, module.out_channels, norms))
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
    counted = Channels(tuple(widths), tuple(cost_layers), norm_parameters, 0)
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


def set_widths(backbone: Backbone, channels: Channels, widths: Widths) -> None:
    """Resizes free widths, those of `channels`, in place; layers that change draw new weights from torch's global
    generator."""
    for layer in channels.layers:
        if isinstance(layer.inputs, int) and isinstance(layer.outputs, int):
            continue
        module = cast("nn.Conv2d | nn.Linear", backbone.net.get_submodule(layer.name))
        inputs, outputs = layer.sizes(widths)
        if isinstance(module, nn.Conv2d):
            module.in_channels, module.out_channels = inputs, outputs
            module.groups = inputs if layer.depthwise else module.groups
        else:
            module.in_features, module.out_features = inputs, outputs
        _resize(module, weight=(outputs, 1 if layer.depthwise else inputs, *module.weight.shape[2:]), bias=(outputs,))
    for width in channels.widths:
        for norm in map(backbone.net.get_submodule, width.norms):
            size = widths[width.name]
            norm.num_features = size  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
            _resize(norm, **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (size,)))


def _resize(module: nn.Module, **shapes: tuple[int, ...]) -> None:
    """Replaces parameters and buffers of other shapes; if there are any, the module is initialised."""
    old = {name: getattr(module, name) for name in shapes}
    changed = {name: value for name, value in old.items() if value is not None and value.shape != shapes[name]}
    for name, value in changed.items():
        new = value.new_zeros(shapes[name])
        setattr(module, name, nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new)
    if changed:
        module.reset_parameters()  # pyright: ignore[reportCallIssue]


def remove_channels(backbone: Backbone, keep: Keep, image_size: int) -> None:
    """Removes, in place, all channels but those in `keep`: a plain smaller network is left. Raises :class:`UserError`
    for a name that is no convolution of the network, or indices that it does not have."""
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
        parameter.requires_grad_(trained[name])  # pruning has replaced them


@dataclass(frozen=True)
class Budget:
    """The channels that stay, how many by the width's name, their cost as a share of the full backbone's, and by how
    much that differs from the share that was asked for."""

    keep: Keep
    widths: dict[str, int]
    reached: float
    error: float


def choose_channels(
    channels: Channels,
    scores: Mapping[str, Sequence[float]],
    share: float,
    unit: str = "macs",
    minimum: float = 0.1,
    multiple: int = 1,
    full_cost: int = 0,
) -> Budget:
    """The channels with the highest `scores` (one per channel, by the width's name) over all layers whose cost in
    `unit` (``macs`` or ``parameters``) comes closest to `share` of `full_cost`, or of this backbone's at full width.

    A global threshold by binary search on the number of kept channels (Wang et al., Pruning from Scratch, AAAI 2020);
    of equal scores those of earlier layers and lower indices stay. Each layer keeps the share `minimum` of its
    channels, at least one, and a multiple of `multiple` where it has that many. Raises :class:`UserError` with the
    range of shares that can be reached.
    """
    count_cost = channels.macs if unit == "macs" else channels.parameters
    full_cost = full_cost or count_cost(channels.full)
    ranking = sorted(
        (-score, layer, index)
        for layer, width in enumerate(channels.widths)
        for index, score in enumerate(scores[width.name])
    )

    def widths_of(count: int) -> dict[str, int]:
        kept = Counter(layer for _, layer, _ in ranking[:count])
        widths = {}
        for layer, width in enumerate(channels.widths):
            size = max(kept[layer], 1, math.ceil(minimum * width.channels))
            if 1 < multiple <= width.channels:
                size = max(1, round(size / multiple)) * multiple
            widths[width.name] = min(size, width.channels)
        return widths

    def reached_by(widths: Widths) -> float:
        return count_cost(widths) / full_cost

    low, high = 0, len(ranking)
    least, most = reached_by(widths_of(low)), reached_by(channels.full)
    if not least <= share <= most:
        raise UserError(
            f"a budget of {share:g} of the {unit} cannot be met: {least:.3f} to {most:.4g} can, with the given minimum"
        )
    best = widths_of(high)
    while low <= high:
        middle = (low + high) // 2
        widths = widths_of(middle)
        if abs(reached_by(widths) - share) < abs(reached_by(best) - share):
            best = widths
        if reached_by(widths) > share:
            high = middle - 1
        else:
            low = middle + 1
    keep = {}
    for layer, width in enumerate(channels.widths):
        if best[width.name] < width.channels:
            ranked = [index for _, other, index in ranking if other == layer]
            keep[width.name] = sorted(ranked[: best[width.name]])
    return Budget(keep, best, reached_by(best), reached_by(best) - share)


class _Gated(nn.Module):
    """Parametrisation of a norm's scale or shift: the gate's multiple of it. The gate is not registered here, so that a
    norm with frozen parameters counts as frozen and keeps its statistics."""

    def __init__(self, gate: nn.Parameter):
        super().__init__()
        self._gate = [gate]

    def forward(self, value: Tensor) -> Tensor:
        return value * self._gate[0]


class Gates(nn.ParameterList):
    """A gate per channel of each width, float (channels,), all 1 at the start, which changes nothing; it acts on the
    first norm of its width, which is parametrised (Wang et al., Pruning from Scratch, AAAI 2020)."""

    def __init__(self, net: nn.Module, widths: Iterable[Width]):
        self.widths = tuple(widths)
        norms: list[Any] = [net.get_submodule(width.norms[0]) for width in self.widths]
        super().__init__(nn.Parameter(torch.ones_like(norm.weight)) for norm in norms)
        for norm, gate in zip(norms, self, strict=True):
            for name in ("weight", "bias"):
                parametrize.register_parametrization(norm, name, _Gated(gate))

    def scores(self) -> dict[str, list[float]]:
        """The gates by the width's name."""
        return {width.name: gate.detach().tolist() for width, gate in zip(self.widths, self, strict=True)}

    @torch.no_grad()
    def load(self, scores: Mapping[str, Sequence[float]]) -> None:
        """Puts back gates that :meth:`scores` gave."""
        for width, gate in zip(self.widths, self, strict=True):
            gate.copy_(torch.tensor(scores[width.name]))

    @contextmanager
    def only(self, keep: Keep) -> Iterator[None]:
        """A context in which the gates of all channels but the kept ones are zero."""
        before = self.scores()
        closed = {
            name: [gate if index in kept else 0.0 for index, gate in enumerate(before[name])]
            for name, kept in keep.items()
        }
        self.load({**before, **closed})
        try:
            yield
        finally:
            self.load(before)

    def mean(self) -> Tensor:
        """Mean absolute gate over all channels of all widths, a scalar with gradient."""
        return torch.cat([gate.abs() for gate in self]).mean()

    @torch.no_grad()
    def clamp(self) -> None:
        """Puts every gate back into 0..1."""
        for gate in self:
            gate.clamp_(0, 1)

    def remove(self, net: nn.Module, fold: bool) -> None:
        """Leaves plain norms in `net`: with the gates multiplied into them (`fold`), or as they were before."""
        for width in self.widths:
            for name in ("weight", "bias"):
                parametrize.remove_parametrizations(net.get_submodule(width.norms[0]), name, leave_parametrized=fold)


def initialise(backbone: Backbone, example_images: Tensor | None = None) -> None:
    """Draws all weights from torch's global generator: He's normal distribution for convolutions (fan out), norms 1, 0.
    Batch norms get the statistics of `example_images`; without, mean 0 and variance 1."""
    for module in backbone.net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | BatchNorm):
            module.reset_parameters()
    if example_images is None:
        return
    with batch_norm_momentum(backbone, None), torch.no_grad():
        backbone.train()(example_images)
    backbone.eval()


@torch.no_grad()
def drop_blocks(backbone: Backbone, names: Collection[str], example_images: Tensor) -> int:
    """Removes the named body blocks in place, with all that they own, and returns the size of the feature that is left.

    What follows the blocks (the tail) stays where it fits the last block that is left, and is removed too where it does
    not: an EfficientNet's final convolution is made for the width of its last block. `example_images`, uint8 (B, 3, H,
    W), are passed through to see what fits. Raises :class:`UserError` if a block that stays needs the output of a
    dropped one; the backbone is unusable then.
    """
    problem = ""
    for leaving in (set(names), {TAIL}):
        going = [block for block in backbone.blocks if block.name in leaving]
        if not going:
            continue
        try:
            for path in (path for block in going for path in block.owns):
                _remove(backbone.net, path)
            backbone.blocks = tuple(block for block in backbone.blocks if block not in going)
            return backbone.eval()(example_images[:1]).shape[1]
        except Exception as error:  # networks that do not simply call block after block fail in ways of their own
            problem = first_line(error)
    raise UserError(
        f"without {', '.join(sorted(names))} the other blocks do not fit each other ({problem}): drop the last ones"
    )


def _remove(net: nn.Module, path: str) -> None:
    """Takes a module out of its sequence, or puts an identity in its place where it is called by name."""
    parent_path, _, name = path.rpartition(".")
    parent = net.get_submodule(parent_path)
    if name not in dict(parent.named_children()):
        return  # a parameter of the network itself, or a part of a module that is gone
    if isinstance(parent, nn.Sequential | nn.ModuleList):
        delattr(parent, name)  # the others keep their names
    else:
        setattr(parent, name, nn.Identity())
