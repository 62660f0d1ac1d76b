from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from data_checks import files_below, noise, refused
from local_server import LocalServer
from wheels import write_wheel

from retrieval_bench.data.download import Archive, fetch, fetch_wheel

CONTENT = noise(5 << 20)
HALF = len(CONTENT) // 2
PAGE = b"<!DOCTYPE html><title>moved</title>" * 100


def archive(*urls: str) -> Archive:
    return Archive("set.tgz", hashlib.md5(CONTENT).hexdigest(), urls)


def partial(cache: Path) -> Path:
    return cache / "downloads" / "set.tgz.part"


def test_file_is_downloaded_once(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    path = fetch(archive(server.url("set.tgz")))
    assert path == empty_cache / "downloads" / "set.tgz"
    assert path.read_bytes() == CONTENT
    assert fetch(archive(server.url("set.tgz"))) == path
    assert server.log == [("set.tgz", None)]
    assert files_below(path.parent) == ["set.tgz"]


def resumed_from(server: LocalServer) -> int:
    """First byte that the last request asked for; 0 without a Range header."""
    asked = server.log[-1][1]
    return int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0


def test_dropped_connection_is_resumed_by_the_next_call(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    server.drop_after["set.tgz"] = HALF
    with refused(server.url("set.tgz")):
        fetch(archive(server.url("set.tgz")))
    assert not (empty_cache / "downloads" / "set.tgz").exists()
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT
    assert 0 < resumed_from(server) <= HALF
    assert files_below(empty_cache / "downloads") == ["set.tgz"]


def test_dropped_connection_is_resumed_at_the_next_mirror(server: LocalServer, empty_cache: Path) -> None:
    server.files = {"a/set.tgz": CONTENT, "b/set.tgz": CONTENT}
    server.drop_after["a/set.tgz"] = HALF
    assert fetch(archive(server.url("a/set.tgz"), server.url("b/set.tgz"))).read_bytes() == CONTENT
    assert [path for path, _ in server.log] == ["a/set.tgz", "b/set.tgz"]
    assert 0 < resumed_from(server) <= HALF


@pytest.mark.parametrize("broken", ["page", "404"])
def test_broken_mirror_does_not_lose_what_another_gave(broken: str, server: LocalServer, empty_cache: Path) -> None:
    server.files = {"set.tgz": CONTENT, "page": PAGE}
    server.html = {"page"}
    server.drop_after["set.tgz"] = HALF
    mirrors = archive(server.url("set.tgz"), server.url(broken))
    with refused("set.tgz"):
        fetch(mirrors)
    assert fetch(mirrors).read_bytes() == CONTENT
    assert 0 < resumed_from(server) <= HALF


def test_complete_part_is_used(server: LocalServer, empty_cache: Path) -> None:
    """The process was killed between the last byte and the rename; a server answers 416 to what is left."""
    server.files["set.tgz"] = CONTENT
    partial(empty_cache).parent.mkdir(parents=True)
    partial(empty_cache).write_bytes(CONTENT)
    assert fetch(archive(server.url("set.tgz"))).read_bytes() == CONTENT
    assert files_below(empty_cache / "downloads") == ["set.tgz"]


def test_foreign_part_is_not_used(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT
    partial(empty_cache).parent.mkdir(parents=True)
    partial(empty_cache).write_bytes(b"x" * HALF)
    url = server.url("set.tgz")
    assert fetch(archive(url, url)).read_bytes() == CONTENT


def test_page_in_place_of_the_file_is_refused(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = PAGE
    server.html = {"set.tgz"}
    with refused(server.url("set.tgz"), "HTML", empty_cache / "downloads" / "set.tgz"):
        fetch(archive(server.url("set.tgz")))
    assert files_below(empty_cache / "downloads") == []


def test_other_content_is_refused(server: LocalServer, empty_cache: Path) -> None:
    server.files["set.tgz"] = CONTENT[:-1] + b"x"
    with refused(server.url("set.tgz"), "checksum"):
        fetch(archive(server.url("set.tgz")))
    assert files_below(empty_cache / "downloads") == []


@pytest.mark.parametrize("first", ["nowhere", "page", "other"])
def test_second_mirror_helps_out(first: str, server: LocalServer, empty_cache: Path) -> None:
    server.files = {"set.tgz": CONTENT, "page": PAGE, "other": CONTENT[1:]}
    server.html = {"page"}
    assert fetch(archive(server.url(first), server.url("set.tgz"))).read_bytes() == CONTENT


def test_every_mirror_is_named_when_all_fail(server: LocalServer, empty_cache: Path) -> None:
    unreachable = "http://127.0.0.1:1/set.tgz"
    with refused(server.url("gone"), "404", unreachable, empty_cache / "downloads" / "set.tgz", "--data-root"):
        fetch(archive(server.url("gone"), unreachable))


def test_damaged_file_in_the_cache_is_refused(server: LocalServer, empty_cache: Path) -> None:
    target = empty_cache / "downloads" / "set.tgz"
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT[:-1])
    with refused(target, "md5", "delete the file"):
        fetch(archive(server.url("set.tgz")))
    assert server.log == []


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for wheels."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull, "CACHE_DIR": str(tmp_path / "pip")}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


def test_wheel_is_fetched_once(index: Path, empty_cache: Path) -> None:
    source, wheel = write_wheel(index, "tinydrawings", "1.0", {"tinydrawings/a.txt": b"a"})
    path = fetch_wheel(wheel)
    assert path.read_bytes() == source.read_bytes()
    source.unlink()  # pip would find nothing now
    assert fetch_wheel(wheel) == path
    assert files_below(empty_cache / "wheels") == [source.name]


def test_wheel_with_another_digest_is_not_kept(index: Path, empty_cache: Path) -> None:
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"tinydrawings/a.txt": b"a"})
    with refused("sha256", wheel.sha256, "0" * 64):
        fetch_wheel(replace(wheel, sha256="0" * 64))
    assert files_below(empty_cache / "wheels") == []


def test_damaged_wheel_in_the_cache_is_refused(empty_cache: Path) -> None:
    path, wheel = write_wheel(empty_cache / "wheels", "tinydrawings", "1.0", {"a.txt": b"a"})
    path.write_bytes(path.read_bytes()[:-1])
    with refused(path, "sha256"):
        fetch_wheel(wheel)


def test_unknown_project_is_refused_in_one_line(index: Path, empty_cache: Path) -> None:
    _, wheel = write_wheel(index, "tinydrawings", "1.0", {"a.txt": b"a"})
    with refused("nosuchdrawings 1.0", "No matching distribution", empty_cache / "wheels"):
        fetch_wheel(replace(wheel, project="nosuchdrawings"))
    assert files_below(empty_cache / "wheels") == []


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
