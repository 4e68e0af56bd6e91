"""Placing as a state machine: hostile events in any order, with the sandbox's own state as the judge.

An attempt is stepped from one boundary to the next: before and after each access to the record, before each request,
while it is in flight, after its answer, and at each pause. It can be killed at any of them, and two can take turns.
Time is simulated, so weeks pass. A rule is one hostile event; after each of them the invariants are checked.
"""

from __future__ import annotations

import contextlib
import logging
import random
import types
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from airflow_provider_runa.api.errors import (
    RunaConnectionError,
    RunaError,
    RunaIdempotencyInProgressError,
    RunaRateLimitError,
    RunaServerError,
    RunaUnreachableError,
)
from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement import digest
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    NothingSentError,
    OrderHeldBackError,
    OrderRejectedError,
    PlacementError,
)
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.place import DEFAULT_LOOK_BACK, KEY_LIFETIME, Attempt, Placement, place
from airflow_provider_runa.placement.record import Record
from airflow_provider_runa.sandbox.engine import Engine, Fault, OrderRow
from tests.placement.judge import BASE_URL, EngineClient, SimulatedClock

RECIPIENT = "planted-recipient-7311@example.com"

#: How long a request may be in flight after its sender was killed, in seconds. While Runa remembers the keys, it may be
#: long. After that, it is less than the policy assumes.
LONGEST_UNDER_WAY = 24 * 3600.0
LONGEST_UNDER_WAY_LATE = 110.0

#: What was tried in this process, for the report of ``make soak``.
TRIED: Counter[str] = Counter()


@types.coroutine
def boundary(name: str) -> Generator[str, None, None]:
    """Suspend an attempt where it can be killed, or where another can take its turn."""
    yield name


class UnderWay:
    """A request to place an order, somewhere between the task and Runa."""

    def __init__(self, client: EngineClient, since: datetime, arguments: tuple[NewOrder, str, str]) -> None:
        self.client = client
        self.since = since
        self.arguments = arguments

    async def arrive(self) -> Order:
        order, key, mode = self.arguments
        return await self.client.create_order(order, idempotency_key=key, execution_mode=mode)


class SteppedClient:
    """Runa as an attempt sees it."""

    def __init__(self, world: PlacingMachine) -> None:
        self.world = world
        self.records = world.records
        self.last_error: RunaError | None = None

    def reserve_turn(self) -> float:
        return 0.0

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        world = self.world
        await boundary("before POST")
        world.refuse("POST /order")
        world.posts += 1
        if self.records.kept:
            assert idempotency_key in self.records.written, "a request leaves that was never on record"
        request = UnderWay(world.client, world.clock.now(), (order, idempotency_key, execution_mode))
        world.under_way.append(request)
        await boundary("POST under way")
        if request not in world.under_way:
            raise RunaConnectionError("POST /order: no usable answer (ReadTimeout)")  # it has arrived meanwhile
        if world.timeouts > 0:
            world.timeouts -= 1
            world.clock.advance(seconds=30)
            raise RunaConnectionError("POST /order: no usable answer (ReadTimeout)")  # it may arrive yet
        world.under_way.remove(request)
        try:
            with self._keeping_errors():
                return await request.arrive()
        finally:
            await boundary("POST answered")

    async def get_order(self, order_id: str) -> Order:
        await boundary("before GET")
        with self._keeping_errors():
            self.world.refuse("GET /order/{id}")
            return await self.world.client.get_order(order_id)

    async def list_orders(self) -> AsyncIterator[Order]:
        await boundary("before the list")
        world = self.world
        with self._keeping_errors():
            world.refuse("GET /order")
            for row in world.lies.tell([row async for row in world.client.list_orders()]):
                yield row

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        try:
            yield
        except RunaError as error:
            self.last_error = error
            raise


