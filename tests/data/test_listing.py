"""Which files are images: the same for a folder of one's own, an embedded folder and `data verify`; nothing is lost in
silence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval_bench.cli import main
from retrieval_bench.data import listing
from retrieval_bench.data.catalog import open_table
from retrieval_bench.data.listing import endings, list_images
from retrieval_bench.deploy.search import images_below
from retrieval_bench.errors import UserError
from tests.data.data_checks import random_image, refused

Printed = pytest.CaptureFixture[str]


def drawing(seed: int, side: int = 60) -> Image.Image:
    """A picture with shapes, as photographs have them, not noise."""
    return random_image(5, 5, seed).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four classes of three different pictures."""
    for number in range(12):
        path = tmp_path / "mine" / f"c{number // 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing(number).save(path)
    return tmp_path / "mine"


def put(path: Path, content: bytes = b"no image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


SYSTEMS = [
    "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    *(".AppleDouble/1.png", "__MACOSX/c0/1.png", "._1.png", "Thumbs.db", ".DS_Store", "#recycle/1.png"),
    *("$RECYCLE.BIN/1.png", ".thumbnails/1.png", ".Trash-1000/files/1.png", "lost+found/1.png"),
    *(".ipynb_checkpoints/1.png", ".picasaoriginals/1.png", "System Volume Information/1.png", ".git/1.png"),
    *(".stversions/1.png", "desktop.ini", "@Recycle/1.png", ".@__thumb/default1.jpg", "@__thumb/1.jpg"),
    *("#snapshot/1.png", "Icon\r", "FOUND.000/1.png", "SYNOPHOTO_THUMB_XL.jpg", "Catalog Previews.lrdata/1.jpg"),
]


@pytest.mark.parametrize("below", ["", "c1/", "c1/deep/"])
@pytest.mark.parametrize("name", SYSTEMS, ids=repr)
def test_what_systems_leave_behind_is_passed_over_and_said(name: str, below: str, root: Path, capsys: Printed) -> None:
    """Also in other spellings; as pictures that could be read, they would be copies."""
    expected = list_images(root).images
    for spelling in (name, name.upper()):
        path = root / below / spelling
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "c0" / "1.png", path)
    for open_images in (lambda: open_table("folder", root), lambda: images_below(root)):
        capsys.readouterr()
        assert list(open_images().paths) == expected
        said = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
        assert len(said) == 1
        assert ("hidden" if name.startswith(".") else "left by the system") in said[0]


def test_names_that_only_look_like_it_are_read(root: Path) -> None:
    for name in ("#sunset/1.png", "@home/1.png", "thumbs/1.png", "$5/1.png", "recycle/1.png", "found/1.png"):
        (root / name).parent.mkdir()
        drawing(1).save(root / name)
    assert len(list_images(root).images) == 18


@pytest.mark.parametrize(
    "ending", ["jfif", "avif", "jpe", "jp2", "tga", "pgm", "JPG", "Tiff", "apng", "gif", "mpo", "qoi"]
)
def test_all_endings_that_pillow_opens_are_read(ending: str, root: Path) -> None:
    path = root / "c0" / f"new.{ending}"
    drawing(1).convert("L" if ending == "pgm" else "RGB").save(path)
    assert f"c0/new.{ending}" in open_table("folder", root).paths
    assert f"c0/new.{ending}" in images_below(root).paths


def test_formats_without_pixels_are_not_pictures() -> None:
    assert not {".pdf", ".eps", ".ps", ".wmf", ".emf", ".mpg", ".h5", ".grib"} & endings()
    assert {".jpg", ".png", ".webp", ".tif", ".bmp", ".ppm", ".ico", ".psd"} <= endings()


