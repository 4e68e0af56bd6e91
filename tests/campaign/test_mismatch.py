"""An order that is COMPLETED and does not pay its rows as they were planned: ``paid`` is only what Runa shows."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_runa.campaign.tables import BatchState, open_engine
from airflow_provider_runa.sandbox.engine import Lie
from tests.campaign.test_reconcile import found
from tests.campaign.world import Campaign, row

ROWS = [row(number, amount=10 + number) for number in range(3)]


def settled(*lies: Lie, rows: list[dict[str, Any]] = ROWS) -> Campaign:
    """Return a campaign whose order is COMPLETED and was read while Runa lied about it."""
    campaign = Campaign()
    campaign.plan(rows)
    campaign.pay()
    campaign.clock.advance(seconds=10)
    campaign.engine.lies += lies
    campaign.settle()
    return campaign


def place_of(campaign: Campaign, number: int) -> int:
    """Return the index of a recipient's item in the order."""
    (order,) = campaign.engine.orders()
    addresses = [item["distribution_method"]["email_address"] for item in order.body["items"]]
    return addresses.index(f"customer-{number}@example.com")


def settled_with(kind: str, value: str | None = None, *, number: int = 1) -> Campaign:
    """Return a campaign whose order was read while Runa lied about the item of one recipient."""
    campaign = Campaign()
    campaign.plan(ROWS)
    campaign.pay()
    campaign.clock.advance(seconds=10)
    campaign.engine.lies.append(Lie(kind, value, item=place_of(campaign, number)))
    campaign.settle()
    return campaign


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("item_missing", None, "the order has no item for it"),
        ("item_face_value", "99.00", "the order's item differs in face_value"),
        ("item_face_value", "0.01", "the order's item differs in face_value"),
        ("item_payout", "CANCELLED", "its payout is CANCELLED"),
        ("item_currency", "EUR", "EUR"),
    ],
)
def test_a_row_that_its_order_does_not_pay_is_not_paid(kind: str, value: str | None, reason: str) -> None:
    campaign = settled_with(kind, value)
    (line,) = campaign.ledger.rows("mismatch")
    assert line["recipient_key"] == "customer-1"
    assert reason in line["error"]
    assert [line["recipient_key"] for line in campaign.ledger.rows("paid")] == ["customer-0", "customer-2"]
    assert campaign.total("paid") == Decimal(22)
    (batch,) = campaign.ledger.batches()
    assert batch.state == BatchState.COMPLETED


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("item_payout", "ACTIVE"),
        ("item_payout", "CLAIMED"),
        ("item_payout", "EXPIRED"),
        ("item_recipient", "masked"),
        ("item_recipient", "lower"),
        ("item_unknown", None),
        ("item_template", None),
        ("item_extra", None),
    ],
)
def test_what_does_not_move_money_is_no_mismatch(kind: str, value: str | None) -> None:
    assert settled_with(kind, value).states() == {"paid": 3}


def test_the_sequence_of_the_items_does_not_matter() -> None:
    straight, reversed_ = settled(), settled(Lie("order_reversed"))
    for campaign in (straight, reversed_):
        (order,) = campaign.engine.orders()
        items = {item["id"]: item for item in campaign.client.client.get_order(order.id).model_dump()["items"]}
        for line in campaign.ledger.rows("paid"):
            address = items[line["item_id"]]["distribution_method"]["email_address"]
            assert address == f"{line['recipient_key']}@example.com"
    assert straight.states() == reversed_.states() == {"paid": 3}


def test_all_items_of_another_amount_are_no_payment() -> None:
    campaign = settled(Lie("item_face_value", "1.00"))
    assert campaign.states() == {"mismatch": 3}


def test_an_item_too_many_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    campaign = settled(Lie("item_extra", item=0))
    assert campaign.states() == {"paid": 3}
    assert "1 item(s) more than were ordered" in caplog.text


