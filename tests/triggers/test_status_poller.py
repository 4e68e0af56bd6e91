"""Many triggers, one status poller: its requests, its answers and its end, over sockets and with a fake clock."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import pytest

from airflow_provider_runa.api.client import AsyncRunaClient
from airflow_provider_runa.api.errors import RunaConnectionError, RunaNotFoundError, UnreadableOrdersError
from airflow_provider_runa.api.models import Order
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.triggers import _status_poller
from airflow_provider_runa.triggers import runa as triggers
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers._status_poller import StatusPoller, shared_status_poller
from airflow_provider_runa.triggers.runa import RunaOrderTrigger
from tests.sensors.test_order import place
from tests.support.loop import run_jumping
from tests.support.orders import place_many, reads, start_patient_sandbox
from tests.support.sandbox import RunningSandbox

COUNT = 1_000


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let triggers wait tenths of a second instead of minutes."""
    monkeypatch.setattr(triggers, "MIN_PAUSE", 0.05)
    monkeypatch.setattr(_status_poller, "MIN_PAUSE_BETWEEN_CYCLES", 0.01)


@pytest.fixture(scope="module")
def _crowd() -> Iterator[tuple[RunningSandbox, list[str]]]:
    with start_patient_sandbox() as runa:
        yield runa, place_many(runa, COUNT)


