"""One run, as frozen dataclasses: everything that the numbers depend on.

:class:`RunConfig` holds choices; :class:`RuntimeConfig` holds where and how they are carried out. No field of the second may change a
metric, so it is neither hashed nor recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.losses import LOSSES
from retrieval_bench.sections import DataConfig, EvalConfig, LossConfig, ModelConfig, TrainConfig
from retrieval_bench.strategies import StrategyOptions, label

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class RunConfig:
    """One training and evaluation run."""

    strategy: str = "standard"
    """fine-tuning strategy; join several with +"""
    seed: int = 0
    """seed of initialisation, sampling and augmentation"""
    data: Annotated[DataConfig, Flat] = field(default_factory=DataConfig)
    model: Annotated[ModelConfig, Flat] = field(default_factory=ModelConfig)
    loss: Annotated[LossConfig, Flat] = field(default_factory=LossConfig)
    train: Annotated[TrainConfig, Flat] = field(default_factory=TrainConfig)
    evaluation: Annotated[EvalConfig, Flat] = field(default_factory=EvalConfig)
    options: Annotated[StrategyOptions, Flat] = field(default_factory=StrategyOptions)  # pyright: ignore[reportInvalidTypeForm]

    @property
    def strategy_label(self) -> str:
        """The strategy with its telling options, as tables show it."""
        return label(self.strategy, self.options)

    @property
    def ks(self) -> tuple[int, ...]:
        """The K of Recall@K, with the default resolved."""
        return self.evaluation.k or DATASETS[self.data.dataset].ks

    @property
    def samples_per_class(self) -> int:
        """Images of each class in a batch, with the default resolved."""
        if self.train.samples_per_class >= 0:
            return self.train.samples_per_class
        return 4 if LOSSES[self.loss.loss].needs_pairs else 0


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is carried out."""

    data_root: Path | None = None
    """folder (or archive) of the data set; without it the data set is downloaded"""
    results: Path = Path("results/local")
    """folder for records (`runs/`) and tables"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one"""
    workers: int = -1
    """processes that decode images; -1 means none on a CPU, up to 8 beside a GPU"""
    cache_limit_gb: float = 32.0
    """room on the disk for the caches of decoded images (--reader cache), 10^9 bytes"""
    checkpoint_every: int = 1
    """epochs between checkpoints, which lie in checkpoints/ until the run has its record; 0 for none"""
    resume: Path | None = None
    """folder of checkpoints to go on from, such as one copied from another machine; a run finds its own by itself"""
    track: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """also show losses, rates and metrics there (the package must be installed); the record is complete without"""
    profile: bool = False
    """print where the time of the training's steps goes"""
    deterministic: bool = False
    """on a GPU, use operations that give the same bits each time where torch has them, which is slower; on a CPU they all do"""
    keep_new: bool = False
    """keep the embedder of a run that is made now in models/, as a recipe (JSON) and weights (safetensors)"""
    keep: bool = False
    """the same, and make a recorded run whose embedder is missing again"""
    thumbnails: bool = True
    """keep small pictures of some test images beside the record, for galleries of the report"""
    force: bool = False
    """run from the beginning even if the same configuration has a record or checkpoints"""
