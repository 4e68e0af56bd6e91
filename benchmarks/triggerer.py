"""What waiting costs a triggerer: RunaOrderTrigger against the HTTP provider's HttpEventTrigger, one per order.

    python benchmarks/triggerer.py [--orders N] [--interval SECONDS] [--cycles N]

The orders wait in a local sandbox. Each side has a separate sandbox and process. Real triggers run on a real event
loop, one task per trigger as in a triggerer. Three sides wait with the same interval: one RunaOrderTrigger per
order, one for all orders, and one HttpEventTrigger per order. After a warm-up of 1.5 intervals, the benchmark counts
over some cycles. Then all orders are settled, and every trigger must fire. The figures:

requests    requests to the sandbox, per cycle
busy        CPU time of the event loop's thread, in seconds per cycle, and as a share of the time
lag         how late a task wakes that sleeps 50 ms at a time: median, 99th percentile, longest
memory      memory of the process above its memory before the triggers started, in MB

Exits non-zero if one of Runa's sides needs more than the limits: requests per cycle, and share of the event loop's
time. With the defaults it takes a little more than two minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
API_KEY = "XXsandbox.secret"

MAX_REQUESTS = 5.0  # per cycle
MAX_SHARE = 0.05  # of the event loop's time

PROCESSING = 1_000_000.0  # seconds of the sandbox's clock until an order is settled

RUNA_EACH, RUNA_ALL, HTTP = "runa, one each", "runa, one for all", "http, one each"
SIDES = (RUNA_EACH, RUNA_ALL, HTTP)


# -- a side: runs in a separate process ------------------------------------------------------------------------------


def make_triggers(side: str, order_ids: Sequence[str], interval: float) -> list[Any]:
    """Return the triggers of a side."""
    if side == HTTP:
        from airflow.providers.http.triggers.http import HttpEventTrigger

        return [
            HttpEventTrigger(
                response_check_path="http_check.is_settled",
                http_conn_id="runa_http",
                endpoint=f"v2/order/{order_id}",
                poll_interval=interval,
            )
            for order_id in order_ids
        ]
    from airflow_provider_runa.triggers.runa import RunaOrderTrigger

    groups = [order_ids] if side == RUNA_ALL else [[order_id] for order_id in order_ids]
    return [RunaOrderTrigger(group, poll_interval=interval) for group in groups]


async def measure(side: str, order_ids: Sequence[str], interval: float, cycles: int, url: str) -> dict[str, Any]:
    """Run the triggers of a side and return what they cost."""
    triggers = make_triggers(side, order_ids, interval)
    memory = resident()
    tasks = []
    for trigger in triggers:
        tasks.append(asyncio.create_task(drain(trigger)))
        await asyncio.sleep(0)  # as the triggerer does
    async with httpx.AsyncClient(base_url=f"{url}/_sandbox", trust_env=False, timeout=30) as control:
        # Half an interval beyond the first cycle, so that no cycle is cut in two.
        await asyncio.sleep(interval * 1.5)
        lags: list[float] = []
        ticker = asyncio.create_task(tick(lags))
        requests, cpu, began = await count_requests(control), time.thread_time(), time.perf_counter()
        await asyncio.sleep(interval * cycles)
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - began
        requests = await count_requests(control) - requests
        ticker.cancel()
        memory = resident() - memory
        (await control.post("/advance", json={"seconds": 2 * PROCESSING})).raise_for_status()
    await asyncio.wait_for(asyncio.gather(*tasks), interval * 2 + 30)
    lags.sort()
    return {
        "requests": requests / cycles,
        "cpu": cpu / cycles,
        "share": cpu / wall,
        "lag": [statistics.median(lags) * 1000, lags[len(lags) * 99 // 100] * 1000, lags[-1] * 1000],
        "memory": memory / 1e6,
    }


async def drain(trigger: Any) -> None:
    """Run a trigger to its end, and check that it fired."""
    if not [event async for event in trigger.run()]:
        raise RuntimeError("a trigger ended without an event")


async def tick(lags: list[float]) -> None:
    """Record repeatedly how late this task wakes, in seconds."""
    while True:
        wanted = time.perf_counter() + 0.05
        await asyncio.sleep(0.05)
        lags.append(time.perf_counter() - wanted)


async def count_requests(control: httpx.AsyncClient) -> int:
    """Return how many read requests the sandbox has answered."""
    requests = (await control.get("/stats")).json()["requests"]
    return int(requests.get("GET /order", 0) + requests.get("GET /order/{id}", 0))


def resident() -> int:
    """Return the resident memory of the process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- both sides ------------------------------------------------------------------------------------------------------