@pytest.fixture
def crowd(
    _crowd: tuple[RunningSandbox, list[str]], soon: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunningSandbox, list[str]]:
    """A sandbox with 1,000 orders that are PROCESSING, which ``runa_default`` leads to; and their ids."""
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", _crowd[0].connection)
    return _crowd


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[AsyncRunaClient]:
    """Every asynchronous client that is made."""
    made: list[AsyncRunaClient] = []
    make = AsyncRunaClient.__init__

    def watched(self: AsyncRunaClient, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(AsyncRunaClient, "__init__", watched)
    return made


@pytest.fixture
def cycles(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many orders each cycle asks for."""
    seen: list[int] = []
    read = StatusPoller._read

    async def watched(self: StatusPoller, order_ids: set[str]) -> Any:
        seen.append(len(order_ids))
        return await read(self, order_ids)

    monkeypatch.setattr(StatusPoller, "_read", watched)
    return seen


def trigger(*ids: str, interval: float = 0.2, within: float | None = None, **values: Any) -> RunaOrderTrigger:
    deadline = None if within is None else time.time() + within
    return RunaOrderTrigger(ids, poll_interval=interval, deadline=deadline, **values)


async def first(waiting: RunaOrderTrigger) -> Any:
    """Run a trigger to its end, as the triggerer does, and return its event."""
    (event,) = [event async for event in waiting.run()]
    return event.payload


@asynccontextmanager
async def running(*waiting: RunaOrderTrigger) -> AsyncGenerator[list[asyncio.Task[Any]], None]:
    """Run triggers, and cancel those that are left."""
    tasks = [asyncio.create_task(first(one)) for one in waiting]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition has no event to wait for
            await asyncio.sleep(0.01)


def run(coroutine: Awaitable[Any], clients: list[AsyncRunaClient]) -> Any:
    """Run a test and check that it leaves nothing behind."""

    async def checked() -> Any:
        before = asyncio.all_tasks()
        result = await asyncio.wait_for(coroutine, 60)
        assert asyncio.all_tasks() == before
        assert not _status_poller._pollers
        assert all(client._http.is_closed for client in clients)
        return result

    result = asyncio.run(checked())
    gc.collect()  # what was never awaited complains now
    return result


# -- one poll for all --------------------------------------------------------------------------------------------------


def test_a_thousand_orders_of_one_trigger(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], cycles: list[int]
) -> None:
    runa, ids = crowd
    before = reads(runa)

    async def wait() -> None:
        async with running(trigger(*ids)):
            await until(lambda: len(cycles) == 4)

    run(wait(), clients)
    assert cycles == [COUNT] * 4
    after = reads(runa)
    assert 6 <= after["pages"] - before["pages"] <= 8  # the last cycle may have been cancelled
    assert after["orders"] == before["orders"]
    assert len(clients) == 1


def test_two_hundred_triggers_of_one_order(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], cycles: list[int]
) -> None:
    runa, ids = crowd
    before = reads(runa)

    async def wait() -> None:
        async with running(*(trigger(order_id, interval=0.5) for order_id in ids[-200:])):
            await until(lambda: len(cycles) == 4)

    run(wait(), clients)
    assert cycles[1:] == [200] * 3
    after = reads(runa)
    assert after["pages"] - before["pages"] + after["orders"] - before["orders"] <= 5 * 4
    assert len(clients) == 1


def test_each_trigger_gets_the_statuses_of_its_own_orders(
    runa: RunningSandbox, soon: None, clients: list[AsyncRunaClient]
) -> None:
    runa.faults({"kind": "fail_order"})
    failed = place(runa, done=False)
    done = [place(runa, done=False) for _ in range(11)]
    runa.advance(10)
    pending = place(runa, done=False)

    async def wait() -> list[Any]:
        groups = [[done[0]], done[1:], [failed, pending], [done[2], pending]]
        return await asyncio.gather(*(first(trigger(*group, within=0.5)) for group in groups))

    events = run(wait(), clients)
    assert events == [
        {"status": EventStatus.FINAL, "orders": {done[0]: "COMPLETED"}},
        {"status": EventStatus.FINAL, "orders": dict.fromkeys(done[1:], "COMPLETED")},
        {"status": EventStatus.FINAL, "orders": {failed: "FAILED", pending: "PROCESSING"}},
        {"status": EventStatus.TIMED_OUT, "orders": {done[2]: "COMPLETED", pending: "PROCESSING"}},
    ]
    assert len(clients) == 1


def test_two_connections_do_not_share(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    runa, ids = crowd
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", runa.connection)

    async def wait() -> None:
        async with running(trigger(ids[0]), trigger(ids[0], runa_conn_id="other")):
            await until(lambda: len(clients) == 2)
            assert {name for _, name in _status_poller._pollers} == {"runa_default", "other"}

    run(wait(), clients)


def test_two_event_loops_do_not_share(crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient]) -> None:
    _, ids = crowd

    async def wait() -> None:
        async with running(trigger(ids[0])):
            made = len(clients)
            await until(lambda: len(clients) > made)
            if made == 0:
                await asyncio.to_thread(asyncio.run, wait())

    run(wait(), clients)
    assert len(clients) == 2


# -- coming and going --------------------------------------------------------------------------------------------------


def test_a_cancelled_trigger_disturbs_no_other(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], cycles: list[int]
) -> None:
    _, ids = crowd

    async def wait() -> None:
        async with running(*(trigger(order_id) for order_id in ids[:3])) as tasks:
            await until(lambda: 3 in cycles)
            tasks[0].cancel()  # the one that came first, and in whose task the watch was started
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            await until(lambda: cycles[-2:] == [2, 2])
            assert not tasks[1].done()

    run(wait(), clients)
    assert len(clients) == 1


def test_triggers_cancelled_in_the_middle_of_a_request(
    runa: RunningSandbox, soon: None, clients: list[AsyncRunaClient]
) -> None:
    ids = [place(runa) for _ in range(2)]
    runa.faults({"kind": "latency", "method": "GET", "path": "/order/*", "seconds": 0.5})

    async def wait() -> Any:
        async with running(*(trigger(order_id) for order_id in ids)) as tasks:
            await until(lambda: reads(runa)["orders"] == 1)
            tasks[0].cancel()
            return await tasks[1]

    assert run(wait(), clients) == {"status": EventStatus.FINAL, "orders": {ids[1]: "COMPLETED"}}


def test_the_last_trigger_cancelled_in_the_middle_of_a_request(
    runa: RunningSandbox, soon: None, clients: list[AsyncRunaClient]
) -> None:
    order_id = place(runa, done=False)
    runa.faults({"kind": "latency", "method": "GET", "path": "/order/*", "seconds": 5})

    async def wait() -> None:
        async with running(trigger(order_id)):
            await until(lambda: reads(runa)["orders"] == 1)

    began = time.monotonic()
    run(wait(), clients)
    assert time.monotonic() - began < 3


def test_a_new_poller_starts_after_the_last_one_ended(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient]
) -> None:
    _, ids = crowd

    async def wait() -> None:
        for _ in range(3):
            assert (await first(trigger(ids[0], within=0.05)))["status"] == EventStatus.TIMED_OUT

    run(wait(), clients)
    assert len(clients) == 3


def test_no_trigger_waits_for_a_poller_that_has_ended(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], cycles: list[int]
) -> None:
    """Airflow restarts a trigger that is cancelled; one that waits for an ended poller would wait forever."""
    _, ids = crowd

    async def wait() -> None:
        async with running(trigger(*ids)) as tasks:
            await until(lambda: bool(cycles and clients))  # the connection is read: Airflow 2 swallows it before
            (watch,) = _status_poller._pollers.values()
            watch._task.cancel()
            await asyncio.wait(tasks, timeout=2)
            assert tasks[0].cancelled()

    run(wait(), clients)


def test_the_poller_does_not_run_in_the_context_of_a_trigger(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a triggerer, the context determines the task whose log gets a line."""
    task_log: ContextVar[str] = ContextVar("task_log", default="the triggerer's")
    seen: list[str] = []
    read = StatusPoller._read

    async def watched(self: StatusPoller, order_ids: set[str]) -> Any:
        seen.append(task_log.get())
        return await read(self, order_ids)

    monkeypatch.setattr(StatusPoller, "_read", watched)
    _, ids = crowd

    async def wait() -> None:
        task_log.set("the first task's")
        async with running(trigger(ids[0])):
            await until(lambda: bool(seen))

    run(wait(), clients)
    assert set(seen) == {"the triggerer's"}


def test_a_poller_ends_although_a_cancellation_is_swallowed(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As asgiref does, while Airflow 2 reads a connection."""
    seen: list[set[str]] = []

    async def swallowing(self: StatusPoller, order_ids: set[str]) -> Any:
        seen.append(order_ids)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return dict.fromkeys(order_ids, "PROCESSING"), {}

    monkeypatch.setattr(StatusPoller, "_read", swallowing)
    _, ids = crowd

    async def wait() -> None:
        async with running(trigger(ids[0])):
            await until(lambda: bool(seen))

    run(wait(), clients)


# -- failures ----------------------------------------------------------------------------------------------------------


def test_an_unknown_order_ends_only_the_trigger_that_waits_for_it(
    crowd: tuple[RunningSandbox, list[str]], clients: list[AsyncRunaClient]
) -> None:
    _, ids = crowd

    async def wait() -> None:
        with_unknown = trigger(ids[0], "O-NONE", interval=0.05)
        async with running(with_unknown, *(trigger(order_id, interval=0.05) for order_id in ids[-20:])) as tasks:
            event = await tasks[0]
            assert (event["status"], event["orders"]) == (
                EventStatus.UNREADABLE,
                {ids[0]: "PROCESSING", "O-NONE": "PROCESSING"},
            )
            assert "O-NONE: 404 not_found" in event["reason"]
            assert not any(task.done() for task in tasks[1:])

    run(wait(), clients)


def test_an_unknown_order_hides_no_failed_one(runa: RunningSandbox, soon: None, clients: list[AsyncRunaClient]) -> None:
    runa.faults({"kind": "fail_order"})
    failed = place(runa)
    event = run(first(trigger("O-NONE", failed)), clients)
    assert event == {"status": EventStatus.FINAL, "orders": {"O-NONE": "PROCESSING", failed: "FAILED"}}


def test_a_failing_cycle_is_logged_once_and_tolerated(
    crowd: tuple[RunningSandbox, list[str]],
    clients: list[AsyncRunaClient],
    cycles: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    runa, ids = crowd
    runa.faults({"kind": "status", "method": "GET", "path": "/order*", "status": 401, "count": 4})

    async def wait() -> None:
        async with running(*(trigger(order_id) for order_id in ids[-20:])) as tasks:
            await until(lambda: len(cycles) >= 5)
            assert not any(task.done() for task in tasks)

    with caplog.at_level(logging.WARNING):
        run(wait(), clients)
    lines = [record.getMessage() for record in caplog.records if record.name == _status_poller.__name__]
    assert len(lines) == 2  # in a cycle the list fails, and one order
    assert all("orders could not be read: O-" in line for line in lines)
    assert "secret" not in "".join(lines)


def test_a_changed_connection_is_used_after_a_failure(
    runa: RunningSandbox, soon: None, clients: list[AsyncRunaClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = place(runa)
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", runa.connection.replace("XXsandbox", "XXrevoked"))

    async def wait() -> Any:
        async with running(trigger(order_id)) as tasks:
            await until(lambda: len(clients) == 2)
            monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", runa.connection)
            return await tasks[0]

    assert run(wait(), clients)["status"] == EventStatus.FINAL


def test_a_connection_that_cannot_be_used_is_unreadable_in_the_end(
    soon: None, clients: list[AsyncRunaClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", '{"conn_type": "runa"}')
    event = run(first(trigger("O-1", "O-2", interval=0.05)), clients)
    assert event["status"] == EventStatus.UNREADABLE
    assert event["reason"].startswith("O-")
    assert event["reason"].endswith("; and 1 more")
    assert "connection" in event["reason"].lower()


def test_a_connection_that_airflow_cannot_read_is_tried_again(
    runa: RunningSandbox, soon: None, clients: list[AsyncRunaClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look_up = RunaHook.aget_settings

    async def away(self: RunaHook) -> Any:
        looks.append(self.runa_conn_id)
        if len(looks) < 15:
            raise LookupError("Airflow's API server is away")
        return await look_up(self)

    order_id = place(runa)
    monkeypatch.setattr(RunaHook, "aget_settings", away)
    assert run(first(trigger(order_id, interval=0.05)), clients)["status"] == EventStatus.FINAL


# -- when: a trigger's demands -----------------------------------------------------------------------------------------


class Script:
    """A poller that answers from a script, and records the requests.

    :param answers: statuses of ``O-1``, or errors.
    """

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.demands: list[tuple[list[str], float, float]] = []

    async def read(self, order_ids: list[str], *, after: float, within: float) -> dict[str, str]:
        self.demands.append((list(order_ids), after, within))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise UnreadableOrdersError({}, dict.fromkeys(order_ids, answer))
        return dict.fromkeys(order_ids, answer)


def play(script: Script, **values: Any) -> Any:
    waiting: Any = trigger("O-1", **values)
    return asyncio.run(waiting._wait(script))


@pytest.mark.parametrize(
    ("interval", "first_demand", "next_demand"),
    [(30.0, (15.0, 30.0), (15.0, 30.0)), (6.0, (5.0, 6.0), (3.0, 6.0)), (1.0, (5.0, 5.0), (2.5, 5.0))],
)
def test_the_first_poll_keeps_its_distance_from_the_deferral(
    interval: float, first_demand: tuple[float, float], next_demand: tuple[float, float]
) -> None:
    script = Script("PROCESSING", "PROCESSING", "COMPLETED")
    assert play(script, interval=interval)["status"] == EventStatus.FINAL
    assert [demand[1:] for demand in script.demands] == [first_demand, next_demand, next_demand]


def test_a_status_is_read_before_the_deadline_is_tested() -> None:
    assert play(Script("COMPLETED"), within=-60)["status"] == EventStatus.FINAL
    late = Script("PROCESSING")
    assert play(late, interval=30, within=-60)["status"] == EventStatus.TIMED_OUT
    assert late.demands == [(["O-1"], 5.0, 5.0)]
    assert play(Script(RunaConnectionError("no")), within=-60)["status"] == EventStatus.TIMED_OUT


def test_only_rejections_in_a_row_count() -> None:
    rejection, failure = RunaNotFoundError(404), RunaConnectionError("no usable answer")
    script = Script(*[rejection] * 4, "PROCESSING", *[rejection] * 4, *[failure] * 100, *[rejection] * 5)
    event = play(script)
    assert event == {"status": EventStatus.UNREADABLE, "orders": {"O-1": "PROCESSING"}, "reason": "O-1: 404"}
    assert script.answers == []


def test_the_reason_is_the_rejection_and_not_an_error_that_waiting_may_fix() -> None:
    class Mixed(Script):
        async def read(self, order_ids: list[str], *, after: float, within: float) -> dict[str, str]:
            raise UnreadableOrdersError({}, {"O-1": RunaConnectionError("no"), "O-2": RunaNotFoundError(404)})

    assert play(Mixed())["reason"] == "O-2: 404"


# -- when: the cycles of the watch, on a loop whose clock jumps --------------------------------------------------------


class Recorder:
    """A client whose requests take 0.1 s each. It records the time of each cycle, request and read of an order."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.cycles: list[float] = []
        self.requests: list[float] = []
        self.read_at: dict[str, list[float]] = {}

    async def _request(self) -> None:
        self.requests.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)

    async def get_order(self, order_id: str) -> Order:
        await self._request()
        return Order(id=order_id, status="PROCESSING")

    async def list_orders(self) -> AsyncGenerator[Order, None]:
        await self._request()
        for order_id in self.ids:
            yield Order(id=order_id, status="PROCESSING")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    read = StatusPoller.read

    async def client(self: RunaHook) -> Any:
        made.cycles.append(asyncio.get_running_loop().time())
        return made

    async def noted(self: StatusPoller, order_ids: list[str], **when: float) -> dict[str, str]:
        statuses = await read(self, order_ids, **when)
        for order_id in order_ids:
            made.read_at.setdefault(order_id, []).append(asyncio.get_running_loop().time())
        return statuses

    monkeypatch.setattr(RunaHook, "aget_conn", client)
    monkeypatch.setattr(StatusPoller, "read", noted)
    return made


def simulate(recorder: Recorder, starts: dict[str, tuple[float, float]], seconds: float) -> None:
    """Run triggers of one order each for a time.

    :param starts: order id -> when its trigger starts, and its interval.
    """
    recorder.ids = list(starts)

    async def start(order_id: str, begin: float, interval: float) -> None:
        await asyncio.sleep(begin)
        await first(RunaOrderTrigger([order_id], poll_interval=interval))

    async def simulated() -> None:
        tasks = [asyncio.create_task(start(order_id, *when)) for order_id, when in starts.items()]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_jumping(simulated())


def check_reads(recorder: Recorder, starts: dict[str, tuple[float, float]], seconds: float) -> None:
    """Check that every order was read as often as was asked for, hardly more than twice as often, and not too soon."""
    slack = (
        _status_poller.MIN_PAUSE_BETWEEN_CYCLES + 1
    )  # how long the cycle before may take here: nine orders one by one
    for order_id, (begin, interval) in starts.items():
        times = recorder.read_at[order_id]
        assert times[0] >= begin + 5
        gaps = [later - sooner for sooner, later in pairwise([begin, *times, seconds])]
        assert max(gaps) <= interval + slack
        assert min(gaps[1:-1]) >= interval / 2
    assert all(later - sooner >= _status_poller.MIN_PAUSE_BETWEEN_CYCLES for sooner, later in pairwise(recorder.cycles))


def test_a_thousand_triggers_that_start_one_by_one_share_their_cycles(recorder: Recorder) -> None:
    """Deferred over two minutes, as a scheduler gets them done, they poll together from their first poll on."""
    starts = {f"O-{number}": (number * 0.12, 30.0) for number in range(COUNT)}
    simulate(recorder, starts, seconds=600)
    check_reads(recorder, starts, 600)
    assert len(recorder.requests) <= 600 / 15
    assert len([at for at in recorder.requests if at >= 180]) <= 420 / 30 + 1


@pytest.mark.parametrize("seed", range(5))
def test_intervals_coexist(recorder: Recorder, seed: int) -> None:
    rng = random.Random(seed)
    starts = {f"O-{number}": (rng.uniform(0, 300), rng.choice([5, 7, 30, 60, 600])) for number in range(60)}
    simulate(recorder, starts, seconds=1800)
    check_reads(recorder, starts, 1800)


def test_a_poller_has_no_timer_without_requests(recorder: Recorder) -> None:
    async def nobody() -> None:
        async with shared_status_poller("runa_default") as watch:
            await asyncio.sleep(100_000)
            assert await watch.read(["O-1"], after=0, within=10) == {"O-1": "PROCESSING"}

    run_jumping(nobody())
    assert recorder.requests == [pytest.approx(100_010)]
