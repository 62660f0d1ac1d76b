"""Tiny wheels, made by hand."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from retrieval_bench.data.download import Wheel


def write_wheel(folder: Path, project: str, version: str, files: dict[str, bytes]) -> tuple[Path, Wheel]:
    """Writes a wheel that pip accepts into `folder`; returns its path and how it is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{project}-{version}-py3-none-any.whl"
    info = f"{project}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/RECORD",
            "".join(f"{name},,\n" for name in [*files, f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"]),
        )
    return path, Wheel(project, version, hashlib.sha256(path.read_bytes()).hexdigest())
