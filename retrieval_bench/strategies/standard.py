"""Standard fine-tuning: every parameter is trained at one learning rate.

The default that all other strategies are compared with.
"""

from __future__ import annotations

from retrieval_bench.strategies.base import Look, Strategy


class Standard(Strategy):
    """Trains everything; overrides no hook."""

    look = Look("#1878d8", "s")
