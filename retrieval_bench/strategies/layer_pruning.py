"""Layer-wise pruning: the last blocks are dropped before fine-tuning, since they are the most specific to the source task.

Ro and Choi, AutoLR: Layer-wise Pruning and Auto-tuning of Learning Rates in Fine-tuning of Deep Networks (AAAI 2021, arXiv 2002.06048),
which drops blocks 15 and 16 of ResNet-50's 16. At 224 pixels that leaves 14,582,848 parameters and 3.650 GMACs of 23,508,032 and 4.087.
The default drops as many, the last two. What is left is pooled as before; the feature takes the width of the last block that stays.

Deviations: any backbone with named blocks, of which any blocks can be dropped as long as the others fit each other; where a final
convolution or norm does not fit the block that is last now, it is dropped too. The authors' In-Shop network also sets the stride of block
14 to 1, which is not done here. ``auto:N`` is ours: the paper chooses by looking at the weight variation, and its code has the choice
written in. Here 0 to N top blocks are dropped in turn, each network is trained and tested on the ``zero_shot_val`` split (class-disjoint,
inside the training classes), and the best Recall@1 decides, of equal ones the smaller network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from retrieval_bench.errors import UserError, unknown
from retrieval_bench.strategies.base import Categorical, Look, Strategy, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from retrieval_bench.models.embedder import Embedder


class LayerPruning(Strategy):
    """Drops blocks. Raises :class:`UserError` for blocks that the backbone does not have or cannot do without."""

    look = Look("#9000fc", "D")

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        drop: str = option(
            "last:2",
            "blocks to drop: last:N, numbers from 1 (15,16) or names (layer4.1,layer4.2); auto:N tries 0 to N on the validation classes",
            search=Categorical(("last:0", "last:1", "last:2", "last:3", "last:4"), blocks=True),
            shown=True,
        )

    options: Options
    cuts = True

    @classmethod
    def candidates(cls, options: Options) -> list[Options]:
        kind, _, count = options.drop.partition(":")
        if kind != "auto":
            return [options]
        if count and not count.isdecimal():
            raise UserError(f"--layer-pruning.drop {options.drop}: write auto:N with a number, such as auto:3")
        return [replace(options, drop=f"last:{number}") for number in range(int(count or 3), -1, -1)]

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        from retrieval_bench.cost import macs, parameters
        from retrieval_bench.models.surgery import drop_blocks

        names = [block.name for block in model.backbone.body]
        dropped = blocks_to_drop(self.options.drop, names)
        side = example_images.shape[-1]
        before = {"parameters": parameters(model.backbone), "macs": macs(model.backbone, side)}
        if dropped:
            model.resize_feature(drop_blocks(model.backbone, dropped, example_images))
        after = {"parameters": parameters(model.backbone), "macs": macs(model.backbone, side)}
        self._facts = {
            "dropped_blocks": dropped,
            "kept_blocks": [block.name for block in model.backbone.body],
            "feature_dim": model.backbone.feature_dim,
            **{f"{name}_saved": before[name] - after[name] for name in before},
        }
        return model

    def info(self) -> dict[str, Any]:
        return self._facts


def blocks_to_drop(drop: str, names: Sequence[str]) -> list[str]:
    """The names, in order, of the blocks that `drop` means in a backbone with blocks `names`; raises :class:`UserError` for others."""
    if not names:
        raise UserError("layer_pruning needs a backbone that names its blocks")
    if drop.startswith("last:"):
        count = drop.removeprefix("last:")
        if not count.isdecimal() or int(count) >= len(names):
            raise UserError(
                f"--layer-pruning.drop {drop}: the backbone has {len(names)} blocks; last:0 to last:{len(names) - 1}"
            )
        return list(names[len(names) - int(count) :])
    chosen = set()
    for word in filter(None, (part.strip() for part in drop.split(","))):
        if word.isdecimal():
            if not 1 <= int(word) <= len(names):
                raise UserError(f"--layer-pruning.drop {drop}: blocks are numbered from 1 to {len(names)}")
            chosen.add(names[int(word) - 1])
        elif word in names:
            chosen.add(word)
        else:
            raise unknown("block", word, names)
    if not chosen or len(chosen) == len(names):
        raise UserError(
            f"--layer-pruning.drop {drop}: name some of the {len(names)} blocks, not {'all' if chosen else 'none'}"
        )
    return [name for name in names if name in chosen]
