"""What a protocol's rows show, in a few sentences that somebody can act on."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrieval_bench.columns import COLUMNS, column
from retrieval_bench.evaluation.statistics import SEEDS

CHEAPER = {"macs": "is the smallest network", "images_seen": "took the least training"}
"""What the row that costs least is, by cost."""
NAMED = 4
"""Ties that are named."""


def verdict(rows: Any) -> list[str]:
    """Sentences about the rows of one protocol, best Recall@1 first: which leads, by how much over common seeds, how
    sure that is, and which of its ties cost less. The first sentence can stand alone."""
    recall = column("recall_at_1")
    measured = rows[rows["recall_at_1"].notna()] if "recall_at_1" in rows else rows[:0]
    if not len(measured):
        return ["R@1 was not measured."]
    best = measured[measured["significance"] == "best"]
    if not len(best):
        first = measured.iloc[0]
        highest = f"{recall.text(first['recall_at_1'])} ({first['strategy']})"
        return [f"Not ranked, since no row has {SEEDS} seeds; the highest R@1 is {highest}."]
    leader = best.iloc[0]
    mean = recall.text(leader["recall_at_1"], leader["recall_at_1_ci95"])
    sentences = [f"{leader['strategy']} leads with R@1 {mean} ({leader['seeds']} seeds)."]
    ties = measured[measured["significance"] == "tie"]
    if len(ties):
        more = f" and {len(ties) - NAMED} more" if len(ties) > NAMED else ""
        sentences.append(f"Not significantly different from it: {', '.join(ties['strategy'].head(NAMED))}{more}.")
    for cost, is_cheapest in CHEAPER.items():
        known = ties[ties[cost].notna()]
        if len(known) and pd.notna(leader[cost]):
            cheapest = known.loc[known[cost].astype(float).idxmin()]
            share = cheapest[cost] / leader[cost] if leader[cost] else 1
            if share < 0.99:
                amount = f"{COLUMNS[cost].text(cheapest[cost])} {COLUMNS[cost].title}, {100 * share:.0f} %"
                sentences.append(f"Of these, {cheapest['strategy']} {is_cheapest}: {amount} of the leader's.")
    worse = measured[(measured["significance"] == "") & measured["p_value"].notna()]
    if len(worse):
        below = worse.iloc[0]
        begin = "The first that is significantly worse" if len(ties) else "Next"
        gap = f"{recall.text(-below['difference'])} points below over common seeds (p = {below['p_value']:.3f})"
        sentences.append(f"{begin}: {below['strategy']}, {gap}.")
    untested = int((measured["p_value"].isna() & (measured["significance"] == "")).sum())
    if untested:
        sentences.append(f"Not tested, since too few seeds are common: {untested} row{'' if untested == 1 else 's'}.")
    return sentences
