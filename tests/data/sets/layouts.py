"""Writing data sets in miniature, in their true layouts: files of one byte, MATLAB structs, archives."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from retrieval_bench.data.images import ImageTable


def touch(root: Path, *paths: str) -> Path:
    """Writes one byte to each of `paths` below `root`; returns `root`."""
    for folder in {(root / path).parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).write_bytes(b"x")
    return root


def structs(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> np.ndarray:
    """A 1 x N MATLAB struct array with the fields `names`."""
    return np.array([tuple(row) for row in rows], dtype=[(name, object) for name in names]).reshape(1, -1)


def cells(values: Sequence[str]) -> np.ndarray:
    """A 1 x N MATLAB cell array of texts."""
    return np.array(values, dtype=object).reshape(1, -1)


def save_mat(path: Path, **variables: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)
    return path


def pack(archive: Path, folder: Path, *names: str) -> Path:
    """Packs `names` of `folder`, all by default, into a zip or tgz, according to the name of `archive`."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    chosen = names or tuple(entry.name for entry in folder.iterdir())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            for path in sorted(path for name in chosen for path in [folder / name, *(folder / name).rglob("*")]):
                zipped.write(path, path.relative_to(folder).as_posix())
    else:
        with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            for name in chosen:
                tar.add(folder / name, name)
    return archive


def class_of(table: ImageTable) -> dict[str, str]:
    """Class name by path."""
    return {path: table.class_names[label] for path, label in zip(table.paths, table.labels.tolist(), strict=True)}


def paths_of(table: ImageTable, rows: np.ndarray) -> list[str]:
    return [table.paths[row] for row in rows]
