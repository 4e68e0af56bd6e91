"""Two runs of one campaign at once, on a real PostgreSQL server: each recipient is paid once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_runa.api.models import NewOrder, Order
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
