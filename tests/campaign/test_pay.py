"""Paying and settling: orders of batches, rejected and failed rows, and results in the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_runa.api.errors import RunaConnectionError, RunaError
from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.campaign.ledger import LEASE
from airflow_provider_runa.campaign.pay import Paid
from airflow_provider_runa.campaign.tables import BatchState
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    OrderHeldBackError,
    OrderRejectedError,
    OutcomeUnknownError,
)
from airflow_provider_runa.placement.place import Policy
from tests.campaign.world import Campaign, rejected_row, row

LINK: Mapping[str, Any] = {"distribution_method": {"type": "PAYOUT_LINK"}, "email_address": None, "product": "AMZ-US"}


def rows(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [row(number, **fields) for number in numbers]


def good(number: int) -> dict[str, Any]:
    return row(number, product="AMZ-US")


def finish(campaign: Campaign, **options: Any) -> Paid:
    paid = campaign.pay(**options)
    campaign.clock.advance(seconds=10)
    campaign.settle()
    return paid


def once(*numbers: int) -> dict[str, int]:
    return {f"customer-{number}@example.com": 1 for number in numbers}


def links(campaign: Campaign) -> list[str | None]:
    with campaign.database.begin() as connection:
        query = sa.text("SELECT payout_link FROM runa_ledger ORDER BY position")
        return [link for (link,) in connection.execute(query)]


# -- the usual way ----------------------------------------------------------------------------------------------------


def test_everybody_is_paid_once_and_the_ledger_knows(campaign: Campaign) -> None:
    campaign.plan(rows(*range(450)))
    assert finish(campaign).placed == 3
    assert campaign.paid() == once(*range(450))
    assert (campaign.states(), campaign.total("paid")) == ({"paid": 450}, Decimal(4500))
    order_ids = {order.id for order in campaign.engine.orders()}
    for found in campaign.ledger.rows():
        assert found["order_id"] in order_ids
        assert found["order_reference"].startswith("af-")
        assert None not in (found["item_id"], found["sent_at"], found["paid_at"])


def test_an_order_names_its_campaign_and_its_batch(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    finish(campaign)
    (order,) = campaign.engine.orders()
    assert order.body["metadata"]["airflow_campaign"] == "spring"
    assert order.body["metadata"]["airflow_batch"] == batch.id
    (found,) = campaign.ledger.rows()
    assert order.body["description"] == f"spring [{found['order_reference']}]"


def test_paying_again_sends_nothing(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    finish(campaign)
    campaign.clock.advance(days=400)
    assert finish(campaign, run="a year later") == Paid()
    assert len(campaign.engine.orders()) == 1


def test_rows_are_sent_until_their_order_is_final(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    campaign.pay()
    (batch,) = campaign.ledger.batches(BatchState.PLACED)
    assert campaign.settle() == [batch.order_id]
    assert campaign.states() == {"sent": 1}
    campaign.clock.advance(seconds=10)
    assert campaign.settle() == []
    assert campaign.states() == {"paid": 1}
    assert campaign.settle() == []


def test_progress_is_called_before_and_after_each_order(campaign: Campaign) -> None:
    campaign.plan(rows(*range(450)))
    calls: list[tuple[int, int, int]] = []
    campaign.pay(concurrency=1, progress=lambda paid, left: calls.append((paid.placed, paid.in_flight, left)))
    assert calls == [(0, 1, 2), (1, 0, 2), (1, 1, 1), (2, 0, 1), (2, 1, 0), (3, 0, 0)]


def test_waiting_for_the_lease_of_a_run_that_was_killed_says_until_when(
    campaign: Campaign, caplog: pytest.LogCaptureFixture
) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    campaign.ledger.take(batch.id, "one", campaign.clock.now())
    until = f"{campaign.clock.now() + LEASE:%Y-%m-%d %H:%M:%S} UTC"
    with caplog.at_level("INFO"):
        assert campaign.pay(run="two").placed == 1
    assert f"Another run has taken 1 batch(es), until {until} if it was killed" in caplog.text


def test_orders_are_placed_at_once(campaign: Campaign) -> None:
    campaign.plan(rows(*range(1000)))
    client = WaitingClient(campaign)
    campaign.pay(client=client, concurrency=4)
    assert client.most == 4
    assert len(campaign.engine.orders()) == 5


def test_orders_are_settled_at_once(campaign: Campaign) -> None:
    campaign.plan(rows(*range(1000)))
    campaign.pay()
    campaign.clock.advance(seconds=10)
    client = WaitingClient(campaign)

    async def statuses(order_ids: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(order_ids, "COMPLETED")

    campaign.settle(client=client, statuses=statuses)
    assert client.most == 5


def test_an_order_takes_one_request_until_it_is_settled(campaign: Campaign) -> None:
    campaign.plan(rows(*range(1000)))
    client = WaitingClient(campaign)
    campaign.pay(client=client)
    assert client.requests == 5


class WaitingClient:
    """A client that waits in each request, and counts the requests that wait at once."""

    def __init__(self, campaign: Campaign) -> None:
        self.real = campaign.client
        self.list_orders, self.reserve_turn = self.real.list_orders, self.real.reserve_turn
        self.now = self.most = self.requests = 0

    async def _wait(self) -> None:
        self.requests += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        self.now -= 1

    async def get_order(self, order_id: str) -> Order:
        await self._wait()
        return await self.real.get_order(order_id)

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        await self._wait()
        return await self.real.create_order(order, idempotency_key=idempotency_key, execution_mode=execution_mode)


# -- links ------------------------------------------------------------------------------------------------------------


def test_links_are_not_kept(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2, **LINK))
    finish(campaign)
    assert links(campaign) == [None, None]


def test_links_are_kept_on_request(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2, **LINK))
    campaign.pay()
    campaign.clock.advance(seconds=10)
    campaign.settle(keep_links=True)
    kept = links(campaign)
    assert len(set(kept)) == 2
    assert all(link and link.startswith("https://payouts.example.com/") for link in kept)


def test_equal_items_get_an_id_each(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2, 3, **LINK))
    finish(campaign)
    assert len({found["item_id"] for found in campaign.ledger.rows()} - {None}) == 3


# -- failures and rejections ------------------------------------------------------------------------------------------


def test_an_order_that_failed_fails_only_its_rows_and_the_next_plan_pays_them(campaign: Campaign) -> None:
    campaign.plan(rows(*range(201)))
    campaign.fault("fail_order", skip=1)
    finish(campaign)
    failed = [found["recipient_key"] for found in campaign.ledger.rows("failed")]
    assert len(failed) in (1, 200)
    assert campaign.states() == {"failed": len(failed), "paid": 201 - len(failed)}
    assert campaign.plan(rows(*range(201))).planned_again == len(failed)
    finish(campaign)
    assert campaign.paid() == once(*range(201))
    assert campaign.states() == {"paid": 201}


def test_failed_rows_are_planned_again_unchanged_for_the_run_that_placed_them(campaign: Campaign) -> None:
    campaign.plan(rows(*range(201)))
    campaign.fault("fail_order", skip=1)
    finish(campaign)
    failed = campaign.states()["failed"]
    items = {found["recipient_key"]: found["amount"] for found in campaign.ledger.rows("failed")}
    assert campaign.ledger.plan_failed_again("another run", campaign.clock.now()) == 0
    assert campaign.ledger.plan_failed_again("run", campaign.clock.now()) == failed
    planned = list(campaign.ledger.rows("planned"))
    assert {found["recipient_key"]: found["amount"] for found in planned} == items
    assert {(found["order_id"], found["sent_at"], found["error"]) for found in planned} == {(None, None, None)}
    assert campaign.ledger.plan_failed_again("run", campaign.clock.now()) == 0
    finish(campaign)
    assert campaign.paid() == once(*range(201))
    assert campaign.states() == {"paid": 201}


def test_rejected_and_paid_rows_are_not_planned_again(campaign: Campaign) -> None:
    campaign.plan([rejected_row(1), row(3)])
    finish(campaign)
    assert campaign.states() == {"rejected": 1, "paid": 1}
    assert campaign.ledger.plan_failed_again("run", campaign.clock.now()) == 0


def test_an_order_that_failed_before_it_was_read_frees_its_rows(campaign: Campaign) -> None:
    # Its answer was lost, so the attempt reads it only when it has already FAILED.
    failing = Campaign(campaign.database, processing_delay=0.0)
    failing.plan(rows(1))
    failing.fault("fail_order")
    finish(failing)
    assert failing.states() == {"failed": 1}
    failing.plan(rows(1))
    finish(failing)
    assert failing.paid() == once(1)


def test_a_rejected_order_rejects_only_its_rows(campaign: Campaign) -> None:
    campaign.plan([rejected_row(1), good(2), row(3)])
    paid = finish(campaign)
    assert campaign.states() == {"rejected": 2, "paid": 1}
    assert campaign.paid() == once(3)
    assert [type(error) for error in paid.rejected] == [OrderRejectedError]
    assert (paid.placed, paid.unplaced) == (1, [])
    assert "product_validation_error" in str(campaign.ledger.reason("rejected"))
    assert all("product_validation_error" in found["error"] for found in campaign.ledger.rows("rejected"))


def test_exactly_the_offending_rows_are_isolated(campaign: Campaign) -> None:
    campaign.plan([rejected_row(n) if n in (3, 4, 150) else good(n) for n in range(200)])
    paid = finish(campaign, isolate=True)
    assert {found["recipient_key"] for found in campaign.ledger.rows("rejected")} == {
        "customer-3",
        "customer-4",
        "customer-150",
    }
    assert len(paid.rejected) == 3
    assert campaign.paid() == once(*(set(range(200)) - {3, 4, 150}))
    assert campaign.states() == {"paid": 197, "rejected": 3}


def test_isolating_resumes_where_a_killed_attempt_stopped(campaign: Campaign) -> None:
    campaign.plan([rejected_row(n) if n == 3 else good(n) for n in range(8)])
    for number in range(1, 12):
        with contextlib.suppress(MemoryError):
            campaign.pay(client=DyingClient(campaign, number), isolate=True, concurrency=1)
    assert len(campaign.engine.order_posts) > 2, "no attempt came as far as to split"
    finish(campaign, isolate=True)
    assert campaign.paid() == once(0, 1, 2, 4, 5, 6, 7)
    assert campaign.states() == {"paid": 7, "rejected": 1}


class DyingClient:
    """A client that fails at its n-th order, before or after it was placed."""

    def __init__(self, campaign: Campaign, number: int) -> None:
        self.real = campaign.client
        self.get_order, self.list_orders = self.real.get_order, self.real.list_orders
        self.reserve_turn = self.real.reserve_turn
        self.left = number

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        self.left -= 1
        if self.left == 0:
            raise MemoryError
        placed = await self.real.create_order(order, idempotency_key=idempotency_key, execution_mode=execution_mode)
        if self.left == 1:
            raise MemoryError
        return placed


def test_an_empty_balance_stops_the_attempt_until_a_top_up(campaign: Campaign) -> None:
    campaign.plan(rows(*range(1000)))
    campaign.engine.set_balance("USD", Decimal(4500))
    paid = campaign.pay(concurrency=1)
    assert paid.placed == 2
    assert [type(error) for error in paid.unplaced] == [OrderHeldBackError]
    assert len(campaign.engine.order_posts) == 3, "orders were sent after one was held back"
    assert len(campaign.ledger.batches(BatchState.OPEN)) == 3
    assert "insufficient_funds" in str(campaign.ledger.reason(BatchState.OPEN))
    campaign.engine.set_balance("USD", Decimal(100000))
    campaign.clock.advance(seconds=600)
    finish(campaign)
    assert campaign.paid() == once(*range(1000))
    assert campaign.states() == {"paid": 1000}


def test_a_rejected_api_key_stops_the_attempt(campaign: Campaign) -> None:
    campaign.plan(rows(*range(1000)))
    campaign.fault("status", status=401)
    paid = campaign.pay(concurrency=1)
    assert [type(error) for error in paid.unplaced] == [AccessRejectedError]
    assert (len(campaign.engine.order_posts), campaign.engine.orders()) == (0, [])
    finish(campaign)
    assert campaign.paid() == once(*range(1000))


def test_a_rejection_after_a_lost_answer_does_not_free_the_rows(campaign: Campaign) -> None:
    """The order whose answer was lost was placed: trusting the rejection would pay twice."""
    campaign.plan(rows(1))
    campaign.fault("drop_after")
    campaign.fault("status", status=422, type="validation_error", skip=1, count=1)
    finish(campaign)
    assert campaign.states() == {"paid": 1}
    assert campaign.paid() == once(1)


def test_a_rejection_frees_rows_only_when_an_earlier_order_must_be_in_the_list(campaign: Campaign) -> None:
    """If Runa does not store the rejection under the key, no answer shows whether the earlier request was placed."""
    campaign.plan(rows(1))
    campaign.fault("drop_before", count=100)
    campaign.pay()
    campaign.engine.faults.clear()
    campaign.fault("status", status=422, type="validation_error", count=1000)
    began = campaign.clock.now()
    assert [type(error) for error in campaign.pay().rejected] == [OrderRejectedError]
    assert (campaign.clock.now() - began).total_seconds() >= Policy().settling
    assert campaign.states() == {"rejected": 1}
    campaign.engine.faults.clear()
    campaign.plan(rows(1))
    finish(campaign)
    assert campaign.paid() == once(1)


def test_an_earlier_request_that_arrives_meanwhile_is_found(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    late = LateClient(campaign)
    campaign.pay(client=late)
    campaign.fault("status", status=422, type="validation_error", count=1000)

    class Clock:
        now = campaign.clock.now

        async def sleep(self, seconds: float) -> None:
            await campaign.clock.sleep(seconds)
            if seconds >= 30 and campaign.engine.faults:  # the long wait between two searches, with its lease renewed
                campaign.engine.faults.clear()
                await late.arrive()

    assert campaign.pay(clock=Clock()).placed == 1
    campaign.settle()
    assert campaign.states() == {"paid": 1}
    assert campaign.paid() == once(1)


class LateClient:
    """A client whose requests are lost, and the last of them arrives late."""

    def __init__(self, campaign: Campaign) -> None:
        self.real = campaign.client
        self.get_order, self.list_orders = self.real.get_order, self.real.list_orders
        self.reserve_turn = self.real.reserve_turn

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        self.last = (order, idempotency_key, execution_mode)
        raise RunaConnectionError("no answer")

    async def arrive(self) -> None:
        order, key, mode = self.last
        await self.real.create_order(order, idempotency_key=key, execution_mode=mode)


def test_an_unknown_outcome_leaves_the_rows_sent_for_the_next_attempt(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    campaign.fault("drop_after", count=100)
    campaign.fault("drop_before", count=1000, method="GET", path="/order")
    paid = campaign.pay()
    assert [type(error) for error in paid.unplaced] == [OutcomeUnknownError]
    assert campaign.states() == {"sent": 2}
    assert campaign.plan(rows(1, 2), run="another").already_open == 2
    campaign.engine.faults.clear()
    finish(campaign)
    assert campaign.paid() == once(1, 2)


def test_rows_whose_outcome_is_unknown_are_found_a_year_later(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    campaign.fault("drop_after", count=100)
    campaign.fault("drop_before", count=1000, method="GET", path="/order")
    campaign.pay()
    campaign.engine.faults.clear()
    campaign.clock.advance(days=400)
    campaign.plan(rows(1, 2), run="a year later")
    finish(campaign, run="a year later")
    assert campaign.paid() == once(1, 2)
    assert campaign.states() == {"paid": 2}


# -- several at once --------------------------------------------------------------------------------------------------


def test_a_run_waits_for_a_batch_of_another_run_until_its_lease_ends(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    began = campaign.clock.now()
    assert campaign.ledger.take(batch.id, "one", began) == 1
    assert campaign.ledger.take(batch.id, "two", began) is None
    assert campaign.pay(run="two").placed == 1
    assert campaign.clock.now() - began > LEASE
    finish(campaign, run="two")
    assert campaign.paid() == once(1)


def test_a_run_does_not_wait_for_ever_for_a_batch_of_another_run(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    campaign.ledger.take(batch.id, "one", campaign.clock.now() + LEASE * 10)  # it takes the batch again and again
    assert campaign.pay(run="two") == Paid(open=1)
    assert campaign.engine.orders() == []


def test_a_run_waits_as_long_for_a_batch_that_another_run_takes_late(campaign: Campaign) -> None:
    campaign.plan(rows(*range(201)))
    second = campaign.ledger.batches(BatchState.OPEN)[1]
    campaign.ledger.take(second.id, "one", campaign.clock.now())

    def take_long(paid: Paid, left: int) -> None:
        if (paid.placed, paid.in_flight) == (1, 0) and not late:
            late.append(left)
            campaign.clock.advance(seconds=400)
            campaign.ledger.take(second.id, "one", campaign.clock.now())

    late: list[int] = []
    paid = campaign.pay(run="two", progress=take_long)
    assert paid.placed == 2


def test_a_batch_belongs_to_its_run_as_long_as_that_searches(campaign: Campaign) -> None:
    """The search takes longer than a lease, which is renewed meanwhile."""
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    campaign.fault("drop_before", count=100)
    campaign.pay()
    campaign.engine.faults.clear()
    campaign.fault("status", status=422, type="validation_error", count=10**6)
    began, tried = campaign.clock.now(), []

    class Clock:
        now = campaign.clock.now

        async def sleep(self, seconds: float) -> None:
            await campaign.clock.sleep(seconds)
            tried.append(campaign.ledger.take(batch.id, "another", campaign.clock.now()))

    assert [type(error) for error in campaign.pay(clock=Clock()).rejected] == [OrderRejectedError]
    assert campaign.clock.now() - began > 2 * LEASE
    assert set(tried) == {None}


@pytest.mark.parametrize("seconds", [60, 200])
def test_attempts_that_are_cut_off_come_to_an_end(campaign: Campaign, seconds: float) -> None:
    """``execution_timeout`` is shorter than the time in which an order may still appear: that is not waited anew."""
    campaign.plan(rows(1))
    campaign.fault("drop_before", count=100)
    campaign.pay(policy=Policy(budget=30))
    campaign.engine.faults.clear()
    campaign.fault("status", status=422, type="validation_error", count=10**6)

    class Clock:
        now = campaign.clock.now
        until = campaign.clock.now()

        async def sleep(self, pause: float) -> None:
            if campaign.clock.now() + timedelta(seconds=pause) > self.until:
                campaign.clock.time = self.until
                raise TimedOut
            await campaign.clock.sleep(pause)

    for _ in range(40):
        clock = Clock()
        clock.until = campaign.clock.now() + timedelta(seconds=seconds)
        with contextlib.suppress(TimedOut):
            campaign.pay(clock=clock)
        campaign.clock.advance(seconds=30)
        if campaign.states() == {"rejected": 1}:
            break
    assert campaign.states() == {"rejected": 1}, "the wait begins anew at each attempt"
    campaign.engine.faults.clear()
    campaign.plan(rows(1))
    finish(campaign)
    assert campaign.paid() == once(1)


def test_an_attempt_that_stood_still_before_it_sends_is_fenced(campaign: Campaign) -> None:
    """Its worker slept between its record and its request, and another run has closed the batch meanwhile."""
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)

    class Slow:
        """A client whose turn comes only after an hour."""

        get_order, list_orders = campaign.client.get_order, campaign.client.list_orders
        create_order = campaign.client.create_order

        def reserve_turn(self) -> float:
            campaign.clock.advance(seconds=3600)
            attempt = campaign.ledger.take(batch.id, "another", campaign.clock.now())
            if attempt is not None:
                campaign.ledger.reject(batch.id, attempt, "rejected")
            return 0.0

    assert campaign.pay(client=Slow()).placed == 0
    assert campaign.engine.orders() == []
    campaign.plan(rows(1), run="another")
    finish(campaign, run="another")
    assert campaign.paid() == once(1)


def test_the_same_run_continues_at_once(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    campaign.ledger.take(batch.id, "run", campaign.clock.now())
    finish(campaign)
    assert campaign.paid() == once(1)


class Meanwhile:
    """A client that calls a function while its first request is in flight."""

    def __init__(self, campaign: Campaign, event: Any, *, when: str) -> None:
        self.real = campaign.client
        self.event, self.when = event, when
        self.list_orders, self.reserve_turn = self.real.list_orders, self.real.reserve_turn

    async def _happen(self, when: str) -> None:
        if self.event is not None and self.when == when:
            event, self.event = self.event, None
            await event()

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        await self._happen("before POST")
        placed = await self.real.create_order(order, idempotency_key=idempotency_key, execution_mode=execution_mode)
        await self._happen("after POST")
        return placed

    async def get_order(self, order_id: str) -> Order:
        await self._happen("before GET")
        return await self.real.get_order(order_id)


@pytest.mark.parametrize("when", ["before POST", "after POST"])
def test_a_fenced_attempt_does_no_harm(campaign: Campaign, when: str) -> None:
    campaign.plan(rows(1, 2))

    async def overtake() -> None:
        await campaign.paying()

    client = Meanwhile(campaign, overtake, when=when)
    campaign.pay(client=client)
    campaign.clock.advance(seconds=10)
    campaign.settle()
    assert campaign.paid() == once(1, 2)
    assert campaign.states() == {"paid": 2}


def test_two_attempts_of_one_run_do_not_take_a_batch_from_each_other_for_ever(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    client = WaitingClient(campaign)

    class Overtaken:
        list_orders, get_order, reserve_turn = client.list_orders, client.get_order, client.reserve_turn

        async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
            assert client.requests < 5, "they take it from each other for ever"
            placed = await client.create_order(order, idempotency_key=idempotency_key, execution_mode=execution_mode)
            campaign.ledger.take(batch.id, "run", campaign.clock.now())
            return placed

    campaign.pay(client=Overtaken())
    assert client.requests == 1
    finish(campaign)
    assert campaign.paid() == once(1)


def test_two_runs_settle_the_same_orders(campaign: Campaign) -> None:
    """The second finds that what was sent is erased, and keeps what the first has written."""
    campaign.plan(rows(1, 2))
    campaign.pay()
    campaign.clock.advance(seconds=10)

    async def statuses(order_ids: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(order_ids, "COMPLETED")

    async def be_faster() -> None:
        await campaign.settling(statuses=statuses)

    client = Meanwhile(campaign, be_faster, when="before GET")
    assert campaign.settle(client=client, statuses=statuses) == []
    assert campaign.states() == {"paid": 2}


def test_an_order_that_cannot_be_read_is_settled_later(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    campaign.pay()
    campaign.clock.advance(seconds=10)
    campaign.fault("drop_before", count=100, method="GET", path="/order/*")
    with pytest.raises(RunaError):
        campaign.settle()
    assert campaign.states() == {"sent": 1}
    campaign.engine.faults.clear()
    campaign.settle()
    assert campaign.states() == {"paid": 1}


@pytest.mark.parametrize("listed", ["COMPLETED", "FAILED"])
def test_an_order_that_is_final_only_in_the_list_is_settled_later(campaign: Campaign, listed: str) -> None:
    campaign.plan(rows(1))
    campaign.pay()
    (batch,) = campaign.ledger.batches(BatchState.PLACED)

    async def ahead(order_ids: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(order_ids, listed)

    assert campaign.settle(statuses=ahead) == [batch.order_id]
    assert campaign.states() == {"sent": 1}
    campaign.clock.advance(seconds=10)
    assert campaign.settle() == []
    assert [found["item_id"] is not None for found in campaign.ledger.rows("paid")] == [True]


class TimedOut(BaseException):
    """Like Airflow's ``execution_timeout``, which can be raised anywhere in the task."""


@pytest.mark.parametrize("kind", [OSError, TimedOut])
def test_an_exception_while_paying_is_raised_unchanged(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    campaign.plan(rows(*range(400)))

    def broken(*_: object) -> None:
        raise kind("at this moment")

    monkeypatch.setattr(campaign.ledger, "take", broken)
    with pytest.raises(kind, match="at this moment"):
        campaign.pay()
