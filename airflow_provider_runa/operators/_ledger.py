"""A campaign's ledger through an Airflow connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.providers.common.compat.sdk import BaseHook
from sqlalchemy.engine import URL, Engine

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.ledger import check, create, open_engine

# Airflow's connection type -> SQLAlchemy's dialect, with its usual driver.
_DIALECTS = {"sqlite": "sqlite", "postgres": "postgresql", "postgresql": "postgresql"}

# Extras of a connection that are parameters of PostgreSQL's driver.
_PASSED_ON = ("sslmode", "sslrootcert", "sslcert", "sslkey", "options", "connect_timeout")


@contextmanager
def ledger_engine(ledger_conn_id: str, *, reading: bool = False) -> Iterator[Engine]:
    """Open the database of a ledger, with its tables; closed at the end of the block.

    :param ledger_conn_id: id of an Airflow connection of type ``sqlite`` or ``postgres``.
    :param reading: whether nothing is to be written: then the tables have to be there, and otherwise they are made.
    :raises InvalidOrderError: if the connection is of another type, or there is no ledger to read.
    :raises LedgerVersionError: if the ledger belongs to another release.
    """
    connection = BaseHook.get_connection(ledger_conn_id)
    if connection.conn_type not in _DIALECTS:
        raise InvalidOrderError(
            f"ledger_conn_id: connection {ledger_conn_id!r} is of type {connection.conn_type!r}; "
            f"a ledger lives in one of {', '.join(sorted(set(_DIALECTS.values())))}"
        )
    dialect = _DIALECTS[connection.conn_type]
    if dialect == "sqlite":
        url = URL.create(dialect, database=connection.host or connection.schema)
    else:
        extra = connection.extra_dejson if dialect == "postgresql" else {}
        url = URL.create(
            dialect,
            username=connection.login,
            password=connection.password,
            host=connection.host,
            port=connection.port,
            database=connection.schema,
            query={name: str(extra[name]) for name in _PASSED_ON if name in extra},
        )
    engine = open_engine(url, reading=reading)
    try:
        (check if reading else create)(engine)
        yield engine
    finally:
        engine.dispose()
