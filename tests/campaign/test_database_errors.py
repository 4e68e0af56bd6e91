"""An error of the ledger's database names no recipient, because it may be in a task's log."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from tests.campaign.world import Campaign, row


def test_it_names_no_recipient() -> None:
    campaign = Campaign()
    with campaign.database.begin() as connection:
        connection.execute(sa.text("DROP TABLE runa_ledger"))
    with pytest.raises(sa.exc.OperationalError) as failure:
        campaign.plan([row(7)])
    assert "customer-7" not in str(failure.value)
