"""Records by hand, for the tests of tables and comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.identity import to_dict
from retrieval_bench.records import SCHEMA, record_path, write_record


def record(strategy: str, seed: int, recall: float, **changes: Any) -> dict[str, Any]:
    """A record with everything that tables need."""
    cost = dict.fromkeys(
        ("parameters", "trained_parameters", "macs", "images_seen", "train_seconds", "peak_memory_mb"), 1000000
    )
    return {
        "schema": SCHEMA,
        "id": f"{strategy}-{seed}",
        "seed": seed,
        "config_hash": f"hash-{strategy}",
        "config": to_dict(RunConfig()),
        "labels": {"strategy": strategy, "weights": "imagenet", "dim": 1280},
        "data": {},
        "metrics": {"recall_at_1": recall, "recall_at_10": recall + 0.1, "queries": 9},
        "cost": cost,
        "environment": {"device": "cpu: test"},
        **changes,
    }


def of(strategy: str, *recalls: float, data: dict[str, Any] | None = None, first: int = 0) -> list[dict[str, Any]]:
    """Records of a configuration over seeds from `first` on; `data` changes what its configuration says of the data."""
    found = [record(strategy, seed, recall) for seed, recall in enumerate(recalls, first)]
    for entry in found:
        name = "".join(letter if letter.isalnum() else "-" for letter in f"{strategy}-{sorted((data or {}).items())}")
        entry |= {"id": f"{name}-s{entry['seed']}", "config_hash": f"hash-{name}"}
        entry["config"]["data"] |= data or {}
    return found


def save(results: Path, *records: dict[str, Any]) -> None:
    for entry in records:
        write_record(record_path(results, entry["id"]), entry)
