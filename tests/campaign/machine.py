"""Paying a campaign as a state machine: hostile events in any order, with the sandbox's own state as the judge.

Each attempt runs in its thread, from one boundary to the next: before and after each access to the ledger, before each
request, while it is in flight, after its answer, and at each pause. It can be killed at any of them, and two can take
turns. Only one thread runs at a time, and time is simulated, so a schedule replays, and years pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import pathlib
import random
import tempfile
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.api.errors import RunaConnectionError, RunaError, RunaUnreachableError
from airflow_provider_runa.api.models import NewOrder, Order, Product
from airflow_provider_runa.campaign import catch_up as catch_up_module
from airflow_provider_runa.campaign import pay as pay_module
from airflow_provider_runa.campaign import plan as plan_module
from airflow_provider_runa.campaign import planning as planning_module
from airflow_provider_runa.campaign import settle as settle_module
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.errors import InvalidCampaignError
from airflow_provider_runa.campaign.found import Absorbed
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.plan import Limits
from airflow_provider_runa.campaign.tables import BatchState, create, open_engine
from airflow_provider_runa.placement.place import INTENT_LIFETIME
from airflow_provider_runa.sandbox.engine import DEFAULT_API_KEY, Engine, Fault
from tests.campaign.world import directly
from tests.placement.judge import BASE_URL, EngineClient, SimulatedClock
from tests.placement.machine import DAYS, FAIR, LOG, SECONDS, TRIED, Lies, UnderWay, Weather, _Messages
from tests.placement.machine import WEATHER as ANY_WEATHER

#: Rows of one order, and rows that are read at a time: few, so that a handful of recipients fills several.
ITEMS, CHUNK = 3, 6
RECIPIENTS = 8
TEMPLATE = "PT-01HQ12PV4B8XMBRTK281JM54KK"

#: How long a request may be in flight after its sender was killed, in seconds: as the policy assumes.
LONGEST_UNDER_WAY = 110.0

#: How long after writing its record an attempt may still send, in seconds: the age that a record may have, and a
#: process that stands still between its last look at the clock and the request, for as long as one may be in flight.
LONGEST_SENDING = INTENT_LIFETIME.total_seconds() + LONGEST_UNDER_WAY

#: How far back the order list is read for a ledger that is new: Runa lists every order.
EVER = timedelta(days=36500)

#: A step of a pause, in seconds: others take their turn within a long one.
SLICE = 60.0

#: Ways in which an attempt may end that are not wrong: the next one goes on.
UNFINISHED = (InvalidCampaignError, RunaError, sa.exc.OperationalError)


class Killed(BaseException):
    """The attempt's process was killed."""


class RunningAttempt:
    """One attempt of a task, in a thread that runs only when the machine lets it."""

    def __init__(self, world: CampaignMachine, work: Callable[[RunningAttempt], None]) -> None:
        self.clock = world.clock
        self.began = world.clock.now()
        #: Rows that it may pay at most, if it has a limit, rows that it has paid, and when Airflow ends it.
        self.most: int | None = None
        self.sent = 0
        self.timeout: float | None = None
        self.left = 0
        self.until: str | None = None
        self.dies = self.killed = self.over = False
        self.wrong: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[RunningAttempt], None]) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                work(self)
        except BaseException as error:
            self.wrong = error
        self.over = True
        self._back.release()

    def boundary(self, name: str, *, here: bool = True) -> None:
        """Stop if the machine says so. From the attempt's thread.

        :param name: where it is.
        :param here: whether it can stop and go on later here, or only die.
        """
        if self.timeout is not None and (self.clock.now() - self.began).total_seconds() > self.timeout:
            self.killed = True
        stops = self.left == 0 and self.until in (None, name)
        if stops and self.dies:
            self.killed = True
        if self.killed:
            raise Killed
        if not here:
            return
        if stops:
            self._back.release()
            self._go.acquire()
            if self.killed:
                raise Killed
        self.left = max(0, self.left - 1)

    def step(self, steps: int, *, until: str | None = None, dies: bool = False) -> None:
        """Let it run over some boundaries, and on to one of that name, to its end, or to its death."""
        self.left, self.until, self.dies = steps, until, dies
        self._go.release()
        self._back.acquire()
        if self.over:
            self._thread.join()
            self._judge()

    def kill(self) -> None:
        if not self.over:
            self.killed = True
            self._go.release()
            self._thread.join()
            self._judge()

    def _judge(self) -> None:
        """An attempt ends in one of the known ways, or is killed."""
        for error in _leaves(self.wrong):
            if isinstance(error, Killed):
                TRIED["event: killed"] += 1
            elif isinstance(error, UNFINISHED):
                TRIED[f"ended: {type(error).__name__}"] += 1
            else:
                raise AssertionError(f"an attempt ended in {type(error).__name__}: {error}") from error  # noqa: TRY004


