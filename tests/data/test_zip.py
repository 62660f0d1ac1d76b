"""Zip archives; and what holds for all kinds."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path
from typing import NoReturn

import pytest
from data_checks import files_below, noise, refused
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_archive import kept, write_tar

from retrieval_bench.data.archive import extracted
from retrieval_bench.errors import UserError

CONTENT = noise(200_000)
CHANGED_NAME, CHANGED_OFFSET = 439, 521


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["set.zip", "SET.ZIP", "set.tgz"])
def test_zip_is_extracted_whatever_its_name_says(name: str, tmp_path: Path, empty_cache: Path) -> None:
    folder = extracted(write_zip(tmp_path / name, {"set/a.bin": CONTENT, "set/Übersicht.txt": b"b"}))
    assert (folder / "set" / "a.bin").read_bytes() == CONTENT
    assert (folder / "set" / "Übersicht.txt").read_bytes() == b"b"


def test_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path, empty_cache: Path) -> None:
    """In-Shop comes as lists beside an img.zip; a person may carry them in one tar."""
    inner = write_zip(tmp_path / "img.zip", {"img/a.jpg": b"a"}).read_bytes()
    folder = extracted(write_tar(tmp_path / "set.tar", {"list.txt": b"list", "img.zip": inner}))
    assert files_below(folder) == ["img.zip", "list.txt"]


def test_tar_whose_first_name_begins_as_a_zip_does_is_a_tar(tmp_path: Path, empty_cache: Path) -> None:
    """PKU VehicleID is such a data set."""
    folder = extracted(write_tar(tmp_path / "set.tar", {"PKU/a.txt": b"a"}))
    assert files_below(folder) == ["PKU", "PKU/a.txt"]


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_truncated_zip_is_refused(share: float, tmp_path: Path, empty_cache: Path) -> None:
    archive = write_zip(tmp_path / "set.zip", {"a.bin": CONTENT, "b.bin": CONTENT})
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    with refused(archive, "truncated"):
        extracted(archive)
    assert kept(empty_cache) == []


def test_damaged_zip_is_refused(tmp_path: Path, empty_cache: Path) -> None:
    archive = write_zip(tmp_path / "set.zip", {"good.txt": b"x", "a.bin": CONTENT})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 0xFF
    archive.write_bytes(content)
    with refused(archive, "damaged"):
        extracted(archive)
    assert kept(empty_cache) == []


@pytest.mark.parametrize(
    "name",
    ["../escaped.txt", "a/../../escaped.txt", "/escaped.txt", "C:/escaped.txt", "..\\escaped.txt", "C:escaped.txt"],
)
def test_zip_member_that_leads_out_is_refused(name: str, tmp_path: Path, empty_cache: Path) -> None:
    archive = write_zip(tmp_path / "set.zip", {"good.txt": b"x", name: b"x"})
    with refused(archive, "refused", name):
        extracted(archive)
    assert kept(empty_cache) == []
    assert not list(tmp_path.rglob("*escaped.txt"))


def test_link_in_a_zip_is_refused(tmp_path: Path, empty_cache: Path) -> None:
    archive, member = tmp_path / "set.zip", zipfile.ZipInfo("way_out")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as members:
        members.writestr(member, "../../..")
    with refused(archive, "way_out", "link"):
        extracted(archive)
    assert kept(empty_cache) == []


def test_encrypted_zip_is_refused_with_the_way_out(tmp_path: Path, empty_cache: Path) -> None:
    archive = write_zip(tmp_path / "img.zip", {"a.txt": b"secret"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # flags of the member's own header, then of the directory's
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with refused(archive, "encrypted", "--data-root"):
        extracted(archive)
    assert kept(empty_cache) == []


def changed(kind: str, position: int, value: int, folder: Path) -> Path:
    """An archive with one changed byte."""
    shutil.rmtree(folder, ignore_errors=True)
    members = {"set/é.bin": noise(300), "set/b.bin": b"b" * 300}
    archive = (write_zip if kind == "set.zip" else write_tar)(folder / kind, members)
    content = bytearray(archive.read_bytes())
    content[position % len(content)] = value
    archive.write_bytes(content)
    return archive


@given(
    kind=st.sampled_from(["set.zip", "set.tar", "set.tgz"]), position=st.integers(0, 20_000), value=st.integers(0, 255)
)
@settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(kind="set.zip", position=CHANGED_NAME, value=0xA3)
@example(kind="set.zip", position=CHANGED_OFFSET, value=0xFF)
def test_any_changed_byte_is_harmless_or_refused(
    kind: str, position: int, value: int, tmp_path: Path, empty_cache: Path
) -> None:
    """Never a traceback, never a half-filled folder, and the line names the archive."""
    archive = changed(kind, position, value, tmp_path)
    try:
        extracted(archive)
    except UserError as error:
        said = str(error)
    else:
        return
    assert str(archive) in said
    assert kept(empty_cache) == []


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_disk_that_is_too_full_is_noticed_before_extraction(
    write: object, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = (write_tar if write is write_tar else write_zip)(tmp_path / "set.archive", {"a.bin": CONTENT})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100_000, 100_000))
    with refused("set.archive", "1 MB", "RETRIEVAL_BENCH_CACHE"):
        extracted(archive)
    assert kept(empty_cache) == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError])
def test_interrupted_extraction_is_started_over(
    kind: type[BaseException], tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_zip(tmp_path / "set.zip", {"a.bin": CONTENT, "b.bin": CONTENT})

    def half(self: zipfile.ZipFile, folder: Path) -> NoReturn:
        self.extract("a.bin", folder)
        raise kind(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extractall", half)
        with pytest.raises(kind):
            extracted(archive)
    assert kept(empty_cache) == []
    assert files_below(extracted(archive)) == ["a.bin", "b.bin"]
