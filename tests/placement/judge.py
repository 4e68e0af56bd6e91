"""Runa for tests of placement: the sandbox's engine in process, with a simulated clock and without sockets."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx

from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.place import Attempt, Placement, Policy, place
from airflow_provider_runa.placement.ports import run_blocking
from airflow_provider_runa.placement.record import Record
from airflow_provider_runa.sandbox.engine import DEFAULT_API_KEY, Engine, Fault

BASE_URL = "https://playground.runa.io/v2"
START = datetime(2026, 1, 1, tzinfo=UTC)

#: How long the client waits for an answer, in seconds.
TIMEOUT = 30.0


class TimedOut(BaseException):
    """Airflow's ``execution_timeout`` interrupts an attempt."""


class SimulatedClock:
    """A clock that moves only while an attempt waits.

    :param timeout: when an attempt that waits is interrupted; ``None``: never.
    """

    def __init__(self) -> None:
        self.time = START
        self.timeout: datetime | None = None

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        if self.timeout is not None and self.time + timedelta(seconds=seconds) > self.timeout:
            self.time = max(self.time, self.timeout)
            raise TimedOut
        self.advance(seconds=seconds)

    def advance(self, **spans: float) -> None:
        self.time += timedelta(**spans)


class MemoryRecords:
    """A record store that can fail on request, and that stores JSON as a real one does."""

    def __init__(self) -> None:
        self.values: dict[str, Any] | None = None
        self.saves = 0
        self.fail_load = False
        self.fail_save: Callable[[int], bool] = lambda number: False

    async def load(self) -> Record | None:
        if self.fail_load:
            raise ConnectionError("no store")
        return None if self.values is None else Record.from_json(self.values)

    async def save(self, record: Record) -> None:
        self.saves += 1
        if self.fail_save(self.saves):
            raise ConnectionError("no store")
        self.values = record.to_json()


class ForgetfulRecords(MemoryRecords):
    """A store that keeps nothing, as Airflow before 3.3."""

    async def save(self, record: Record) -> None:
        self.saves += 1


class EngineClient:
    """The real client, over a transport that calls the engine in process.

    :param refuses: whether no connection can be opened.
    :param refuses_after: after how many requests no connection can be opened any more.
    :param oldest_first: whether the order list is sorted the other way round.
    :param lists: how often the order list was read.
    """

    def __init__(self, engine: Engine, clock: SimulatedClock) -> None:
        self.refuses = self.oldest_first = False
        self.refuses_after: int | None = None
        self.lists = 0

        def serve(request: httpx.Request) -> httpx.Response:
            if self.refuses or self.refuses_after == 0:
                raise httpx.ConnectError("refused", request=request)
            if self.refuses_after is not None:
                self.refuses_after -= 1
            path = request.url.raw_path.decode().partition("?")[0].removeprefix("/v2")
            answer = engine.handle(
                request.method, path, request.url.params.multi_items(), request.headers, request.content
            )
            clock.advance(seconds=min(answer.delay, TIMEOUT))
            if answer.delay > TIMEOUT:
                raise httpx.ReadTimeout("no answer in time", request=request)
            if answer.drop:
                raise httpx.RemoteProtocolError("dropped", request=request)
            return httpx.Response(answer.status, content=answer.body)

        self.client = RunaClient(
            DEFAULT_API_KEY,
            base_url=BASE_URL,
            orders_per_minute=10**9,
            transport=httpx.MockTransport(serve),
            sleep=lambda seconds: clock.advance(seconds=seconds),
            rng=random.Random(1),
        )

    def reserve_turn(self) -> float:
        return 0.0

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        return self.client.create_order(
            order, idempotency_key=idempotency_key, execution_mode=execution_mode, retry=False
        )

    async def get_order(self, order_id: str) -> Order:
        return self.client.get_order(order_id)

    async def list_orders(self) -> AsyncIterator[Order]:
        self.lists += 1
        rows = self.client.list_orders()  # page by page, as the product reads it
        for order in reversed(list(rows)) if self.oldest_first else rows:
            yield order


class World:
    """One task, its Runa and its clock."""

    def __init__(self, *, record: bool = True, order_key: str | None = None, **engine: Any) -> None:
        self.clock = SimulatedClock()
        self.engine = Engine(lambda: self.clock.now().timestamp(), orders_per_minute=10**9, **engine)
        self.client = EngineClient(self.engine, self.clock)
        self.records: MemoryRecords = MemoryRecords() if record else ForgetfulRecords()
        self.order_key = order_key
        self.tries = 0
        self.amount = 10
        self.description = "Reward"
        self.look_back: timedelta | None = None
        self.product = "AMZ-US"

    def identity(self) -> OrderIdentity:
        if self.order_key is not None:
            return OrderIdentity.from_order_key(BASE_URL, self.order_key)
        return OrderIdentity.from_task(BASE_URL, dag_id="dag", run_id="run", task_id="task", map_index=-1)

    def order(self) -> NewOrder:
        return NewOrder.build(
            currency="USD",
            description=self.description,
            items=[
                {
                    "face_value": self.amount,
                    "distribution_method": {"type": "EMAIL", "email_address": "ada@example.com"},
                    "products": {"type": "SINGLE", "value": self.product},
                }
            ],
        )

    def fault(self, kind: str, **values: Any) -> None:
        self.engine.faults.append(Fault(kind, **values))

    def attempt(self, *, number: int | None = None, policy: Policy | None = None) -> Placement:
        """Run one attempt of the task, as Airflow would."""
        self.tries = self.tries + 1 if number is None else number
        return run_blocking(
            place(
                self.order(),
                self.identity(),
                Attempt(self.tries, START, self.look_back),
                execution_mode="async",
                client=self.client,
                records=self.records,
                clock=self.clock,
                policy=policy or Policy(),
                rng=random.Random(2),
            )
        )

    def place_another(self, number: int) -> None:
        """Place an order of somebody else."""
        identity = OrderIdentity.from_order_key(BASE_URL, f"other/{number}")
        self.client.client.create_order(
            identity.seal(self.order(), 0), idempotency_key=identity.idempotency_key(0), retry=False
        )

    def paying(self) -> list[str]:
        """Return the ids of all orders that are not FAILED."""
        return [order.id for order in self.engine.orders() if order.status != "FAILED"]

    def empty_balance(self) -> None:
        self.engine.set_balance("USD", Decimal(0))

    def top_up(self) -> None:
        self.engine.set_balance("USD", Decimal(1000))
