"""Carries out a Reality Check and writes its table as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from retrieval_bench.config import RuntimeConfig
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.errors import Diverged, UserError
from retrieval_bench.experiments.reality_check import Check
from retrieval_bench.experiments.reality_table import check_for_people, check_table
from retrieval_bench.experiments.study import Row, grid
from retrieval_bench.experiments.study_report import Records, changed_words, headline, recorded, rehearse
from retrieval_bench.files import write_text
from retrieval_bench.progress import logger
from retrieval_bench.tables import latex_table, markdown_rows, metric_title
from retrieval_bench.tune.journal import Search, holding
from retrieval_bench.tune.report import command, write_search
from retrieval_bench.tune.search import CarryOut, open_searches, search, search_machine


def run_searches(searches: Sequence[Search], trials: int, carry_out: CarryOut) -> None:
    """Makes the trials that are missing, and writes them down, whatever ends them."""
    with holding([entry.path for entry in searches]):
        try:
            search(searches, trials, carry_out)
        finally:
            for entry in searches:
                if entry.trials:
                    write_search(entry, trials)


def run_check(
    name: str, profile: Check, check: Check, machine: RuntimeConfig, carry: Callable[[RuntimeConfig], CarryOut]
) -> Path:
    """Searches, trains the choices, tests them once, writes the table, and returns its Markdown file.

    Args:
        name: the profile's.
        profile: as it is.
        check: as it is wanted; what differs is said in the files' names and headings.
        machine: where the data is and where results go.
        carry: what makes runs on a machine.

    Raises:
        UserError: anything that cannot work, before the first run.
        Diverged: at the end, naming what failed.
    """
    grid([Row("", check.base)], check.seeds)  # refuses seeds that cannot be
    searches = open_searches(check.base, check.strategies, check.objective, machine)
    run_searches(searches, check.trials, carry(search_machine(machine)))
    chosen = {entry.config.strategy: config for entry in searches if (config := entry.chosen(check.trials))}
    failed = [f"every trial of {strategy}" for strategy in check.strategies if strategy not in chosen]
    if not chosen:
        raise UserError(
            f"every trial failed ({searches[0].trials[0].error}); {searches[0].path} remembers: remove it to try again"
        )
    rows = [Row(strategy, config, more=("map_at_r",)) for strategy, config in chosen.items()]
    hashes, _ = rehearse(rows, machine)
    stem = machine.results / "studies" / "-".join(["reality_check", name, *_differences(profile, check)])
    logger.info(f"reality check: {len(rows)} choices, {len(check.seeds)} seeds")
    try:
        outcomes = carry(machine)([config for _, config in grid(rows, check.seeds)])
    finally:
        made = recorded(hashes, machine)
        records = {row: [record for record in found if record["seed"] in check.seeds] for row, found in made.items()}
        write_check(stem, profile, check, machine, rows, searches, records)
    failed += [
        f"{outcome.config.strategy}, seed {outcome.config.seed}" for outcome in outcomes if outcome.record is None
    ]
    if failed:
        raise Diverged(f"failed, and missing in {stem}.md: {'; '.join(failed)}")
    return stem.with_name(f"{stem.name}.md")


def _differences(profile: Check, check: Check) -> list[str]:
    """What a file's name says of choices that are not the profile's."""
    own = changed_words(profile, check.base)
    own += [] if check.strategies == profile.strategies else list(check.strategies)
    own += [] if check.trials == profile.trials else [f"trials-{check.trials}"]
    return own + ([] if check.objective == profile.objective else [check.objective])


def write_check(
    stem: Path,
    profile: Check,
    check: Check,
    machine: RuntimeConfig,
    rows: list[Row],
    searches: Sequence[Search],
    records: Records,
) -> None:
    """`stem` + .csv (numbers), .md and .tex (text); nothing without records."""
    if not any(records.values()):
        return
    table = check_table(rows, searches, records, check.trials)
    notes = [headline(profile, check.base, records), *_notes(check, machine, searches[0])]
    shown = check_for_people(table, check.objective)
    write_text(stem.with_name(f"{stem.name}.csv"), table.assign(profile=notes[0]).to_csv(index=False))
    commands = [f"- {entry.name}: `{command(entry.config)}`" for entry in rows]
    lines = [
        f"# {stem.name}",
        "",
        *(f"{note}\n" for note in notes),
        *markdown_rows(shown),
        "",
        "Chosen:",
        "",
        *commands,
        "",
    ]
    write_text(stem.with_name(f"{stem.name}.md"), "\n".join(lines))
    write_text(stem.with_name(f"{stem.name}.tex"), latex_table(shown, notes))


def _notes(check: Check, machine: RuntimeConfig, entry: Search) -> list[str]:
    """How it was searched and tested, in words."""
    data = entry.config.data
    table, split = open_dataset(data.dataset, machine.data_root, data.split, data.fold, data.folds, data.classes)
    classes = len(set(table.labels[split.test].tolist()))
    budget = f"{check.trials} trials or the images that {check.trials} plain runs see ({check.trials * entry.plain_images:,})"
    return [
        f"Search: {budget} for every strategy, whichever comes first; the first trial has the usual values, then a tree-structured Parzen "
        f"estimator proposes. Scored by {metric_title(check.objective)} on {classes} validation classes ({len(split.test)} images) inside "
        "the training classes, trained on the others, one seed. The test classes were not looked at. Trials are in search/.",
        f"Test: the choices are trained on all training classes with seeds {', '.join(map(str, check.seeds))} and tested once. R@K and "
        "MAP@R in percent: mean over seeds ± half of the 95 % t-interval; difference to the best row, paired by seed; p of the paired "
        "t-test over seeds, Holm-corrected over the rows. =: not told apart from the best row (p at least 0.05). Runs may "
        "have shared the machine: do not compare their seconds.",
    ]
