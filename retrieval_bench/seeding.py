"""Randomness by name: every draw comes from a seed derived from (run seed, purpose, epoch, ...).

Where a library draws from torch's global generator (initialisation, dropout, some miners), that one is seeded the same
way just before. Two draws for different purposes never share a stream, and any epoch can be replayed without the ones
before it, which is what makes a retried epoch and an exact resume possible.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on the run's `seed` and on every part of `purpose`, the same on every machine."""
    text = repr((int(seed), *purpose)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU ``torch.Generator`` seeded by :func:`derive`."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def random_states() -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of torch's global generators, on the CPU and on the GPU (some draws for a GPU are made on the CPU)."""
    import torch

    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def set_random_states(states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    """Puts back what :func:`random_states` gave."""
    import torch

    torch.set_rng_state(states[0])
    if states[1] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[1])
