"""Speed scripts, outside the package; ``make help`` lists them (bench-eval, bench-data, bench-train, ...)."""
