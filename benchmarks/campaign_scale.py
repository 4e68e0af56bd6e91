"""What the ledger costs as campaigns grow: 10,000 to 1,000,000 rows, on SQLite and PostgreSQL.

    python -m benchmarks.campaign_scale [--rows N ...] [--database sqlite postgresql] [--runs N] [--postgresql URL]
    python -m benchmarks.campaign_scale --orders-per-minute N [--rows N] [--clock-speed N] [--database sqlite]

Each campaign runs in a fresh process, with an empty database, in these steps:

plan           the first plan of the rows
plan, retry    the same run plans the same rows again, before anything is sent: a task that Airflow runs again
pay            all orders are placed
settle         all orders are read and settled
plan, re-run   the same run plans the same rows again, when all are paid
plan, new run  another run plans the same rows again, when all are paid

The rows come from a generator, with keys in random order, several amounts and two products. Runa is a local HTTP server
in a separate process that accepts any order (``benchmarks/accepting_server.py``): its work is the same for each order,
and it checks nothing. Before the first step, a small campaign in the same ledger builds models and compiles statements.

In the same run, each in a fresh process too:

plain INSERT   the same rows, with the columns and the primary key of the ledger's table, without other indexes: INSERT
               of 1,000 rows at a time (executemany of SQLAlchemy Core), in one transaction
bare httpx     as many orders of 200 rows, with bodies that were prepared before, as many at once, without any ledger

``s`` is elapsed time. ``CPU s`` is CPU time of the process that runs the step and of the PostgreSQL server, without the
server that accepts orders. Both are for 1,000 rows. The memory is the peak resident memory (``VmHWM``) of the process
after all steps. Sizes of up to 100,000 rows run several times, before and after the larger ones, and the figures are
medians. Other work on the machine makes both times longer, by half and more: run this on a quiet one. The load average
is printed.

The exit status is 1 if, for the largest number of rows against the smallest, a step takes more than 1.3 times as long
for 1,000 rows (elapsed or CPU time), or the peak memory is more than 1.2 times as large. The ratios to the plain INSERT
and to the bare httpx loop have no limit.

With ``--orders-per-minute``, the rate limiter of the client is on, and its clock runs faster than the real one
(``--clock-speed``): its waits are shorter, but the ledger and the client are as slow as they are. So each order has
that many times less time, and passing is harder than in reality. ``limit`` is the time that the orders need at this
rate: orders / orders per minute. The exit status is 1 if ``pay`` takes more than 1.05 times as long. ``plan`` and
``settle`` wait for no rate limit. Their sum with ``pay`` on the scaled clock is more than the campaign takes in
reality, because what ``pay`` computes is counted several times there.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import Engine

from airflow_provider_runa.api.client import AsyncRunaClient, RunaClient
from airflow_provider_runa.api.statuses import read_statuses
from airflow_provider_runa.campaign.concurrency import CONCURRENCY
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.pay import pay
from airflow_provider_runa.campaign.plan import Limits, plan
from airflow_provider_runa.campaign.settle import settle
from airflow_provider_runa.campaign.tables import BatchState, create, open_engine
from airflow_provider_runa.operators._placement_ports import AsyncClock, AsyncOrderClient
from benchmarks.accepting_server import start_accepting_server
from tests.support.postgres import MISSING, find_programs, start_postgres

COST_LIMIT = 1.3  # cost of 1,000 rows: largest campaign / smallest
MEMORY_LIMIT = 1.2  # peak memory: largest campaign / smallest
PACE_LIMIT = 1.05  # elapsed time / time that the rate limit takes

STEPS = ("plan", "plan, retry", "pay", "settle", "plan, re-run", "plan, new run")
SIDES = ("campaign", "plain INSERT", "bare httpx")
COMPARED = {"plan": "plain INSERT", "pay": "bare httpx"}  # step -> what it is compared with

API_KEY = "XXbench.secret"
UNLIMITED = 10**9  # orders per minute
WARM_UP = 400  # rows
REPEATED = 100_000  # up to so many rows, a size is measured several times
CHUNK = 1000  # rows of one INSERT
ORDER = 200  # rows of one order
WINDOW = 60.0  # seconds, of the rate limit

AMOUNTS = ("5", "7.5", "10", "12.34", "25", "100")
PRODUCTS = ("AMZ-US", "AIRBNB-US")


def make_rows(count: int, name: str = "customer") -> Iterator[dict[str, Any]]:
    """Generate the rows of a campaign, the same every time, with keys in random order."""
    rng = random.Random(count)
    for _ in range(count):
        key = f"{name}-{rng.getrandbits(64):016x}"
        yield {
            "recipient_key": key,
            "face_value": rng.choice(AMOUNTS),
            "email_address": f"{key}@example.com",
            "product": rng.choice(PRODUCTS),
        }


# -- the ledger: all that this benchmark knows of it -----------------------------------------------------------------

LEDGER_TABLE = "runa_ledger"  # its table with a row for each recipient


def open_ledger(url: str, campaign: str = "bench") -> Ledger:
    """Create the tables and return the ledger of a campaign."""
    engine = open_engine(url)
    create(engine)
    return Ledger(engine, "https://playground.runa.io/v2", campaign)


def plan_rows(ledger: Ledger, rows: Iterator[dict[str, Any]], run: str, client: RunaClient) -> None:
    """Plan rows."""
    plan(
        ledger,
        rows,
        run=run,
        currency="USD",
        defaults={},
        limits=Limits(),
        product=client.get_product,
        now=datetime.now(UTC),
    )


async def pay_orders(ledger: Ledger, run: str, client: AsyncRunaClient) -> None:
    """Place the orders of all open batches."""
    batches = ledger.batches(BatchState.OPEN)
    paid = await pay(ledger, batches=batches, owner=run, client=AsyncOrderClient(client), clock=AsyncClock())
    if paid.unplaced or paid.rejected:
        raise RuntimeError(f"pay: {paid}")


async def settle_orders(ledger: Ledger, client: AsyncRunaClient) -> None:
    """Settle all placed orders, which are final."""

    async def statuses(order_ids: Sequence[str]) -> dict[str, str]:
        return await read_statuses(client, order_ids)

    left = await settle(ledger, client=AsyncOrderClient(client), statuses=statuses, clock=AsyncClock())
    if left:
        raise RuntimeError(f"settle: {len(left)} orders are left")


def count_states(ledger: Ledger) -> dict[str, int]:
    """Return state -> number of rows."""
    return {str(state): count for state, (count, _) in ledger.totals().items()}


# -- measuring -------------------------------------------------------------------------------------------------------


def peak() -> float:
    """Return the peak memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def find_server(engine: Engine) -> psutil.Process | None:
    """Return the process of a local PostgreSQL server, of which each connection is a child."""
    if engine.dialect.name != "postgresql" or engine.url.host != "127.0.0.1":
        return None
    with engine.connect() as connection:
        pid = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
    return psutil.Process(pid).parent()


