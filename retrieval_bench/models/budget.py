"""Which channels stay: the most important ones over all layers that a budget of multiply-accumulates or parameters
allows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval_bench.errors import UserError
from retrieval_bench.models.pruning import Channels, Keep, Widths


@dataclass(frozen=True)
class Budget:
    """The channels that stay, how many by the width's name, their cost as a share of the full backbone's, and by how
    much that differs from the share that was asked for."""

    keep: Keep
    widths: dict[str, int]
    reached: float
    error: float


def choose_channels(
    channels: Channels,
    scores: Mapping[str, Sequence[float]],
    share: float,
    unit: str = "macs",
    minimum: float = 0.1,
    multiple: int = 1,
    full_cost: int = 0,
) -> Budget:
    """The channels with the highest `scores` (one per channel, by the width's name) over all layers whose cost in
    `unit` (``macs`` or ``parameters``) comes closest to `share` of `full_cost`, or of this backbone's at full width.

    A global threshold by binary search on the number of kept channels (Wang et al., Pruning from Scratch, AAAI 2020);
    of equal scores those of earlier layers and lower indices stay. Each layer keeps the share `minimum` of its
    channels, at least one, and a multiple of `multiple` where it has that many, or all. Raises :class:`UserError` with
    the range of shares that can be reached.
    """
    count_cost = channels.macs if unit == "macs" else channels.parameters
    full_cost = full_cost or count_cost(channels.full)
    ranking = sorted(
        (-score, layer, index)
        for layer, width in enumerate(channels.widths)
        for index, score in enumerate(scores[width.name])
    )

    def widths_of(count: int) -> dict[str, int]:
        kept = Counter(layer for _, layer, _ in ranking[:count])
        widths = {}
        for layer, width in enumerate(channels.widths):
            least = max(1, math.ceil(minimum * width.channels))
            size = max(kept[layer], least)
            if 1 < multiple <= width.channels and size < width.channels:
                size = max(round(size / multiple), math.ceil(least / multiple)) * multiple
            widths[width.name] = min(size, width.channels)
        return widths

    def reached_by(widths: Widths) -> float:
        return count_cost(widths) / full_cost

    low, high = 0, len(ranking)
    least, most = reached_by(widths_of(low)), reached_by(channels.full)
    if not least <= share <= most:
        raise UserError(
            f"a budget of {share:g} of the {unit} cannot be met: {least:.3f} to {most:.4g} can, with the given minimum"
        )
    best = widths_of(high)
    while low <= high:
        middle = (low + high) // 2
        widths = widths_of(middle)
        if abs(reached_by(widths) - share) < abs(reached_by(best) - share):
            best = widths
        if reached_by(widths) > share:
            high = middle - 1
        else:
            low = middle + 1
    keep = {}
    for layer, width in enumerate(channels.widths):
        if best[width.name] < width.channels:
            ranked = [index for _, other, index in ranking if other == layer]
            keep[width.name] = sorted(ranked[: best[width.name]])
    return Budget(keep, best, reached_by(best), reached_by(best) - share)
