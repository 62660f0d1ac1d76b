"""Downloads resume, are checked and never half used; wheels come by pip; two processes do the work once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from retrieval_bench.data.download import Archive, fetch, fetch_all, fetch_wheel
from tests.data.data_checks import files_below, noise, refused, write_wheel
from tests.data.local_server import LocalServer

CONTENT = noise(3 << 20)
HALF = len(CONTENT) // 2
MD5 = hashlib.md5(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><title>moved</title>" * 100


def archive(*urls: str) -> Archive:
    return Archive("set.tgz", MD5, urls)


def kept(cache: Path, folder: str = "downloads") -> list[str]:
    return [name for name in files_below(cache / folder) if not name.endswith(".lock")]


def write_cached(cache: Path, name: str, content: bytes) -> None:
    (cache / "downloads").mkdir(parents=True, exist_ok=True)
    (cache / "downloads" / name).write_bytes(content)


def set_free_space(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - count, count))


@pytest.mark.parametrize("md5", [MD5, ""])
def test_file_is_downloaded_once(md5: str, server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    wanted = replace(archive(server.url("set.tgz")), md5=md5)
    assert fetch(wanted).read_bytes() == CONTENT
    assert fetch(wanted) == empty_cache / "downloads" / "set.tgz"
    assert server.log == [("set.tgz", None)]
    assert kept(empty_cache) == ["set.tgz"]


@pytest.mark.parametrize("second", ["same", "page", "404", "mirror"])
def test_dropped_connection_is_resumed(second: str, server: LocalServer, empty_cache: Path) -> None:
    """By the next call or the next mirror; a broken mirror in between loses nothing."""
    server.files = {"set.tgz": CONTENT, "mirror": CONTENT, "page": PAGE}
    server.html = {"page"}
    server.drop_after["set.tgz"] = HALF
    mirrors = archive(server.url("set.tgz"), *([] if second == "same" else [server.url(second)]))
    if second != "mirror":
        with refused(server.url("set.tgz"), "connection closed after", f" of {len(CONTENT):,} bytes"):
            fetch(mirrors)
    assert not (empty_cache / "downloads" / "set.tgz").exists()
    assert fetch(mirrors).read_bytes() == CONTENT
    assert 0 < int(str(server.log[-1][1]).removeprefix("bytes=").removesuffix("-")) <= HALF
    assert kept(empty_cache) == ["set.tgz"]


@pytest.mark.parametrize("part", [CONTENT, b"x" * HALF, CONTENT + b"x"], ids=["complete", "foreign", "longer"])
def test_part_is_used_only_if_it_fits(part: bytes, server: LocalServer, empty_cache: Path) -> None:
    """A complete one is left by a process killed before the rename; a server answers 416 to what is left."""
    server.files["set.tgz"] = CONTENT
    write_cached(empty_cache, "set.tgz.part", part)
    assert fetch(archive(server.url("set.tgz"), server.url("set.tgz"))).read_bytes() == CONTENT
    assert kept(empty_cache) == ["set.tgz"]


@pytest.mark.parametrize(
    ("mirror", "word"),
    [("page", "HTML page"), ("other", "wrong checksum"), ("gone", "HTTP 404"), ("", "ConnectionError")],
)
def test_bad_mirror_is_named_and_the_next_one_is_tried(
    mirror: str, word: str, server: LocalServer, empty_cache: Path
) -> None:
    server.files = {"set.tgz": CONTENT, "page": PAGE, "other": CONTENT[:-1] + b"x"}
    server.html = {"page"}
    url = server.url(mirror) if mirror else "http://127.0.0.1:1/set.tgz"
    with refused(f"{url}: ", word, empty_cache / "downloads" / "set.tgz", "--from-archive"):
        fetch(archive(url))
    assert kept(empty_cache) == []
    assert fetch(archive(url, server.url("set.tgz"))).read_bytes() == CONTENT


def test_only_what_is_missing_must_fit_on_the_disk(
    server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["set.tgz"] = CONTENT
    set_free_space(monkeypatch, len(CONTENT) - 1)
    with refused("set.tgz", "4 MB", "RETRIEVAL_BENCH_CACHE"):
        fetch(archive(server.url("set.tgz"), server.url("set.tgz")))
    assert kept(empty_cache) == []
    assert len(server.log) == 1, "no mirror makes the disk larger"
    write_cached(empty_cache, "set.tgz.part", CONTENT[:HALF])
    set_free_space(monkeypatch, len(CONTENT) - HALF)
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT


def test_what_only_a_person_can_fetch_is_asked_for_before_any_download(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    others = (Archive("lists.txt", by_hand="from the web page"), Archive("img.zip", by_hand="by mail"))
    with refused("lists.txt", "from the web page", "img.zip", "by mail", "--from-archive"):
        fetch_all((archive(server.url("set.tgz")), *others))
    assert server.log == []
    with refused("cannot download img.zip", "by hand by mail", empty_cache / "downloads" / "img.zip"):
        fetch(others[1])


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path


def test_wheel_is_fetched_once_and_checked(index: Path, empty_cache: Path) -> None:
    source, wheel = write_wheel(index, "tinydrawings", "1.0", {"tinydrawings/a.txt": b"a"})
    with refused("sha256", wheel.sha256, "0" * 64):
        fetch_wheel(replace(wheel, sha256="0" * 64))
    assert kept(empty_cache, "wheels") == []
    content = source.read_bytes()
    path = fetch_wheel(wheel)
    source.unlink()  # pip would find nothing now
    assert fetch_wheel(wheel).read_bytes() == content
    path.write_bytes(content[:-1])
    with refused(path, "sha256"):
        fetch_wheel(wheel)


def test_wheel_that_pip_cannot_fetch_is_one_line(index: Path, empty_cache: Path) -> None:
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"a.txt": b"a"})
    with refused("nosuchdrawings 1.0", "No matching distribution", empty_cache / "wheels"):
        fetch_wheel(replace(wheel, project="nosuchdrawings"))
    assert kept(empty_cache, "wheels") == []


FETCH = """
import sys
from retrieval_bench.data.download import Archive, fetch
print("ready", flush=True)
input()
print(fetch(Archive("set.tgz", sys.argv[1], (sys.argv[2],))))
"""


def test_two_processes_download_an_archive_once(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    command, pipe = [sys.executable, "-c", FETCH, MD5, server.url("set.tgz")], subprocess.PIPE
    folder = Path(__file__).parents[2]
    running = [subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].strip() for process in running]
    assert printed == [str(empty_cache / "downloads" / "set.tgz")] * 2
    assert server.log == [("set.tgz", None)]
    assert kept(empty_cache) == ["set.tgz"]
