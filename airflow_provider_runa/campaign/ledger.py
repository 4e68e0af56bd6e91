"""The ledger: who was paid in each campaign, in the user's database. All its tables and all statements on them.

``runa_ledger`` has one row per campaign and recipient key: this is the promise, and the primary key. The rows of one
order are a batch. A row belongs to one batch at a time. It leaves the batch only when the batch is proven to have paid
nobody. A batch also stores the record of placing its order. It is **fenced**: an attempt takes it by incrementing its
``attempts``. When another attempt does the same, all later writes of the first attempt fail.

===========  =========================================================================================================
state        of a row
===========  =========================================================================================================
planned      its batch was not sent
sent         its batch was sent, or may have been sent
paid         its order is COMPLETED; what was sent for it is erased here, with the recipient's address
failed       its order ended FAILED and paid nobody; the next plan plans the row again
rejected     Runa rejected its order, which paid nobody; the next plan plans the row again
===========  =========================================================================================================

A batch is **taken** by a run. It is **closed** when it is proven to have paid nobody, and **settled** when its order's
result is in the ledger.

Written in SQLAlchemy Core, for 1.4 and 2. SQLite and PostgreSQL are supported. MySQL is not: its usual collations treat
"Ada" and "ada" as one key.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.campaign.errors import InvalidCampaignError, LedgerVersionError
from airflow_provider_runa.campaign.rows import MAX_RECIPIENT_KEY, Payout
from airflow_provider_runa.placement.identity import OrderIdentity, normalize_environment
from airflow_provider_runa.placement.record import Record

#: Version of the tables. A release that changes them increments it and documents how to migrate an older ledger.
VERSION = 1

#: How long no other run can take a batch. The run that has taken it can take it again at any time.
LEASE = timedelta(minutes=3)


class RowState(StrEnum):
    """State of a row; see the table at the head of this file."""

    PLANNED = "planned"
    SENT = "sent"
    PAID = "paid"
    FAILED = "failed"
    REJECTED = "rejected"


class BatchState(StrEnum):
    """State of a batch.

    OPEN: its order is not known to be placed. PLACED: Runa accepted the order. COMPLETED, FAILED: the order ended with
    this status. REJECTED: the batch was closed, because Runa rejected the order or every key is spent.
    """

    OPEN = "open"
    PLACED = "placed"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"


class _Money(sa.types.TypeDecorator[Decimal]):
    """An amount: NUMERIC, or text in SQLite, which has no exact decimals."""

    impl = sa.Numeric(14, 2)
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(sa.String(16) if dialect.name == "sqlite" else sa.Numeric(14, 2))

    def process_bind_param(self, value: Decimal | None, dialect: Any) -> Any:
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value)


class _State(sa.types.TypeDecorator[StrEnum]):
    """A state, stored as text.

    :param states: the enumeration of states.
    """

    impl = sa.String(10)
    cache_ok = True

    def __init__(self, states: type[StrEnum]) -> None:
        super().__init__()
        self.states = states

    def process_bind_param(self, value: StrEnum | None, dialect: Any) -> str | None:
        return None if value is None else self.states(value).value

    def process_result_value(self, value: str | None, dialect: Any) -> StrEnum | None:
        return None if value is None else self.states(value)


class _Moment(sa.types.TypeDecorator[datetime]):
    """A time in UTC. Databases without time zones return it without one, so the zone is added again."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


_tables = sa.MetaData()

_version = sa.Table("runa_ledger_version", _tables, sa.Column("version", sa.Integer, primary_key=True))

_campaigns = sa.Table(
    "runa_campaign",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("environment", sa.String(120), nullable=False),  # base URL of Runa's API
    sa.Column("name", sa.String(120), nullable=False),
    sa.UniqueConstraint("environment", "name", name="runa_campaign_name"),
)

_plans = sa.Table(
    "runa_plan",
    _tables,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), nullable=False),
    sa.Column("run", sa.String(64), nullable=False),
    sa.Column("made_at", _Moment, nullable=False),
)

