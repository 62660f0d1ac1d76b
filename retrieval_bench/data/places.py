"""Where the files of a data set are looked for: in the user's folder, in archives lying there, or in what was downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from retrieval_bench.data.archive import extracted, is_archive
from retrieval_bench.data.download import Archive, fetch_all
from retrieval_bench.errors import UserError


class Places:
    """Folders in which a data set's files are sought.

    Args:
        root: an extracted folder, a folder with the archives, or one archive; None downloads the archives into the cache. An archive
            given by hand may be a re-packed one, so only a download is held to its MD5; counts are asserted for all.
        archives: the files that make up the data set.
        title: the data set's name, for messages.
        folders: folders below `root` where the archives may lie too.
    """

    def __init__(self, root: Path | None, archives: tuple[Archive, ...], title: str, folders: tuple[str, ...] = ()):
        self.root = root
        self.archives = archives
        self.title = title
        self.folders = folders

    def __iter__(self) -> Iterator[Path]:
        """The folders, each obtained when the ones before it did not hold what is sought; no archive is extracted in vain."""
        if self.root is not None and self.root.is_dir():
            yield self.root
        for path in self._files():
            if is_archive(path) or path == self.root:
                yield extracted(path)
            else:
                yield path.parent

    @cached_property
    def _fetched(self) -> list[Path]:
        fetch_all(self.archives)
        return [archive.place for archive in self.archives]

    def _files(self) -> Iterator[Path]:
        if self.root is None:
            yield from self._fetched
        elif self.root.is_file():
            yield self.root
        else:
            for folder in (self.root, *(self.root / name for name in self.folders)):
                yield from (path for archive in self.archives if (path := folder / archive.name).is_file())

    def find(self, *names: str) -> Path:
        """The first of `names` (paths below a place, the usual one first) that exists in any place.

        Raises:
            UserError: there is none; the line names what was looked for.
        """
        found = self.seek(*names)
        if found is None:
            wanted = ", ".join(archive.name for archive in self.archives)
            raise UserError(
                f"{self.root or self.title}: no {self.title} here ({names[0]} is missing); "
                f"give its extracted folder, or a folder with {wanted}"
            )
        return found

    def seek(self, *names: str) -> Path | None:
        """As :meth:`find`, None if there is none."""
        return next((folder / name for folder in self for name in names if (folder / name).exists()), None)
