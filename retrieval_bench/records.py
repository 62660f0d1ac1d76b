"""The record of a run: one JSON file that holds all that is known about it; and the folder where records lie.

Records are the truth: every table is built from them.

Layout of the file (``schema`` 1)::

    schema, id, seed, config_hash, command, finished
    config       the whole configuration (paths replaced by the names and digests of what they hold)
    labels       what tables show: strategy, weights, dim
    data         images and classes in all and on each side of the split
    metrics      recall_at_1, ..., mrr, r_precision, map_at_r as fractions; queries; queries_without_positive;
                 accuracy in a closed set
    variants     the same for the strategy's other evaluation modes (only where there are any)
    cost         parameters, trained parameters, macs, latency of one image, images seen, seconds, peak memory
    training     mean loss per epoch; converged: the last one is lower than the first (null for fewer than two epochs);
                 only if it happened: epochs after which it was resumed, batches that were skipped (skipped_batches),
                 the precision that `auto` chose
    facts        what the strategy learned; routes of the test images through a routed network
    environment  device, threads, versions, git revision
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from retrieval_bench.columns import METRIC
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.files import locked, write_text
from retrieval_bench.progress import logger

SCHEMA = 1
NUMBERS = re.compile(r"\[\n[-+.\deE,\s]+\]")
"""A list of numbers, which is written on one line; no text looks like it, since text has no line breaks in JSON."""
FILE_NAMES = {"eval_modes": "variants", "info": "facts"}
"""What fields of a :class:`Record` are called in the file, where that differs."""
REQUIRED = {"config": dict, "metrics": dict, "cost": dict, "labels": dict, "environment": dict, "data": dict}
REQUIRED |= {"id": str, "config_hash": str, "seed": int}
TYPED = {
    "data": {"split": str, "classes": int | float, "image_size": int | float},
    "model": {"backbone": str},
    "labels": {"weights": str, "dim": int | float},
    "environment": {"device": str},
}
"""Values that tables group by and format, where a record has them: sections of the configuration and of the record."""


@dataclass(frozen=True)
class Record:
    """One run, as the module's docstring lists it."""

    id: str
    seed: int
    config_hash: str
    config: dict[str, Any]
    labels: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    environment: dict[str, Any]
    eval_modes: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    finished: str = ""

    @property
    def strategy(self) -> str:
        """The strategy with its telling options, as tables show it."""
        return self.labels["strategy"]

    @property
    def dataset(self) -> str:
        return self.config["data"]["dataset"]

    @property
    def device(self) -> str:
        """``cpu: Intel(R) Xeon(R) Processor``; ``unknown`` if the record does not say."""
        return self.environment.get("device") or "unknown"

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.device.split(":")[0]

    @property
    def loss_per_epoch(self) -> list[float]:
        return self.training.get("loss_per_epoch", [])

    @classmethod
    def from_json(cls, values: Any) -> Record:
        """A record from the file's values; other keys are passed over.

        Raises:
            ValueError: with the reason, for values that are not a record of this schema.
        """
        _check(values)
        named = {part.name: values.get(FILE_NAMES.get(part.name, part.name)) for part in fields(cls)}
        return cls(**{name: value for name, value in named.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """The file's values; evaluation modes only where there are any."""
        values = {FILE_NAMES.get(part.name, part.name): getattr(self, part.name) for part in fields(self)}
        if not self.eval_modes:
            del values["variants"]
        return {"schema": SCHEMA, **values}


def write_record(path: Path, record: Record) -> None:
    """Writes the record atomically; NaN and infinities, which JSON lacks, become null."""
    text = json.dumps(finite(record.to_json()), indent=2, sort_keys=True, allow_nan=False)
    one_line = NUMBERS.sub(lambda match: re.sub(r"\s+", " ", match[0]).replace("[ ", "[").replace(" ]", "]"), text)
    write_text(path, one_line + "\n")


def finite(value: Any) -> Any:
    """`value` with None in place of NaN and infinities, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(path: Path) -> Record:
    """One record. Raises ValueError, with the reason, for a file that is not a record of this schema."""
    text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\u" in text:
        json.dumps(
            values, ensure_ascii=False
        ).encode()  # half of a surrogate pair, which no file can hold, is a ValueError
    return Record.from_json(values)


def _check(values: Any) -> None:
    """Raises ValueError unless tables can be made of these values."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"not a record of schema {SCHEMA}")
    for key, kind in REQUIRED.items():
        if not isinstance(values.get(key), kind) or isinstance(values[key], bool):
            raise ValueError(f"'{key}' is missing or no {kind.__name__}")
    for key in ("facts", "training", "variants"):
        if not isinstance(values.get(key, {}), dict):
            raise ValueError(f"'{key}' is no dict")
    losses = values.get("training", {}).get("loss_per_epoch", [])
    if not isinstance(losses, list) or not all(map(_is_number, losses)):
        raise ValueError("loss_per_epoch is no list of numbers")
    if not isinstance(values["config"].get("data"), dict) or not isinstance(
        values["config"]["data"].get("dataset"), str
    ):
        raise ValueError("its configuration names no data set")
    if not isinstance(values["labels"].get("strategy"), str):
        raise ValueError("its labels name no strategy")
    _check_types({**values["config"], "labels": values["labels"], "environment": values["environment"]})
    for name, value in {**values["metrics"], **values["cost"]}.items():
        is_fraction = bool(METRIC.fullmatch(name))
        if not _is_number(value) or (is_fraction and value is not None and not 0 <= value <= 1):
            raise ValueError(f"{name} is {_short(value)}, no {'fraction' if is_fraction else 'number'}")
    if not any(
        METRIC.fullmatch(name) and name.startswith("recall") and value is not None
        for name, value in values["metrics"].items()
    ):
        raise ValueError("it has no recall_at_K")


def _check_types(sections: dict[str, Any]) -> None:
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


@dataclass(frozen=True)
class ResultsFolder:
    """A results folder: where everything of a run lies, and who works on it."""

    root: Path

    @property
    def runs(self) -> Path:
        """Folder of the records."""
        return self.root / "runs"

    @property
    def experiments(self) -> Path:
        """Folder of the tables and figures of experiments."""
        return self.root / "studies"

    @property
    def search(self) -> ResultsFolder:
        """Results of the trials of searches, which tables of results do not show."""
        return ResultsFolder(self.root / "search")

    def record(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.json"

    def details(self, run_id: str) -> Path:
        """What a run found image by image."""
        return self.root / "details" / f"{run_id}.npz"

    def model(self, run_id: str) -> Path:
        """The saved embedder, without an ending."""
        return self.root / "models" / run_id

    def checkpoints(self, run_id: str) -> Path:
        """Folder of the checkpoints, until the run has its record."""
        return self.root / "checkpoints" / run_id

    def log(self, run_id: str) -> Path:
        """Output of a run that was made by a worker."""
        return self.root / "logs" / f"{run_id}.log"

    @contextmanager
    def lock(self, run_id: str, wait: bool = True) -> Iterator[None]:
        """Keeps other processes from the run.

        Raises:
            Locked: another process has it and `wait` is False.
        """
        with locked(self.checkpoints(run_id), f"running {run_id}", "--results", wait):
            yield

    def read_records(self) -> list[Record]:
        """All records, by file name. A broken or foreign file is named on standard error and skipped."""
        records = []
        for path in sorted(self.runs.glob("*.json")):
            try:
                records.append(read_record(path))
            except (ValueError, OSError) as error:
                logger.info(f"skipped {path}: {first_line(error)}")
        return records

    def find(self, word: str) -> list[Record]:
        """The records that `word` names: the id of one, its file, or the hash of a configuration, or the beginning of
        ids of one configuration only (all its seeds).

        Raises:
            UserError: nothing, or several runs of different configurations, are named so; or the record is broken.
        """
        path = Path(word)
        if path.suffix == ".json":
            return [_read_named(path)]
        paths = sorted(self.runs.glob("*.json"))
        chosen = [path for path in paths if path.stem == word]
        chosen = chosen or [path for path in paths if path.stem.startswith(word) or f"-{word}-s" in path.stem]
        if not chosen:
            raise unknown("run", word, [path.stem for path in paths])
        records = [_read_named(path) for path in chosen]
        if len({record.config_hash for record in records}) > 1:
            names = f"{chosen[0].stem}, {chosen[-1].stem}..."
            raise UserError(f"{word}: fits {len(records)} runs in {self.runs} ({names}); say more")
        return records

    def require_records(self) -> list[Record]:
        """:meth:`read_records`; raises :class:`UserError` if there are none."""
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; --results names the one that holds runs/")
        records = self.read_records()
        if not records:
            raise UserError(f"{self.root}: no records in runs/; `make bench` makes the first ones")
        return records


def load_records(results: Path | str = "results/local") -> list[Record]:
    """All records of a results folder, by file name; a broken or foreign file is named on standard error and
    skipped."""
    return ResultsFolder(Path(results)).read_records()


def _read_named(path: Path) -> Record:
    try:
        return read_record(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such record") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {first_line(error)}") from None
