"""The command ``soup``: the weights of several recorded runs averaged into one embedder. Nothing is trained.

Wortsman et al., Model Soups: Averaging Weights of Multiple Fine-tuned Models Improves Accuracy without Increasing
Inference Time (ICML 2022, arXiv 2203.05482). ``uniform`` is the mean of all. ``greedy`` takes the runs by falling
validation Recall@1, and keeps each one with which the mean of those that are kept is at least as good there.

Validation uses no test class: each run needs a twin, the same configuration recorded with ``--split zero_shot_val`` and
its embedder kept; the twins are averaged and scored on the validation classes, and then the runs whose twins were kept
are averaged and look at the test classes once. Runs may differ in seed and learning rates only, and must start from the
same weights: neither random ones, nor an embedding layer drawn by another seed. Parameters and buffers of floats are
averaged, statistics of batch norms among them. The loss is not kept with an embedder, so a closed set has no accuracy.

The record counts what its runs cost, all that were given and their twins, and the images scored here.
"""

from __future__ import annotations

import datetime
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from safetensors.torch import load_file, save_file

from retrieval_bench import cost
from retrieval_bench.config import RunConfig, RuntimeConfig, config_hash, nest, recorded_config, unnest
from retrieval_bench.data.loading import resolve_workers
from retrieval_bench.deploy.saved import files_of, find_embedder, is_kept, read_embedder
from retrieval_bench.details import describe, write_details
from retrieval_bench.device import environment, resolve_device
from retrieval_bench.errors import UserError
from retrieval_bench.evaluation.evaluate import Evaluation
from retrieval_bench.files import atomic_path, write_text
from retrieval_bench.identity import name_run, open_images
from retrieval_bench.leaderboard import leaderboard, print_table
from retrieval_bench.measure import measure
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import logger
from retrieval_bench.records import Record, ResultsFolder, read_record, write_record
from retrieval_bench.run import COUNTED, image_reader, recorded

Way = Literal["uniform", "greedy"]
FREE = ("seed", "train.lr", "loss.loss_lr")
"""In what the runs may differ."""


@dataclass(frozen=True)
class Soup:
    """Average the weights of recorded runs into one embedder, measure it and record it; nothing is trained."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """ids of runs whose embedders were kept, which differ in seed and learning rates only"""
    way: Way = "uniform"
    """uniform: the mean of all; greedy: those that help on validation classes (needs runs on zero_shot_val too)"""
    results: Path = Path("results/local")
    """folder that holds runs/ and models/, and gets the record"""
    data_root: Path | None = None
    """folder (or archive) of the data set; without it the data set is downloaded"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    force: bool = False
    """measure it again even if it has a record"""

    def execute(self) -> None:
        device = resolve_device(self.device)
        runtime = RuntimeConfig(self.data_root, self.results, device=device, force=self.force)  # pyright: ignore[reportArgumentType]
        print_table(leaderboard([make_soup(self.runs, self.way, runtime)]))


@dataclass(frozen=True)
class Ingredient:
    """A recorded run and its kept embedder."""

    record: Record
    path: Path


