"""Extracting an archive: safe paths only, whole or not at all, once."""

from __future__ import annotations

import errno
import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import cache_dir, check_space, locked, whole_folder
from retrieval_bench.progress import logger

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip")


def is_archive(path: Path) -> bool:
    """Whether the name says that the file is an archive."""
    return path.name.lower().endswith(SUFFIXES)


def extracted(archive: Path) -> Path:
    """The folder with the contents of a tar (any compression) or zip `archive`, extracted into the cache on the first call.

    Members that would land outside the folder, links out of it and device files are refused. The folder appears under its name only when
    the extraction is complete, so an interrupted one is started over; a second process waits for the first.

    Raises:
        UserError: not an archive, truncated or damaged, with an unsafe member, or larger than the room on the disk.
    """
    status = archive.stat()
    key = f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}"
    target = cache_dir() / "extracted" / f"{archive.name.split('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if target.is_dir():
        return target
    with locked(target, f"extracting {archive.name}"):
        if not target.is_dir():
            _extract_to(archive, target)
    return target


def _extract_to(archive: Path, target: Path) -> None:
    logger.info(f"extracting {archive}")
    with whole_folder(target) as temporary:
        (_unzip if _is_zip(archive) else untar)(archive, temporary)


def _is_zip(archive: Path) -> bool:
    """By its first bytes: a tar may hold a zip, whose directory would be found at its end."""
    with archive.open("rb") as stream:
        return stream.read(4) in (b"PK\3\4", b"PK\5\6")


def untar(archive: Path, folder: Path) -> None:
    """Extracts a tar into `folder`; see :func:`extracted` for what is refused and how."""
    check_space(folder, archive.stat().st_size, f"extracting {archive.name}")  # at least: images hardly compress
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
            while tar.fileobj and tar.fileobj.read(
                1 << 20
            ):  # to the end of the stream, where the compression's checksum is verified
                pass
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused, a member would be written outside the folder ({error})") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{archive}: truncated or not a tar or zip archive ({first_line(error)}); fetch it again"
        ) from None
    except OSError as error:
        if error.errno is not None:  # the disk's word, not the decompressor's
            raise
        raise UserError(f"{archive}: damaged ({error}); fetch it again") from None


def _unzip(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as members:
            for member in members.infolist():
                _check_member(archive, member)
            check_space(folder, sum(member.file_size for member in members.infolist()), f"extracting {archive.name}")
            members.extractall(folder)
    except (zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError, ValueError) as error:
        raise UserError(f"{archive}: truncated or damaged zip ({first_line(error)}); fetch it again") from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the disk's word, not that of a damaged directory
            raise
        raise UserError(f"{archive}: damaged ({first_line(error)}); fetch it again") from None


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    parts = member.filename.replace("\\", "/").split("/")
    if not parts[0] or ".." in parts or ":" in parts[0] or stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(
            f"{archive}: refused, member '{member.filename}' is a link or would be written outside the folder"
        )
    if member.flag_bits & 1:
        raise UserError(f"{archive}: is encrypted; extract it with its password and give the folder with --data-root")
