"""Every broken input ends with exit code 2 and one line that names it; files fetched by hand are checked and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from retrieval_bench.cli import main
from retrieval_bench.data.archive import extracted, find_files
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive, fetch, install
from retrieval_bench.data.table import ImageTable, named_table
from tests.data.data_checks import files_below, random_image, refused
from tests.data.local_server import LocalServer

NAMES = tuple(f"{label}/{row}.jpg" for label in "abcd" for row in range(2))
SUMMARY = "8 images of 4 classes; 4 to train on, 4 to test on\n"
PAGE = b"\n <!DOCTYPE html><html>log in</html>"


@dataclass
class World:
    """A folder with eight good images in four classes and their list, the same as an archive, and a server that has
    it."""

    folder: Path
    server: LocalServer
    monkeypatch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        self.images, self.archive = self.folder / "images", self.folder / "tiny.tgz"
        for row, name in enumerate(NAMES):
            (self.images / name).parent.mkdir(parents=True, exist_ok=True)
            random_image(20, 20, row).save(self.images / name)
        self.write_list(*NAMES)
        with tarfile.open(self.archive, "w:gz") as tar:
            tar.add(self.images, "images")
        content = self.archive.read_bytes()
        self.server.files = {"tiny.tgz": content, "page": PAGE, "other": content[:-1] + b"x"}
        self.server.html = {"page"}
        self.register("tiny.tgz")

    def write_list(self, *names: str) -> None:
        (self.images / "list.txt").write_text("\n".join(names))

    def register(self, path: str) -> None:
        """Makes the data set ``tiny`` known, with a mirror that answers as the server does for `path`."""
        md5 = hashlib.md5(self.server.files["tiny.tgz"]).hexdigest()
        self.add("tiny", (Archive("tiny.tgz", md5, (self.server.url(path),)),), ("list.txt", "images/list.txt"))

    def add(self, name: str, archives: tuple[Archive, ...], *alternatives: tuple[str, ...]) -> None:
        def open_set(root: Path | None) -> ImageTable:
            lists, *images = find_files(root, archives, name, *alternatives)
            names = lists.read_text().split()
            return named_table(images[0] if images else lists.parent, names, [name[0] for name in names], None)

        counts = Counts(4, 8, {"zero_shot": {"train": 4, "test": 4}})
        self.monkeypatch.setitem(DATASETS, name, Dataset("eight images", open_set, archives, counts))

    def set_cache(self, path: Path) -> None:
        self.monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(path / "cache"))


@pytest.fixture
def world(tmp_path: Path, server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, server, monkeypatch)


def table_with_a_missing_file(world: World) -> None:
    rows = [f"{name},{name[0]}\n" for name in [*NAMES, "d/9.jpg"]]
    (world.images / "table.csv").write_text("path,label\n" + "".join(rows))


def pack_without_a_shard(world: World) -> None:
    pack = world.folder / "pack"
    assert main(["data", "pack", "folder", "--data-root", str(world.images), "--output", str(pack)]) == 0
    (pack / "folder-00000.tar").unlink()


def name_that_is_not_text(world: World) -> None:
    os.rename(world.images / NAMES[0], os.fsencode(world.images / "a") + b"/caf\xe9.jpg")


IMAGES, TAR, BY_HAND = "--data-root {0}/images", "--data-root {0}/tiny.tgz", "--from-archive {0}/tiny.tgz"


@pytest.mark.parametrize(
    ("damage", "words", "culprit"),
    [
        (lambda w: w.archive.write_bytes(w.archive.read_bytes()[:-500]), f"fetch tiny {TAR}", "{0}/tiny.tgz"),
        (lambda w: w.archive.write_bytes(PAGE), f"fetch tiny {TAR}", "{0}/tiny.tgz"),
        (lambda w: w.archive.write_bytes(PAGE), f"fetch tiny {BY_HAND}", "{0}/tiny.tgz: an HTML page"),
        (lambda w: w.archive.write_bytes(b"other"), f"fetch tiny {BY_HAND}", "{0}/tiny.tgz: md5 is"),
        (lambda w: w.register("other"), "fetch tiny", "/other: wrong checksum"),
        (lambda w: w.register("page"), "fetch tiny", "/page: the server answered with an HTML page"),
        (lambda w: shutil.rmtree(w.images / "c"), f"fetch tiny {IMAGES}", "{0}/images/c"),
        (lambda w: w.write_list(*NAMES[1:]), f"fetch tiny {IMAGES}", "{0}/images: has 7 images, expected 8"),
        (lambda w: (w.images / "a/1.jpg").write_text("no picture"), f"verify tiny {IMAGES}", "{0}/images/a/1.jpg"),
        (lambda w: (w.images / "a/1.jpg").write_bytes(b""), f"fetch folder {IMAGES}", "{0}/images/a/1.jpg"),
        (lambda w: w.set_cache(w.archive), "fetch tiny", "{0}/tiny.tgz/cache"),
        (lambda w: w.set_cache(w.images / "list.txt"), f"fetch tiny {TAR}", "{0}/images/list.txt"),
        (lambda w: w.set_cache(w.archive), "fetch synthetic", "{0}/tiny.tgz/cache"),
        (table_with_a_missing_file, f"fetch table {IMAGES}/table.csv", "{0}/images/d/9.jpg"),
        (pack_without_a_shard, "fetch folder --data-root {0}/pack", "{0}/pack/folder-00000.tar"),
        (lambda w: None, f"pack folder {IMAGES} --output {{0}}/tiny.tgz/pack", "{0}/tiny.tgz"),
        (name_that_is_not_text, f"pack folder {IMAGES} --output {{0}}/pack", "caf"),
    ],
)
def test_broken_input_gives_one_line_that_names_it(
    damage: Callable[[World], object], words: str, culprit: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(world)
    capsys.readouterr()
    assert main(["data", *words.format(world.folder).split()]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert culprit.format(world.folder) in lines[-1]
    assert printed.out == "" or words.startswith("verify")
    assert not [name for name in files_below(world.folder) if ".partial" in name]


def test_the_same_input_unbroken_is_accepted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("tiny", f"tiny {TAR}", f"tiny {IMAGES}", f"folder {IMAGES}"):
        assert main(["data", "fetch", *words.format(world.folder).split()]) == 0
        assert capsys.readouterr().out == f"{words.split()[0]}: {SUMMARY}"


@pytest.fixture
def by_hand(world: World) -> tuple[Archive, Archive]:
    """The data set ``hand``: a list without an MD5 and an archive with one; neither can be downloaded."""
    md5 = hashlib.md5(world.archive.read_bytes()).hexdigest()
    archives = (Archive("list.txt", by_hand="from its web page"), Archive("images.tgz", md5, by_hand="by mail"))
    world.add("hand", archives, ("list.txt",), ("images",))
    return archives


@pytest.mark.usefixtures("by_hand")
def test_files_by_hand_make_the_data_set(world: World, empty_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after the other, together or again; their names do not matter where there is an MD5."""
    lists = shutil.copy(world.images / "list.txt", world.folder)
    for words, missing in (([], "from its web page"), ([world.archive], "list.txt cannot be downloaded")):
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
