"""The files of a data set: in a folder or in archives, extracted once, with safe paths only; and reading its lists."""

from __future__ import annotations

import errno
import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from retrieval_bench.data.download import Archive, fetch_all
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import cache_dir, check_space, made_once
from retrieval_bench.progress import logger

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, ValueError)


def find_files(
    root: Path | None, archives: tuple[Archive, ...], title: str, *names: tuple[str, ...], below: Sequence[str] = ()
) -> list[Path]:
    """The files or folders that make up a data set: of each tuple of `names`, the first that exists.

    `root` is an extracted folder, a folder with the `archives` (in it or `below` it), or one archive; None downloads
    them. An archive that is given may be re-packed, so only a download is checked against its MD5; it is extracted only
    if what is sought is not in `root` or the archives before it.
    """
    if root is None:
        fetch_all(archives)
        files = [archive.path for archive in archives]
    elif root.is_file():
        files = [root]
    else:
        files = [root / name / archive.name for name in ("", *below) for archive in archives]

    def folders() -> Iterator[Path]:
        if root is not None and root.is_dir():
            yield root
        for file in files:
            if file.is_file():
                yield extracted(file) if file.name.lower().endswith(SUFFIXES) or file == root else file.parent

    present = []
    for alternatives in names:
        path = next((folder / name for folder in folders() for name in alternatives if (folder / name).exists()), None)
        if path is None:
            raise UserError(
                f"{root or title}: no {title} here ({alternatives[0]} is missing); "
                f"give its extracted folder, or a folder with {', '.join(archive.name for archive in archives)}"
            )
        present.append(path)
    return present


def extracted(archive: Path) -> Path:
    """The folder with the contents of `archive`, extracted into the cache (by one process, whole) on the first call."""
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    target = cache_dir() / "extracted" / f"{archive.name.split('.')[0][:80]}-{key[:12]}"
    return made_once(target, f"extracting {archive.name}", partial(unpack, archive))


def unpack(archive: Path, folder: Path) -> None:
    """Extracts a tar (any compression) or zip into `folder`; refuses what is no archive, damaged, too large for the
    disk, or has a member that would be outside the folder."""
    logger.info(f"extracting {archive}")
    with archive.open("rb") as stream:  # not zipfile.is_zipfile: it would find the directory of a zip inside a tar
        is_zip = stream.read(4) in (b"PK\3\4", b"PK\5\6")
    try:
        (_unzip if is_zip else _untar)(archive, folder)
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused, a member would be written outside the folder ({error})") from None
    except (*DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, not of the contents
            raise
        reason = first_line(error)
        raise UserError(f"{archive}: damaged, or not a tar or zip archive ({reason}); fetch it again") from None


def _untar(archive: Path, folder: Path) -> None:
    check_space(folder, archive.stat().st_size, f"extracting {archive.name}")  # at least: images hardly compress
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        while tar.fileobj and tar.fileobj.read(1 << 20):  # to the end of the stream, where the checksum is verified
            pass


def _unzip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            parts = member.filename.replace("\\", "/").split("/")
            if not parts[0] or ".." in parts or ":" in parts[0] or stat.S_ISLNK(member.external_attr >> 16):
                raise UserError(f"{archive}: refused, member '{member.filename}' is a link or outside the folder")
            if member.flag_bits & 1:
                raise UserError(f"{archive}: encrypted; extract it by hand and give the folder with --data-root")
        check_space(folder, sum(member.file_size for member in zipped.infolist()), f"extracting {archive.name}")
        zipped.extractall(folder)


def read_columns(path: Path, *types: type, skip: int = 0) -> list[tuple[Any, ...]]:
    """The rows of a text file, split at white space into one value of each type; the last one may hold spaces.

    `skip` lines of heading are left out. Raises :class:`UserError` if the file is missing, or a line has another number
    of columns or text in place of a number.
    """
    _check_exists(path)
    rows = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines[skip:], start=skip + 1):
        values = line.split(maxsplit=len(types) - 1)
        if values:
            try:
                rows.append(tuple(kind(value.strip()) for kind, value in zip(types, values, strict=True)))
            except ValueError as error:
                reason = str(error) if len(values) == len(types) else f"{len(values)} columns, not {len(types)}"
                raise UserError(
                    f"{path}: not the official file (line {number}: {reason}); fetch the data set again"
                ) from None
    return rows


def read_matlab(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file, flat; ``name.field`` is a field of each struct in the variable.

    Raises :class:`UserError` if it is not a MATLAB file, or a variable or field is missing.
    """
    _check_exists(path)
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)
        arrays = []
        for name in names:
            variable, _, field = name.partition(".")
            values = np.atleast_1d(content[variable])
            arrays.append(np.array([getattr(value, field) for value in values]) if field else values)
        return arrays
    except (KeyError, AttributeError) as error:
        missing = error.args[0] if isinstance(error, KeyError) else error.name
        raise UserError(f"{path}: not the official file (it has no '{missing}'); fetch it again") from None
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise UserError(f"{path}: not a MATLAB file ({first_line(error)}); fetch it again") from None


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: file is missing; the data set is incomplete")
