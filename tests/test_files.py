"""Writes are whole or not at all."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from retrieval_bench.errors import UserError
from retrieval_bench.files import atomic_path, cache_dir, check_digest, check_writable, write_text


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
