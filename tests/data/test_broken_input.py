"""Every kind of broken input ends with exit code 2 and one line that names the culprit."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from data_checks import files_below, random_image
from local_server import LocalServer
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.places import Places

NAMES = tuple(f"{label}/{row}.jpg" for label in "abcd" for row in range(2))


@dataclass
class World:
    """A folder with eight good images in four classes and their list, the same as an archive, and a server that has it."""

    folder: Path
    server: LocalServer
    monkeypatch: pytest.MonkeyPatch

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def archive(self) -> Path:
        return self.folder / "tiny.tgz"


Break = Callable[[World], tuple[list[str], str]]
"""Breaks something; returns the words of a command and what its error line must name."""


@pytest.fixture
def world(tmp_path: Path, server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, server, monkeypatch)
    for row, name in enumerate(NAMES):
        (made.images / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(20, 20, row).save(made.images / name)
    (made.images / "list.txt").write_text("\n".join(NAMES))
    with tarfile.open(made.archive, "w:gz") as tar:
        tar.add(made.images, "images")
    content = made.archive.read_bytes()
    server.files = {"tiny.tgz": content, "page": b"<html>log in</html>" * 9, "other": content[:-1] + b"x"}
    server.html = {"page"}
    register(made, "tiny.tgz")
    return made


def register(world: World, path: str) -> None:
    """Makes the data set ``tiny`` known, with a mirror that answers as the server does for `path`."""
    archives = (
        Archive("tiny.tgz", hashlib.md5(world.server.files["tiny.tgz"]).hexdigest(), (world.server.url(path),)),
    )

    def open_tiny(root: Path | None) -> ImageTable:
        listed = Places(root, archives, "Tiny").find("list.txt", "images/list.txt")
        names = tuple(listed.read_text().split())
        return ImageTable(listed.parent, names, np.array(["abcd".index(name[0]) for name in names]), tuple("abcd"))

    counts = Counts(4, 8, {"zero_shot": {"train": 4, "test": 4}})
    world.monkeypatch.setitem(DATASETS, "tiny", Dataset("eight images", open_tiny, archives, counts))


def own(action: str, name: str, root: Path) -> list[str]:
    return ["data", action, name, "--data-root", str(root)]


def truncated_archive(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(world.archive.read_bytes()[:-500])
    return own("fetch", "tiny", world.archive), str(world.archive)


def wrong_checksum(world: World) -> tuple[list[str], str]:
    register(world, "other")
    return ["data", "fetch", "tiny"], f"{world.server.url('other')}: wrong checksum"


def wrong_checksum_by_hand(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(world.server.files["other"])
    return ["data", "fetch", "tiny", "--from-archive", str(world.archive)], str(world.archive)


def page_from_the_mirror(world: World) -> tuple[list[str], str]:
    register(world, "page")
    return ["data", "fetch", "tiny"], f"{world.server.url('page')}: the server answered with an HTML page"


def page_as_archive(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(world.server.files["page"])
    return own("fetch", "tiny", world.archive), str(world.archive)


def missing_class_folder(world: World) -> tuple[list[str], str]:
    for name in NAMES[4:6]:
        (world.images / name).unlink()
    (world.images / "c").rmdir()
    return own("fetch", "tiny", world.images), str(world.images / "c")


def one_image_less(world: World) -> tuple[list[str], str]:
    (world.images / "list.txt").write_text("\n".join(NAMES[1:]))
    return own("fetch", "tiny", world.images), f"{world.images}: found 7 images, expected 8"


def one_image_more(world: World) -> tuple[list[str], str]:
    random_image(20, 20, 9).save(world.images / "a" / "2.jpg")
    (world.images / "list.txt").write_text("\n".join([*NAMES, "a/2.jpg"]))
    return own("fetch", "tiny", world.images), f"{world.images}: found 9 images, expected 8"


def damaged_jpeg(world: World) -> tuple[list[str], str]:
    path = world.images / NAMES[3]
    path.write_bytes(path.read_bytes()[:400])
    return own("verify", "folder", world.images), str(path)


def text_named_jpeg(world: World) -> tuple[list[str], str]:
    (world.images / NAMES[3]).write_text("not a picture")
    return own("verify", "tiny", world.images), str(world.images / NAMES[3])


def empty_file(world: World) -> tuple[list[str], str]:
    (world.images / NAMES[6]).write_bytes(b"")
    return own("fetch", "folder", world.images), str(world.images / NAMES[6])


def cache_below_a_file(world: World) -> tuple[list[str], str]:
    world.monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(world.archive / "cache"))
    return ["data", "fetch", "tiny"], str(world.archive / "cache")


def cache_below_a_file_for_an_archive_of_ones_own(world: World) -> tuple[list[str], str]:
    world.monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(world.images / "list.txt"))
    return own("fetch", "tiny", world.archive), str(world.images / "list.txt")


def cache_below_a_file_for_drawn_images(world: World) -> tuple[list[str], str]:
    world.monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(world.archive / "cache"))
    return ["data", "fetch", "synthetic"], str(world.archive / "cache")


def table_that_names_a_missing_file(world: World) -> tuple[list[str], str]:
    rows = [f"{name},{name[0]}\n" for name in [*NAMES, "d/9.jpg"]]
    (world.images / "table.csv").write_text("path,label\n" + "".join(rows))
    return own("fetch", "table", world.images / "table.csv"), str(world.images / "d" / "9.jpg")


def list_that_names_a_missing_file(world: World) -> tuple[list[str], str]:
    (world.images / NAMES[7]).unlink()
    return own("fetch", "tiny", world.images), str(world.images / NAMES[7])


def pack_without_a_shard(world: World) -> tuple[list[str], str]:
    pack = world.folder / "pack"
    assert main([*own("pack", "folder", world.images), "--output", str(pack)]) == 0
    (pack / "folder-00000.tar").unlink()
    return own("fetch", "folder", pack), str(pack / "folder-00000.tar")


def output_that_cannot_be_written(world: World) -> tuple[list[str], str]:
    return [*own("pack", "folder", world.images), "--output", str(world.archive / "pack")], str(world.archive)


def name_that_is_not_text(world: World) -> tuple[list[str], str]:
    os.rename(world.images / NAMES[0], os.fsencode(world.images / "a") + b"/caf\xe9.jpg")
    return [*own("pack", "folder", world.images), "--output", str(world.folder / "pack")], "caf"


BROKEN: list[Break] = [
    truncated_archive,
    wrong_checksum,
    wrong_checksum_by_hand,
    page_from_the_mirror,
    page_as_archive,
    missing_class_folder,
    one_image_less,
    one_image_more,
    damaged_jpeg,
    text_named_jpeg,
    empty_file,
    cache_below_a_file,
    cache_below_a_file_for_an_archive_of_ones_own,
    cache_below_a_file_for_drawn_images,
    table_that_names_a_missing_file,
    list_that_names_a_missing_file,
    pack_without_a_shard,
    output_that_cannot_be_written,
    name_that_is_not_text,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_broken_input_gives_one_line_that_names_it(
    broken: Break, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    words, culprit = broken(world)
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert culprit in lines[-1]
    assert said.out == ""
    assert not [name for name in files_below(world.folder) if "partial-" in name]


def test_the_same_input_unbroken_is_accepted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    found = "8 images of 4 classes; 4 to train on, 4 to test on\n"
    for name, root in [("tiny", None), ("tiny", world.archive), ("tiny", world.images), ("folder", world.images)]:
        assert main(["data", "fetch", name] if root is None else own("fetch", name, root)) == 0
        assert capsys.readouterr().out == f"{name}: {found}"


def deep_grey() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65_535, 400).astype(np.uint16).reshape(20, 20))


@pytest.mark.parametrize(
    ("kind", "form", "mode"),
    [("16 bit", "PNG", "I;16"), ("palette", "PNG", "P"), ("CMYK", "JPEG", "CMYK"), ("greyscale", "PNG", "L")],
)
def test_unusual_colours_are_converted_not_refused(
    kind: str, form: str, mode: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    image = deep_grey() if kind == "16 bit" else random_image(20, 20).convert(mode)
    stream = io.BytesIO()
    image.save(stream, form)
    assert Image.open(io.BytesIO(stream.getvalue())).mode == mode
    (world.images / NAMES[0]).write_bytes(stream.getvalue())
    assert main(own("verify", "folder", world.images)) == 0
    assert "all 8 images decode" in capsys.readouterr().out
