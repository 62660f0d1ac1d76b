"""The command ``recommend``: a folder of one's own in, the strategy to use and a searchable index out.

It is an experiment of frozen features and the strategies most likely to pay, on class-disjoint folds of all classes of
the folder. All it makes lies in a results folder of its own, ``<results>/recommend/<name of the folder>``; started
again, it goes on from the records there.
"""

from __future__ import annotations

import math
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Literal

import numpy as np
import tyro

from retrieval_bench.columns import column
from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.survey import Survey, sample, select, survey, write_image_list
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.embedding import embed_table
from retrieval_bench.deploy.export import export
from retrieval_bench.deploy.saved import NAME, embedder_digest, is_kept
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.experiments import choices
from retrieval_bench.experiments.advice import advise, compared_table
from retrieval_bench.experiments.choices import FROZEN, STANDARD
from retrieval_bench.experiments.experiment import Objective, Records
from retrieval_bench.experiments.rehearsal import rehearse
from retrieval_bench.experiments.workers import run_all
from retrieval_bench.files import check_writable, write_text
from retrieval_bench.identity import run_ids
from retrieval_bench.progress import duration, logger, quiet
from retrieval_bench.records import Record, ResultsFolder, read_record
from retrieval_bench.refit import refit
from retrieval_bench.tables import TextTable, to_terminal

Runs = dict[tuple[str, int], RunConfig]
"""Configurations by row and fold."""
Found = dict[str, dict[int, Record]]
"""Records by row and fold."""


