"""The invariants of placing, one hostile event at a time: never two orders that pay, and one in the end."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import timedelta

import pytest

from airflow_provider_runa.api.errors import RunaNotFoundError
from airflow_provider_runa.api.models import Order
from airflow_provider_runa.placement.digest import Digests
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    InconclusiveSearchError,
    NothingSentError,
    OrderFailedError,
    OrderHeldBackError,
    OrderRejectedError,
    OutcomeUnknownError,
    PaymentChangedError,
    PlacementError,
    RecordUnavailableError,
    SearchRejectedError,
    StatusUnreadableError,
    WrongAccountError,
)
from airflow_provider_runa.placement.payment import fingerprint
from airflow_provider_runa.placement.place import Placement
from airflow_provider_runa.placement.ports import run_blocking
from airflow_provider_runa.placement.record import Record
from airflow_provider_runa.placement.search import list_since
from airflow_provider_runa.sandbox.engine import DEFAULT_API_KEY
from tests.placement.judge import BASE_URL, START, TimedOut, World
from tests.support.frames import assert_no_secrets

#: What no local variable may show.
SECRETS = ("ada@example.com", DEFAULT_API_KEY, "payouts.example.com")

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
    assert "ada@" not in str(world.records.values)


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


# -- waits that are remembered ----------------------------------------------------------------------------------------


def attempts_of(world: World, seconds: float, *, most: int = 30) -> tuple[Placement, int]:
    """Run attempts that are killed after some seconds until one of them ends; return how many it took."""
    for count in range(1, most + 1):
        world.clock.timeout = world.clock.now() + timedelta(seconds=seconds)
        try:
            return world.attempt(), count
        except TimedOut:
            pass
        except OutcomeUnknownError:
            pass
        finally:
            world.clock.timeout = None
        world.clock.advance(minutes=5)
    raise AssertionError(f"no order after {most} attempts")


def test_a_stored_500_is_overcome_by_attempts_that_are_killed_after_100_seconds() -> None:
    world = World()
    world.fault("status", status=500, stored=True)
    placement, count = attempts_of(world, 100)
    assert (placement.generation, world.paying()) == (1, [placement.order.id])
    assert count <= 5


def test_a_used_key_is_overcome_by_attempts_that_are_killed_after_100_seconds() -> None:
    world = World()
    world.product = "GONE-US"
    with pytest.raises(OrderRejectedError):
        world.attempt()
    world.product = "AMZ-US"
    placement, count = attempts_of(world, 100)
    assert (placement.generation, world.paying()) == (1, [placement.order.id])
    assert count <= 4


def test_an_old_order_is_placed_by_attempts_that_are_killed_after_100_seconds() -> None:
    world = World()
    world.fault("drop_before", count=1000)
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.engine.faults.clear()
    world.clock.advance(days=31)
    placement, count = attempts_of(world, 100)
    assert world.paying() == [placement.order.id]
    assert count <= 3


def test_the_wait_is_not_cut_short_by_what_is_remembered() -> None:
    world = World()
    world.product = "GONE-US"
    with pytest.raises(OrderRejectedError):
        world.attempt()
    world.product = "AMZ-US"
    began = world.clock.now()
    world.clock.timeout = began + timedelta(seconds=100)
    with pytest.raises(TimedOut):
        world.attempt()
    world.clock.timeout = None
    world.attempt()
    assert timedelta(seconds=600) <= world.clock.now() - began < timedelta(seconds=700)


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({}, False),
        ({"attempt": 0}, True),  # written by an attempt that is not the last one: the record may be outdated
        ({"key_held": True}, True),  # that was another question
        ({"absent_since": "2036-01-01T00:00:00+00:00"}, True),  # a clock was wrong
        ({"absent_since": None}, True),
    ],
)
def test_what_is_remembered_of_a_search_counts_only_if_the_last_attempt_wrote_it(
    changes: dict[str, object], waits: bool
) -> None:
    world = World()
    world.fault("drop_before", count=1000)
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.engine.faults.clear()
    world.clock.advance(days=31)
    world.clock.timeout = world.clock.now() + timedelta(seconds=100)
    with pytest.raises(TimedOut):
        world.attempt()
    world.clock.timeout = None
    assert world.records.values is not None
    world.records.values |= changes
    world.clock.advance(hours=1)
    began = world.clock.now()
    world.attempt()
    assert (world.clock.now() - began >= timedelta(seconds=240)) == waits


def test_an_intent_clears_what_is_remembered_unless_the_key_is_held() -> None:
    world = World()
    world.fault("drop_before", count=1000)
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    assert world.records.values is not None
    world.records.values |= {"absent_since": START.isoformat(), "key_held": False}
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    assert world.records.values["absent_since"] is None
    world.records.values |= {"absent_since": START.isoformat(), "key_held": True}
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    assert (world.records.values["absent_since"], world.records.values["key_held"]) == (START.isoformat(), True)
    world.records.values |= {"generation": 1}
    world.engine.faults.clear()
    world.attempt()
    assert (world.records.values["absent_since"], world.records.values["key_held"]) == (None, False)


def test_a_record_of_another_release_is_read() -> None:
    """One that lacks fields, and one that has more."""
    old = {"generation": 2, "idempotency_key": "k", "payment": "p", "body": "b", "first_sent": START.isoformat()}
    record = Record.from_json(old | {"unknown": 1})
    assert record == Record(2, "k", "p", "b", START)
    assert Record.from_json(record.to_json()) == record
    with pytest.raises(ValueError, match="not a record"):
        Record.from_json({"generation": 2})


# -- nothing was sent -------------------------------------------------------------------------------------------------


@BOTH
@KEYED
def test_an_attempt_without_a_connection_says_that_nothing_was_sent(record: bool, order_key: str | None) -> None:
    world = World(record=record, order_key=order_key)
    world.client.refuses = True
    with pytest.raises(NothingSentError, match=r"Nothing was sent: .* playground\.runa\.io:443") as caught:
        world.attempt()
    assert "runa-sandbox" in str(caught.value)
    assert "Unknown" not in str(caught.value)
    assert world.client.lists == 0, "there is nothing to search for"
    world.client.refuses = False
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


def test_a_second_attempt_without_a_connection_says_it_again() -> None:
    world = World()
    world.client.refuses = True
    for _ in range(3):
        with pytest.raises(NothingSentError):
            world.attempt()
    assert world.client.lists == 0


def test_a_first_run_with_a_long_look_back_and_no_connection_has_sent_nothing() -> None:
    world = World(order_key="spring/42")
    world.look_back = timedelta(days=90)
    world.client.refuses = True
    for _ in range(2):
        with pytest.raises(NothingSentError):
            world.attempt()


@BOTH
def test_a_refused_connection_after_a_lost_answer_leaves_the_outcome_unknown(record: bool) -> None:
    world = World(record=record)
    world.fault("drop_after")
    world.client.refuses_after = 1
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.client.refuses_after = None
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


def test_a_record_that_nothing_was_sent_counts_only_if_the_last_attempt_wrote_it() -> None:
    world = World()
    world.client.refuses = True
    with pytest.raises(NothingSentError):
        world.attempt()
    outdated = world.records.values
    world.client.refuses = False
    world.fault("drop_after")
    world.fault("drop_before", count=1000, skip=1)
    world.fault("drop_before", count=1000, method="GET")
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.records.values = outdated
    world.client.refuses = True
    with pytest.raises(OutcomeUnknownError):
        world.attempt()


def test_a_killed_attempt_may_have_sent_something() -> None:
    world = World()
    world.client.refuses = True
    world.clock.timeout = world.clock.now() + timedelta(seconds=20)
    with pytest.raises(TimedOut):
        world.attempt()
    world.clock.timeout = None
    with pytest.raises(OutcomeUnknownError):
        world.attempt()


# -- the order list ---------------------------------------------------------------------------------------------------


class ListedClient:
    """A client that lists what it is given."""

    def __init__(self, rows: list[Order]) -> None:
        self.rows = rows
        self.read = 0

    async def get_order(self, order_id: str) -> Order:
        raise RunaNotFoundError(404)

    async def list_orders(self) -> AsyncIterator[Order]:
        for row in self.rows:
            self.read += 1
            yield row


def listed(ages: Iterable[float | None]) -> ListedClient:
    """Return a client that lists orders of some ages, in days; ``None``: PROCESSING."""
    return ListedClient(
        [
            Order(id=f"O-{number}", status="PROCESSING")
            if age is None
            else Order(id=f"O-{number}", status="COMPLETED", created_at=START - timedelta(days=age))
            for number, age in enumerate(ages)
        ]
    )


async def _ids(client: ListedClient, days: float) -> set[str]:
    return {row.id async for row in list_since(START - timedelta(days=days), client)}


NEWEST_FIRST = [number / 20 for number in range(1000)]  # 50 days


@pytest.mark.parametrize("processing", [1, 2, 7])
def test_a_list_that_is_newest_first_is_not_read_to_its_end(processing: int) -> None:
    ages = [None if number % processing == 1 else age for number, age in enumerate(NEWEST_FIRST)]
    client = listed(ages)
    ids = run_blocking(_ids(client, 10))
    assert client.read < 500
    assert {f"O-{number}" for number, age in enumerate(NEWEST_FIRST) if age <= 10} <= ids


@pytest.mark.parametrize(
    "ages",
    [
        NEWEST_FIRST[::-1],
        [age + 20 for age in NEWEST_FIRST[::-1]] + [5],
        [30 + number / 10**4 for number in range(300, 0, -1)] + [5],  # many old orders of one hour, oldest first
        [30 - number / 10**4 for number in range(300)] + [5],
        [1, 30, 5] + [31] * 50 + [4],
        sorted(NEWEST_FIRST, key=lambda age: age * 7919 % 1),
        [1, *([30] * 50), 5, *([30] * 150), 6],
    ],
    ids=["oldest first", "one new at the end", "an hour", "an hour, newest first", "mixed", "shuffled", "a new one"],
)
def test_a_list_in_another_order_is_read_to_its_end(ages: list[float]) -> None:
    client = listed(ages)
    wanted = {f"O-{number}" for number, age in enumerate(ages) if age <= 10}
    assert wanted <= run_blocking(_ids(client, 10))


@BOTH
def test_an_order_is_found_in_a_list_that_is_oldest_first(record: bool) -> None:
    world = World(record=record)
    for number in range(3):
        world.place_another(number)
    world.clock.advance(days=40)
    world.client.oldest_first = True
    world.fault("status_after", status=500)
    placement = world.attempt()
    assert placement.adopted
    assert world.paying().count(placement.order.id) == 1
    assert len(world.paying()) == 4


def test_a_listed_order_that_cannot_be_read_is_hidden() -> None:
    world = World()
    world.fault("status_after", status=500)
    world.fault("status", status=404, type="not_found", method="GET", path="/order/*", count=100)
    with pytest.raises(OutcomeUnknownError):
        world.attempt()
    world.engine.faults = [fault for fault in world.engine.faults if fault.kind != "status_after"]
    world.clock.advance(minutes=5)
    with pytest.raises(InconclusiveSearchError):
        world.attempt()
    assert len(world.paying()) == 1
    world.engine.faults.clear()
    placement = world.attempt()
    assert world.paying() == [placement.order.id]


# -- what an error says -----------------------------------------------------------------------------------------------


@BOTH
def test_a_rejected_request_for_the_list_leaves_the_outcome_unknown(record: bool) -> None:
    """Runa has just said that the key was used, so an error must not say that no earlier request is known."""
    world = World(record=record)
    world.product = "GONE-US"
    with pytest.raises(OrderRejectedError):
        world.attempt()
    world.product = "AMZ-US"
    world.fault("status", status=401, type="unauthorized", method="GET", count=100)
    with pytest.raises(AccessRejectedError) as caught:
        world.attempt(number=1 if not record else None)
    assert isinstance(caught.value, SearchRejectedError)
    assert "Unknown whether an earlier request placed the order" in str(caught.value)
    assert "This request paid nobody" not in str(caught.value)


def test_a_first_request_for_the_list_that_is_rejected_has_sent_nothing() -> None:
    world = World(order_key="spring/42")
    world.look_back = timedelta(days=90)
    world.fault("status", status=401, type="unauthorized", method="GET", count=100)
    with pytest.raises(SearchRejectedError, match="Nothing was sent"):
        world.attempt()
    assert world.engine.requests["POST /order"] == 0


# -- the digests of the record ----------------------------------------------------------------------------------------


def test_a_recipient_cannot_be_guessed_cheaply_from_the_record() -> None:
    world = World()
    world.attempt()
    values = world.records.values
    assert values is not None
    plain = fingerprint(BASE_URL, world.order())
    body = world.identity().seal(world.order(), 0).body()
    assert plain not in str(values)
    assert hashlib.sha256(body).hexdigest() not in str(values)
    before = time.process_time()
    digests = Digests(plain, values["salt"])
    assert (digests.payment, digests.of_body(body)) == (values["payment"], values["body"])
    assert time.process_time() - before > 0.01, "a guess is cheap"
    assert plain not in repr(digests)


def test_two_records_of_one_payment_have_nothing_in_common() -> None:
    records = []
    for _ in range(2):
        world = World()
        world.attempt()
        records.append(world.records.values)
    assert not {records[0][name] for name in ("payment", "body", "salt")} & {
        records[1][name] for name in ("payment", "body", "salt")
    }


def test_the_salt_stays_from_attempt_to_attempt() -> None:
    world = World()
    world.fault("drop_before", count=1000)
    salts = set()
    for _ in range(2):
        with pytest.raises(OutcomeUnknownError):
            world.attempt()
        salts.add(world.records.values["salt"])
    assert len(salts) == 1


def test_a_record_with_plain_digests_is_compared() -> None:
    """An earlier release wrote such records."""
    world = World()
    world.attempt()
    plain = Digests(fingerprint(BASE_URL, world.order()), "")
    world.records.values |= {
        "salt": "",
        "payment": plain.payment,
        "body": plain.of_body(world.identity().seal(world.order(), 0).body()),
    }
    world.clock.advance(minutes=5)
    assert world.attempt().adopted
    world.amount = 20
    with pytest.raises(PaymentChangedError):
        world.attempt()


# -- the local variables of an error -----------------------------------------------------------------------------------

ENDINGS: dict[str, tuple[type[PlacementError], list[tuple[str, dict[str, object]]]]] = {
    "rejected": (OrderRejectedError, [("status", {"status": 422, "type": "validation_error"})]),
    "held back": (OrderHeldBackError, [("status", {"status": 400, "type": "insufficient_funds"})]),
    "access": (AccessRejectedError, [("status", {"status": 401})]),
    "unknown": (OutcomeUnknownError, [("drop_before", {"count": 1000})]),
    "half answers": (
        OutcomeUnknownError,
        [("half_answer", {"count": 1000}), ("drop_before", {"count": 99, "method": "GET"})],
    ),
    "500": (OutcomeUnknownError, [("status", {"status": 500, "count": 1000})]),
    "gateway": (OutcomeUnknownError, [("status", {"status": 403, "typed": False})]),
    "failed": (OrderFailedError, [("fail_order", {})]),
}


@pytest.mark.parametrize(("kind", "faults"), ENDINGS.values(), ids=ENDINGS)
def test_no_frame_of_an_error_shows_a_secret(
    kind: type[PlacementError], faults: list[tuple[str, dict[str, object]]]
) -> None:
    world = World(order_key="ada@example.com", processing_delay=0.0)
    for name, values in faults:
        world.fault(name, **values)
    with pytest.raises(kind) as caught:
        world.attempt()
    assert_no_secrets(caught.value, SECRETS)


def _change(world: World) -> None:
    world.amount = 20


def _lose_the_account(world: World) -> None:
    world.engine.reset()


def _break_reading(world: World) -> None:
    world.fault("drop_before", method="GET", path="/order*", count=100)


def _break_the_record(world: World) -> None:
    world.records.fail_load = True


def _refuse(world: World) -> None:
    world.client.refuses = True


def _take_the_body(world: World) -> None:
    world.records.values = None
    world.description = "Another"
    world.fault("status", status=401, type="unauthorized", method="GET", path="/order", count=100)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (PaymentChangedError, _change),
        (WrongAccountError, _lose_the_account),
        (StatusUnreadableError, _break_reading),
        (RecordUnavailableError, _break_the_record),
        (StatusUnreadableError, _refuse),
        (SearchRejectedError, _take_the_body),
    ],
)
def test_no_frame_of_an_error_of_a_later_attempt_shows_a_secret(
    kind: type[PlacementError], change: Callable[[World], None]
) -> None:
    world = World(order_key="ada@example.com")
    world.attempt()
    world.clock.advance(minutes=5)
    change(world)
    with pytest.raises(kind) as caught:
        world.attempt()
    assert_no_secrets(caught.value, SECRETS)


def test_no_frame_shows_a_secret_if_nothing_was_sent() -> None:
    world = World(order_key="ada@example.com")
    world.client.refuses = True
    with pytest.raises(NothingSentError) as caught:
        world.attempt()
    assert_no_secrets(caught.value, SECRETS)
