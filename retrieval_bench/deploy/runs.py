"""Which embedder is meant: that of a run, by its id, or that of an exported folder."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_bench.deploy.saved import files_of, is_kept, kept_path
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.records import read_record, record_path

NAME = "embedder"
"""What the files of an exported folder are called, without their endings."""


@dataclass(frozen=True)
class Found:
    """An embedder on the disk.

    Attributes:
        path: of its recipe and weights, without an ending.
        record: of its run; None for an exported folder.
    """

    path: Path
    record: dict[str, Any] | None


def find_embedder(run: str, results: Path) -> Found:
    """The embedder of a run.

    Args:
        run: id of a record below `results`, or the beginning of exactly one id; or the path of an exported folder.
        results: folder that holds ``runs/`` and ``models/``.

    Raises:
        UserError: no such run or folder, several, a record that cannot be read, or a run whose embedder was not kept, with the command
            that makes it again.
    """
    folder = Path(run).expanduser()
    if folder.is_dir():
        if not is_kept(folder / NAME):
            names = " and ".join(path.name for path in files_of(folder / NAME))
            raise UserError(f"{run}: not an exported folder, which holds {names}; give one, or the id of a run")
        return Found(folder / NAME, None)
    path = record_path(results, _whole_id(run, results))
    try:
        record = read_record(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove the file, or run again with --force") from None
    kept = kept_path(results, path.stem)
    if not is_kept(kept):
        where = "" if results == Path("results/local") else f" --results {shlex.quote(str(results))}"
        raise UserError(
            f"the embedder of {path.stem} was not kept; this makes it again: {record.get('command', 'run')} --keep{where}"
        )
    return Found(kept, record)


def _whole_id(run: str, results: Path) -> str:
    known = sorted(path.stem for path in (results / "runs").glob("*.json"))
    if not known:
        raise UserError(f"{results}: no records below it (runs/*.json); --results names the folder that has them")
    fitting = [name for name in known if name.startswith(run)]
    if run in known or len(fitting) == 1:
        return run if run in known else fitting[0]
    if fitting:
        more = f" and {len(fitting) - 5} more" if len(fitting) > 5 else ""
        raise UserError(f"'{run}' begins {len(fitting)} runs; give more of one: {', '.join(fitting[:5])}{more}")
    raise unknown("run", run, known)
