"""LedgerHook: opens the database of a campaign's ledger from an Airflow connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from airflow.providers.common.compat.sdk import BaseHook
from sqlalchemy.engine import URL, Engine
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.errors import LedgerUnavailableError
from airflow_provider_runa.campaign.tables import check, create, open_engine

# Airflow's connection type -> SQLAlchemy's dialect, with its usual driver.
_DIALECTS = {"sqlite": "sqlite", "postgres": "postgresql", "postgresql": "postgresql"}

# Extras of a connection that are parameters of PostgreSQL's driver (libpq).
_PASSED_ON = (
    "application_name",
    "channel_binding",
    "connect_timeout",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "options",
    "passfile",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslpassword",
    "sslrootcert",
    "target_session_attrs",
    "tcp_user_timeout",
)


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
            return URL.create(dialect, database=self._sqlite_file(connection.host or connection.schema))
        extra = connection.extra_dejson
        query: dict[str, str | tuple[str, ...]] = {name: str(extra[name]) for name in _PASSED_ON if name in extra}
        host, port = connection.host, connection.port
        if host and "," in host:  # several servers, of which the driver takes the one that fits target_session_attrs
            query["host"] = tuple(one if ":" in one else f"{one}:{port or 5432}" for one in host.split(","))
            host = port = None
        return URL.create(
            f"{dialect}+{_postgres_driver()}",
            username=connection.login,
            password=connection.password,
            host=host,
            port=port,
            database=connection.schema,
            query=query,
        )

    def _sqlite_file(self, database: str | None) -> str:
        if not database or not Path(database).is_absolute():
            raise InvalidOrderError(
                f"ledger_conn_id: connection {self.ledger_conn_id!r} must name a file by its absolute path, such as "
                "sqlite:////data/ledger.db; a ledger in memory or in the worker's folder would be empty at each attempt"
            )
        return database

    def _place(self) -> str:
        """Return where the ledger is, for a message: never with a password."""
        connection = self.get_connection(self.ledger_conn_id)
        return f"connection {self.ledger_conn_id!r}, {connection.host or connection.schema}"

    @contextmanager
    def open(self, *, reading: bool = False) -> Iterator[Engine]:
        """Open the database with the tables of a ledger, and close it at the end of the block.

        :param reading: only read: the tables must exist. Default: missing tables are created.
        :raises InvalidOrderError: if the connection has another type, or there is no ledger to read.
        :raises LedgerVersionError: if the ledger belongs to another release of the provider.
        :raises LedgerUnavailableError: if the database cannot be used, also in the block.
        """
        engine = open_engine(self.get_url(), reading=reading)
        try:
            (check if reading else create)(engine)
            yield engine
        except SQLAlchemyError as error:
            raise LedgerUnavailableError(place=self._place(), reason=_reason(error)) from None
        finally:
            engine.dispose()


def _postgres_driver() -> str:
    """Return the driver that is installed: SQLAlchemy would ask for another one from release to release."""
    if find_spec("psycopg2"):
        return "psycopg2"
    if find_spec("psycopg"):
        return "psycopg"
    raise InvalidOrderError(
        "ledger_conn_id: no driver for PostgreSQL is installed; install airflow-provider-runa[postgres]"
    )


def _reason(error: SQLAlchemyError) -> str:
    """Return the kind of an error. Its text may quote values, and values name recipients."""
    original = getattr(error, "orig", None)
    return type(original or error).__name__