def _leaves(error: BaseException | None) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    elif error is not None:
        yield error


class SteppedLedger(Ledger):
    """The ledger of an attempt, which may be unreachable."""

    def __init__(self, world: CampaignMachine, attempt: RunningAttempt) -> None:
        self.world, self.attempt = world, attempt
        super().__init__(world.database, BASE_URL, "spring")

    @contextlib.contextmanager
    def planning(self, run: str, now: datetime) -> Iterator[Any]:
        self.reach("planning")
        with super().planning(run, now) as planning:
            yield planning
        self.attempt.boundary("planned")

    def reach(self, name: str) -> None:
        self.attempt.boundary(f"before {name}")
        if self.world.takes_effect(self.world.out_of_reach):
            raise sa.exc.OperationalError("no database", None, Exception())


def _stepped(name: str) -> Any:
    original = getattr(Ledger, name)

    @functools.wraps(original)
    def step(self: SteppedLedger, *args: Any, **kwargs: Any) -> Any:
        self.reach(name)
        found = original(self, *args, **kwargs)
        if name == "save_record":
            self.world.written[args[2].idempotency_key] = self.world.clock.now()
        self.attempt.boundary(f"after {name}")
        return found

    return step


_WRITES = (
    *("save_record", "mark_placed", "note_error", "reject", "fail", "replace", "renew"),
    *("settle_completed", "settle_failed", "plan_failed_again", "withdraw"),
)
for _name in ("batches", "order", "take", "load_record", *_WRITES):
    setattr(SteppedLedger, _name, _stepped(_name))

#: Where an attempt may stop and wait for another to overtake it: what it does next must do no harm then.
_TOUCHES = ("take", "order", *_WRITES)
WAITS = st.sampled_from(
    [None, "POST under way", "POST answered", "before GET", *(f"before {name}" for name in _TOUCHES)]
)

#: Runa rejects for a while, maybe after an answer was lost or while a request that timed out is still in flight.
_rejected = st.builds(
    Fault,
    st.just("status"),
    status=st.just(422),
    type=st.just("validation_error"),
    count=st.sampled_from([1, 2, 4]),
    skip=st.integers(0, 1),
)
_lost = st.builds(Fault, st.sampled_from(["drop_after", "half_answer"]), count=st.sampled_from([1, 2]))
TREACHEROUS = st.builds(
    Weather,
    faults=st.one_of(st.tuples(_lost, _rejected).map(list), _rejected.map(lambda fault: [fault])),
    timeouts=st.sampled_from([0, 1, 8]),
    funded=st.just(True),
    out_of_reach=st.just(frozenset()),
    refused=st.just(frozenset()),
    lies=st.just(Lies()),
)
WEATHER = st.one_of(st.just(FAIR), TREACHEROUS, ANY_WEATHER, ANY_WEATHER)


