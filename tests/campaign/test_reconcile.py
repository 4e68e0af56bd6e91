"""What is found when ledger and Runa differ, and what is not called a difference; in process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta, timezone
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_provider_runa.api.errors import RunaApiError
from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.campaign.errors import InvalidCampaignError
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.reconcile import Reconciliation, reconcile
from airflow_provider_runa.campaign.tables import BatchState, campaigns
from airflow_provider_runa.placement.identity import OrderIdentity
from tests.campaign.world import Campaign, row
from tests.placement.judge import BASE_URL

Found = list[tuple[str, str | None, str | None]]


def look(campaign: Campaign, name: str | None = "spring", **period: Any) -> Reconciliation:
    return asyncio.run(reconcile(campaign.database, BASE_URL, client=campaign.client, campaign=name, **period))


def found(campaign: Campaign, name: str | None = "spring", **period: Any) -> Found:
    """Return kind, recipient key and order id of every difference."""
    result = look(campaign, name, **period)
    for difference in result.differences:
        assert difference.text
        assert "\n" not in difference.text
        assert "customer" not in difference.text
        assert "customer" not in repr(difference)
    return sorted(
        ((d.kind, d.recipient_key, d.order_id) for d in result.differences), key=lambda line: tuple(map(str, line))
    )


def paid_campaign(*amounts: Any, **options: Any) -> Campaign:
    """Return a campaign whose rows are paid, and the ledger says so."""
    campaign = Campaign(**options)
    campaign.plan([row(number, amount=amount) for number, amount in enumerate(amounts)])
    campaign.pay()
    settle(campaign)
    return campaign


def settle(campaign: Campaign) -> None:
    campaign.clock.advance(seconds=5)
    campaign.settle()


def sql(campaign: Campaign, statement: str, **values: Any) -> None:
    """Change the ledger behind its back."""
    with campaign.database.begin() as connection:
        assert connection.execute(sa.text(statement), values).rowcount


def edit_items(campaign: Campaign, change: Any) -> None:
    """Change what Runa says of the items of every order."""
    database = campaign.engine._db
    for seq, items in database.execute("SELECT seq, items FROM orders").fetchall():
        changed = json.loads(items)
        change(changed)
        database.execute("UPDATE orders SET items = ? WHERE seq = ?", (json.dumps(changed), seq))


def item_of(items: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Return the first item of a recipient: their sequence is that of the digests."""
    return next(
        item for item in items if item["distribution_method"]["email_address"] == f"customer-{number}@example.com"
    )


def order_of(campaign: Campaign, state: BatchState = BatchState.COMPLETED) -> str:
    (batch,) = campaign.ledger.batches(state)
    assert batch.order_id
    return batch.order_id


def placed_order(campaign: Campaign) -> str:
    """Return the id of the only order, settled or not."""
    (batch,) = campaign.ledger.batches(BatchState.PLACED) + campaign.ledger.batches(BatchState.COMPLETED)
    assert batch.order_id
    return batch.order_id


def send(campaign: Campaign, identity: OrderIdentity, *, generation: int = 0, description: str = "spring") -> str:
    """Place an order past the ledger."""
    order = NewOrder.build(
        currency="USD",
        description=description,
        items=[
            {
                "face_value": 10,
                "distribution_method": {"type": "EMAIL", "email_address": "customer-0@example.com"},
                "products": {"type": "SINGLE", "value": "AMZ-US"},
            }
        ],
    )
    sealed = identity.seal(order, generation)
    key = identity.idempotency_key(generation)
    placed = campaign.client.client.create_order(sealed, idempotency_key=key, execution_mode="async")
    campaign.clock.advance(seconds=5)
    return placed.id


def lost(batch: str = "lost", campaign: str = "spring") -> OrderIdentity:
    return OrderIdentity.from_campaign(BASE_URL, campaign=campaign, batch=batch)


# -- no difference --------------------------------------------------------------------------------------------------


def test_a_paid_campaign_does_not_differ() -> None:
    campaign = paid_campaign(*range(1, 450))
    result = look(campaign)
    assert result.differences == []
    assert (result.orders, result.hidden, result.open_rows) == (3, 0, {})


def test_what_is_open_is_counted_and_no_difference() -> None:
    campaign = Campaign()
    campaign.plan([row(1), row(2)])
    assert look(campaign) == Reconciliation(open_rows={"planned": 2})
    campaign.pay()
    processing = look(campaign)
    assert (processing.differences, processing.hidden, processing.open_rows) == ([], 0, {"sent": 2})
    campaign.clock.advance(seconds=5)
    assert look(campaign) == Reconciliation(orders=1, open_rows={"sent": 2})


def test_an_order_that_failed_is_no_difference_once_the_ledger_says_so() -> None:
    campaign = Campaign()
    campaign.fault("fail_order")
    campaign.plan([row(1)])
    campaign.pay()
    settle(campaign)
    assert campaign.states() == {"failed": 1}
    assert found(campaign) == []


