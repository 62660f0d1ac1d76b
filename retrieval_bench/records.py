"""The record of a run: one JSON file that holds all that is known about it. Records are the truth; every table is built from them.

Layout (``schema`` 1)::

    schema, id, seed, config_hash, command, finished
    config       the whole configuration (paths replaced by the names and digests of what they hold)
    labels       what tables show: strategy, weights, dim
    data         images and classes in all and on each side of the split
    metrics      recall_at_1, ..., mrr, r_precision, map_at_r as fractions; queries; queries_without_positive; accuracy in a closed set
    variants     the same for other ways to use the network (only where there are any)
    cost         parameters, trained parameters, macs, latency of one image, images seen, seconds, peak memory
    training     mean loss per epoch; converged: the last one is lower than the first (null for fewer than two epochs);
                 only if it happened: epochs after which it was gone on with (resumed), batches that were left out (skipped_batches), how
                 many images memory sufficed for at a time (micro_batch)
    facts        what the strategy learned; routes of the test images through a routed network
    environment  device, threads, versions, git revision
"""

from __future__ import annotations

import json
import math
import platform
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import retrieval_bench
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.files import write_text
from retrieval_bench.progress import logger

SCHEMA = 1
NUMBERS = re.compile(r"\[\n[-+.\deE,\s]+\]")
"""A list of numbers, which is written on one line; no text looks like it, since text has no line breaks in JSON."""
VERSIONED = ("torch", "torchvision", "timm", "pytorch-metric-learning", "faiss-cpu", "numpy")
REQUIRED = {
    "config": dict,
    "metrics": dict,
    "cost": dict,
    "labels": dict,
    "environment": dict,
    "data": dict,
    "id": str,
    "config_hash": str,
    "seed": int,
}
TYPED = {
    "data": {"split": str, "classes": int | float, "image_size": int | float},
    "model": {"backbone": str},
    "labels": {"weights": str, "dim": int | float},
    "environment": {"device": str},
}
"""What tables group by and format, where a record has it: sections of the configuration and of the record."""
FRACTION = re.compile(r"recall_at_([1-9][0-9]{0,8})|map_at_r|accuracy")
"""Metrics that tables show."""


def record_path(results: Path, run_id: str) -> Path:
    """Where the record of a run is kept below the results folder."""
    return results / "runs" / f"{run_id}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes the record atomically; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(finite(record), indent=2, sort_keys=True, allow_nan=False)
    write_text(
        path,
        NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text) + "\n",
    )


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinities, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path) -> dict[str, Any]:
    """One record. Raises ValueError, with the reason, for a file that is not a record of this schema."""
    text = path.read_text(encoding="utf-8")
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in text:
        json.dumps(
            record, ensure_ascii=False
        ).encode()  # half of a surrogate pair, which no file can hold, is a ValueError
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"not a record of schema {SCHEMA}")
    for key, kind in REQUIRED.items():
        if not isinstance(record.get(key), kind) or isinstance(record[key], bool):
            raise ValueError(f"'{key}' is missing or no {kind.__name__}")
    for key in ("facts", "training"):
        if not isinstance(record.setdefault(key, {}), dict):
            raise ValueError(f"'{key}' is no dict")
    losses = record["training"].get("loss_per_epoch", [])
    if not isinstance(losses, list) or not all(map(_is_number, losses)):
        raise ValueError("loss_per_epoch is no list of numbers")
    if not isinstance(record["config"].get("data"), dict) or not isinstance(
        record["config"]["data"].get("dataset"), str
    ):
        raise ValueError("its configuration names no data set")
    if not isinstance(record["labels"].get("strategy"), str):
        raise ValueError("its labels name no strategy")
    _check_typed({**record["config"], "labels": record["labels"], "environment": record["environment"]})
    for name, value in record["metrics"].items():
        if not _is_number(value) or (FRACTION.fullmatch(name) and value is not None and not 0 <= value <= 1):
            raise ValueError(f"{name} is {_short(value)}, no {'fraction' if FRACTION.fullmatch(name) else 'number'}")
    for name, value in record["cost"].items():
        if not _is_number(value):
            raise ValueError(f"{name} is {_short(value)}, no number")
    if not any(
        name.startswith("recall_at_") and FRACTION.fullmatch(name) and record["metrics"][name] is not None
        for name in record["metrics"]
    ):
        raise ValueError("it has no recall_at_K")
    return record


def _check_typed(sections: dict[str, Any]) -> None:
    """Raises ValueError for a value that is not as :data:`TYPED` says."""
    for section, kinds in TYPED.items():
        values = sections.get(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"'{section}' is no dict")
        for name, kind in kinds.items():
            value = values.get(name)
            if value is not None and (not isinstance(value, kind) or (kind is not str and not _is_number(value))):
                raise ValueError(f"'{name}' is {_short(value)}, no {'text' if kind is str else 'number'}")


def _is_number(value: Any) -> bool:
    """A number that tables can hold (NaN compares with nothing), or none."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18)


def _short(value: Any) -> str:
    """For a message; Python refuses to print an integer of many digits."""
    return f"{value!r:.40}" if not isinstance(value, int) or abs(value) < 1e18 else "a huge number"


def read_records(results: Path) -> Iterator[dict[str, Any]]:
    """All records below ``results/runs``, by file name. A broken or foreign file is named on standard error and passed over."""
    for path in sorted((results / "runs").glob("*.json")):
        try:
            yield read_record(path)
        except (ValueError, OSError) as error:
            logger.info(f"skipped {path}: {first_line(error)}")


def find_records(word: str, results: Path) -> list[dict[str, Any]]:
    """The records that `word` names: the id of one, its file, or the hash of a configuration, or the beginning of ids of one only (all its
    seeds).

    Raises:
        UserError: nothing, or several runs of different configurations, are named so; or the record is broken.
    """
    path = Path(word)
    if path.suffix == ".json":
        return [_read_named(path)]
    paths = sorted((results / "runs").glob("*.json"))
    chosen = [path for path in paths if path.stem == word]
    chosen = chosen or [path for path in paths if path.stem.startswith(word) or f"-{word}-s" in path.stem]
    if not chosen:
        raise unknown("run", word, [path.stem for path in paths])
    found = [_read_named(path) for path in chosen]
    if len({record["config_hash"] for record in found}) > 1:
        raise UserError(
            f"{word}: fits {len(found)} runs in {results / 'runs'} ({chosen[0].stem}, {chosen[-1].stem}...); say more"
        )
    return found


def _read_named(path: Path) -> dict[str, Any]:
    try:
        return read_record(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such record") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {first_line(error)}") from None


def environment(device: str) -> dict[str, Any]:
    """Device, threads, versions and git revision of this process."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    versions = {package: metadata.version(package) for package in VERSIONED}
    return {
        "device": f"{device}: {name}",
        "threads": torch.get_num_threads(),
        "git_revision": git_revision(),
        "versions": {"retrieval_bench": retrieval_bench.__version__, "python": platform.python_version(), **versions},
    }


@cache
def git_revision() -> str | None:
    """Commit of the checkout that the package runs from, with ``+changes`` if files differ from it; None outside a checkout.

    Read once per process, when its first run starts, since that is the code that was loaded.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
