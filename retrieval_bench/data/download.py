"""Fetching files from a list of mirrors, with resume and a checksum. Nothing half-fetched is ever used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_bench.errors import UserError
from retrieval_bench.files import atomic_path, cache_dir, check_digest, check_space, digest, locked
from retrieval_bench.progress import download_bar, logger


@dataclass(frozen=True)
class Archive:
    """A file on the web.

    Attributes:
        name: its file name, also in the cache.
        md5: of the whole file; empty where none is published (then counts alone vouch for it).
        urls: the mirrors in the order they are tried; none if only a person can fetch it.
        by_hand: where a person gets it, for the message when no mirror gives it.
    """

    name: str
    md5: str = ""
    urls: tuple[str, ...] = ()
    by_hand: str = ""

    @property
    def place(self) -> Path:
        """Where it is kept in the cache."""
        return cache_dir() / "downloads" / self.name

    @property
    def part(self) -> Path:
        """What has been downloaded of it so far."""
        return self.place.with_name(self.name + ".part")


SHORTER = "its file is shorter than the part fetched so far"


class ResumingDownloader:
    """A pooch downloader that continues a partial download (HTTP ``Range``) and refuses an HTML page in place of a file.

    The part so far is kept beside the target as ``<name>.part``, across calls and mirrors, until it is complete.
    """

    def __init__(self, part: Path):
        self.part = part

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        import requests

        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, stream=True, timeout=30, headers=headers) as response:
            if response.status_code != 416:
                self._receive(response, have)
            elif response.headers.get("content-range", "").removeprefix("bytes */") not in (
                "",
                str(have),
            ):  # else nothing is left to send
                raise ConnectionError(SHORTER)
        self.part.replace(output_file)

    def _receive(self, response: Any, have: int) -> None:
        from requests.exceptions import ChunkedEncodingError

        response.raise_for_status()
        if response.headers.get("content-type", "").startswith("text/html"):
            raise ValueError("the server answered with an HTML page")
        resumed = response.status_code == 206
        remaining = int(response.headers.get("content-length", 0))
        check_space(self.part.parent, remaining, f"downloading {self.part.stem}")
        total = remaining + (have if resumed else 0)
        broken = False
        with (
            self.part.open("ab" if resumed else "wb") as stream,
            download_bar(self.part.stem, total, have if resumed else 0) as advance,
        ):
            try:
                for chunk in response.iter_content(1 << 20):
                    stream.write(chunk)
                    advance(len(chunk))
            except ChunkedEncodingError:
                broken = True
        size = self.part.stat().st_size
        if broken or size < total:
            raise ConnectionError(f"connection closed after {size:,}{f' of {total:,}' if total else ''} bytes")


def fetch_all(archives: Sequence[Archive]) -> None:
    """:func:`fetch` of each, those that only a person can fetch first, so that they are asked for before hours of downloading."""
    missing = [archive for archive in archives if not archive.urls and not archive.place.exists()]
    if missing:
        names = " and ".join(archive.name for archive in missing)
        sources = " and ".join(dict.fromkeys(archive.by_hand for archive in missing if archive.by_hand))
        raise UserError(
            f"{names} cannot be downloaded{sources and f' {sources}'}; put what you have into {missing[0].place.parent}, "
            "give it to `data fetch NAME` with --from-archive, or give its folder with --data-root"
        )
    for archive in archives:
        fetch(archive)


def fetch(archive: Archive) -> Path:
    """The archive's path in the cache, downloaded from the first mirror that works and checked against its MD5.

    Of two processes that ask for the same file one downloads it while the other waits.

    Raises:
        UserError: no mirror gave the file, or the disk is too full; the line says what each mirror answered and where to place a file
            fetched by hand.
    """
    if not archive.place.exists():
        with locked(archive.place, f"downloading {archive.name}"):
            if not archive.place.exists():
                _download(archive)
    if archive.md5:
        check_digest(archive.place, archive.md5, "md5")
    return archive.place


def _download(archive: Archive) -> None:
    failures: list[str] = []
    for url in archive.urls:
        if not (failure := _try(archive, url)):
            return
        failures.append(failure)
    if failures and all(failure.endswith(SHORTER) for failure in failures):  # no mirror can continue this part
        archive.part.unlink(missing_ok=True)
        failures.append("that part is removed: the same command starts anew")
    tried = f" ({'; '.join(failures)})" if failures else ""
    ways = f"give it to `data fetch` with --from-archive, or put it at {archive.place}"
    raise UserError(
        f"cannot download {archive.name}{tried}; fetch it by hand{archive.by_hand and f' {archive.by_hand}'} and {ways}"
    )


def _try(archive: Archive, url: str) -> str:
    """Downloads from one mirror; returns what went wrong, or an empty text."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # the line below says it
    logger.info(f"downloading {url}")
    downloader: Any = ResumingDownloader(archive.part)
    try:
        pooch.retrieve(
            url,
            f"md5:{archive.md5}" if archive.md5 else None,
            fname=archive.name,
            path=archive.place.parent,
            downloader=downloader,
        )
    except (requests.RequestException, ConnectionError) as error:
        return f"{url}: {_reason(error)}"
    except ValueError as error:  # an HTML page, or pooch's word that the checksum differs
        return f"{url}: {'wrong checksum' if 'hash' in str(error) else error}"
    return ""


def install(archives: Sequence[Archive], given: Path) -> Archive:
    """Puts a file fetched by hand into the cache, so that its data set is found there from now on.

    It is recognised by its MD5, or by its name where no MD5 is published; a file on the same disk is linked, not copied.

    Raises:
        UserError: no file, an HTML page under an archive's name, or none of the `archives`.
    """
    if not given.is_file():
        raise UserError(f"{given}: no such file (--from-archive)")
    with given.open("rb") as stream:
        if (
            stream.read(512)
            .removeprefix(b"\xef\xbb\xbf")
            .lstrip()
            .lower()
            .startswith((b"<!doctype", b"<html", b"<?xml"))
        ):
            raise UserError(
                f"{given}: an HTML page, not an archive: the server answered with a page in place of the file; fetch it again"
            )
    found = digest(given, "md5")
    for archive in archives:
        if found == archive.md5 or (not archive.md5 and given.name == archive.name):
            with locked(archive.place, f"installing {archive.name}"):
                if not archive.place.exists() or digest(archive.place, "md5") != found:
                    _place(given.resolve(), archive.place)
            return archive
    expected = ", ".join(f"{archive.name}{archive.md5 and f' (md5 {archive.md5})'}" for archive in archives)
    raise UserError(f"{given}: md5 is {found}, expected {expected}; a re-packaged copy can be opened with --data-root")


def _place(given: Path, place: Path) -> None:
    link = place.with_name(f".{place.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(given, link)
        link.replace(place)
    except OSError:  # another disk, or one that knows no links
        check_space(place.parent, given.stat().st_size, f"a copy of {given.name}")
        with atomic_path(place) as temporary:
            shutil.copyfile(given, temporary)


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return str(error)
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
