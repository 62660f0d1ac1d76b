"""How long runs will take, by the records that there are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from retrieval_bench.config import RunConfig, flatten, unnest
from retrieval_bench.records import Record


def estimate(configs: Sequence[RunConfig], records: Sequence[Record], kind: str) -> list[float | None]:
    """Seconds per run: the median over like records of their seconds per epoch, times the epochs; None where there is
    no like record.

    Alike are runs of one data set, image size, backbone and strategy on the same kind of device. Epochs count as at
    least one, since testing takes its time too.
    """
    rates: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for record in records:
        seconds, values = record.cost.get("total_seconds"), unnest(record.config)
        if seconds is not None and record.kind == kind:
            rates[_likeness(values)].append(seconds / max(1, values["train.epochs"]))
    like = [rates.get(_likeness(flatten(config))) for config in configs]
    return [
        median(several) * max(1, config.train.epochs) if several else None
        for several, config in zip(like, configs, strict=True)
    ]


def _likeness(values: Mapping[str, Any]) -> tuple[Any, ...]:
    backbone = values["model.backbone"].split(".")[0]
    return values["data.dataset"], values["data.image_size"], backbone, values["strategy"]
