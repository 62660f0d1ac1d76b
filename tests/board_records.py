"""Records by hand, for the tests of tables and comparisons; and the configuration of a run that takes a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.columns import RECORDED_COSTS
from retrieval_bench.config import RunConfig, flatten, nest
from retrieval_bench.details import NEIGHBOURS, Details
from retrieval_bench.records import Record, ResultsFolder, write_record
from retrieval_bench.sections import DataConfig, ModelConfig, TrainConfig

FAST = RunConfig(
    data=DataConfig(dataset="synthetic", image_size=32, flip=False, crop_scale=0.6),
    model=ModelConfig(backbone="resnet10t", weights="none"),
    train=TrainConfig(epochs=1, batch_size=16, freeze_bn=False),
)
RUN = "run --dataset synthetic --backbone resnet10t --weights none --image-size 32 --batch-size 16 --device cpu"
"""Its words, but for some choices."""


def record(strategy: str, seed: int, recall: float, config: dict[str, Any] | None = None, **changes: Any) -> Record:
    """A record with everything that tables need. `config`: changes of the configuration, by dotted names."""
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{strategy}-{sorted((config or {}).items())}")
    values: dict[str, Any] = {
        "id": f"{name}-s{seed}",
        "seed": seed,
        "config_hash": f"hash-{name}",
        "config": nest({**flatten(RunConfig()), **(config or {})}),
        "labels": {"strategy": strategy, "weights": "imagenet", "dim": 1280},
        "data": {},
        "metrics": {"recall_at_1": recall, "recall_at_10": recall + 0.1, "queries": 9},
        "cost": {name: 1000000 for name in RECORDED_COSTS if name != "latency_ms"},
        "environment": {"device": "cpu: test"},
    }
    return Record(**{**values, **changes})


def of(strategy: str, *recalls: float, config: dict[str, Any] | None = None, first: int = 0) -> list[Record]:
    """Records of a configuration over seeds from `first` on."""
    return [record(strategy, seed, recall, config) for seed, recall in enumerate(recalls, first)]


def save(folder: Path, *records: Record) -> ResultsFolder:
    """A results folder with these records."""
    results = ResultsFolder(folder)
    for entry in records:
        write_record(results.record(entry.id), entry)
    return results


def details_of(ranks: Sequence[int], labels: Sequence[int], neighbours: Sequence[Sequence[int]] = ()) -> Details:
    """Details of a test in which every image is a query with known neighbours."""
    images = np.arange(len(ranks), dtype=np.int32)
    padded = [[*row, *[-1] * NEIGHBOURS][:NEIGHBOURS] for row in neighbours or [[]] * len(ranks)]
    return Details(
        paths=np.array([f"{image}.png" for image in images]),
        labels=np.array(labels, dtype=np.int32),
        class_names=np.array([f"class {label}" for label in range(max(labels) + 1)]),
        queries=images,
        first_rank=np.array(ranks, dtype=np.int32),
        map_at_r=np.array([1 / rank if rank else math.nan for rank in ranks], dtype=np.float32),
        neighbour_queries=images,
        neighbours=np.array(padded, dtype=np.int32),
        similarity=np.zeros((len(ranks), NEIGHBOURS), dtype=np.float16),
        map_images=images,
        map=np.zeros((len(ranks), 2), dtype=np.float32),
        thumbnails=np.zeros(0, dtype=np.int32),
        thumbnail_ends=np.zeros(0, dtype=np.int64),
        thumbnail_bytes=np.zeros(0, dtype=np.uint8),
    )
