"""Records of strategies on the same folds to one sentence: which to use, by how much it is better, how sure that is and
what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from retrieval_bench.columns import column
from retrieval_bench.evaluation.statistics import LEVEL, SEEDS, holm, paired_t_test
from retrieval_bench.experiments.choices import FROZEN
from retrieval_bench.experiments.experiment import Objective, Records
from retrieval_bench.records import Record

SHOWN = ("recall_at_1", "map_at_r")
"""Metrics that are shown, whichever decides."""
CHEAPER = 0.8
"""Share of the best row's training time below which another one counts as cheaper."""


@dataclass(frozen=True)
class Gain:
    """A metric of one row less that of another, paired by fold: fractions. `half` of the 95 % t-interval and the
    p-value of the paired t-test are NaN for one fold."""

    mean: float
    half: float
    p: float
    folds: int

    def __str__(self) -> str:
        low, high = (f"{100 * end:+.1f}" for end in (self.mean - self.half, self.mean + self.half))
        interval = f"95 % interval {low} to {high}, " if self.half == self.half else ""
        return f"{100 * self.mean:+.1f} points ({interval}{self.folds} folds)"


@dataclass(frozen=True)
class Advice:
    """The row to use, what it gains over frozen features (None for these), sentences that say so, and the row with the
    highest mean of those that could be used (or, without any, of those that were trained)."""

    strategy: str
    gain: Gain | None
    text: str
    best: str


def advise(records: Records, metric: Objective = "map_at_r") -> Advice:
    """The decision.

    A strategy is taken if it is above frozen features on at least three folds with p < 0.05 (paired t-test, corrected
    for the number of strategies by Holm's method). Of several it is the one with the highest mean, or else the one with
    the shortest training of those that train in less than 0.8 of its time and are not significantly below it.
    Without any it is frozen features, which need no training.

    Args:
        records: of each row, one per fold; those of frozen features among them.
        metric: that decides.
    """
    base, title = records[FROZEN], column(metric).title
    gains = {name: gain_of(runs, base, metric) for name, runs in records.items() if name != FROZEN}
    p_values = holm([gain.p if gain.folds >= SEEDS else np.nan for gain in gains.values()])
    corrected = dict(zip(gains, p_values, strict=True))
    start = f"Use frozen features ({', '.join(f'{column(name).title} {_percent(base, name)}' for name in SHOWN)}): "
    if not gains:
        return Advice(FROZEN, None, f"{start}the time given was too short to train anything.", FROZEN)
    sure = [name for name, gain in gains.items() if corrected[name] < LEVEL and gain.mean > 0]
    best = max(sure or gains, key=lambda name: gains[name].mean)
    label, gain = records[best][0].strategy, gains[best]
    if not sure:
        return Advice(FROZEN, None, start + _not_taken(label, gain, title, corrected[best], len(gains)), best)
    cheaper = [name for name in sure if _seconds(records[name]) < CHEAPER * _seconds(records[best])]
    less = {name: gain_of(records[name], records[best], metric) for name in cheaper}
    tied = [name for name in cheaper if not less[name].p < LEVEL]
    chosen = min(tied, key=lambda name: _seconds(records[name]), default=best)
    runs, gain = records[chosen], gains[chosen]
    rises = [f"{column(name).title} from {_percent(base, name, runs)} to {_percent(runs, name)}" for name in SHOWN]
    share = runs[0].cost["macs"] / base[0].cost["macs"]
    text = (
        f"Use {runs[0].strategy}: on classes that it was not trained on it takes {' and '.join(rises)}. The gain of "
        f"{title} is {gain}, {_p(corrected[chosen])}. It costs {_seconds(runs):.0f} s of training, and the embedder "
        f"{f'does {share:.0%} of the multiply-accumulates' if share != 1 else 'is as large and fast as before'}."
    )
    if tied:
        text += (
            f" {label} has the highest mean, but trains for {_seconds(records[best]):.0f} s and is not measurably "
            f"better: the difference is {less[chosen]}."
        )
    return Advice(chosen, gain, text, best)


def _not_taken(label: str, gain: Gain, title: str, p: float, strategies: int) -> str:
    if gain.mean <= 0:
        return f"nothing beats them. The best of the others, {label}, has {gain} of {title}."
    why = _p(p) if gain.folds >= SEEDS else "too few folds to test"
    why += f" in a test of {strategies} strategies" if strategies > 1 else ""
    return f"undecided, so the cheaper one. {label} has {gain} of {title}, {why}."


def gain_of(first: Sequence[Record], second: Sequence[Record], metric: str) -> Gain:
    """The first row less the second, over the folds that both have."""
    one, other = ({_fold(run): run.metrics[metric] for run in runs} for runs in (first, second))
    common = sorted(one.keys() & other.keys())
    return Gain(*paired_t_test([one[fold] for fold in common], [other[fold] for fold in common]), len(common))


def compared_table(records: Records, metric: Objective) -> pd.DataFrame:
    """Text for people, a line per row: means over folds, and gains over frozen features with half of the interval."""
    lines = []
    for name, runs in records.items():
        gain, cost = gain_of(runs, records[FROZEN], metric), runs[0].cost
        lines.append(
            {
                "strategy": runs[0].strategy,
                **{column(shown).title: _percent(runs, shown) for shown in SHOWN},
                f"{column(metric).title} gain": ""
                if name == FROZEN
                else column(metric).text(gain.mean, gain.half, sign="+"),
                **{column(shown).title: column(shown).text(cost[shown]) for shown in ("parameters", "macs")},
                "train s": f"{_seconds(runs):.0f}",
                "folds": str(len(runs)),
            }
        )
    return pd.DataFrame(lines)


def _percent(runs: Sequence[Record], metric: str, like: Sequence[Record] = ()) -> str:
    """Mean in percent, over the folds that `like` has too."""
    folds = {_fold(run) for run in like or runs}
    return f"{100 * fmean(run.metrics[metric] for run in runs if _fold(run) in folds):.1f}"


def _p(value: float) -> str:
    return f"p {value:.3f}" if value >= 0.001 else "p < 0.001"


def _fold(run: Record) -> int:
    return run.config["data"]["fold"]


def _seconds(runs: Sequence[Record]) -> float:
    return fmean(run.cost["train_seconds"] for run in runs)
