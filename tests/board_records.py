"""Records by hand, for the tests of tables and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval_bench.columns import RECORDED_COSTS
from retrieval_bench.config import RunConfig, flatten, nest
from retrieval_bench.records import Record, ResultsFolder, write_record


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
