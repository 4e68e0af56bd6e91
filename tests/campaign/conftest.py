"""Ledgers for the tests: SQLite in memory, and a PostgreSQL server for the tests where one is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.campaign.tables import open_engine
from tests.campaign.world import Campaign


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database of each kind."""
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres")
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def campaign() -> Campaign:
    """A campaign with an empty ledger, in SQLite in memory."""
    return Campaign()
