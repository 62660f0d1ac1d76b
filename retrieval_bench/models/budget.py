"""Which channels stay within a budget: the search for one threshold over all layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval_bench.errors import UserError
from retrieval_bench.models.channels import Channels, Keep


@dataclass(frozen=True)
class Budget:
    """A choice of channels for a budget.

    Attributes:
        keep: channels that stay.
        widths: how many, by name.
        reached: cost of the choice, as a share of the full backbone's.
        error: `reached` less the share that was asked for.
    """

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
    """The channels with the highest scores over all layers whose cost comes closest to a share of the full backbone's.

    A global threshold by binary search on the number of kept channels (Wang et al., Pruning from Scratch, AAAI 2020);
    of equal scores those of earlier layers and lower indices stay.

    Args:
        channels: of the backbone.
        scores: one per channel, by the width's name; higher is kept longer.
        share: of the full cost, above 0 and at most 1.
        unit: ``macs`` or ``parameters``.
        minimum: smallest share of each layer's channels, at least one channel.
        multiple: widths are rounded to a multiple of this, where the layer has that many.
        full_cost: what `share` is a share of; 0 for the cost of this backbone at full width.

    Raises:
        UserError: the share cannot be reached, with the range that can.
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
            size = max(kept[layer], 1, math.ceil(minimum * width.channels))
            if 1 < multiple <= width.channels:
                size = max(1, round(size / multiple)) * multiple
            widths[width.name] = min(size, width.channels)
        return widths

    def reached_by(widths: Mapping[str, int]) -> float:
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