def test_other_files_are_counted_by_ending(root: Path, capsys: Printed) -> None:
    """And images beside the class folders, which have no class there but are embedded."""
    for name in ("c0/a.txt", "c1/b.TXT", "c1/clip.mp4", "c0/README", "notes.txt", "c0/raw.heic"):
        put(root / name)
    shutil.copy(root / "c0" / "1.png", root / "cover.png")
    assert len(open_table("folder", root)) == 12
    common = "1 without an ending (c0/README), 3 .txt, 1 .heic, 1 .mp4"
    assert capsys.readouterr().err == f"{root}: passed over 1 beside the class folders (cover.png), {common}\n"
    assert len(images_below(root)) == 13
    assert capsys.readouterr().err == f"{root}: passed over {common}\n"
    for number in range(20):
        put(root / "c0" / f"x.{number:03d}")
    open_table("folder", root)
    assert "14 with other endings" in capsys.readouterr().err.replace("15 with", "14 with")


def test_links_are_followed_by_one_rule(root: Path, tmp_path: Path, capsys: Printed) -> None:
    """A linked class, linked images, a chain; not those that come back, and broken ones are counted."""
    shutil.move(root / "c3", tmp_path / "elsewhere")
    (root / "c3").symlink_to(tmp_path / "elsewhere")
    (root / "c0" / "more").symlink_to(tmp_path / "elsewhere" / "sub")
    shutil.move(root / "c1" / "3.png", tmp_path / "3.png")
    (root / "c1" / "3.png").symlink_to(tmp_path / "3.png")
    (tmp_path / "elsewhere" / "sub").mkdir()
    drawing(99).save(tmp_path / "elsewhere" / "sub" / "99.png")
    (tmp_path / "elsewhere" / "up").symlink_to(root)
    (root / "c2" / "self").symlink_to(".")
    (root / "c2" / "gone.png").symlink_to("nowhere.png")
    (root / "c2" / "knot").symlink_to("knot")
    for open_images in (lambda: open_table("folder", root), lambda: images_below(root)):
        table = open_images()
        classes = [table.class_names[label] for label in table.labels]
        assert dict(zip(table.paths, classes, strict=True))["c0/more/99.png"] == "c0"
        assert [classes.count(name) for name in ("c0", "c1", "c2", "c3")] == [4, 3, 3, 4]
        said = capsys.readouterr().err
        assert "2 broken links (c2/gone.png, c2/knot)" in said
        assert "2 links back to a folder above (c2/self, c3/up)" in said


def test_two_folders_that_link_to_each_other_end(root: Path) -> None:
    (root / "c0" / "b").symlink_to(root / "c1")
    (root / "c1" / "a").symlink_to(root / "c0")
    assert len(list_images(root).images) == 18


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png", b"tab\t.png"])
def test_name_that_no_list_can_hold_is_refused_in_one_line(name: bytes, root: Path) -> None:
    os.rename(root / "c0" / "1.png", os.fsencode(root / "c0") + b"/" + name)
    for open_images in (lambda: open_table("folder", root), lambda: images_below(root)):
        with refused(root / "c0", "rename it"):
            open_images()


def test_longest_names_are_read(root: Path) -> None:
    (root / "c0").rename(root / ("ü" * 120))
    (root / ("ü" * 120) / "1.png").rename(root / ("ü" * 120) / ("n" * 251 + ".png"))
    assert len(open_table("folder", root)) == 12


