"""How much memory a campaign takes for a number of rows: the operator against a naive implementation.

    python -m benchmarks.memory [--rows N ...]

Each figure is the peak resident memory (``VmHWM``) of a fresh process, which imports Airflow's SDK and both sides
before it begins. The rows are in a SQLite file; the sandbox runs in a separate process.

operator    ``SqlToRunaOperator.execute``: streams the rows, plans them in a SQLite ledger, pays and settles every
            order, returns the summary
naive       ``fetchall``, all orders built with ``json.dumps``, sent with ``httpx`` one after the other; no ledger

Both pay all rows, in orders of 200. The sandbox has no rate limit. At Runa, 200,000 rows are 1,000 orders, which take
more than three minutes at an account's rate limit. Exits non-zero if the peak of the operator grows by more than 20 %
from the second size (10,000 rows) to the last (200,000). With the defaults it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.sandbox import start_sandbox

LIMIT = 1.2  # peak with the last size / peak with the second
UNLIMITED = 10_000_000  # orders per minute
SIDES = ("operator", "naive")
SQL = "SELECT customer, reward, email FROM winners"


def fill(path: Path, count: int) -> None:
    """Write the source: a table with ``count`` rows."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE winners (customer TEXT, reward INTEGER, email TEXT)")
        rows = ((f"customer-{n}", 1 + n % 5, f"customer-{n}@example.com") for n in range(count))
        connection.executemany("INSERT INTO winners VALUES (?, ?, ?)", rows)
    connection.close()


# -- a side: runs in a separate process ------------------------------------------------------------------------------


def peak() -> float:
    """Return the peak memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def run_side(side: str, url: str, api_key: str, folder: Path) -> dict[str, Any]:
    """Pay all rows of the source; return peak and duration."""
    import httpx

    from airflow_provider_runa.transfers.sql_to_runa import SqlToRunaOperator
    from tests.support.airflow import task_context

    before, began = peak(), time.perf_counter()
    if side == "operator":
        task = SqlToRunaOperator(
            task_id="pay",
            campaign="bench",
            sql=SQL,
            source_conn_id="source",
            columns={"recipient_key": "customer", "face_value": "reward", "email_address": "email"},
            currency="USD",
            ledger_conn_id="ledger",
            defaults={"product": "AMZ-US"},
        )
        task.execute(task_context())
    else:
        with sqlite3.connect(folder / "source.db") as connection:
            rows = connection.execute(SQL).fetchall()
        items = [
            {
                "face_value": reward,
                "distribution_method": {"type": "EMAIL", "email_address": email},
                "products": {"type": "SINGLE", "value": "AMZ-US"},
            }
            for _, reward, email in rows
        ]
        payment = {"type": "ACCOUNT_BALANCE", "currency": "USD"}
        bodies = [
            json.dumps({"payment_method": payment, "items": items[start : start + 200]})
            for start in range(0, len(items), 200)
        ]
        headers = {"X-Api-Key": api_key, "X-Api-Version": "2024-02-05", "Content-Type": "application/json"}
        with httpx.Client(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
            for number, body in enumerate(bodies):
                http.post("/order", content=body, headers={"X-Idempotency-Key": str(number)}).raise_for_status()
    return {"before": before, "peak": peak(), "seconds": time.perf_counter() - began}


# -- all sides -------------------------------------------------------------------------------------------------------


def measure(side: str, count: int) -> dict[str, Any]:
    """Run a side in a fresh process against a fresh sandbox."""
    limits = ("--orders-per-minute", str(UNLIMITED), "--processing-delay", "0", "--balance", "USD=1000000000")
    with tempfile.TemporaryDirectory(prefix="runa-bench-") as name, start_sandbox(*limits) as sandbox:
        folder = Path(name)
        fill(folder / "source.db", count)
        runa = json.loads(sandbox.connection) | {"extra": {"orders_per_minute": UNLIMITED}}
        env = {
            **os.environ,
            "AIRFLOW_HOME": name,
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
            "AIRFLOW_CONN_RUNA_DEFAULT": json.dumps(runa),
            "AIRFLOW_CONN_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(folder / "ledger.db")}),
            "AIRFLOW_CONN_SOURCE": json.dumps({"conn_type": "sqlite", "host": str(folder / "source.db")}),
        }
        command = [sys.executable, "-m", "benchmarks.memory", "--side", side, sandbox.url, sandbox.api_key, name]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise SystemExit(f"{side}, {count} rows: {done.stderr[-3000:]}")
        payouts = sandbox.stats()["payouts"]
        if payouts != count:
            raise SystemExit(f"{side}: {payouts} payouts instead of {count}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [1000, 10_000, 50_000, 200_000]
    parser.add_argument("--rows", type=int, nargs="+", default=sizes, help="default 1000 10000 50000 200000")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, url, api_key, folder = options.side
        print(json.dumps(run_side(side, url, api_key, Path(folder))))
        return 0

    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    print(f"{'rows':>10}" + "".join(f"{side + ', MB':>14}{'MB added':>10}{'s':>8}" for side in SIDES) + f"{'ratio':>8}")
    for count in options.rows:
        line = f"{count:>10}"
        for side in SIDES:
            result = measure(side, count)
            peaks[side].append(result["peak"])
            added = result["peak"] - result["before"]
            line += f"{result['peak']:>14.1f}{added:>10.1f}{result['seconds']:>8.1f}"
        print(f"{line}{peaks['naive'][-1] / peaks['operator'][-1]:>8.2f}", flush=True)
    if len(options.rows) < 3:
        return 0
    small, large = options.rows[1], options.rows[-1]
    for side in SIDES:
        print(f"{side}: peak with {large} rows / with {small} rows: {peaks[side][-1] / peaks[side][1]:.2f}")
    print(f"limit for the operator: {LIMIT}")
    return 0 if peaks["operator"][-1] / peaks["operator"][1] <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
