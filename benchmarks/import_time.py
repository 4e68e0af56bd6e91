"""What importing the operator costs on top of ``import airflow.sdk``, against the HTTP provider's operator.

    python benchmarks/import_time.py [--runs N]

Each import runs in a fresh interpreter, the two sides in turn, so that both run under the same conditions. Import time
matters in a DAG processor, which imports a provider for every file that uses it. Prints the median of each side in
seconds and their ratio. Exits non-zero if the median of the operator is above the limit.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

LIMIT = 0.1  # seconds

SIDES = {
    "runa": "from airflow_provider_runa.operators.runa import RunaCreateOrderOperator",
    "http": "from airflow.providers.http.operators.http import HttpOperator",
}

PROGRAM = """
import time
import airflow.sdk
from airflow.sdk import BaseOperator  # airflow.sdk loads this only on first use, and every DAG uses it
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""


def measure(statement: str) -> float:
    """Return how long a statement takes in a fresh interpreter, in seconds, on top of ``airflow.sdk``."""
    program = PROGRAM.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> int:
    """Measure both sides in turn and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="runs of each side (default 7)")
    runs = parser.parse_args().runs
    for statement in SIDES.values():
        measure(statement)  # compiles the modules and warms the file cache
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side, statement in SIDES.items():
            times[side].append(measure(statement))
    medians = {side: statistics.median(values) for side, values in times.items()}
    for side, values in times.items():
        print(f"{side}: median {medians[side]:.3f} s, min {min(values):.3f} s, max {max(values):.3f} s ({runs} runs)")
    print(f"ratio runa / http: {medians['runa'] / medians['http']:.2f}; limit for runa {LIMIT} s")
    return 0 if medians["runa"] <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
