"""Visual prompt tuning: a frozen vision transformer gets learned tokens beside those of the image.

Jia, Tang, Chen, Cardie, Belongie, Hariharan and Lim, Visual Prompt Tuning (ECCV 2022, arXiv 2203.12119). L_i is
block i, x the class token, E the patches' tokens, P the prompts::

    shallow:  [x_1, Z_1, E_1] = L_1([x_0, P, E_0]);     [x_i, Z_i, E_i] = L_i([x_{i-1}, Z_{i-1}, E_{i-1}])   (4, 5)
    deep:     [x_i, _, E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])                                               (7)

Only the prompts, the embedding layer and the loss are trained. The prompts stay part of the network that is deployed;
what follows the blocks does not see them, so that averages over tokens are those of the image's own.

Defaults: 5 prompts as in the authors' public code, of which the paper tries 1 to 200; deep, the better variant there;
prompts drawn uniformly within sqrt(6 / (3 p^2 + D)) for patches of p pixels and width D. Deviations: no dropout on the
prompts (the public code has it as an option); attention that pools tokens after the blocks (SigLIP's) sees no prompts;
prompts follow all prefix tokens, registers too, and stand first where there is no class token. Their learning
rate is ``--lr``: prompts bear larger rates than weights do, and the paper searches over SGD's 0.05 to 50 (times batch
size / 256). The number of prompts sets the cost of the network and is not searched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval_bench.errors import UserError
from retrieval_bench.models.backbone import observe
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.models.routing import refuse_other_blocks
from retrieval_bench.strategies.base import Categorical, Look, Strategy, block_names, option

KINDS = ("shallow", "deep")


class VisualPrompts(Strategy):
    """Raises :class:`UserError` for a backbone whose blocks do not pass on one sequence of tokens."""

    rebuilds_blocks = True
    look = Look("#00907c", "d")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        kind: str = option(
            "deep",
            "shallow: prompts enter the first block; deep: each block has its own",
            choices=KINDS,
            search=Categorical(KINDS),
            shown=True,
        )
        tokens: int = option(5, "number of prompts, in each block that has its own", low=1)

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        net, names, count = model.backbone.net, block_names(model, "visual_prompts"), self.options.tokens
        sizes: list[tuple[int, ...]] = []
        blocks = {name: net.get_submodule(name) for name in names}
        observe(model.backbone, example_images.shape[-1], blocks, lambda *call: sizes.append(_shape(call[-1])))
        prefix, patches = getattr(net, "num_prefix_tokens", None), getattr(net, "patch_embed", None)
        if (
            prefix is None
            or not hasattr(patches, "proj")
            or {len(size) for size in sizes} != {3}
            or len(set(sizes)) > 1
        ):
            raise UserError(
                "visual_prompts needs a vision transformer whose blocks pass on one sequence of tokens, such as "
                "vit_small_patch16_224; this backbone does not"
            )
        width, fan_in = sizes[0][-1], patches.proj.weight[0].numel()  # pyright: ignore[reportOptionalMemberAccess]
        model.backbone.requires_grad_(False)
        for name, block in blocks.items():
            is_first, is_last = name == names[0], name == names[-1]
            prompts = None
            if self.options.kind == "deep" or is_first:
                bound = (6 / (fan_in + width)) ** 0.5
                prompts = nn.Parameter(torch.empty(1, count, width).uniform_(-bound, bound).to(example_images.device))
            removed = count if self.options.kind == "deep" or is_last else 0
            net.set_submodule(name, PromptedBlock(block, prompts, int(prefix), removed))
        refuse_other_blocks(model, example_images, "visual_prompts")
        self._info = {"prompted_blocks": names if self.options.kind == "deep" else names[:1]}
        return model

    def info(self) -> dict[str, Any]:
        return self._info


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(output.shape) if isinstance(output, Tensor) else ()


class PromptedBlock(nn.Module):
    """A block on tokens (B, N, D) with the `prompts` (1, P, D), if it has some, put in after the first `prefix` tokens;
    of what the block gives, the `removed` tokens after these are taken out again."""

    def __init__(self, block: nn.Module, prompts: nn.Parameter | None, prefix: int, removed: int):
        super().__init__()
        self.block = block
        self.prompts = prompts
        self.prefix = prefix
        self.removed = removed

    def forward(self, x: Tensor) -> Tensor:
        if self.prompts is not None:
            prompts = self.prompts.to(x.dtype).expand(x.shape[0], -1, -1)
            x = torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix :]], dim=1)
        x = self.block(x)
        if self.removed:
            x = torch.cat([x[:, : self.prefix], x[:, self.prefix + self.removed :]], dim=1)
        return x
