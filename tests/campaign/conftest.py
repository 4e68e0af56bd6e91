"""Ledgers for the tests: in SQLite's memory, and on a PostgreSQL server of the tests' own where one is installed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine as Database

from airflow_provider_runa.campaign.ledger import open_engine
from tests.campaign.world import Campaign
from tests.support.postgres import MISSING, find_programs, start_postgres

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    programs = find_programs()
    if programs is None:
        pytest.skip(MISSING)
    with start_postgres(programs) as url:
        yield url


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """URL of an empty database on it."""
    name = f"ledger{next(_numbers)}"
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    server.dispose()
    return postgres_server.rpartition("/")[0] + f"/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """An empty database of each kind."""
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres")
    engine = open_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def campaign() -> Campaign:
    """A campaign with nothing in its ledger, in SQLite's memory."""
    return Campaign()
