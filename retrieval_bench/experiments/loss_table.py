"""Whether the ranking of strategies depends on the loss that they are trained with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrieval_bench.config import RunConfig
from retrieval_bench.experiments.benchmarks import EMOJI_MINI, SYNTHETIC
from retrieval_bench.experiments.experiment import DRAWN, Experiment, Profile, Row, named_rows
from retrieval_bench.figures.losses import ranking_by_loss

LOSSES = ("triplet", "multi_similarity", "proxy_anchor", "normalized_softmax")
"""Two losses of pairs and two of proxies. Of the learning rates 1e-4, 3e-4 and 1e-3 the middle one is best for
``standard`` under each of them on validation classes (R@1 in percent, ``zero_shot_val``, seed 0: triplet 85.1, 86.9,
78.5; multi-similarity 86.6, 89.4, 83.1; proxy-anchor 81.3, 82.8, 0.0; normalised softmax 79.0, 80.3, 47.2)."""
COMPARED: Mapping[str, Mapping[str, Any]] = {
    "Standard": {"strategy": "standard"},
    "Layer pruning": {"strategy": "layer_pruning"},
    "AutoLR": {"strategy": "autolr"},
    "AutoLR, rise 3": {"strategy": "autolr", "options.autolr.rise": 3.0},
    "L2-SP": {"strategy": "l2sp"},
    "Last 3": {"strategy": "last_k"},
}


def losses(base: RunConfig) -> list[Row]:
    """Frozen features, then the strategies under each loss; differences are to ``standard`` with the same loss."""
    rows = named_rows(base, {"Frozen": {"strategy": "frozen"}})
    for loss in LOSSES:
        changes = {f"{name}, {loss}": {"loss.loss": loss, **values} for name, values in COMPARED.items()}
        rows += named_rows(base, changes, f"Standard, {loss}")
    return rows


EXPERIMENTS = {
    "table_losses": Experiment(
        "strategies under four losses: does their ranking depend on the loss?",
        {
            "cpu": Profile(
                "600 emoji at 72 px, EfficientNet-lite0, the learning rate chosen for standard fine-tuning: for 2 CPU "
                "cores",
                EMOJI_MINI,
            ),
            "smoke": Profile(DRAWN, SYNTHETIC, (0, 1)),
        },
        losses,
        figure=ranking_by_loss,
    ),
}
