"""What a protocol's rows say, in a few sentences that somebody can act on."""

from __future__ import annotations

from typing import Any

from retrieval_bench.evaluation.statistics import SEEDS
from retrieval_bench.tables import COSTS, percent

CHEAPER = {"macs": "is the smallest network", "images_seen": "took the least training"}
"""What is said of the row that costs least, by cost."""
NAMED = 4
"""Ties that are named."""


def verdict(rows: Any) -> list[str]:
    """Sentences about the rows of one protocol of the leaderboard, best Recall@1 first: which wins, by how much over the seeds that both
    have, how sure that is, and which of those that are not told apart from it cost less. The first one can stand alone."""
    measured = rows[rows["recall_at_1"].notna()] if "recall_at_1" in rows else rows[:0]
    if not len(measured):
        return ["R@1 was not measured."]
    best = measured[measured["standing"] == "best"]
    if not len(best):
        first = measured.iloc[0]
        return [
            f"Not ranked, since no row has {SEEDS} seeds; the highest R@1, {percent(first['recall_at_1'])}, is of {first['strategy']}."
        ]
    leader = best.iloc[0]
    said = [
        f"{leader['strategy']} leads with R@1 {percent(leader['recall_at_1'], leader['recall_at_1_ci95'])} ({leader['seeds']} seeds)."
    ]
    ties = measured[measured["standing"] == "tie"]
    beaten = measured[(measured["standing"] == "") & measured["p_value"].notna()]
    if len(ties):
        names = ", ".join(ties["strategy"].head(NAMED)) + (
            f" and {len(ties) - NAMED} more" if len(ties) > NAMED else ""
        )
        said.append(f"Not told apart from it: {names}.")
        said += [sentence for cost, words in CHEAPER.items() for sentence in _cheapest(best, ties, cost, words)]
    if len(beaten):
        next_ = beaten.iloc[0]
        begin = "The first that is told apart from it" if len(ties) else "Next"
        gap = percent(-next_["difference"])
        said.append(f"{begin}: {next_['strategy']}, {gap} points below over common seeds (p = {next_['p_value']:.3f}).")
    if untested := int((measured["p_value"].isna() & (measured["standing"] == "")).sum()):
        said.append(f"Not tested, for want of common seeds: {untested} row{'' if untested == 1 else 's'}.")
    return said


def _cheapest(best: Any, ties: Any, cost: str, words: str) -> list[str]:
    """A sentence about the tie with the lowest cost, if that is below the leader's."""
    title, unit, form = COSTS[cost]
    known = ties[ties[cost].notna()]
    if not len(known) or best[cost].isna().any():
        return []
    cheapest, most = known.loc[known[cost].astype(float).idxmin()], float(best[cost].iloc[0])
    if float(cheapest[cost]) >= 0.99 * most:
        return []
    amount = form.format(cheapest[cost] / unit)
    return [
        f"Of these, {cheapest['strategy']} {words}: {amount} {title}, {100 * cheapest[cost] / most:.0f} % of the leader's."
    ]
