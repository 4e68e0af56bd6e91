"""The tables of a ledger, and the database that holds them: SQLite for development, PostgreSQL for everything else.

SQLAlchemy Core, 1.4 and 2. Not MySQL: its usual collations take "Ada" and "ada" for one key.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.errors import InvalidCampaignError, LedgerVersionError
from airflow_provider_runa.campaign.rows import MAX_RECIPIENT_KEY
from airflow_provider_runa.placement.identity import normalize_environment

log = logging.getLogger(__name__)

#: Version of the tables. A release that changes them counts up and says how to migrate an older ledger.
VERSION = 2


class RowState(StrEnum):
    """State of a row; see the table at the head of ``ledger``."""

    PLANNED = "planned"
    SENT = "sent"
    PAID = "paid"
    FAILED = "failed"
    REJECTED = "rejected"
    WITHDRAWN = "withdrawn"
    MISMATCH = "mismatch"


class BatchState(StrEnum):
    """State of a batch.

    OPEN: its order is not placed, or not known to be. PLACED: Runa accepted the order. COMPLETED, FAILED: the order
    ended so. REJECTED: Runa rejected the order and paid nobody. REPLACED: it paid nobody, and other batches have its
    rows now.
    """

    OPEN = "open"
    PLACED = "placed"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"
    REPLACED = "replaced"


#: Rows in these states were not paid and are in no open order: the next plan may plan them again.
FREE = (RowState.FAILED, RowState.REJECTED, RowState.WITHDRAWN)


class Money(sa.types.TypeDecorator[Decimal]):
    """An amount: NUMERIC, and text in SQLite, which has no exact numbers."""

    impl = sa.Numeric(14, 2)
    #: Statements with it may be cached.
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        """Return the column type of a dialect."""
        return dialect.type_descriptor(sa.String(16) if dialect.name == "sqlite" else sa.Numeric(14, 2))

    def process_bind_param(self, value: Decimal | None, dialect: Any) -> Any:
        """Return what the database stores: in SQLite always two decimals, so that equal amounts are equal text."""
        return f"{value:.2f}" if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Any) -> Decimal | None:
        """Return the amount."""
        return None if value is None else Decimal(value)


class State(sa.types.TypeDecorator[StrEnum]):
    """A state, as its text.

    :param states: the states that there are.
    """

    impl = sa.String(10)
    #: Statements with it may be cached.
    cache_ok = True

    def __init__(self, states: Callable[[str], StrEnum]) -> None:
        super().__init__()
        self.states = states

    def process_bind_param(self, value: StrEnum | None, dialect: Any) -> str | None:
        """Return the text of a state."""
        return None if value is None else self.states(value).value

    def process_result_value(self, value: str | None, dialect: Any) -> StrEnum | None:
        """Return the state."""
        return None if value is None else self.states(value)


class Moment(sa.types.TypeDecorator[datetime]):
    """A moment in UTC. Databases without time zones return it without one."""

    impl = sa.DateTime(timezone=True)
    #: Statements with it may be cached.
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return the moment, aware of its zone."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


metadata = sa.MetaData()

version_table = sa.Table("runa_ledger_version", metadata, sa.Column("version", sa.Integer, primary_key=True))

campaign_table = sa.Table(
    "runa_campaign",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("environment", sa.String(120), nullable=False),  # base URL of Runa's API
    sa.Column("name", sa.String(120), nullable=False),
    # Orders that Runa listed before this moment are accounted for; NULL: never compared with the order list.
    sa.Column("compared_until", Moment),
    sa.UniqueConstraint("environment", "name", name="runa_campaign_name"),
)

plan_table = sa.Table(
    "runa_plan",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), nullable=False),
    sa.Column("run", sa.String(64), nullable=False),
    sa.Column("made_at", Moment, nullable=False),
    sa.Index("runa_plan_run", "campaign_id", "run"),
)

batch_table = sa.Table(
    "runa_batch",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), nullable=False),
    sa.Column("plan_id", sa.String(36), sa.ForeignKey("runa_plan.id"), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("description", sa.String(128), nullable=False),
    sa.Column("state", State(BatchState), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("owned_until", Moment),
    sa.Column("record", sa.Text),
    sa.Column("order_id", sa.String(64)),
    # Its order was found at Runa: the ledger does not know what exactly was sent.
    sa.Column("found", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("planned_at", Moment, nullable=False),
    sa.Index("runa_batch_state", "campaign_id", "state"),
    sa.Index("runa_batch_plan", "plan_id"),
)

row_table = sa.Table(
    "runa_ledger",
    metadata,
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), primary_key=True, autoincrement=False),
    sa.Column("recipient_key", sa.String(MAX_RECIPIENT_KEY), primary_key=True),
    sa.Column("digest", sa.String(digests.LENGTH), nullable=False),
    sa.Column("amount", Money, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("state", State(RowState), nullable=False),
    sa.Column("batch_id", sa.String(36), sa.ForeignKey("runa_batch.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("taken", sa.Integer, nullable=False),  # how many batches had the row before this one
    sa.Column("item", sa.Text),  # what is sent for the row, as JSON; NULL once it is paid
    sa.Column("order_reference", sa.String(40)),
    sa.Column("order_id", sa.String(64)),
    sa.Column("item_id", sa.String(64)),
    sa.Column("payout_link", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("planned_at", Moment, nullable=False),
    sa.Column("sent_at", Moment),
    sa.Column("paid_at", Moment),
    sa.Index("runa_ledger_batch", "batch_id", "position"),
    sa.Index("runa_ledger_state", "campaign_id", "state"),
)

# Rows that an order of the campaign pays and that the ledger did not know when it was compared with Runa.
found_table = sa.Table(
    "runa_found",
    metadata,
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(digests.LENGTH), primary_key=True),
    sa.Column("order_id", sa.String(64), nullable=False),
    sa.Column("batch_id", sa.String(36), nullable=False),
    sa.Column("reference", sa.String(40), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("placed_at", Moment, nullable=False),
)

#: How long SQLite waits for another connection, in seconds.
_SQLITE_TIMEOUT = 60

#: What a row that was not sent does not have.
UNSENT = dict.fromkeys(("order_reference", "order_id", "item_id", "payout_link", "error", "sent_at", "paid_at"))


def open_engine(url: Any, *, reading: bool = False) -> Engine:
    """Return an engine for a ledger. Its errors do not show the values of a statement, because they name recipients.

    What is committed is on the disk, and prepared statements are off, because poolers such as PgBouncer hand each
    transaction another connection.

    :param url: a URL of SQLAlchemy's, or its text.
    :param reading: write nothing. SQLite then waits for no plan, and rejects every write.
    """
    url = sa.engine.make_url(url)
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url, reading=reading)
    options: dict[str, Any] = {"future": True, "hide_parameters": True, "pool_pre_ping": True}
    driver = url.get_driver_name()
    if driver == "psycopg":
        options["connect_args"] = {"prepare_threshold": None}
    elif driver == "psycopg2":
        options["executemany_mode"] = "values_plus_batch"
    engine = sa.create_engine(url, isolation_level="READ COMMITTED", **options)

    # For each transaction, because a pooler may have given the connection to somebody else in between.
    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        statement = "SET TRANSACTION READ ONLY" if reading else "SET LOCAL synchronous_commit = on"
        # By the driver itself, because the options of the caller's connection are for the caller's statements.
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        cursor.close()

    return engine


def _open_sqlite(url: Any, *, reading: bool) -> Engine:
    engine = sa.create_engine(url, future=True, hide_parameters=True, connect_args={"timeout": _SQLITE_TIMEOUT})
    if not reading and url.database and "uri" not in url.query and not Path(url.database).exists():
        with contextlib.suppress(OSError):  # connecting says what is wrong
            os.close(os.open(url.database, os.O_CREAT, 0o600))  # the ledger holds recipients, and may hold links

    # SQLite's driver begins transactions when it likes, and two that read before they write lock each other out.
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        if reading:
            connection.execute("PRAGMA query_only = ON")
            return
        # What is committed is on the disk when the next request is sent. With WAL that takes one write, not several.
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        deferred = reading or connection.get_execution_options().get("deferred", False)
        connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")

    return engine


@retry(
    retry=retry_if_exception_type(sqlite3.OperationalError),
    stop=stop_after_delay(_SQLITE_TIMEOUT),
    wait=wait_random(0.01, 0.1),
    reraise=True,
)
def _use_wal(connection: Any) -> None:
    # While another connection sets it in a new file, SQLite rejects this at once, whatever the timeout is.
    connection.execute("PRAGMA journal_mode = WAL")


def create(engine: Engine) -> None:
    """Create the tables of the ledger where they are missing, and check their version.

    :param engine: see :func:`open_engine`.
    :raises LedgerVersionError: if the ledger belongs to another release.
    """
    if sa.inspect(engine).has_table(version_table.name):
        _check_version(engine)
    else:
        # Expected once, when the first campaign of a ledger is paid. Later it is another database than before.
        log.warning("The ledger in %s has no tables yet: creating them.", _place(engine))
    for left in reversed(range(len(metadata.tables) + 1)):
        try:
            metadata.create_all(engine)
            break
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError):
            if not left:
                raise
            # Another run creates the tables at the same time: those that it created are there at the next look.
    try:
        with engine.begin() as connection:
            if _read_version(connection) is None:
                connection.execute(sa.insert(version_table).values(version=VERSION))
    except sa.exc.IntegrityError:
        pass  # another run was faster
    _check_version(engine)


def _read_version(connection: Connection) -> int | None:
    return connection.execute(sa.select(version_table.c.version)).scalar()


def _check_version(engine: Engine) -> None:
    with engine.begin() as connection:
        found = _read_version(connection)
    if found not in (None, VERSION):
        raise LedgerVersionError(found=found, wanted=VERSION)


def check(engine: Engine) -> None:
    """Check that there is a ledger, and its version. Nothing is created, not even a file.

    :param engine: see :func:`open_engine`.
    :raises InvalidCampaignError: if there is none.
    :raises LedgerVersionError: if the ledger belongs to another release.
    """
    url = engine.url
    # To look into a file of SQLite's is to create it; where it is in a URI ("file:…"), the URI says whether.
    is_file = url.get_backend_name() == "sqlite" and url.database and "uri" not in url.query
    if (is_file and not Path(str(url.database)).exists()) or not sa.inspect(engine).has_table(version_table.name):
        raise InvalidCampaignError(f"ledger: there is none in {url.database}; the first campaign that is paid makes it")
    _check_version(engine)


def campaigns(engine: Engine, environment: str) -> list[str]:
    """Return the names of the campaigns that a ledger knows.

    :param engine: see :func:`open_engine`; the tables must be there (:func:`create`, :func:`check`).
    :param environment: base URL of Runa's API.
    """
    query = sa.select(campaign_table.c.name).where(campaign_table.c.environment == normalize_environment(environment))
    with engine.begin() as connection:
        return list(connection.execute(query.order_by(campaign_table.c.name)).scalars())


def all_campaigns(engine: Engine) -> list[tuple[str, str]]:
    """Return the environment and the name of each campaign in a ledger, by name.

    :param engine: see :func:`open_engine`; the tables must be there (:func:`create`, :func:`check`).
    """
    columns = campaign_table.c.environment, campaign_table.c.name
    with engine.begin() as connection:
        found = connection.execute(sa.select(*columns).order_by(columns[1], columns[0]))
        return [(environment, name) for environment, name in found]


def _place(engine: Engine) -> str:
    """Return where a ledger is, for a log: database, and on PostgreSQL the schema that tables are created in."""
    database = engine.url.render_as_string(hide_password=True) if engine.url.host else engine.url.database or "memory"
    if engine.dialect.name != "postgresql":
        return str(database)
    with engine.begin() as connection:
        return f"{database}, schema {connection.execute(sa.text('SELECT current_schema()')).scalar()}"
