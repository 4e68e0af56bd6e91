"""LedgerHook: opens the database of a campaign's ledger from an Airflow connection."""

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


class LedgerHook(BaseHook):
    """Connects to the database of a campaign's ledger: PostgreSQL, or SQLite for development.

    .. seealso:: :doc:`/campaigns`

    :param ledger_conn_id: id of an Airflow connection of type ``postgres`` or ``sqlite``.
    """

    conn_name_attr = "ledger_conn_id"
    hook_name = "Runa ledger"

    def __init__(self, ledger_conn_id: str) -> None:
        super().__init__()
        self.ledger_conn_id = ledger_conn_id

    def get_url(self) -> URL:
        """Return the connection as an SQLAlchemy URL.

        :raises InvalidOrderError: if the connection has another type.
        """
        connection = self.get_connection(self.ledger_conn_id)
        dialect = _DIALECTS.get(connection.conn_type or "")
        if dialect is None:
            raise InvalidOrderError(
                f"ledger_conn_id: connection {self.ledger_conn_id!r} has the type {connection.conn_type!r}; "
                f"a ledger needs one of {', '.join(sorted(set(_DIALECTS.values())))}"
            )
        if dialect == "sqlite":
            return URL.create(dialect, database=connection.host or connection.schema)
        extra = connection.extra_dejson
        return URL.create(
            dialect,
            username=connection.login,
            password=connection.password,
            host=connection.host,
            port=connection.port,
            database=connection.schema,
            query={name: str(extra[name]) for name in _PASSED_ON if name in extra},
        )

    @contextmanager
    def open(self, *, reading: bool = False) -> Iterator[Engine]:
        """Open the database with the tables of a ledger, and close it at the end of the block.

        :param reading: only read: the tables must exist. Default: missing tables are created.
        :raises InvalidOrderError: if the connection has another type, or there is no ledger to read.
        :raises LedgerVersionError: if the ledger belongs to another release of the provider.
        """
        engine = open_engine(self.get_url(), reading=reading)
        try:
            (check if reading else create)(engine)
            yield engine
        finally:
            engine.dispose()
