"""``python -m retrieval_bench.grid.child PARENT COMMAND...``: a command that is told to stop when the process that started it has ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from retrieval_bench.cli import main

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2): the signal that a process gets when the thread that started it ends."""


def follow(parent: int) -> None:
    """From now on SIGTERM comes when the parent process ends, however it ends; a parent that has ended already is followed at once.

    Elsewhere than on Linux nothing happens: a run whose parent was killed goes on to its end, and its lock makes others wait for it.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def follow_and_run(words: Sequence[str]) -> int:
    """Runs a command of ``python -m retrieval_bench``; its exit code."""
    follow(int(words[0]))
    return main(words[1:])


if __name__ == "__main__":
    raise SystemExit(follow_and_run(sys.argv[1:]))