class SteppedRecords:
    """The record of one task, which may be lost, outdated or unreachable."""

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept
        self.history: list[dict[str, Any]] = []
        self.written: set[str] = set()  # idempotency keys of all records, also of lost ones
        self.current: dict[str, Any] | None = None
        self.out_of_reach: set[int] = set()  # which of the next accesses fail

    def _reach(self) -> None:
        fails = 0 in self.out_of_reach
        self.out_of_reach = {number - 1 for number in self.out_of_reach if number > 0}
        if fails:
            raise ConnectionError("no store")

    async def load(self) -> Record | None:
        await boundary("before reading the record")
        self._reach()
        return None if self.current is None else Record.from_json(self.current)

    async def save(self, record: Record) -> None:
        await boundary("before writing the record")
        self._reach()
        if self.kept:
            self.current = record.to_json()
            self.history.append(self.current)
            self.written.add(record.idempotency_key)
        await boundary("record written")


class SteppedClock(SimulatedClock):
    async def sleep(self, seconds: float) -> None:
        await boundary("pause")
        if self.timeout is not None and self.time + timedelta(seconds=seconds) > self.timeout:
            self.time = max(self.time, self.timeout)
            await boundary(OUT_OF_TIME)
        self.advance(seconds=seconds)


#: The boundary at which ``execution_timeout`` ends an attempt.
OUT_OF_TIME = "out of time"


class RunningAttempt:
    """One attempt of a task, stepped by the machine."""

    def __init__(self, amount: int, client: SteppedClient, coroutine: Any) -> None:
        self.amount = amount
        self.client = client
        self.coroutine = coroutine
        self.boundary = ""

    def step(self) -> Placement | PlacementError | None:
        """Run to the next boundary; return how the attempt ended, or ``None`` if it continues."""
        try:
            self.boundary = self.coroutine.send(None)
        except StopIteration as end:
            return end.value
        except PlacementError as error:
            return error
        return None

    def kill(self) -> None:
        self.coroutine.close()


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


LOG = logging.getLogger("airflow_provider_runa")

#: Answers that leave open whether there is an order.
PROVES_NOTHING = (RunaConnectionError, RunaRateLimitError, RunaServerError, RunaIdempotencyInProgressError)

#: Rejections of an order (stored under its key, or given before Runa looks at the key) and of access.
REJECTIONS = [
    (400, "product_validation_error"),
    (400, "insufficient_funds"),
    (403, "ordering_restricted"),
    (403, "forbidden"),
    (422, "validation_error"),
    (401, "invalid_api_key"),
    (404, "not_found"),
    (410, "version_removed"),
    (400, "insecure_protocol"),
]


def _identity(row: OrderRow) -> str:
    """Return the digest of an order's identity."""
    return str(row.body["metadata"]["airflow_identity"])


def _order(currency: str, product: str, amount: int, recipient: str, description: str) -> NewOrder:
    item = {
        "face_value": amount,
        "distribution_method": {"type": "EMAIL", "email_address": recipient},
        "products": {"type": "SINGLE", "value": product},
    }
    return NewOrder.build(currency=currency, description=description, items=[item])


@dataclass(frozen=True)
class Lies:
    """What is wrong with the order list, within what the design must survive.

    :param oldest_first: whether it is sorted oldest first.
    :param hidden: whether orders that are final show no description in it: ``""`` (none), ``"all"`` or ``"some"``.
    """

    oldest_first: bool = False
    hidden: str = ""

    def tell(self, rows: list[Order]) -> list[Order]:
        """Return the list as it is shown.

        :param rows: the orders, newest first.
        """
        every = {"": 0, "all": 1, "some": 2}[self.hidden]
        return [
            row.model_copy(update={"description": None}) if every and position % every == 0 else row
            for position, row in enumerate(reversed(rows) if self.oldest_first else rows)
        ]


@dataclass(frozen=True)
class Weather:
    """What goes wrong during an attempt.

    :param faults: what goes wrong on the network and at Runa.
    :param timeouts: requests that time out, and arrive at Runa later or never.
    :param funded: whether the balance covers the order.
    :param out_of_reach: which of the next accesses to the record fail.
    :param refused: which of the next connections to Runa cannot be opened.
    :param lies: what is wrong with the order list.
    """

    faults: list[Fault]
    timeouts: int
    funded: bool
    out_of_reach: frozenset[int]
    refused: frozenset[int]
    lies: Lies


