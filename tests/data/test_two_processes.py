"""Two processes that want the same thing: one does the work, the other waits. A process that died stands in nobody's way."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from data_checks import files_below, noise
from local_server import LocalServer

from retrieval_bench.data.archive import extracted
from retrieval_bench.data.download import Archive, fetch

ROOT = Path(__file__).parents[2]
CONTENT = noise(3 << 20)
MD5 = hashlib.md5(CONTENT).hexdigest()

FETCH = """
from retrieval_bench.data.download import Archive, fetch
import pooch, requests
print("ready", flush=True)
input()
print(fetch(Archive("set.tgz", sys.argv[1], (sys.argv[2],))))
"""
EXTRACT = """
from retrieval_bench.data.archive import extracted
import filelock
print("ready", flush=True)
input()
print(extracted(Path(sys.argv[1])))
"""
DIE_EXTRACTING = """
from retrieval_bench.data import archive

def half(path, folder):
    (folder / "a.bin").write_bytes(b"half")
    os.kill(os.getpid(), 9)

archive.untar = half
archive.extracted(Path(sys.argv[1]))
"""
DIE_DOWNLOADING = """
from retrieval_bench.data import download

class Dying(download.ResumingDownloader):
    def _receive(self, response, have):
        self.part.write_bytes(response.raw.read(1 << 20))
        os.kill(os.getpid(), 9)

download.ResumingDownloader = Dying
download.fetch(download.Archive("set.tgz", sys.argv[1], (sys.argv[2],)))
"""


def start(script: str, *words: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import os, sys\nfrom pathlib import Path\n{script}", *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def both(script: str, *words: object) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of two processes, let go together once both have imported everything."""
    running = [start(script, *words) for _ in range(2)]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60) for process in running]
    return [(process.returncode, out.strip(), err) for process, (out, err) in zip(running, said, strict=True)]


def kept(folder: Path) -> list[str]:
    return [name for name in files_below(folder) if not name.endswith(".lock")]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(300):
            member = tarfile.TarInfo(f"{number}.bin")
            member.size = 10_000
            tar.addfile(member, io.BytesIO(CONTENT[number : number + 10_000]))
    return path


def test_two_processes_download_an_archive_once(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    place = empty_cache / "downloads" / "set.tgz"
    said = both(FETCH, MD5, server.url("set.tgz"))
    assert [(code, out) for code, out, _ in said] == [(0, str(place))] * 2, said
    assert server.log == [("set.tgz", None)]
    assert place.read_bytes() == CONTENT
    assert kept(empty_cache / "downloads") == ["set.tgz"]


def test_two_processes_extract_an_archive_once(archive: Path, empty_cache: Path) -> None:
    said = both(EXTRACT, archive)
    folder = extracted(archive)
    assert [(code, out) for code, out, _ in said] == [(0, str(folder))] * 2, said
    assert sum(err.count("extracting ") - err.count("is extracting ") for *_, err in said) == 1
    assert (folder / "299.bin").read_bytes() == CONTENT[299:10_299]
    assert len(list(folder.iterdir())) == 300
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_process_that_died_while_extracting_leaves_nothing_that_harms_the_next(
    archive: Path, empty_cache: Path
) -> None:
    died = start(DIE_EXTRACTING, archive)
    died.communicate(timeout=60)
    assert died.returncode == -9
    assert any(name.endswith("a.bin") for name in kept(empty_cache / "extracted")), "it was killed midway"
    folder = extracted(archive)
    assert len(list(folder.iterdir())) == 300
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_process_that_died_while_downloading_leaves_a_part_that_the_next_goes_on_with(
    server: LocalServer, empty_cache: Path
) -> None:
    server.files["set.tgz"] = CONTENT
    died = start(DIE_DOWNLOADING, MD5, server.url("set.tgz"))
    died.communicate(timeout=60)
    assert died.returncode == -9
    assert fetch(Archive("set.tgz", MD5, (server.url("set.tgz"),))).read_bytes() == CONTENT
    assert server.log == [("set.tgz", None), ("set.tgz", f"bytes={1 << 20}-")]
