"""Packs: what goes in comes out, in shards that are never too large; damaged and foreign ones are refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retrieval_bench.data.catalog import open_table
from retrieval_bench.data.pack import write_pack
from retrieval_bench.data.reading import read_image
from retrieval_bench.data.table import ImageTable
from tests.data.data_checks import files_below, random_image, refused

NAMES = ("NA", "Ärmel, lang", '"quoted"', "007")
"""Class names that a careless CSV reader turns into something else."""


def write_images(
    root: Path, sizes: list[tuple[int, int]], split: list[str] | None = None, zero_shot_classes: int = 0
) -> ImageTable:
    """Four classes; image i has the i-th (height, width)."""
    labels = np.arange(len(sizes)) * 4 // len(sizes)
    paths = tuple(f"{NAMES[label]}/{row}.png" for row, label in enumerate(labels))
    for row, (path, (height, width)) in enumerate(zip(paths, sizes, strict=True)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        random_image(height, width, row).save(root / path)
    return ImageTable(root, paths, labels, NAMES, zero_shot_classes, None if split is None else np.array(split))


@pytest.mark.parametrize("split", [None, ["train", "train", "test", "test"] * 4, ["train", "query", "gallery", ""] * 4])
@pytest.mark.parametrize("zero_shot_classes", [0, 1])
def test_pack_opens_as_the_table_it_was_made_of(
    split: list[str] | None, zero_shot_classes: int, tmp_path: Path, empty_cache: Path
) -> None:
    table = write_images(tmp_path / "images", [(20, 30)] * 16, split, zero_shot_classes)
    write_pack("folder", table, tmp_path / "pack", 20, 1)
    opened = open_table("folder", tmp_path / "pack")
    for field in ("paths", "class_names", "zero_shot_classes"):
        assert getattr(opened, field) == getattr(table, field)
    assert (opened.labels.tolist(), opened.labels.dtype) == (table.labels.tolist(), np.dtype(np.int64))
    assert (None if opened.official_split is None else opened.official_split.tolist()) == split
    assert opened.fingerprint() == replace(table, own=True).fingerprint(), "small images are carried byte for byte"
    write_pack("folder", table, tmp_path / "again", 20, 1)
    for name in files_below(tmp_path / "pack"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "pack" / name).read_bytes()


def test_larger_images_are_scaled_and_look_as_before(tmp_path: Path, empty_cache: Path) -> None:
    sizes = [(21, 21), (40, 60), (90, 30), (200, 25)] * 4
    table = write_images(tmp_path / "images", sizes)
    for row, (path, (height, width)) in enumerate(zip(table.paths, sizes, strict=True)):
        random_image(1, 1, row).resize((width, height)).save(table.root / path)
    write_pack("folder", table, tmp_path / "pack", 20, 1)
    opened = open_table("folder", tmp_path / "pack")
    for row, (path, (height, width)) in enumerate(zip(opened.paths, sizes, strict=True)):
        small = read_image(opened.root / path)
        assert min(small.size) == 20
        assert abs(small.width / small.height - width / height) <= width / height * 0.03
        assert np.abs(np.asarray(small, dtype=int) - np.asarray(random_image(1, 1, row), dtype=int)).max() <= 4


LONG = st.builds(
    lambda letter, length: "/".join([letter * 70] * (length // 70) + [letter * (length % 70 + 1)]),
    st.sampled_from(["a", "é", "字"]),
    st.integers(0, 700),
)


@given(
    names=st.lists(LONG, min_size=1, max_size=12, unique=True),
    sides=st.lists(st.integers(4, 60), min_size=12, max_size=12),
    limit=st.integers(40_000, 70_000),
)
@example(names=["a"], sides=[54] * 12, limit=2 * 10_240 + 9_728)
@example(
    names=["字" * 70 + "/" + "/".join(["字" * 70] * 10) + f"/{row}" for row in range(12)], sides=[4] * 12, limit=40_960
)
@settings(max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_shard_is_larger_than_allowed(
    names: list[str], sides: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory, empty_cache: Path
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    paths = tuple(f"{name}.png" for name in names)
    for row, (path, side) in enumerate(zip(paths, sides, strict=False)):
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        random_image(side, side, row).save(folder / "images" / path)
    table = ImageTable(folder / "images", paths, np.zeros(len(paths), dtype=np.int64), ("a",))
    shards = write_pack("folder", table, folder / "pack", 64, limit / (1 << 20))
    total = sum((table.root / path).stat().st_size + 8_192 for path in paths)
    assert len(shards) <= 1 + 2 * total / limit, "shards are filled"
    assert max(shard.stat().st_size for shard in shards) <= limit
    members = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members += tar.getnames()
    assert members == list(paths)


@pytest.mark.parametrize(("kind", "size"), [("too large", 128), ("no image", 20), ("too long for a JPEG", 20)])
def test_bad_image_is_named_and_nothing_is_left(kind: str, size: int, tmp_path: Path) -> None:
    table = write_images(tmp_path / "images", [(20, 20)] * 16)
    if kind == "no image":
        (table.root / table.paths[9]).write_bytes(b"no image")
    else:
        random_image(128 if kind == "too large" else 21, 128 if kind == "too large" else 70_000).save(
            table.root / table.paths[9]
        )
    with refused(table.paths[9]):
        write_pack("folder", table, tmp_path / "pack", size, 0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize("path", ["../a.png", "/a.png"])
def test_image_outside_the_folder_is_refused_when_packing(path: str, tmp_path: Path) -> None:
    with refused("a.png", "outside"):
        write_pack("table", ImageTable(tmp_path, (path,), np.array([0]), ("a",)), tmp_path / "pack", 64, 1)
    assert not (tmp_path / "pack").exists()


@pytest.fixture
def pack(tmp_path: Path, empty_cache: Path) -> Path:
    """A pack of 16 images in several shards."""
    table = write_images(tmp_path / "images", [(60, 60)] * 16)
    assert len(write_pack("folder", table, tmp_path / "pack", 64, 0.1)) > 1
    return tmp_path / "pack"


def edit(pack: Path, name: str, change: Callable[[bytes], bytes], sealed: bool = True) -> None:
    """Changes a file of the pack and, if `sealed`, its digest in the index."""
    content = change((pack / name).read_bytes())
    (pack / name).write_bytes(content)
    if sealed and name != "pack.json":
        change_index(pack, lambda index: index["sha256"].update({name: hashlib.sha256(content).hexdigest()}))


def change_index(pack: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((pack / "pack.json").read_text())
    change(index)
    (pack / "pack.json").write_text(json.dumps(index))


def flip_a_bit(pack: Path, name: str) -> None:
    edit(pack, name, lambda content: bytes([content[0] ^ 1]) + content[1:], sealed=False)


def unsafe_member(pack: Path) -> None:
    with tarfile.open(pack / "folder-00000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("../escaped.txt"), io.BytesIO())
    edit(pack, "folder-00000.tar", bytes)


FOREIGN = [b"", b"{", b"[]", b"null", b'"pack"', b"{}", b'{"format": 1}', b'{"format": 2}', b"\xff\xfe\x00"]
INDEX_CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda index: index.update(sha256={}),
    lambda index: index["sha256"].pop("manifest.csv"),
    lambda index: index.update(sha256=["manifest.csv"]),
    lambda index: index.update(class_names=["0", "1"]),
    lambda index: index.update(zero_shot_classes="two"),
    lambda index: index.update(zero_shot_classes=-1),
    lambda index: index.update(images=15),
]
MANIFEST_CHANGES = [("NA/1.png", path) for path in ("../outside.png", "0/../../outside.png", "/etc/passwd")]
MANIFEST_CHANGES += [("path,", "file,"), ("label", "number"), (",0\n", ",zero\n")]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda pack: (pack / "folder-00001.tar").unlink(), ["folder-00001.tar", "1 of the pack's", "copy the rest"]),
        (lambda pack: flip_a_bit(pack, "folder-00001.tar"), ["folder-00001.tar", "sha256"]),
        (lambda pack: flip_a_bit(pack, "manifest.csv"), ["manifest.csv", "sha256"]),
        (unsafe_member, ["folder-00000.tar", "refused"]),
        *((lambda pack, c=c: edit(pack, "pack.json", lambda _: c), ["pack.json", "not the index"]) for c in FOREIGN),
        *((lambda pack, c=change: change_index(pack, c), ["pack"]) for change in INDEX_CHANGES),
        *(
            (
                lambda pack, old=old, new=new: edit(
                    pack, "manifest.csv", lambda text: text.replace(old.encode(), new.encode())
                ),
                ["manifest.csv", "not the manifest of a pack"],
            )
            for old, new in MANIFEST_CHANGES
        ),
    ],
)
def test_damaged_pack_is_refused(
    damage: Callable[[Path], object], words: list[str], pack: Path, empty_cache: Path
) -> None:
    damage(pack)
    with refused(pack, *words):
        open_table("folder", pack)
    assert not list(empty_cache.rglob("escaped.txt"))


def test_what_changes_after_the_first_call_is_noticed(pack: Path) -> None:
    opened = open_table("folder", pack)
    with refused(pack, "'folder'", "'table'", "--dataset folder"):
        open_table("table", pack)
    (opened.root / opened.paths[3]).unlink()
    with refused(opened.root / opened.paths[3], "missing"):
        open_table("folder", pack)
    flip_a_bit(pack, "manifest.csv")
    with refused(pack / "manifest.csv", "sha256"):
        open_table("folder", pack)
