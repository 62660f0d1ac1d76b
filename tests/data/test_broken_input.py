"""Every kind of broken input ends with exit code 2 and one line that names it; files fetched by hand are checked and
kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from data_checks import files_below, random_image, refused
from local_server import LocalServer

from retrieval_bench.cli import main
from retrieval_bench.data.archive import extracted, find_files
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive, fetch, install
from retrieval_bench.data.table import ImageTable, named_table

NAMES = tuple(f"{label}/{row}.jpg" for label in "abcd" for row in range(2))
SUMMARY = "8 images of 4 classes; 4 to train on, 4 to test on\n"
COUNTS = Counts(4, 8, {"zero_shot": {"train": 4, "test": 4}})


@dataclass
class World:
    """A folder with eight good images in four classes and their list, the same as an archive, and a server that has
    it."""

    folder: Path
    server: LocalServer
    monkeypatch: pytest.MonkeyPatch

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def archive(self) -> Path:
        return self.folder / "tiny.tgz"

    def register(self, path: str) -> None:
        """Makes the data set ``tiny`` known, with a mirror that answers as the server does for `path`."""
        md5 = hashlib.md5(self.server.files["tiny.tgz"]).hexdigest()
        archives = (Archive("tiny.tgz", md5, (self.server.url(path),)),)

        def open_tiny(root: Path | None) -> ImageTable:
            (lists,) = find_files(root, archives, "Tiny", ("list.txt", "images/list.txt"))
            names = lists.read_text().split()
            return named_table(lists.parent, names, [name[0] for name in names], None)

        self.monkeypatch.setitem(DATASETS, "tiny", Dataset("eight images", open_tiny, archives, COUNTS))


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
    made.register("tiny.tgz")
    return made


def own(action: str, name: str, root: Path) -> list[str]:
    return ["data", action, name, "--data-root", str(root)]


def truncated_archive(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(world.archive.read_bytes()[:-500])
    return own("fetch", "tiny", world.archive), str(world.archive)


def wrong_checksum(world: World) -> tuple[list[str], str]:
    world.register("other")
    return ["data", "fetch", "tiny"], f"{world.server.url('other')}: wrong checksum"


def wrong_checksum_by_hand(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(world.server.files["other"])
    return ["data", "fetch", "tiny", "--from-archive", str(world.archive)], f"{world.archive}: md5 is"


def page_by_hand(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(b"\n <!DOCTYPE html><html>log in</html>")
    return ["data", "fetch", "tiny", "--from-archive", str(world.archive)], f"{world.archive}: an HTML page"


def page_from_the_mirror(world: World) -> tuple[list[str], str]:
    world.register("page")
    return ["data", "fetch", "tiny"], f"{world.server.url('page')}: the server answered with an HTML page"


def page_as_archive(world: World) -> tuple[list[str], str]:
    world.archive.write_bytes(world.server.files["page"])
    return own("fetch", "tiny", world.archive), str(world.archive)


def missing_class_folder(world: World) -> tuple[list[str], str]:
    shutil.rmtree(world.images / "c")
    return own("fetch", "tiny", world.images), str(world.images / "c")


def one_image_less(world: World) -> tuple[list[str], str]:
    (world.images / "list.txt").write_text("\n".join(NAMES[1:]))
    return own("fetch", "tiny", world.images), f"{world.images}: has 7 images, expected 8"


def one_image_more(world: World) -> tuple[list[str], str]:
    random_image(20, 20, 9).save(world.images / "a" / "2.jpg")
    (world.images / "list.txt").write_text("\n".join([*NAMES, "a/2.jpg"]))
    return own("fetch", "tiny", world.images), f"{world.images}: has 9 images, expected 8"


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


@pytest.mark.parametrize(
    "damage",
    [
        *(
            truncated_archive,
            wrong_checksum,
            wrong_checksum_by_hand,
            page_by_hand,
            page_from_the_mirror,
            page_as_archive,
        ),
        *(missing_class_folder, one_image_less, one_image_more, damaged_jpeg, text_named_jpeg, empty_file),
        *(cache_below_a_file, cache_below_a_file_for_an_archive_of_ones_own, cache_below_a_file_for_drawn_images),
        *(table_that_names_a_missing_file, list_that_names_a_missing_file, pack_without_a_shard),
        *(output_that_cannot_be_written, name_that_is_not_text),
    ],
)
def test_broken_input_gives_one_line_that_names_it(
    damage: Callable[[World], tuple[list[str], str]], world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    words, culprit = damage(world)
    capsys.readouterr()
    assert main(words) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert culprit in lines[-1]
    assert printed.out == ""
    assert not [name for name in files_below(world.folder) if "partial-" in name]


def test_the_same_input_unbroken_is_accepted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for name, root in [("tiny", None), ("tiny", world.archive), ("tiny", world.images), ("folder", world.images)]:
        assert main(["data", "fetch", name] if root is None else own("fetch", name, root)) == 0
        assert capsys.readouterr().out == f"{name}: {SUMMARY}"


@pytest.fixture
def by_hand(world: World) -> tuple[Archive, Archive]:
    """The data set ``hand``: a list without an MD5 and an archive with one; neither can be downloaded."""
    md5 = hashlib.md5(world.archive.read_bytes()).hexdigest()
    archives = (Archive("list.txt", by_hand="from its web page"), Archive("images.tgz", md5, by_hand="by mail"))

    def open_hand(root: Path | None) -> ImageTable:
        lists, images = find_files(root, archives, "Hand", ("list.txt",), ("images",))
        names = lists.read_text().split()
        return named_table(images, names, [name[0] for name in names], None)

    world.monkeypatch.setitem(DATASETS, "hand", Dataset("eight images", open_hand, archives, COUNTS))
    return archives


@pytest.mark.usefixtures("by_hand")
def test_files_by_hand_make_the_data_set(world: World, empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, together or again; their names do not matter where there is an MD5."""
    lists = shutil.copy(world.images / "list.txt", world.folder)
    for words, missing in (([], "from its web page"), ([world.archive], "list.txt: give it with --from-archive")):
        assert main(["data", "fetch", "hand", *(["--from-archive", *map(str, words)] if words else [])]) == 2
        assert missing in capsys.readouterr().err.splitlines()[-1]
    for words in ([lists], [lists, world.archive], [empty_cache / "downloads" / "images.tgz"]):
        assert main(["data", "fetch", "hand", "--from-archive", *map(str, words)]) == 0
        assert capsys.readouterr().out == f"hand: {SUMMARY}"
        assert {"images.tgz", "list.txt"} == {name for name in files_below(empty_cache / "downloads") if name[0] != "."}


@pytest.mark.parametrize("link", [True, False])
def test_file_is_linked_or_copied_where_links_are_impossible(
    link: bool, by_hand: tuple[Archive, Archive], world: World, empty_cache: Path
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not link:
        world.monkeypatch.setattr(os, "link", no_links)
    (world.folder / "link.tar").symlink_to(world.archive)
    folders = {extracted(install(by_hand, world.folder / "link.tar").path) for _ in range(2)}
    assert len(folders) == 1, "the same file is not copied and extracted again"
    assert fetch(by_hand[1]).samefile(world.archive) is link
    for content in (b"old", b"new"):
        (world.folder / content.decode()).mkdir()
        (world.folder / content.decode() / "list.txt").write_bytes(content)
        assert install(by_hand, world.folder / content.decode() / "list.txt").path.read_bytes() == content
    assert (world.folder / "old" / "list.txt").read_bytes() == b"old"
    world.monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    if not link:
        with refused("list.txt", "RETRIEVAL_BENCH_CACHE"):
            install(by_hand, world.folder / "old" / "list.txt")
    assert fetch(by_hand[0]).read_bytes() == b"new"
    with refused(world.images, "no such file", "--from-archive"):
        install(by_hand, world.images)
