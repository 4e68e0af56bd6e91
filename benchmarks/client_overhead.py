"""What the client and the ledger cost: a campaign against a bare httpx loop that sends the same orders.

    python -m benchmarks.client_overhead [--rewards N] [--latency SECONDS] [--runs N]

The sandbox runs in a separate process, with its limit of orders per minute lifted; orders are COMPLETED at once. All
sides run in this process, in turn, with the same headers, bodies and concurrency, each against an empty sandbox:

bare        ``httpx.AsyncClient.post`` of prepared bodies, and ``json()`` of the answers: the minimum
bare, read  the same, and then one GET for each order, parsed with ``json()``: a client that needs the items must do it
client      ``AsyncRunaClient.create_order`` of prepared orders: bodies, headers, pace, checks of the answers
pay         ``campaign.pay`` of a planned campaign: the client, placing each order once, and the ledger (SQLite in a
            file), which is read before each request and written before and after it
operator    ``RunaPayoutOperator.execute`` from rows to the summary: plan, balance, pay, settle (reads each order)

Each side runs with and without latency. Without latency only CPU time counts, and the sandbox uses CPU time of the same
machine. With latency, answers take time, like those of any API over the internet. ``wall`` and ``CPU`` are seconds of
this process, medians of the runs; ``/ bare`` is the median of the ratios of each run. At Runa, 50 orders take 10 s at
the rate limit of 300 orders a minute; no side waits for that here.

Exits non-zero if ``client`` takes more than 1.1 times the wall time of ``bare`` with latency. ``pay`` has no limit: the
benchmark only shows the cost of a ledger that survives a crash.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from airflow_provider_runa.api.client import AsyncRunaClient, RunaClient
from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.campaign.concurrency import CONCURRENCY
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.pay import pay
from airflow_provider_runa.campaign.plan import Limits, plan
from airflow_provider_runa.campaign.tables import BatchState, create, open_engine
from tests.support.sandbox import RunningSandbox, start_sandbox

LIMIT = 1.1  # client / bare, wall time, with latency

SIDES = ("bare", "bare, read", "client", "pay", "operator")
UNLIMITED = 10_000_000  # orders per minute
DEFAULTS = {"product": "AMZ-US"}


def rows(count: int) -> list[dict[str, Any]]:
    """Return the rows of a campaign."""
    return [
        {"recipient_key": f"customer-{n}", "face_value": 5 + n % 20, "email_address": f"customer-{n}@example.com"}
        for n in range(count)
    ]


@dataclass
class Prepared:
    """A planned campaign, and its orders as they are sent."""

    ledger: Ledger
    orders: list[tuple[str, NewOrder]] = field(default_factory=list)  # idempotency key, order
    bodies: list[tuple[str, bytes]] = field(default_factory=list)


@contextmanager
def prepare(sandbox: RunningSandbox, count: int, folder: Path) -> Iterator[Prepared]:
    """Plan a campaign in a fresh ledger."""
    engine = open_engine(f"sqlite:///{folder / 'planned.db'}")
    try:
        create(engine)
        ledger = Ledger(engine, sandbox.url, "bench")
        with RunaClient(sandbox.api_key, base_url=sandbox.url) as client:
            plan(
                ledger,
                rows(count),
                run="bench",
                currency="USD",
                defaults=DEFAULTS,
                limits=Limits(),
                product=client.get_product,
                now=datetime.now(UTC),
            )
        prepared = Prepared(ledger)
        for batch in ledger.batches(BatchState.OPEN):
            identity = ledger.identity_with_rows(batch)
            order = identity.seal(ledger.order(batch), 0)
            prepared.orders.append((identity.idempotency_key(0), order))
            prepared.bodies.append((identity.idempotency_key(0), order.body()))
        yield prepared
    finally:
        engine.dispose()


# -- the sides -------------------------------------------------------------------------------------------------------


async def side_by_side(jobs: Any, work: Callable[..., Awaitable[None]]) -> None:
    """Run jobs with the concurrency of ``pay``."""
    queue = deque(jobs)

    async def worker() -> None:
        while queue:
            await work(*queue.popleft())

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())


async def bare(sandbox: RunningSandbox, prepared: Prepared, *, read: bool = False) -> None:
    """Send prepared bodies with httpx."""
    headers = {"X-Api-Key": sandbox.api_key, "X-Api-Version": "2024-02-05", "Accept": "application/json"}
    options: dict[str, Any] = {"base_url": sandbox.url, "headers": headers, "timeout": 30, "trust_env": False}
    order_ids = []
    async with httpx.AsyncClient(verify=False, **options) as http:  # nothing is encrypted here

        async def send(key: str, body: bytes) -> None:
            more = {"Content-Type": "application/json", "X-Idempotency-Key": key, "X-Execution-Mode": "async"}
            answer = await http.post("/order", content=body, headers=more)
            order_ids.append((answer.raise_for_status().json()["id"],))

        async def fetch(order_id: str) -> None:
            (await http.get(f"/order/{order_id}")).raise_for_status().json()

        await side_by_side(prepared.bodies, send)
        if read:
            await side_by_side(order_ids, fetch)


async def client(sandbox: RunningSandbox, prepared: Prepared) -> None:
    """Send orders with the provider's client."""
    async with AsyncRunaClient(sandbox.api_key, base_url=sandbox.url, orders_per_minute=UNLIMITED) as runa:

        async def send(key: str, order: NewOrder) -> None:
            await runa.create_order(order, idempotency_key=key, retry=False)

        await side_by_side(prepared.orders, send)


