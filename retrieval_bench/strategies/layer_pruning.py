"""Layer-wise pruning: drops the last blocks before fine-tuning, the most specific ones to the source task.

Ro and Choi, AutoLR: Layer-wise Pruning and Auto-tuning of Learning Rates in Fine-tuning of Deep Networks (AAAI 2021,
arXiv 2002.06048), which drops blocks 15 and 16 of ResNet-50's 16. At 224 pixels that leaves 14,582,848 parameters and
3.650 GMACs of 23,508,032 and 4.087. The default drops as many, the last two. What is left is pooled as before; the
feature takes the width of the last block that stays.

Deviations: any backbone with named blocks, of which any blocks can be dropped as long as the others fit each other;
where a final convolution or norm does not fit the block that is last now, it is dropped too. The authors' In-Shop
network also sets the stride of block 14 to 1, which is not done here. ``auto:N`` is ours: the paper chooses by looking
at the weight variation, and its code has the choice written in. Here 0 to N top blocks are dropped in turn, each
network is trained and tested on the ``zero_shot_val`` split (class-disjoint, inside the training classes), and the best
Recall@1 decides, of equal ones the smaller network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from retrieval_bench.cost import macs, parameters
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.models.blocks import drop_blocks
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies.base import Categorical, Look, Strategy, option


class LayerPruning(Strategy):
    """Drops blocks. Raises :class:`UserError` for blocks that the backbone does not have or cannot do without."""

    look = Look("#9000fc", "D")
    prunes = "blocks"

    @dataclass(frozen=True)
    class Options(Strategy.Options):
        drop: str = option(
            "last:2",
            "blocks to drop: last:N, numbers from 1 (15,16) or names (layer4.1,layer4.2); auto:N tries 0 to N on the "
            "validation classes",
            search=Categorical(("last:0", "last:1", "last:2", "last:3", "last:4"), blocks=True),
            shown=True,
        )

        def candidates(self) -> list[Any]:
            kind, _, count = self.drop.partition(":")
            if kind != "auto":
                return [self]
            if count and not count.isdecimal():
                raise UserError(f"--layer-pruning.drop {self.drop}: write auto:N with a number, such as auto:3")
            return [replace(self, drop=f"last:{number}") for number in range(int(count or 3), -1, -1)]

    options: Options

    def prepare(self, model: Embedder, example_images: Tensor) -> Embedder:
        dropped = blocks_to_drop(self.options.drop, [block.name for block in model.backbone.body])
        image_size = example_images.shape[-1]
        before = {"parameters": parameters(model.backbone), "macs": macs(model.backbone, image_size)}
        if dropped:
            model.resize_feature(drop_blocks(model.backbone, dropped, example_images))
        after = {"parameters": parameters(model.backbone), "macs": macs(model.backbone, image_size)}
        self._info = {
            "dropped_blocks": dropped,
            "kept_blocks": [block.name for block in model.backbone.body],
            "feature_dim": model.backbone.feature_dim,
            **{f"{name}_saved": before[name] - after[name] for name in before},
        }
        return model

    def info(self) -> dict[str, Any]:
        return self._info


def blocks_to_drop(drop: str, names: Sequence[str]) -> list[str]:
    """The names, in order, of the blocks that `drop` means among `names`; raises :class:`UserError` for none or all."""
    flag, count = f"--layer-pruning.drop {drop}", len(names)
    if not names:
        raise UserError("layer_pruning needs a backbone that names its blocks")
    if drop.startswith("last:"):
        last = drop.removeprefix("last:")
        if not last.isdecimal() or int(last) >= count:
            raise UserError(f"{flag}: the backbone has {count} blocks; last:0 to last:{count - 1}")
        return list(names[count - int(last) :])
    chosen = {named_block(flag, word.strip(), names) for word in drop.split(",") if word.strip()}
    if not chosen or len(chosen) == count:
        raise UserError(f"{flag}: name some of the {count} blocks, not {'all' if chosen else 'none'}")
    return [name for name in names if name in chosen]


def named_block(flag: str, word: str, names: Sequence[str]) -> str:
    """The block that a number from 1 or a name means; raises :class:`UserError`, which quotes `flag`, for another."""
    if word.isdecimal() and not 1 <= int(word) <= len(names):
        raise UserError(f"{flag}: blocks are numbered from 1 to {len(names)}")
    if not word.isdecimal() and word not in names:
        raise unknown("block", word, names)
    return names[int(word) - 1] if word.isdecimal() else word
