"""Speed scripts, outside the package; ``make help`` lists them (bench-eval, bench-data, bench-train, ...)."""

import retrieval_bench  # noqa: F401 (before torch, since it says how torch's threads wait)
