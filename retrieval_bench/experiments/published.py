"""Published figures, which nobody measured here: those that studies reproduce, and the field's headline Recall@1 (``published.csv``)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

HEADLINES = Path(__file__).with_name("published.csv")


def quoted_rows(datasets: Collection[str]) -> pd.DataFrame:
    """Quoted rows about these data sets.

    Columns: ``dataset``, ``split``, ``backbone``, ``dim`` (empty where unknown), ``loss``, ``strategy`` (method or row of the source), the
    metrics as fractions, and ``quoted`` (the source). Settings differ from row to row and from what is measured here.
    """
    import pandas as pd

    rows: Any = pd.DataFrame([*_from_studies(), *_headlines()])
    return rows[rows["dataset"].isin(list(datasets))].reset_index(drop=True)


def _from_studies() -> list[dict[str, object]]:
    """The quoted values of studies, in the paper's own setting."""
    from retrieval_bench.experiments.studies import STUDIES

    found = []
    for study in STUDIES.values():
        rows = study.rows(study.profiles["paper"].base) if study.source and "paper" in study.profiles else []
        for row in rows:
            config = row.config
            about = {
                "dataset": config.data.dataset,
                "split": config.data.split,
                "backbone": config.model.backbone,
                "dim": None,
            }
            metrics = {name: round(value / 100, 6) for name, value in row.quoted.items()}
            if metrics:
                found.append(
                    about | {"loss": config.loss.loss, "strategy": row.name} | metrics | {"quoted": study.source}
                )
    return found


def _headlines() -> list[dict[str, object]]:
    import pandas as pd

    table: Any = pd.read_csv(HEADLINES)
    found = []
    for dataset in ("cub", "cars", "sop", "inshop"):
        for line in table[table[dataset].notna()].to_dict("records"):
            about = {
                "dataset": dataset,
                "split": "zero_shot",
                "backbone": line["backbone"],
                "dim": line["dim"],
                "loss": "",
            }
            source = f"Quoted: {line['source']}."
            found.append(
                about | {"strategy": line["method"], "recall_at_1": round(line[dataset] / 100, 6), "quoted": source}
            )
    return found
