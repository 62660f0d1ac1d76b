"""The command ``run``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_bench.config import Flat, RunConfig, RuntimeConfig, recorded_config
from retrieval_bench.errors import UserError
from retrieval_bench.leaderboard import leaderboard, print_table
from retrieval_bench.parsing import ask
from retrieval_bench.progress import logger
from retrieval_bench.records import read_record
from retrieval_bench.run import run


@dataclass(frozen=True)
class Run:
    """Train and evaluate one configuration, and record it.

    ``--config FILE`` takes the configuration of a record (``results/runs/<id>.json``), ``--preset NAME`` a
    backbone with flags that suit it (an unknown name lists them); other flags change them.
    """

    config: Annotated[RunConfig, Flat] = field(default_factory=RunConfig)
    runtime: Annotated[RuntimeConfig, Flat] = field(default_factory=partial(RuntimeConfig, keep_new=True))
    source: tyro.conf.Suppress[str] = ""
    """id of the record that --config named"""

    def execute(self) -> None:
        record = run(self.config, self.runtime)
        if self.source and record.id != self.source:
            logger.info(
                f"{record.id} is another run than {self.source}: flags, data, weights or code differ "
                "(`compare` shows how)"
            )
        print_table(leaderboard([record]))


def read_run(words: Sequence[str]) -> Run:
    """The command from its words."""
    words, record = list(words), None
    for place, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] if "=" in word else "".join(words[place + 1 : place + 2])
            if not name or name.startswith("--"):
                raise UserError("--config: give the file of a record, <results>/runs/<id>.json")
            record = read_record(Path(name))
            words[place : place + (1 if "=" in word else 2)] = []
            break
    if record is None:
        return ask(Run, words, "run")
    config = recorded_config(record.config, record.labels.get("weights", "imagenet"))
    return ask(Run, words, "run", Run(config, source=record.id))
