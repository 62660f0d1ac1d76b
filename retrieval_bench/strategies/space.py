"""What of a strategy's options is searched: plain data beside the options, without a search library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log` spreads draws evenly over orders of magnitude. `blocks`: a number of blocks."""

    low: float
    high: float
    log: bool = False
    integer: bool = False
    blocks: bool = False

    def within(self, count: int) -> Range:
        """The same for a backbone of `count` blocks: numbers of blocks stay below it."""
        return replace(self, high=min(self.high, max(self.low, count - 1))) if self.blocks else self

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int if self.integer else int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of several values without an order. `blocks`: the n-th, from 0, is about n blocks."""

    values: tuple[str | int | float, ...]
    blocks: bool = False

    def within(self, count: int) -> Choice:
        """The same for a backbone of `count` blocks."""
        return replace(self, values=self.values[:count]) if self.blocks and count else self

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Space = Mapping[str, Range | Choice]
"""What is searched, by the option's name."""
