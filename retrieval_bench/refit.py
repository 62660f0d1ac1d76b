"""The command ``refit``: a recorded configuration trained once more, on all classes, for use.

A run leaves test classes out, so that its score is honest; what is put to use may as well learn from them. Nothing is
left to test such an embedder on: it has no record, and its recipe and card name the run whose score stands for it.
"""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retrieval_bench.config import RuntimeConfig, recorded_config
from retrieval_bench.data.loading import resolve_workers
from retrieval_bench.data.splits import all_classes
from retrieval_bench.deploy.export import export
from retrieval_bench.deploy.saved import is_kept, save_embedder
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable
from retrieval_bench.identity import identify, name_run, open_images
from retrieval_bench.progress import logger
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.run import choose, image_reader, open_checkpoints, shown_images, train
from retrieval_bench.trackers import Trackers
from retrieval_bench.training.distributed import SINGLE_PROCESS


@dataclass(frozen=True)
class Refit:
    """Train the configuration of a run again, on all classes, and export the embedder."""

    run: tyro.conf.Positional[str]
    """id of a record in --results, or its beginning, as far as it is unique; or its file"""
    all_classes: bool = False
    """must be given: nothing is left to test the embedder on, so that the score of RUN stands for it"""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """new folder; exported/<id>-all-classes in --results by default"""
    results: Path = Path("results/local")
    """folder that holds runs/"""
    data_root: Path | None = None
    """folder (or archive) of the data set; without it the data set is downloaded"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = -1
    """processes that decode images; -1 means none on a CPU, up to 8 beside a GPU"""

    def execute(self) -> None:
        records = ResultsFolder(self.results).find(self.run)
        if len(records) > 1:
            raise UserError(f"{self.run}: are {len(records)} runs, from {records[0].id} on; name one")
        if not self.all_classes:
            raise UserError(
                f"refit trains on all classes, also those that {records[0].id} was tested on: say --all-classes"
            )
        target = self.output or self.results / "exported" / f"{records[0].id}-all-classes"
        runtime = RuntimeConfig(self.data_root, self.results, device=self.device, workers=self.workers)  # pyright: ignore[reportArgumentType]
        if target.exists():
            raise UserError(f"{target}: exists already; remove it, or choose another folder with --output")
        export(refit(records[0], runtime), records[0], target)
        print(f"{target}: trained on all classes; the score that stands for it is that of {records[0].id}")


def refit(record: Record, runtime: RuntimeConfig) -> Path:
    """Trains the configuration of `record` on all classes of the data set, unless that was done before.

    Returns: Where the embedder is, without an ending: in ``models/`` of the results.

    Raises:
        UserError: bad input, or an embedder that cannot be saved.
    """
    device = resolve_device(runtime.device)
    config = recorded_config(record.config, record.labels.get("weights", "imagenet"))
    table, _ = open_images(config.data, runtime.data_root)
    split = all_classes(table)
    identity = identify(config, table, {}) | {"data.split": "all_classes"}
    run_id, results = name_run(identity, device), ResultsFolder(runtime.results)
    path = results.model(run_id)
    check_writable(path.parent)
    with results.lock(run_id):
        if is_kept(path):
            logger.info(f"{run_id}: already trained on all classes, {path}.safetensors")
            return path
        classes, images = len(split.train_classes), len(split.train)
        logger.info(f"{run_id}: {record.strategy} on all {classes:,} classes ({images:,} images), {device}")
        chosen = choose(config, runtime)[0]
        checkpoints = open_checkpoints(run_id, identity, runtime, SINGLE_PROCESS)
        read = image_reader(table, config, runtime, resolve_workers(runtime.workers, device), device)
        with closing(Trackers((), run_id, identity, runtime.results)) as trackers:
            training = train(chosen, table, split, device, read, checkpoints, SINGLE_PROCESS, runtime, trackers)
        table.check_unchanged()
        command = shlex.join(["python", "-m", "retrieval_bench", "refit", record.id, "--all-classes"])
        about = {"refit": {"run": record.id, "classes": classes, "images": images, "command": command}}
        about |= shown_images(chosen)
        save_embedder(training.embedder, chosen.model, chosen.data.image_size, path, about, training.strategy)
        checkpoints.remove()
    return path