@pytest.mark.parametrize("lie", [Lie("order_bare"), Lie("order_without", "items"), Lie("order_status", "PROCESSING")])
def test_an_order_that_does_not_show_its_items_is_settled_later(lie: Lie) -> None:
    campaign = settled(lie)
    assert campaign.states() == {"sent": 3}
    campaign.engine.lies.clear()
    assert campaign.settle() == []
    assert campaign.states() == {"paid": 3}


def test_a_mismatch_is_not_planned_again_by_any_run() -> None:
    campaign = settled_with("item_payout", "CANCELLED")
    campaign.engine.lies.clear()
    for run in ("run", "another"):
        report = campaign.plan([row(1, amount=11), row(2, amount=12)], run=run)
        assert (report.mismatched, report.already_paid, report.planned, report.planned_again) == (1, 1, 0, 0)
    assert campaign.ledger.plan_failed_again("run", campaign.clock.now()) == 0
    assert campaign.pay().placed == 0
    assert campaign.states() == {"paid": 2, "mismatch": 1}


def test_what_was_sent_for_a_mismatch_is_kept() -> None:
    campaign = settled_with("item_face_value", "99.00")
    (batch,) = campaign.ledger.batches()
    assert [item.face_value for item in campaign.ledger.items_of(batch).values()] == [Decimal(11)]


def test_a_payout_that_was_cancelled_is_listed_by_the_comparison() -> None:
    campaign = Campaign()
    campaign.plan(ROWS)
    campaign.pay()
    campaign.clock.advance(seconds=10)
    (order,) = campaign.engine.orders()
    campaign.engine.set_payout(order.id, "CANCELLED", item=place_of(campaign, 1))
    campaign.settle()
    assert campaign.states() == {"paid": 2, "mismatch": 1}
    assert [key for _, key, _ in found(campaign)] == ["customer-1"]


# -- orders that were found at Runa: what was sent is not known, only who is paid -------------------------------------


def taken_in(*lies: Lie, amount: int = 10) -> Campaign:
    """Return a campaign that has lost its ledger, and has taken its order in while Runa lied about it."""
    first = settled(rows=[row(number) for number in range(3)])
    campaign = Campaign(open_engine("sqlite://"))
    campaign.clock, campaign.engine, campaign.client = first.clock, first.engine, first.client
    campaign.catch_up()
    campaign.plan([row(number, amount=amount) for number in range(3)])
    campaign.engine.lies += lies
    campaign.settle()
    return campaign


def test_a_found_order_says_itself_what_it_paid() -> None:
    assert taken_in(amount=99).ledger.totals() == {"paid": (3, Decimal(30))}


@pytest.mark.parametrize("lie", [Lie("item_payout", "CANCELLED", item=0), Lie("item_missing", item=0)])
def test_a_found_order_that_does_not_pay_a_row_is_a_mismatch(lie: Lie) -> None:
    campaign = taken_in(lie)
    assert campaign.states() == {"paid": 2, "mismatch": 1}


@pytest.mark.parametrize(
    "lie", [Lie("order_reversed"), Lie("item_recipient", "lower"), Lie("item_recipient", "masked")]
)
def test_a_found_order_may_show_its_items_otherwise(lie: Lie) -> None:
    campaign = taken_in(lie)
    assert campaign.states() == {"paid": 3}
    assert len({line["item_id"] for line in campaign.ledger.rows()}) == 3


def test_a_found_order_in_which_a_payout_link_belongs_to_nobody_is_matched_by_its_place() -> None:
    links = [
        row(number, distribution_method={"type": "PAYOUT_LINK"}, email_address=None, amount=10 + number)
        for number in range(3)
    ]
    first = settled(rows=links)
    campaign = Campaign(open_engine("sqlite://"))
    campaign.clock, campaign.engine, campaign.client = first.clock, first.engine, first.client
    campaign.catch_up()
    campaign.plan(links)
    campaign.settle()
    ledgers = [{line["recipient_key"]: line["item_id"] for line in one.ledger.rows()} for one in (first, campaign)]
    assert ledgers[0] == ledgers[1]
    assert campaign.total("paid") == Decimal(33)
