"""Two runs of one campaign at once, on a real PostgreSQL server: each recipient is paid once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.campaign.planning import lock_campaign
from airflow_provider_runa.campaign.tables import BatchState, open_engine
from tests.campaign.world import Campaign, rejected_row, row
from tests.placement.judge import EngineClient

RUNS = 4
RECIPIENTS = 1500


class Unhurried:
    """A client whose requests take some time, so that the attempts overlap."""

    def __init__(self, campaign: Campaign) -> None:
        self.real = EngineClient(campaign.engine, campaign.clock)
        self.get_order, self.list_orders = self.real.get_order, self.real.list_orders
        self.reserve_turn = self.real.reserve_turn

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        await asyncio.sleep(0.01)
        placed = await self.real.create_order(order, idempotency_key=idempotency_key, execution_mode=execution_mode)
        await asyncio.sleep(0.01)
        return placed


def at_once(work: Callable[[int], None]) -> None:
    """Run some work in as many threads as there are runs."""
    together = threading.Barrier(RUNS)

    def begin(number: int) -> None:
        together.wait()
        work(number)

    with ThreadPoolExecutor(RUNS) as pool:
        for done in [pool.submit(begin, number) for number in range(RUNS)]:
            done.result()


@pytest.mark.parametrize("same_run", [False, True])
def test_runs_at_once_pay_each_recipient_once(postgres: str, same_run: bool) -> None:
    """Runs of their own share the batches out; attempts of one run overtake each other, and are fenced."""
    judge = Campaign(open_engine(postgres))
    rows = [rejected_row(7) if number == 7 else row(number, product="AMZ-US") for number in range(RECIPIENTS)]

    def work(number: int) -> None:
        mine = Campaign(open_engine(postgres))
        mine.clock, mine.engine, mine.client = judge.clock, judge.engine, EngineClient(judge.engine, judge.clock)
        run = "run" if same_run else f"run-{number}"
        mine.plan(rows[number * 100 :], run=run)
        mine.pay(run=run, client=Unhurried(judge), isolate=True, offload=asyncio.to_thread)
        mine.settle(offload=asyncio.to_thread)
        mine.database.dispose()

    at_once(work)
    # Whatever an attempt left to another one that was overtaken in turn.
    judge.clock.advance(seconds=1000)
    judge.plan(rows, run="last")
    judge.pay(run="last", isolate=True)
    judge.clock.advance(seconds=1000)
    judge.settle()
    assert set(judge.paid().values()) == {1}
    assert judge.states() == {"paid": RECIPIENTS - 1, "rejected": 1}
    assert judge.ledger.batches(BatchState.OPEN) == []
    paid = {found["recipient_key"] for found in judge.ledger.rows("paid")}
    assert {f"{key}@example.com" for key in paid} == set(judge.paid())
    judge.database.dispose()


def test_a_row_lock_does_not_hold_up_the_other_orders(postgres: str) -> None:
    """Somebody else holds the row of one batch for a second. The event loop must not wait for it."""
    campaign = Campaign(open_engine(postgres))
    campaign.plan([row(number) for number in range(1000)])
    locked, *free = campaign.ledger.batches(BatchState.OPEN)
    placed: list[float] = []
    client = Unhurried(campaign)
    create_order = client.create_order

    async def create(order: NewOrder, **options: Any) -> Order:
        answer = await create_order(order, **options)
        placed.append(time.monotonic())
        return answer

    client.create_order = create  # type: ignore[method-assign]
    other = open_engine(postgres)
    with other.connect() as connection, ThreadPoolExecutor(1) as pool:
        connection.execute(sa.text("SELECT 1 FROM runa_batch WHERE id = :id FOR UPDATE"), {"id": locked.id})
        paying = pool.submit(campaign.pay, client=client, batches=[locked, *free], offload=asyncio.to_thread)
        time.sleep(1)
        released = time.monotonic()
        connection.rollback()
        assert paying.result().placed == 5
    assert [moment < released for moment in placed] == [True] * 4 + [False]
    campaign.clock.advance(seconds=10)
    campaign.settle()
    assert campaign.states() == {"paid": 1000}
    for engine in (campaign.database, other):
        engine.dispose()


def test_a_plan_does_not_hold_up_those_who_pay(postgres: str) -> None:
    """Somebody else plans for a second: his lock of the campaign is not one of its batches."""
    campaign = Campaign(open_engine(postgres))
    campaign.plan([row(1)])
    other = open_engine(postgres)
    with other.connect() as connection:
        lock_campaign(connection, campaign.ledger.ref.id)
        began = time.monotonic()
        assert campaign.pay(offload=asyncio.to_thread).placed == 1
        assert time.monotonic() - began < 10, "it waited for the plan, which never ended"
        connection.rollback()
    for engine in (campaign.database, other):
        engine.dispose()
