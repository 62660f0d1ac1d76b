"""The actions of ``data``: obtaining data sets, looking at them, and packing them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from tyro.conf import Positional, arg

from retrieval_bench.data.catalog import DATASETS, open_dataset, open_table
from retrieval_bench.data.download import install
from retrieval_bench.data.pack import write_pack
from retrieval_bench.data.sheet import draw_sheet, write_sheet
from retrieval_bench.data.splits import Split, check_fold, make_split, manifest, split_names
from retrieval_bench.data.table import ImageTable
from retrieval_bench.data.verify import some, summarize, verify
from retrieval_bench.errors import UserError, unknown
from retrieval_bench.files import check_writable, digest, gigabytes, write_text
from retrieval_bench.parsing import ask, choose, wrapped
from retrieval_bench.progress import logger

Name = Annotated[str, Positional, arg(help="the data set")]
Output = Annotated[Path | None, arg(aliases=["-o"])]
Root = Annotated[Path | None, arg(help="its folder or archive; without it the data set is downloaded")]
Protocol = Annotated[Literal["zero_shot", "zero_shot_val", "kfold", "closed_set"], arg(help="split into two sides")]


@dataclass(frozen=True)
class ListSets:
    """List the data sets: size, and where they come from."""

    def execute(self) -> None:
        print(f"{'name':12}{'images':>8}{'classes':>9}  ")
        for name, dataset in DATASETS.items():
            sizes = (f"{dataset.counts.images:,}", f"{dataset.counts.classes:,}") if dataset.counts else ("", "")
            print(wrapped(f"{name:12}{sizes[0]:>8}{sizes[1]:>9}  {dataset.about}", 31))


@dataclass(frozen=True)
class Fetch:
    """Fetch a data set into the cache, check it, and say what it holds."""

    name: Name
    data_root: Root = None
    from_archive: tuple[Path, ...] = ()
    """files fetched by hand: checked, and kept in the cache from now on"""

    def execute(self) -> None:
        if self.name not in DATASETS:
            raise unknown("data set", self.name, DATASETS)
        archives = DATASETS[self.name].archives
        if self.from_archive and (not archives or self.data_root):
            problem = "takes no archives" if not archives else "takes --from-archive or --data-root, not both"
            raise UserError(f"data set '{self.name}' {problem}")
        for path in self.from_archive:
            logger.info(f"{path}: kept as {install(archives, path.expanduser()).path}")
        describe(self.name, *open_dataset(self.name, self.data_root))


@dataclass(frozen=True)
class OfSplit:
    """What the actions on a split have in common."""

    name: Name
    data_root: Root = None
    split: Protocol = "zero_shot"


@dataclass(frozen=True)
class Verify(OfSplit):
    """Check counts, decode every image, and report all at once: sizes, copies and near copies, what is passed over."""

    def execute(self) -> None:
        table = open_table(self.name, self.data_root, strict=False)
        problems = [*table.listing.problems] if table.listing else []
        try:
            split = make_split(self.split, table)
        except UserError as error:
            split = None
            problems.append(str(error))
        findings, unreadable = verify(table, split, summarize(table))
        describe(self.name, table, split)
        print("\n".join([*findings, *some([f"problem: {problem}" for problem in problems])]))
        if problems := unreadable + problems:
            more = f" (and {len(problems) - 1:,} more problems, see above)" if len(problems) > 1 else ""
            raise UserError(problems[0] + more)


@dataclass(frozen=True)
class Show(OfSplit):
    """Draw a contact sheet of classes of both sides of the split (PNG)."""

    classes: int = 8
    """classes of each side"""
    images: int = 6
    """images of each class"""
    output: Output = None
    """the PNG file; <name>.png by default"""

    def execute(self) -> None:
        if not (1 <= self.classes <= 100 and 1 <= self.images <= 20):
            raise UserError(f"--classes {self.classes} --images {self.images}: 1 to 100 classes of 1 to 20 images")
        output = self.output or Path(f"{self.name}.png")
        table, split = open_dataset(self.name, self.data_root, self.split)
        check_writable(output.parent, "--output")
        write_sheet(draw_sheet(table, split, f"{self.name}, {self.split}", self.classes, self.images), output)
        print(output)


@dataclass(frozen=True)
class Manifest(OfSplit):
    """Write the split as CSV (path, class, split) and print its SHA-256."""

    fold: int = 0
    """kfold: which fold validates, from 0"""
    folds: int = 4
    """kfold: how many"""
    output: Output = None
    """the CSV file; <name>.csv by default, with the split in its name for another one than zero_shot"""

    def execute(self) -> None:
        check_fold(self.split, self.fold, self.folds)
        table = open_table(self.name, self.data_root)
        make_split(self.split, table, self.fold, self.folds)  # refuses an empty side
        names = split_names(self.split, table, self.fold, self.folds)
        suffix = {"zero_shot": "", "kfold": f".fold_{self.fold}_of_{self.folds}"}.get(self.split, f".{self.split}")
        output = self.output or Path(f"{self.name}{suffix}.csv")
        write_text(output, manifest(table, names))
        counts = pd.Series(names).value_counts()
        sides = ", ".join(f"{count:,} {side or 'left out'}" for side, count in counts.items())
        print(f"{output}: {sides}; sha256 {digest(output)}")


@dataclass(frozen=True)
class Pack:
    """Scale a data set down into tar shards that are opened on another machine by the same name."""

    name: Name
    output: Annotated[Path, arg(aliases=["-o"])]
    """folder to be made"""
    data_root: Root = None
    size: int = 256
    """shorter side that images are scaled down to, pixels"""
    max_shard_mb: float = 50.0
    """largest size of a shard, 2^20 bytes"""

    def execute(self) -> None:
        if self.size < 8 or not self.max_shard_mb > 0:
            raise UserError(f"--size {self.size} --max-shard-mb {self.max_shard_mb:g}: at least 8 pixels, and a size")
        table = open_table(self.name, self.data_root)
        shards = write_pack(self.name, table, self.output.expanduser(), self.size, self.max_shard_mb)
        total = gigabytes(sum(path.stat().st_size for path in shards))
        where = f"--dataset {self.name} --data-root {self.output}"
        print(f"{len(table):,} images in {len(shards)} shards, {total}; open with {where}")


ACTIONS = {"list": ListSets, "fetch": Fetch, "verify": Verify, "show": Show, "manifest": Manifest, "pack": Pack}


def data(words: Sequence[str]) -> Any:
    """The action with the flags that the words of a command line give."""
    about = {name: kind.__doc__ or "" for name, kind in ACTIONS.items()}
    name = choose(words, "action", about, "data ACTION [--help] [NAME]", "actions")
    return ask(ACTIONS[name], words[1:], f"data {name}")


def describe(name: str, table: ImageTable, split: Split | None) -> None:
    """Prints one line: images and classes in all and on each side."""
    classes = f"{len(table):,} images of {len(table.class_names):,} classes"
    if split is None:
        print(f"{name}: {classes}; no split")
        return
    roles = f" ({len(split.query):,} queries, {len(split.gallery):,} in the gallery)"
    tested = f"{len(split.test):,} to test on{roles if len(split.query) < len(split.test) else ''}"
    print(f"{name}: {classes}; {len(split.train):,} to train on, {tested}")
