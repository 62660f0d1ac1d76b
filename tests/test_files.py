"""Writes are whole or not at all; locks and room on the disk are checked before the work."""

from __future__ import annotations

import hashlib
import shutil
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.files import (
    Locked,
    atomic_path,
    cache_dir,
    check_digest,
    check_space,
    check_writable,
    gigabytes,
    locked,
    whole_folder,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    write_text(path, "old")

    def interrupted_write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert path.read_text() == "old"
    assert names(path.parent) == ["record.json"]
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o044, "readable by others, as an ordinary file is"


def test_digest_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    check_digest(tmp_path / "a", hashlib.md5(b"abc").hexdigest(), "md5")
    with pytest.raises(UserError, match="a: md5 is"):
        check_digest(tmp_path / "a", "0" * 32, "md5")
    with pytest.raises(UserError, match="b: no such file"):
        check_digest(tmp_path / "b", "0" * 32, "md5")


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs")
    assert not names(tmp_path / "runs")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs: cannot be written to \(Not a directory\)"):
        check_writable(tmp_path / "file" / "runs")


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("RETRIEVAL_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "retrieval_bench"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, OSError])
def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, error: type[BaseException] | None) -> None:
    def make() -> None:
        with whole_folder(tmp_path / "set") as temporary:
            (temporary / "a").touch()
            assert not (tmp_path / "set").exists()
            if error:
                raise error("stop")

    if error:
        with pytest.raises(error):
            make()
        assert names(tmp_path) == []
        return
    make()
    assert names(tmp_path / "set") == ["a"]
    with pytest.raises(OSError, match="not empty"):
        overwrite(tmp_path / "set")
    assert (names(tmp_path), names(tmp_path / "set")) == (["set"], ["a"])


def overwrite(target: Path) -> None:
    with whole_folder(target) as temporary:
        (temporary / "b").touch()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".set-2.partial", ".set.partial/half"):
        (tmp_path / name).mkdir(parents=True)
    with whole_folder(tmp_path / "set") as temporary:
        assert not names(temporary)
    assert names(tmp_path) == [".set-2.partial", "set"]


def test_a_lock_is_free_again_after_an_error_and_its_folder_must_be_writable(tmp_path: Path) -> None:
    def work(path: Path) -> None:
        with locked(path, "working"), locked(path.with_name("other"), "working"):
            raise UserError("stop")

    for _ in range(2):
        with pytest.raises(UserError, match="stop"):
            work(tmp_path / "new" / "set")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written to .*RETRIEVAL_BENCH_CACHE"):
        work(tmp_path / "file" / "set")


def test_a_second_process_waits_for_a_lock_unless_it_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder releases the lock once the other has logged that it waits."""
    events: list[str] = []
    waiting = threading.Event()
    monkeypatch.setattr("retrieval_bench.files.logger.info", lambda message: (events.append(message), waiting.set()))
    held = FileLock(tmp_path / ".set.lock", thread_local=False)
    held.acquire()
    with pytest.raises(Locked, match="extracting"), locked(tmp_path / "set", "extracting set.tgz", wait=False):
        pass

    def work() -> None:
        with locked(tmp_path / "set", "extracting set.tgz"):
            events.append("worked")

    other = threading.Thread(target=work)
    other.start()
    assert waiting.wait(timeout=30)
    events.append("released")
    held.release()
    other.join()
    assert events == ["waiting for another process that is extracting set.tgz", "released", "worked"]


@given(free=st.integers(0, 10**13), needed=st.integers(0, 10**13))
@example(free=5, needed=5)
def test_room_is_enough_exactly_if_it_is_as_much_as_needed(free: int, needed: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**14, 10**14 - free, free))
        if free >= needed:
            check_space(Path("folder"), needed, "the archive")
            return
        message = f"folder: the archive needs {gigabytes(needed)} and the disk has {gigabytes(free)} free"
        with pytest.raises(UserError, match=message):
            check_space(Path("folder"), needed, "the archive")


def test_room_is_looked_for_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or shutil._ntuple_diskusage(1, 0, 1))
    check_space(tmp_path / "not" / "yet", 1, "it")
    monkeypatch.chdir(tmp_path)
    check_space(Path("not/yet"), 1, "it")
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 MB"), (1, "1 MB"), (11_500_000, "12 MB"), (10**9, "1.0 GB"), (3_149_000_000, "3.1 GB")]
)
def test_bytes_are_written_in_units_of_ten(count: int, text: str) -> None:
    assert gigabytes(count) == text
