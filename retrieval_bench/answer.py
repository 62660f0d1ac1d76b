"""The answer that a table gives, in words: which strategy is best on a data set, by how much, how sure that is, and at
what cost."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from retrieval_bench.columns import COLUMNS, column
from retrieval_bench.data.catalog import DATASETS
from retrieval_bench.evaluation.statistics import SEEDS, paired_t_test
from retrieval_bench.leaderboard import protocols, row_keys, runs_by_row
from retrieval_bench.progress import is_main_process
from retrieval_bench.records import Record

Runs = Mapping[tuple[str, str], Sequence[Record]]
RECALL = column("recall_at_1")
BASELINES = {"frozen": "frozen features", "standard": "standard fine-tuning"}
"""What every strategy is compared with, in words."""
SPLITS = {"zero_shot": "unseen {}", "zero_shot_val": "validation {}", "closed_set": "known {}"}
NAMED = 4
"""Ties that are named."""
CHEAPER = {"macs": "is the smallest network", "images_seen": "took the least training"}
"""What the row that costs least is, by cost."""
LEGEND_OF_WORDS = (
    "best: the highest mean of at least three seeds; tie: not significantly different from it (paired t-test over "
    "common seeds, p from 0.05 on); below: significantly lower; undecided: fewer than three common seeds, which never "
    "rank. A strategy stands for its best configuration. Bars are 95 % intervals over seeds, hollow points have one "
    "seed, dotted lines continue frozen features and standard fine-tuning, an arrow is far below."
)
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Answer:
    """What the rows of one protocol say.

    Attributes:
        title: of the protocol in the leaderboard.
        words: the same for people: ``CUB-200-2011 (unseen species, ResNet-50, 224 px)``.
        rows: :func:`best_of_each`.
        text: one or two sentences (:func:`sentence`).
    """

    title: str
    words: str
    dataset: str
    rows: Any
    text: str

    @property
    def headline(self) -> str:
        """Data set and best strategy in a few words."""
        best = self.rows.loc[self.rows["verdict"] == "best", "name"]
        return f"{self.words.split(' (')[0]}: {_called(best.iloc[0]) if len(best) else 'undecided'}"

    @property
    def ranked(self) -> int:
        """Strategies that are best, tied or below; 0 where nothing is ranked."""
        return int((self.rows["verdict"] != "undecided").sum())


def answers(table: Any, runs: Runs) -> list[Answer]:
    """An answer per protocol of a leaderboard, those that rank most strategies first; `runs` are
    :func:`~retrieval_bench.leaderboard.runs_by_row`."""
    found = []
    for title, rows in protocols(table) if len(table) else ():
        words, dataset = protocol_words(rows), str(rows["dataset"].iloc[0])
        found.append(Answer(title, words, dataset, best_of_each(rows), sentence(rows, runs, words)))
    return sorted(found, key=lambda answer: -answer.ranked)


def headlines(found: Sequence[Answer]) -> list[Answer]:
    """One answer per data set: of those that rank, one on all classes before one on some, then the one that ranks most
    strategies."""

    def standing(answer: Answer) -> tuple[bool, bool, int]:
        return answer.ranked > 1, bool(answer.rows["classes"].fillna(0).eq(0).any()), answer.ranked

    names = dict.fromkeys(answer.dataset for answer in found)
    chosen = [max((other for other in found if other.dataset == name), key=standing) for name in names]
    return sorted(chosen, key=lambda answer: -answer.ranked)


def answer_text(records: Sequence[Record], table: Any, shown: Any = None) -> str:
    """The answers of a leaderboard of `records`, a line per data set and an empty one; from all rows of the table, for
    the protocols of those that are `shown`."""
    titles = {title for title, _ in protocols(table if shown is None else shown)} if len(table) else set()
    found = [answer for answer in answers(table, runs_by_row(records)) if answer.title in titles]
    return "".join(f"{line}\n" for line in [*(answer.text for answer in headlines(found)), ""] if found)


def print_answers(records: Sequence[Record], table: Any) -> None:
    """Prints :func:`answer_text`; of processes that work together only the first does."""
    if is_main_process():
        print(answer_text(records, table), end="")


def strategy_name(label: str) -> str:
    """A strategy's label without options and what follows a comma: ``layer_pruning(drop=last:2)+autolr`` is
    ``layer_pruning+autolr``."""
    return re.sub(r"\([^()]*\)", "", label).split(",")[0].strip()


def best_of_each(rows: Any) -> Any:
    """One row per strategy of a protocol, best Recall@1 first: its configuration with the highest mean, among those of
    at least three seeds where there are such.

    Returns:
        the rows with ``name`` (of the strategy), ``configurations`` (how many it has), ``trained`` (whether images were
        seen) and ``verdict``: ``best``, ``tie`` (not significantly different from the best), ``below``, or
        ``undecided`` (too few common seeds).
    """
    rows = rows[rows["recall_at_1"].notna()] if "recall_at_1" in rows else rows[:0].assign(recall_at_1=math.nan)
    names = rows["strategy"].astype(str).map(strategy_name)
    rows = rows.assign(name=names, configurations=names.map(names.value_counts()), verdict=verdicts(rows))
    rows["trained"] = rows["images_seen"].isna() | (rows["images_seen"].fillna(1) > 0)
    by = ["enough", "recall_at_1"]
    firsts = rows.assign(enough=rows["seeds"] >= SEEDS).sort_values(by, ascending=False, kind="stable")
    firsts = firsts.drop_duplicates("name").drop(columns="enough")
    return firsts.sort_values("recall_at_1", ascending=False, kind="stable")


def verdicts(rows: Any) -> pd.Series:
    """In a word how each row of a protocol stands (:func:`best_of_each`)."""
    is_below = (rows["significance"] == "") & rows["p_value"].notna()
    words = np.select([rows["significance"] != "", is_below], [rows["significance"], "below"], "undecided")
    return pd.Series(words, rows.index, dtype=object)


def sentence(rows: Any, runs: Runs, words: str) -> str:
    """What the rows of a protocol say in a sentence or two: the best strategy, its gain over both baselines with the
    95 % t-interval of paired seeds, its seeds and training; and the strategies that tie with it. One seed never
    ranks."""
    firsts = best_of_each(rows)
    if not len(firsts):
        return f"On {words}, R@1 was not measured."
    by_name = {row["name"]: row for row in firsts.to_dict("records")}
    best = next((row for row in by_name.values() if row["verdict"] == "best"), None)
    if best is None:
        seeds = f"{_count(int(firsts['seeds'].max()), 'seed')}{' at most' if firsts['seeds'].nunique() > 1 else ''}"
        first, *others = list(by_name.values())[:1] + [by_name[name] for name in BASELINES if name in by_name]
        shown = {row["name"]: f"{_called(row['name'])} {_percent(row['recall_at_1'])}" for row in (first, *others)}
        highest, *baselines = shown.values()
        others = f" ({', '.join(baselines)})" if baselines else ""
        return f"On {words}, undecided: {seeds}. Highest R@1: {highest}{others}."
    several = f" (best of its {best['configurations']} configurations)" if best["configurations"] > 1 else ""
    parts = [f"R@1 {_percent(best['recall_at_1'])}"]
    for name, called in BASELINES.items():
        if name in by_name and name != best["name"]:
            parts.append(f"{_gain(best, by_name[name], runs)} {called}")
    ties = [_called(row["name"]) for row in by_name.values() if row["verdict"] == "tie"]
    more = f" and {len(ties) - NAMED} more" if len(ties) > NAMED else ""
    seeds, first = _count(int(best["seeds"]), "seed"), next(iter(by_name))
    verb = "leads" if ties else "is best" + (" of those with three seeds" if first != best["name"] else "")
    texts = [
        f"On {words}, {_called(best['name'])} {verb}{several}: {', '.join(parts)}; {seeds}"
        f"{_training(best, by_name.get('standard'))}."
    ]
    if ties:
        texts.append(f"Not significantly different: {', '.join(ties[:NAMED])}{more}.")
    if len(epochs := sorted({int(row["epochs"]) for row in by_name.values() if row["trained"]})) > 1:
        texts.append(f"They trained for {epochs[0]} to {epochs[-1]} epochs.")
    return " ".join(texts)


def cheaper(firsts: Any) -> list[str]:
    """Sentences about those of the ties with the best strategy that cost less; `firsts` are :func:`best_of_each`."""
    sentences = []
    best = firsts[firsts["verdict"] == "best"].squeeze()
    for cost, is_cheapest in CHEAPER.items() if len(best) else ():
        known = firsts[(firsts["verdict"] == "tie") & firsts[cost].notna()]
        if len(known) and pd.notna(best[cost]) and best[cost]:
            cheapest = known.loc[known[cost].astype(float).idxmin()]
            share = cheapest[cost] / best[cost]
            if share < 0.99:
                amount = f"{COLUMNS[cost].text(cheapest[cost])} {COLUMNS[cost].title}, {100 * share:.0f} %"
                sentences.append(f"Of the ties, {_called(cheapest['name'])} {is_cheapest}: {amount} of the best's.")
    return sentences


def _gain(row: Any, other: Any, runs: Runs) -> str:
    """``+3.4 (2.1 to 4.7) over``, in points over the common seeds."""
    first, second = (
        {run.seed: float(recall) for run in runs[_key(side)] if (recall := run.metrics.get("recall_at_1")) is not None}
        for side in (row, other)
    )
    common = sorted(first.keys() & second.keys())
    if not common:
        return f"{100 * (row['recall_at_1'] - other['recall_at_1']):+.1f} (no common seeds, undecided) against"
    mean, half, _ = paired_t_test([first[seed] for seed in common], [second[seed] for seed in common])
    word = "over" if mean >= 0 else "against"
    if len(common) < SEEDS:
        return f"{100 * mean:+.1f} ({_count(len(common), 'common seed')}, undecided) {word}"
    return f"{100 * mean:+.1f} ({100 * (mean - half):.1f} to {100 * (mean + half):.1f}) {word}"


def _key(row: Any) -> tuple[str, str]:
    return row_keys(pd.DataFrame([row]))[0]


def _training(best: Any, standard: Any) -> str:
    """What the best row's training took, beside that of standard fine-tuning."""
    if not best["trained"]:
        return "; no training"
    seconds, usual = (math.nan if row is None else float(row["train_seconds"]) for row in (best, standard))
    if math.isnan(seconds):
        return ""
    is_other = standard is not None and standard["name"] != best["name"] and not math.isnan(usual)
    return f"; {_duration(seconds)} of training" + (f" (standard: {_duration(usual)})" if is_other else "")


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} seconds"


