"""Named grids for ``sweep``. To add one: a base configuration and its axes, by flags of ``run``."""

from __future__ import annotations

from retrieval_bench.experiments import BENCHES
from retrieval_bench.grid.axes import Grid

GRIDS: dict[str, tuple[str, Grid]] = {
    "synthetic": (
        "drawn patterns and an untrained network, 8 runs of seconds; shows that everything works, compares nothing",
        Grid(
            BENCHES["synthetic"][1].base,
            {"strategy": ("frozen", "standard"), "loss": ("triplet", "proxy_anchor"), "seed": (0, 1)},
        ),
    ),
    "emoji_mini": (
        "600 emoji at 72 px: 6 strategies, 3 losses, 3 seeds",
        Grid(
            BENCHES["emoji_mini"][1].base,
            {
                "strategy": ("frozen", "last_k", "layerwise_decay", "l2sp", "autolr", "standard"),
                "loss": ("triplet", "multi_similarity", "proxy_anchor"),
                "seed": (0, 1, 2),
            },
        ),
    ),
}
