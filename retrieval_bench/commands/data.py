"""The actions of ``data``: obtaining data sets, looking at them, packing them, and timing how fast they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from retrieval_bench.data.catalog import DATASETS, open_dataset, open_table
from retrieval_bench.errors import UserError, unknown

if TYPE_CHECKING:
    from retrieval_bench.data.images import ImageTable
    from retrieval_bench.data.splits import Split

Name = Annotated[str, tyro.conf.Positional]
Positional = tyro.conf.Positional
Protocol = Literal["zero_shot", "zero_shot_val", "kfold", "closed_set"]


class Data:
    """List, fetch, verify, show or pack data sets."""


@dataclass(frozen=True)
class List:
    """List the data sets: size, and where they come from."""

    def execute(self) -> None:
        print(f"{'name':12}{'images':>8}{'classes':>9}  ")
        for name, dataset in DATASETS.items():
            sizes = (f"{dataset.counts.images:,}", f"{dataset.counts.classes:,}") if dataset.counts else ("", "")
            print(f"{name:12}{sizes[0]:>8}{sizes[1]:>9}  {dataset.about}")


@dataclass(frozen=True)
class Chosen:
    """A data set, as most actions take it."""

    name: Name
    """the data set"""
    data_root: Path | None = None
    """its folder or archive; without it the data set is downloaded"""


@dataclass(frozen=True)
class Fetch:
    """Fetch a data set into the cache, check it, and say what it holds."""

    name: Name
    """the data set"""
    data_root: Path | None = None
    """its folder or archive, to check that one; without it the data set is downloaded"""
    from_archive: tuple[Path, ...] = ()
    """files fetched by hand: checked, and kept in the cache from now on"""

    def execute(self) -> None:
        if self.name not in DATASETS:
            raise unknown("data set", self.name, DATASETS)
        if self.from_archive:
            self._install()
        describe(self.name, *open_dataset(self.name, self.data_root))

    def _install(self) -> None:
        from retrieval_bench.data.download import install
        from retrieval_bench.progress import logger

        archives = DATASETS[self.name].archives
        if not archives or self.data_root:
            reason = (
                "takes no archives"
                if not archives
                else "is installed from --from-archive or opened at --data-root, not both"
            )
            raise UserError(f"data set '{self.name}' {reason}")
        for path in self.from_archive:
            archive = install(archives, path.expanduser())
            logger.info(f"{path}: kept as {archive.place}")
        missing = [archive.name for archive in archives if not archive.place.exists() and not archive.urls]
        if missing:
            raise UserError(
                f"{self.name} also needs {', '.join(missing)}: give it with --from-archive, now or later; nothing is lost"
            )


@dataclass(frozen=True)
class Verify(Chosen):
    """Check counts, decode every image, and report sizes and copies."""

    split: Protocol = "zero_shot"
    """copies across the two sides of this split are reported"""

    def execute(self) -> None:
        from retrieval_bench.data.verify import verify

        table, split = open_dataset(self.name, self.data_root, self.split)
        findings = verify(table, split)
        describe(self.name, table, split)
        print("\n".join(findings))


@dataclass(frozen=True)
class Show(Chosen):
    """Draw a contact sheet of classes of both sides of the split (PNG)."""

    split: Protocol = "zero_shot"
    """which split"""
    classes: int = 8
    """classes of each side"""
    images: int = 6
    """images of each class"""
    output: Path | None = None
    """the PNG file; <name>.png by default"""

    def execute(self) -> None:
        from retrieval_bench.data.sheet import draw_sheet, write_sheet
        from retrieval_bench.files import check_writable

        if not (1 <= self.classes <= 100 and 1 <= self.images <= 20):
            raise UserError(
                f"--classes {self.classes} --images {self.images}: at most 100 classes of 20 images, and at least one"
            )
        output = self.output or Path(f"{self.name}.png")
        table, split = open_dataset(self.name, self.data_root, self.split)
        check_writable(output.parent, "--output")
        write_sheet(draw_sheet(table, split, f"{self.name}, {self.split}", self.classes, self.images), output)
        print(output)


@dataclass(frozen=True)
class Manifest(Chosen):
    """Write the split as CSV (path, class, split) and print its SHA-256."""

    split: Protocol = "zero_shot"
    """which split"""
    fold: int = 0
    """kfold: which fold validates, from 0"""
    folds: int = 4
    """kfold: how many"""
    output: Path | None = None
    """the CSV file; <name>.csv by default, with the split in its name for another one than zero_shot"""

    def execute(self) -> None:
        from retrieval_bench.data.splits import PROTOCOLS, check_fold, make_split, manifest
        from retrieval_bench.files import digest, write_text

        check_fold(self.split, self.fold, self.folds)
        table = open_table(self.name, self.data_root)
        make_split(self.split, table, self.fold, self.folds)  # refuses an empty side
        frame = PROTOCOLS[self.split](table, self.fold, self.folds)
        suffix = {"zero_shot": "", "kfold": f".fold_{self.fold}_of_{self.folds}"}.get(self.split, f".{self.split}")
        output = self.output or Path(f"{self.name}{suffix}.csv")
        write_text(output, manifest(frame))
        sides = ", ".join(f"{count:,} {side or 'left out'}" for side, count in frame["split"].value_counts().items())
        print(f"{output}: {sides}; sha256 {digest(output)}")


@dataclass(frozen=True)
class Pack:
    """Scale a data set down into tar shards that can be carried to another machine and opened there by the same name."""

    name: Name
    """the data set"""
    output: Path
    """folder to be made"""
    data_root: Path | None = None
    """its folder or archive; without it the data set is downloaded"""
    size: int = 256
    """shorter side that images are scaled down to, pixels"""
    max_shard_mb: float = 50.0
    """largest size of a shard, 2^20 bytes"""

    def execute(self) -> None:
        from retrieval_bench.data.pack import write_pack
        from retrieval_bench.files import gigabytes

        if self.size < 8 or not self.max_shard_mb > 0:
            raise UserError(
                f"--size {self.size} --max-shard-mb {self.max_shard_mb:g}: at least 8 pixels and more than 0 MB are needed"
            )
        table = open_table(self.name, self.data_root)
        shards = write_pack(self.name, table, self.output.expanduser(), self.size, self.max_shard_mb)
        total = gigabytes(sum(path.stat().st_size for path in shards))
        print(
            f"{len(table):,} images in {len(shards)} shards, {total}; open with --dataset {self.name} --data-root {self.output}"
        )


ACTIONS = {
    "list": List,
    "fetch": Fetch,
    "verify": Verify,
    "show": Show,
    "manifest": Manifest,
    "pack": Pack,
}


def describe(name: str, table: ImageTable, split: Split) -> None:
    """One line: images and classes in all and on each side."""
    tested = f"{len(split.test):,} to test on"
    if len(split.query) < len(split.test):
        tested += f" ({len(split.query):,} queries, {len(split.gallery):,} in the gallery)"
    print(
        f"{name}: {len(table):,} images of {len(table.class_names):,} classes; {len(split.train):,} to train on, {tested}"
    )
