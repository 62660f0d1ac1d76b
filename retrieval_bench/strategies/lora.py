"""LoRA: pretrained matrices stay frozen, and each learns an update of low rank that is merged into it after training.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, LoRA: Low-Rank Adaptation of Large Language Models (ICLR 2022,
arXiv 2106.09685), equation 3 and the scaling of section 4.1::

    h = W0 x + (alpha / r) B A x,    A of size r x k, B of size d x r, B = 0 at the start

Only A, B, the embedding layer and the loss are trained. W0 + (alpha / r) B A is what is deployed: a network of the
pretrained one's size and speed.

Defaults: rank 8 and alpha 8 as the paper has for RoBERTa (appendix D); no dropout. A is drawn as in the authors' public
code (Kaiming uniform with a = sqrt 5; the paper says Gaussian).

Deviations: a network for images has no word on which matrices to take, so all linear layers and 1x1 convolutions inside
the blocks are adapted (a 1x1 convolution is a linear layer at each place), where the paper takes the query and value
projections; ``layers qkv`` takes timm's joint projection of queries, keys and values, whose A is shared by the three.
Layers of a block whose weights an enclosing module reads without calling them (BEiT's qkv) cannot be adapted and stay
frozen. In a chain, layers that a part before has frozen stay so: ``last_k+lora`` adapts the last blocks only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import observe
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Look, Range, Strategy, block_names, option


class LoRA(Strategy):
    """Raises :class:`UserError` for a backbone without blocks, and where no layer of theirs is left to adapt."""

    look = Look("#a86c00", "<")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        rank: int = option(8, "rank r of each update", low=1, search=Range(2, 32, log=True), shown=True)
        alpha: float = option(8.0, "updates are multiplied by alpha / rank", above=0, search=Range(2.0, 64.0, log=True))
        layers: str = option(
            "all",
            "which layers inside the blocks: all, linear, conv (1x1), or names after commas such as qkv,proj",
        )

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        backbone, (rank, alpha) = model.backbone, (self.options.rank, self.options.alpha)
        inside = tuple(f"{name}." for name in block_names(model, "lora"))
        layers = {
            name: layer
            for name, layer in backbone.net.named_modules()
            if name.startswith(inside) and is_matrix(layer) and layer.weight.requires_grad and self._takes(name, layer)
        }
        called: list[str] = []
        observe(backbone, example_images.shape[-1], layers, lambda name, *_: called.append(name))
        self._adapted = [name for name in layers if name in called]
        if not called:
            raise UserError(
                f"--lora.layers {self.options.layers}: no such linear layer or 1x1 convolution that is called and not "
                "frozen inside the blocks of this backbone"
            )
        for block in backbone.blocks:
            for parameter in backbone.block_parameters(block):
                parameter.requires_grad_(False)
        for name in self._adapted:
            add_adapter(layers[name], rank, alpha / rank)
        return model

    def _takes(self, name: str, layer: nn.Module) -> bool:
        kinds = {"all": nn.Module, "linear": nn.Linear, "conv": nn.Conv2d}
        words = self.options.layers.split(",")
        return isinstance(layer, kinds[words[0]]) if words[0] in kinds else bool(set(words) & set(name.split(".")))

    def finalize(self, model: Embedder) -> Embedder:
        for module in model.modules():  # all of them: a part behind in the chain may have copied blocks
            if isinstance(module, LowRank):
                merge(module)
        return model

    def info(self) -> dict[str, Any]:
        return {"adapted_layers": self._adapted}


def is_matrix(layer: nn.Module) -> bool:
    """Whether `layer` multiplies its input by one matrix: a linear layer, or a 1x1 convolution without groups."""
    if isinstance(layer, nn.Conv2d):
        return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "same", "valid")
    return isinstance(layer, nn.Linear)


class LowRank(nn.Module):
    """What :func:`add_adapter` puts before a layer's class: the update is added to what the layer gives."""

    scale: float
    adapter: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.adapter
        return super().forward(x) + up(self.scale * down(x))  # scaled where it is small


def add_adapter(layer: Any, rank: int, scale: float) -> None:
    """Gives `layer` a child ``adapter``, A and then B, whose output times `scale` is added from now on. The layer keeps
    its place, its parameters and their names; its class gets :class:`LowRank` in front."""
    outputs, inputs = layer.weight.shape[:2]
    if layer.weight.ndim == 4:
        down = nn.Conv2d(inputs, rank, 1, layer.stride, bias=False)
        up = nn.Conv2d(rank, outputs, 1, bias=False)
    else:
        down, up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    nn.init.kaiming_uniform_(down.weight, a=5**0.5)
    nn.init.zeros_(up.weight)
    layer.adapter = nn.Sequential(down, up).to(layer.weight.device)
    layer.__class__ = type(f"LowRank{type(layer).__name__}", (LowRank, type(layer)), {"scale": scale})


@torch.no_grad()
def merge(layer: Any) -> None:
    """Undoes :func:`add_adapter`, with the update added to the layer's weight, which now holds what was trained."""
    down, up = layer.adapter
    layer.weight += layer.scale * (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(layer.weight)
    layer.weight.requires_grad_(up.weight.requires_grad)
    del layer.adapter
    layer.__class__ = type(layer).__bases__[1]
