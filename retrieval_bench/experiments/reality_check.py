"""The Reality Check: strategies whose options were searched with equal effort, trained anew with several seeds, and
ranked with tests.

After Musgrave, Belongie and Lim, A Metric Learning Reality Check (ECCV 2020), who did it for losses: choices are made
on validation classes inside the training classes, all with the same effort, and the test classes are used once.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_bench.columns import column
from retrieval_bench.config import unflatten
from retrieval_bench.errors import UserError
from retrieval_bench.experiments.benchmarks import CUB_224, SYNTHETIC
from retrieval_bench.experiments.experiment import DRAWN, Experiment, Profile, Row
from retrieval_bench.experiments.strategy_search import StrategySearch, run_command
from retrieval_bench.experiments.strategy_table import ABOUT_EMOJI, COMPARED, FEW_EMOJI, OWN
from retrieval_bench.records import ResultsFolder, read_record

STRATEGIES = (*COMPARED, "layer_pruning+autolr")
_BUDGETS = {f"options.{name}.budget": 0.9 for name in ("channel_gates", "channel_pruning", "network_slimming")}
EXPERIMENTS = {
    "reality_check": Experiment(
        "strategies whose options were searched with equal effort, trained anew, tested once, and ranked with tests",
        {
            "cpu": Profile(
                f"{ABOUT_EMOJI}, pruning that leaves 90 % of the MACs",
                unflatten(_BUDGETS, FEW_EMOJI),
                (0, 1, 2, 3, 4),
                {"strategy": STRATEGIES},
                trials=6,
                own=OWN,
                objective="map_at_r",  # 137 validation images: Recall@1 moves in steps of 0.7 points
            ),
            "paper": Profile(
                "ResNet-50, 512 dimensions, proxy-anchor, 224 px, 40 epochs: for a GPU",
                CUB_224,
                (0, 1, 2),
                {"strategy": STRATEGIES},
                trials=50,
                own=OWN,
            ),
            "smoke": Profile(
                DRAWN,
                SYNTHETIC.changed(model__backbone="resnet10t"),
                (0, 1),
                {"strategy": ("frozen", "standard", "l2sp", "layerwise_decay")},
                trials=2,
            ),
        },
    )
}
"""``paper`` is of CUB; ``--dataset cars`` or ``sop`` makes it one of another set. What it costs, estimated and not
measured: images = 50 trials x 40 epochs x 0.8 N + 3 seeds x 40 epochs x N for every strategy that trains, N training
images. CUB (5,864): 10.1 million each, 7 GPU hours at an assumed 400 images per second; Cars (8,054): 13.9 million, 10
hours; SOP (59,551): 102 million, 71 hours. Evaluation and networks that cost more than the plain backbone come on
top."""


def searched_rows(searches: Sequence[StrategySearch]) -> tuple[list[Row], tuple[str, ...]]:
    """What each search chose, and the commands of the choices as Markdown.

    Raises:
        UserError: every trial of all searches failed.
    """
    rows = [row for search in searches if (row := search.row) is not None]
    if not rows:
        error = searches[0].trials[0].user_attrs["error"]
        raise UserError(f"every trial failed ({error}); {searches[0].path} remembers: remove it to try again")
    commands = "\n".join(f"- {row.name}: `{run_command(row.config)}`" for row in rows)
    return rows, ("Chosen:", commands)


def search_note(search: StrategySearch, seeds: Sequence[int], results: ResultsFolder) -> str:
    """How it was searched and tested, in words.

    Args:
        search: any of them.
        seeds: of the choices.
        results: of the trials.
    """
    record = next(trial.user_attrs["record"] for trial in search.trials if trial.user_attrs["record"])
    data = read_record(results.record(record)).data
    trials = search.budget
    return (
        f"Search: {trials} trials or the images that {trials} plain runs see ({search.budget_images:,}) for "
        "every strategy, whichever comes first; the first trial has the usual values, then a tree-structured Parzen "
        f"estimator proposes. Scored by {column(search.objective).title} on {data['test_classes']} validation classes "
        f"({data['test_images']} images) inside the training classes, trained on the others, one seed. The test "
        "classes were not used. Trials are in search/. The choices are trained on all training classes with seeds "
        f"{', '.join(map(str, seeds))} and tested once; p: paired t-test over seeds against the best row, "
        "Holm-corrected over the rows; =: not significantly different from it (p at least 0.05). Runs may have shared "
        "the machine: do not compare their seconds."
    )