def test_orders_that_hide_what_they_are_are_counted() -> None:
    campaign = paid_campaign(10)
    campaign.engine.processing_delay = 1000
    send(campaign, lost())
    result = look(campaign)
    assert (result.differences, result.hidden) == ([], 1)


def test_orders_of_others_are_none_of_the_campaigns_business() -> None:
    campaign = paid_campaign(10)
    send(campaign, OrderIdentity.from_order_key(BASE_URL, "spring/1"), description="")
    send(campaign, lost(campaign="autumn"), description="autumn")
    campaign.engine.requests.clear()
    assert found(campaign) == []
    assert campaign.engine.requests["GET /order/{id}"] == 1, "the description tells whose they are"
    send(campaign, lost("another", campaign="autumn"), description="spring")
    assert found(campaign) == []


def test_nothing_is_written() -> None:
    campaign = paid_campaign(10)
    send(campaign, lost())
    before = list(campaign.ledger.rows())
    orders = campaign.engine.orders()
    look(campaign)
    assert list(campaign.ledger.rows()) == before
    assert campaign.engine.orders() == orders


def test_items_that_runa_shows_with_hidden_recipients_are_matched_by_amount() -> None:
    campaign = Campaign()
    campaign.plan([row(1, amount=10), row(2, amount=20)])

    def hide(items: list[dict[str, Any]]) -> None:
        for item in items:
            item["distribution_method"]["email_address"] = "c***@example.com"
        items.reverse()

    campaign.pay()
    campaign.clock.advance(seconds=5)
    edit_items(campaign, hide)
    assert found(campaign) == []
    campaign.settle()
    assert found(campaign) == []


# -- Runa pays, and the ledger does not know --------------------------------------------------------------------------


def test_an_order_that_names_the_campaign_and_is_not_in_the_ledger() -> None:
    campaign = paid_campaign(10)
    order_id = send(campaign, lost())
    assert found(campaign) == [("unknown_to_ledger", None, order_id)]


def test_a_failed_order_paid_nobody_and_need_not_be_known() -> None:
    campaign = paid_campaign(10)
    campaign.fault("fail_order")
    send(campaign, lost())
    assert found(campaign) == []


@pytest.mark.parametrize("state", ["open", "rejected", "failed"])
def test_an_order_pays_whose_batch_does_not_say_so(state: str) -> None:
    campaign = paid_campaign(10)
    order_id = order_of(campaign)
    sql(campaign, "UPDATE runa_batch SET state = :state, order_id = NULL", state=state)
    assert found(campaign) == [("unknown_to_ledger", None, order_id)]


def test_an_order_that_failed_according_to_the_ledger_and_pays() -> None:
    campaign = paid_campaign(10)
    order_id = order_of(campaign)
    sql(campaign, "UPDATE runa_batch SET state = 'failed'")
    assert found(campaign) == [("unknown_to_ledger", None, order_id)]


def test_more_orders_than_one_pay_for_a_batch() -> None:
    campaign = paid_campaign(10)
    (batch,) = campaign.ledger.batches(BatchState.COMPLETED)
    again = send(campaign, campaign.ledger.identity(batch.id), generation=1)
    assert found(campaign) == [("paid_twice", None, again)]


def test_of_two_orders_that_the_ledger_does_not_know_one_is_too_many() -> None:
    campaign = Campaign()
    campaign.plan([row(0)])
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    orders = {send(campaign, campaign.ledger.identity(batch.id), generation=number) for number in (0, 1)}
    differences = found(campaign)
    assert [kind for kind, _, _ in differences] == ["paid_twice", "unknown_to_ledger"]
    assert {order_id for _, _, order_id in differences} == orders


def test_a_reference_that_is_like_a_batchs_by_chance() -> None:
    campaign = Campaign()
    campaign.plan([row(0)])
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    twin = lost()
    vars(twin)["short_name"] = campaign.ledger.identity(batch.id).short_name
    send(campaign, twin)
    assert found(campaign) == []


# -- the ledger knows, and Runa does not ------------------------------------------------------------------------------


@pytest.mark.parametrize("settled", [True, False])
def test_an_order_that_runa_does_not_have(settled: bool) -> None:
    campaign = Campaign()
    campaign.plan([row(1)])
    campaign.pay()
    campaign.clock.advance(seconds=5)
    if settled:
        campaign.settle()
    order_id = order_of(campaign, BatchState.COMPLETED if settled else BatchState.PLACED)
    campaign.engine._db.execute("DELETE FROM orders")
    assert found(campaign) == [("unknown_to_runa", None, order_id)]


