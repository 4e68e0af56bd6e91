"""Withdrawing a plan: what was planned and never sent may be planned again, and what was sent stays."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.campaign.ledger import LEASE, FencedError
from airflow_provider_runa.campaign.tables import BatchState
from airflow_provider_runa.placement.record import Record
from tests.campaign.world import Campaign, row
from tests.placement.judge import START

EUR_TEMPLATE = "PT-01HQ130AHCKRRB45Z5XV2Y8W9K"


@pytest.fixture
def campaign(database: Database) -> Campaign:
    """A campaign on a database of each kind."""
    return Campaign(database)


def rows(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [row(number, **fields) for number in numbers]


def withdraw(campaign: Campaign) -> dict[str, tuple[int, Decimal]]:
    return campaign.ledger.withdraw(campaign.clock.now())


def finish(campaign: Campaign, **options: Any) -> None:
    campaign.pay(**options)
    campaign.clock.advance(seconds=10)
    campaign.settle()


def test_what_is_planned_is_withdrawn_and_counted_by_currency(campaign: Campaign) -> None:
    campaign.plan(rows(*range(250)))
    campaign.plan(rows(999, amount=7), run="euro", currency="EUR", defaults={"template_id": EUR_TEMPLATE})
    assert withdraw(campaign) == {"USD": (250, Decimal(2500)), "EUR": (1, Decimal(7))}
    assert campaign.states() == {"withdrawn": 251}
    assert campaign.ledger.batches(BatchState.OPEN) == []
    assert campaign.pay().placed == 0
    assert withdraw(campaign) == {}


def test_nothing_planned_is_nothing_to_withdraw(campaign: Campaign) -> None:
    assert withdraw(campaign) == {}


def test_addresses_of_withdrawn_rows_are_erased(campaign: Campaign) -> None:
    campaign.plan(rows(1, 2))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    withdraw(campaign)
    assert campaign.ledger.items_of(batch) == {}


@pytest.mark.parametrize("run", ["run", "another"])
def test_withdrawn_rows_are_planned_again_with_their_current_input(campaign: Campaign, run: str) -> None:
    campaign.plan(rows(1, 2))
    withdraw(campaign)
    report = campaign.plan(rows(1, 2, amount=25), run=run)
    assert (report.planned, report.planned_again, report.to_pay, report.total) == (0, 2, 2, Decimal(50))
    finish(campaign, run=run)
    assert campaign.paid() == {"customer-1@example.com": 1, "customer-2@example.com": 1}
    assert campaign.ledger.totals() == {"paid": (2, Decimal(50))}


def test_rows_that_are_planned_again_are_another_order(campaign: Campaign) -> None:
    """The first may be found under its key, if somebody sent it from another ledger."""
    campaign.plan(rows(1, 2))
    (first,) = campaign.ledger.batches(BatchState.OPEN)
    withdraw(campaign)
    campaign.plan(rows(1, 2))
    (second,) = campaign.ledger.batches(BatchState.OPEN)
    assert first.id != second.id


def test_what_was_sent_is_never_withdrawn(campaign: Campaign) -> None:
    campaign.plan(rows(*range(201)))
    campaign.fault("drop_after", count=100)
    campaign.fault("drop_before", count=1000, method="GET", path="/order")
    campaign.pay(concurrency=1)
    campaign.engine.faults.clear()
    sent = campaign.states()
    assert sent == {"sent": 201}
    campaign.clock.advance(days=2)
    assert withdraw(campaign) == {}
    assert campaign.states() == sent
    finish(campaign)
    assert set(campaign.paid().values()) == {1}
    assert campaign.states() == {"paid": 201}


def test_paid_failed_and_rejected_rows_stay_as_they_are(campaign: Campaign) -> None:
    campaign.fault("fail_order")
    campaign.plan(rows(1))
    finish(campaign)
    campaign.fault("status", status=422, type="validation_error")
    campaign.plan(rows(2), run="second")
    finish(campaign, run="second")
    campaign.plan(rows(3), run="third")
    finish(campaign, run="third")
    campaign.plan(rows(4), run="fourth")
    assert withdraw(campaign) == {"USD": (1, Decimal(10))}
    assert campaign.states() == {"failed": 1, "rejected": 1, "paid": 1, "withdrawn": 1}


def test_a_batch_that_a_run_has_taken_is_left_to_it(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    attempt = campaign.ledger.take(batch.id, "run", campaign.clock.now())
    assert attempt is not None
    assert withdraw(campaign) == {}
    campaign.ledger.save_record(batch.id, attempt, Record(0, "key", "payment", "body", START), campaign.clock.now())
    campaign.clock.advance(seconds=2 * LEASE.total_seconds())
    assert withdraw(campaign) == {}, "it may have been sent"


def test_a_run_that_was_killed_before_it_sent_loses_its_batch(campaign: Campaign) -> None:
    campaign.plan(rows(1))
    (batch,) = campaign.ledger.batches(BatchState.OPEN)
    attempt = campaign.ledger.take(batch.id, "run", campaign.clock.now())
    assert attempt is not None
    campaign.clock.advance(seconds=LEASE.total_seconds() + 1)
    assert withdraw(campaign) == {"USD": (1, Decimal(10))}
    with pytest.raises(FencedError):  # it was not killed, and comes too late: it writes nothing, so it sends nothing
        campaign.ledger.save_record(batch.id, attempt, Record(0, "key", "payment", "body", START), campaign.clock.now())
    assert campaign.ledger.take(batch.id, "run", campaign.clock.now()) is None
    assert campaign.states() == {"withdrawn": 1}


def test_another_campaign_keeps_its_plan(campaign: Campaign) -> None:
    other = Campaign(campaign.database, name="autumn")
    other.plan(rows(1))
    campaign.plan(rows(1))
    assert withdraw(campaign) == {"USD": (1, Decimal(10))}
    assert other.states() == {"planned": 1}
