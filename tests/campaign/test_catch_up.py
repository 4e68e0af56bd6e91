"""Catching up: what Runa's order list says about a campaign, before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.catch_up import LOOK_BACK
from airflow_provider_runa.campaign.errors import (
    CatchUpInconclusiveError,
    LedgerBehindError,
    OrderListUnreadableError,
    OtherAccountError,
)
from airflow_provider_runa.campaign.found import Absorbed, compared_until
from airflow_provider_runa.campaign.ledger import LEASE, FencedError
from airflow_provider_runa.campaign.plan import Limits, recover
from airflow_provider_runa.campaign.tables import BatchState, open_engine
from airflow_provider_runa.placement.errors import NothingSentError, SearchRejectedError
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.place import Policy
from airflow_provider_runa.placement.record import Record
from airflow_provider_runa.sandbox.engine import Lie
from tests.campaign.world import DEFAULTS, Campaign, row
from tests.placement.judge import BASE_URL, START

ITEM: Mapping[str, Any] = {
    "distribution_method": {"type": "EMAIL", "email_address": "customer-1@example.com"},
    "products": {"type": "SINGLE", "value": "AMZ-US"},
}

#: An order that somebody else has placed.
OTHERS: Mapping[str, Any] = {
    "payment_method": {"type": "ACCOUNT_BALANCE", "currency": "USD"},
    "items": [{"face_value": 1, **ITEM}],
    "description": "other",
}

EUR_TEMPLATE = "PT-01HQ130AHCKRRB45Z5XV2Y8W9K"


def rows(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [row(number, **fields) for number in numbers]


def once(*numbers: int) -> dict[str, int]:
    return {f"customer-{number}@example.com": 1 for number in numbers}


def finish(campaign: Campaign, **options: Any) -> None:
    campaign.pay(**options)
    campaign.clock.advance(seconds=10)
    campaign.settle()


def same_runa(campaign: Campaign, database: Database | None = None, *, name: str = "spring") -> Campaign:
    """Return a campaign with the same Runa and clock and another ledger, which is empty if none is given."""
    other = Campaign(database or open_engine("sqlite://"), name=name)
    other.clock, other.engine, other.client = campaign.clock, campaign.engine, campaign.client
    return other


def paid(*numbers: int, **fields: Any) -> Campaign:
    """Return a campaign that has paid some rows."""
    campaign = Campaign()
    campaign.plan(rows(*numbers, **fields))
    finish(campaign)
    return campaign


def send(campaign: Campaign, identity: OrderIdentity, *keys: str, description: str = "spring", **order: Any) -> str:
    """Place an order past the ledger, which pays these recipient keys, and return its id."""
    items = [
        {
            "face_value": 10,
            "distribution_method": {"type": "EMAIL", "email_address": f"{key}@example.com"},
            "products": {"type": "SINGLE", "value": "AMZ-US"},
        }
        for key in keys
    ]
    sealed = identity.seal(NewOrder.build(currency="USD", description=description, items=items), 0)
    if order:
        sealed = sealed.model_copy(update=order)
    placed = campaign.client.client.create_order(
        sealed, idempotency_key=identity.idempotency_key(0), execution_mode="async"
    )
    campaign.clock.advance(seconds=10)
    return placed.id


def identity_of(campaign: Campaign, *keys: str, batch: str = "elsewhere") -> OrderIdentity:
    """Return the identity of an order that another ledger of the campaign has placed, with its digests."""
    pairs = digests.to_metadata([campaign.ledger.digest(key) for key in keys])
    return replace(campaign.ledger.identity(batch), rows=tuple(pairs.items()))


def taken(campaign: Campaign, owner: str = "run") -> tuple[Batch, int]:
    """Take the open batch, as an attempt does."""
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    attempt = campaign.ledger.take(batch.id, owner, campaign.clock.now())
    assert attempt is not None
    return batch, attempt


# -- a ledger that does not know what was paid ------------------------------------------------------------------------


@pytest.fixture
def empty(database: Database) -> Campaign:
    """A campaign that has paid 450 rows, with an empty ledger of each kind."""
    return same_runa(paid(*range(450)), database)


def test_an_empty_ledger_learns_who_was_paid(empty: Campaign) -> None:
    assert empty.catch_up() == Absorbed(unknown=450)
    report = empty.plan(rows(*range(450)))
    assert (report.found, report.planned, report.to_pay, report.batches) == (450, 0, 0, [])
    finish(empty)
    assert empty.states() == {"paid": 450}
    assert {line["order_id"] for line in empty.ledger.rows()} == {order.id for order in empty.engine.orders()}
    assert len({line["item_id"] for line in empty.ledger.rows()} - {None}) == 450
    assert len(empty.engine.orders()) == 3


def test_once_taken_in_they_stay_paid(empty: Campaign) -> None:
    for run in ("monday", "tuesday", "wednesday"):
        empty.catch_up()
        empty.plan(rows(*range(450)), run=run)
        finish(empty, run=run)
        assert empty.states() == {"paid": 450}
    assert empty.catch_up() == Absorbed()


def test_an_input_that_names_them_bit_by_bit_takes_them_in_bit_by_bit(empty: Campaign) -> None:
    for count in (100, 101, 300, 450):
        empty.catch_up()
        report = empty.plan(rows(*range(count)), run=f"run of {count}")
        assert (report.planned, report.to_pay) == (0, 0)
        finish(empty)
        assert empty.states() == {"paid": count}
    assert len(empty.engine.orders()) == 3


def test_what_runa_paid_is_what_the_ledger_says(database: Database) -> None:
    campaign = same_runa(paid(1, 2, amount=10), database)
    campaign.catch_up()
    campaign.plan(rows(1, 2, amount=99))
    finish(campaign)
    assert campaign.ledger.totals() == {"paid": (2, Decimal(20))}
    report = campaign.plan(rows(1, 2, amount=99), run="another")
    assert (report.already_paid, report.other_amount) == (2, 2)


def test_limits_do_not_count_what_runa_has_paid(empty: Campaign) -> None:
    empty.catch_up()
    report = empty.plan(rows(*range(451)), limits=Limits(total=Decimal(10), recipients=1))
    assert (report.found, report.planned, report.total) == (450, 1, Decimal(10))


def test_an_order_in_another_currency_is_taken_in(database: Database) -> None:
    first = Campaign()
    first.plan(rows(1), currency="EUR", defaults={"template_id": EUR_TEMPLATE})
    finish(first)
    campaign = same_runa(first, database)
    campaign.catch_up()
    assert campaign.plan(rows(1, 2)).planned == 1
    finish(campaign)
    assert campaign.ledger.totals("EUR") == {"paid": (1, Decimal(10))}
    assert campaign.ledger.totals("USD") == {"paid": (1, Decimal(10))}


def test_a_row_of_the_ledger_moves_to_the_order_that_pays_it(database: Database) -> None:
    """An older copy has planned 1, 2 and 3 in one batch; 2 and 3 were paid by an order of another batch."""
    campaign = same_runa(paid(2, 3), database)
    campaign.plan(rows(1, 2, 3))
    (planned,) = campaign.ledger.batches(BatchState.OPEN)
    assert campaign.catch_up() == Absorbed(rows=2)
    (left,) = campaign.ledger.batches(BatchState.OPEN)
    assert left.id != planned.id
    assert [line.recipient_key for line in campaign.ledger.rows_of(left)] == ["customer-1"]
    finish(campaign)
    assert campaign.paid() == once(1, 2, 3)
    assert campaign.states() == {"paid": 3}


@pytest.mark.parametrize("state", ["failed", "rejected", "withdrawn"])
def test_a_row_that_this_ledger_did_not_pay_may_be_paid_by_an_order_of_another(database: Database, state: str) -> None:
    campaign = Campaign(database)
    campaign.plan(rows(1, 2))
    if state == "withdrawn":
        campaign.ledger.withdraw(campaign.clock.now())
    elif state == "failed":
        campaign.fault("fail_order")
    else:
        campaign.fault("status", status=422, type="validation_error")
    finish(campaign)
    assert campaign.states() == {state: 2}
    order_id = send(campaign, identity_of(campaign, "customer-1"), "customer-1")
    assert campaign.catch_up() == Absorbed(rows=1)
    campaign.settle()
    assert [line["order_id"] for line in campaign.ledger.rows("paid")] == [order_id]
    report = campaign.plan(rows(1, 2))
    assert (report.already_paid, report.planned_again) == (1, 1)
    finish(campaign)
    assert campaign.paid() == once(1, 2)


def test_the_commit_of_a_placed_order_was_lost(database: Database) -> None:
    """The ledger has the batch still open, and Runa has its order."""
    campaign = Campaign(database)
    campaign.plan(rows(1, 2))
    batch, attempt = taken(campaign)
    identity = campaign.ledger.identity_with_rows(batch)
    sealed = identity.seal(campaign.ledger.order(batch), 0)
    campaign.client.client.create_order(sealed, idempotency_key=identity.idempotency_key(0), execution_mode="async")
    campaign.clock.advance(seconds=10)
    assert campaign.catch_up() == Absorbed(rows=2)
    (placed,) = campaign.ledger.batches()
    assert (placed.id, placed.state) == (batch.id, BatchState.PLACED)
    with pytest.raises(FencedError):
        campaign.ledger.save_record(batch.id, attempt, Record(0, "key", "payment", "body", START), campaign.clock.now())
    finish(campaign)
    assert campaign.paid() == once(1, 2)
    assert campaign.states() == {"paid": 2}


def test_an_order_that_failed_pays_nobody(database: Database) -> None:
    first = Campaign()
    first.fault("fail_order")
    first.plan(rows(1))
    finish(first)
    campaign = same_runa(first, database)
    assert campaign.catch_up() == Absorbed()
    assert campaign.plan(rows(1)).planned == 1


def test_a_batch_that_a_run_still_works_on_is_not_sent_and_not_torn(database: Database) -> None:
    """Its request may be under way: one of its rows is paid elsewhere, and whether the others are is open."""
    campaign = Campaign(database)
    campaign.plan(rows(1, 2))
    batch, attempt = taken(campaign, "monday")
    campaign.ledger.save_record(batch.id, attempt, Record(0, "key", "payment", "body", START), campaign.clock.now())
    send(campaign, identity_of(campaign, "customer-1"), "customer-1")
    assert campaign.catch_up() == Absorbed(undecided={batch.id}, unknown=1)
    assert campaign.plan(rows(1, 2), run="monday", excluded={batch.id}).batches == []
    campaign.clock.advance(seconds=LEASE.total_seconds() + Policy().settling + 1)
    assert campaign.catch_up() == Absorbed(rows=1)
    finish(campaign)
    assert campaign.paid() == once(1, 2)
    assert campaign.states() == {"paid": 2}


def test_two_orders_that_pay_the_same_row_are_reported(caplog: pytest.LogCaptureFixture, database: Database) -> None:
    campaign = Campaign(database)
    campaign.plan(rows(1))
    finish(campaign)
    campaign.clock.advance(days=1)
    send(campaign, identity_of(campaign, "customer-1"), "customer-1")
    assert campaign.catch_up().doubled == 1
    assert "1 recipient(s) of campaign 'spring' are paid by two orders" in caplog.text
    assert campaign.states() == {"paid": 1}


def test_a_recipient_whom_no_input_names_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    campaign = same_runa(paid(1, 2, 3))
    campaign.catch_up()
    campaign.plan(rows(1))
    caplog.clear()
    assert campaign.catch_up() == Absorbed(unknown=2)
    assert "2 recipient(s) that Runa has paid are not in this ledger" in caplog.text
    assert "customer" not in caplog.text


def test_a_ledger_can_be_rebuilt_without_paying() -> None:
    campaign = same_runa(paid(*range(250)))
    campaign.catch_up()
    report = recover(campaign.ledger, rows(*range(300)), run="rebuild", defaults=DEFAULTS, now=campaign.clock.now())
    assert (report.read, report.found, report.planned) == (300, 250, 0)
    campaign.settle()
    assert campaign.states() == {"paid": 250}
    assert campaign.ledger.batches(BatchState.OPEN) == []


# -- orders of others -------------------------------------------------------------------------------------------------


def test_an_order_of_the_campaign_without_digests_stops_everything() -> None:
    """It may pay anybody: an order of the release before, or of another ledger whose metadata is not shown."""
    campaign = Campaign()
    order_id = send(campaign, campaign.ledger.identity("elsewhere"), "customer-1")
    with pytest.raises(LedgerBehindError, match=f"1 order.s. of campaign 'spring' .* such as {order_id}") as caught:
        campaign.catch_up()
    assert not caught.value.retryable
    assert compared_until(campaign.ledger) is None, "the next attempt would not look again"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pairs: pairs.pop("airflow_rows_00"), id="the first value is missing"),
        pytest.param(lambda pairs: pairs.update(airflow_rows_00=pairs["airflow_rows_00"][:-1]), id="one is cut"),
        pytest.param(lambda pairs: pairs.pop("airflow_batch"), id="the batch is missing"),
        pytest.param(lambda pairs: pairs.update(airflow_batch="another"), id="another batch"),
        pytest.param(lambda pairs: pairs.update(airflow_identity="0" * 32), id="another identity"),
    ],
)
def test_digests_that_are_not_complete_are_none(change: Any) -> None:
    campaign = Campaign()
    keys = [f"customer-{number}" for number in range(40)]
    identity = identity_of(campaign, *keys)
    sealed = identity.seal(NewOrder.build(currency="USD", items=[{"face_value": 1, **ITEM}], description="spring"), 0)
    metadata = dict(sealed.metadata or {})
    change(metadata)
    send(campaign, identity, *keys, metadata=metadata)
    with pytest.raises(LedgerBehindError):
        campaign.catch_up()


def test_orders_of_others_with_the_same_description_are_none_of_the_campaigns_business() -> None:
    campaign = Campaign()
    other = OrderIdentity.from_campaign(BASE_URL, campaign="autumn", batch="b")
    send(campaign, other, "customer-1")
    send(campaign, OrderIdentity.from_order_key(BASE_URL, "spring"), "customer-2")
    task = OrderIdentity.from_task(BASE_URL, dag_id="dag", run_id="run", task_id="task", map_index=-1)
    send(campaign, task, "customer-3")
    assert campaign.catch_up() == Absorbed()
    assert campaign.plan(rows(1, 2, 3)).planned == 3


def test_orders_with_another_description_are_not_even_fetched() -> None:
    campaign = Campaign()
    for number in range(5):
        send(
            campaign, OrderIdentity.from_order_key(BASE_URL, str(number)), "customer-1", description=f"spring {number}"
        )
    campaign.engine.requests.clear()
    assert campaign.catch_up() == Absorbed()
    assert campaign.engine.requests.keys() == {"GET /order"}


def test_the_same_campaign_name_in_another_environment_is_another_campaign() -> None:
    campaign = same_runa(paid(1))
    production = OrderIdentity.from_campaign("https://api.runa.io/v2", campaign="spring", batch="b")
    send(campaign, production, "customer-2")
    with pytest.raises(LedgerBehindError):  # it cannot be ours, and says that it is
        campaign.catch_up()


def test_another_campaign_keeps_its_own_books() -> None:
    first = paid(1, 2)
    autumn = same_runa(first, first.database, name="autumn")
    assert autumn.catch_up() == Absorbed()
    assert autumn.plan(rows(1, 2)).planned == 2


# -- what the list hides ----------------------------------------------------------------------------------------------


def test_an_order_of_somebody_else_that_hides_what_it_pays_stops_the_attempt() -> None:
    campaign = Campaign()
    order_id = campaign.engine.add_order(OTHERS, status="PROCESSING")
    began = campaign.clock.now()
    with pytest.raises(CatchUpInconclusiveError, match=r"1 order\(s\) in Runa's list are still processing") as caught:
        campaign.catch_up()
    assert caught.value.retryable
    assert campaign.clock.now() - began >= timedelta(seconds=Policy().patience)
    campaign.engine.set_status(order_id, "COMPLETED")
    assert campaign.catch_up() == Absorbed()


def test_a_hidden_order_of_this_campaign_is_waited_for(database: Database) -> None:
    first = Campaign(processing_delay=60.0)
    first.plan(rows(1, 2))
    first.pay()
    campaign = same_runa(first, database)
    assert campaign.catch_up() == Absorbed(unknown=2)
    assert campaign.clock.now() - START >= timedelta(seconds=60)


def test_orders_of_the_ledger_itself_are_not_waited_for() -> None:
    campaign = Campaign(processing_delay=10**6)
    campaign.plan(rows(1, 2))
    campaign.pay()
    began = campaign.clock.now()
    assert campaign.catch_up() == Absorbed()
    assert campaign.clock.now() == began


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 500}, {"kind": "drop_before"}])
def test_a_list_that_cannot_be_read_stops_the_attempt(fault: dict[str, Any]) -> None:
    campaign = same_runa(paid(1))
    campaign.fault(**fault, method="GET", path="/order", count=10**6)
    with pytest.raises(OrderListUnreadableError) as caught:
        campaign.catch_up()
    assert caught.value.retryable
    assert compared_until(campaign.ledger) is None
    campaign.engine.faults.clear()
    assert campaign.catch_up() == Absorbed(unknown=1)


def test_a_list_that_runa_rejects_needs_somebody() -> None:
    campaign = same_runa(paid(1))
    campaign.fault("status", status=401, type="invalid_api_key", method="GET", path="/order", count=10**6)
    with pytest.raises(
        SearchRejectedError, match=r"Nothing was sent in this attempt: .* \(401 invalid_api_key"
    ) as caught:
        campaign.catch_up()
    assert not caught.value.retryable


def test_without_a_connection_nothing_is_sent_and_the_address_is_named() -> None:
    campaign = same_runa(paid(1))
    campaign.client.refuses = True
    with pytest.raises(NothingSentError, match=r"Nothing was sent in this attempt: .*\.runa\.io:443") as caught:
        campaign.catch_up()
    assert caught.value.retryable


def test_a_list_in_small_pages_or_in_another_order_hides_nothing() -> None:
    first = Campaign()
    for number in range(30):
        first.plan(rows(number), run=str(number))
        finish(first)
    first.engine.lies += [Lie("list_oldest_first"), Lie("list_pages", "7")]
    campaign = same_runa(first)
    assert campaign.catch_up() == Absorbed(unknown=30)


@pytest.mark.parametrize(
    "lies", [[Lie("list_circle")], [Lie("list_without", "items")], [Lie("list_without", "pagination")]]
)
def test_a_list_that_has_no_end_or_no_rows_stops_the_attempt(lies: list[Lie]) -> None:
    campaign = same_runa(paid(1))
    campaign.engine.lies += lies
    with pytest.raises(OrderListUnreadableError):
        campaign.catch_up()
    assert compared_until(campaign.ledger) is None
    campaign.engine.lies.clear()
    assert campaign.catch_up() == Absorbed(unknown=1)


# -- which account ----------------------------------------------------------------------------------------------------


def test_another_account_is_rejected() -> None:
    campaign = paid(1)
    (batch,) = campaign.ledger.batches()
    elsewhere = same_runa(Campaign(), campaign.database)
    with pytest.raises(OtherAccountError, match=f"order {batch.order_id} of campaign 'spring'") as caught:
        elsewhere.catch_up()
    assert not caught.value.retryable


def test_an_account_that_lists_an_order_of_the_ledger_is_the_right_one() -> None:
    campaign = paid(1)
    campaign.engine.requests.clear()
    campaign.catch_up()
    assert campaign.engine.requests.keys() == {"GET /order"}


def test_orders_that_are_too_old_for_the_list_are_asked_for_by_id() -> None:
    campaign = paid(1)
    campaign.catch_up()
    others(campaign, 200)
    campaign.clock.advance(days=400)
    campaign.catch_up()
    campaign.clock.advance(days=400)
    send(campaign, OrderIdentity.from_order_key(BASE_URL, "x"), "customer-9", description="")
    campaign.engine.requests.clear()
    campaign.catch_up()
    assert campaign.engine.requests["GET /order/{id}"] == 1


# -- how far back -----------------------------------------------------------------------------------------------------


def others(campaign: Campaign, count: int) -> None:
    """Add orders of others."""
    for _ in range(count):
        campaign.engine.add_order(OTHERS)


def test_the_list_is_read_once_as_far_back_as_look_back_and_then_from_the_last_look(database: Database) -> None:
    """A page has 500 orders. A hundred older ones are read, too, to see how the list is sorted."""
    campaign = Campaign(database)
    others(campaign, 1200)
    campaign.clock.advance(days=40)
    others(campaign, 600)
    campaign.clock.advance(days=20)
    campaign.catch_up()
    assert campaign.engine.requests == {"GET /order": 2}
    campaign.clock.advance(days=2)
    others(campaign, 100)
    campaign.engine.requests.clear()
    campaign.catch_up()
    assert campaign.engine.requests == {"GET /order": 1}


def test_an_order_older_than_look_back_is_not_found() -> None:
    first = paid(1)
    others(first, 200)
    first.clock.advance(days=40)
    campaign = same_runa(first)
    assert timedelta(days=40) > LOOK_BACK
    send(campaign, OrderIdentity.from_order_key(BASE_URL, "x"), "customer-9", description="")
    assert campaign.catch_up() == Absorbed()
    longer = same_runa(first)
    assert longer.catch_up(look_back=timedelta(days=60)) == Absorbed(unknown=1)


def test_an_order_that_shows_late_in_the_list_is_found_at_the_next_look(database: Database) -> None:
    """The list is compared until ten minutes before the look, because an order may show later than it was placed."""
    first = paid(1)
    campaign = same_runa(first, database)
    campaign.engine.lies.append(Lie("row_late", "500"))
    assert campaign.catch_up() == Absorbed()
    campaign.clock.advance(seconds=500)
    assert campaign.catch_up() == Absorbed(unknown=1)


def test_the_moment_of_the_last_look_is_kept(database: Database) -> None:
    campaign = Campaign(database)
    assert compared_until(campaign.ledger) is None
    campaign.catch_up()
    assert compared_until(campaign.ledger) == campaign.clock.now() - timedelta(seconds=Policy().settling)


# -- the same rows are the same order ---------------------------------------------------------------------------------


def test_rows_planned_again_in_an_empty_ledger_have_the_keys_of_their_first_plan() -> None:
    """Runa repeats its answer: so nobody is paid twice in the seconds in which the list does not show the order."""
    first = Campaign()
    first.plan(rows(*range(450)))
    first.pay()
    campaign = same_runa(first)
    campaign.plan(rows(*range(449, -1, -1)))
    finish(campaign)
    assert campaign.paid() == once(*range(450))
    assert len(campaign.engine.orders()) == 3
    assert campaign.states() == {"paid": 450}


def test_rows_of_the_same_keys_and_other_amounts_do_not_pay_under_the_same_key() -> None:
    first = Campaign()
    first.plan(rows(1, 2))
    first.pay()
    campaign = same_runa(first)
    campaign.plan(rows(1, 2, amount=99))
    paid = campaign.pay()
    assert (paid.placed, len(paid.unplaced)) == (0, 1), "Runa holds an answer under the key, and it is another order"
    assert campaign.paid() == once(1, 2)


def test_a_digest_depends_on_environment_campaign_and_key() -> None:
    ids: set[str | datetime] = {
        digests.row_digest(environment, campaign, key)
        for environment in ("playground", "production")
        for campaign in ("spring", "autumn")
        for key in ("ada", "Ada")
    }
    assert len(ids) == 8
    assert all(len(str(one)) == digests.LENGTH for one in ids)


@pytest.mark.parametrize("count", [1, 15, 16, 17, 32, 199, 200])
def test_the_digests_of_an_order_fit_its_metadata_and_come_back(count: int) -> None:
    given = [digests.row_digest("e", "c", str(number)) for number in range(count)]
    pairs = digests.to_metadata(given)
    assert len(pairs) <= 13
    assert all(len(value) <= 200 for value in pairs.values())
    assert digests.from_metadata(pairs | {"other": "pair"}) == given


def test_metadata_of_an_order_that_was_placed_holds_its_digests() -> None:
    campaign = paid(*range(200))
    (order,) = campaign.engine.orders()
    metadata = order.body["metadata"]
    assert len(metadata) <= 20
    wanted = sorted(campaign.ledger.digest(f"customer-{number}") for number in range(200))
    assert digests.from_metadata(metadata) == wanted


def test_nothing_of_the_list_is_written_when_the_database_fails_in_between(database: Database) -> None:
    campaign = same_runa(paid(1, 2), database)
    with campaign.database.begin() as connection:
        connection.execute(sa.text("DROP TABLE runa_found"))
    with pytest.raises(sa.exc.DBAPIError):
        campaign.catch_up()
    assert compared_until(campaign.ledger) is None