def test_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Printed) -> None:
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name in ("secret", "closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    (root / "c0" / "secret").mkdir()
    monkeypatch.setattr(listing.os, "scandir", refuse)
    assert len(open_table("folder", root)) == 12
    assert "1 folders that cannot be read (c0/secret)" in capsys.readouterr().err
    with refused(root / "closed", "Permission denied"):
        (root / "closed").mkdir()
        list_images(root / "closed")


def test_table_that_names_thumbnails_is_read_and_they_are_said(root: Path, capsys: Printed) -> None:
    """Nobody but the user says what is in a table; `data verify` says what that is."""
    thumbnail = "c0/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg"
    (root / thumbnail).parent.mkdir(parents=True)
    drawing(1, 30).save(root / thumbnail)
    rows = [f"{path},{path[:2]}\n" for path in [*list_images(root).images, thumbnail, "c1/gone.png"]]
    (root / "table.csv").write_text("path,label\n" + "".join(rows))
    assert main(["data", "verify", "table", "--data-root", str(root / "table.csv")]) == 2
    printed = capsys.readouterr().out
    assert f"1 are named in the table, but left by the system or hidden: {thumbnail}" in printed
    assert f"1 of 14 images cannot be read\n  {root}/c1/gone.png: image is missing" in printed
    assert f"near: c0/1.png, {thumbnail}" not in printed, "inside a training class it does no harm"


def test_everything_wrong_at_once_is_on_one_screen(root: Path, tmp_path: Path, capsys: Printed) -> None:
    """What is read, what is passed over and why, links, modes, sizes, copies, near copies, and what is to be mended."""
    (root / "c3" / "deep").mkdir()
    for name in ("@eaDir/x/SYNOPHOTO_THUMB_M.jpg", "Thumbs.db", ".DS_Store", "a.txt", "clip.mp4", "README"):
        put(root / "c0" / name)
    put(root / "c1" / "broken.jpg", (root / "c0" / "1.png").read_bytes()[:700])
    put(root / "c1" / "empty.jpg", b"")
    put(root / "single" / "none.txt")
    drawing(50).resize((30, 20)).save(root / "cover.png")
    with Image.open(root / "c0" / "0.png") as image:
        image.resize((45, 45)).save(root / "c3" / "small.png")
        image.save(root / "c0" / "again.jpg", quality=80)
    shutil.copy(root / "c2" / "6.png", root / "c3" / "same.png")
    Image.fromarray(np.asarray(drawing(60).convert("L"), dtype=np.float32) / 255).save(root / "c2" / "real.tif")
    Image.fromarray(np.full((40, 40), np.nan, dtype=np.float32)).save(root / "c2" / "nan.tif")
    drawing(61).save(root / "c2" / "moving.gif", save_all=True, append_images=[drawing(62)])
    Image.new("CMYK", (40, 40), (9, 9, 9, 9)).save(root / "c2" / "print.tif")
    shutil.move(root / "c3" / "10.png", root / "c3" / "deep" / "10.png")
    shutil.copytree(root / "c1", root / "C1", ignore=lambda *_: ["broken.jpg", "empty.jpg", "3.png"])
    (root / "c2" / "gone.png").symlink_to("nowhere.png")
    (root / "c2" / "self").symlink_to(".")
    (tmp_path / "far.png").write_bytes((root / "c3" / "9.png").read_bytes())
    (root / "c3" / "far.png").symlink_to(tmp_path / "far.png")
    assert main(["data", "verify", "folder", "--data-root", str(root)]) == 2
    printed, said = capsys.readouterr()
    print(printed, said)
    for words in (
        "24 images of 5 classes; ",
        "3 of 24 images cannot be read",
        "c1/broken.jpg: image cannot be decoded",
        "nan.tif: image cannot be decoded (it holds values that are infinite or NaN)",
        "width 40 to 60, median 60; height 40 to 60",
        "18 RGB, 1 CMYK, 1 F, 1 P",
        "1 with several frames or pages, the first is read: c2/moving.gif",
        "1 of one colour all over: c2/print.tif",
        "equal: c2/6.png, c3/same.png",
        "near: c0/0.png, c0/again.jpg, c3/small.png",
        "class names that differ in case or spaces only: C1, c1",
        "1 followed links: c3/far.png",
        "1 in folders below the folder of their class: c3/deep/10.png",
        "1 beside the class folders (cover.png)",
        "1 broken links (c2/gone.png)",
        "1 links back to a folder above (c2/self)",
        "2 left by the system (@eaDir, Thumbs.db)",
        "1 hidden (.DS_Store)",
        "2 .txt, 1 .mp4",
        f"problem: {root / 'single'}: class has 0 image(s)",
    ):
        assert words in printed, words
    assert len(printed.splitlines()) <= 40
    assert said.splitlines()[-1].startswith("error: ")
    assert "(and 3 more problems, see above)" in said
    with pytest.raises(UserError, match="class has 0 image"):
        open_table("folder", root)
