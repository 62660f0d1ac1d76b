"""Writes are whole or not at all; room and rights are checked before the work."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval_bench.errors import UserError
from retrieval_bench.files import (
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


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_text(path, "old")

    def interrupted_write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_finished_write_replaces_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "record.json", "old")
    write_text(tmp_path / "deep" / "record.json", "new")
    assert (tmp_path / "deep" / "record.json").read_text() == "new"
    assert (tmp_path / "deep" / "record.json").stat().st_mode & 0o044, "readable by others, as an ordinary file is"


def test_digest_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    check_digest(tmp_path / "a", hashlib.md5(b"abc").hexdigest(), "md5")
    with pytest.raises(UserError, match="a: md5 is"):
        check_digest(tmp_path / "a", "0" * 32, "md5")
    with pytest.raises(UserError, match="b: no such file"):
        check_digest(tmp_path / "b", "0" * 32, "md5")


def test_check_writable_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs: cannot be written to \(Not a directory\)"):
        check_writable(tmp_path / "file" / "runs")


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRIEVAL_BENCH_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("RETRIEVAL_BENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "retrieval_bench"


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_finished_folder_appears_whole_and_under_its_name_only(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "set") as temporary:
        (temporary / "a").touch()
        assert not (tmp_path / "set").exists()
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["a"]
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) & 0o055 == 0o055 & ~_umask(), (
        "others may read it, as an ordinary folder"
    )


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@pytest.mark.parametrize("kind", [KeyboardInterrupt, OSError, UserError])
def test_an_interrupted_folder_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "set") as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "a").touch()
            raise kind("stop")

    with pytest.raises(kind):
        interrupted()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["set", "set[1]", "a*b"])
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path, name: str) -> None:
    for other in ("set-2", "axb"):
        (tmp_path / f".{other}.partial-x").mkdir()
    (tmp_path / f".{name}.partial-x" / "half").mkdir(parents=True)
    with whole_folder(tmp_path / name):
        pass
    assert names(tmp_path) == sorted([".set-2.partial-x", ".axb.partial-x", name])


def test_a_folder_that_is_already_there_is_not_overwritten(tmp_path: Path) -> None:
    def again() -> None:
        with whole_folder(tmp_path / "set") as temporary:
            (temporary / "b").touch()

    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a").touch()
    with pytest.raises(OSError, match="not empty"):
        again()
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["a"]


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    def fails() -> None:
        with locked(tmp_path / "new" / "set", "working"):
            raise UserError("stop")

    for _ in range(2):
        with pytest.raises(UserError, match="stop"):
            fails()
    FileLock(tmp_path / "new" / ".set.lock").acquire(timeout=0).lock.release()


def test_who_has_to_wait_for_a_lock_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder lets go once the other has said that it waits."""
    events: list[str] = []
    waiting = threading.Event()
    monkeypatch.setattr("retrieval_bench.files.logger.info", lambda message: (events.append(message), waiting.set()))
    held = FileLock(tmp_path / ".set.lock", thread_local=False)
    held.acquire()

    def work() -> None:
        with locked(tmp_path / "set", "extracting set.tgz"):
            events.append("worked")

    other = threading.Thread(target=work)
    other.start()
    assert waiting.wait(timeout=30)
    events.append("let go")
    held.release()
    other.join()
    assert events == ["waiting for another process that is extracting set.tgz", "let go", "worked"]


def test_different_things_are_not_locked_together(tmp_path: Path) -> None:
    with locked(tmp_path / "one", "working"), locked(tmp_path / "two", "working"):
        pass


def test_a_lock_that_cannot_be_written_names_the_variable_to_set(tmp_path: Path) -> None:
    def work() -> None:
        with locked(tmp_path / "file" / "set", "working"):
            pass

    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written to .*RETRIEVAL_BENCH_CACHE"):
        work()


@given(free=st.integers(0, 10**13), needed=st.integers(0, 10**13))
@example(free=5, needed=5)
def test_room_is_enough_exactly_if_it_is_as_much_as_needed(free: int, needed: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**14, 10**14 - free, free))
        try:
            check_space(Path("folder"), needed, "the archive")
        except UserError as error:
            said = str(error)
        else:
            assert free >= needed
            return
    assert free < needed
    assert said.startswith(f"folder: the archive needs {gigabytes(needed)} and the disk has {gigabytes(free)} free")


def test_room_is_asked_for_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or shutil._ntuple_diskusage(1, 0, 1))
    check_space(tmp_path / "not" / "yet", 1, "it")
    monkeypatch.chdir(tmp_path)
    check_space(Path("not/yet"), 1, "it")
    assert asked == [tmp_path, tmp_path]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 MB"),
        (1, "1 MB"),
        (11_500_000, "12 MB"),
        (10**9, "1.0 GB"),
        (3_149_000_000, "3.1 GB"),
        (10**12, "1000.0 GB"),
    ],
)
def test_bytes_are_told_in_units_of_ten(count: int, text: str) -> None:
    assert gigabytes(count) == text