async def campaign(sandbox: RunningSandbox, prepared: Prepared) -> None:
    """Pay a campaign that is planned."""
    from airflow_provider_runa.operators._placement_ports import AsyncClock, AsyncOrderClient

    async with AsyncRunaClient(sandbox.api_key, base_url=sandbox.url, orders_per_minute=UNLIMITED) as runa:
        paid = await pay(
            prepared.ledger,
            batches=prepared.ledger.batches(BatchState.OPEN),
            owner="bench",
            client=AsyncOrderClient(runa),
            clock=AsyncClock(),
        )
    if paid.placed != len(prepared.orders):
        raise RuntimeError(f"pay: {paid}")


def operate(sandbox: RunningSandbox, count: int, folder: Path) -> None:
    """Run the operator."""
    from airflow_provider_runa.operators.payout import RunaPayoutOperator
    from tests.support.airflow import task_context

    extra = {"orders_per_minute": UNLIMITED}
    runa = {"conn_type": "runa", "password": sandbox.api_key, "host": sandbox.url, "extra": extra}
    os.environ["AIRFLOW_CONN_RUNA_DEFAULT"] = json.dumps(runa)
    ledger = {"conn_type": "sqlite", "host": str(folder / "operator.db")}
    os.environ["AIRFLOW_CONN_LEDGER"] = json.dumps(ledger)
    task = RunaPayoutOperator(
        task_id="pay", campaign="bench", rows=rows(count), currency="USD", ledger_conn_id="ledger", defaults=DEFAULTS
    )
    summary = task.execute(task_context())
    if summary["rows"] != {"paid": count}:
        raise RuntimeError(f"operator: {summary}")


def measure(side: str, sandbox: RunningSandbox, count: int) -> tuple[float, float]:
    """Run a side against an empty sandbox; return wall time and CPU time, in seconds."""
    sandbox.reset()
    with tempfile.TemporaryDirectory(prefix="runa-bench-") as name:
        folder = Path(name)
        with prepare(sandbox, count, folder) as prepared:
            run: dict[str, Callable[[], None]] = {
                "bare": lambda: asyncio.run(bare(sandbox, prepared)),
                "bare, read": lambda: asyncio.run(bare(sandbox, prepared, read=True)),
                "client": lambda: asyncio.run(client(sandbox, prepared)),
                "pay": lambda: asyncio.run(campaign(sandbox, prepared)),
                "operator": lambda: operate(sandbox, count, folder),
            }
            cpu, wall = time.process_time(), time.perf_counter()
            run[side]()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    payouts = sandbox.stats()["payouts"]
    if payouts != count:
        raise RuntimeError(f"{side}: {payouts} payouts instead of {count}")
    return wall, cpu


# -- all sides -------------------------------------------------------------------------------------------------------


def compare(count: int, latency: float, runs: int) -> dict[str, float]:
    """Measure all sides in turn, print the table, and return the ratio of each side to ``bare``."""
    options = ("--orders-per-minute", str(UNLIMITED), "--processing-delay", "0", "--latency", str(latency))
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    with start_sandbox(*options) as sandbox:
        for side in SIDES:
            measure(side, sandbox, min(count, 400))  # imports, compiled statements, built models
        for _ in range(runs):
            for side in SIDES:
                times[side].append(measure(side, sandbox, count))
    orders = -(-count // 200)
    print(f"\n{count} rewards, {orders} orders, {CONCURRENCY} at once, each answer after {latency * 1000:g} ms")
    print(f"{'':<12}{'wall s':>10}{'/ bare':>10}{'CPU s':>10}{'/ bare':>10}{'CPU ms an order':>18}")
    ratios = {}
    for side, values in times.items():
        wall, cpu = (statistics.median(value[n] for value in values) for n in (0, 1))
        of_bare = [
            statistics.median(mine[n] / theirs[n] for mine, theirs in zip(values, times["bare"], strict=True))
            for n in (0, 1)
        ]
        ratios[side] = of_bare[0]
        figures = f"{wall:>10.3f}{of_bare[0]:>10.2f}{cpu:>10.3f}{of_bare[1]:>10.2f}{cpu / orders * 1000:>18.1f}"
        print(f"{side:<12}{figures}", flush=True)
    return ratios


def main() -> int:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rewards", type=int, nargs="+", default=[1000, 10_000], help="default 1000 10000")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds that an answer takes (default 0.2)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (default 5)")
    options = parser.parse_args()
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="airflow-home-") as home:
        # Set before the operator side imports Airflow.
        os.environ |= {"AIRFLOW_HOME": home, "AIRFLOW__LOGGING__LOGGING_LEVEL": "CRITICAL"}
        for count in options.rewards:
            compare(count, 0.0, options.runs)
            ratios = compare(count, options.latency, options.runs)
    print(f"\n{options.rewards[-1]} rewards, with latency: client / bare {ratios['client']:.2f}, limit {LIMIT}", end="")
    print(f"; pay / bare {ratios['pay']:.2f}")
    return 0 if ratios["client"] <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
