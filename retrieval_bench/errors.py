"""The one exception that a user is meant to see, and the nearest-name hint it often carries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message is one line that names the file or value and the way out; the command line exits with
    2."""


class NotFetched(UserError):
    """What is asked for would have to be downloaded, which is not to be done now."""


class Diverged(UserError):
    """The loss stopped being a number. A strategy that retries epochs may catch it; otherwise it ends the run."""


def first_line(error: BaseException) -> str:
    """What another library's exception says, short enough for a line of ours; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")[:160]


def unknown(kind: str, given: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not in a registry, with the nearest valid name first.

    Args:
        kind: what was named, in words ("strategy", "data set").
        given: what the user typed.
        known: every valid name.
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) if len(names) <= 30 else f"{len(names)} names"
    return UserError(f"unknown {kind} '{given}'{hint} (known: {listed or 'none'})")
