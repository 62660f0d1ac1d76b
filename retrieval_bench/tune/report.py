"""What a search found, for people: every trial, and the chosen configuration as a command."""

from __future__ import annotations

import shlex
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.files import write_text
from retrieval_bench.identity import to_command
from retrieval_bench.tables import markdown_rows, metric_title
from retrieval_bench.tune.journal import Search
from retrieval_bench.tune.spaces import shown


def trials_frame(search: Search, trials: int) -> Any:
    """A pandas table of text with a line per trial; the chosen one is marked."""
    import pandas as pd

    best = search.best(trials)
    lines = []
    for trial in search.trials:
        scores = {
            metric_title(name): f"{100 * trial.metrics[name]:.2f}" if trial.metrics else ""
            for name in ("recall_at_1", "map_at_r")
        }
        told = "chosen" if best is not None and trial.number == best.number else trial.error
        lines.append({"trial": str(trial.number + 1), "values": shown(trial.values), **scores})
        lines[-1] |= {"images seen": f"{trial.images_seen:,}", "": told}
    return pd.DataFrame(lines)


def write_search(search: Search, trials: int) -> None:
    """The trials in Markdown, beside the journal."""
    config = search.chosen(trials)
    space = "; ".join(f"{name}: {values}" for name, values in search.space.items()) or "nothing"
    lines = [
        f"# {search.path.stem}",
        "",
        f"{search.config.strategy}: {trials} trials or {trials * search.plain_images:,} images, whichever comes first; "
        f"{metric_title(search.objective)} on validation classes inside the training classes decides. "
        "The first trial has the values that were given, then a tree-structured Parzen estimator proposes. In percent.",
        "",
        f"Searched: {space}.",
        "",
        *markdown_rows(trials_frame(search, trials)),
        "",
        *([f"Chosen: `{command(config)}`"] if config else ["Every trial failed."]),
        "",
    ]
    write_text(search.path.with_suffix(".md"), "\n".join(lines))


def command(config: RunConfig) -> str:
    """The command that trains and tests `config`."""
    return shlex.join(["python", "-m", "retrieval_bench", "run", *to_command(config)])
