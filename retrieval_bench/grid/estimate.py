"""How long runs will take, by what earlier ones took."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from retrieval_bench.config import RunConfig


def estimate(configs: Sequence[RunConfig], records: Sequence[dict[str, Any]], device: str) -> list[float | None]:
    """Seconds per run: the median over like records of their seconds per epoch, times the epochs; None where there is no like record.

    Alike are runs of one data set, image size, backbone and strategy on the same kind of device. Epochs count as at least one, since
    testing takes its time too.

    Args:
        configs: the runs.
        records: what there is.
        device: ``cpu`` or ``cuda``.
    """
    rates: dict[tuple[Any, ...], list[float]] = {}
    for record in records:
        config, seconds = record["config"], record["cost"].get("total_seconds")
        if seconds is not None and str(record["environment"].get("device", "")).startswith(device):
            key = (
                config["data"]["dataset"],
                config["data"]["image_size"],
                config["model"]["backbone"].split(".")[0],
                config["strategy"],
            )
            rates.setdefault(key, []).append(seconds / max(1, config["train"]["epochs"]))

    def seconds_of(config: RunConfig) -> float | None:
        key = (config.data.dataset, config.data.image_size, config.model.backbone.split(".")[0], config.strategy)
        return statistics.median(rates[key]) * max(1, config.train.epochs) if key in rates else None

    return [seconds_of(config) for config in configs]
