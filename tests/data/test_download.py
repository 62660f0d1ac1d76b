from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from data_checks import files_below, noise, refused
from local_server import LocalServer

from retrieval_bench.data.download import Archive, fetch, fetch_all
from retrieval_bench.errors import UserError

CONTENT = noise(5 << 20)
HALF = len(CONTENT) // 2
PAGE = b"<!DOCTYPE html><title>moved</title>" * 100


def archive(*urls: str) -> Archive:
    return Archive("set.tgz", hashlib.md5(CONTENT).hexdigest(), urls)


def kept(cache: Path) -> list[str]:
    """What is below the folder of downloads, but for the lock files."""
    return [name for name in files_below(cache / "downloads") if not name.endswith(".lock")]


def partial(cache: Path) -> Path:
    return cache / "downloads" / "set.tgz.part"


def test_file_is_downloaded_once(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    path = fetch(archive(server.url("set.tgz")))
    assert path == empty_cache / "downloads" / "set.tgz"
    assert path.read_bytes() == CONTENT
    assert fetch(archive(server.url("set.tgz"))) == path
    assert server.log == [("set.tgz", None)]
    assert kept(empty_cache) == ["set.tgz"]


def resumed_from(server: LocalServer) -> int:
    """First byte that the last request asked for; 0 without a Range header."""
    asked = server.log[-1][1]
    return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


def test_dropped_connection_is_resumed_by_the_next_call(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    server.drop_after["set.tgz"] = HALF
    with refused(server.url("set.tgz")):
        fetch(archive(server.url("set.tgz")))
    assert not (empty_cache / "downloads" / "set.tgz").exists()
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT
    assert 0 < resumed_from(server) <= HALF
    assert kept(empty_cache) == ["set.tgz"]


def test_dropped_connection_is_resumed_at_the_next_mirror(server: LocalServer, empty_cache: Path) -> None:
    server.files = {"a/set.tgz": CONTENT, "b/set.tgz": CONTENT}
    server.drop_after["a/set.tgz"] = HALF
    assert fetch(archive(server.url("a/set.tgz"), server.url("b/set.tgz"))).read_bytes() == CONTENT
    assert [path for path, _ in server.log] == ["a/set.tgz", "b/set.tgz"]
    assert 0 < resumed_from(server) <= HALF


@pytest.mark.parametrize("broken", ["page", "404"])
def test_broken_mirror_does_not_lose_what_another_gave(broken: str, server: LocalServer, empty_cache: Path) -> None:
    server.files = {"set.tgz": CONTENT, "page": PAGE}
    server.html = {"page"}
    server.drop_after["set.tgz"] = HALF
    mirrors = archive(server.url("set.tgz"), server.url(broken))
    with refused("set.tgz"):
        fetch(mirrors)
    assert fetch(mirrors).read_bytes() == CONTENT
    assert 0 < resumed_from(server) <= HALF


def test_complete_part_is_used(server: LocalServer, empty_cache: Path) -> None:
    """The process was killed between the last byte and the rename; a server answers 416 to what is left."""
    server.files["set.tgz"] = CONTENT
    partial(empty_cache).parent.mkdir(parents=True)
    partial(empty_cache).write_bytes(CONTENT)
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT
    assert kept(empty_cache) == ["set.tgz"]


def test_foreign_part_is_not_used(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    partial(empty_cache).parent.mkdir(parents=True)
    partial(empty_cache).write_bytes(b"x" * HALF)
    url = server.url("set.tgz")
    assert fetch(archive(url, url)).read_bytes() == CONTENT


def test_page_in_place_of_the_file_is_refused(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = PAGE
    server.html = {"set.tgz"}
    with refused(server.url("set.tgz"), "HTML", empty_cache / "downloads" / "set.tgz"):
        fetch(archive(server.url("set.tgz")))
    assert kept(empty_cache) == []


def test_other_content_is_refused(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT[:-1] + b"x"
    with refused(server.url("set.tgz"), "checksum"):
        fetch(archive(server.url("set.tgz")))
    assert kept(empty_cache) == []


@pytest.mark.parametrize("first", ["nowhere", "page", "other"])
def test_second_mirror_helps_out(first: str, server: LocalServer, empty_cache: Path) -> None:
    server.files = {"set.tgz": CONTENT, "page": PAGE, "other": CONTENT[1:]}
    server.html = {"page"}
    assert fetch(archive(server.url(first), server.url("set.tgz"))).read_bytes() == CONTENT


def test_every_mirror_is_named_when_all_fail(server: LocalServer, empty_cache: Path) -> None:
    unreachable = "http://127.0.0.1:1/set.tgz"
    with refused(server.url("gone"), "404", unreachable, empty_cache / "downloads" / "set.tgz", "--from-archive"):
        fetch(archive(server.url("gone"), unreachable))


def test_damaged_file_in_the_cache_is_refused(server: LocalServer, empty_cache: Path) -> None:
    target = empty_cache / "downloads" / "set.tgz"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[:-1])
    with refused(target, "md5", "delete the file"):
        fetch(archive(server.url("set.tgz")))
    assert server.log == []


def test_archive_without_mirrors_says_where_a_person_gets_it(empty_cache: Path) -> None:
    with refused(
        "cannot download cars.tgz",
        "from the authors, by mail",
        "--from-archive",
        empty_cache / "downloads" / "cars.tgz",
    ):
        fetch(Archive("cars.tgz", "0" * 32, by_hand="from the authors, by mail"))
    assert kept(empty_cache) == []


def test_archive_without_md5_is_downloaded(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    assert fetch(Archive("set.tgz", urls=(server.url("set.tgz"),))).read_bytes() == CONTENT


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - count, count))


def test_disk_that_is_too_full_is_noticed_before_a_byte_is_kept(
    server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["set.tgz"] = CONTENT
    free(monkeypatch, len(CONTENT) - 1)
    with refused("set.tgz", "6 MB", "RETRIEVAL_BENCH_CACHE"):
        fetch(archive(server.url("set.tgz"), server.url("set.tgz")))
    assert kept(empty_cache) == []
    assert len(server.log) == 1, "no mirror makes the disk larger"


def test_only_the_missing_part_must_fit_on_the_disk(
    server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["set.tgz"] = CONTENT
    partial(empty_cache).parent.mkdir(parents=True)
    partial(empty_cache).write_bytes(CONTENT[:HALF])
    free(monkeypatch, len(CONTENT) - HALF)
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT


def test_part_longer_than_the_file_does_not_stand_in_the_way_for_ever(
    server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def length_told(handler: BaseHTTPRequestHandler, code: int, *words: str) -> None:
        handler.send_response(code)
        handler.send_header("Content-Range", f"bytes */{len(CONTENT)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(BaseHTTPRequestHandler, "send_error", length_told)
    server.files["set.tgz"] = CONTENT
    partial(empty_cache).parent.mkdir(parents=True)
    partial(empty_cache).write_bytes(CONTENT + b"x")
    mirrors = archive(server.url("set.tgz"), server.url("set.tgz"))
    with suppress(UserError):
        fetch(mirrors)
    assert fetch(mirrors).read_bytes() == CONTENT


def test_reason_why_a_mirror_failed_is_told(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    server.drop_after["set.tgz"] = HALF
    with refused(server.url("set.tgz"), "connection closed"):
        fetch(archive(server.url("set.tgz")))


def test_every_archive_that_only_a_person_can_fetch_is_asked_for_before_any_download(
    server: LocalServer, empty_cache: Path
) -> None:
    server.files["set.tgz"] = CONTENT
    others = (Archive("lists.txt", by_hand="from the web page"), Archive("img.zip", by_hand="by mail"))
    with refused("lists.txt", "from the web page", "img.zip", "by mail", "--from-archive"):
        fetch_all((archive(server.url("set.tgz")), *others))
    assert server.log == []
    with pytest.raises(UserError, match=r"img\.zip cannot be downloaded;"):
        fetch_all((Archive("img.zip"),))