@dataclass
class Stopwatch:
    """Measures steps.

    :param server: PostgreSQL's process, if there is one.
    :param seconds: step -> elapsed seconds, CPU seconds.
    """

    server: psutil.Process | None
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)

    @contextmanager
    def measure(self, step: str) -> Iterator[None]:
        """Measure a step."""
        began, cpu = time.perf_counter(), self._cpu()
        yield
        self.seconds[step] = (time.perf_counter() - began, self._cpu() - cpu)

    def _cpu(self) -> float:
        total = time.process_time()
        if self.server is not None:
            total += sum(self.server.cpu_times()[:4])  # its own, and of its children that have ended
            for child in self.server.children():
                with suppress(psutil.NoSuchProcess):
                    total += sum(child.cpu_times()[:2])
        return total


# -- the sides: each runs in a separate process ----------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a process measures.

    :param side: one of :data:`SIDES`.
    :param database: SQLAlchemy's URL of an empty database.
    :param count: number of rows.
    :param server: base URL of the server that accepts orders.
    :param orders_per_minute: the rate limit.
    :param clock_speed: how many times faster the clock of the rate limit runs.
    :param plan_again: whether a campaign is planned again, too.
    """

    side: str
    database: str
    count: int
    server: str
    orders_per_minute: int = UNLIMITED
    clock_speed: float = 1.0
    plan_again: bool = True

    def client(self) -> AsyncRunaClient:
        """Return a client whose rate limiter has the job's clock."""

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(seconds / self.clock_speed)

        return AsyncRunaClient(
            API_KEY,
            base_url=self.server,
            orders_per_minute=self.orders_per_minute,
            monotonic=lambda: time.monotonic() * self.clock_speed,
            sleep=sleep,
        )


