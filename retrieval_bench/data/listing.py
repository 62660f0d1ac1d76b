"""Which files below a folder are images, by one rule for all commands; what is passed over is counted by its kind."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import translate
from functools import cache
from pathlib import Path

from PIL import Image

from retrieval_bench.errors import UserError

LEFTOVERS = (
    *("@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot", "*@syno*", "synophoto_*", "synofile_*"),  # Synology
    *("@recycle", "@recently-snapshot", "@__*", "lost+found", "lost.dir"),  # QNAP, Linux, Android
    *("thumbs.db*", "ehthumbs*.db", "desktop.ini", "$recycle.bin", "found.[0-9]*"),  # Windows
    *("system volume information", "__macosx", "icon\r", "network trash folder", "temporary items"),  # Windows, macOS
    *("picasa.ini", "*.lrdata", "adobe bridge cache*", "__pycache__", "~$*"),  # programs
)
"""Names (in any case) of files and folders that systems and programs leave behind, besides those that begin with a dot;
many hold thumbnails of the images beside them."""
NO_PICTURES = {"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC"}
"""Formats that Pillow recognises, but which hold no pixels or need another program to show them."""
HIDDEN, SYSTEM = "hidden", "left by the system"
NAMED, KINDS = 3, 8
"""Examples that are named of a kind, and endings that are counted each."""

_leftover = re.compile("|".join(map(translate, LEFTOVERS)), re.IGNORECASE).match
_unprintable = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@cache
def endings() -> frozenset[str]:
    """The endings, in lower case, of the picture formats that this installation of Pillow opens."""
    names = Image.registered_extensions()  # loads all of Pillow's formats
    return frozenset(end for end, kind in names.items() if kind in {*Image.OPEN, "MPO"} - NO_PICTURES)


@dataclass
class Listing:
    """What is below a folder.

    Attributes:
        root: the folder.
        images: names of the image files below it, with forward slashes, ordered folder by folder.
        folders: likewise of the folders that were entered.
        links: of images and folders, those that are links.
        others: names of what was passed over, by the reason or by the ending.
        problems: why the images are no data set, one line each.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    others: dict[str, list[str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def pass_over(self, reason: str, name: str) -> None:
        """Counts `name` among what is not read."""
        self.others.setdefault(reason, []).append(name)

    def passed_over(self) -> str:
        """How much was passed over for which reason, with examples, and by ending; "" for nothing."""
        count = {kind: len(names) for kind, names in self.others.items()}
        by_ending = sorted((kind for kind in count if kind.startswith(".")), key=lambda kind: (-count[kind], kind))
        parts = []
        for reason in sorted(count.keys() - set(by_ending)):
            examples = sorted(set(self.others[reason]))
            more = ", ..." if len(examples) > NAMED else ""
            parts.append(f"{count[reason]:,} {reason} ({', '.join(map(printable, examples[:NAMED]))}{more})")
        parts += [f"{count[kind]:,} {printable(kind)}" for kind in by_ending[:KINDS]]
        if rest := sum(count[kind] for kind in by_ending[KINDS:]):
            parts.append(f"{rest:,} with other endings")
        return ", ".join(parts)


def list_images(root: Path) -> Listing:
    """Lists the images at any depth below a folder: the files whose ending Pillow opens.

    Links are followed, but for those that lead back into a folder on their own path. Passed over and counted: hidden
    files and folders, what systems leave behind (:data:`LEFTOVERS`), broken links, folders that cannot be read, and
    files with other endings.

    Raises:
        UserError: no such folder, one that cannot be read, or an image whose name is not one line of text.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    listing = Listing(root)
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(root),))]
    while waiting:
        below, entered = waiting.pop()
        try:
            entries = list(os.scandir(root / below))
        except OSError as error:
            if not below:
                raise UserError(f"{root}: cannot be read ({error.strerror})") from None
            listing.pass_over("folders that cannot be read", below.rstrip("/"))
            continue
        for entry in entries:
            name = below + entry.name
            if reason := _reason(entry):
                listing.pass_over(reason, entry.name if reason in (HIDDEN, SYSTEM) else name)
                continue
            real = os.path.realpath(entry.path) if entry.is_dir() else ""
            if real in entered:
                listing.pass_over("links back to a folder above", name)
                continue
            check_name(root / name)
            (listing.folders if real else listing.images).append(name)
            if entry.is_symlink():
                listing.links.append(name)
            if real:
                waiting.append((f"{name}/", (*entered, real)))
    for names in (listing.images, listing.folders, listing.links):
        names.sort(key=lambda name: name.split("/"))
    return listing


def subfolders(root: Path) -> list[str]:
    """The names of the folders directly below `root` that :func:`list_images` enters, ordered."""
    return sorted(entry.name for entry in os.scandir(root) if not _reason(entry) and entry.is_dir())


def _reason(entry: os.DirEntry[str]) -> str:
    """Why a file or folder is passed over by its name or kind; "" for an image or a folder."""
    ending = os.path.splitext(entry.name)[1].lower()
    if reason := foreign(entry.name):
        return reason
    if entry.is_symlink() and not os.path.exists(entry.path):
        return "broken links"
    if entry.is_dir():
        return ""
    if ending not in endings():
        return ending or "without an ending"
    return "" if entry.is_file() else "no regular files"


def foreign(name: str) -> str:
    """Whether the name of a file or folder says that it holds no image of the user's: :data:`SYSTEM` or
    :data:`HIDDEN`, otherwise ""."""
    return SYSTEM if _leftover(name) else HIDDEN if name.startswith(".") else ""


def check_name(path: Path) -> None:
    """Raises :class:`UserError` for a name that is not one line of UTF-8 text, which lists and messages need."""
    if _unprintable.search(str(path)):
        raise UserError(f"{printable(str(path))}: the name has a line break, or is not UTF-8 text; rename it")


def printable(name: str) -> str:
    """The name with escapes (``\\n``, ``\\udce9``) for line breaks and for bytes that are not text."""
    return _unprintable.sub(lambda match: ascii(match[0])[1:-1], name)
