"""A campaign in a real Airflow: RunaPayoutOperator against a POST task and a sensor for each reward.

    python -m benchmarks.campaign [--rewards N ...] [--mapped N] [--slots N]

One Airflow (LocalExecutor, SQLite) and one sandbox, reset before each run. The sandbox accepts Runa's 300 orders a
minute and holds each order for a second. There are two DAGs, in benchmarks/dags/:

operator    one task with ``RunaPayoutOperator``, deferrable, for all rewards: plan, ledger, orders of 200, waiting
mapped      the HTTP provider's ``HttpOperator`` (POST with an idempotency key) and ``HttpSensor`` (reschedule mode),
            each mapped over the rewards: two task instances for each, and no ledger

The operator pays all rewards. The mapped side pays as many as take some minutes. Its time for more rewards is
extrapolated from the time per reward, and marked with ``~``. Beyond Airflow's ``max_map_length`` of 1,024 the mapped
side would need several runs. Times are from the start to the end of the DAG run, scheduling included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.airflow_stack import FINISHED, AirflowStack
from scripts.demo import stop_on_signals
from tests.support.sandbox import RunningSandbox, start_sandbox

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1200  # seconds, for one run


def run(airflow: AirflowStack, sandbox: RunningSandbox, dag_id: str, count: int) -> dict[str, float]:
    """Run a DAG for a number of rewards; return its duration and the number of requests to the sandbox."""
    print(f"{dag_id}: {count} rewards …", file=sys.stderr, flush=True)
    sandbox.reset()
    run_id = airflow.trigger(dag_id, {"count": count})
    deadline = time.monotonic() + LONGEST
    shown: dict[str, Any] = {"state": "queued"}
    while shown["state"] not in FINISHED:
        if time.monotonic() > deadline:
            raise SystemExit(f"not done after {LONGEST} s\n{airflow.explain(dag_id, run_id)}")
        time.sleep(2)
        try:
            shown = airflow.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")
        except RuntimeError as error:  # SQLite has one writer, and Airflow answers 500 after a long wait
            print(error, file=sys.stderr)
    stats = sandbox.stats()
    if shown["state"] != "success" or stats["payouts"] != count:
        raise SystemExit(f"{shown['state']}, {stats['payouts']} payouts\n{airflow.explain(dag_id, run_id)}")
    began, ended = (datetime.fromisoformat(shown[name]) for name in ("start_date", "end_date"))
    return {"seconds": (ended - began).total_seconds(), "requests": sum(stats["requests"].values())}


def line(side: str, count: int, seconds: float, requests: float, mark: str = "") -> str:
    """Return a line of the table."""
    cells = [f"{mark}{seconds:.1f}", f"{mark}{requests:.0f}", f"{mark}{count / seconds:.1f}"]
    return f"{side:<10}{count:>9}" + "".join(f"{cell:>14}" for cell in cells)


def main() -> int:
    """Measure both sides and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewards", type=int, nargs="+", default=[1000, 10_000], help="default 1000 10000")
    parser.add_argument("--mapped", type=int, default=100, help="rewards of the mapped side (default 100)")
    parser.add_argument("--slots", type=int, default=8, help="tasks that Airflow runs at once (default 8)")
    options = parser.parse_args()
    stop_on_signals()
    with tempfile.TemporaryDirectory(prefix="runa-bench-") as name, start_sandbox() as sandbox:
        home = Path(name)
        headers = {"X-Api-Key": sandbox.api_key, "X-Api-Version": "2024-02-05"}
        host = sandbox.url.removesuffix("/v2")
        env = {
            "PYTHONPATH": str(ROOT),
            "AIRFLOW_CONN_RUNA_DEFAULT": sandbox.connection,
            "AIRFLOW_CONN_RUNA_HTTP": json.dumps({"conn_type": "http", "host": host, "extra": headers}),
            "AIRFLOW_CONN_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(home / "ledger.db")}),
            "AIRFLOW__CORE__PARALLELISM": str(options.slots),
        }
        with AirflowStack(home / "airflow", ROOT / "benchmarks" / "dags", env) as airflow:
            run(airflow, sandbox, "bench_operator", 1)  # the very first run waits for parsing and imports
            ours = {count: run(airflow, sandbox, "bench_operator", count) for count in options.rewards}
            theirs = run(airflow, sandbox, "bench_mapped", options.mapped)
    print(f"{options.slots} slots; ~: extrapolated from {options.mapped} rewards")
    print(f"{'':<10}{'rewards':>9}{'s':>14}{'requests':>14}{'rewards a s':>14}{'mapped / operator':>20}")
    print(line("mapped", options.mapped, **theirs))
    for count, mine in ours.items():
        other = {name: value / options.mapped * count for name, value in theirs.items()}
        print(line("mapped", count, **other, mark="~"))
        print(line("operator", count, **mine) + f"{'~' + format(other['seconds'] / mine['seconds'], '.0f'):>20}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
