"""One look per strategy, the same in every figure.

The eighteen colours lie as far apart as they can, also for who sees no red or no green (distance in OKLab, Machado et al. 2009), and all
have a contrast of 3 to 1 or more with white and with a dark page. Eighteen are too many to be told apart by colour alone, so each of nine
markers is shared by two strategies of far colours. A chain has the colour of its first part, and the marker and the edge of its last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrieval_bench.strategies import STRATEGIES

OTHER = ("#848490", "h")
"""What is no strategy of the registry (any more)."""
LOOKS = {name: (kind.look.colour, kind.look.marker) for name, kind in STRATEGIES.items()}
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
