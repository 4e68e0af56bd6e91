"""The invariants of placing, one hostile event at a time: never two orders that pay, and one in the end."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_runa.api.errors import RunaUnreachableError
from airflow_provider_runa.api.models import Order
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    OrderFailedError,
    OrderHeldBackError,
    OrderRejectedError,
    OutcomeUnknownError,
    PaymentChangedError,
    PlacementError,
    RecordUnavailableError,
    RunaOutOfReachError,
    StatusUnreadableError,
    WrongAccountError,
)
from tests.placement.judge import World

BOTH = pytest.mark.parametrize("record", [True, False], ids=["record", "no record"])
KEYED = pytest.mark.parametrize("order_key", [None, "spring/42"], ids=["derived", "order_key"])


@BOTH
@KEYED
def test_an_order_is_placed_once_and_adopted_afterwards(record: bool, order_key: str | None) -> None:
    world = World(record=record, order_key=order_key)
    first = world.attempt()
    world.clock.advance(minutes=5)
    assert world.attempt().order.id == first.order.id
    assert world.paying() == [first.order.id]


@BOTH
@KEYED
@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "half_answer"])
def test_a_lost_answer_leaves_one_order(record: bool, order_key: str | None, fault: str) -> None:
    world = World(record=record, order_key=order_key)
    world.fault(fault)
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


@BOTH
def test_an_attempt_without_any_connection_says_that_nothing_was_sent(record: bool) -> None:
    world = World(record=record)

    async def nobody_listens(*_: Any, **__: Any) -> Order:
        raise RunaUnreachableError("POST /order: no connection (ConnectError: refused)")

    world.client.create_order = nobody_listens  # type: ignore[method-assign]
    with pytest.raises(RunaOutOfReachError, match=r"Nothing was sent in this attempt: .*no earlier request is known"):
        world.attempt()
    del world.client.create_order  # type: ignore[attr-defined]
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


@BOTH
def test_a_connection_that_is_lost_after_a_request_leaves_the_outcome_unknown(record: bool) -> None:
    world = World(record=record)
    send, calls = world.client.create_order, []

    async def once(*args: Any, **options: Any) -> Order:
        calls.append(options)
        if len(calls) > 1:
            raise RunaUnreachableError("POST /order: no connection (ConnectError: refused)")
        return await send(*args, **options)

    world.fault("drop_after")
    world.fault("drop_before", count=1000, method="GET")
    world.client.create_order = once  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknownError):
        world.attempt()


@BOTH
def test_an_outage_longer_than_the_budget_fails_and_the_retry_finds_the_order(record: bool) -> None:
    world = World(record=record)
    world.fault("drop_after")
    world.fault("drop_before", count=1000, skip=1)
    world.fault("drop_before", count=1000, method="GET")
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.engine.faults.clear()
    world.clock.advance(minutes=5)
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


@BOTH
def test_when_the_budget_is_used_up_the_order_list_decides(record: bool) -> None:
    world = World(record=record)
    world.fault("status_after", status=500)
    placement = world.attempt()
    assert placement.adopted
    assert world.paying() == [placement.order.id]


@BOTH
def test_a_blocked_answer_and_an_order_that_cannot_be_read_leave_the_outcome_open(record: bool) -> None:
    """A gateway blocks the answer and Runa rejects every read: no error may say that nobody was paid."""
    world = World(record=record)
    world.fault("status_after", status=400, typed=False)
    world.fault("status", status=404, type="not_found", method="GET", path="/order/*", count=100)
    world.fault("status", status=401, type="unauthorized", method="GET", path="/order", count=100)
    with pytest.raises(PlacementError) as caught:
        world.attempt()
    assert len(world.paying()) == 1
    assert "an earlier request may have" in str(caught.value) or "Unknown" in str(caught.value)
    world.engine.faults.clear()
    world.clock.advance(minutes=5)
    assert world.attempt().order.id in world.paying()
    assert len(world.paying()) == 1


@BOTH
def test_a_stored_500_leads_to_the_next_key_only_on_a_later_attempt(record: bool) -> None:
    world = World(record=record)
    world.fault("status", status=500, stored=True)
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    assert world.paying() == []
    world.clock.advance(minutes=5)
    placement = world.attempt()
    assert placement.generation == 1
    assert world.paying() == [placement.order.id]


@BOTH
@KEYED
def test_a_top_up_fixes_insufficient_funds(record: bool, order_key: str | None) -> None:
    world = World(record=record, order_key=order_key)
    world.empty_balance()
    with pytest.raises(OrderHeldBackError):
        world.attempt()
    world.clock.advance(minutes=5)
    with pytest.raises(OrderHeldBackError):
        world.attempt()
    world.top_up()
    world.clock.advance(minutes=5)
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


@BOTH
def test_an_order_that_failed_is_placed_again(record: bool) -> None:
    world = World(record=record)
    world.fault("fail_order")
    world.attempt()
    world.clock.advance(minutes=5)
    placement = world.attempt()
    assert placement.generation == 1
    assert world.paying() == [placement.order.id]


def test_an_order_of_another_run_that_failed_long_ago_is_placed_again_at_once() -> None:
    world = World(order_key="spring/42")
    world.fault("fail_order")
    world.attempt()
    world.clock.advance(days=2)
    world.records.values = None
    assert world.attempt(number=1).generation == 1


def test_a_fresh_order_that_fails_at_once_ends_the_attempt() -> None:
    world = World(processing_delay=0.0)
    world.fault("fail_order")
    with pytest.raises(OrderFailedError):
        world.attempt()


@BOTH
@pytest.mark.parametrize("days", [20, 29.5, 31, 400])
def test_weeks_pass_after_a_lost_answer(record: bool, days: float) -> None:
    world = World(record=record)
    world.fault("drop_after")
    world.fault("drop_before", count=1000, skip=1)
    world.fault("drop_before", count=1000, method="GET")
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.engine.faults.clear()
    world.clock.advance(days=days)
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


@pytest.mark.parametrize("days", [20, 31, 100])
def test_weeks_pass_and_the_record_is_lost_twice(days: float) -> None:
    """A new record must not assume that nothing was sent before it."""
    world = World()
    world.attempt()
    world.records.values = None
    world.clock.advance(days=5)
    world.fault("drop_before", count=1000, method="GET", path="/order*")
    with pytest.raises(StatusUnreadableError):
        world.attempt()
    world.engine.faults.clear()
    world.clock.advance(days=days)
    world.attempt()
    assert len(world.paying()) == 1


def test_another_run_pays_again_after_a_month_only_without_look_back() -> None:
    world = World(order_key="spring/42")
    world.look_back = timedelta(days=90)
    first = world.attempt()
    world.clock.advance(days=60)
    world.records.values = None
    assert world.attempt(number=1).order.id == first.order.id


def test_a_first_attempt_with_a_long_look_back_does_not_wait() -> None:
    world = World(order_key="spring/42")
    world.look_back = timedelta(days=90)
    began = world.clock.now()
    world.attempt()
    assert world.clock.now() - began < timedelta(seconds=1)


@BOTH
def test_a_changed_payment_is_rejected_by_field_and_item(record: bool) -> None:
    world = World(record=record)
    world.attempt()
    world.amount = 20
    world.clock.advance(minutes=5)
    with pytest.raises(PaymentChangedError, match=r"items\[0\]: differs in face_value") as caught:
        world.attempt()
    assert "ada@example.com" not in str(caught.value)
    assert len(world.paying()) == 1


@BOTH
def test_a_changed_description_adopts(record: bool, caplog: pytest.LogCaptureFixture) -> None:
    world = World(record=record)
    first = world.attempt()
    world.description = "Reward, second try"
    world.clock.advance(minutes=5)
    assert world.attempt().order.id == first.order.id
    assert "differ from this task's" in caplog.text


def test_a_key_used_for_a_rejected_body_leads_to_the_next_key() -> None:
    world = World(record=False)
    world.product = "GONE-US"
    with pytest.raises(OrderRejectedError):
        world.attempt()
    world.product = "AMZ-US"
    world.clock.advance(minutes=5)
    placement = world.attempt()
    assert placement.generation == 1
    assert len(world.paying()) == 1


def test_a_rejection_before_processing_does_not_hide_an_order_whose_answer_was_lost() -> None:
    """A 403 on a retry says nothing about the order that the first request placed."""
    world = World()
    world.fault("drop_after")
    world.fault("status", status=403, skip=1)
    with pytest.raises(OrderRejectedError):
        world.attempt()
    world.clock.advance(minutes=5)
    world.fault("status", status=403, count=1)
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


def test_a_wrong_key_keeps_the_generation() -> None:
    world = World()
    world.fault("status", status=401)
    with pytest.raises(AccessRejectedError):
        world.attempt()
    assert world.attempt().generation == 0


def test_an_order_that_the_account_does_not_have_is_no_proof() -> None:
    world = World()
    world.attempt()
    world.engine.reset()
    with pytest.raises(WrongAccountError):
        world.attempt()
    assert world.paying() == []


def test_nothing_is_sent_without_the_record() -> None:
    world = World()
    world.records.fail_save = lambda number: number == 1
    with pytest.raises(RecordUnavailableError):
        world.attempt()
    assert world.engine.requests["POST /order"] == 0
    world.records.fail_load = True
    with pytest.raises(RecordUnavailableError):
        world.attempt()
    assert world.engine.requests["POST /order"] == 0


def test_the_record_is_written_before_the_request() -> None:
    world = World()
    seen = []
    handle = world.engine.handle

    def watch(*args: object, **kwargs: object) -> object:
        seen.append((args[:2], world.records.values))
        return handle(*args, **kwargs)  # type: ignore[arg-type]

    world.engine.handle = watch  # type: ignore[method-assign,assignment]
    world.attempt()
    posts = [values for request, values in seen if request == ("POST", "/order")]
    assert posts
    assert all(values["idempotency_key"] == world.identity().idempotency_key(0) for values in posts)


def test_a_record_that_cannot_be_written_afterwards_does_not_fail_the_order() -> None:
    world = World()
    world.records.fail_save = lambda number: number == 2
    first = world.attempt()
    world.records.fail_save = lambda number: False
    assert world.attempt().order.id == first.order.id


def test_the_record_holds_no_secret() -> None:
    world = World()
    world.attempt()
    assert "ada" not in str(world.records.values)


def test_a_search_waits_for_hidden_orders() -> None:
    world = World(processing_delay=60.0)
    world.fault("status_after", status=500)
    placement = world.attempt()
    assert placement.adopted
    assert world.paying() == [placement.order.id]


def test_placement_loads_neither_airflow_nor_http() -> None:
    program = (
        "import sys; import airflow_provider_runa.placement.place; "
        "print([m for m in ('airflow', 'httpx', 'requests', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
