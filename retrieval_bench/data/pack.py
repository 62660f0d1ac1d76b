"""Packs: a data set scaled down, in tar shards of bounded size, to be opened on another machine by the same name.

It is a folder with ``pack.json`` (name, counts, digests), ``manifest.csv`` (path, class, label, side) and the shards.
Images keep their names. A small one is copied byte for byte, any other becomes a JPEG (whatever its name says).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.data.archive import unpack
from retrieval_bench.data.reading import in_threads, read_image, shrink
from retrieval_bench.data.table import SPLIT_NAMES, ImageTable
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import (
    cache_dir,
    check_digest,
    check_space,
    check_writable,
    digest,
    made_once,
    whole_folder,
    write_text,
)

FORMAT = 1
QUALITY = 90
"""Of the JPEGs that scaled images become."""
INDEX = "pack.json"
INDEX_TYPES = {"name": str, "images": int, "zero_shot_classes": int, "class_names": list, "sha256": dict}


def write_pack(name: str, table: ImageTable, target: Path, size: int, max_shard_mb: float) -> list[Path]:
    """Writes a pack of the data set `name` into the new folder `target`, whole or not at all; returns its shards.

    Images are scaled down to a shorter side of `size` pixels, shards are at most `max_shard_mb` * 2^20 bytes. The same
    images give the same bytes.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; remove it or choose another folder with --output")
    check_writable(target.parent, "--output")
    for path in table.paths:
        if _leads_out(path):
            raise UserError(f"{path}: is outside the data set's folder; name it by a path below that folder to pack it")
    classes = np.array(table.class_names, dtype=object)[table.labels]
    rows = pd.DataFrame({"path": table.paths, "class": classes, "label": table.labels})
    if table.official_split is not None:
        rows["side"] = table.official_split
    with whole_folder(target) as temporary:
        scale = lambda path: _scaled_bytes(table.root / path, size)  # noqa: E731
        with closing(in_threads(scale, table.paths, "packing", len(table))) as contents:
            files = zip(table.paths, contents, strict=True)
            shards = _write_shards(temporary / name, files, int(max_shard_mb * (1 << 20)))
        write_text(temporary / "manifest.csv", rows.to_csv(index=False, lineterminator="\n"))
        index = {
            "format": FORMAT,
            "name": name,
            "images": len(table),
            "zero_shot_classes": table.zero_shot_classes,
            "size": size,
            "class_names": table.class_names,
            "sha256": {path.name: digest(path) for path in [temporary / "manifest.csv", *shards]},
        }
        write_text(temporary / INDEX, json.dumps(index, indent=1) + "\n")
    return [target / path.name for path in shards]


def _scaled_bytes(path: Path, size: int) -> bytes:
    image = read_image(path)
    small = shrink(image, size)
    if small is image:
        return path.read_bytes()
    stream = io.BytesIO()
    try:
        small.save(stream, "JPEG", quality=QUALITY)
    except OSError as error:
        raise UserError(f"{path}: cannot be a JPEG of size {small.size} ({first_line(error)}); leave it out") from None
    return stream.getvalue()


def _write_shards(stem: Path, files: Iterable[tuple[str, bytes]], limit: int) -> list[Path]:
    """Writes tars ``<stem>-00000.tar``... of at most `limit` bytes, in which headers and padding count."""
    # Two empty blocks end a tar, and it is filled up to a whole record.
    room = limit // tarfile.RECORDSIZE * tarfile.RECORDSIZE - 2 * tarfile.BLOCKSIZE
    shards: list[Path] = []
    with ExitStack() as stack:
        tar = None
        for path, content in files:
            member = tarfile.TarInfo(path)
            member.size = len(content)
            needed = len(member.tobuf(tarfile.PAX_FORMAT)) + -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if needed > room:
                raise UserError(f"{path}: its {needed:,} bytes exceed --max-shard-mb; raise it or lower --size")
            if tar is None or tar.offset + needed > room:
                stack.close()
                shards.append(stem.with_name(f"{stem.name}-{len(shards):05d}.tar"))
                tar = stack.enter_context(tarfile.open(shards[-1], "w", format=tarfile.PAX_FORMAT))
            tar.addfile(member, io.BytesIO(content))
    return shards


def open_pack(root: Path, name: str) -> ImageTable:
    """Opens a pack as the data set `name`; its shards are checked and extracted into the cache on the first call."""
    try:
        index = json.loads((root / INDEX).read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}, this version reads {FORMAT}")
        for key, kind in INDEX_TYPES.items():
            if not isinstance(index[key], kind):
                raise ValueError(f"'{key}' is no {kind.__name__}")
        if index["zero_shot_classes"] < 0 or "manifest.csv" not in index["sha256"]:
            raise ValueError("'zero_shot_classes' is negative, or it has no digest of manifest.csv")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root / INDEX}: not the index of a pack ({first_line(error)}); copy the pack again") from None
    if index["name"] != name:
        raise UserError(f"{root}: a pack of '{index['name']}', not of '{name}' (--dataset {index['name']})")
    digests: dict[str, str] = index["sha256"]
    target = cache_dir() / "packs" / f"{name}-{digest(root / INDEX)[:12]}"
    made_once(target, f"extracting the pack {root}", partial(_extract, root, digests))
    check_digest(root / "manifest.csv", digests["manifest.csv"], "sha256")
    return _read_manifest(root / "manifest.csv", index, target)


def _extract(root: Path, digests: dict[str, str], folder: Path) -> None:
    missing = [name for name in digests if not (root / name).is_file()]
    if missing:
        count = f"{len(missing)} of the pack's {len(digests)} files missing"
        raise UserError(f"{root / missing[0]}: {count}; copy the rest of the pack")
    shards = [root / name for name in digests if name.endswith(".tar")]
    check_space(folder, sum(path.stat().st_size for path in shards), f"extracting the pack {root}")
    for name, expected in digests.items():
        check_digest(root / name, expected, "sha256")
    for shard in shards:
        unpack(shard, folder)


def _read_manifest(path: Path, index: dict[str, Any], folder: Path) -> ImageTable:
    try:
        rows = pd.read_csv(path, keep_default_na=False, dtype={"path": str, "class": str, "side": str})
        split = rows["side"].to_numpy().astype("U7") if "side" in rows else None
        labels, paths = rows["label"].to_numpy(dtype=np.int64), tuple(rows["path"])
        classes, zero_shot_classes = tuple(index["class_names"]), index["zero_shot_classes"]
        fits = len(paths) == index["images"] and zero_shot_classes <= len(classes) and not any(map(_leads_out, paths))
        fits = fits and ((labels >= 0) & (labels < len(classes))).all()
        if not fits or (split is not None and not np.isin(split, SPLIT_NAMES).all()):
            raise ValueError("its rows do not fit the index")
        return ImageTable(folder, paths, labels, classes, zero_shot_classes, split)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: not the manifest of a pack ({first_line(error)}); copy the pack again") from None


def _leads_out(path: str) -> bool:
    return os.path.isabs(path) or ".." in path.split("/")
