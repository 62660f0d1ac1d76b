"""All experiments by name. To add one: describe it in the file of its paper, then list that file here."""

from __future__ import annotations

from retrieval_bench.experiments import autolr, loss_table, pruning, reality_check, spottune, strategy_table
from retrieval_bench.experiments.benchmarks import BENCHMARKS
from retrieval_bench.experiments.experiment import Experiment

EXPERIMENTS: dict[str, Experiment] = {
    **BENCHMARKS,
    **autolr.EXPERIMENTS,
    **spottune.EXPERIMENTS,
    **strategy_table.EXPERIMENTS,
    **loss_table.EXPERIMENTS,
    **pruning.EXPERIMENTS,
    **reality_check.EXPERIMENTS,
}
