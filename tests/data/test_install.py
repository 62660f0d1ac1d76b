"""Archives fetched by hand: ``data fetch NAME --from-archive FILE...``."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_checks import files_below, noise, random_image, refused
from local_server import LocalServer

from retrieval_bench.cli import main
from retrieval_bench.data.archive import extracted
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Archive, fetch, install
from retrieval_bench.data.images import ImageTable
from retrieval_bench.data.places import Places

LISTS = b"0 0 1 1 2 2 3 3"


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    random_image(9, 8, seed).save(stream, "PNG")
    return stream.getvalue()


def tar_of_images() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(8):
            member = tarfile.TarInfo(f"jpg/{number}.png")
            member.size = len(png(number))
            tar.addfile(member, io.BytesIO(png(number)))
    return stream.getvalue()


IMAGES = tar_of_images()
ARCHIVES = (
    Archive("lists.txt", by_hand="from its web page"),
    Archive("tiny.tar", hashlib.md5(IMAGES).hexdigest(), by_hand="by mail"),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """A data set of eight images in an archive with an MD5, and labels in a file without one."""

    def open_tiny(root: Path | None) -> ImageTable:
        places = Places(root, ARCHIVES, "Tiny")
        labels = np.array(places.find("lists.txt").read_text().split(), dtype=np.int64)
        return ImageTable(places.find("jpg"), tuple(f"{number}.png" for number in range(8)), labels, tuple("abcd"))

    monkeypatch.setitem(
        DATASETS,
        "tiny",
        Dataset("eight images", open_tiny, ARCHIVES, Counts(4, 8, {"zero_shot": {"train": 4, "test": 4}})),
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A person's folder of downloads."""
    folder = tmp_path / "by hand"
    folder.mkdir()
    (folder / "tiny (1).tar").write_bytes(IMAGES)
    (folder / "lists.txt").write_bytes(LISTS)
    return folder