def make_soup(runs: Sequence[str], way: Way, runtime: RuntimeConfig) -> Record:
    """Averages, measures and records; a soup that has a record is not made again unless forced.

    Raises:
        UserError: runs that cannot be averaged, or for ``greedy`` a twin that is missing, with the command for it.
    """
    started, results = time.perf_counter(), ResultsFolder(runtime.results)
    given = [_ingredient(run, runtime.results) for run in runs]
    _check(given)
    twins = [_twin(each, results) for each in given] if way == "greedy" else []
    names = [each.record.id for each in given]
    first = given[0].record
    identity = {**unnest(first.config), "soup.way": way, "soup.runs": names}
    run_id = name_run(identity, runtime.device)
    if record := recorded(run_id, runtime):
        return record
    kept, tried, scored = _greedy(twins, runtime) if twins else ([*range(len(given))], {}, 0)
    embedder = _average([given[number].path for number in kept])
    tested = time.perf_counter()
    config = _config(first)
    evaluation, vectors, _ = _measure(embedder, config, runtime)
    finished = time.perf_counter()
    table, split = open_images(config.data, runtime.data_root)
    counted = {name: sum(each.record.cost[name] for each in (*given, *twins)) for name in COUNTED}
    record = Record(
        id=run_id,
        seed=first.seed,
        config=nest(identity),
        config_hash=config_hash(identity),
        labels={**first.labels, "strategy": f"soup({way}, {len(kept)} of {len(given)}) of {first.strategy}"},
        data=first.data,
        metrics=evaluation.metrics,
        info={"soup": {"way": way, "runs": names, "kept": [names[number] for number in kept], **tried, "epochs": 0}},
        cost={
            **first.cost,
            **{name: round(value, 2) for name, value in counted.items()},
            "images_seen": counted["images_seen"] + scored,
            "test_seconds": round(finished - tested, 2),
            "total_seconds": round(counted["total_seconds"] + finished - started, 2),
            "latency_ms": round(cost.latency_ms(embedder, config.data.image_size), 3),
        },
        environment=environment(runtime.device),
        command=shlex.join(["python", "-m", "retrieval_bench", "soup", *names, "--way", way]),
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_details(describe(vectors, evaluation.columns, table, split, runtime.thumbnails), results.details(run_id))
    write_record(results.record(run_id), record)
    recipe, weights = files_of(results.model(run_id))
    with atomic_path(weights) as unfinished:
        save_file({name: value.cpu().contiguous() for name, value in embedder.state_dict().items()}, unfinished)
    write_text(recipe, files_of(given[0].path)[0].read_text(encoding="utf-8"))
    logger.info(f"{run_id}: the mean of {len(kept)} of {len(given)} runs, recorded in {results.record(run_id)}")
    return record


def _ingredient(run: str, results: Path) -> Ingredient:
    path, record = find_embedder(run, results)
    if record is None:
        raise UserError(f"{run}: soup takes the ids of runs, not a folder")
    return Ingredient(record, path)


def _check(given: Sequence[Ingredient]) -> None:
    """Raises :class:`UserError` if the mean of the weights makes no sense."""
    names = [each.record.id for each in given]
    if len(set(names)) < max(2, len(names)):
        raise UserError(f"soup {' '.join(names)}: give at least two runs, each once")
    first, *others = (unnest(each.record.config) for each in given)
    for name, other in zip(names[1:], others, strict=True):
        differ = [key for key in {**first, **other} if key not in FREE and first.get(key) != other.get(key)]
        if differ:
            raise UserError(f"{names[0]} and {name} differ in {', '.join(differ)}: only {', '.join(FREE)} may")
        drawn = first["model.weights"] == "none" or first["model.embedding_dim"] > 0
        if drawn and first["seed"] != other["seed"]:
            raise UserError(f"{names[0]} and {name} start from other weights, drawn by seed: average one seed's runs")


def _twin(each: Ingredient, results: ResultsFolder) -> Ingredient:
    """The same run on the ``zero_shot_val`` split."""
    values = unnest(each.record.config)
    if values["data.split"] != "zero_shot":
        raise UserError(f"{each.record.id}: greedy validates inside --split zero_shot, not {values['data.split']}")
    name = name_run({**values, "data.split": "zero_shot_val"}, each.record.kind)
    if not (results.record(name).exists() and is_kept(results.model(name))):
        more = f"--split zero_shot_val --keep --results {shlex.quote(str(results.root))}"
        raise UserError(f"greedy needs {each.record.id} on the validation split: {each.record.command} {more}")
    record = read_record(results.record(name))
    if "recall_at_1" not in record.metrics:
        raise UserError(f"{name}: greedy goes by Recall@1, which was not measured")
    return Ingredient(record, results.model(name))


def _greedy(twins: Sequence[Ingredient], runtime: RuntimeConfig) -> tuple[list[int], dict[str, Any], int]:
    """Which to keep, by number; the Recall@1 of each mean that was tried; and how many images were scored."""
    recalls = [each.record.metrics["recall_at_1"] for each in twins]
    best, *rest = sorted(range(len(twins)), key=lambda number: -recalls[number])
    kept, reached, tried, scored = [best], recalls[best], [recalls[best]], 0
    for number in rest:
        embedder = _average([twins[each].path for each in (*kept, number)])
        evaluation, _, images = _measure(embedder, _config(twins[number].record), runtime)
        tried.append(evaluation.metrics["recall_at_1"])
        scored += images
        if tried[-1] >= reached:
            kept, reached = [*kept, number], tried[-1]
    order = [twins[number].record.id for number in (best, *rest)]
    return kept, {"validation_records": order, "validation_recall_at_1": tried}, scored


def _config(record: Record) -> RunConfig:
    return recorded_config(record.config, record.labels.get("weights", "imagenet"))


def _average(paths: Sequence[Path]) -> Embedder:
    """The mean of embedders of one structure, summed in float64; what is no float is that of the first."""
    embedder, recipe = read_embedder(paths[0])
    states = [load_file(files_of(path)[1]) for path in paths]
    for path in paths[1:]:
        other = json.loads(files_of(path)[0].read_text(encoding="utf-8"))
        if other != recipe:
            raise UserError(f"{paths[0].name} and {path.name} are networks of different structure: no mean exists")
    mean = {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }
    embedder.load_state_dict(mean)
    return embedder


def _measure(embedder: Embedder, config: RunConfig, runtime: RuntimeConfig) -> tuple[Evaluation, np.ndarray, int]:
    """Metrics on the test side of the configuration's split, unit embeddings, and the number of images."""
    table, split = open_images(config.data, runtime.data_root)
    read = image_reader(table, config, runtime, resolve_workers(runtime.workers, runtime.device), runtime.device)
    batches = read(split.test, table.labels[split.test])
    return *measure(embedder.to(runtime.device), None, batches, table.labels, split, config), len(split.test)