class SteppedClient:
    """Runa as an attempt sees it."""

    def __init__(self, world: CampaignMachine, attempt: RunningAttempt) -> None:
        self.world, self.attempt = world, attempt

    async def _boundary(self, name: str) -> None:
        await asyncio.sleep(0)  # the other orders of the attempt get their turn
        self.attempt.boundary(name)

    def reserve_turn(self) -> float:
        return 0.0

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        world = self.world
        await self._boundary("before POST")
        world.refuse("POST /order")
        written = world.written.get(idempotency_key)
        assert written is not None, "a request leaves that was never on record"
        if (world.clock.now() - written).total_seconds() > LONGEST_SENDING:
            raise Killed  # it stood still for longer than the policy assumes of one that lives
        request = UnderWay(world.client, world.clock.now(), (order, idempotency_key, execution_mode))
        world.under_way.append(request)
        await self._boundary("POST under way")
        if request not in world.under_way:
            raise RunaConnectionError("POST /order: no usable answer (ReadTimeout)")  # it has arrived meanwhile
        if world.timeouts > 0:
            world.timeouts -= 1
            world.clock.advance(seconds=30)
            raise RunaConnectionError("POST /order: no usable answer (ReadTimeout)")  # it may arrive yet
        world.under_way.remove(request)
        before = len(world.engine.orders())
        try:
            return await request.arrive()
        finally:
            if len(world.engine.orders()) > before:
                self.attempt.sent += len(order.items)
                most = self.attempt.most
                assert most is None or self.attempt.sent <= most, "more was sent than the limit allows"
            await self._boundary("POST answered")

    async def get_order(self, order_id: str) -> Order:
        await self._boundary("before GET")
        self.world.refuse("GET /order/{id}")
        return await self.world.client.get_order(order_id)

    async def list_orders(self) -> AsyncIterator[Order]:
        await self._boundary("before the list")
        self.world.refuse("GET /order")
        for row in self.world.lies.tell([row async for row in self.world.client.list_orders()]):
            yield row


class SteppedClock:
    """The world's clock as an attempt sees it."""

    def __init__(self, world: CampaignMachine, attempt: RunningAttempt) -> None:
        self.world, self.attempt = world, attempt

    def now(self) -> datetime:
        return self.world.clock.now()

    async def sleep(self, seconds: float) -> None:
        while seconds > 0:
            await asyncio.sleep(0)
            self.attempt.boundary("pause")
            self.world.clock.advance(seconds=min(seconds, SLICE))
            seconds -= SLICE


