"""What a protocol's rows say, in a sentence or two that somebody can act on."""

from __future__ import annotations

from typing import Any

from retrieval_bench.leaderboard import SEEDS
from retrieval_bench.tables import COSTS, percent


def verdict(rows: Any) -> list[str]:
    """Sentences about the rows of one protocol of the leaderboard, best Recall@1 first: which wins, by how much, how sure that is, and
    which of those that are not told apart from it costs least."""
    measured = rows[rows["recall_at_1"].notna()]
    best = measured[measured["standing"] == "best"]
    if not len(best):
        first = measured.iloc[0]
        return [
            f"{first['strategy']} has the highest R@1, {percent(first['recall_at_1'])}.",
            f"No row has {SEEDS} seeds, so nothing is ranked.",
        ]
    leader = best.iloc[0]
    said = [f"{leader['strategy']} leads with R@1 {percent(leader['recall_at_1'], leader['recall_at_1_ci95'])} ({leader['seeds']} seeds)."]
    ties = measured[measured["standing"] == "tie"]
    beaten = measured[(measured["standing"] == "") & measured["p_value"].notna()]
    if len(ties):
        names = ", ".join(ties["strategy"].head(4)) + (f" and {len(ties) - 4} more" if len(ties) > 4 else "")
        said.append(f"Not told apart from it: {names}.")
        said += _cheapest(best, ties)
    if len(beaten):
        next_ = beaten.iloc[0]
        gap = percent(leader["recall_at_1"] - next_["recall_at_1"])
        begin = "The first that is told apart from it" if len(ties) else "Next"
        said.append(f"{begin}: {next_['strategy']}, {gap} points below (p = {next_['p_value']:.3f}).")
    return said


def _cheapest(best: Any, ties: Any) -> list[str]:
    """A sentence about the tie with the fewest multiply-accumulates, if it has fewer than the leader."""
    title, unit, form = COSTS["macs"]
    known = ties[ties["macs"].notna()]
    if not len(known) or best["macs"].isna().any():
        return []
    cheapest, most = known.loc[known["macs"].astype(float).idxmin()], float(best["macs"].iloc[0])
    if float(cheapest["macs"]) >= 0.99 * most:
        return []
    size = form.format(cheapest["macs"] / unit)
    return [f"Of these, {cheapest['strategy']} costs least: {size} {title}, {100 * cheapest['macs'] / most:.0f} % of the leader's."]