def _count(count: int, what: str) -> str:
    return f"{COUNTS[count] if count < len(COUNTS) else count} {what}{'' if count == 1 else 's'}"


def _called(name: str) -> str:
    return BASELINES.get(name, name)


def _percent(value: float) -> str:
    return f"{RECALL.scaled(value):.1f}"


def protocol_words(rows: Any) -> str:
    """The protocol of some rows in people's words: ``CUB-200-2011 (unseen species, ResNet-50, 224 px)``."""
    row = rows.iloc[0]
    dataset = DATASETS.get(row["dataset"])
    title, classes = (dataset.title, dataset.classes_are) if dataset and dataset.title else (row["dataset"], "classes")
    split = SPLITS.get(str(row["split"]), f"{row['split']}, {{}}").format(classes)
    count = 0 if pd.isna(row["classes"]) else int(row["classes"])
    weights = str(row["weights"])
    origin = {"none": "not pretrained", "imagenet": ""}.get(weights, "" if "imagenet" in weights else weights)
    network = re.sub(r"^(?:torchvision/)?resnet(\d+)", r"ResNet-\1", str(row["backbone"]))
    network = network.replace("_caffe", " (Caffe)").replace("efficientnet_", "EfficientNet-")
    parts = [split, f"first {count} {classes}" if count else "", network, origin, f"{int(row['image_size'])} px"]
    return f"{title} ({', '.join(filter(None, parts))})"
