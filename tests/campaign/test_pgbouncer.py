"""The tests' PgBouncer keeps no state of a session from one transaction to the next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

#: Executions of one statement after which psycopg 3 prepares it, unless ``prepare_threshold`` says otherwise.
PREPARED_AFTER = 5


def dsn(url: str, database: str | None = None) -> str:
    """Return libpq's URL of a database.

    :param url: SQLAlchemy's URL.
    :param database: another database there.
    """
    url = re.sub(r"^\w+\+\w+:", "postgresql:", url)
    return url if database is None else f"{url.rpartition('/')[0]}/{database}"


@pytest.fixture(params=["psycopg2", "psycopg"])
def driver(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A driver, as a module."""
    return pytest.importorskip(request.param)


def kept(driver: Any, url: str, make: str, look: str) -> bool:
    """Return whether what one transaction makes is there in the next one of the same client.

    :param driver: the driver.
    :param url: URL of the database.
    :param make: the statement of the first transaction.
    :param look: a query of one value, which says whether it is there.
    """
    connection = driver.connect(dsn(url))
    try:
        with connection.cursor() as cursor:
            cursor.execute(make)
            connection.commit()
            cursor.execute(look)
            return bool(cursor.fetchone()[0])
    finally:
        connection.close()


TEMPORARY_TABLE = (
    "CREATE TEMPORARY TABLE session_state (n INTEGER)",
    "SELECT to_regclass('pg_temp.session_state') IS NOT NULL",
)
PREPARED_STATEMENT = (
    "PREPARE of_session AS SELECT 1",
    "SELECT count(*) FROM pg_prepared_statements WHERE name = 'of_session'",
)


def test_a_temporary_table_does_not_survive_its_transaction(driver: Any, postgres: str, pgbouncer: str) -> None:
    assert kept(driver, postgres, *TEMPORARY_TABLE)
    assert not kept(driver, pgbouncer, *TEMPORARY_TABLE)


def test_a_prepared_statement_does_not_survive_its_transaction(driver: Any, postgres: str, pgbouncer: str) -> None:
    assert kept(driver, postgres, *PREPARED_STATEMENT)
    assert not kept(driver, pgbouncer, *PREPARED_STATEMENT)


def test_the_pool_is_in_transaction_mode(pgbouncer: str) -> None:
    connection = psycopg2.connect(dsn(pgbouncer, "pgbouncer"))  # PgBouncer's own database, for its commands
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SHOW POOLS")
            names = [column.name for column in cursor.description]
            pools = [dict(zip(names, values, strict=True)) for values in cursor.fetchall()]
    finally:
        connection.close()
    [pool] = [pool for pool in pools if pool["database"] == pgbouncer.rpartition("/")[2]]
    assert pool["pool_mode"] == "transaction"
    servers = {name: int(value) for name, value in pool.items() if name.startswith("sv_") and str(value).isdigit()}
    assert sum(servers.values()) == 2


def test_the_automatic_prepared_statements_of_psycopg_3_fail(pgbouncer: str) -> None:
    """The defect that a client must avoid shows here, with the same server behind the same pool."""
    psycopg = pytest.importorskip("psycopg")

    def repeat(**options: Any) -> None:
        with psycopg.connect(dsn(pgbouncer), **options) as connection:
            for _ in range(PREPARED_AFTER + 5):
                connection.execute("SELECT 1")
                connection.commit()

    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        repeat()
    repeat(prepare_threshold=None)
