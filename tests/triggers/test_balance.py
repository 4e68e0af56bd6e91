"""RunaBalanceTrigger against the sandbox over real sockets: its requests, its events and its arguments."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from airflow.serialization.serialized_objects import BaseSerialization

from airflow_provider_runa.triggers import balance as module
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers.balance import RunaBalanceTrigger
from tests.support.sandbox import RunningSandbox


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PAUSE", 0.02)


def fire(amount: str, *, within: float = 60.0, during: Any = None) -> Any:
    trigger = RunaBalanceTrigger("USD", amount, poll_interval=0.02, deadline=time.time() + within)

    async def first() -> Any:
        if during is not None:
            asyncio.get_running_loop().call_later(0.2, during)
        return (await asyncio.wait_for(anext(trigger.run()), 20)).payload

    return asyncio.run(first())


def test_it_fires_once_the_balance_covers_the_amount(runa: RunningSandbox) -> None:
    runa.balance("USD", "99.99")
    event = fire("100", during=lambda: runa.balance("USD", "100"))
    assert event == {"status": EventStatus.COVERED, "currency": "USD", "amount": "100", "balance": "100.00"}
    assert set(runa.stats()["requests"]) == {"GET /balance"}


def test_it_gives_up_at_the_deadline_and_reports_the_balance(runa: RunningSandbox) -> None:
    runa.balance("USD", "5")
    assert fire("100", within=0.1) == {
        "status": EventStatus.TIMED_OUT,
        "currency": "USD",
        "amount": "100",
        "balance": "5.00",
    }


def test_a_balance_that_was_topped_up_while_the_triggerer_was_down_is_not_late(runa: RunningSandbox) -> None:
    assert fire("100", within=-3600)["status"] == EventStatus.COVERED


def test_it_tolerates_failing_polls_and_reports_the_last_error(runa: RunningSandbox, monkeypatch: Any) -> None:
    async def at_once(seconds: float) -> None:
        return None

    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", at_once)
    runa.faults({"kind": "status", "method": "GET", "path": "/balance", "status": 404, "count": 1})
    event = fire("100")
    assert (event["status"], event["balance"]) == (EventStatus.UNREADABLE, None)
    assert "404" in event["reason"]
    assert fire("100")["status"] == EventStatus.COVERED


def test_an_unreachable_host_is_tolerated_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(self: Any, currency: str) -> Any:
        raise OSError("no such host")

    monkeypatch.setattr("airflow_provider_runa.hooks.runa.RunaHook.aget_balance", away)
    event = fire("100", within=0.1)
    assert (event["status"], event["reason"]) == (EventStatus.UNREADABLE, "no such host")


def test_its_arguments_survive_airflows_serialization() -> None:
    trigger = RunaBalanceTrigger("USD", "99.50", "money", 12.5, deadline=1_800_000_000.25)
    path, arguments = trigger.serialize()
    decoded = BaseSerialization.deserialize(json.loads(json.dumps(BaseSerialization.serialize(arguments))))
    assert decoded == arguments
    assert path == "airflow_provider_runa.triggers.balance.RunaBalanceTrigger"
    assert RunaBalanceTrigger(**decoded).serialize() == (path, arguments)
