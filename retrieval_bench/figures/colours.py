"""One look per strategy, the same in every figure.

The eighteen colours lie as far apart as they can, also for who sees no red or no green (distance in OKLab, Machado et al. 2009), and all
have a contrast of 3 to 1 or more with white and with a dark page. Eighteen are too many to be told apart by colour alone, so each of nine
markers is shared by two strategies of far colours. A chain has the colour of its first part, and the marker and the edge of its last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OTHER = ("#848490", "h")
"""What is no strategy of the registry (any more)."""
LOOKS = {
    "autolr": ("#d80018", "o"),
    "channel_gates": ("#246c84", "P"),
    "channel_pruning": ("#249cc0", "^"),
    "frozen": ("#848490", "o"),
    "global_k": ("#c01884", "p"),
    "l2sp": ("#6090fc", "P"),
    "last_k": ("#fc6000", "v"),
    "layer_pruning": ("#9000fc", "D"),
    "layerwise_decay": ("#9060fc", "p"),
    "low_high": ("#7860b4", "X"),
    "network_slimming": ("#fc486c", "X"),
    "progressive": ("#609060", "D"),
    "random_policy": ("#e460b4", "*"),
    "rollback": ("#786054", "s"),
    "spottune": ("#0ca800", "^"),
    "standard": ("#1878d8", "s"),
    "stochastic": ("#c03cd8", "v"),
    "weight_variation": ("#606c00", "*"),
}
"""Colour and marker of each strategy."""


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn: hexadecimal `colour` and `edge`, and a `marker` of matplotlib."""

    colour: str
    marker: str
    edge: str


def parts(label: str) -> list[str]:
    """The names in a strategy's label, without options and what follows a comma: ``layer_pruning(drop=last:2)+autolr`` has two."""
    return re.sub(r"\([^()]*\)", "", label).split(",")[0].strip().split("+")


def look_of(label: str) -> Look:
    """The look of a strategy, a chain or a label of either; options change nothing."""
    names = parts(label)
    (colour, _), (edge, marker) = LOOKS.get(names[0], OTHER), LOOKS.get(names[-1], OTHER)
    return Look(colour, marker, edge)


def colour_of(label: str) -> str:
    """The colour alone, as ``#rrggbb``."""
    return look_of(label).colour