_batches = sa.Table(
    "runa_batch",
    _tables,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), nullable=False),
    sa.Column("plan_id", sa.String(36), sa.ForeignKey("runa_plan.id"), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("description", sa.String(128), nullable=False),
    sa.Column("state", _State(BatchState), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("owned_until", _Moment),
    sa.Column("record", sa.Text),
    sa.Column("order_id", sa.String(64)),
    sa.Column("error", sa.Text),
    sa.Column("planned_at", _Moment, nullable=False),
    sa.Index("runa_batch_state", "campaign_id", "state"),
)

_payouts = sa.Table(
    "runa_ledger",
    _tables,
    sa.Column("campaign_id", sa.Integer, sa.ForeignKey("runa_campaign.id"), primary_key=True, autoincrement=False),
    sa.Column("recipient_key", sa.String(MAX_RECIPIENT_KEY), primary_key=True),
    sa.Column("amount", _Money, nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("state", _State(RowState), nullable=False),
    sa.Column("batch_id", sa.String(36), sa.ForeignKey("runa_batch.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("item", sa.Text),  # what is sent for the row, as JSON; NULL once it is paid
    sa.Column("order_reference", sa.String(40)),
    sa.Column("order_id", sa.String(64)),
    sa.Column("item_id", sa.String(64)),
    sa.Column("payout_link", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("planned_at", _Moment, nullable=False),
    sa.Column("sent_at", _Moment),
    sa.Column("paid_at", _Moment),
    sa.Index("runa_ledger_batch", "batch_id", "position"),
    sa.Index("runa_ledger_state", "campaign_id", "state"),
)

#: Columns that are empty in a row that was not sent.
_UNSENT = dict.fromkeys(("order_reference", "order_id", "item_id", "payout_link", "error", "sent_at", "paid_at"))


@dataclass(frozen=True)
class Batch:
    """The rows that one order pays.

    :param id: id of the batch in the ledger; part of the order's identity.
    :param plan_id: id of its plan.
    :param currency: currency of the balance that pays.
    :param description: the order's description, without the reference.
    :param state: see :class:`BatchState`.
    :param order_id: Runa's id of the order; ``None`` until it is placed.
    :param planned_at: when the batch was planned (UTC). Nothing was sent for it before.
    """

    id: str
    plan_id: str
    currency: str
    description: str
    state: BatchState
    order_id: str | None
    planned_at: datetime


@dataclass(frozen=True)
class Known:
    """What the ledger knows of a recipient key: the state of its row, and the last plan that planned it."""

    state: RowState
    plan_id: str


@dataclass(frozen=True)
class Row:
    """One payout of a batch.

    :param recipient_key: the user's key of the recipient.
    :param position: index of the row's item in the order that was sent.
    :param amount: the face value.
    :param item_id: Runa's id of the item; ``None`` until it is known.
    """

    recipient_key: str = field(repr=False)
    position: int
    amount: Decimal
    item_id: str | None


class FencedError(Exception):
    """Another attempt has taken, closed or settled the batch, so this attempt must not write to it."""


def open_engine(url: Any, *, reading: bool = False) -> Engine:
    """Return an engine for a ledger.

    Its errors do not show the values of a statement, because these include recipients.

    :param url: SQLAlchemy URL, as an object or as text.
    :param reading: whether the caller only reads. SQLite then does not wait for writers, and rejects writes.
    """
    url = sa.engine.make_url(url)
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, future=True, hide_parameters=True, pool_pre_ping=True)
    engine = sa.create_engine(url, future=True, hide_parameters=True, connect_args={"timeout": 60})

    # By default, SQLite's driver begins a transaction only before a write. Two transactions that read before they write
    # would then lock each other out.
    @sa.event.listens_for(engine, "connect")
    def _manual(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        if reading:
            connection.execute("PRAGMA query_only = ON")
            return
        # A commit must be on the disk before the next request is sent. With WAL that takes a single write.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def create(engine: Engine) -> None:
    """Create the tables of the ledger where they are missing, and check their version.

    :param engine: see :func:`open_engine`.
    :raises LedgerVersionError: if the ledger belongs to another release.
    """
    for left in reversed(range(len(_tables.tables) + 1)):
        try:
            _tables.create_all(engine)
            break
        except (sa.exc.IntegrityError, sa.exc.OperationalError, sa.exc.ProgrammingError):
            if not left:
                raise
            # Another process is creating the tables. The next round skips those that exist by then.
    with engine.begin() as connection:
        found = connection.execute(sa.select(_version.c.version)).scalar()
        if found is None:
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(_version).values(version=VERSION))
            except sa.exc.IntegrityError:
                found = VERSION  # another process has written it
    if found not in (None, VERSION):
        raise LedgerVersionError(found=found, wanted=VERSION)


def check(engine: Engine) -> None:
    """Check that a ledger exists and has this release's version. It is for callers that only read.

    Nothing is created, not even a file.

    :param engine: see :func:`open_engine`.
    :raises InvalidCampaignError: if there is no ledger.
    :raises LedgerVersionError: if the ledger belongs to another release.
    """
    url = engine.url
    # Connecting to a SQLite file creates it. In a URI ("file:…") the mode in the URI decides.
    is_file = url.get_backend_name() == "sqlite" and url.database and "uri" not in url.query
    found = None
    if (not is_file or Path(str(url.database)).exists()) and sa.inspect(engine).has_table(_version.name):
        with engine.begin() as connection:
            found = connection.execute(sa.select(_version.c.version)).scalar()
    if found is None:
        raise InvalidCampaignError(f"ledger: there is none in {url.database}; the first campaign that is paid makes it")
    if found != VERSION:
        raise LedgerVersionError(found=found, wanted=VERSION)


def campaigns(engine: Engine, environment: str) -> list[str]:
    """Return the names of all campaigns in a ledger.

    :param engine: see :func:`open_engine`. The tables must exist (:func:`create`, :func:`check`).
    :param environment: base URL of Runa's API.
    """
    query = sa.select(_campaigns.c.name).where(_campaigns.c.environment == normalize_environment(environment))
    with engine.begin() as connection:
        return list(connection.execute(query.order_by(_campaigns.c.name)).scalars())


class Ledger:
    """The ledger of one campaign.

    :param engine: see :func:`open_engine`. The tables must exist (:func:`create`, :func:`check`).
    :param environment: base URL of Runa's API. A campaign on the playground and one in production are two campaigns.
    :param campaign: name of the campaign, at most 109 characters.
    """

    def __init__(self, engine: Engine, environment: str, campaign: str) -> None:
        self.engine = engine
        self.environment = normalize_environment(environment)
        self.campaign = campaign
        self._id = self._find_or_add()

    def _find_or_add(self) -> int:
        wanted = (_campaigns.c.environment == self.environment, _campaigns.c.name == self.campaign)
        for _ in range(2):
            with self.engine.begin() as connection:
                found = connection.execute(sa.select(_campaigns.c.id).where(*wanted)).scalar()
                if found is not None:
                    return int(found)
            try:
                with self.engine.begin() as connection:
                    values = {"environment": self.environment, "name": self.campaign}
                    connection.execute(sa.insert(_campaigns).values(**values))
            except sa.exc.IntegrityError:
                pass  # another process has added the campaign
        with self.engine.begin() as connection:
            return int(connection.execute(sa.select(_campaigns.c.id).where(*wanted)).scalar_one())

    def identity(self, batch_id: str) -> OrderIdentity:
        """Return the identity of a batch's order."""
        return OrderIdentity.from_campaign(self.environment, campaign=self.campaign, batch=batch_id)

    # -- planning -----------------------------------------------------------------------------------------------------

    @contextmanager
    def planning(self, run: str, now: datetime) -> Iterator[Planning]:
        """Open a transaction to plan in.

        Only one run at a time plans a campaign. The plan is committed and frozen when the block ends, and undone when
        the block raises.

        :param run: id of the run; at most 64 characters.
        :param now: the current time (UTC).
        """
        with self.engine.begin() as connection:
            self._lock_campaign(connection)
            yield Planning(connection, self._id, run, now)

    def plan_failed_again(self, owner: str, now: datetime) -> int:
        """Plan rows again, unchanged, whose order a run placed and whose order ended FAILED.

        :param owner: the run. Rows whose order another run placed stay as they are.
        :param now: the current time (UTC).
        :returns: number of rows planned again.
        """
        ended = (_batches.c.campaign_id == self._id, _batches.c.state == BatchState.FAILED, _batches.c.owner == owner)
        still_failed = sa.select(_payouts.c.batch_id).where(_payouts.c.state == RowState.FAILED)
        count = 0
        with self.engine.begin() as connection:
            self._lock_campaign(connection)
            for id_, plan_id, currency, description in connection.execute(
                sa.select(_batches.c.id, _batches.c.plan_id, _batches.c.currency, _batches.c.description)
                .where(*ended, _batches.c.id.in_(still_failed))
                .order_by(_batches.c.planned_at, _batches.c.id)
            ).all():
                batch = _add_batch(connection, self._id, plan_id, currency, description, now)
                count += connection.execute(
                    sa.update(_payouts)
                    .where(_payouts.c.batch_id == id_)
                    .values(batch_id=batch.id, state=RowState.PLANNED, planned_at=now, **_UNSENT)
                ).rowcount
        return count

    def _lock_campaign(self, connection: Connection) -> None:
        """Wait until no other run plans the campaign, and keep others from planning it until the transaction ends."""
        connection.execute(sa.select(_campaigns.c.id).where(_campaigns.c.id == self._id).with_for_update())

    # -- placing ------------------------------------------------------------------------------------------------------

    def batches(self, *states: BatchState) -> list[Batch]:
        """Return the batches, oldest first.

        :param states: only batches in these states. Default: all states.
        """
        columns = [_batches.c[name] for name in Batch.__dataclass_fields__]
        query = sa.select(*columns).where(
            _batches.c.campaign_id == self._id, _batches.c.state.in_(states or tuple(BatchState))
        )
        with self.engine.begin() as connection:
            return [Batch(*row) for row in connection.execute(query.order_by(_batches.c.planned_at, _batches.c.id))]

    def order(self, batch: Batch) -> NewOrder:
        """Return the order of a batch. It is the same bytes every time, even if the input has changed.

        :raises FencedError: if the order is erased, because another attempt has settled or split the batch.
        """
        query = sa.select(_payouts.c.item).where(_payouts.c.batch_id == batch.id).order_by(_payouts.c.position)
        with self.engine.begin() as connection:
            texts = [text for (text,) in connection.execute(query)]
        if not texts or None in texts:
            raise FencedError(batch.id)
        items = json.loads(f"[{','.join(texts)}]", parse_float=Decimal)
        return NewOrder.build(currency=batch.currency, items=items, description=batch.description)

    def take(self, batch_id: str, owner: str, now: datetime) -> int | None:
        """Take an open batch, to place its order.

        :param batch_id: id of the batch.
        :param owner: the run that takes it.
        :param now: the current time (UTC).
        :returns: number of the attempt, from 1; ``None`` if another run has taken the batch, or it is no longer open.
        """
        mine = sa.or_(_batches.c.owner.is_(None), _batches.c.owner == owner, _batches.c.owned_until < now)
        with self.engine.begin() as connection:
            taken = connection.execute(
                sa.update(_batches)
                .where(_batches.c.id == batch_id, _batches.c.state == BatchState.OPEN, mine)
                .values(attempts=_batches.c.attempts + 1, owner=owner, owned_until=now + LEASE)
            )
            if not taken.rowcount:
                return None
            return int(connection.execute(sa.select(_batches.c.attempts).where(_batches.c.id == batch_id)).scalar_one())

    def _write(self, connection: Connection, batch_id: str, attempt: int, **values: Any) -> None:
        mine = (_batches.c.id == batch_id, _batches.c.attempts == attempt, _batches.c.state == BatchState.OPEN)
        if not connection.execute(sa.update(_batches).where(*mine).values(**values)).rowcount:
            raise FencedError(batch_id)

    def load_record(self, batch_id: str) -> Record | None:
        """Return the record of placing a batch's order, or ``None`` if nothing was sent."""
        with self.engine.begin() as connection:
            text = connection.execute(sa.select(_batches.c.record).where(_batches.c.id == batch_id)).scalar()
        return None if text is None else Record.from_json(json.loads(text))

    def save_record(self, batch_id: str, attempt: int, record: Record, now: datetime) -> None:
        """Save the record of placing a batch's order, and mark its rows as sent.

        :raises FencedError: if another attempt has taken the batch.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, record=json.dumps(record.to_json()), owned_until=now + LEASE)
            connection.execute(
                sa.update(_payouts)
                .where(_payouts.c.batch_id == batch_id, _payouts.c.state == RowState.PLANNED)
                .values(state=RowState.SENT, sent_at=now)
            )

    def mark_placed(self, batch_id: str, attempt: int, *, order_id: str, reference: str) -> None:
        """Save the order of a batch that Runa accepted.

        :raises FencedError: if another attempt has taken the batch. That attempt finds the same order.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, state=BatchState.PLACED, order_id=order_id, error=None)
            connection.execute(
                sa.update(_payouts)
                .where(_payouts.c.batch_id == batch_id)
                .values(order_id=order_id, order_reference=reference, error=None)
            )

    def note_error(self, batch_id: str, attempt: int, error: str) -> None:
        """Save why an attempt ended without an order. The batch stays open."""
        with self.engine.begin() as connection:
            try:
                self._write(connection, batch_id, attempt, error=error)
            except FencedError:
                return
            connection.execute(sa.update(_payouts).where(_payouts.c.batch_id == batch_id).values(error=error))

    def reject(self, batch_id: str, attempt: int, error: str) -> None:
        """Close a batch whose order Runa rejected. It paid nobody, and its rows may be planned again.

        :raises FencedError: if another attempt has taken the batch. That attempt may pay.
        """
        self._close_unpaid(batch_id, attempt, BatchState.REJECTED, RowState.REJECTED, error)

    def fail(self, batch_id: str, attempt: int, error: str) -> None:
        """Close a batch whose order ended FAILED. It paid nobody, and its rows may be planned again.

        :raises FencedError: if another attempt has taken the batch. That attempt may pay.
        """
        self._close_unpaid(batch_id, attempt, BatchState.FAILED, RowState.FAILED, error)

    def _close_unpaid(self, batch_id: str, attempt: int, batch: BatchState, rows: RowState, error: str) -> None:
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, state=batch, error=error)
            connection.execute(
                sa.update(_payouts).where(_payouts.c.batch_id == batch_id).values(state=rows, error=error)
            )

    def split(self, batch: Batch, attempt: int, error: str, now: datetime) -> list[Batch]:
        """Close a batch that is proven to have paid nobody, and plan its rows again in two halves.

        :raises FencedError: if another attempt has taken the batch. That attempt may pay.
        :returns: the two new batches.
        """
        keys = sa.select(_payouts.c.recipient_key).where(_payouts.c.batch_id == batch.id).order_by(_payouts.c.position)
        with self.engine.begin() as connection:
            self._write(connection, batch.id, attempt, state=BatchState.REJECTED, error=error)
            rows = [key for (key,) in connection.execute(keys)]
            middle = (len(rows) + 1) // 2
            halves = []
            for part in (rows[:middle], rows[middle:]):
                half = _add_batch(connection, self._id, batch.plan_id, batch.currency, batch.description, now)
                connection.execute(
                    sa.update(_payouts)
                    .where(_payouts.c.campaign_id == self._id, _payouts.c.recipient_key == sa.bindparam("key"))
                    .values(batch_id=half.id, position=sa.bindparam("place"), state=RowState.PLANNED, sent_at=None),
                    [{"key": key, "place": place} for place, key in enumerate(part)],
                )
                halves.append(half)
            return halves

    # -- settling -----------------------------------------------------------------------------------------------------

    def settle_completed(self, batch: Batch, items: Mapping[int, tuple[str, str | None]], now: datetime) -> None:
        """Settle a batch whose order is COMPLETED: mark its rows as paid, and erase what was sent for them.

        :param batch: the batch.
        :param items: position of a row -> id of its item, and its payout link or ``None``.
        :param now: the current time (UTC).
        :raises FencedError: if another attempt has settled the batch.
        """
        with self.engine.begin() as connection:
            self._settle(connection, batch, BatchState.COMPLETED)
            connection.execute(
                sa.update(_payouts)
                .where(_payouts.c.batch_id == batch.id)
                .values(state=RowState.PAID, paid_at=now, item=None, error=None)
            )
            if items:
                connection.execute(
                    sa.update(_payouts)
                    .where(_payouts.c.batch_id == batch.id, _payouts.c.position == sa.bindparam("place"))
                    .values(item_id=sa.bindparam("its_id"), payout_link=sa.bindparam("its_link")),
                    [{"place": place, "its_id": id_, "its_link": link} for place, (id_, link) in items.items()],
                )

    def settle_failed(self, batch: Batch, error: str) -> None:
        """Settle a batch whose order ended FAILED. It paid nobody, and its rows may be planned again.

        :raises FencedError: if another attempt has settled the batch.
        """
        with self.engine.begin() as connection:
            self._settle(connection, batch, BatchState.FAILED, error=error)
            connection.execute(
                sa.update(_payouts).where(_payouts.c.batch_id == batch.id).values(state=RowState.FAILED, error=error)
            )

    @staticmethod
    def _settle(connection: Connection, batch: Batch, state: BatchState, **values: Any) -> None:
        placed = (
            _batches.c.id == batch.id,
            _batches.c.state == BatchState.PLACED,
            _batches.c.order_id == batch.order_id,
        )
        if not connection.execute(sa.update(_batches).where(*placed).values(state=state, **values)).rowcount:
            raise FencedError(batch.id)  # another run has settled it

    # -- reading ------------------------------------------------------------------------------------------------------

    def totals(self, currency: str | None = None) -> dict[RowState, tuple[int, Decimal]]:
        """Return the number of rows and the sum of their amounts, by state.

        :param currency: only rows in this currency. Default: all currencies.
        """
        totals: dict[RowState, tuple[int, Decimal]] = {}
        query = sa.select(_payouts.c.state, _payouts.c.amount, sa.func.count()).where(
            _payouts.c.campaign_id == self._id
        )
        if currency is not None:
            query = query.where(_payouts.c.currency == currency)
        with self.engine.begin() as connection:
            for state, amount, count in connection.execute(query.group_by(_payouts.c.state, _payouts.c.amount)):
                rows, total = totals.get(state, (0, Decimal(0)))
                totals[state] = (rows + count, total + amount * count)
        return totals

    def open_amounts(self, currency: str) -> dict[Decimal, int]:
        """Return the amounts of all rows that are still to be paid: amount -> number of rows.

        :param currency: only rows in this currency.
        """
        with self.engine.begin() as connection:
            return _open_amounts(connection, self._id, currency)

    def sent_between(self, since: datetime, until: datetime) -> set[str]:
        """Return the ids of the batches that have a row which was first sent in a period.

        :param since: begin of the period (UTC), inclusive.
        :param until: end of the period (UTC), exclusive.
        """
        sent = (_payouts.c.campaign_id == self._id, _payouts.c.sent_at >= since, _payouts.c.sent_at < until)
        with self.engine.begin() as connection:
            return set(connection.execute(sa.select(_payouts.c.batch_id).where(*sent).distinct()).scalars())

    def rows_of(self, batch: Batch) -> list[Row]:
        """Return a batch's rows, in the sequence in which they were sent."""
        query = sa.select(*(_payouts.c[name] for name in Row.__dataclass_fields__))
        with self.engine.begin() as connection:
            found = connection.execute(query.where(_payouts.c.batch_id == batch.id).order_by(_payouts.c.position))
            return [Row(*row) for row in found]

    def reason(self, state: BatchState) -> str | None:
        """Return the error of the latest batch in a state, without its full stop; ``None`` if none has an error."""
        query = sa.select(_batches.c.error).where(
            _batches.c.campaign_id == self._id, _batches.c.state == state, _batches.c.error.is_not(None)
        )
        with self.engine.begin() as connection:
            found = connection.execute(query.order_by(_batches.c.planned_at.desc()).limit(1)).scalar()
        return None if found is None else str(found).rstrip(".")

    def rows(self, *states: RowState) -> Iterator[dict[str, Any]]:
        """Iterate over the rows, without what is sent for them and without payout links.

        :param states: only rows in these states. Default: all states.
        """
        shown = [
            column for column in _payouts.c if column.name not in ("campaign_id", "item", "payout_link", "position")
        ]
        query = sa.select(*shown).where(_payouts.c.campaign_id == self._id)
        if states:
            query = query.where(_payouts.c.state.in_(states))
        with self.engine.connect() as connection:
            result = connection.execution_options(stream_results=True).execute(query.order_by(_payouts.c.recipient_key))
            for row in result.mappings():
                yield dict(row)


class Planning:
    """What a plan reads and writes in its transaction. :meth:`Ledger.planning` creates it.

    :param connection: the connection, in the transaction.
    :param campaign_id: id of the campaign.
    :param run: id of the run.
    :param now: the current time (UTC).
    """

    def __init__(self, connection: Connection, campaign_id: int, run: str, now: datetime) -> None:
        self._connection = connection
        self._campaign_id = campaign_id
        self._now = now
        mine = (_plans.c.campaign_id == campaign_id, _plans.c.run == run)
        #: Whether this run has planned before. Then no new recipient is planned.
        self.frozen = connection.execute(sa.select(sa.func.count()).select_from(_plans).where(*mine)).scalar_one() > 0
        self.plan_id = str(uuid.uuid4())
        self._plan: dict[str, Any] | None = {"id": self.plan_id, "campaign_id": campaign_id, "run": run, "made_at": now}

    def known(self, keys: Iterable[str]) -> dict[str, Known]:
        """Return what the ledger knows of recipient keys. Keys without a row are left out."""
        query = (
            sa.select(_payouts.c.recipient_key, _payouts.c.state, _batches.c.plan_id)
            .join(_batches, _batches.c.id == _payouts.c.batch_id)
            .where(_payouts.c.campaign_id == self._campaign_id, _payouts.c.recipient_key.in_(list(keys)))
        )
        return {key: Known(state, plan_id) for key, state, plan_id in self._connection.execute(query)}

    def add(self, payouts: Sequence[Payout], known: Mapping[str, Known], *, currency: str, description: str) -> None:
        """Write a batch to the ledger.

        :param payouts: rows of the batch, in the sequence in which they are sent.
        :param known: recipient keys that already have a row in the ledger, failed or rejected.
        :param currency: currency of the balance that pays.
        :param description: description of the order, without the reference.
        """
        if self._plan is not None:
            self._connection.execute(sa.insert(_plans).values(**self._plan))
            self._plan = None  # an empty plan is not written, so it freezes nothing: the input may come later
        batch = _add_batch(self._connection, self._campaign_id, self.plan_id, currency, description, self._now)
        fresh: list[dict[str, Any]] = []
        again: list[dict[str, Any]] = []
        for position, payout in enumerate(payouts):
            values = {
                "amount": payout.item.face_value,
                "currency": currency,
                "state": RowState.PLANNED,
                "batch_id": batch.id,
                "position": position,
                "item": json.dumps(payout.item.model_dump(mode="json", exclude_none=True)),
                "planned_at": self._now,
            }
            if payout.recipient_key in known:
                again.append({"its_key": payout.recipient_key, **values})
            else:
                fresh.append({"campaign_id": self._campaign_id, "recipient_key": payout.recipient_key, **values})
        if fresh:
            self._connection.execute(sa.insert(_payouts), fresh)
        if again:
            names = [name for name in again[0] if name != "its_key"]
            self._connection.execute(
                sa.update(_payouts)
                .where(
                    _payouts.c.campaign_id == self._campaign_id,
                    _payouts.c.recipient_key == sa.bindparam("its_key"),
                )
                .values({name: sa.bindparam(f"new_{name}") for name in names} | _UNSENT),
                [{"its_key": row["its_key"]} | {f"new_{name}": row[name] for name in names} for row in again],
            )

    def open_totals(self, currency: str) -> tuple[int, Decimal]:
        """Return number and sum of all rows of the campaign that are still to be paid, including this plan's.

        :param currency: only rows in this currency.
        """
        return count_and_sum(_open_amounts(self._connection, self._campaign_id, currency))


def count_and_sum(amounts: Mapping[Decimal, int]) -> tuple[int, Decimal]:
    """Return the number of rows and the sum of their amounts.

    :param amounts: amount -> number of rows.
    """
    return sum(amounts.values()), sum((amount * count for amount, count in amounts.items()), Decimal(0))


def _open_amounts(connection: Connection, campaign_id: int, currency: str) -> dict[Decimal, int]:
    unpaid = (
        _payouts.c.campaign_id == campaign_id,
        _payouts.c.currency == currency,
        _payouts.c.state.in_((RowState.PLANNED, RowState.SENT)),
    )
    query = sa.select(_payouts.c.amount, sa.func.count()).where(*unpaid).group_by(_payouts.c.amount)
    return {amount: int(count) for amount, count in connection.execute(query)}


def _add_batch(
    connection: Connection, campaign_id: int, plan_id: str, currency: str, description: str, now: datetime
) -> Batch:
    batch = Batch(str(uuid.uuid4()), plan_id, currency, description, BatchState.OPEN, None, now)
    values = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
    connection.execute(sa.insert(_batches).values(campaign_id=campaign_id, attempts=0, **values))
    return batch
