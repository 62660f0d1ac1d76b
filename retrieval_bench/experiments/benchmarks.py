"""Benchmarks: strategies under one protocol; and grids that have a name, as the profile ``grid``. To add one: a base
configuration, and several values of some choices."""

from __future__ import annotations

from retrieval_bench.config import RunConfig
from retrieval_bench.experiments.experiment import Experiment, Profile
from retrieval_bench.sections import DataConfig, LossConfig, ModelConfig, TrainConfig

BASELINES = {"strategy": ("frozen", "last_k", "standard")}
EMOJI = DataConfig(dataset="emoji", image_size=72, flip=False, crop_scale=0.6)
"""No mirroring, since arrows and signs change their meaning; crop_scale was chosen on the zero_shot_val split."""

PHOTOS = DataConfig(image_size=112, stored=256, reader="cache")
"""Photographs at a size that a CPU can train on. The cache keeps a shorter side of 256 pixels: well above what the
network sees, since an image that is resized twice in small steps is blurred (160 pixels and a bilinear filter cost
frozen CUB features 1.6 points of R@1)."""

SYNTHETIC = RunConfig(
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet18", weights="none"),
    train=TrainConfig(epochs=4, batch_size=16, lr=2e-3, freeze_bn=False),
)
EMOJI_MINI = RunConfig(data=EMOJI, train=TrainConfig(epochs=3)).changed(data__dataset="emoji_mini")
CUB_224 = RunConfig(
    data=DataConfig(dataset="cub", image_size=224, stored=256, reader="cache"),
    model=ModelConfig(backbone="resnet50.tv_in1k", embedding_dim=512),
    loss=LossConfig(loss="proxy_anchor", loss_lr=1e-2),
    train=TrainConfig(epochs=40, batch_size=120, lr=1e-4),
)

CUB_112 = RunConfig(data=PHOTOS, train=TrainConfig(epochs=4, fused=True)).changed(
    data__dataset="cub", evaluation__also_test=("emoji",)
)
"""All of CUB for 2 CPU cores, and what it does to another data set."""

FEW_CLASSES = {"data.image_size": 96, "data.classes": 24, "data.stored": 256, "data.reader": "cache"}
"""What makes a paper's setting on CUB small enough for 2 CPU cores, beside fewer epochs."""
ALL_CLASSES = {"data.image_size": 128, "data.stored": 256, "data.reader": "cache"}
ALL_CLASSES |= {"train.epochs": 8, "train.precision": "bf16"}
"""The same with all classes, some hours for a table row. Passes in bfloat16 are twice as fast for ResNet-50 where the
processor has instructions for them, and moved Recall@1 by less than seeds do."""
PATTERNS = {"data.dataset": "synthetic", "data.image_size": 32, "data.flip": False}
PATTERNS |= {"model.backbone": "resnet50", "model.weights": "none", "train.batch_size": 16}
"""What puts drawn patterns and an untrained network into a paper's setting."""


def _benchmark(about: str, base: RunConfig, seeds: tuple[int, ...] = (0, 1, 2), name: str = "cpu", **grid: Profile):
    return Experiment(about, {name: Profile(about, base, seeds, BASELINES), **grid}, in_leaderboard=True)


def _photos(about: str, dataset: str, epochs: int = 4) -> Experiment:
    base = RunConfig(data=PHOTOS, train=TrainConfig(epochs=epochs)).changed(data__dataset=dataset)
    return _benchmark(about, base, (0,))


BENCHMARKS: dict[str, Experiment] = {
    "emoji_mini": _benchmark(
        "600 emoji at 72 px; about ten minutes on 2 CPU cores",
        EMOJI_MINI,
        grid=Profile(
            "600 emoji at 72 px: 6 strategies, 3 losses, 3 seeds",
            EMOJI_MINI,
            axes={
                "strategy": ("frozen", "last_k", "layerwise_decay", "l2sp", "autolr", "standard"),
                "loss.loss": ("triplet", "multi_similarity", "proxy_anchor"),
            },
        ),
    ),
    "emoji": _benchmark("all emoji at 72 px", RunConfig(data=EMOJI)),
    "cub": _photos("CUB-200-2011 at 112 px, one seed; about 35 minutes on 2 CPU cores", "cub"),
    "cars": _photos("Cars-196 at 112 px, one seed", "cars"),
    "flowers": _photos("Flowers 102 at 112 px, one seed", "flowers"),
    "sop": _photos("Stanford Online Products at 112 px, two epochs, one seed; large for a CPU", "sop", 2),
    "inshop": _photos("In-Shop at 112 px with queries and gallery, two epochs, one seed; large for a CPU", "inshop", 2),
    "cub_224": _benchmark(
        "CUB-200-2011 at 224 px, ResNet-50, 512 dimensions, 40 epochs, three seeds; for a GPU", CUB_224, name="gpu"
    ),
    "synthetic": _benchmark(
        "drawn patterns and an untrained network, seconds; shows that everything works, compares nothing",
        SYNTHETIC,
        (0,),
        grid=Profile(
            "drawn patterns and an untrained network, 8 runs of seconds; shows that everything works, compares nothing",
            SYNTHETIC,
            (0, 1),
            {"strategy": ("frozen", "standard"), "loss.loss": ("triplet", "proxy_anchor")},
        ),
    ),
}