def _faults() -> st.SearchStrategy[list[Fault]]:
    """Up to four faults at once."""
    skip = st.integers(0, 2)
    times = st.sampled_from([1, 1, 2, 3, 50])
    lost = st.builds(Fault, st.sampled_from(["drop_before", "drop_after", "half_answer"]), count=times, skip=skip)
    # A 5xx that Runa repeats under its key or one that it gives before it looks at the key; its own or a gateway's.
    broken = st.builds(
        Fault,
        st.just("status"),
        status=st.sampled_from([500, 502, 504]),
        count=times,
        skip=skip,
        typed=st.booleans(),
        stored=st.booleans(),
    )
    broken_after = st.builds(Fault, st.just("status_after"), status=st.sampled_from([500, 504]), count=times, skip=skip)
    # A gateway blocks the request, or only the answer to it.
    blocked = st.builds(
        Fault,
        st.sampled_from(["status", "status_after"]),
        status=st.sampled_from([400, 403, 422]),
        count=times,
        skip=skip,
        typed=st.just(False),
    )
    too_many = st.builds(Fault, st.just("status"), status=st.just(429), count=times, skip=skip)
    rejected = st.tuples(st.sampled_from(REJECTIONS), st.integers(1, 4), skip, st.booleans()).map(
        lambda drawn: Fault(
            "status", status=drawn[0][0], type=drawn[0][1], count=drawn[1], skip=drawn[2], stored=drawn[3]
        )
    )
    # Not longer than the policy assumes.
    slow = st.builds(Fault, st.just("latency"), seconds=st.sampled_from([20, 100]))
    # Runa rejects the order and its marked copy before it looks at the key.
    rejected_twice = st.sampled_from(REJECTIONS).map(
        lambda drawn: Fault("status", status=drawn[0], type=drawn[1], count=2)
    )
    failing = st.builds(Fault, st.just("fail_order"), count=st.integers(1, 2))
    unreadable = st.builds(
        Fault,
        st.just("drop_before"),
        method=st.just("GET"),
        path=st.sampled_from(["/order", "/order/*"]),
        count=st.sampled_from([2, 12]),
        skip=st.integers(0, 1),
    )
    # The connection was changed, for a while: orders that were placed are unknown.
    elsewhere = st.builds(
        Fault,
        st.just("status"),
        status=st.just(404),
        type=st.just("not_found"),
        method=st.just("GET"),
        path=st.just("/order/*"),
        count=st.integers(1, 2),
    )
    return st.lists(
        st.one_of(
            lost,
            broken,
            broken_after,
            blocked,
            too_many,
            rejected,
            rejected_twice,
            slow,
            failing,
            unreadable,
            elsewhere,
        ),
        max_size=4,
        unique_by=lambda fault: fault.kind if fault.kind == "latency" else id(fault),
    )


FAIR = Weather([], timeouts=0, funded=True, out_of_reach=frozenset(), refused=frozenset(), lies=Lies())
WEATHER = st.builds(
    Weather,
    faults=_faults(),
    timeouts=st.sampled_from([0, 0, 0, 1, 3, 8]),
    funded=st.sampled_from([True, True, True, False]),
    # The first access reads the record, the next one writes the intent.
    out_of_reach=st.sampled_from([()] * 14 + [(0,), (1,), (1,), (2,), (1, 2, 3)]).map(frozenset),
    refused=st.sampled_from([()] * 12 + [(0,), (1,), (0, 1, 2), tuple(range(100)), tuple(range(1, 100))]).map(
        frozenset
    ),
    lies=st.builds(Lies, oldest_first=st.booleans(), hidden=st.sampled_from(["", "", "", "some", "all"])),
)
EXECUTION_TIMEOUTS = st.sampled_from([40, 100, 100, 300, 700])

SECONDS = st.sampled_from([5, 60, 130, 700, 3600])
DAYS = st.sampled_from([1, 5, 20, 28.5, 29.5, 31, 45, 200])


