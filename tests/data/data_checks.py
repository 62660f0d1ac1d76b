"""What several data tests check or make."""

from __future__ import annotations

import csv
import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.data.download import Wheel
from retrieval_bench.errors import UserError

MANIFESTS = Path(__file__).parents[2] / "datasets"


@cache
def read_manifest(name: str) -> list[dict[str, str]]:
    """The rows of ``datasets/<name>.csv``."""
    with (MANIFESTS / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@contextmanager
def refused(*words: object) -> Iterator[None]:
    """The block must raise a UserError of one line that holds every one of `words`."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def files_below(folder: Path) -> list[str]:
    """Everything below `folder`, hidden names and folders too; a folder that does not exist holds nothing."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.exists() else []


def noise(size: int) -> bytes:
    """The same incompressible bytes each time."""
    return np.random.default_rng(0).bytes(size)


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """An RGB image of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def write_wheel(folder: Path, project: str, version: str, files: dict[str, bytes]) -> tuple[Path, Wheel]:
    """Writes a wheel that pip accepts into `folder`; returns its path and how it is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / f"{project}-{version}-py3-none-any.whl", f"{project}-{version}.dist-info"
    metadata = {
        "METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    content = files | {f"{info}/{name}": text.encode() for name, text in metadata.items()}
    content[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*content, f"{info}/RECORD"]).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path, Wheel(project, version, hashlib.sha256(path.read_bytes()).hexdigest())
