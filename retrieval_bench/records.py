"""The record of a run: one JSON file that holds all that is known about it; and the folder where records lie.

Records are the truth: every table is built from them.

Layout of the file (``schema`` 1)::

    schema, id, seed, config_hash, command, finished
    config       the whole configuration (paths replaced by the names and digests of what they hold; code.sources:
                 the user's own strategies, loss and backbone, each with the digest of its file, only if there are any)
    labels       what tables show: strategy, weights, dim
    data         images and classes in all and on each side of the split
    metrics      recall_at_1, ..., mrr, r_precision, map_at_r as fractions; queries; queries_without_positive;
                 accuracy in a closed set
    variants     the same for the strategy's other evaluation modes (only where there are any)
    elsewhere    by other data set, as `also_test` names it: recall_at_1, mrr, r_precision, map_at_r, queries,
                 queries_without_positive, images and classes (only where there are any)
    cost         parameters, trained parameters, macs, latency of one image, images seen, seconds, peak memory
                 only if there were any: passes of the images seen through frozen blocks that kept features saved
                  (prefix_passes_saved)
    training     mean loss per epoch; converged: the last one is lower than the first (null for fewer than two epochs);
                 only if it happened: epochs after which it was resumed, batches that were skipped (skipped_batches),
                  share of the batches that gave the loss no pair or triplet (batches_without_pairs), the precision that
                  `auto` chose
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

from retrieval_bench.columns import METRIC, metric_names
from retrieval_bench.errors import UserError, first_line, unknown
from retrieval_bench.files import locked, write_text
from retrieval_bench.progress import logger

SCHEMA = 1
NUMBERS = re.compile(r"\[\n[-+.\deE,\s]+\]")
"""A list of numbers, which is written on one line; no text looks like it, since text has no line breaks in JSON."""
FILE_NAMES = {"eval_modes": "variants", "info": "facts"}
"""What fields of a :class:`Record` are called in the file, where that differs."""
NUMBER, ABSENT = int | float, object()
SECTIONS = "config metrics cost labels environment data".split()
REQUIRED = {"id": str, "config_hash": str, "seed": int, **dict.fromkeys(SECTIONS, dict)}
REQUIRED |= {"config.data": dict, "config.data.dataset": str, "labels.strategy": str}
OPTIONAL = {
    **dict.fromkeys(("facts", "training", "variants", "elsewhere", "config.model"), dict),
    **dict.fromkeys(("config.data.split", "config.model.backbone", "labels.weights", "environment.device"), str),
    **dict.fromkeys(("config.data.classes", "config.data.image_size", "labels.dim"), NUMBER),
    "training.loss_per_epoch": list,
}
"""What values of a record's file are, by dotted names: those that tables are made of."""


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
    elsewhere: dict[str, dict[str, Any]] = field(default_factory=dict)
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
        """The file's values; evaluation modes and other data sets only where there are any."""
        values = {FILE_NAMES.get(part.name, part.name): getattr(self, part.name) for part in fields(self)}
        values = {name: value for name, value in values.items() if value or name not in ("variants", "elsewhere")}
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
    """One record. Raises :class:`UserError` for a file that is missing or not a record of this schema, with the
    reason."""
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        if "\\u" in text:  # half of a surrogate pair, which no file can hold, is a ValueError
            json.dumps(values, ensure_ascii=False).encode()
        return Record.from_json(values)
    except FileNotFoundError:
        reason = "no such record"
    except RecursionError:
        reason = "nested too deeply"
    except IsADirectoryError:
        reason = "is a folder; name the file of a record, <results>/runs/<id>.json"
    except json.JSONDecodeError as error:
        reason = f"not a record ({first_line(error)})"
    except (ValueError, OSError) as error:
        reason = first_line(error)
    raise UserError(f"{path}: {reason}") from None


def _check(values: Any) -> None:
    """Raises ValueError unless tables can be made of these values."""
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"not a record of schema {SCHEMA}")
    for name, kind in {**REQUIRED, **OPTIONAL}.items():
        value: Any = values
        for part in name.split("."):
            value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
        if name in OPTIONAL and (value is ABSENT or (value is None and kind is not dict)):
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is NUMBER and not _is_number(value)):
            words = "number" if kind is NUMBER else getattr(kind, "__name__", "")
            raise ValueError(f"'{name}' is missing or no {words}")
    if not all(map(_is_number, values.get("training", {}).get("loss_per_epoch") or ())):
        raise ValueError("'training.loss_per_epoch' is no list of numbers")
    elsewhere = values.get("elsewhere") or {}
    if not all(isinstance(other, dict) and isinstance(other.get("recall_at_1"), float) for other in elsewhere.values()):
        raise ValueError("'elsewhere' has a data set without recall_at_1")
    for name, value in {**values["metrics"], **values["cost"]}.items():
        is_fraction = bool(METRIC.fullmatch(name))
        if not _is_number(value) or (is_fraction and value is not None and not 0 <= value <= 1):
            shown = "a huge number" if isinstance(value, int) and abs(value) >= 1e18 else f"{value!r:.40}"
            raise ValueError(f"{name} is {shown}, no {'fraction' if is_fraction else 'number'}")
    if not any(
        name.startswith("recall") and values["metrics"][name] is not None for name in metric_names(values["metrics"])
    ):
        raise ValueError("it has no recall_at_K")


def _is_number(value: Any) -> bool:
    """A number that tables can hold (NaN compares with nothing), or none."""
    return value is None or (isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) < 1e18)


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
        """Keeps other processes from the run; raises ``Locked`` if one has it and `wait` is False."""
        with locked(self.checkpoints(run_id), f"running {run_id}", "--results", wait):
            yield

    def read_records(self) -> list[Record]:
        """All records, by file name. A broken or foreign file is named on standard error and skipped."""
        records = []
        for path in sorted(self.runs.glob("*.json")):
            try:
                records.append(read_record(path))
            except UserError as error:
                logger.info(f"skipped {error}")
        return records

    def find(self, word: str) -> list[Record]:
        """The records that `word` names: the id of one, its file, or the hash of a configuration, or the beginning of
        ids of one configuration only (all its seeds).

        Raises:
            UserError: nothing, or several runs of different configurations, are named so; or the record is broken.
        """
        path = Path(word)
        if path.suffix == ".json":
            return [read_record(path)]
        paths = sorted(self.runs.glob("*.json"))
        chosen = [path for path in paths if path.stem == word]
        chosen = chosen or [path for path in paths if path.stem.startswith(word) or f"-{word}-s" in path.stem]
        if not chosen:
            raise unknown("run", word, [path.stem for path in paths])
        records = [read_record(path) for path in chosen]
        if len({record.config_hash for record in records}) > 1:
            names = f"{chosen[0].stem}, {chosen[-1].stem}..."
            raise UserError(f"{word}: fits {len(records)} runs in {self.runs} ({names}); say more")
        return records

    def existing(self) -> ResultsFolder:
        """The same; raises :class:`UserError` if there is no such folder."""
        if not self.root.is_dir():
            raise UserError(f"{self.root}: no such folder; --results names the one that holds runs/")
        return self

    def require_records(self) -> list[Record]:
        """:meth:`read_records`; raises :class:`UserError` if there are none."""
        records = self.existing().read_records()
        if not records:
            raise UserError(f"{self.root}: no records in runs/; `make bench` makes the first ones")
        return records


def load_records(results: Path | str = "results/local") -> list[Record]:
    """All records of a results folder, by file name; a broken or foreign file is named on standard error and
    skipped."""
    return ResultsFolder(Path(results).expanduser()).read_records()
