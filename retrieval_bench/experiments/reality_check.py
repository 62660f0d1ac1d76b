"""The Reality Check: strategies whose options were searched with equal means, trained anew with several seeds, and ranked with tests.

After Musgrave, Belongie and Lim, A Metric Learning Reality Check (ECCV 2020), who did it for losses: choices are made on validation
classes inside the training classes, all with the same effort, and the test classes are looked at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrieval_bench.experiments import BENCHES
from retrieval_bench.experiments.spottune import ZERO_SHOT
from retrieval_bench.experiments.study import NOTHING, Profile
from retrieval_bench.sections import ModelConfig
from retrieval_bench.strategies.channel_gates import ChannelGates
from retrieval_bench.tune.spaces import Objective

STRATEGIES = (
    "frozen",
    "standard",
    "last_k",
    "layer_pruning",
    "autolr",
    "layer_pruning+autolr",
    "l2sp",
    "layerwise_decay",
    "stochastic",
    "rollback",
    "spottune",
    "channel_gates",
)


@dataclass(frozen=True)
class Check(Profile):
    """How large a Reality Check is.

    Attributes:
        strategies: what is compared.
        trials: per strategy, and the budget of its search: images seen by so many plain runs.
        objective: what the search maximises on the validation classes.
    """

    strategies: tuple[str, ...] = STRATEGIES
    trials: int = 50
    objective: Objective = "recall_at_1"


_EMOJI = ZERO_SHOT["emoji"]
CHECKS = {
    "cpu": Check(
        f"{_EMOJI.about}, gates that leave 90 % of the MACs",
        replace(_EMOJI.base, options=replace(_EMOJI.base.options, channel_gates=ChannelGates.Options(budget=0.9))),
        (0, 1, 2, 3, 4),
        trials=6,
        objective="map_at_r",  # 137 validation images: Recall@1 moves in steps of 0.7 points
    ),
    "paper": Check(
        "ResNet-50, 512 dimensions, proxy-anchor, 224 px, 40 epochs: for a GPU", BENCHES["cub_224"][1].base, (0, 1, 2)
    ),
    "smoke": Check(
        NOTHING,
        replace(BENCHES["synthetic"][1].base, model=ModelConfig(backbone="resnet10t", weights="none")),
        (0, 1),
        ("frozen", "standard", "l2sp", "layerwise_decay"),
        trials=2,
    ),
}
"""By profile. ``paper`` is of CUB; ``--dataset cars`` or ``sop`` makes it one of another set. What it costs, estimated and not measured:
images = 11 strategies that train x (50 trials x 40 epochs x 0.8 N + 3 seeds x 40 epochs x N), N training images. CUB (5,864): 111 million,
77 GPU hours at an assumed 400 images per second; Cars (8,054): 152 million, 106 hours; SOP (59,551): 1,127 million, 782 hours. Evaluation
and networks that cost more than the plain backbone come on top."""
