"""`run_benchmark`: runs a benchmark by its name."""

from __future__ import annotations

import importlib

from carls_jax.bench.report import Report


def run_benchmark(name: str, *, is_quick: bool = False) -> Report:
    """Runs one of `BENCHMARKS`; quickly: on next to no rows, to see that it runs."""
    benchmark = importlib.import_module(f"carls_jax.bench.{name}")
    report: Report = benchmark.run(benchmark.QUICK if is_quick else benchmark.Scale())
    return report
