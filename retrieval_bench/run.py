"""One run in a sentence: configuration, images, embeddings under a strategy, neighbours, metrics, record."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from retrieval_bench import cost
from retrieval_bench.config import RunConfig, RuntimeConfig, config_hash, nest, portable, to_command
from retrieval_bench.data.decode_cache import open_decode_cache
from retrieval_bench.data.loading import Batches, resolve_workers
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.splits import Split
from retrieval_bench.data.table import ImageTable
from retrieval_bench.deploy.saved import files_of, is_kept, save_embedder
from retrieval_bench.details import write_details
from retrieval_bench.device import environment, resolve_device
from retrieval_bench.errors import UserError, first_line
from retrieval_bench.files import check_writable
from retrieval_bench.identity import identify, name_run, open_images, open_other_sets, own_code
from retrieval_bench.losses import Criterion, build_criterion
from retrieval_bench.measure import measure_run
from retrieval_bench.models.build import build_embedder
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.progress import followed_by, logger
from retrieval_bench.records import Record, ResultsFolder, read_record, write_record
from retrieval_bench.sections import check_bounds
from retrieval_bench.seeding import derive
from retrieval_bench.strategies import Strategy, build_strategy, split_names
from retrieval_bench.trackers import Trackers
from retrieval_bench.training.checkpoint import Checkpoints
from retrieval_bench.training.distributed import ProcessGroup, join
from retrieval_bench.training.loop import Training
from retrieval_bench.validation import validate

COUNTED = ("images_seen", "train_seconds", "test_seconds", "total_seconds")
"""What choices cost that count as cost of the run."""


def run(config: RunConfig, runtime: RuntimeConfig | None = None, *, wait: bool = True) -> Record:
    """Trains, evaluates once and records one configuration; a configuration that has a record is not run again unless
    forced.

    Args:
        config: everything the numbers depend on.
        runtime: where the data is, where results go, on which device.
        wait: for another process that is making the same run.

    Returns:
        The record, as written to ``<results>/runs/<id>.json``.

    Raises:
        UserError: bad input, with one line that says what to do. Nothing is written then.
        Locked: another process is making the run and `wait` is False.
    """
    runtime = RuntimeConfig() if runtime is None else runtime
    validate(config)
    if not isinstance(runtime, RuntimeConfig):
        raise UserError(f"the second argument of run is a RuntimeConfig, not {type(runtime).__name__}")
    check_bounds(runtime)
    device = resolve_device(runtime.device, runtime.deterministic)
    group, workers = join(device), resolve_workers(runtime.workers, device)
    table, split = open_images(config.data, runtime.data_root)
    others = open_other_sets(config)
    identity = identify(config, table, others)
    run_id = name_run(identity, device)
    if record := group.from_main(partial(recorded, run_id, runtime)):
        return record
    results = ResultsFolder(runtime.results)
    check_writable(results.runs)
    with results.lock(run_id, wait) if group.is_main_process else nullcontext():
        if record := group.from_main(partial(recorded, run_id, runtime)):  # by the process that held the lock
            return record
        logger.info(f"{run_id}: {config.strategy_label} on {config.data.dataset}, seed {config.seed}, {device}")
        checkpoints = open_checkpoints(run_id, identity, runtime, group)
        chosen, selection, searched = choose(config, runtime)
        batches = image_reader(table, config, runtime, workers, device)
        tracked = runtime.track if group.is_main_process else ()
        with closing(Trackers(tracked, run_id, identity, runtime.results)) as trackers:
            training = train(chosen, table, split, device, batches, checkpoints, group, runtime, trackers)
            plain = config.changed(data__reader="pil", data__stored=0)
            readers = (image_reader(images, plain, runtime, workers, device) for images, _ in others.values())
            elsewhere = {label: (*others[label], read) for label, read in zip(others, readers, strict=True)}
            measured, details = group.from_main(
                partial(measure_run, training, table, split, batches, runtime.thumbnails, elsewhere)
            )
            if group.is_main_process:
                decoded = [table] if config.data.reader == "pil" else []
                for images in (*decoded, *(images for images, _ in others.values())):
                    images.check_unchanged()
            trackers.log({k: v for k, v in measured.metrics.items() if isinstance(v, float)}, len(training.history))
        record = complete(measured, run_id, identity, config, selection, searched)
        if group.is_main_process:
            write_details(details, results.details(run_id))
            for file in files_of(results.model(run_id)):  # of an earlier record
                file.unlink(missing_ok=True)
            write_record(results.record(run_id), record)
            if runtime.keep or runtime.keep_new:
                keep_embedder(training.embedder, chosen, training.strategy, results.model(run_id))
            checkpoints.remove()
    scores = {"R@1": record.metrics, **{f"R@1 on {label}": metrics for label, metrics in record.elsewhere.items()}}
    words = [f"{name} {100 * metrics.get('recall_at_1', math.nan):.2f}" for name, metrics in scores.items()]
    logger.info(f"{run_id}: {', '.join(words)}, recorded in {results.record(run_id)}")
    return record


def image_reader(
    table: ImageTable, config: RunConfig, runtime: RuntimeConfig, workers: int, device: str
) -> partial[Batches]:
    """What makes batches of given rows and labels, with either reader."""
    data = config.data
    cache = open_decode_cache(table, data.stored, runtime.cache_limit_gb) if data.reader == "cache" else None
    return partial(Batches, table, config=data, workers=workers, cache=cache, device=device)


def train(
    config: RunConfig,
    table: ImageTable,
    split: Split,
    device: str,
    read: partial[Batches],
    checkpoints: Checkpoints,
    group: ProcessGroup,
    runtime: RuntimeConfig,
    trackers: Trackers,
) -> Training:
    """The training side of the split, passed through the strategy: a finished training with its embedder."""
    environment(device)  # the revision of the code is noted before it can change
    cost.reset_peak_memory(device)
    labels = split.train_labels(table.labels)
    sampler = BatchSampler(labels, config.train.batch_size, config.samples_per_class)
    torch.manual_seed(derive(config.seed, "embedder"))
    embedder = build_embedder(config.model, config.data.image_size).to(device)

    def make_criterion(dim: int) -> Criterion:
        torch.manual_seed(derive(config.seed, "loss"))
        return build_criterion(config.loss, len(split.train_classes), dim)

    batches = read(split.train, labels, sampler=sampler, share=group.share)
    strategy = build_strategy(config.strategy, config.options)
    validation = read(split.validation, table.labels[split.validation]) if len(split.validation) else None
    training = Training(
        embedder,
        make_criterion,
        batches,
        strategy,
        config,
        checkpoints,
        group,
        runtime.profile,
        trackers.log,
        1e9 * runtime.feature_cache_gb,
        validation,
    )
    training.fit()
    return training


def recorded(run_id: str, runtime: RuntimeConfig) -> Record | None:
    """The record, if the run need not be made (again).

    Raises:
        UserError: a record that cannot be read.
    """
    results = ResultsFolder(runtime.results)
    path = results.record(run_id)
    if not path.exists() or runtime.force or (runtime.keep and not is_kept(results.model(run_id))):
        return None
    try:
        record = read_record(path)
    except UserError as error:
        raise UserError(f"{error}; remove the file, or run again with --force") from None
    logger.info(f"{run_id}: already recorded in {path} (--force runs it again)")
    return record


def open_checkpoints(run_id: str, identity: dict[str, Any], runtime: RuntimeConfig, group: ProcessGroup) -> Checkpoints:
    """The checkpoints to resume from and to keep; forced runs begin without."""
    folder = ResultsFolder(runtime.results).checkpoints(run_id)
    checkpoints = Checkpoints(folder, identity, runtime.checkpoint_every, runtime.resume)
    if runtime.force and runtime.resume is None and group.is_main_process:
        checkpoints.remove()
    return checkpoints


def open_choices(config: RunConfig) -> dict[str, list[Any]]:
    """The candidates of each strategy whose options leave something open, by the strategy's name, preferred ones first.

    Raises:
        UserError: something is open, but the split is another one than ``zero_shot``, or Recall@1 is not measured.
    """
    given = {name: getattr(config.options, name) for name in split_names(config.strategy)}
    candidates = {name: options.candidates() for name, options in given.items()}
    candidates = {name: several for name, several in candidates.items() if several != [given[name]]}
    if candidates and config.data.split != "zero_shot":
        label, split = config.strategy_label, config.data.split
        raise UserError(f"{label} chooses on the zero_shot_val split, for --split zero_shot only, not {split}")
    if candidates and 1 not in config.ks:
        raise UserError(f"--k {' '.join(map(str, config.ks))}: choices are made by Recall@1, so 1 must be among them")
    return candidates


def choose(config: RunConfig, runtime: RuntimeConfig) -> tuple[RunConfig, dict[str, Any], Counter[str]]:
    """Settles what strategies leave open (``Strategy.Options.candidates``): every candidate is run on the
    ``zero_shot_val`` split, inside the training classes; the best Recall@1 wins, of equal ones the first. The test
    classes are not involved.

    Returns: The configuration to train and test; per strategy what was chosen, the candidates' Recall@1 and the ids of
        their records; and what all candidates cost, which counts as cost of the run.
    """
    selection: dict[str, Any] = {}
    searched: Counter[str] = Counter()
    runtime = replace(runtime, resume=None, keep=False, keep_new=False)
    for name, candidates in open_choices(config).items():
        logger.info(f"{config.strategy_label}: {len(candidates)} candidates on the validation classes")
        trials = [replace(config, options=replace(config.options, **{name: candidate})) for candidate in candidates]
        inside = {"data__split": "zero_shot_val", "evaluation__also_test": ()}
        records = []
        for trial in trials:
            rest = len(trials) - len(records)  # the run itself comes after them
            with followed_by(lambda seconds, rest=rest: rest * seconds):
                records.append(run(trial.changed(**inside), runtime))
        recalls = [record.metrics["recall_at_1"] for record in records]
        config = trials[recalls.index(max(recalls))]
        selection[name] = {
            "chosen": config.strategy_label,
            "validation_recall_at_1": {
                trial.strategy_label: recall for trial, recall in zip(trials, recalls, strict=True)
            },
            "records": [record.id for record in records],
        }
        searched = sum((Counter({key: record.cost[key] for key in COUNTED}) for record in records), searched)
    return config, selection, searched


def complete(
    measured: Record,
    run_id: str,
    identity: dict[str, Any],
    config: RunConfig,
    selection: dict[str, Any],
    searched: Counter[str],
) -> Record:
    """What was measured, with the run's name and configuration, and with the choices that were made and their cost."""
    named = portable(config)
    versions = {plugin.source.partition(":")[0]: plugin.version for plugin in own_code(config) if plugin.version}
    return replace(
        measured,
        id=run_id,
        seed=config.seed,
        config=nest(identity),
        config_hash=config_hash(identity),
        labels={"strategy": named.strategy_label, "weights": named.model.weights, **measured.labels},
        command=shlex.join(["python", "-m", "retrieval_bench", "run", *to_command(named)]),
        info={**measured.info, **({"selection": selection} if selection else {})},
        environment={**measured.environment, "versions": measured.environment["versions"] | versions},
        cost=measured.cost | {name: round(measured.cost[name] + more, 2) for name, more in searched.items()},
    )


def keep_embedder(embedder: Embedder, config: RunConfig, strategy: Strategy, path: Path) -> None:
    """Saves the embedder; one that cannot be saved costs no record."""
    try:
        save_embedder(embedder, config.model, config.data.image_size, path, shown_images(config), strategy)
        logger.info(f"the embedder is kept in {path}.json and .safetensors")
    except (UserError, OSError, SafetensorError) as error:
        logger.info(f"the embedder is not kept: {first_line(error)}")


def shown_images(config: RunConfig) -> dict[str, Any]:
    """How an embedder is shown images, for its recipe."""
    views = {name: getattr(config.data, name) for name in ("preprocessing", "resize", "stored")}
    return {"views": views, "flip_sum": config.evaluation.flip_sum}
