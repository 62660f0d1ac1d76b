"""A network that trains in milliseconds, and a training of it on the synthetic data."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from retrieval_bench.config import RunConfig
from retrieval_bench.data.loading import Batches
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.losses import Criterion, build_criterion
from retrieval_bench.models.backbone import Backbone, name_blocks
from retrieval_bench.models.embedder import Embedder, batch_norm_momentum
from retrieval_bench.sections import DataConfig, LossConfig, TrainConfig
from retrieval_bench.strategies import Strategy, StrategyOptions
from retrieval_bench.strategies.chain import Chain
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.strategies.channel_pruning import ChannelPruning
from retrieval_bench.strategies.network_slimming import NetworkSlimming
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.loop import Training

Data = tuple[ImageTable, Split]
SIDE = 32
OPTIONS = StrategyOptions(
    channel_gates=ChannelGates.Options(budget=0.9, search_epochs=2, held_out=0.25),
    channel_pruning=ChannelPruning.Options(budget=0.9),
    network_slimming=NetworkSlimming.Options(budget=0.9),
)
"""Defaults, but for what the tiny network cannot do: most of its cost is in the stem."""


def tiny_embedder(dim: int = 0, seed: int = 0) -> Embedder:
    """A ResNet of 8 blocks and 64 features, random weights; its BN statistics are those of random images."""
    torch.manual_seed(seed)
    block: Any = BasicBlock  # timm annotates the class as an instance
    net = ResNet(block, (2, 2, 2, 2), num_classes=0, channels=(8, 16, 32, 64), zero_init_last=False)
    model = Embedder(Backbone(net, name_blocks(net), (0.5,) * 3, (0.25,) * 3, 64), dim)
    with batch_norm_momentum(net, None):
        model(random_images(32))
    return model.eval()


def tiny_vit(dim: int = 0, seed: int = 0, **options: Any) -> Embedder:
    """A vision transformer of 4 blocks, 16 patches and 24 features, random weights."""
    torch.manual_seed(seed)
    sizes: Any = {"img_size": SIDE, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, **options}
    net = VisionTransformer(num_classes=0, **sizes)
    return Embedder(Backbone(net, name_blocks(net), (0.5,) * 3, (0.25,) * 3, 24), dim).eval()


NEEDS_TOKENS = {"visual_prompts"}
"""Strategies for transformers only."""


def embedder_for(strategy: str, dim: int = 0) -> Embedder:
    """The tiny network that `strategy`, perhaps a chain, works on."""
    return tiny_vit(dim) if NEEDS_TOKENS & set(strategy.split("+")) else tiny_embedder(dim)


def random_images(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    """uint8 (count, 3, side, side)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def run_config(
    loss: str = "proxy_anchor", loss_lr: float = 1e-2, seed: int = 0, head: str = "linear", **train: object
) -> RunConfig:
    """Two epochs of four batches of 16; `train` overrides fields of :class:`TrainConfig`."""
    settings = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "schedule": "constant", "freeze_bn": False, **train}
    return RunConfig(
        seed=seed,
        data=DataConfig(dataset="synthetic", image_size=SIDE),
        loss=LossConfig(loss=loss, loss_lr=loss_lr, head=head),  # pyright: ignore[reportArgumentType]
        train=TrainConfig(**settings),  # pyright: ignore[reportArgumentType]
    )


def make_training(
    data: Data,
    strategy: Strategy | None = None,
    config: RunConfig | None = None,
    model: Embedder | None = None,
    checkpoints: Checkpoints | None = None,
    **more: Any,
) -> Training:
    """Embedder, criterion, batches and strategy put together as ``retrieval_bench.run`` does, on the CPU."""
    table, split = data
    config = config or run_config()
    labels = split.train_labels(table.labels)
    sampler = BatchSampler(labels, config.train.batch_size, config.samples_per_class)

    def make_criterion(dim: int) -> Criterion:
        torch.manual_seed(config.seed)
        return build_criterion(config.loss, len(split.train_classes), dim)

    batches = Batches(table, split.train, labels, config.data, 0, sampler)
    strategy = strategy or Chain({"standard": Strategy()})
    return Training(model or tiny_embedder(), make_criterion, batches, strategy, config, checkpoints, **more)


def state_of(*modules: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers."""
    return {
        f"{index}.{name}": value.clone()
        for index, module in enumerate(modules)
        for name, value in module.state_dict().items()
    }


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not equal bit for bit, and of those that only one side has."""
    changed = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    return changed | (before.keys() ^ after.keys())


def flatten(module: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([value.detach().flatten() for value in module.parameters()])


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within float32 rounding, which depends on the size of a batch: a share of each vector's length."""
    assert ((actual - expected).norm(dim=1) <= tolerance * expected.norm(dim=1)).all()
