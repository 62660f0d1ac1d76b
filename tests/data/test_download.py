"""Downloads resume, are checked and never half used; wheels come by pip; two processes do the work once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from data_checks import files_below, noise, refused
from local_server import LocalServer
from wheels import write_wheel

from retrieval_bench.data.archive import extracted
from retrieval_bench.data.download import Archive, fetch, fetch_all, fetch_wheel

CONTENT = noise(3 << 20)
HALF = len(CONTENT) // 2
MD5 = hashlib.md5(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><title>moved</title>" * 100


def archive(*urls: str) -> Archive:
    return Archive("set.tgz", MD5, urls)


def kept(cache: Path, folder: str = "downloads") -> list[str]:
    return [name for name in files_below(cache / folder) if not name.endswith(".lock")]


def write_part(cache: Path, content: bytes) -> None:
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / "set.tgz.part").write_bytes(content)


def set_free_space(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - count, count))


def resumed_from(server: LocalServer) -> int:
    """First byte that the last request asked for; 0 without a Range header."""
    asked = server.log[-1][1]
    return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


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
    assert 0 < resumed_from(server) <= HALF
    assert kept(empty_cache) == ["set.tgz"]


@pytest.mark.parametrize("part", [CONTENT, b"x" * HALF], ids=["complete", "foreign"])
def test_part_is_used_only_if_it_fits(part: bytes, server: LocalServer, empty_cache: Path) -> None:
    """A complete one is left by a process killed before the rename; a server answers 416 to what is left."""
    server.files["set.tgz"] = CONTENT
    write_part(empty_cache, part)
    assert fetch(archive(server.url("set.tgz"), server.url("set.tgz"))).read_bytes() == CONTENT
    assert kept(empty_cache) == ["set.tgz"]


def test_part_longer_than_the_file_is_removed_when_no_mirror_can_use_it(
    server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_error(handler: BaseHTTPRequestHandler, code: int, *words: str) -> None:
        handler.send_response(code)
        handler.send_header("Content-Range", f"bytes */{len(CONTENT)}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(BaseHTTPRequestHandler, "send_error", send_error)
    server.files["set.tgz"] = CONTENT
    write_part(empty_cache, CONTENT + b"x")
    with refused("shorter", "removed"):
        fetch(archive(server.url("set.tgz")))
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT


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


def test_damaged_file_in_the_cache_is_refused(empty_cache: Path) -> None:
    (empty_cache / "downloads").mkdir(parents=True)
    (empty_cache / "downloads" / "set.tgz").write_bytes(CONTENT[:-1])
    with refused(empty_cache / "downloads" / "set.tgz", "md5", "delete the file"):
        fetch(archive())


def test_only_what_is_missing_must_fit_on_the_disk(
    server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["set.tgz"] = CONTENT
    set_free_space(monkeypatch, len(CONTENT) - 1)
    with refused("set.tgz", "4 MB", "RETRIEVAL_BENCH_CACHE"):
        fetch(archive(server.url("set.tgz"), server.url("set.tgz")))
    assert kept(empty_cache) == []
    assert len(server.log) == 1, "no mirror makes the disk larger"
    (empty_cache / "downloads" / "set.tgz.part").write_bytes(CONTENT[:HALF])
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
    folder = tmp_path / "index"
    values = {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull, "CACHE_DIR": str(tmp_path / "pip")}
    for name, value in values.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


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


def test_wheel_that_pip_cannot_fetch_is_one_line(
    index: Path, server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where pip's last line would be about its own update."""
    page = '<a href="/pip-9999.0-py3-none-any.whl">pip-9999.0-py3-none-any.whl</a>'
    server.files["simple/pip"] = f"<!DOCTYPE html><html><body>{page}</body></html>".encode()
    server.html = {"simple/pip"}
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", server.url("simple"))
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"a.txt": b"a"})
    with refused("nosuchdrawings 1.0", "No matching distribution", empty_cache / "wheels"):
        fetch_wheel(replace(wheel, project="nosuchdrawings"))
    assert kept(empty_cache, "wheels") == []


FETCH = """
from retrieval_bench.data.download import Archive, fetch
import filelock
print("ready", flush=True)
input()
print(fetch(Archive("set.tgz", sys.argv[1], (sys.argv[2],))))
"""
DIE_EXTRACTING = """
from retrieval_bench.data import archive

def half(path, folder):
    (folder / "a.bin").write_bytes(b"half")
    os.kill(os.getpid(), 9)

archive.unpack = half
archive.extracted(Path(sys.argv[1]))
"""
DIE_DOWNLOADING = """
from contextlib import nullcontext
from retrieval_bench.data import download
download.download_bar = lambda *_: nullcontext(lambda count: os.kill(os.getpid(), 9))
download.fetch(download.Archive("set.tgz", sys.argv[1], (sys.argv[2],)))
"""


def start(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import os, sys\nfrom pathlib import Path\n{script}", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run_twice(script: str, *words: object) -> list[tuple[str, str]]:
    """Standard output and standard error of two processes that begin together, once both have imported everything."""
    running = [start(script, *words) for _ in range(2)]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    return [(out.strip(), err) for out, err in printed]


def kill(script: str, *words: object) -> None:
    """Runs a process that kills itself."""
    process = start(script, *words)
    process.communicate(timeout=60)
    assert process.returncode == -9


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An archive of 100 files."""
    for number in range(100):
        (tmp_path / "files" / f"{number}.bin").parent.mkdir(exist_ok=True)
        (tmp_path / "files" / f"{number}.bin").write_bytes(CONTENT[:30_000])
    return Path(shutil.make_archive(str(tmp_path / "set"), "tar", tmp_path / "files"))


def test_two_processes_download_an_archive_once(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    printed = run_twice(FETCH, MD5, server.url("set.tgz"))
    assert {out for out, _ in printed} == {str(empty_cache / "downloads" / "set.tgz")}
    assert server.log == [("set.tgz", None)]
    assert kept(empty_cache) == ["set.tgz"]


def test_killed_extraction_harms_nobody(packed: Path, empty_cache: Path) -> None:
    kill(DIE_EXTRACTING, packed)
    assert any(name.endswith("a.bin") for name in kept(empty_cache, "extracted")), "it was killed midway"
    folder = extracted(packed)
    assert len(list(folder.iterdir())) == 100
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_killed_download_is_resumed(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    kill(DIE_DOWNLOADING, MD5, server.url("set.tgz"))
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT
    assert server.log == [("set.tgz", None), ("set.tgz", f"bytes={1 << 20}-")]
