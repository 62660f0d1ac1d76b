"""``docs/strategies.md``, made of the registry: ``make strategies-page`` writes it.

Ideas and sources are from the docstrings of the strategies' files; what is trained and what it costs is counted in the
five epochs of a tiny network that the shared suite (``test_registry.py``) trains anyway.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from retrieval_bench.cost import macs, parameters
from retrieval_bench.data.catalog import open_dataset
from retrieval_bench.models.embedder import Embedder
from retrieval_bench.strategies import STRATEGIES
from retrieval_bench.tables import TextTable
from retrieval_bench.training.loop import Training
from tests.training.helpers import SIDE, embedder_for

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
HEAD = """# Strategies

Made by `make strategies-page` from the files in `retrieval_bench/strategies/`; the command `strategies` lists their
options, and `+` combines them. The numbers are shares of standard fine-tuning, counted with the default options
(pruning to 90 %) on a tiny network in five epochs: parameters that are trained at the end, beside the loss's own;
parameters and multiply-accumulates of the network that is deployed; images seen, with all passes that were rejected
or came before the training. On another network they are others.

"""
SENTENCE = re.compile(r"(?<=[.;])\s+(?=[A-Z])|\n\n")
CITATION = re.compile(r".*?\([^()]*(?:\b(?:19|20)\d\d\b|arXiv)[^()]*\)", re.DOTALL)


def idea(name: str) -> tuple[str, str]:
    """The first line of a strategy's docstring, and its first citation: of a sentence what ends in a bracket with a
    year or an arXiv number; empty where nobody is cited."""
    text = inspect.getdoc(inspect.getmodule(STRATEGIES[name])) or ""
    first, _, rest = text.partition("\n")
    cited = filter(None, map(CITATION.match, SENTENCE.split(rest)))
    source = next((" ".join(match[0].split()).lstrip("- ") for match in cited), "")
    return first.rstrip("."), re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def line_of(name: str, training: Training, finished: Embedder) -> dict[str, str]:
    """A strategy's row, from its training in the shared suite and the network that is deployed."""
    plain, groups = embedder_for(name), training.optimizer.param_groups
    trained = sum(value.numel() for group in groups if group["name"] != "loss" for value in group["params"])
    shares = {
        "trained": trained / parameters(plain),
        "parameters": parameters(finished) / parameters(plain),
        "MACs": macs(finished, SIDE) / macs(plain, SIDE),
        "images seen": training.images_seen / (5 * 64),
    }
    first, source = idea(name)
    numbers = {key: f"{100 * share:.3g} %" for key, share in shares.items()}
    return {"name": f"`{name}`", "idea": first, **numbers, "source": source}


def table(lines: list[dict[str, str]]) -> str:
    return TextTable("", pd.DataFrame(lines)).to_markdown()


def cells(row: str) -> list[str]:
    """What stands between the bars of a table's row."""
    return [cell.strip("| ") for cell in row.split(" | ")]


def write(train: Any) -> None:
    """Writes the page; `train` is the shared suite's."""
    torch.set_num_threads(1)
    outcomes = {name: train(open_dataset("synthetic", None), name) for name in STRATEGIES}
    lines = [line_of(name, outcome.training, outcome.finished) for name, outcome in outcomes.items()]
    PAGE.write_text(f"{HEAD}{table(lines)}\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    from tests.strategies import test_registry

    write(test_registry.train)
