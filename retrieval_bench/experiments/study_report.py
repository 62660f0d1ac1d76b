"""Carries out a study run by run, and writes its table as CSV, Markdown and LaTeX, and its figure."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

from retrieval_bench.config import RunConfig, RuntimeConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.data.sampler import BatchSampler
from retrieval_bench.data.table import ImageTable
from retrieval_bench.device import resolve_device
from retrieval_bench.errors import Diverged
from retrieval_bench.experiments.study import (
    Profile,
    Record,
    Row,
    Study,
    changes,
    distinct_runs,
    grid,
    measured_table,
    readable_table,
    refuse_idle_flags,
)
from retrieval_bench.files import write_text
from retrieval_bench.identity import config_hash
from retrieval_bench.progress import logger
from retrieval_bench.records import read_records
from retrieval_bench.run import identify, run
from retrieval_bench.selection import open_choices
from retrieval_bench.strategies import build_strategy
from retrieval_bench.tables import latex_table, markdown_rows
from retrieval_bench.validation import validate

Records = dict[str, list[Record]]
"""The records of each row, by its name."""


def run_study(
    name: str,
    study: Study,
    profile: Profile,
    base: RunConfig,
    seeds: tuple[int, ...],
    numbers: tuple[int, ...],
    machine: RuntimeConfig,
) -> Path:
    """Carries out the runs that have no record yet, writes the study's files, and returns the Markdown one.

    The table shows every recorded run of its rows, whichever were asked for this time; interrupted, it shows what is there. A run that
    diverges is left out, and the others go on.

    Args:
        name: study and profile, the beginning of the files' names below ``<results>/studies``.
        study: what is regenerated.
        profile: its size.
        base: the profile's configuration, or a changed one, which the files' names and headings then say.
        seeds: one run per row and seed.
        numbers: of the rows to run, from 1; none means all.
        machine: where the data is and where results go.

    Raises:
        UserError: anything that cannot work, before the first run.
        Diverged: at the end, naming the runs that diverged.
    """
    refuse_idle_flags(study, profile, base)
    rows = study.rows(base)
    runs = distinct_runs(grid(rows, seeds, numbers))
    hashes, images = rehearse(rows, machine)
    stem = machine.results / "studies" / "-".join([name, *changed_words(profile, base)])
    diverged = []
    try:
        for number, (entry, config) in enumerate(runs, start=1):
            logger.info(f"{name}: run {number} of {len(runs)}, {entry.name}")
            try:
                run(config, machine)
            except Diverged as error:
                logger.info(f"diverged: {error}")
                diverged.append(f"{entry.name}, seed {config.seed}")
    finally:
        write_study(stem, study, profile, base, rows, recorded(hashes, machine), images)
    if diverged:
        raise Diverged(
            f"{len(diverged)} of {len(runs)} runs diverged and are missing in {stem}.md: {'; '.join(diverged)}"
        )
    return stem.with_name(f"{stem.name}.md")


def changed_words(profile: Profile, base: RunConfig) -> list[str]:
    """What a file's name says of choices that are not the profile's."""
    own = [] if base.data.dataset == profile.base.data.dataset else [base.data.dataset]
    return own + [re.sub(r"[^A-Za-z0-9.]+", "-", flag).strip("-") for flag in changes(profile, base)]


def rehearse(rows: list[Row], machine: RuntimeConfig) -> tuple[dict[str, str], ImageTable]:
    """The hash of each row's configuration, by the row's name, and the images, once every row has passed all checks that need no training.

    Raises:
        UserError: wrong options, data that is not there, too few classes for a batch, blocks that the backbone does not have.
    """
    import torch

    from retrieval_bench.models.build import build_embedder
    from retrieval_bench.models.embedder import freeze_batch_norms

    data = rows[0].config.data
    for entry in rows:
        validate(entry.config)
        build_strategy(entry.config.strategy, entry.config.options)
    table, split = open_dataset(data.dataset, machine.data_root, data.split, data.fold, data.folds, data.classes)
    labels = split.train_labels(table.labels)
    models = {config: build_embedder(config, data.image_size) for config in {entry.config.model for entry in rows}}
    probe = torch.zeros(2, 3, data.image_size, data.image_size, dtype=torch.uint8)
    for entry in rows:
        BatchSampler(labels, entry.config.train.batch_size, entry.config.samples_per_class)
        model = copy.deepcopy(models[entry.config.model])
        if entry.config.train.freeze_bn:
            freeze_batch_norms(model)
        preferred = {name: candidates[0] for name, candidates in open_choices(entry.config).items()}
        strategy = build_strategy(entry.config.strategy, replace(entry.config.options, **preferred))
        strategy.parameter_groups(strategy.prepare(model, probe), [])
    return {entry.name: config_hash(identify(entry.config, table)) for entry in rows}, table


def recorded(hashes: dict[str, str], machine: RuntimeConfig) -> Records:
    """The records of rows that have any, made on this kind of device; seeds in order."""
    device = resolve_device(machine.device)
    records = [
        record for record in read_records(machine.results) if record["environment"].get("device", "").startswith(device)
    ]
    found = {name: [record for record in records if record["config_hash"] == code] for name, code in hashes.items()}
    return {name: sorted(group, key=lambda record: record["seed"]) for name, group in found.items() if group}


def write_study(
    stem: Path, study: Study, profile: Profile, base: RunConfig, rows: list[Row], records: Records, images: ImageTable
) -> None:
    """`stem` + .csv (numbers), .md and .tex (text), and .png where the study draws; nothing without records."""
    if not records:
        return
    table = measured_table(rows, records)
    shown = readable_table(table)
    heading = headline(profile, base, records)
    source = [study.source] if any(entry.quoted for entry in rows) else []
    notes = [
        heading,
        *source,
        *study.notes,
        f"{'R@K' if base.data.split != 'closed_set' else 'Top-1 accuracy of the classifier and R@K of its features'} in percent: "
        "mean over seeds ± half of the 95 % t-interval; differences are paired by seed.",
    ]
    write_text(stem.with_name(f"{stem.name}.csv"), table.assign(profile=heading).to_csv(index=False))
    lines = [f"# {stem.name}", "", *(f"{note}\n" for note in notes), *markdown_rows(shown), ""]
    if study.draw is not None:
        picture = stem.with_name(f"{stem.name}.png")
        below = study.draw(records, picture, heading, images, list(read_records(stem.parents[1])))
        lines += [*([f"![{study.about}]({picture.name})", ""] if picture.exists() else []), *below]
    write_text(stem.with_name(f"{stem.name}.md"), "\n".join(lines))
    write_text(stem.with_name(f"{stem.name}.tex"), latex_table(shown, notes))


def headline(profile: Profile, base: RunConfig, records: Records) -> str:
    """What was done, in a line that stands above every table and figure."""
    data, train = base.data, base.train
    made = [record for found in records.values() for record in found]
    devices = sorted({record["environment"]["device"] for record in made})
    part = f", first {data.classes} classes of each side" if data.classes else ""
    changed = f", but for {', '.join(changes(profile, base))}" if changes(profile, base) else ""
    return (
        f"Measured: {profile.about}{changed}. {data.dataset} ({data.split}{part}), {base.model.backbone} ({made[0]['labels']['weights']}), "
        f"{data.image_size} px, {train.epochs} epochs, batches of {train.batch_size}; {'; '.join(devices)}."
    )
