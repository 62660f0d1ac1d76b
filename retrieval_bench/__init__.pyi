"""Types of the public API."""

from retrieval_bench.config import RunConfig as RunConfig
from retrieval_bench.config import RuntimeConfig as RuntimeConfig
from retrieval_bench.deploy.saved import load_embedder as load_embedder
from retrieval_bench.evaluation.evaluate import evaluate as evaluate
from retrieval_bench.leaderboard import leaderboard as leaderboard
from retrieval_bench.records import Record as Record
from retrieval_bench.records import load_records as load_records
from retrieval_bench.run import run as run

__version__: str
