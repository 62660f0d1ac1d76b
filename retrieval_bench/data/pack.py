"""Packs: a data set scaled down, in tar shards of bounded size, to be carried to another machine and opened there by the same name.

A pack is a folder with ``pack.json`` (name, counts, SHA-256 of each shard), ``manifest.csv`` (path, class, label, side) and the shards.
Images keep their names. One that is small enough travels byte for byte, any other as a JPEG (whatever its name says).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_bench.data.archive import untar
from retrieval_bench.data.images import SIDES, ImageTable
from retrieval_bench.data.parallel import in_threads
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import (
    cache_dir,
    check_digest,
    check_space,
    check_writable,
    digest,
    locked,
    whole_folder,
    write_text,
)
from retrieval_bench.progress import logger

FORMAT = 1
QUALITY = 90
"""Of the JPEGs that scaled images become."""
BLOCK = tarfile.BLOCKSIZE
INDEX = "pack.json"


def is_pack(root: Path) -> bool:
    """Whether `root` is a pack's folder."""
    return (root / INDEX).is_file()


def write_pack(name: str, table: ImageTable, target: Path, size: int, max_shard_mb: float) -> list[Path]:
    """Writes a pack of a data set into the new folder `target`, whole or not at all. The same images give the same bytes.

    Args:
        name: the data set's name, under which the pack is opened.
        table: the images.
        target: a folder that does not exist.
        size: shorter side that images are scaled down to, pixels.
        max_shard_mb: largest size of a shard, 2^20 bytes.

    Returns:
        The shards.

    Raises:
        UserError: the folder exists or cannot be written, an image cannot be decoded, or one is larger than a shard may be.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; remove it or choose another folder with --output")
    check_writable(target.parent, "--output")
    outside = next((path for path in table.paths if _leads_out(path)), None)
    if outside:
        raise UserError(
            f"{outside}: lies outside the data set's folder; name it by a path below that folder to pack it"
        )
    limit = int(max_shard_mb * (1 << 20))
    with whole_folder(target) as temporary:
        with closing(
            in_threads(lambda path: _scaled_bytes(table.root / path, size), table.paths, "packing", len(table))
        ) as images:
            shards = [
                _write_shard(temporary / f"{name}-{number:05d}.tar", files)
                for number, files in _shards(table.paths, images, limit)
            ]
        write_text(temporary / "manifest.csv", _rows(table).to_csv(index=False, lineterminator="\n"))
        index = {
            "format": FORMAT,
            "name": name,
            "images": len(table),
            "zero_shot_classes": table.zero_shot_classes,
            "size": size,
        }
        digests = {path.name: digest(path) for path in [temporary / "manifest.csv", *shards]}
        write_text(
            temporary / INDEX,
            json.dumps(index | {"class_names": table.class_names, "sha256": digests}, indent=1) + "\n",
        )
    return [target / path.name for path in shards]


def _scaled_bytes(path: Path, size: int) -> bytes:
    from retrieval_bench.data.reading import read_image
    from retrieval_bench.data.transforms import shrink

    image = read_image(path)
    small = shrink(image, size)
    if small is image:
        return path.read_bytes()
    stream = io.BytesIO()
    try:
        small.save(stream, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be saved as JPEG at {small.width} x {small.height} pixels ({first_line(error)})"
        ) from None
    return stream.getvalue()


def _shards(
    paths: tuple[str, ...], images: Iterator[bytes], limit: int
) -> Iterator[tuple[int, list[tuple[str, bytes]]]]:
    """(number, [(name, content)]) of each shard; a tar's headers and padding count."""
    number, used, files = 0, 0, []
    for path, content in zip(paths, images, strict=True):
        needed = len(_member(path, content).tobuf(tarfile.PAX_FORMAT)) + -(-len(content) // BLOCK) * BLOCK
        if _tar_size(needed) > limit:
            raise UserError(
                f"{path}: takes {needed:,} bytes, more than --max-shard-mb allows; raise it or lower --size"
            )
        if files and _tar_size(used + needed) > limit:
            yield number, files
            number, used, files = number + 1, 0, []
        used += needed
        files.append((path, content))
    yield number, files


def _tar_size(used: int) -> int:
    """Bytes of a tar whose members take `used`: two empty blocks end it, and it is filled up to a whole record."""
    return -(-(used + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _member(name: str, content: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    return member


def _write_shard(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            tar.addfile(_member(name, content), io.BytesIO(content))
    return path


def _rows(table: ImageTable) -> Any:
    import pandas as pd

    names = np.array(table.class_names, dtype=object)[table.labels]
    sides = {} if table.sides is None else {"side": table.sides}
    return pd.DataFrame({"path": list(table.paths), "class": names, "label": table.labels, **sides})


def open_pack(root: Path, name: str) -> ImageTable:
    """Opens a pack as the data set `name`; its shards are checked and extracted into the cache on the first call.

    Raises:
        UserError: the pack is of another data set, damaged, or lacks a shard.
    """
    index = _read_index(root)
    if index["name"] != name:
        raise UserError(f"{root}: a pack of '{index['name']}', not of '{name}' (--dataset {index['name']})")
    target = cache_dir() / "packs" / f"{name}-{digest(root / INDEX)[:12]}"
    if not target.is_dir():
        with locked(target, f"extracting the pack {root}"):
            if not target.is_dir():
                _extract(root, index["sha256"], target)
    return _read_table(root, index, target)


def _read_index(root: Path) -> dict[str, Any]:
    try:
        index = json.loads((root / INDEX).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}, this version reads {FORMAT}")
        kinds = {"name": str, "images": int, "zero_shot_classes": int, "class_names": list, "sha256": dict}
        for key, kind in kinds.items():
            if not isinstance(index[key], kind):
                raise ValueError(f"'{key}' is no {kind.__name__}")
        if index["zero_shot_classes"] < 0:
            raise ValueError("'zero_shot_classes' is negative")
        if "manifest.csv" not in index["sha256"]:
            raise ValueError("it has no digest of manifest.csv")
        return {key: index[key] for key in kinds}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / INDEX}: not the index of a pack ({first_line(error)}); copy the pack again") from None


def _extract(root: Path, digests: dict[str, str], target: Path) -> None:
    missing = [name for name in digests if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"{root / missing[0]}: {len(missing)} of the pack's {len(digests)} files missing; copy the rest of the pack"
        )
    shards = [root / name for name in digests if name.endswith(".tar")]
    check_space(target, sum(path.stat().st_size for path in shards), f"extracting the pack {root}")
    logger.info(f"extracting {len(shards)} shards of {root}")
    with whole_folder(target) as temporary:
        for name, expected in digests.items():
            check_digest(root / name, expected, "sha256")
        for shard in shards:
            untar(shard, temporary)


def _read_table(root: Path, index: dict[str, Any], folder: Path) -> ImageTable:
    import pandas as pd

    check_digest(root / "manifest.csv", index["sha256"]["manifest.csv"], "sha256")
    try:
        rows = pd.read_csv(root / "manifest.csv", keep_default_na=False, dtype={"path": str, "class": str, "side": str})
        labels = rows["label"].to_numpy(dtype=np.int64)
        sides = rows["side"].to_numpy().astype("U7") if "side" in rows else None
        paths, classes = tuple(rows["path"]), tuple(index["class_names"])
        fits = (
            len(paths) == index["images"]
            and ((labels >= 0) & (labels < len(classes))).all()
            and index["zero_shot_classes"] <= len(classes)
        )
        if not fits or any(map(_leads_out, paths)) or (sides is not None and not np.isin(sides, SIDES).all()):
            raise ValueError("its rows do not fit the index")
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{root / 'manifest.csv'}: not the manifest of a pack ({first_line(error)}); copy the pack again"
        ) from None
    return ImageTable(folder, paths, labels, classes, index["zero_shot_classes"], sides)


def _leads_out(path: str) -> bool:
    return os.path.isabs(path) or ".." in path.split("/")
