"""RunaOrderTrigger against the sandbox over real sockets: its requests, its events and its arguments."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest
from airflow.serialization.serialized_objects import BaseSerialization

from airflow_provider_runa.api.client import ATTEMPTS
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.triggers import _status_poller
from airflow_provider_runa.triggers import runa as module
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers.runa import RunaOrderTrigger
from tests.sensors.test_order import place
from tests.support.raw import http, start_raw
from tests.support.sandbox import RunningSandbox


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PAUSE", 0.05)
    monkeypatch.setattr(_status_poller, "MIN_PAUSE_BETWEEN_CYCLES", 0.01)


def fire(order_ids: list[str], *, poll_interval: float = 0.05, within: float | None = 60.0, **values: Any) -> Any:
    """Run a trigger to its first event."""
    deadline = None if within is None else time.time() + within
    trigger = RunaOrderTrigger(order_ids, poll_interval=poll_interval, deadline=deadline, **values)

    async def first() -> Any:
        events = trigger.run()
        try:
            return (await asyncio.wait_for(anext(events), 20)).payload
        finally:
            await events.aclose()

    return asyncio.run(first())


def test_it_fires_when_all_orders_are_completed(runa: RunningSandbox) -> None:
    ids = [place(runa), place(runa)]
    assert fire(ids) == {"status": EventStatus.FINAL, "orders": dict.fromkeys(ids, "COMPLETED")}


def test_it_waits_for_the_last_one(runa: RunningSandbox) -> None:
    done, pending = place(runa), place(runa, done=False)
    event = fire([done, pending], within=0.3)
    assert event == {"status": EventStatus.TIMED_OUT, "orders": {done: "COMPLETED", pending: "PROCESSING"}}


def test_it_waits_through_a_state_that_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [http("200 OK", json.dumps({"id": "O-1", "status": status}).encode()) for status in ("HELD", "COMPLETED")]
    with start_raw(*answers) as server:
        connection = {"conn_type": "runa", "password": "XXsandbox.secret", "host": server.url}
        monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(connection))
        assert fire(["O-1"]) == {"status": EventStatus.FINAL, "orders": {"O-1": "COMPLETED"}}
    assert len(server.requests) == 2


def test_it_fires_at_the_first_failed_order(runa: RunningSandbox) -> None:
    runa.faults({"kind": "fail_order"})
    failed, pending = place(runa), place(runa, done=False)
    assert fire([failed, pending]) == {"status": EventStatus.FINAL, "orders": {failed: "FAILED", pending: "PROCESSING"}}


def test_it_waits_for_the_others_if_it_is_to(runa: RunningSandbox) -> None:
    runa.faults({"kind": "fail_order"})
    failed, pending = place(runa), place(runa, done=False)
    event = fire([failed, pending], fail_fast=False, within=0.3)
    assert event == {"status": EventStatus.TIMED_OUT, "orders": {failed: "FAILED", pending: "PROCESSING"}}
    runa.advance(60)
    assert fire([failed, pending], fail_fast=False)["status"] == EventStatus.FINAL


def test_an_order_that_ended_while_the_triggerer_was_down_is_not_late(runa: RunningSandbox) -> None:
    order_id = place(runa)
    assert fire([order_id], within=-3600) == {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}}


def test_it_tolerates_failing_polls(runa: RunningSandbox) -> None:
    order_id = place(runa)
    runa.faults({"kind": "status", "method": "GET", "path": "/order/*", "status": 404, "count": 3})
    assert fire([order_id])["status"] == EventStatus.FINAL


@pytest.mark.parametrize("status", [401, 403, 404])
def test_it_gives_up_after_a_few_rejections_with_the_reason(runa: RunningSandbox, status: int) -> None:
    order_id = place(runa)
    runa.faults({"kind": "status", "method": "GET", "path": "/order/*", "status": status, "count": 100})
    event = fire([order_id])
    assert (event["status"], event["orders"]) == (EventStatus.UNREADABLE, {order_id: "PROCESSING"})
    assert str(status) in event["reason"]
    assert runa.stats()["requests"]["GET /order/{id}"] == module.TOLERATED_REJECTIONS


def test_without_an_answer_it_polls_until_the_deadline(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    order_id = place(runa)
    runa.faults({"kind": "status", "method": "GET", "path": "/order/*", "status": 503, "count": 15 * ATTEMPTS})
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        assert fire([order_id])["status"] == EventStatus.FINAL
    assert "could not be read" in caplog.text


def test_it_only_gets(runa: RunningSandbox) -> None:
    order_id = place(runa)
    before = runa.stats()["requests"]
    fire([order_id])
    after = runa.stats()["requests"]
    assert after["POST /order"] == before["POST /order"] == 1
    assert sum(after.values()) == sum(before.values()) + 1


@pytest.mark.parametrize(
    ("poll_interval", "rest", "pause"),
    [(30, None, 30), (30, 100, 30), (30, 20, 20), (30, 1, 5), (30, -100, 5), (0, None, 5), (0, 100, 5)],
)
def test_a_poll_keeps_its_distance(
    monkeypatch: pytest.MonkeyPatch, poll_interval: float, rest: float | None, pause: float
) -> None:
    """A trigger that fires right after the deferral can hit a race in Airflow's scheduler."""
    monkeypatch.undo()
    deadline = None if rest is None else time.time() + rest
    trigger = RunaOrderTrigger(["O-1"], poll_interval=poll_interval, deadline=deadline)
    assert trigger._pause() == pytest.approx(pause, abs=0.1)


def test_its_arguments_survive_airflows_serialization() -> None:
    trigger = RunaOrderTrigger(["O-1", "O-2"], "money", 12.5, 1_800_000_000.25)
    path, arguments = trigger.serialize()
    assert json.loads(json.dumps(arguments)) == arguments
    decoded = BaseSerialization.deserialize(json.loads(json.dumps(BaseSerialization.serialize(arguments))))
    assert decoded == arguments
    module_name, _, name = path.rpartition(".")
    assert (module_name, name) == (RunaOrderTrigger.__module__, "RunaOrderTrigger")
    assert RunaOrderTrigger(**decoded).serialize() == (path, arguments)


def test_it_closes_its_connections(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = []
    aclose = RunaHook.aclose

    async def watched(self: RunaHook) -> None:
        hooks.append(self)
        await aclose(self)

    monkeypatch.setattr(RunaHook, "aclose", watched)
    fire([place(runa)])
    assert len(hooks) == 1
    assert hooks[0]._async_client is None
