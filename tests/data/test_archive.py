"""Archives are extracted whole and once, or refused in one line; files are found wherever a data set has them."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retrieval_bench.data.archive import extracted, find_files
from retrieval_bench.data.download import Archive
from retrieval_bench.errors import UserError
from tests.data.data_checks import files_below, noise, refused

CONTENT = noise(200_000)
COMPRESSIONS = {"set.tgz": "w:gz", "set.tar.xz": "w:xz", "set.tar.bz2": "w:bz2"}
KINDS = [*COMPRESSIONS, "set.tar", "set.zip"]


def kept(cache: Path) -> list[str]:
    """What is below the folder of extracted archives, except the lock files."""
    return [name for name in files_below(cache / "extracted") if not name.endswith(".lock")]


def write_archive(path: Path, members: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    """A zip or tar with this compression, according to its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members.items():
                zipped.writestr(name, content)
        return path
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


@pytest.mark.parametrize("name", KINDS)
def test_content_is_extracted_once(name: str, tmp_path: Path, empty_cache: Path) -> None:
    archive = write_archive(tmp_path / name, {"set/a.bin": CONTENT, "set/sub/Ü.bin": b"b"})
    folder = extracted(archive)
    assert folder.is_relative_to(empty_cache)
    assert (folder / "set" / "a.bin").read_bytes() == CONTENT
    assert (folder / "set" / "sub" / "Ü.bin").read_bytes() == b"b"
    (folder / "set" / "a.bin").write_bytes(b"not extracted again")
    assert (extracted(archive) / "set" / "a.bin").read_bytes() == b"not extracted again"
    os.utime(archive, (1, 1))
    assert (extracted(archive) / "set" / "a.bin").read_bytes() == CONTENT, "another archive of this name"


def test_kind_is_known_by_the_content(tmp_path: Path, empty_cache: Path) -> None:
    zipped = write_archive(tmp_path / "img.zip", {"img/a.jpg": b"a"})
    inside = write_archive(tmp_path / "set.tar", {"PK.txt": b"list", "img.zip": zipped.read_bytes()})
    assert files_below(extracted(inside)) == ["PK.txt", "img.zip"]
    assert files_below(extracted(zipped.rename(tmp_path / "img.tgz"))) == ["img", "img/a.jpg"]


@pytest.mark.parametrize(
    ("name", "share"), [(name, share) for name in KINDS for share in (0.01, 0.9, None) if share or name != "set.tar"]
)
def test_damaged_archive_is_refused(name: str, share: float | None, tmp_path: Path, empty_cache: Path) -> None:
    """Truncated to this share, or with one other byte, which all formats but plain tars notice."""
    archive = write_archive(tmp_path / name, {"a.bin": CONTENT, "b.bin": noise(1_500_000)})
    content = bytearray(archive.read_bytes())
    if share is None:
        content[len(content) * 3 // 4] ^= 0xFF
    else:
        del content[int(len(content) * share) :]
    for damaged, problem in ((content, "fetch it again"), (b"<html>not found</html>", "not a tar or zip archive")):
        archive.write_bytes(damaged)
        with refused(archive, problem):
            extracted(archive)
    assert kept(empty_cache) == []


OUTSIDE = [
    "../escaped.txt",
    "a/../../escaped.txt",
    "/escaped.txt",
    "C:/escaped.txt",
    "..\\escaped.txt",
    "C:escaped.txt",
]
SPECIAL = [
    link("way_out", "../../.."),
    link("way_out", "/etc"),
    link("way_out", "../../escaped.txt", tarfile.LNKTYPE),
    link("device", "", tarfile.CHRTYPE),
]


@pytest.mark.parametrize(
    ("kind", "members", "special"),
    [
        *(("set.zip", [name], []) for name in OUTSIDE),
        *(("set.tgz", [name], []) for name in OUTSIDE[:2]),
        *(("set.tgz", [], [member]) for member in SPECIAL),
    ],
)
def test_unsafe_member_is_refused(
    kind: str, members: list[str], special: list[tarfile.TarInfo], tmp_path: Path, empty_cache: Path
) -> None:
    archive = write_archive(tmp_path / kind, dict.fromkeys(["good.txt", *members], b"x"), *special)
    with refused(archive, "refused", *members):
        extracted(archive)
    assert kept(empty_cache) == []
    assert not list(tmp_path.rglob("*escaped.txt"))


def test_link_and_encryption_in_a_zip_are_refused(tmp_path: Path, empty_cache: Path) -> None:
    member = zipfile.ZipInfo("way_out")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as zipped:
        zipped.writestr(member, "../../..")
    with refused(tmp_path / "link.zip", "way_out", "link"):
        extracted(tmp_path / "link.zip")
    archive = write_archive(tmp_path / "img.zip", {"a.txt": b"secret"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # flags of the member's own header, then of the directory's
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with refused(archive, "encrypted", "--data-root"):
        extracted(archive)
    assert kept(empty_cache) == []


@given(
    kind=st.sampled_from(["set.zip", "set.tar", "set.tgz"]), position=st.integers(0, 20_000), value=st.integers(0, 255)
)
@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(kind="set.zip", position=439, value=0xA3)  # a name
@example(kind="set.zip", position=521, value=0xFF)  # an offset
def test_any_changed_byte_is_harmless_or_refused(
    kind: str, position: int, value: int, tmp_path: Path, empty_cache: Path
) -> None:
    """Never a traceback, never a half-filled folder, and the line names the archive."""
    shutil.rmtree(tmp_path / "changed", ignore_errors=True)
    archive = write_archive(tmp_path / "changed" / kind, {"set/é.bin": noise(300), "set/b.bin": b"b" * 300})
    content = bytearray(archive.read_bytes())
    content[position % len(content)] = value
    archive.write_bytes(content)
    message = str(archive)
    try:
        shutil.rmtree(extracted(archive))
    except UserError as error:
        message = str(error)
    assert str(archive) in message
    assert kept(empty_cache) == []


def test_interrupted_extraction_is_started_over(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "set.zip", {"a.bin": CONTENT, "b.bin": CONTENT})

    def half(self: zipfile.ZipFile, folder: Path) -> NoReturn:
        self.extract("a.bin", folder)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extractall", half)
        with pytest.raises(OSError, match="No space left"):
            extracted(archive)
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100_000, 100_000))
        for full in (archive, write_archive(tmp_path / "set.tar", {"a.bin": CONTENT})):
            with refused(full.name, "1 MB", "RETRIEVAL_BENCH_CACHE"):
                extracted(full)
    assert kept(empty_cache) == []
    assert files_below(extracted(archive)) == ["a.bin", "b.bin"]


ARCHIVES = (Archive("list.txt", by_hand="from the authors"), Archive("images.tgz", by_hand="from the authors"))


def test_files_in_the_folder_come_first_and_no_archive_is_extracted_in_vain(tmp_path: Path, empty_cache: Path) -> None:
    find = partial(find_files, tmp_path, ARCHIVES, "My Set")
    with refused(tmp_path, "no My Set here (images is missing)", "list.txt, images.tgz"):
        find(("images", "set/images"))
    write_archive(tmp_path / "images.tgz", {"images/1.jpg": b"x"})
    (tmp_path / "images").mkdir()
    assert find(("images", "set/images")) == [tmp_path / "images"]
    (tmp_path / "set").mkdir()
    for path in (tmp_path / "set" / "list.txt", tmp_path / "list.txt"):
        path.touch()
        assert find(("list.txt", "set/list.txt")) == [path]
    assert kept(empty_cache) == []
