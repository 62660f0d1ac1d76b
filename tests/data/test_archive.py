from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from data_checks import files_below, noise, refused

from retrieval_bench.data.archive import extracted

CONTENT = noise(200_000)
COMPRESSIONS = {"set.tgz": "w:gz", "set.tar.xz": "w:xz", "set.tar.bz2": "w:bz2"}


def kept(cache: Path) -> list[str]:
    """What is below the folder of extracted archives, but for the lock files."""
    return [name for name in files_below(cache / "extracted") if not name.endswith(".lock")]


def write_tar(path: Path, members: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, COMPRESSIONS.get(path.name, "w")) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in special:
            tar.addfile(member)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize("name", [*COMPRESSIONS, "set.tar"])
def test_whole_content_is_extracted(name: str, tmp_path: Path, empty_cache: Path) -> None:
    folder = extracted(write_tar(tmp_path / name, {"set/a.bin": CONTENT, "set/sub/b.bin": b"b"}))
    assert (folder / "set" / "a.bin").read_bytes() == CONTENT
    assert (folder / "set" / "sub" / "b.bin").read_bytes() == b"b"
    assert folder.is_relative_to(empty_cache)


def test_second_call_reuses_the_folder(tmp_path: Path, empty_cache: Path) -> None:
    archive = write_tar(tmp_path / "set.tgz", {"a.bin": CONTENT})
    folder = extracted(archive)
    before = (folder / "a.bin").stat()
    assert extracted(archive) == folder
    after = (folder / "a.bin").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert kept(empty_cache) == [folder.name, f"{folder.name}/a.bin"]


def test_changed_archive_is_extracted_anew(tmp_path: Path, empty_cache: Path) -> None:
    extracted(write_tar(tmp_path / "set.tgz", {"a.txt": b"old"}))
    assert (extracted(write_tar(tmp_path / "set.tgz", {"a.txt": CONTENT})) / "a.txt").read_bytes() == CONTENT


def test_other_archive_of_equal_name_and_size_is_extracted_itself(tmp_path: Path, empty_cache: Path) -> None:
    one = write_tar(tmp_path / "one" / "set.tar", {"a.txt": b"one"})
    two = write_tar(tmp_path / "two" / "set.tar", {"a.txt": b"two"})
    os.utime(one, (1_000_000_000, 1_000_000_000))
    os.utime(two, (1_000_000_000, 1_000_000_000))
    assert (extracted(one) / "a.txt").read_bytes() == b"one"
    assert (extracted(two) / "a.txt").read_bytes() == b"two"


@pytest.mark.parametrize("name", [*COMPRESSIONS, "set.tar"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_truncated_archive_is_refused(name: str, share: float, tmp_path: Path, empty_cache: Path) -> None:
    archive = write_tar(tmp_path / name, {"a.bin": CONTENT, "b.bin": CONTENT})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content))])
    with refused(archive, "truncated"):
        extracted(archive)
    assert kept(empty_cache) == []


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_damaged_archive_is_refused(name: str, tmp_path: Path, empty_cache: Path) -> None:
    """The checksum that each of these formats carries is heeded."""
    archive = write_tar(tmp_path / name, {"a.bin": noise(1_500_000)})
    content = bytearray(archive.read_bytes())
    content[len(content) * 3 // 4] ^= 0xFF
    archive.write_bytes(content)
    with refused(archive):
        extracted(archive)
    assert kept(empty_cache) == []


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", noise(5_000)], ids=["empty", "html", "noise"])
def test_no_archive_is_refused(content: bytes, tmp_path: Path, empty_cache: Path) -> None:
    archive = tmp_path / "set.tgz"
    archive.write_bytes(content)
    with refused(archive, "not a tar or zip archive"):
        extracted(archive)
    assert kept(empty_cache) == []


@pytest.mark.parametrize(
    ("members", "special"),
    [
        ({"good.txt": b"x", "../escaped.txt": b"x"}, []),
        ({"good.txt": b"x"}, [link("way_out", "../../..")]),
        ({"good.txt": b"x"}, [link("way_out", "/etc")]),
        ({"good.txt": b"x"}, [link("way_out", "../../escaped.txt", tarfile.LNKTYPE)]),
        ({"good.txt": b"x"}, [link("device", "", tarfile.CHRTYPE)]),
    ],
    ids=["dots", "link up", "absolute link", "hard link up", "device"],
)
def test_unsafe_member_is_refused(
    members: dict[str, bytes], special: list[tarfile.TarInfo], tmp_path: Path, empty_cache: Path
) -> None:
    archive = write_tar(tmp_path / "set.tgz", members, *special)
    with refused(archive, "refused"):
        extracted(archive)
    assert kept(empty_cache) == []
    assert not list(tmp_path.rglob("escaped.txt"))