def run_campaign(job: Job) -> dict[str, Any]:
    """Run all steps of a campaign, and check that each recipient is paid once."""
    warm_up(job)
    ledger = open_ledger(job.database)
    watch = Stopwatch(find_server(ledger.engine))
    before = peak()

    def plan_again(step: str, run: str) -> None:
        with watch.measure(step), RunaClient(API_KEY, base_url=job.server) as client:
            plan_rows(ledger, make_rows(job.count), run, client)

    async def place_and_settle() -> None:
        async with job.client() as client:
            with watch.measure("pay"):
                await pay_orders(ledger, "run", client)
            with watch.measure("settle"):
                await settle_orders(ledger, client)

    plan_again("plan", "run")
    if job.plan_again:
        plan_again("plan, retry", "run")
    asyncio.run(place_and_settle())
    if job.plan_again:
        plan_again("plan, re-run", "run")
        plan_again("plan, new run", "run-2")
    memory = peak()
    if (states := count_states(ledger)) != {"paid": job.count}:
        raise RuntimeError(f"the ledger has {states} instead of {job.count} paid rows")
    which = {"skip": -(-WARM_UP // ORDER), "window": WINDOW / job.clock_speed}
    stats = httpx.get(f"{job.server}/stats", params=which, timeout=600, trust_env=False).json()
    if (stats["payouts"], stats["recipients"]) != (job.count, job.count):
        raise RuntimeError(f"the server has {stats} instead of {job.count} payouts")
    return {"seconds": watch.seconds, "memory": memory, "before": before, **stats}


def warm_up(job: Job) -> None:
    """Pay a small campaign, so that no step has to import modules, to build models or to compile statements."""
    ledger = open_ledger(job.database, "warm-up")
    with RunaClient(API_KEY, base_url=job.server) as client:
        for run in ("run", "run", "run-2"):
            plan_rows(ledger, make_rows(WARM_UP, "warm-up"), run, client)

    async def place_and_settle() -> None:
        async with AsyncRunaClient(API_KEY, base_url=job.server, orders_per_minute=UNLIMITED) as client:
            await pay_orders(ledger, "run", client)
            await settle_orders(ledger, client)

    asyncio.run(place_and_settle())
    ledger.engine.dispose()


def run_plain_insert(job: Job) -> dict[str, Any]:
    """Write the rows into a table with the columns and the primary key of the ledger's."""
    ledger = open_ledger(job.database)
    with RunaClient(API_KEY, base_url=job.server) as client:
        plan_rows(ledger, make_rows(1, "sample"), "run", client)
    engine = ledger.engine
    original = sa.Table(LEDGER_TABLE, sa.MetaData(), autoload_with=engine)
    columns = [sa.Column(one.name, one.type, primary_key=one.primary_key, autoincrement=False) for one in original.c]
    plain = sa.Table("plain", sa.MetaData(), *columns)
    plain.create(engine)
    with engine.begin() as connection:
        sample = dict(connection.execute(sa.select(original)).mappings().one())
    [sample_row] = make_rows(1, "sample")
    named = sample_row["recipient_key"]
    texts = {name: value for name, value in sample.items() if isinstance(value, str) and named in value}

    def values(number: int, row: dict[str, Any]) -> dict[str, Any]:
        mine = {name: text.replace(named, row["recipient_key"]) for name, text in texts.items()}
        return sample | mine | {"amount": row["face_value"], "position": number % ORDER}

    watch = Stopwatch(find_server(engine))
    with watch.measure("plain INSERT"), engine.begin() as connection:
        rows = itertools.starmap(values, enumerate(make_rows(job.count)))
        while chunk := list(itertools.islice(rows, CHUNK)):
            connection.execute(sa.insert(plain), chunk)
    with engine.begin() as connection:
        written = connection.execute(sa.select(sa.func.count()).select_from(plain)).scalar_one()
    if written != job.count:
        raise RuntimeError(f"{written} rows were written instead of {job.count}")
    return {"seconds": watch.seconds}


def run_bare(job: Job) -> dict[str, Any]:
    """Send orders with httpx."""
    rows = make_rows(CONCURRENCY * ORDER)
    items = [
        {
            "face_value": float(row["face_value"]),
            "distribution_method": {"type": "EMAIL", "email_address": row["email_address"]},
            "products": {"type": "SINGLE", "value": row["product"]},
        }
        for row in rows
    ]
    payment = {"type": "ACCOUNT_BALANCE", "currency": "USD"}
    bodies = [
        json.dumps({"payment_method": payment, "items": items[begin : begin + ORDER]}).encode()
        for begin in range(0, len(items), ORDER)
    ]
    headers = {"X-Api-Key": API_KEY, "X-Api-Version": "2024-02-05", "Accept": "application/json"}
    numbers = iter(range(-(-job.count // ORDER)))

    async def send_all() -> None:
        options: dict[str, Any] = {"base_url": job.server, "headers": headers, "timeout": 30, "trust_env": False}
        async with httpx.AsyncClient(verify=False, **options) as http:  # nothing is encrypted here

            async def work() -> None:
                for number in numbers:
                    more = {
                        "Content-Type": "application/json",
                        "X-Idempotency-Key": f"bare-{number}",
                        "X-Execution-Mode": "async",
                    }
                    answer = await http.post("/order", content=bodies[number % len(bodies)], headers=more)
                    answer.raise_for_status().json()

            with watch.measure("bare httpx"):
                async with asyncio.TaskGroup() as group:
                    for _ in range(CONCURRENCY):
                        group.create_task(work())

    watch = Stopwatch(None)
    asyncio.run(send_all())
    return {"seconds": watch.seconds}


RUN: dict[str, Callable[[Job], dict[str, Any]]] = {
    "campaign": run_campaign,
    "plain INSERT": run_plain_insert,
    "bare httpx": run_bare,
}


# -- all sides -------------------------------------------------------------------------------------------------------


@contextmanager
def empty_database(kind: str, server: str | None) -> Iterator[str]:
    """Make a database, and remove it when the block ends.

    :param kind: ``sqlite`` or ``postgresql``.
    :param server: URL of a database on the PostgreSQL server.
    :returns: SQLAlchemy's URL.
    """
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="runa-bench-") as folder:
            yield f"sqlite:///{folder}/ledger.db"
        return
    assert server is not None
    name = f"bench_{os.getpid()}_{time.monotonic_ns()}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    try:
        yield sa.engine.make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}"))
        engine.dispose()


def run_job(side: str, kind: str, count: int, server: str | None, **options: Any) -> dict[str, Any]:
    """Run a side in a fresh process, with an empty database and an empty server that accepts orders."""
    with empty_database(kind, server) as database, start_accepting_server() as url:
        job = Job(side, database, count, url, **options)
        command = [sys.executable, "-m", "benchmarks.campaign_scale", "--job", json.dumps(vars(job))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side}, {kind}, {count} rows: {done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


@dataclass
class Figures:
    """The medians for a number of rows.

    :param cost: step -> elapsed seconds and CPU seconds for 1,000 rows.
    :param memory: peak memory, in MB.
    :param before: peak memory before the first step, in MB.
    """

    cost: dict[str, tuple[float, float]]
    memory: float
    before: float


def measure(kind: str, counts: Sequence[int], runs: int, server: str | None) -> dict[int, Figures]:
    """Measure all sides with each number of rows, in turn; large ones once, in the middle."""
    cost: dict[int, dict[str, list[tuple[float, float]]]] = {count: defaultdict(list) for count in counts}
    memory: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for run in range(runs):
        for count in counts:
            if count > REPEATED and run != runs // 2:
                continue
            for side in SIDES:
                result = run_job(side, kind, count, server)
                for step, (wall, cpu) in result["seconds"].items():
                    cost[count][step].append((wall / count * 1000, cpu / count * 1000))
                if side == "campaign":
                    memory[count].append((result["memory"], result["before"]))
            done = ", ".join(f"{step} {values[-1][0]:.4f}" for step, values in cost[count].items())
            print(f"{kind}, {count} rows: {done}; load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return {
        count: Figures({step: medians(values) for step, values in cost[count].items()}, *medians(memory[count]))
        for count in counts
    }


def medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the medians of the first and of the second values."""
    return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def report(console: Console, kind: str, measured: dict[int, Figures]) -> list[str]:
    """Print the table of a database, and return the limits that are exceeded."""
    smallest, largest = measured[min(measured)], measured[max(measured)]
    table = Table(title=f"{kind}: seconds for 1,000 rows", title_justify="left")
    table.add_column("")
    for count in measured:
        table.add_column(f"{count:,}\ns", justify="right")
        table.add_column("\nCPU s", justify="right")
    for heading in ("largest / smallest\ns", "\nCPU s", "\nlimit"):
        table.add_column(heading, justify="right")
    exceeded = []

    def limited(name: str, ratios: Sequence[float], limit: float) -> list[str]:
        cells = []
        for what, ratio in zip(("elapsed", "CPU") if len(ratios) > 1 else ("",), ratios, strict=True):
            cells.append(f"{ratio:.2f}" if ratio <= limit else f"[bold red]{ratio:.2f}[/]")
            if ratio > limit:
                exceeded.append(f"{kind}: {' '.join(filter(None, (name, what)))} {ratio:.2f}, limit {limit}")
        return cells

    def add_cost(step: str, limit: float | None) -> None:
        cells = [f"{value:.4f}" for figures in measured.values() for value in figures.cost[step]]
        ratios = [large / small for small, large in zip(smallest.cost[step], largest.cost[step], strict=True)]
        shown = [f"{ratio:.2f}" for ratio in ratios] if limit is None else limited(step, ratios, limit)
        table.add_row(step, *cells, *shown, "-" if limit is None else str(limit))

    for step in STEPS:
        add_cost(step, COST_LIMIT)
    table.add_section()
    for step in COMPARED.values():
        add_cost(step, None)
    table.add_section()
    for step, other in COMPARED.items():
        cells = [
            f"{mine / theirs:.1f}"
            for figures in measured.values()
            for mine, theirs in zip(figures.cost[step], figures.cost[other], strict=True)
        ]
        table.add_row(f"{step} / {other}", *cells, "-", "-", "-")
    table.add_section()
    cells = [text for figures in measured.values() for text in (f"{figures.memory:.1f}", "")]
    [ratio] = limited("peak memory", [largest.memory / smallest.memory], MEMORY_LIMIT)
    table.add_row("peak memory, MB", *cells, ratio, "", str(MEMORY_LIMIT))
    cells = [text for figures in measured.values() for text in (f"{figures.before:.1f}", "")]
    table.add_row("before the first step", *cells, "", "", "-")
    console.print(table)
    return exceeded


def report_pace(console: Console, kind: str, count: int, options: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Print the figures of a campaign with a rate limit, and return the limits that are exceeded."""
    per_minute, speed = options["orders_per_minute"], options["clock_speed"]
    orders = result["orders"]
    allowed = orders / per_minute * 60  # seconds of the scaled clock
    earliest = (orders - 1) // per_minute * WINDOW
    steps = {step: wall for step, (wall, _) in result["seconds"].items()}
    elapsed = steps["pay"] * speed
    ratio = elapsed / allowed
    table = Table(title=f"{kind}: {count:,} rows, {orders:,} orders, {per_minute} a minute", title_justify="left")
    for heading in ("", "real s", "s of the scaled clock"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("plan", f"{steps['plan']:.1f}", "")
    table.add_row("pay", f"{steps['pay']:.1f}", f"{elapsed:.1f}")
    table.add_row("settle", f"{steps['settle']:.1f}", "")
    whole = steps["plan"] + elapsed + steps["settle"]
    table.add_row("all, at most", "", f"{whole:.1f}")
    table.add_section()
    table.add_row("limit: orders / rate", f"{allowed / speed:.1f}", f"{allowed:.1f}")
    table.add_row("earliest moment of the last order", f"{earliest / speed:.1f}", f"{earliest:.1f}")
    console.print(table)
    console.print(
        f"The clock of the rate limiter was scaled: it ran {speed:g} times faster than the real one, so the real rate "
        f"was {per_minute * speed:,.0f} orders a minute. The server counted at most {result['busiest']} orders in any "
        f"60 s of the scaled clock.",
        highlight=False,
    )
    console.print(
        f"pay / limit: {ratio:.2f}, limit {PACE_LIMIT}; all steps / limit: {whole / allowed:.2f}, no limit",
        highlight=False,
    )
    return [f"{kind}: pay / limit {ratio:.2f}, limit {PACE_LIMIT}"] if ratio > PACE_LIMIT else []


def main() -> int:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--rows", type=int, nargs="+", help="default 10000 100000 1000000; 300000 with --orders-per-minute")
    kinds = ["sqlite", "postgresql"]
    add("--database", nargs="+", choices=kinds, default=kinds, help="default: both")
    add("--runs", type=int, default=3, help=f"runs of each size up to {REPEATED:,} rows (default 3)")
    add("--postgresql", metavar="URL", help="database whose user may create others; default: a temporary server")
    add("--orders-per-minute", type=int, help="measure the pace of one campaign with this rate limit")
    add("--clock-speed", type=float, default=2.0, help="how much faster the clock of the rate limit runs (default 2)")
    add("--job", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        logging.basicConfig(level=logging.ERROR)
        job = Job(**options.job)
        print(json.dumps(RUN[job.side](job)))
        return 0

    counts = sorted(set(options.rows or ([300_000] if options.orders_per_minute else [10_000, 100_000, 1_000_000])))
    console = Console(width=None if sys.stdout.isatty() else 160)
    exceeded: list[str] = []
    with ExitStack() as stack:
        server = options.postgresql
        if "postgresql" in options.database:
            if server is None:
                if (programs := find_programs()) is None:
                    raise SystemExit(MISSING)
                server = stack.enter_context(start_postgres(programs))
            console.print(describe(server), highlight=False)
        for kind in options.database:
            if options.orders_per_minute:
                pace = {"orders_per_minute": options.orders_per_minute, "clock_speed": options.clock_speed}
                for count in counts:
                    result = run_job("campaign", kind, count, server, plan_again=False, **pace)
                    exceeded += report_pace(console, kind, count, pace, result)
                continue
            exceeded += report(console, kind, measure(kind, counts, options.runs, server))
    console.print(f"load average {', '.join(f'{load:.1f}' for load in os.getloadavg())}", highlight=False)
    for text in exceeded:
        console.print(f"[bold red]over the limit[/]: {text}", highlight=False)
    return 1 if exceeded else 0


def describe(server: str) -> str:
    """Return the version of a PostgreSQL server, and whether its commits wait for the disk."""
    engine = sa.create_engine(server)
    with engine.connect() as connection:
        version, fsync = (
            connection.execute(sa.text(f"SHOW {name}")).scalar_one() for name in ("server_version", "fsync")
        )
    engine.dispose()
    waits = "wait" if fsync == "on" else "do not wait"
    return f"PostgreSQL {version}, fsync {fsync}: its commits {waits} for the disk. SQLite's commits wait for the disk."


if __name__ == "__main__":
    raise SystemExit(main())
