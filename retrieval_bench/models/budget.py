"""Which channels stay within a budget: the search for one threshold over all layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrieval_bench.errors import UserError
from retrieval_bench.models.channels import Channels, Keep


@dataclass(frozen=True)
class Budget:
    """A choice of channels to a budget.

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
    whole: int = 0,
) -> Budget:
    """The channels with the highest scores over all layers whose cost comes closest to a share of the full backbone's.

    A global threshold by binary search on the number of kept channels (Wang et al., Pruning from Scratch, AAAI 2020); of equal scores
    those of earlier layers and lower indices stay.

    Args:
        channels: of the backbone.
        scores: one per channel, by the width's name; higher is kept longer.
        share: of the full cost, above 0 and at most 1.
        unit: ``macs`` or ``parameters``.
        minimum: smallest share of each layer's channels, at least one channel.
        multiple: widths are rounded to a multiple of this, where the layer has that many.
        whole: the cost that shares are of, if it is not that of this backbone at full width.

    Raises:
        UserError: the share cannot be reached, with the range that can.
    """
    cost = channels.macs if unit == "macs" else channels.parameters
    full = whole or cost(channels.full)
    order = {
        width.name: sorted(range(width.channels), key=lambda index, name=width.name: (-scores[name][index], index))
        for width in channels.widths
    }
    ranking = sorted(
        (
            (-scores[width.name][index], layer, index)
            for layer, width in enumerate(channels.widths)
            for index in range(width.channels)
        )
    )

    def widths_of(count: int) -> dict[str, int]:
        kept = [0] * len(channels.widths)
        for _, layer, _ in ranking[:count]:
            kept[layer] += 1
        return {
            width.name: _rounded(kept[layer], width.channels, minimum, multiple)
            for layer, width in enumerate(channels.widths)
        }

    low, high = 0, len(ranking)
    least = cost(widths_of(low)) / full
    most = cost(channels.full) / full
    if not least <= share <= most:
        raise UserError(
            f"a budget of {share:g} of the {unit} cannot be met: {least:.3f} to {most:.4g} can, with these smallest widths"
        )
    best = widths_of(high)
    while low <= high:
        middle = (low + high) // 2
        tried = widths_of(middle)
        if abs(cost(tried) / full - share) < abs(cost(best) / full - share):
            best = tried
        if cost(tried) / full > share:
            high = middle - 1
        else:
            low = middle + 1
    keep = {name: sorted(order[name][:width]) for name, width in best.items() if width < channels.full[name]}
    reached = cost(best) / full
    return Budget(keep, best, reached, reached - share)


def _rounded(count: int, full: int, minimum: float, multiple: int) -> int:
    least = max(1, -int(-minimum * full // 1))
    wanted = max(count, least)
    if multiple > 1 and full >= multiple:
        wanted = max(multiple, round(wanted / multiple) * multiple)
    return min(wanted, full)
