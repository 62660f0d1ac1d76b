"""Files: atomic writes, digests, and where downloads are kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_bench.errors import UserError


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

    A reader therefore sees the whole old file or the whole new one, whatever interrupts the write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raises :class:`UserError` now, rather than after hours of work, if nothing can be written into `folder`; makes it if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another folder with --results") from None


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes; a missing file is a :class:`UserError`."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, algorithm).hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


def check_digest(path: Path, expected: str, algorithm: str) -> None:
    """Raises :class:`UserError` unless the file at `path` has the `expected` digest."""
    found = digest(path, algorithm)
    if found != expected:
        raise UserError(f"{path}: {algorithm} is {found}, expected {expected}; delete the file and fetch it again")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
