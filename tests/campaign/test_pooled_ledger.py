"""A campaign on every driver of PostgreSQL, directly and through PgBouncer with a pool for each transaction."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from tests.campaign.world import Campaign, open_engine, row

ROWS = 5


def with_driver(url: str, driver: str) -> str:
    """Return SQLAlchemy's URL of a database for a driver; skip the test if there is no such driver.

    :param url: SQLAlchemy's URL.
    :param driver: ``psycopg2``, or ``psycopg`` for version 3, which needs SQLAlchemy 2.
    """
    pytest.importorskip(driver)
    url = f"postgresql+{driver}:{url.partition(':')[2]}"
    try:
        sa.engine.make_url(url).get_dialect()
    except sa.exc.NoSuchModuleError:
        pytest.skip(f"SQLAlchemy {sa.__version__} does not support {driver}")
    return url


@pytest.mark.parametrize("server", ["postgres", "pgbouncer"])
@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_runs_pay_each_recipient_once(server: str, driver: str, request: pytest.FixtureRequest) -> None:
    url = with_driver(request.getfixturevalue(server), driver)
    first = Campaign(open_engine(url))
    again = None
    try:
        rows: list[dict[str, Any]] = [row(number, product="AMZ-US" if number % 2 else None) for number in range(ROWS)]
        assert first.plan(rows).planned == ROWS
        pay_and_settle(first, "run")
        assert first.states() == {"paid": ROWS}

        # Another process, which shares the pooler's connections: the same recipients, and a new one with each run.
        again = Campaign(open_engine(url))
        again.clock, again.engine, again.client = first.clock, first.engine, first.client
        for number in range(ROWS, 2 * ROWS):
            rows.append(row(number))
            report = again.plan(rows, run=f"run-{number}")
            assert (report.planned, report.already_paid) == (1, number)
            pay_and_settle(again, f"run-{number}")
        assert first.states() == again.states() == {"paid": 2 * ROWS}
        assert first.paid() == {f"customer-{number}@example.com": 1 for number in range(2 * ROWS)}
        assert len(list(first.ledger.rows("paid"))) == 2 * ROWS
    finally:
        for campaign in (first, again):
            if campaign is not None:
                campaign.database.dispose()


def pay_and_settle(campaign: Campaign, run: str) -> None:
    """Place all orders, wait until they are final, and settle them."""
    paid = campaign.pay(run=run)
    assert (paid.placed > 0, paid.unplaced, paid.rejected) == (True, [], [])
    campaign.clock.advance(seconds=60)
    assert campaign.settle() == []