@pytest.mark.parametrize("settled", [True, False])
def test_an_order_that_failed_and_the_ledger_does_not_say_so(settled: bool) -> None:
    campaign = Campaign()
    campaign.plan([row(1)])
    campaign.pay()
    campaign.clock.advance(seconds=5)
    if settled:
        campaign.settle()
    campaign.engine._db.execute("UPDATE orders SET fails = 1")
    assert found(campaign) == [
        ("not_paid", None, order_of(campaign, BatchState.COMPLETED if settled else BatchState.PLACED))
    ]


def test_an_order_that_is_processing_and_paid_according_to_the_ledger() -> None:
    campaign = paid_campaign(10)
    campaign.engine._db.execute("UPDATE orders SET settles = settles + 100000")
    assert found(campaign) == [("not_paid", None, order_of(campaign))]


def test_an_item_that_is_not_in_its_order() -> None:
    campaign = paid_campaign(10, 20)
    edit_items(campaign, lambda items: items[1].update(id="I-OTHER"))
    order_id = order_of(campaign)
    assert found(campaign) == [
        ("unknown_to_ledger", None, order_id),
        ("unknown_to_runa", "customer-1", order_id),
    ]


# -- amounts --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["settled", "placed"])
def two_rows(request: pytest.FixtureRequest) -> Campaign:
    """A campaign of two rows, 10 and 20 USD, in one order that Runa has completed; the ledger knows that, or not."""
    campaign = Campaign()
    campaign.plan([row(1, amount=10), row(2, amount=20)])
    campaign.pay()
    campaign.clock.advance(seconds=5)
    if request.param:
        campaign.settle()
    return campaign


def test_an_amount_of_the_ledger_that_differs(two_rows: Campaign) -> None:
    order_id = placed_order(two_rows)
    sql(two_rows, "UPDATE runa_ledger SET amount = '25.00' WHERE recipient_key = 'customer-2'")
    assert found(two_rows) == [("amount_differs", "customer-2", order_id)]


def test_amounts_that_are_swapped(two_rows: Campaign) -> None:
    sql(two_rows, "UPDATE runa_ledger SET amount = 30 - amount")
    assert [key for _, key, _ in found(two_rows)] == ["customer-1", "customer-2"]


def test_an_amount_of_runa_that_differs(two_rows: Campaign) -> None:
    edit_items(two_rows, lambda items: item_of(items, 2).update(face_value="25.00"))
    order_id = placed_order(two_rows)
    assert found(two_rows) == [("amount_differs", "customer-2", order_id)]


def test_an_item_too_many_and_an_item_too_few(two_rows: Campaign) -> None:
    order_id = placed_order(two_rows)
    edit_items(two_rows, lambda items: items.append(item_of(items, 1) | {"id": "I-MORE"}))
    assert found(two_rows) == [("unknown_to_ledger", None, order_id)]
    edit_items(two_rows, lambda items: items.__setitem__(slice(None), [item_of(items, 1)]))
    assert found(two_rows) == [("unknown_to_runa", "customer-2", order_id)]


def test_a_currency_that_differs() -> None:
    campaign = paid_campaign(10)
    sql(campaign, "UPDATE runa_batch SET currency = 'EUR'")
    assert found(campaign) == [("amount_differs", None, order_of(campaign))]


# -- which campaigns, and when ----------------------------------------------------------------------------------------


def test_a_campaign_that_the_ledger_does_not_know_is_refused_and_not_added() -> None:
    campaign = paid_campaign(10)
    with pytest.raises(InvalidCampaignError, match="no campaign 'sprong'"):
        look(campaign, "sprong")
    assert campaigns(campaign.database, BASE_URL) == ["spring"]


def test_a_ledger_without_campaigns_is_refused() -> None:
    campaign = paid_campaign(10)
    with pytest.raises(InvalidCampaignError, match="no campaign on https://api"):
        asyncio.run(reconcile(campaign.database, "https://api.runa.io/v2", client=campaign.client))


def test_a_whole_ledger_and_campaigns_that_it_has_lost() -> None:
    campaign = paid_campaign(10)
    autumn = Ledger(campaign.database, BASE_URL, "autumn")
    known = send(campaign, lost(campaign="autumn"), description="autumn")
    unknown = send(campaign, lost(campaign="winter"), description="winter")
    send(campaign, OrderIdentity.from_order_key(BASE_URL, "spring/1"))
    assert autumn.batches(BatchState.OPEN) == []
    result = look(campaign, None)
    assert {(d.kind, d.campaign, d.order_id) for d in result.differences} == {
        ("unknown_to_ledger", "autumn", known),
        ("unknown_to_ledger", "winter", unknown),
    }


