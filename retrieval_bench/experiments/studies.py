"""All studies by name. To add one: describe it in the file of its paper, then list that file here."""

from __future__ import annotations

from retrieval_bench.experiments import autolr, pruning, spottune
from retrieval_bench.experiments.study import Study

STUDIES: dict[str, Study] = {**autolr.STUDIES, **spottune.STUDIES, **pruning.STUDIES}