@dataclass(frozen=True)
class Recommend:
    """Compare strategies on a folder of your own (a folder of images per class), say which to use, by how much, how
    sure and at what cost; train it on all classes, export it and index the folder, so that `search` works."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """one sub-folder per class, or an archive of them; nothing is written there"""
    minutes: float = 30
    """for everything; more epochs and strategies fit into more time"""
    min_images: int = 2
    """classes with fewer images that decode are passed over"""
    objective: Objective = "map_at_r"
    """what decides: MAP@R looks at as many neighbours as there are right ones, Recall@1 at the first"""
    backbone: str = RunConfig().model.backbone
    """pretrained network; that of the default comes by pip"""
    weights: str = "imagenet"
    """imagenet, none, or a file of weights"""
    image_size: int = 0
    """side of the square that the network sees, pixels; 0 chooses"""
    results: Path = Path("results/local")
    """everything goes into recommend/<name of the folder> below it"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one"""
    dry_run: bool = False
    """look at the folder, print the plan and stop"""

    def execute(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes {self.minutes:g}: must be above 0")
        if self.min_images < 2:
            raise UserError(f"--min-images {self.min_images}: retrieval needs at least 2 images of a class")
        started, device, folder = time.monotonic(), resolve_device(self.device), self.folder.expanduser()
        if not folder.exists():
            raise UserError(f"{folder}: no such folder")
        home = self.results.expanduser() / "recommend" / folder.resolve().name
        if folder.resolve() in home.resolve().parents:
            raise UserError(f"{home}: lies in the folder of photos, where nothing is written; give --results elsewhere")
        found = survey(folder, self.min_images)
        compared = select(found.usable, sample(found.usable.labels, int(choices.MOST_IMAGES[device] * self.minutes)))
        config = choices.choose_config(np.bincount(compared.labels).tolist(), found.side, device)
        config = config.changed(model__backbone=self.backbone, model__weights=self.weights)
        config = config.changed(data__image_size=self.image_size or config.data.image_size)
        plan = describe(folder, found, compared, config, self.minutes)
        print(plan, flush=True)
        check_writable(home)
        write_image_list(found.usable, home / "images.csv")
        write_image_list(compared, home / "compared.csv")
        runtime = RuntimeConfig(home / "compared.csv", home, device=device)  # pyright: ignore[reportArgumentType]
        rows = [replace(entry, optional=True) for entry in choices.compared_rows(config, 0)]
        names = [entry.name for entry in rehearse(rows, runtime)]
        if self.dry_run:
            print(f"in this order, as far as the time allows: {', '.join(names)}; then the winner on all classes")
            return
        sizes = len(compared), len(found.usable)
        records = Comparing(config, runtime, 60 * self.minutes, started, sizes, self.objective).run(names)
        advice = advise(records, self.objective)
        title = f"Means over {config.data.folds} folds of classes; gains with half of their 95 % t-interval"
        table = TextTable(title, compared_table(records, self.objective))
        print(f"\n{to_terminal([table])}\n{advice.text}\n", flush=True)
        lines = deploy(records[advice.strategy][0], replace(runtime, data_root=home / "images.csv"), found)
        if advice.best != advice.strategy:
            words = [records[advice.best][0].id, "--all-classes", "--results", home, "--data-root", home / "images.csv"]
            lines.append(f"to take {records[advice.best][0].strategy} all the same: {command('refit', *words)}")
        lines.append(f"took {duration(time.monotonic() - started)}")
        write_text(home / "answer.md", "\n\n".join([advice.text, table.to_markdown(), *lines, plan]) + "\n")
        print("\n".join(lines))


def describe(folder: Path, found: Survey, compared: ImageTable, config: RunConfig, minutes: float) -> str:
    """What the folder holds, and what follows from that."""
    sizes, data, train = found.sizes, config.data, config.train
    part = (
        f"{len(compared):,} images of {len(compared.class_names):,} classes in " if len(compared) < sum(sizes) else ""
    )
    each = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    per_class = f", {train.samples_per_class} of a class" if train.samples_per_class else ""
    return "\n".join(
        [
            f"{folder}: {sum(sizes):,} images of {len(sizes):,} classes, {each} of each",
            *(f"  {line}" for line in found.lines),
            f"plan: {part}{data.folds} folds of classes, {config.model.backbone} at {data.image_size} px, "
            f"{config.loss.loss}, batches of {train.batch_size}{per_class}, at most {train.epochs} epochs, "
            f"{minutes:g} minutes",
        ]
    )


@dataclass(frozen=True)
class Comparing:
    """A comparison under way; how far it is, is what the records of its results folder say.

    Attributes:
        base: the configuration that all rows share, with the most epochs.
        runtime: where data and results are.
        seconds: for everything, refit and index included.
        started: when the command was started, on the monotonic clock.
        sizes: images that are compared on, and that the winner is trained on in the end.
        objective: the metric that is shown.
    """

    base: RunConfig
    runtime: RuntimeConfig
    seconds: float
    started: float
    sizes: tuple[int, int]
    objective: Objective

    def run(self, names: Sequence[str]) -> Records:
        """Makes the runs that fit into the time, and returns the records of all rows. A row that fails is left out."""
        names, folds = [*names], self.base.data.folds
        while True:
            runs = self.runs(names)
            found = self.recorded(runs)
            done = {name: {fold: run.cost["total_seconds"] for fold, run in row.items()} for name, row in found.items()}
            spent = max(time.monotonic() - self.started, sum(sum(row.values()) for row in done.values()))
            wanted = choices.next_runs(names, folds, done, self.seconds - spent - self.reserve(found))
            for name, fold in wanted:
                if name in names and not self.make(runs[name, fold]):
                    names.remove(name)
            if not wanted:
                break
        if short := [name for name in names if len(found.get(name, {})) < folds]:
            logger.info(f"not on all folds, for lack of time: {', '.join(short)} (--minutes)")
        return {name: [row[fold] for fold in sorted(row)] for name, row in found.items() if name in names}

    def make(self, config: RunConfig) -> bool:
        """Makes one run with one line about it; whether it was recorded. Raises :class:`UserError` if frozen features
        fail, since all is compared with them."""
        with quiet():
            (result,) = run_all([config], self.runtime)
        where = f"{config.strategy_label}, fold {config.data.fold + 1} of {config.data.folds}"
        if result.record is None:
            if config.strategy == FROZEN:
                raise UserError(f"{where}: {result.error}")
            logger.info(f"{where}: left out, {result.error}")
            return False
        shown, took = column(self.objective), duration(result.record.cost["total_seconds"])
        logger.info(f"{where}: {shown.title} {shown.text(result.record.metrics[self.objective])}, {took}")
        return True

    def runs(self, names: Sequence[str]) -> Runs:
        """All runs. How many epochs fit is known once frozen features are recorded on all folds."""
        frozen = self.recorded(_by_fold(self.base, [FROZEN]))[FROZEN]
        if len(frozen) < self.base.data.folds:
            return _by_fold(self.base, names)
        epochs = choices.fitting_epochs(self.base, *self.sizes, _embedding(frozen), self.seconds)
        return _by_fold(self.base.changed(train__epochs=epochs), names)

    def recorded(self, runs: Runs) -> Found:
        """The records that there are."""
        found: Found = {name: {} for name, _ in runs}
        for (name, fold), run_id in zip(runs, run_ids([*runs.values()], self.runtime), strict=True):
            if (path := ResultsFolder(self.runtime.results).record(run_id)).exists():
                found[name][fold] = read_record(path)
        return {name: row for name, row in found.items() if row or name == FROZEN}

    def reserve(self, found: Found) -> float:
        """Seconds for training the winner on all classes, as standard fine-tuning, and for the index."""
        each = [run.cost["train_seconds"] / run.data["train_images"] for run in found.get(STANDARD, {}).values()]
        return self.sizes[1] * (fmean(each or [0]) + _embedding(found[FROZEN]))


def _by_fold(config: RunConfig, names: Sequence[str]) -> Runs:
    rows = [(entry, fold) for fold in range(config.data.folds) for entry in choices.compared_rows(config, fold)]
    return {(entry.name, fold): entry.config for entry, fold in rows if entry.name in names}


def _embedding(frozen: Mapping[int, Record]) -> float:
    """Seconds to embed an image; 0 before anything is measured."""
    return min((run.cost["test_seconds"] / run.data["test_images"] for run in frozen.values()), default=0)


def deploy(record: Record, runtime: RuntimeConfig, found: Survey) -> list[str]:
    """Trains the configuration of a record on all classes, exports it and indexes all images that decode; lines that
    say where all is and how to search."""
    path, home, root = refit(record, runtime), runtime.results, found.readable.root
    target, gallery = home / "embedder", home / "images.npz"
    if not (is_kept(target / NAME) and embedder_digest(target / NAME) == embedder_digest(path)):
        shutil.rmtree(target, ignore_errors=True)
        export(path, record, target)
    embed_table(target / NAME, found.readable, gallery, device=runtime.device)
    words = ["QUERY.jpg", "--gallery", gallery, "--folder", root, "--sheet", "found.png"]
    return [
        f"embedder ({record.strategy}, all {len(found.sizes):,} classes): {target}",
        f"index of {len(found.readable):,} images: {gallery}",
        f"search: {command('search', target, *words)}",
    ]


def command(*words: object) -> str:
    return shlex.join(["python", "-m", "retrieval_bench", *map(str, words)])