def test_a_period_leaves_out_what_was_placed_before_and_after() -> None:
    campaign = paid_campaign(10)
    for number in range(3):
        campaign.clock.advance(days=10)
        send(campaign, lost(f"lost-{number}"))
    first, second, third = (order.id for order in campaign.engine.orders()[1:])
    start = campaign.clock.now() - timedelta(days=30)
    assert len(found(campaign)) == 3
    middle = {"since": start + timedelta(days=15), "until": start + timedelta(days=25)}
    assert found(campaign, **middle) == [("unknown_to_ledger", None, second)]
    assert {order for _, _, order in found(campaign, since=middle["since"])} == {second, third}
    assert {order for _, _, order in found(campaign, until=middle["until"])} == {first, second}


def test_a_period_leaves_out_batches_that_were_sent_before_and_after() -> None:
    campaign = paid_campaign(10)
    campaign.engine._db.execute("DELETE FROM orders")
    now = campaign.clock.now()
    day = timedelta(days=1)
    assert len(found(campaign, since=now - day, until=now + day)) == 1
    assert found(campaign, since=now + day) == []
    assert found(campaign, until=now - day) == []


def test_an_order_that_was_sent_again_a_day_later_belongs_to_both_days() -> None:
    campaign = Campaign()
    campaign.plan([row(1)])
    start = campaign.clock.now()
    campaign.fault("drop_before", count=1000)
    campaign.pay()
    campaign.engine.faults.clear()
    campaign.clock.advance(days=1)
    campaign.pay()
    settle(campaign)
    day = timedelta(days=1)
    for since in (start, start + day):
        result = look(campaign, since=since, until=since + day)
        assert (result.orders, result.differences) == (1, [])


def test_a_period_may_begin_before_the_ledger_did() -> None:
    campaign = Campaign()
    order_id = send(campaign, lost(campaign="winter"), description="winter")
    campaign.clock.advance(days=10)
    campaign.plan([row(1)])
    start = campaign.clock.now() - timedelta(days=20)
    assert found(campaign, None) == []
    assert found(campaign, None, since=start) == [("unknown_to_ledger", None, order_id)]


def test_an_order_that_is_placed_while_it_looks_is_no_difference() -> None:
    campaign = Campaign()
    campaign.plan([row(1)])

    class Meanwhile:
        """Places the orders while the list is read."""

        get_order = campaign.client.get_order

        async def list_orders(self) -> AsyncIterator[Order]:
            await campaign.paying()
            campaign.clock.advance(seconds=5)
            async for order in campaign.client.list_orders():
                yield order

    result = asyncio.run(reconcile(campaign.database, BASE_URL, client=Meanwhile(), campaign="spring"))
    assert (result.differences, result.orders) == ([], 1)


def test_an_order_that_is_settled_while_it_looks_is_no_difference() -> None:
    campaign = Campaign()
    campaign.plan([row(1)])
    campaign.pay()
    campaign.clock.advance(seconds=5)

    class Meanwhile:
        """Settles the orders once the ledger was read."""

        list_orders = campaign.client.list_orders

        async def get_order(self, order_id: str) -> Order:
            async def statuses(order_ids: Sequence[str]) -> Mapping[str, str]:
                return dict.fromkeys(order_ids, "COMPLETED")

            await campaign.settling(statuses=statuses)
            return await campaign.client.get_order(order_id)

    result = asyncio.run(reconcile(campaign.database, BASE_URL, client=Meanwhile(), campaign="spring"))
    assert (result.differences, result.orders) == ([], 1)
    assert campaign.states() == {"paid": 1}


def test_runa_is_asked_no_further_back_than_needed() -> None:
    campaign = Campaign()
    for number in range(601):
        send(campaign, OrderIdentity.from_order_key(BASE_URL, str(number)))
    campaign.clock.advance(days=10)
    campaign.plan([row(1)])
    campaign.pay()
    settle(campaign)
    campaign.engine.requests.clear()
    assert found(campaign) == []
    assert campaign.engine.requests == {"GET /order": 1, "GET /order/{id}": 1}


def test_what_cannot_be_read_is_not_taken_for_absent() -> None:
    campaign = paid_campaign(10)
    campaign.fault("status", method="GET", path="/order/*", status=500, count=1000)
    with pytest.raises(RunaApiError, match="500"):
        look(campaign)


def test_times_of_any_zone_are_understood() -> None:
    campaign = paid_campaign(10)
    campaign.engine._db.execute("DELETE FROM orders")
    there = campaign.clock.now().astimezone(timezone(timedelta(hours=5)))
    hour = timedelta(hours=1)
    assert len(found(campaign, since=there - hour, until=there + hour)) == 1
    assert found(campaign, since=there + hour) == []
    assert found(campaign, until=there - hour) == []


def test_runas_clock_may_be_behind() -> None:
    campaign = paid_campaign(10)
    campaign.engine._db.execute("UPDATE orders SET created = created - 1800")
    sql(campaign, "UPDATE runa_batch SET state = 'open'")
    assert [kind for kind, _, _ in found(campaign)] == ["unknown_to_ledger"]
