"""Packs that arrived damaged, or are something else, are refused in one line."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_checks import files_below, random_image, refused

from retrieval_bench.data.catalog import open_table
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.pack import write_pack

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def pack(tmp_path: Path, empty_cache: Path) -> Path:
    """A pack of 16 images in several shards."""
    paths = tuple(f"{row // 4}/{row}.png" for row in range(16))
    for row, path in enumerate(paths):
        (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        random_image(60, 60, row).save(tmp_path / "images" / path)
    table = ImageTable(tmp_path / "images", paths, np.arange(16) // 4, tuple("0123"))
    assert len(write_pack("folder", table, tmp_path / "pack", 64, 0.1)) > 1
    return tmp_path / "pack"


def kept(cache: Path) -> list[str]:
    return [name for name in files_below(cache / "packs") if not name.endswith(".lock")]


def rewrite(pack: Path, change: Change) -> None:
    index = json.loads((pack / "pack.json").read_text())
    change(index)
    (pack / "pack.json").write_text(json.dumps(index))


def reseal(pack: Path, name: str) -> None:
    """Makes the changed file's digest the one that the index tells."""
    rewrite(pack, lambda index: index["sha256"].update({name: hashlib.sha256((pack / name).read_bytes()).hexdigest()}))


def test_missing_shard_is_named(pack: Path, empty_cache: Path) -> None:
    (pack / "folder-00001.tar").unlink()
    with refused(pack / "folder-00001.tar", "1 of the pack's", "copy the rest"):
        open_table("folder", pack)
    assert kept(empty_cache) == []


@pytest.mark.parametrize("name", ["folder-00001.tar", "manifest.csv"])
def test_altered_file_is_named(name: str, pack: Path, empty_cache: Path) -> None:
    content = bytearray((pack / name).read_bytes())
    content[len(content) // 2] ^= 1
    (pack / name).write_bytes(content)
    with refused(pack / name, "sha256"):
        open_table("folder", pack)
    assert kept(empty_cache) == []


def test_truncated_shard_is_named(pack: Path, empty_cache: Path) -> None:
    (pack / "folder-00001.tar").write_bytes((pack / "folder-00001.tar").read_bytes()[:-512])
    with refused(pack / "folder-00001.tar"):
        open_table("folder", pack)
    assert kept(empty_cache) == []


def test_manifest_altered_after_the_first_call_is_noticed(pack: Path) -> None:
    open_table("folder", pack)
    (pack / "manifest.csv").write_text((pack / "manifest.csv").read_text().replace("0/1.png", "3/1.png"))
    with refused(pack / "manifest.csv", "sha256"):
        open_table("folder", pack)


def test_pack_of_another_data_set_names_the_right_one(pack: Path) -> None:
    with refused(pack, "'folder'", "'table'", "--dataset folder"):
        open_table("table", pack)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"pack"',
        b"{}",
        b'{"format": 1}',
        b'{"format": 2}',
        b'{"name": "npm", "version": "1.0"}',
        b"\xff\xfe\x00",
    ],
)
def test_foreign_index_is_refused(content: bytes, pack: Path) -> None:
    (pack / "pack.json").write_bytes(content)
    with refused(pack / "pack.json", "not the index of a pack"):
        open_table("folder", pack)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(sha256={}),
        lambda index: index["sha256"].pop("manifest.csv"),
        lambda index: index.update(sha256=["manifest.csv"]),
        lambda index: index.update(class_names=["0", "1"]),
        lambda index: index.update(zero_shot_classes="two"),
        lambda index: index.update(images=15),
    ],
    ids=[
        "no digests",
        "no digest of the manifest",
        "digests as a list",
        "too few classes",
        "classes in words",
        "other number of images",
    ],
)
def test_index_that_does_not_fit_is_refused(change: Change, pack: Path) -> None:
    rewrite(pack, change)
    with refused(pack):
        open_table("folder", pack)


@pytest.mark.parametrize("path", ["../outside.png", "0/../../outside.png", "/etc/passwd"])
def test_path_that_leads_out_is_refused(path: str, pack: Path) -> None:
    (pack / "manifest.csv").write_text((pack / "manifest.csv").read_text().replace("0/1.png", path))
    reseal(pack, "manifest.csv")
    with refused(pack / "manifest.csv", "not the manifest of a pack"):
        open_table("folder", pack)


@pytest.mark.parametrize(("old", "new"), [("path,", "file,"), ("label", "number"), (",0,0\n", ",0,zero\n")])
def test_manifest_with_other_columns_is_refused(old: str, new: str, pack: Path) -> None:
    (pack / "manifest.csv").write_text((pack / "manifest.csv").read_text().replace(old, new))
    reseal(pack, "manifest.csv")
    with refused(pack / "manifest.csv"):
        open_table("folder", pack)


def test_shard_with_a_member_that_leads_out_is_refused(pack: Path, empty_cache: Path) -> None:
    with tarfile.open(pack / "folder-00000.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("../escaped.txt"), io.BytesIO())
    reseal(pack, "folder-00000.tar")
    with refused(pack / "folder-00000.tar", "refused"):
        open_table("folder", pack)
    assert kept(empty_cache) == []
    assert not list(empty_cache.rglob("escaped.txt"))


def test_image_removed_from_the_cache_is_named(pack: Path) -> None:
    opened = open_table("folder", pack)
    (opened.root / opened.paths[3]).unlink()
    with refused(opened.root / opened.paths[3], "missing"):
        open_table("folder", pack)


@pytest.mark.parametrize("outside", ["../a.png", "absolute"])
def test_image_outside_the_tables_folder_is_refused_when_packing_not_after_the_journey(
    outside: str, tmp_path: Path, empty_cache: Path
) -> None:
    (tmp_path / "lists").mkdir()
    for name in "abcdefgh":
        random_image(9, 9, ord(name)).save(tmp_path / f"{name}.png")
    base = ".." if outside == "../a.png" else str(tmp_path)
    rows = [f"{base}/{name}.png,{number // 2}\n" for number, name in enumerate("abcdefgh")]
    (tmp_path / "lists" / "table.csv").write_text("path,label\n" + "".join(rows))
    table = open_table("table", tmp_path / "lists" / "table.csv")
    with refused("a.png"):
        write_pack("table", table, tmp_path / "pack", 64, 1)
    assert not (tmp_path / "pack").exists()
