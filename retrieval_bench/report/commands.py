"""The commands that look at records: two runs side by side, and the report."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from retrieval_bench.comparison import compare, to_lines
from retrieval_bench.errors import UserError
from retrieval_bench.files import check_writable
from retrieval_bench.progress import logger
from retrieval_bench.records import ResultsFolder, finite
from retrieval_bench.report.page import write_report

Output = Annotated[Path | None, tyro.conf.arg(aliases=["-o"])]


@dataclass(frozen=True)
class Compare:
    """Compare two runs, or two configurations over their seeds: metrics with intervals and p-values, queries won and
    lost, choices."""

    first: tyro.conf.Positional[str]
    """id of a run (or the beginning of one, or its file), or the hash of a configuration (all its seeds)"""
    second: tyro.conf.Positional[str]
    """the other"""
    results: Path = Path("results/local")
    """folder that holds runs/"""
    json: bool = False
    """print JSON"""

    def execute(self) -> None:
        comparison = compare(self.first, self.second, ResultsFolder(self.results).existing())
        as_json = json.dumps(finite(asdict(comparison)), allow_nan=False, default=float)
        print(as_json if self.json else "\n".join(to_lines(comparison)))


@dataclass(frozen=True)
class Report:
    """Write one HTML file with tables, figures and galleries that opens in any browser, without a network."""

    results: Path = Path("results/local")
    """folder that holds runs/ and details/"""
    output: Output = None
    """the file; <results>/report.html by default"""
    title: str = "Which way of fine-tuning gives the best retrieval embeddings?"
    """of the page"""
    megabytes: float = 15.0
    """size of the page; galleries and figures that do not fit are left out, those of the best rows last"""

    def execute(self) -> None:
        results = ResultsFolder(self.results).existing()
        if not 1 <= self.megabytes < math.inf:
            raise UserError(f"--megabytes {self.megabytes}: give 1 or more")
        output = self.output or self.results / "report.html"
        if output.is_dir():
            raise UserError(f"{output}: is a folder; name a file")
        check_writable(output.parent, "--output")
        made = write_report(results, output, self.title, self.megabytes)
        counts = f"{made['configurations']} configurations, {made['figures']} figures, {made['galleries']} galleries"
        logger.info(f"{output}: {counts}, {made['bytes'] / 1e6:.1f} MB")
        if made["left_out"]:
            left_out = f"{made['left_out']} figures or galleries did not fit and are left out"
            logger.info(f"{left_out}; --megabytes raises the limit")