class PlacingMachine(RuleBasedStateMachine):
    """One order of one identity, and everything that can happen to it."""

    # -- the world --------------------------------------------------------------------------------------------------

    @initialize(
        record=st.booleans(),
        keyed=st.booleans(),
        long_look_back=st.booleans(),
        mode=st.sampled_from(["async", "async", "sync"]),
        delay=st.sampled_from([0.0, 1.0, 60.0, 400.0, 2000.0]),
        in_progress=st.sampled_from([400, 102]),
        short=st.booleans(),
    )
    def begin_the_world(
        self, record: bool, keyed: bool, long_look_back: bool, mode: str, delay: float, in_progress: int, short: bool
    ) -> None:
        # The machine writes many thousand records, and tests the algorithm and not the price of a guess.
        self.rounds, digest.ROUNDS = digest.ROUNDS, 1
        self.clock = SteppedClock()
        self.engine = Engine(
            lambda: self.clock.now().timestamp(),
            orders_per_minute=10**9,
            processing_delay=delay,
            in_progress_status=in_progress,
        )
        self.client = EngineClient(self.engine, self.clock)
        self.keyed, self.mode = keyed, mode
        self.look_back = timedelta(days=3650) if keyed and long_look_back else None
        self.number = 0
        self.running: list[RunningAttempt] = []
        self.under_way: list[UnderWay] = []
        self.timeouts = 0
        self.others = 0
        self.refused: set[int] = set()
        self.lies = Lies()
        self.short = short  # whether the attempts at the end have a short execution_timeout
        self._begin_an_order(kept=record)
        self.messages = _Messages()
        LOG.addHandler(self.messages)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        TRIED["schedules"] += 1

    def _begin_an_order(self, *, kept: bool) -> None:
        self.number += 1
        self.records = SteppedRecords(kept=kept)
        self.amount, self.description = 10, "Reward"
        self.tries = 0
        self.begun = 0
        self.posts = 0
        self.run_after = self.first_run = self.clock.now()

    @property
    def identity(self) -> OrderIdentity:
        if self.keyed:
            return OrderIdentity.from_order_key(BASE_URL, f"spring/{self.number}")
        return OrderIdentity.from_task(BASE_URL, dag_id="dag", run_id=f"run{self.number}", task_id="task", map_index=-1)

    def order(self) -> NewOrder:
        return _order("USD", "AMZ-US", self.amount, RECIPIENT, self.description)

    def paying(self) -> list[OrderRow]:
        """Return the identity's orders that are not FAILED, as Runa knows them."""
        return [
            row for row in self.engine.orders() if _identity(row) == self.identity.digest and row.status != "FAILED"
        ]

    # -- attempts ---------------------------------------------------------------------------------------------------

    def _begin(self) -> RunningAttempt:
        client = SteppedClient(self)
        coroutine = place(
            self.order(),
            self.identity,
            Attempt(self.tries, self.run_after, self.look_back),
            execution_mode=self.mode,
            client=client,
            records=self.records,
            clock=self.clock,
            rng=random.Random(1),
        )
        TRIED["attempts"] += 1
        self.begun += 1
        attempt = RunningAttempt(self.amount, client, coroutine)
        self.running.append(attempt)
        return attempt

    def _run(self, attempt: RunningAttempt, steps: int = 100_000) -> Placement | PlacementError | None:
        for _ in range(steps):
            TRIED["steps"] += 1
            if (ending := attempt.step()) is not None:
                self.running.remove(attempt)
                self._judge(attempt, ending)
                return ending
        return None

    def _judge(self, attempt: RunningAttempt, ending: Placement | PlacementError) -> None:
        """An attempt succeeds only with its identity's order, which pays what the attempt would pay (I3)."""
        if isinstance(ending, PlacementError):
            TRIED[f"ended: {type(ending).__name__}"] += 1
            assert RECIPIENT not in str(ending), "a recipient is named in an error"
            if isinstance(ending, OrderRejectedError | OrderHeldBackError | AccessRejectedError):
                answer = type(attempt.client.last_error)
                assert not issubclass(answer, PROVES_NOTHING), f"says that nobody was paid, on a {answer.__name__}"
            if isinstance(ending, NothingSentError) or "Nothing was sent:" in str(ending):
                assert self.posts == 0, f"says that nothing was sent, after {self.posts} requests"
            if "no earlier request is known" in str(ending) and self.begun == 1:
                assert not self.paying(), f"there is an order, and the error says there is none: {ending}"
            return
        TRIED[f"ended: {'adopted' if ending.adopted else 'placed'}"] += 1
        rows = {row.id: row for row in self.engine.orders() if _identity(row) == self.identity.digest}
        assert ending.order.id in rows, "green with an order of another identity"
        row = rows[ending.order.id]
        assert Decimal(str(row.body["items"][0]["face_value"])) == attempt.amount, "green with another payment"
        assert not (row.status == "FAILED" and ending.order.status == "COMPLETED"), "green with a FAILED order"

    @precondition(lambda self: not self.running and self.tries < 15)
    @rule(seconds=st.sampled_from([0, 5, 300]), weather=WEATHER)
    def attempt(self, seconds: int, weather: Weather) -> None:
        """Airflow begins an attempt: a first one, a retry, or after a clear."""
        self.clock.advance(seconds=seconds)
        self._set_weather(weather)
        self.tries += 1
        self._run(self._begin())

    @precondition(lambda self: not self.running and self.tries < 15)
    @rule(steps=st.integers(1, 25), weather=WEATHER)
    def attempt_and_die(self, steps: int, weather: Weather) -> None:
        """An attempt begins and is killed before its end."""
        self._set_weather(weather)
        self.tries += 1
        attempt = self._begin()
        if self._run(attempt, steps) is None:
            self._kill(attempt)

    @precondition(lambda self: not self.running and self.tries < 15)
    @rule(seconds=EXECUTION_TIMEOUTS, count=st.integers(1, 4), pause=st.sampled_from([5, 300]), weather=WEATHER)
    def attempts_out_of_time(self, seconds: int, count: int, pause: int, weather: Weather) -> None:
        """Attempts begin and are ended by ``execution_timeout``, unless they end before."""
        self._set_weather(weather)
        for _ in range(count):
            self.clock.advance(seconds=pause)
            self.tries += 1
            if self._run_out_of_time(self._begin(), seconds) is not None:
                break

    def _run_out_of_time(self, attempt: RunningAttempt, seconds: float) -> Placement | PlacementError | None:
        """Run an attempt, and end it after some seconds."""
        ends = self.clock.timeout = self.clock.now() + timedelta(seconds=seconds)
        try:
            while self.clock.now() < ends and attempt.boundary != OUT_OF_TIME:
                if (ending := self._run(attempt, 1)) is not None:
                    return ending
        finally:
            self.clock.timeout = None
        TRIED["event: out of time"] += 1
        self._kill(attempt)
        return None

    @precondition(lambda self: len(self.running) < 2 and self.tries < 15)
    @rule(steps=st.integers(1, 25), weather=WEATHER)
    def attempt_and_linger(self, steps: int, weather: Weather) -> None:
        """An attempt begins, stops, and may continue later, beside the next attempt."""
        self._set_weather(weather)
        self.tries += 1
        self._run(self._begin(), steps)

    @precondition(lambda self: len(self.running) == 1)
    @rule()
    def execute_twice(self) -> None:
        """Airflow runs ``execute()`` of one attempt a second time."""
        TRIED["event: executed twice"] += 1
        self._begin()

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1), steps=st.one_of(st.none(), st.integers(1, 12)))
    def go_on(self, which: int, steps: int | None) -> None:
        self._run(self.running[which % len(self.running)], steps or 100_000)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1))
    def kill(self, which: int) -> None:
        self._kill(self.running[which % len(self.running)])

    def _kill(self, attempt: RunningAttempt) -> None:
        TRIED["event: killed"] += 1
        self.running.remove(attempt)
        attempt.kill()

    @precondition(lambda self: self.keyed and self._another_run_is_covered() and not self.running)
    @rule(record=st.booleans(), steps=st.one_of(st.none(), st.integers(1, 25)), weather=WEATHER)
    def begin_another_run(self, record: bool, steps: int | None, weather: Weather) -> None:
        """Another DAG run orders under the same ``order_key``, with another record, try number and time."""
        TRIED["event: another run"] += 1
        self._set_weather(weather)
        self.records = SteppedRecords(kept=record)
        self.tries = 1
        self.posts = 0  # of this run
        self.run_after = self.clock.now()
        self._run(self._begin(), steps or 100_000)

    def _another_run_is_covered(self) -> bool:
        return self.look_back is not None or self.clock.now() - self.first_run < timedelta(days=28)

    # -- what Airflow does to the record ----------------------------------------------------------------------------

    @precondition(lambda self: self.records.current)
    @rule()
    def lose_the_record(self) -> None:
        TRIED["event: record lost"] += 1
        self.records.current = None

    @precondition(lambda self: self.records.history)
    @rule(which=st.integers(0, 20))
    def hand_out_an_older_record(self, which: int) -> None:
        TRIED["event: record stale"] += 1
        self.records.current = self.records.history[which % len(self.records.history)]

    @precondition(lambda self: self.records.current)
    @rule(days=st.sampled_from([0, 0.01, 1, 31]), held=st.booleans())
    def hand_out_an_older_search(self, days: float, held: bool) -> None:
        """An outdated record says that nothing was found since long ago. Of a key it says only what was true."""
        record = self.records.current
        TRIED["event: search stale"] += 1
        absent = next((one for one in self.records.history if one["absent_since"] and one["key_held"] == held), None)
        if absent is not None:
            self.records.current = absent
        elif record is not None and not held:
            # No attempt that ran wrote this one.
            since = self.clock.now() - timedelta(days=days)
            self.records.current = record | {"absent_since": since.isoformat(), "key_held": False, "attempt": -1}

    def refuse(self, request: str) -> None:
        """Let no connection be opened, if that is the weather."""
        refused = 0 in self.refused
        self.refused = {number - 1 for number in self.refused if number > 0}
        if refused:
            raise RunaUnreachableError(f"{request}: no usable answer (ConnectError)", "runa.example.com:443")

    # -- what the network and Runa do -------------------------------------------------------------------------------

    def _set_weather(self, weather: Weather) -> None:
        """Replace the current faults by those of a weather."""
        self.engine.faults = [replace(fault) for fault in weather.faults]
        self.engine.set_balance("USD", Decimal(1000 if weather.funded else 0))
        self.timeouts, self.records.out_of_reach = weather.timeouts, set(weather.out_of_reach)
        self.refused, self.lies = set(weather.refused), weather.lies
        for fault in weather.faults:
            TRIED[f"fault: {fault.kind}"] += 1
        TRIED["fault: timed out"] += weather.timeouts
        TRIED["fault: record out of reach"] += len(weather.out_of_reach)
        TRIED["fault: refused"] += bool(weather.refused)
        TRIED["fault: list oldest first"] += weather.lies.oldest_first
        TRIED["fault: descriptions hidden"] += bool(weather.lies.hidden)
        TRIED["event: balance empty"] += not weather.funded

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 10), lost=st.booleans())
    def let_a_request_arrive(self, which: int, lost: bool) -> None:
        self._arrive(self.under_way[which % len(self.under_way)], lost=lost)

    def _arrive(self, request: UnderWay, *, lost: bool) -> None:
        TRIED["event: lost request" if lost else "event: late request"] += 1
        self.under_way.remove(request)
        if not lost:
            with contextlib.suppress(StopIteration, RunaError):  # nobody waits for the answer
                request.arrive().send(None)

    @rule()
    def place_an_order_of_somebody_else(self) -> None:
        """The list shows it too, hidden while it is PROCESSING, with another reference."""
        TRIED["event: order of somebody else"] += 1
        self.others += 1
        other = OrderIdentity.from_order_key(BASE_URL, f"other/{self.others}")
        order = other.seal(_order("EUR", "MART-DE", 10, "other@example.com", "Reward"), 0)
        faults, self.engine.faults = self.engine.faults, []
        self.client.client.create_order(order, idempotency_key=other.idempotency_key(0))
        self.engine.faults = faults

    # -- what the user does -----------------------------------------------------------------------------------------

    @rule(amount=st.sampled_from([10, 20]))
    def change_the_payment(self, amount: int) -> None:
        TRIED["event: payment changed"] += amount != self.amount
        self.amount = amount

    @rule(description=st.sampled_from(["Reward", "Reward, at another time", ""]))
    def change_the_description(self, description: str) -> None:
        TRIED["event: body changed"] += description != self.description
        self.description = description

    # -- time -------------------------------------------------------------------------------------------------------

    @rule(seconds=SECONDS)
    def wait_a_while(self, seconds: int) -> None:
        self.clock.advance(seconds=min(seconds, 5) if self.running and self._is_late else seconds)

    @precondition(lambda self: not self.running)
    @rule(days=DAYS)
    def let_weeks_pass(self, days: float) -> None:
        TRIED["event: weeks passed"] += 1
        self.clock.advance(days=days)

    @property
    def _is_late(self) -> bool:
        """Whether Runa may have forgotten a key."""
        return self.clock.now() - self.first_run > timedelta(days=28)

    def _end_what_is_too_long_under_way(self) -> None:
        """End requests that are in flight for too long. They may never arrive."""
        longest = LONGEST_UNDER_WAY_LATE if self._is_late else LONGEST_UNDER_WAY
        for request in list(self.under_way):
            if (self.clock.now() - request.since).total_seconds() > longest:
                self.under_way.remove(request)

    # -- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def nobody_is_paid_twice(self) -> None:
        """I1: there is never more than one order that is not FAILED."""
        self._end_what_is_too_long_under_way()
        TRIED["events"] += 1
        paying = Counter(_identity(row) for row in self.engine.orders() if row.status != "FAILED")
        assert max(paying.values(), default=0) <= 1, f"orders that pay, by identity: {dict(paying)}"

    @invariant()
    def no_recipient_is_named(self) -> None:
        """I4, as far as it concerns placing."""
        assert not [text for text in self.messages.texts if RECIPIENT in text], "a recipient is named in the log"
        assert RECIPIENT not in str(self.records.current), "a recipient is named in the record"
        self.messages.texts.clear()

    @precondition(lambda self: not self.running and any(row.status == "COMPLETED" for row in self.paying()))
    @rule(record=st.booleans())
    def go_on_to_the_next_order(self, record: bool) -> None:
        """Continue with another order, because nothing more can happen to this one."""
        self._settle()
        self._begin_an_order(kept=record)

    def teardown(self) -> None:
        if not hasattr(self, "clock"):
            return
        try:
            self._settle()
        finally:
            digest.ROUNDS = self.rounds
            LOG.removeHandler(self.messages)
            LOG.propagate = True

    def _settle(self) -> None:
        """I2: once faults stop, a few attempts end in exactly one COMPLETED order."""
        for attempt in list(self.running):
            self._kill(attempt)
        self._set_weather(FAIR)
        for request in list(self.under_way):
            self._arrive(request, lost=False)
        self.nobody_is_paid_twice()
        endings: list[Any] = []
        # An attempt without a record passes one spent key at a time. One that is soon out of time passes it in several
        # attempts, if it has a record and Runa still knows all keys. Otherwise it starts each wait anew.
        short = self.short and self.records.kept and self.engine.processing_delay <= 60 and self._keys_are_remembered()
        for _ in range((4 + len(self.engine.order_posts)) * (10 if short else 1)):
            self.clock.advance(seconds=300 if short else 900)
            if orders := self.paying():
                self.amount = int(orders[0].body["items"][0]["face_value"])  # the user restores what was paid
            self.tries += 1
            ending = self._run_out_of_time(self._begin(), 100) if short else self._run(self._begin())
            self.nobody_is_paid_twice()
            endings.append(ending)
            if isinstance(ending, Placement):
                self.clock.advance(seconds=900)  # the task waits; an order may still end FAILED
                if [row.status for row in self.paying()] == ["COMPLETED"]:
                    break
        else:
            raise AssertionError(f"no order after {len(endings)} attempts without a fault: {endings}")
        (order,) = self.paying()
        assert (order.id, order.status) == (endings[-1].order.id, "COMPLETED")
        self._come_later()

    def _keys_are_remembered(self) -> bool:
        """Whether Runa will know every key of the identity for the next half day, in which the last attempts run."""
        used_for = self.clock.now() - self.first_run + timedelta(hours=12)
        if self.keyed:
            used_for += DEFAULT_LOOK_BACK if self.look_back is None else self.look_back
        return used_for <= KEY_LIFETIME

    def _come_later(self) -> None:
        """An attempt after the end, without a record, pays nobody."""
        self.records = SteppedRecords(kept=False)
        self.tries += 1
        self._run(self._begin())
        self.nobody_is_paid_twice()
        if self.keyed and self._another_run_is_covered():
            self.tries, self.run_after = 1, self.clock.now()
            self._run(self._begin())
            self.nobody_is_paid_twice()
