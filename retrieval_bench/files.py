"""Files: atomic writes, digests, locks, room on the disk, and where downloads are kept."""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from retrieval_bench.errors import UserError
from retrieval_bench.progress import logger


class Locked(Exception):
    """Another process does the work."""


def cache_dir() -> Path:
    """Where downloads and extracted data sets are kept: ``$RETRIEVAL_BENCH_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("RETRIEVAL_BENCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "retrieval_bench"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path`, renamed onto it when the block ends well and removed when it does not.

    A reader therefore sees the whole old file or the whole new one, whatever interrupts the write. A `path` that is a
    folder is a :class:`UserError`.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `target`, renamed to it when the block ends well and removed when it does not.

    What a killed process left behind is removed first, so two processes must not make the same folder at once
    (:func:`locked`).
    """
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def made_once(target: Path, what: str, make: Callable[[Path], None]) -> Path:
    """The folder `target`, filled by ``make(temporary)`` unless it exists: whole, and by one process (:func:`locked`)
    while others wait."""
    if not target.is_dir():
        with locked(target, what):
            if not target.is_dir():
                with whole_folder(target) as temporary:
                    make(temporary)
    return target


def check_writable(folder: Path, setting: str = "--results") -> None:
    """Raises :class:`UserError` now, rather than after hours of work, if nothing can be written into `folder`; makes it
    if need be.

    Args:
        folder: where something will be written.
        setting: the flag or variable that chooses the folder, for the message.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror}); choose another folder with {setting}"
        ) from None


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises :class:`UserError` now, rather than on a full disk, unless `needed` bytes are free where `folder` is (or
    will be)."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{folder}: {what} needs {gigabytes(needed)} and the disk has {gigabytes(free)} free; make room, "
            "or choose another cache folder with RETRIEVAL_BENCH_CACHE"
        )


def gigabytes(count: int) -> str:
    """A number of bytes for people: ``3.1 GB`` (10^9), ``12 MB`` below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{math.ceil(count / 1e6)} MB"


@contextmanager
def locked(path: Path, what: str, setting: str = "RETRIEVAL_BENCH_CACHE", wait: bool = True) -> Iterator[None]:
    """Holds the lock file beside `path` (``.<name>.lock``), so that two processes do not do the same work at the same
    time.

    A second process logs that it waits, and continues when the first has ended.

    Args:
        path: what is made; the lock lies beside it.
        what: the work, for the message of who waits.
        setting: the flag or variable that chooses the folder, for the message.
        wait: for another process that holds the lock.

    Raises:
        UserError: nothing can be written where `path` is to be.
        Locked: another process holds the lock and `wait` is False.
    """
    check_writable(path.parent, setting)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise Locked(f"another process is {what}") from None
        logger.info(f"waiting for another process that is {what}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes; a file that is missing or cannot be read is a :class:`UserError`."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def check_digest(path: Path, expected: str, algorithm: str) -> None:
    """Raises :class:`UserError` unless the file at `path` has the `expected` digest."""
    found = digest(path, algorithm)
    if found != expected:
        raise UserError(f"{path}: {algorithm} is {found}, expected {expected}; delete the file and fetch it again")
