"""The command ``reproduce``: a recorded run once more, and what came out otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from retrieval_bench.columns import column, metric_names
from retrieval_bench.config import RuntimeConfig, recorded_config, unnest
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable
from retrieval_bench.leaderboard import runs_by_row
from retrieval_bench.records import Record, ResultsFolder
from retrieval_bench.run import run


@dataclass(frozen=True)
class Reproduce:
    """Make a recorded run again, beside the record, and print both results and both environments."""

    run: tyro.conf.Positional[str]
    """id of a run (or the beginning of one), or the file of its record"""
    results: Path = Path("results/local")
    """folder that holds runs/; the new record goes into reproduced/ below it"""
    data_root: Path | None = None
    """folder (or archive) of the data set; without it the data set is downloaded"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the kind of device that the record names"""

    def execute(self) -> int:
        """1 if any metric came out otherwise."""
        folder = ResultsFolder(self.results)
        if Path(self.run).suffix != ".json":
            folder = folder.existing()
        records = folder.find(self.run)
        if len(records) > 1:
            raise UserError(f"{self.run}: are {len(records)} runs, from {records[0].id} on; name one")
        then = records[0]
        target = self.results / "reproduced"
        check_writable(target)
        device = self.device if self.device != "auto" else "cuda" if then.kind == "cuda" else "cpu"
        runtime = RuntimeConfig(data_root=self.data_root, results=target, device=device, force=True)
        now = run(recorded_config(then.config, then.labels.get("weights", "imagenet")), runtime)
        seeds = runs_by_row(folder.read_records()).get((then.config_hash, then.kind), [then])
        print("\n".join(differences(then, now, seeds)))
        return int(any(then.metrics[name] != now.metrics.get(name) for name in metric_names(then.metrics)))


def differences(then: Record, now: Record, seeds: list[Record]) -> Iterator[str]:
    """The lines that are printed: metrics of both, how far the row's `seeds` are apart, and where the environments
    differ."""
    if now.config_hash != then.config_hash:
        yield "the content of data, weights or code is another one: the metrics below are of different runs"
    yield f"{'':10}{'then':>8}{'now':>8}{'diff':>8}   range over {len(seeds)} seeds"
    for name in metric_names(then.metrics):
        shown, values = column(name), [then.metrics[name], now.metrics.get(name)]
        difference = None if None in values else values[1] - values[0]
        over = [run.metrics[name] for run in seeds if run.metrics.get(name) is not None]
        spread = f"{shown.text(min(over))} to {shown.text(max(over))}" if len(over) > 1 else "-"
        texts = [*map(shown.text, values), shown.text(difference, sign="+")]
        yield f"{shown.title:10}" + "".join(f"{text:>8}" for text in texts) + f"   {spread}"
    yield ""
    pairs = [unnest(record.environment) for record in (then, now)]
    names = [name for name in {**pairs[0], **pairs[1]} if pairs[0].get(name) != pairs[1].get(name)]
    yield from (f"{name}: {pairs[0].get(name, '-')} | {pairs[1].get(name, '-')}" for name in names)
    if not names:
        yield "both environments are the same"