Fetch = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def data_fetch(tiny: None, capsys: pytest.CaptureFixture[str]) -> Fetch:
    def call(*words: object) -> tuple[int, str, list[str]]:
        code = main(["data", "fetch", "tiny", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, [line for line in said.err.splitlines() if line.startswith("error: ")]

    return call


def kept(cache: Path) -> list[str]:
    """What is below the folder of downloads, but for the lock files."""
    return [name for name in files_below(cache / "downloads") if not name.endswith(".lock")]


FOUND = "tiny: 8 images of 4 classes; 4 to train on, 4 to test on\n"


def test_files_given_together_make_the_data_set(data_fetch: Fetch, given: Path, empty_cache: Path) -> None:
    """The name does not matter where there is an MD5, and afterwards the files given are not needed any more."""
    assert data_fetch("--from-archive", given / "tiny (1).tar", given / "lists.txt") == (0, FOUND, [])
    assert kept(empty_cache) == ["lists.txt", "tiny.tar"]
    for path in given.iterdir():
        path.unlink()
    assert data_fetch() == (0, FOUND, [])


def test_files_given_one_after_the_other_make_the_data_set(data_fetch: Fetch, given: Path, empty_cache: Path) -> None:
    code, out, errors = data_fetch("--from-archive", given / "tiny (1).tar")
    assert (code, out, len(errors)) == (2, "", 1)
    assert "lists.txt" in errors[0]
    assert "nothing is lost" in errors[0]
    assert kept(empty_cache) == ["tiny.tar"]
    assert data_fetch("--from-archive", given / "lists.txt") == (0, FOUND, [])


def test_giving_the_files_twice_changes_nothing(data_fetch: Fetch, given: Path, empty_cache: Path) -> None:
    words = ["--from-archive", given / "tiny (1).tar", given / "lists.txt"]
    assert data_fetch(*words) == data_fetch(*words) == (0, FOUND, [])
    assert kept(empty_cache) == ["lists.txt", "tiny.tar"]


def test_the_place_in_the_cache_may_be_given_itself(data_fetch: Fetch, given: Path, empty_cache: Path) -> None:
    data_fetch("--from-archive", given / "tiny (1).tar", given / "lists.txt")
    assert data_fetch("--from-archive", empty_cache / "downloads" / "tiny.tar") == (0, FOUND, [])


def test_without_the_files_the_way_to_get_them_is_told(data_fetch: Fetch) -> None:
    code, out, errors = data_fetch()
    assert (code, out, len(errors)) == (2, "", 1)
    for word in ("lists.txt", "from its web page", "--from-archive"):
        assert word in errors[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tiny.tar", IMAGES[:-1] + b"x", ["md5", hashlib.md5(IMAGES).hexdigest(), "--data-root"]),
        ("tiny.tar", b"\n <!DOCTYPE html><html>log in</html>", ["HTML page"]),
        ("lists.txt", b"<HTML>log in</HTML>", ["HTML page"]),
        ("labels.txt", LISTS, ["md5", "lists.txt"]),
    ],
    ids=["other content", "page for an archive with MD5", "page for one without", "other name without MD5"],
)
def test_another_file_is_refused_and_not_kept(
    name: str, content: bytes, words: list[str], data_fetch: Fetch, given: Path, empty_cache: Path
) -> None:
    (given / name).write_bytes(content)
    code, out, errors = data_fetch("--from-archive", given / name)
    assert (code, out, len(errors)) == (2, "", 1)
    for word in [str(given / name), *words]:
        assert word in errors[0]
    assert kept(empty_cache) == []


def test_a_refused_file_leaves_the_good_one_in_place(data_fetch: Fetch, given: Path, tmp_path: Path) -> None:
    data_fetch("--from-archive", given / "tiny (1).tar", given / "lists.txt")
    (tmp_path / "tiny.tar").write_bytes(IMAGES[:-1])
    assert data_fetch("--from-archive", tmp_path / "tiny.tar")[0] == 2
    assert data_fetch() == (0, FOUND, [])


def test_missing_file_and_folder_are_refused(given: Path, empty_cache: Path) -> None:
    for path in (given / "nowhere.tar", given):
        with refused(path, "no such file", "--from-archive"):
            install(ARCHIVES, path)


def test_flags_that_do_not_go_together_are_refused(
    data_fetch: Fetch, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = data_fetch("--from-archive", given / "lists.txt", "--data-root", given)
    assert code == 2
    assert "not both" in errors[0]
    assert main(["data", "fetch", "synthetic", "--from-archive", str(given / "lists.txt")]) == 2
    assert "'synthetic' takes no archives" in capsys.readouterr().err


def test_a_file_on_the_same_disk_takes_no_second_room(given: Path, empty_cache: Path) -> None:
    archive = install(ARCHIVES, given / "tiny (1).tar")
    assert archive.place.samefile(given / "tiny (1).tar")


def no_links(source: Path, place: Path) -> None:
    raise OSError(18, "Invalid cross-device link")


def test_a_file_on_another_disk_is_copied(given: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links)
    archive = install(ARCHIVES, given / "tiny (1).tar")
    assert archive.place.read_bytes() == IMAGES
    assert not archive.place.samefile(given / "tiny (1).tar")
    assert kept(empty_cache) == ["tiny.tar"]


def test_a_copy_given_again_is_not_extracted_again(
    given: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    folders = {extracted(install(ARCHIVES, given / "tiny (1).tar").place) for _ in range(2)}
    assert len(folders) == 1


def test_a_failed_copy_does_not_cost_the_good_one(
    given: Path, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = install(ARCHIVES, given / "lists.txt").place
    (tmp_path / "lists.txt").write_bytes(LISTS[::-1])
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with refused("lists.txt", "RETRIEVAL_BENCH_CACHE"):
        install(ARCHIVES, tmp_path / "lists.txt")
    assert place.read_bytes() == LISTS
    assert kept(empty_cache) == ["lists.txt"]


def test_a_newer_file_without_md5_takes_the_place_of_the_old_one(
    given: Path, tmp_path: Path, empty_cache: Path
) -> None:
    place = install(ARCHIVES, given / "lists.txt").place
    (tmp_path / "lists.txt").write_bytes(LISTS[::-1])
    install(ARCHIVES, tmp_path / "lists.txt")
    assert place.read_bytes() == LISTS[::-1]
    assert (given / "lists.txt").read_bytes() == LISTS
    assert kept(empty_cache) == ["lists.txt"]


def test_a_link_to_the_file_may_be_given(given: Path, empty_cache: Path) -> None:
    (given / "link.tar").symlink_to("tiny (1).tar")
    install(ARCHIVES, given / "link.tar")
    assert fetch(ARCHIVES[1]).read_bytes() == IMAGES


def test_given_file_spares_the_download(given: Path, server: LocalServer, empty_cache: Path) -> None:
    content = noise(1_000)
    (given / "set.tgz").write_bytes(content)
    archive = Archive("set.tgz", hashlib.md5(content).hexdigest(), (server.url("set.tgz"),))
    install((archive,), given / "set.tgz")
    assert fetch(archive).read_bytes() == content
    assert server.log == []