@contextmanager
def start_sandbox() -> Iterator[str]:
    """Run a sandbox whose orders stay PROCESSING; yield its address."""
    command = [sys.executable, "-m", "airflow_provider_runa.sandbox", "--port", "0", "--orders-per-minute", "1000000"]
    command += ["--processing-delay", str(PROCESSING)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1].removesuffix("/v2")
    finally:
        process.terminate()
        process.wait(10)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of the other processes, with this project first in the path."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}", "PYTHONUNBUFFERED": "1", **more}


async def place(url: str, count: int) -> list[str]:
    """Place orders and return their ids."""
    from airflow_provider_runa.api.client import AsyncRunaClient
    from airflow_provider_runa.api.models import NewOrder

    payout = {"face_value": 10, "distribution_method": {"type": "PAYOUT_LINK"}}
    order = NewOrder.build(currency="USD", items=[{**payout, "products": {"type": "SINGLE", "value": "AMZ-US"}}])
    async with AsyncRunaClient(API_KEY, base_url=f"{url}/v2", orders_per_minute=1_000_000) as client:
        return [(await client.create_order(order, idempotency_key=f"bench-{number}")).id for number in range(count)]


def run_side(side: str, job: dict[str, Any], url: str) -> dict[str, Any]:
    """Measure one side in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="airflow-home-") as home:
        env = environment(
            AIRFLOW_HOME=home,
            AIRFLOW__CORE__LOAD_EXAMPLES="False",
            AIRFLOW__LOGGING__LOGGING_LEVEL="WARNING",
            AIRFLOW_CONN_RUNA_DEFAULT=json.dumps({"conn_type": "runa", "password": API_KEY, "host": f"{url}/v2"}),
            AIRFLOW_CONN_RUNA_HTTP=json.dumps(
                {"conn_type": "http", "host": url, "extra": {"X-Api-Key": API_KEY, "X-Api-Version": "2024-02-05"}}
            ),
        )
        command = [sys.executable, __file__, "--side", side]
        limit = job["interval"] * (job["cycles"] + 4) + 90
        done = subprocess.run(
            command, input=json.dumps({**job, "url": url}), capture_output=True, text=True, env=env, timeout=limit
        )
    if done.returncode != 0:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict[str, dict[str, Any]], interval: float) -> str:
    """Return the results as lines of text; the last column is the HTTP side against one RunaOrderTrigger per order."""

    def row(name: str, cells: list[str]) -> str:
        return f"{name:<28}" + "".join(f"{cell:>20}" for cell in cells)

    def figures(name: str, of: Any, form: str) -> str:
        values = {side: of(result) for side, result in results.items()}
        ours, theirs = values[RUNA_EACH], values[HTTP]
        ratio = f"{theirs / ours:.1f}" if ours > 0 else "-"
        return row(name, [*(format(value, form) for value in values.values()), ratio])

    return "\n".join(
        [
            row("", [*results, "http / runa each"]),
            figures("requests per cycle", lambda result: result["requests"], ".1f"),
            figures("busy, s per cycle", lambda result: result["cpu"], ".3f"),
            figures(f"busy, % of {interval:g} s", lambda result: result["share"] * 100, ".2f"),
            figures("lag, median, ms", lambda result: result["lag"][0], ".2f"),
            figures("lag, 99th percentile, ms", lambda result: result["lag"][1], ".2f"),
            figures("lag, longest, ms", lambda result: result["lag"][2], ".1f"),
            figures("memory, MB", lambda result: result["memory"], ".1f"),
        ]
    )


def main() -> int:
    """Measure all sides and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=1000, help="orders that wait (default 1000)")
    parser.add_argument("--interval", type=float, default=10.0, help="seconds between polls, at least 5 (default 10)")
    parser.add_argument("--cycles", type=int, default=2, help="cycles that are counted (default 2)")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        job = json.load(sys.stdin)
        print(json.dumps(asyncio.run(measure(options.side, **job))))
        return 0

    results = {}
    for side in SIDES:
        with start_sandbox() as url:
            order_ids = asyncio.run(place(url, options.orders))
            job = {"order_ids": order_ids, "interval": options.interval, "cycles": options.cycles}
            results[side] = run_side(side, job, url)
    print(f"{options.orders} orders, interval {options.interval:g} s, {options.cycles} cycles, {os.cpu_count()} CPUs")
    print(table(results, options.interval))
    worst_requests = max(results[side]["requests"] for side in (RUNA_EACH, RUNA_ALL))
    worst_share = max(results[side]["share"] for side in (RUNA_EACH, RUNA_ALL))
    print(f"limits for runa: {MAX_REQUESTS:g} requests per cycle, {MAX_SHARE:.0%} of the loop")
    return 0 if worst_requests <= MAX_REQUESTS and worst_share <= MAX_SHARE else 1


if __name__ == "__main__":
    raise SystemExit(main())