class CampaignMachine(RuleBasedStateMachine):
    """One campaign, and everything that can happen to it."""

    # -- the world --------------------------------------------------------------------------------------------------

    @initialize(
        delay=st.sampled_from([0.0, 1.0, 60.0, 400.0]),
        in_progress=st.sampled_from([400, 102]),
        count=st.integers(1, RECIPIENTS),
    )
    def begin_the_world(self, delay: float, in_progress: int, count: int) -> None:
        self.patched = contextlib.ExitStack()
        ids = random.Random(1)
        self._patch(planning_module, "uuid", SimpleNamespace(uuid4=lambda: uuid.UUID(int=ids.getrandbits(128))))
        self._patch(plan_module, "MAX_ITEMS", ITEMS)
        self._patch(plan_module, "CHUNK", CHUNK)
        self._patch(pay_module, "place", functools.partial(pay_module.place, rng=random.Random(1)))
        self.clock = SimulatedClock()
        self.engine = Engine(
            lambda: self.clock.now().timestamp(),
            orders_per_minute=10**9,
            processing_delay=delay,
            in_progress_status=in_progress,
        )
        self.client = EngineClient(self.engine, self.clock)
        self.folder = pathlib.Path(self.patched.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
        self.file = self.folder / "ledger-0.db"
        self.copies: list[bytes] = []
        self.others: list[pathlib.Path] = []
        self._open_ledger()
        self.rows = dict.fromkeys(range(count), (10, "good"))
        self.doubled: int | None = None
        self.runs = 0
        self.begun = 0
        self.running: list[RunningAttempt] = []
        self.under_way: list[UnderWay] = []
        self.written: dict[str, datetime] = {}  # idempotency key -> when a record with it was written last
        self.timeouts = 0
        self.out_of_reach: set[int] = set()  # which of the next accesses to the ledger fail
        self.refused: set[int] = set()  # which of the next connections to Runa cannot be opened
        self.lies = Lies()
        self.messages = _Messages()
        LOG.addHandler(self.messages)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        TRIED["schedules"] += 1

    def _open_ledger(self) -> None:
        """Open the ledger's file, which may be new or an older copy."""
        self.database = self._open_database()
        self.ledger = Ledger(self.database, BASE_URL, "spring")
        #: Whether the ledger may not know what Runa knows.
        self.behind = True

    def _open_database(self) -> Database:
        database = open_engine(f"sqlite:///{self.file}")
        self.patched.callback(database.dispose)

        @sa.event.listens_for(database, "connect")
        def _hurry(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")

        create(database)
        return database

    def _patch(self, module: Any, name: str, value: Any) -> None:
        self.patched.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)

    def _product(self, code: str) -> Product:
        """Return a product of the catalogue that does not show its face values: so an order may be rejected."""
        return self.client.client.get_product(code).model_copy(update={"gift_card": None})

    def _input(self, attempt: RunningAttempt) -> Iterator[dict[str, Any]]:
        numbers = list(self.rows)
        if self.doubled is not None and numbers:
            numbers.insert(self.doubled, numbers[0])
        for number in numbers:
            attempt.boundary("a row", here=False)  # a plan holds the database: nobody else takes a turn
            amount, kind = self.rows[number]
            row = {"recipient_key": f"key-{number}", "email_address": _address(number), "face_value": amount}
            if kind == "template":
                yield row | {"template_id": TEMPLATE}
            else:
                yield row | {"product": "AMZ-US"} | ({"face_value": 501} if kind == "bad" else {})

    # -- attempts ---------------------------------------------------------------------------------------------------

    def _begin(
        self,
        *,
        plans: bool = True,
        isolate: bool = False,
        concurrency: int = 1,
        most: int | None = None,
        timeout: float | None = None,
        late: bool = False,
    ) -> RunningAttempt:
        run = f"run-{self.runs}"

        def work(attempt: RunningAttempt) -> None:
            ledger = SteppedLedger(self, attempt)
            client, clock = SteppedClient(self, attempt), SteppedClock(self, attempt)
            attempt.most, attempt.timeout = most, timeout
            limits = Limits(recipients=most)

            async def statuses(order_ids: Sequence[str]) -> Mapping[str, str]:
                found = {}
                for order_id in order_ids:
                    with contextlib.suppress(RunaError):
                        found[order_id] = str((await client.get_order(order_id)).status)
                return found

            async def settle() -> None:
                await settle_module.settle(ledger, client=client, statuses=statuses, clock=clock, offload=directly)

            async def catch_up() -> Absorbed:
                await settle()
                return await catch_up_module.catch_up(ledger, client=client, clock=clock, look_back=EVER)

            async def pay_and_settle(batches: Sequence[Batch]) -> None:
                await pay_module.pay(
                    ledger,
                    batches=batches,
                    owner=run,
                    client=client,
                    clock=clock,
                    isolate_rejections=isolate,
                    concurrency=concurrency,
                    offload=directly,
                )
                await settle()

            absorbed = asyncio.run(catch_up())
            TRIED["event: row found at Runa"] += absorbed.rows
            TRIED["event: batch undecided"] += len(absorbed.undecided)
            assert not absorbed.doubled, "a recipient is paid by two orders"
            if plans:
                report = plan_module.plan(
                    ledger,
                    self._input(attempt),
                    run=run,
                    currency="USD",
                    defaults={},
                    limits=limits,
                    product=self._product,
                    now=self.clock.now(),
                    new_recipients_on_rerun=late,
                    excluded=absorbed.undecided,
                )
                batches = report.batches
                TRIED["event: row recognized in the input"] += report.found
            else:
                TRIED["event: failed rows planned again"] += ledger.plan_failed_again(run, self.clock.now())
                batches, _ = plan_module.choose_planned(
                    ledger, currency="USD", limits=limits, excluded=absorbed.undecided
                )
            asyncio.run(pay_and_settle(batches))
            if attempt is self.running[-1] and len(self.running) == 1:
                self.behind = False

        TRIED["attempts"] += 1
        self.begun += 1
        attempt = RunningAttempt(self, work)
        self.running.append(attempt)
        return attempt

    def _step(
        self, attempt: RunningAttempt, steps: int | None, *, until: str | None = None, dies: bool = False
    ) -> None:
        try:
            attempt.step(10**6 if steps is None else steps, until=until, dies=dies)
        finally:
            if attempt.over:
                self.running.remove(attempt)

    @precondition(lambda self: len(self.running) < 3 and self.begun < 25)
    @rule(
        another=st.booleans(),
        plans=st.sampled_from([True, True, True, False]),
        isolate=st.booleans(),
        concurrency=st.sampled_from([1, 3]),
        most=st.sampled_from([None, None, 2, 5]),
        timeout=st.sampled_from([None, None, None, 50.0, 200.0, 900.0]),
        late=st.booleans(),
        steps=st.one_of(st.none(), st.integers(1, 60)),
        dies=st.booleans(),
        weather=WEATHER,
    )
    def attempt(
        self,
        another: bool,
        plans: bool,
        isolate: bool,
        concurrency: int,
        most: int | None,
        timeout: float | None,
        late: bool,
        steps: int | None,
        dies: bool,
        weather: Weather,
    ) -> None:
        """A task begins: a retry of the run, or another run. It may be killed on its way, or go on later."""
        TRIED["event: another run"] += another
        TRIED["event: two at once"] += len(self.running)
        self.runs += another
        self._set_weather(weather)
        TRIED["event: limited"] += most is not None
        TRIED["event: short execution_timeout"] += timeout is not None
        attempt = self._begin(
            plans=plans, isolate=isolate, concurrency=concurrency, most=most, timeout=timeout, late=late
        )
        self._step(attempt, steps, dies=dies)

    @precondition(lambda self: not self.running and self.begun < 25)
    @rule(
        isolate=st.booleans(),
        until=WAITS,
        steps=st.integers(1, 30),
        weather=WEATHER,
        another=st.sampled_from([False, False, True]),
        then=WEATHER,
        seconds=st.sampled_from([0, 5, 100, 700]),
    )
    def be_overtaken(
        self, isolate: bool, until: str | None, steps: int, weather: Weather, another: bool, then: Weather, seconds: int
    ) -> None:
        """An attempt stops somewhere, another one does what it can, and then the first goes on."""
        self._set_weather(weather)
        first = self._begin(isolate=isolate)
        self._step(first, steps, until=until)
        self._set_weather(then)
        self.clock.advance(seconds=seconds)
        self.runs += another
        self._step(self._begin(isolate=isolate), None)
        if first.over:
            return
        TRIED["event: overtaken"] += 1
        self.nobody_is_paid_twice()
        self._step(first, None)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2), steps=st.one_of(st.none(), st.integers(1, 20)), dies=st.booleans())
    def go_on(self, which: int, steps: int | None, dies: bool) -> None:
        self._step(self.running[which % len(self.running)], steps, dies=dies)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.running.pop(which % len(self.running)).kill()

    # -- what becomes of the ledger -----------------------------------------------------------------------------------

    @rule()
    def copy_the_ledger(self) -> None:
        self.copies.append(self.file.read_bytes())

    @precondition(lambda self: self.copies)
    @rule(which=st.integers(0, 20), lost=st.booleans())
    def restore_the_ledger(self, which: int, lost: bool) -> None:
        """The database is restored from an earlier copy, or a failover has lost its last commits."""
        TRIED["event: ledger restored"] += 1
        self._leave_the_ledger(lost=lost)
        self.file.write_bytes(self.copies[which % len(self.copies)])
        self._open_ledger()

    @rule(lost=st.booleans())
    def lose_the_ledger(self, lost: bool) -> None:
        """The database is lost, or the connection names another one: a new ledger begins empty."""
        TRIED["event: ledger lost"] += 1
        self._leave_the_ledger(lost=lost)
        self.others.append(self.file)
        self.file = self.folder / f"ledger-{len(self.others)}.db"
        self.copies.clear()
        self._open_ledger()

    @precondition(lambda self: self.others)
    @rule(which=st.integers(0, 5), lost=st.booleans())
    def change_to_another_ledger(self, which: int, lost: bool) -> None:
        """Two databases are used for one campaign, one after the other."""
        TRIED["event: another ledger"] += 1
        self._leave_the_ledger(lost=lost)
        self.others.append(self.file)
        self.file = self.others.pop(which % (len(self.others) - 1))
        self.copies.clear()
        self._open_ledger()

    def _leave_the_ledger(self, *, lost: bool) -> None:
        """Whoever works on the ledger ends. What is in flight arrives, or is lost, before another ledger is used."""
        for attempt in self.running:
            attempt.kill()
        self.running.clear()
        for request in list(self.under_way):
            self._arrive(request, lost=lost)
        self.database.dispose()

    @precondition(lambda self: not self.running)
    @rule()
    def withdraw(self) -> None:
        TRIED["event: withdrawn"] += sum(count for count, _ in self.ledger.withdraw(self.clock.now()).values())

    # -- what the network, Runa and the database do -------------------------------------------------------------------

    @staticmethod
    def takes_effect(numbers: set[int]) -> bool:
        """Return whether the next access fails, and count it."""
        fails = 0 in numbers
        left = {number - 1 for number in numbers if number > 0}
        numbers.clear()
        numbers.update(left)
        return fails

    def refuse(self, request: str) -> None:
        """Let no connection be opened, if that is the weather."""
        if self.takes_effect(self.refused):
            raise RunaUnreachableError(f"{request}: no connection (ConnectError)", "runa.example.com:443")

    def _set_weather(self, weather: Weather) -> None:
        """Replace the current faults by those of a weather."""
        self.engine.faults = [replace(fault) for fault in weather.faults]
        self.engine.set_balance("USD", Decimal(100_000 if weather.funded else 0))
        self.timeouts, self.out_of_reach = weather.timeouts, set(weather.out_of_reach)
        self.refused, self.lies = set(weather.refused), weather.lies
        for fault in weather.faults:
            TRIED[f"fault: {fault.kind}"] += 1
        TRIED["fault: timed out"] += weather.timeouts
        TRIED["fault: ledger out of reach"] += len(weather.out_of_reach)
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

    # -- what the user does -----------------------------------------------------------------------------------------

    @rule(
        number=st.integers(0, RECIPIENTS - 1),
        amount=st.sampled_from([10, 20]),
        kind=st.sampled_from(["good", "good", "bad", "template", "removed"]),
    )
    def change_the_input(self, number: int, amount: int, kind: str) -> None:
        TRIED["event: input changed"] += 1
        if kind == "removed":
            self.rows.pop(number, None)
        else:
            self.rows[number] = (amount, kind)

    @rule(doubled=st.one_of(st.none(), st.integers(1, RECIPIENTS)))
    def double_a_row(self, doubled: int | None) -> None:
        TRIED["event: row doubled"] += doubled is not None
        self.doubled = doubled

    # -- time -------------------------------------------------------------------------------------------------------

    @rule(seconds=SECONDS)
    def wait_a_while(self, seconds: int) -> None:
        self.clock.advance(seconds=seconds)

    @rule(days=st.one_of(DAYS, st.just(366)))
    def let_weeks_pass(self, days: float) -> None:
        TRIED["event: weeks passed"] += 1
        self.clock.advance(days=days)

    # -- what must hold ---------------------------------------------------------------------------------------------

    def _at_runa(self) -> dict[str, list[tuple[str, str, Decimal]]]:
        """Return address -> its orders that are not FAILED: id, status and amount."""
        found: dict[str, list[tuple[str, str, Decimal]]] = {}
        for order in self.engine.orders():
            if order.status != "FAILED":
                for item in order.body["items"]:
                    entry = (order.id, order.status, Decimal(str(item["face_value"])))
                    found.setdefault(item["distribution_method"]["email_address"], []).append(entry)
        return found

    @invariant()
    def nobody_is_paid_twice(self) -> None:
        """Each recipient of the campaign is in at most one order that is not FAILED, and the ledger is right."""
        for request in list(self.under_way):
            if (self.clock.now() - request.since).total_seconds() > LONGEST_UNDER_WAY:
                self.under_way.remove(request)  # none is under way for ever; whether it arrived, nobody knows
        TRIED["events"] += 1
        at_runa = self._at_runa()
        often = {address: len(orders) for address, orders in at_runa.items() if len(orders) > 1}
        assert not often, f"orders that pay a recipient: {often}"
        for row in self.ledger.rows():
            orders = at_runa.get(_address(row["recipient_key"].removeprefix("key-")), [])
            if row["state"] == "mismatch":
                raise AssertionError(f"a row does not match its order: {row['error']}")
            if row["state"] == "paid":
                assert orders == [(row["order_id"], "COMPLETED", row["amount"])], "paid, says the ledger, and is not"
            elif row["state"] != "sent" and not self.behind:
                assert not orders, f"{row['state']}, says the ledger, and there is an order"

    @invariant()
    def no_recipient_is_named(self) -> None:
        assert not [text for text in self.messages.texts if "@example.com" in text], "a recipient is named in the log"
        self.messages.texts.clear()

    def teardown(self) -> None:
        if not hasattr(self, "messages"):
            return
        try:
            self._settle()
        finally:
            for attempt in self.running:
                with contextlib.suppress(AssertionError):
                    attempt.kill()
            self.patched.close()
            LOG.removeHandler(self.messages)
            LOG.propagate = True

    def _settle(self) -> None:
        """Once faults stop and the input is fixed, a few attempts pay everybody exactly once."""
        for attempt in list(self.running):
            attempt.kill()
        self.running.clear()
        self._set_weather(FAIR)
        for request in list(self.under_way):
            self._arrive(request, lost=False)
        self.nobody_is_paid_twice()
        self.doubled = None
        known = {int(row["recipient_key"].removeprefix("key-")) for row in self.ledger.rows()}
        at_runa = {int(address.partition("@")[0].rpartition("-")[2]) for address in self._at_runa()}
        wanted = known | set(self.rows) | at_runa
        self.rows = dict.fromkeys(wanted, (15, "good"))
        self.runs += 1
        # An order that is sent may end FAILED, its rows be rejected, planned again, sent again, and then settled. An
        # attempt without a record passes one spent key at a time.
        for _ in range(8 + len(self.engine.order_posts)):
            if self._states() == ({"paid"} if wanted else set()) and len(self._at_runa()) == len(wanted):
                break
            self.clock.advance(seconds=900)
            # What a run has planned and not begun is that run's. The last resort is a task that pays what is planned.
            self._step(self._begin(plans=bool(self.begun % 3), isolate=bool(self.begun % 2)), None)
            self.runs += 1
            self.nobody_is_paid_twice()
        else:
            batches = [
                (batch.id[:8], batch.state.value, batch.found, batch.order_id) for batch in self.ledger.batches()
            ]
            reasons = {(row["state"].value, row["error"]) for row in self.ledger.rows()}
            raise AssertionError(f"without a fault there is no end: {self.ledger.totals()} {batches} {reasons}")
        assert not self.ledger.batches(BatchState.OPEN), "a batch is open that pays nobody"
        self._check_items()
        self._come_later()

    def _states(self) -> set[str]:
        return set(self.ledger.totals())

    def _check_items(self) -> None:
        """Each row knows its own item, and what was sent for it is erased."""
        theirs = {}
        for order_id in {row["order_id"] for row in self.ledger.rows()}:
            answer = self.engine.handle("GET", f"/order/{order_id}", headers={"X-API-Key": DEFAULT_API_KEY})
            for item in json.loads(answer.body)["items"]:
                theirs[item["distribution_method"]["email_address"]] = item["id"]
        for row in self.ledger.rows():
            assert row["item_id"] == theirs[_address(row["recipient_key"].removeprefix("key-"))], "another one's item"
        with self.database.begin() as connection:
            left = connection.execute(sa.text("SELECT count(*) FROM runa_ledger WHERE item IS NOT NULL")).scalar()
        assert not left, "what was sent is kept although it is paid"

    def _come_later(self) -> None:
        """An attempt a year after the end sends nothing."""
        posts = sum(self.engine.order_posts.values())
        self.clock.advance(days=366)
        self.runs += 1
        self._step(self._begin(), None)
        self.nobody_is_paid_twice()
        assert sum(self.engine.order_posts.values()) == posts, "something was sent for those who are paid"


def _address(number: Any) -> str:
    return f"recipient-{number}@example.com"
