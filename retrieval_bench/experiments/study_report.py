"""Carries out a study run by run, and writes its table as CSV, Markdown and LaTeX, and its figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval_bench.config import Machine, RunConfig
from retrieval_bench.experiments.study import Profile, Row, Study, measured_table, readable_table
from retrieval_bench.files import write_text
from retrieval_bench.leaderboard import markdown_rows
from retrieval_bench.progress import announce
from retrieval_bench.run import run
from retrieval_bench.validation import validate


def run_study(name: str, study: Study, profile: Profile, rows: list[Row], runs: list[tuple[Row, RunConfig]], machine: Machine) -> Path:
    """Carries out `runs` that have no record yet, writes ``<results>/studies/<name>.*``, and returns the Markdown file.

    Interrupted, it still writes what is there. Raises :class:`UserError` for anything that cannot work, before the first run.

    Args:
        name: of the files.
        study: what is regenerated.
        profile: its size.
        rows: all rows of the table.
        runs: those that are to be run, each with its row (:func:`retrieval_bench.experiments.study.grid`).
        machine: where the data is and where results go.
    """
    for _, config in runs:
        validate(config)
    folder = machine.results / "studies"
    records: dict[str, list[dict[str, Any]]] = {}
    try:
        for number, (entry, config) in enumerate(runs, start=1):
            announce(f"{name}: run {number} of {len(runs)}, {entry.name}")
            record = run(config, machine)
            records.setdefault(entry.name, []).append(record)
    finally:
        if records:
            write_study(folder / name, study, profile, rows, records)
    return folder / f"{name}.md"


def write_study(stem: Path, study: Study, profile: Profile, rows: list[Row], records: dict[str, list[dict[str, Any]]]) -> None:
    """``stem`` + .csv (numbers), .md and .tex (text), and .png where the study draws."""
    table = measured_table(rows, records)
    shown = readable_table(table)
    heading = headline(profile, rows, records)
    notes = [heading, *study.notes, "R@K in percent: mean over seeds ± half of the 95 % t-interval; differences are paired by seed."]
    write_text(stem.with_suffix(".csv"), table.to_csv(index=False))
    lines = [f"# {stem.name}", "", *(f"{note}\n" for note in notes), *markdown_rows(shown), ""]
    if study.draws:
        from retrieval_bench.experiments.variation_figure import draw

        first = {entry.name: records[entry.name][0] for entry in rows if entry.name in records}
        draw(first, stem.with_suffix(".png"), heading)
        lines += [f"![{study.about}]({stem.name}.png)", ""]
    write_text(stem.with_suffix(".md"), "\n".join(lines))
    write_text(stem.with_suffix(".tex"), latex(shown, notes))


def headline(profile: Profile, rows: list[Row], records: dict[str, list[dict[str, Any]]]) -> str:
    """What was done, in a line that stands above every table and figure."""
    config = rows[0].config
    data, train = config.data, config.train
    made = [record for found in records.values() for record in found]
    weights = made[0]["labels"]["weights"]
    devices = sorted({record["environment"]["device"] for record in made})
    part = f", first {data.classes} classes of each side" if data.classes else ""
    return (
        f"Measured: {profile.about}. {data.dataset} ({data.split}{part}), {config.model.backbone} ({weights}), {data.image_size} px, "
        f"{train.epochs} epochs, batches of {train.batch_size}; {'; '.join(devices)}."
    )


def latex(shown: Any, notes: list[str]) -> str:
    """A LaTeX ``tabular`` with the notes as comments; needs no package."""
    special = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$", "†": r"$\dagger$", "‡": r"$\ddagger$", "☆": r"$\star$"}

    def escaped(cell: str) -> str:
        return "".join(special.get(letter, letter) for letter in str(cell))

    rows = [" & ".join(map(escaped, line)) + r" \\" for line in shown.to_numpy().tolist()]
    columns = "l" + "r" * (len(shown.columns) - 1)
    head = " & ".join(map(escaped, shown.columns)) + r" \\"
    body = [r"\begin{tabular}{" + columns + "}", r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"]
    return "\n".join([*(f"% {note}" for note in notes), *body]) + "\n"
