"""Named grids of runs. A benchmark is a base configuration, the strategies it compares and its seeds; studies have files of their own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from retrieval_bench.config import RunConfig
from retrieval_bench.errors import UserError
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import only_used, refuse_unused_options

BASELINES = ("frozen", "last_k", "standard")
EMOJI = DataConfig(dataset="emoji", image_size=72, flip=False, crop_scale=0.6)
"""No mirroring, since arrows and signs change their meaning; crop_scale was chosen on the zero_shot_val split."""

PHOTOS = DataConfig(image_size=112, stored=256, reader="cache")
"""Photographs at a size that a CPU can train on. The cache keeps a shorter side of 256 pixels: well above what the network sees, since an
image that is resized twice in small steps is blurred (160 pixels and a bilinear filter cost frozen CUB features 1.6 points of R@1)."""


def refuse_single_run(base: RunConfig, kind: str, instead: str = "") -> None:
    """Raises :class:`UserError` for ``--strategy`` or ``--seed`` where several are compared."""
    if (base.strategy, base.seed) != (RunConfig.strategy, RunConfig.seed):
        raise UserError(f"a {kind} compares several runs: use{instead} --seeds in place of --strategy and --seed")


@dataclass(frozen=True)
class Bench:
    """A comparison of strategies under one protocol."""

    strategies: tuple[str, ...] = BASELINES
    """strategies to compare"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """one run per strategy and seed"""
    base: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)

    def runs(self) -> list[RunConfig]:
        """The grid, seed by seed, so that an interrupted comparison still compares.

        Raises :class:`UserError` for options of a strategy that is not compared, and for ``--strategy`` or ``--seed``.
        """
        base = self.base
        refuse_single_run(base, "benchmark", " --strategies and")
        refuse_unused_options(self.strategies, base.options)
        return [
            replace(base, strategy=strategy, seed=seed, options=only_used(strategy, base.options))
            for seed in self.seeds
            for strategy in self.strategies
        ]


def _photos(dataset: str, epochs: int = 4) -> Bench:
    return Bench(seeds=(0,), base=RunConfig(data=replace(PHOTOS, dataset=dataset), train=TrainConfig(epochs=epochs)))


BENCHES: dict[str, tuple[str, Bench]] = {
    "emoji_mini": (
        "600 emoji at 72 px; about ten minutes on 2 CPU cores",
        Bench(base=RunConfig(data=replace(EMOJI, dataset="emoji_mini"), train=TrainConfig(epochs=3))),
    ),
    "emoji": (
        "all emoji at 72 px",
        Bench(base=RunConfig(data=EMOJI)),
    ),
    "cub": ("CUB-200-2011 at 112 px, one seed; about 35 minutes on 2 CPU cores", _photos("cub")),
    "cars": ("Cars-196 at 112 px, one seed", _photos("cars")),
    "flowers": ("Flowers 102 at 112 px, one seed", _photos("flowers")),
    "sop": ("Stanford Online Products at 112 px, two epochs, one seed; large for a CPU", _photos("sop", epochs=2)),
    "inshop": (
        "In-Shop at 112 px with queries and gallery, two epochs, one seed; large for a CPU",
        _photos("inshop", epochs=2),
    ),
    "cub_224": (
        "CUB-200-2011 at 224 px, ResNet-50, 512 dimensions, 40 epochs, three seeds; for a GPU",
        Bench(
            base=RunConfig(
                data=DataConfig(dataset="cub", image_size=224, stored=256, reader="cache"),
                model=ModelConfig(backbone="resnet50.tv_in1k", embedding_dim=512),
                loss=LossConfig(loss="proxy_anchor", loss_lr=1e-2),
                train=TrainConfig(epochs=40, batch_size=120, lr=1e-4),
            ),
        ),
    ),
    "synthetic": (
        "drawn patterns and an untrained network, seconds; shows that everything works, compares nothing",
        Bench(
            seeds=(0,),
            base=RunConfig(
                data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
                model=ModelConfig(backbone="resnet18", weights="none"),
                train=TrainConfig(epochs=4, batch_size=16, lr=2e-3, freeze_bn=False),
            ),
        ),
    ),
}
