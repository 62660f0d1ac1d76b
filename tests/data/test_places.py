from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from data_checks import files_below, refused

from retrieval_bench.data.download import Archive
from retrieval_bench.data.places import Places

LIST, IMAGES = Archive("list.txt", by_hand="from the authors"), Archive("images.tgz", by_hand="from the authors")
ARCHIVES = (LIST, IMAGES)


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_tar(path: Path, *names: str) -> Path:
    write(path.parent / "packed" / "file")
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.add(path.parent / "packed" / "file", name)
    return path


def seeker(root: Path | None, folders: tuple[str, ...] = ()) -> Places:
    return Places(root, ARCHIVES, "My Set", folders)


def extracted_folders(cache: Path) -> list[str]:
    return [name for name in files_below(cache / "extracted") if "/" not in name and not name.startswith(".")]


def test_extracted_files_are_found_and_no_archive_is_extracted_in_vain(tmp_path: Path, empty_cache: Path) -> None:
    write(tmp_path / "data" / "images" / "1.jpg")
    write_tar(tmp_path / "data" / "images.tgz", "images/1.jpg")
    assert seeker(tmp_path / "data").find("images") == tmp_path / "data" / "images"
    assert extracted_folders(empty_cache) == []


@pytest.mark.parametrize("below", ["", "Img"])
def test_archive_in_the_folder_is_extracted_into_the_cache(below: str, tmp_path: Path, empty_cache: Path) -> None:
    write(tmp_path / "data" / "list.txt")
    write_tar(tmp_path / "data" / below / "images.tgz", "images/1.jpg")
    places = seeker(tmp_path / "data", ("Img",))
    assert places.find("list.txt") == tmp_path / "data" / "list.txt"
    assert extracted_folders(empty_cache) == []
    found = places.find("images")
    assert found.is_relative_to(empty_cache)
    assert (found / "1.jpg").read_bytes() == b"x"
    assert places.find("images") == found
    assert len(extracted_folders(empty_cache)) == 1


def test_archive_may_have_any_name_when_it_is_given_itself(tmp_path: Path, empty_cache: Path) -> None:
    write_tar(tmp_path / "copy of a copy", "set/list.txt")
    assert seeker(tmp_path / "copy of a copy").find("list.txt", "set/list.txt").read_bytes() == b"x"


def test_the_usual_name_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "set" / "list.txt")
    assert seeker(tmp_path).find("list.txt", "set/list.txt") == tmp_path / "set" / "list.txt"
    write(tmp_path / "list.txt")
    assert seeker(tmp_path).find("list.txt", "set/list.txt") == tmp_path / "list.txt"


def test_nothing_found_names_what_was_sought_and_what_may_be_given(tmp_path: Path) -> None:
    assert seeker(tmp_path).seek("images", "set/images") is None
    with refused(tmp_path, "no My Set here (images is missing)", "list.txt, images.tgz"):
        seeker(tmp_path).find("images", "set/images")


def test_file_that_is_no_archive_is_refused(tmp_path: Path, empty_cache: Path) -> None:
    with refused(write(tmp_path / "photo.jpg"), "not a tar or zip archive"):
        seeker(tmp_path / "photo.jpg").find("list.txt")


@pytest.mark.parametrize("kept", ["list.txt", "images.tgz"])
def test_files_missing_in_the_cache_are_asked_for_before_any_work(kept: str, tmp_path: Path, empty_cache: Path) -> None:
    write_tar(empty_cache / "downloads" / "images.tgz", "list.txt", "images/1.jpg")
    write(empty_cache / "downloads" / "list.txt")
    missing = "list.txt" if kept == "images.tgz" else "images.tgz"
    (empty_cache / "downloads" / missing).unlink()
    with refused(missing, "from the authors", empty_cache / "downloads", "--from-archive"):
        seeker(None).find("list.txt")
    assert extracted_folders(empty_cache) == []


def test_files_in_the_cache_are_found_without_a_folder(empty_cache: Path) -> None:
    write(empty_cache / "downloads" / "list.txt", b"1 a\n")
    write_tar(empty_cache / "downloads" / "images.tgz", "images/1.jpg")
    assert seeker(None).find("Eval/list.txt", "list.txt") == empty_cache / "downloads" / "list.txt"
    assert (seeker(None).find("images") / "1.jpg").is_file()
