"""The ledger: who of which campaign was paid, in a database of the user's; its tables, and every statement on them.

One row of ``runa_ledger`` per campaign and recipient key: that is the promise, and the primary key. Rows that go out in
one order are a batch; a row belongs to one batch at a time, and leaves it only when that batch is proven to have paid
nobody. A batch is also the record of placing its order. It is **fenced**: an attempt takes the batch by counting its
attempts up, and whatever it writes later fails once another attempt has done the same.

===========  =========================================================================================================
state        of a row
===========  =========================================================================================================
planned      its batch was not sent
sent         its batch was, or may have been, sent
paid         its order is COMPLETED; what was sent for it is erased here, with the recipient's address
failed       its order ended FAILED and paid nobody; the next plan takes the row up again
rejected     Runa refused its order and paid nobody; the next plan takes the row up again
===========  =========================================================================================================

SQLAlchemy Core, 1.4 and 2. SQLite and PostgreSQL; not MySQL, whose usual collations take "Ada" and "ada" for one key.
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

#: Version of the tables. A release that changes them counts up and says how to bring an older ledger along.
VERSION = 1

#: How long a batch belongs to the run that took it; the same run takes it again at once.
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

    OPEN: its order is not placed, or not known to be. PLACED: Runa accepted the order. COMPLETED, FAILED: the order
    ended so. REJECTED: Runa rejected the order and paid nobody.
    """

    OPEN = "open"
    PLACED = "placed"
    COMPLETED = "completed"
    FAILED = "failed"
    REJECTED = "rejected"


class _Money(sa.types.TypeDecorator[Decimal]):
    """An amount: NUMERIC, and text in SQLite, which has no exact numbers."""

    impl = sa.Numeric(14, 2)
    cache_ok = True

    def load_dialect_impl(self, dialect: Any) -> Any:
        return dialect.type_descriptor(sa.String(16) if dialect.name == "sqlite" else sa.Numeric(14, 2))

    def process_bind_param(self, value: Decimal | None, dialect: Any) -> Any:
        return str(value) if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value)


class _State(sa.types.TypeDecorator[StrEnum]):
    """A state, as its text.

    :param states: the states that there are.
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
    """A moment in UTC: databases without time zones give back what they were given."""

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

#: What a row that was not sent does not have.
_UNSENT = dict.fromkeys(("order_reference", "order_id", "item_id", "payout_link", "error", "sent_at", "paid_at"))


@dataclass(frozen=True)
class Batch:
    """What one order pays.

    :param id: its name in the ledger, and part of the order's identity.
    :param plan_id: the plan it belongs to.
    :param currency: currency of the balance that pays.
    :param description: the order's description, without the reference.
    :param state: see :class:`BatchState`.
    :param order_id: Runa's id of the order, once it is placed.
    :param planned_at: before this moment nothing was sent for it (UTC).
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
    """What the ledger knows of a recipient key: the state of its row, and the plan it was last taken up by."""

    state: RowState
    plan_id: str


@dataclass(frozen=True)
class Row:
    """What the ledger says of one payout of a batch.

    :param recipient_key: who is paid.
    :param position: its place in the order, as it was sent.
    :param amount: the face value.
    :param item_id: Runa's id of the item, once it is known.
    """

    recipient_key: str = field(repr=False)
    position: int
    amount: Decimal
    item_id: str | None


class FencedError(Exception):
    """Another attempt has taken the batch since; this one must not write any more."""


def open_engine(url: Any, *, reading: bool = False) -> Engine:
    """Return an engine for a ledger. Its errors do not show the values of a statement: they name recipients.

    :param url: a URL of SQLAlchemy's, or its text.
    :param reading: whether nothing is to be written; SQLite then waits for nobody who plans, and refuses to write.
    """
    url = sa.engine.make_url(url)
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, future=True, hide_parameters=True, pool_pre_ping=True)
    engine = sa.create_engine(url, future=True, hide_parameters=True, connect_args={"timeout": 60})

    # SQLite's driver begins transactions when it likes, and two that read before they write lock each other out.
    @sa.event.listens_for(engine, "connect")
    def _manual(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        if reading:
            connection.execute("PRAGMA query_only = ON")
            return
        # What is committed is on the disk when the next request is sent; with WAL that takes one write, not several.
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
            # Somebody else is making the tables: whatever could not be made a second time is there at the next look.
    with engine.begin() as connection:
        found = connection.execute(sa.select(_version.c.version)).scalar()
        if found is None:
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(_version).values(version=VERSION))
            except sa.exc.IntegrityError:
                found = VERSION  # somebody else was faster
    if found not in (None, VERSION):
        raise LedgerVersionError(found=found, wanted=VERSION)


def check(engine: Engine) -> None:
    """Check that there is a ledger, and its version; for whoever only reads. Nothing is created, not even a file.

    :param engine: see :func:`open_engine`.
    :raises InvalidCampaignError: if there is none.
    :raises LedgerVersionError: if the ledger belongs to another release.
    """
    url = engine.url
    # To look into a file of SQLite's is to create it; where it is in a URI ("file:…"), the URI says whether.
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
    """Return the names of the campaigns that a ledger knows.

    :param engine: see :func:`open_engine`; the tables must be there (:func:`create`, :func:`check`).
    :param environment: base URL of Runa's API.
    """
    query = sa.select(_campaigns.c.name).where(_campaigns.c.environment == normalize_environment(environment))
    with engine.begin() as connection:
        return list(connection.execute(query.order_by(_campaigns.c.name)).scalars())


class Ledger:
    """The ledger of one campaign.

    :param engine: see :func:`open_engine`; the tables must be there (:func:`create`, :func:`check`).
    :param environment: base URL of Runa's API: a campaign on the playground is not the one in production.
    :param campaign: the campaign's name, at most 109 characters.
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
                pass  # somebody else was faster
        with self.engine.begin() as connection:
            return int(connection.execute(sa.select(_campaigns.c.id).where(*wanted)).scalar_one())

    def identity(self, batch_id: str) -> OrderIdentity:
        """Return the identity of a batch's order."""
        return OrderIdentity.from_campaign(self.environment, campaign=self.campaign, batch=batch_id)

    # -- planning -----------------------------------------------------------------------------------------------------

    @contextmanager
    def planning(self, run: str, now: datetime) -> Iterator[Planning]:
        """Plan: one at a time for a campaign, and all or nothing. What is planned is frozen when the block ends well.

        :param run: whose plan it is; at most 64 characters.
        :param now: the time (UTC).
        """
        with self.engine.begin() as connection:
            self._plan_alone(connection)
            yield Planning(connection, self._id, run, now)

    def plan_failed_again(self, owner: str, now: datetime) -> int:
        """Plan the rows anew, as they were, whose order a run had placed and which ended FAILED.

        :param owner: the run; what others have placed stays as it is.
        :param now: the time (UTC).
        :returns: the number of rows.
        """
        ended = (_batches.c.campaign_id == self._id, _batches.c.state == BatchState.FAILED, _batches.c.owner == owner)
        still_failed = sa.select(_payouts.c.batch_id).where(_payouts.c.state == RowState.FAILED)
        count = 0
        with self.engine.begin() as connection:
            self._plan_alone(connection)
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

    def _plan_alone(self, connection: Connection) -> None:
        """Wait here for whoever else plans the same campaign."""
        connection.execute(sa.select(_campaigns.c.id).where(_campaigns.c.id == self._id).with_for_update())

    # -- placing ------------------------------------------------------------------------------------------------------

    def batches(self, *states: BatchState) -> list[Batch]:
        """Return the batches, oldest first.

        :param states: only batches in these states. Default: all.
        """
        columns = [_batches.c[name] for name in Batch.__dataclass_fields__]
        query = sa.select(*columns).where(
            _batches.c.campaign_id == self._id, _batches.c.state.in_(states or tuple(BatchState))
        )
        with self.engine.begin() as connection:
            return [Batch(*row) for row in connection.execute(query.order_by(_batches.c.planned_at, _batches.c.id))]

    def order(self, batch: Batch) -> NewOrder:
        """Return the order of a batch: the same bytes every time, whatever became of the input.

        :raises FencedError: if it is not there any more, because another attempt has settled or split the batch.
        """
        query = sa.select(_payouts.c.item).where(_payouts.c.batch_id == batch.id).order_by(_payouts.c.position)
        with self.engine.begin() as connection:
            texts = [text for (text,) in connection.execute(query)]
        if not texts or None in texts:
            raise FencedError(batch.id)
        items = json.loads(f"[{','.join(texts)}]", parse_float=Decimal)
        return NewOrder.build(currency=batch.currency, items=items, description=batch.description)

    def take(self, batch_id: str, owner: str, now: datetime) -> int | None:
        """Take an open batch for an attempt to place its order.

        :param batch_id: which.
        :param owner: the run that takes it.
        :param now: the time (UTC).
        :returns: the number of the attempt, from 1; ``None`` if another run has it, or it is not open any more.
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
        """Return the record of placing a batch's order."""
        with self.engine.begin() as connection:
            text = connection.execute(sa.select(_batches.c.record).where(_batches.c.id == batch_id)).scalar()
        return None if text is None else Record.from_json(json.loads(text))

    def save_record(self, batch_id: str, attempt: int, record: Record, now: datetime) -> None:
        """Keep the record of placing; from now on the batch's rows may have been sent.

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
        """Note the order of a batch.

        :raises FencedError: if another attempt has taken the batch; that one finds the same order.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, state=BatchState.PLACED, order_id=order_id, error=None)
            connection.execute(
                sa.update(_payouts)
                .where(_payouts.c.batch_id == batch_id)
                .values(order_id=order_id, order_reference=reference, error=None)
            )

    def note_error(self, batch_id: str, attempt: int, error: str) -> None:
        """Note why an attempt ended without an order. The batch stays open."""
        with self.engine.begin() as connection:
            try:
                self._write(connection, batch_id, attempt, error=error)
            except FencedError:
                return
            connection.execute(sa.update(_payouts).where(_payouts.c.batch_id == batch_id).values(error=error))

    def reject(self, batch_id: str, attempt: int, error: str) -> None:
        """Close a batch whose order Runa rejected. Nobody was paid, and its rows may be planned again.

        :raises FencedError: if another attempt has taken the batch, which may pay.
        """
        self._close_unpaid(batch_id, attempt, BatchState.REJECTED, RowState.REJECTED, error)

    def fail(self, batch_id: str, attempt: int, error: str) -> None:
        """Close a batch whose order ended FAILED. Nobody was paid, and its rows may be planned again.

        :raises FencedError: if another attempt has taken the batch, which may pay.
        """
        self._close_unpaid(batch_id, attempt, BatchState.FAILED, RowState.FAILED, error)

    def _close_unpaid(self, batch_id: str, attempt: int, batch: BatchState, rows: RowState, error: str) -> None:
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, state=batch, error=error)
            connection.execute(
                sa.update(_payouts).where(_payouts.c.batch_id == batch_id).values(state=rows, error=error)
            )

    def split(self, batch: Batch, attempt: int, error: str, now: datetime) -> list[Batch]:
        """Close a batch that is proven to have paid nobody, and plan its rows anew in two halves.

        :raises FencedError: if another attempt has taken the batch, which may pay.
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
        """Note that the order of a batch is COMPLETED: its rows are paid, and what was sent for them is erased.

        :param batch: which.
        :param items: position of a row -> id of its item, and its payout link if that is to be kept.
        :param now: the time (UTC).
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
        """Note that the order of a batch ended FAILED and paid nobody. Its rows may be planned again."""
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
            raise FencedError(batch.id)  # another run was faster

    # -- reading ------------------------------------------------------------------------------------------------------

    def totals(self, currency: str | None = None) -> dict[RowState, tuple[int, Decimal]]:
        """Return the number of rows and the sum of their amounts, by state.

        :param currency: only rows in this currency.
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
        """Return the amounts of all rows that are still to be paid, and how many rows have each.

        :param currency: only rows in this currency.
        """
        with self.engine.begin() as connection:
            return _open_amounts(connection, self._id, currency)

    def sent_between(self, since: datetime, until: datetime) -> set[str]:
        """Return the ids of the batches of which a row was sent first in a period.

        :param since: its begin (UTC).
        :param until: its end (UTC); not part of it.
        """
        sent = (_payouts.c.campaign_id == self._id, _payouts.c.sent_at >= since, _payouts.c.sent_at < until)
        with self.engine.begin() as connection:
            return set(connection.execute(sa.select(_payouts.c.batch_id).where(*sent).distinct()).scalars())

    def rows_of(self, batch: Batch) -> list[Row]:
        """Return what the ledger says of a batch's rows, in the order in which they were sent."""
        query = sa.select(*(_payouts.c[name] for name in Row.__dataclass_fields__))
        with self.engine.begin() as connection:
            found = connection.execute(query.where(_payouts.c.batch_id == batch.id).order_by(_payouts.c.position))
            return [Row(*row) for row in found]

    def reason(self, state: BatchState) -> str | None:
        """Return why a batch in some state is in it, if that is known of any; without a full stop."""
        query = sa.select(_batches.c.error).where(
            _batches.c.campaign_id == self._id, _batches.c.state == state, _batches.c.error.is_not(None)
        )
        with self.engine.begin() as connection:
            found = connection.execute(query.order_by(_batches.c.planned_at.desc()).limit(1)).scalar()
        return None if found is None else str(found).rstrip(".")

    def rows(self, *states: RowState) -> Iterator[dict[str, Any]]:
        """Iterate over the rows, without what is sent for them and without links.

        :param states: only rows in these states.
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
    """What a plan may ask and write, inside its transaction.

    :param connection: the transaction.
    :param campaign_id: whose plan it is.
    :param run: see :meth:`Ledger.planning`.
    :param now: the time (UTC).
    """

    def __init__(self, connection: Connection, campaign_id: int, run: str, now: datetime) -> None:
        self._connection = connection
        self._campaign_id = campaign_id
        self._now = now
        mine = (_plans.c.campaign_id == campaign_id, _plans.c.run == run)
        #: Whether this run has planned before: then no new recipient comes in.
        self.frozen = connection.execute(sa.select(sa.func.count()).select_from(_plans).where(*mine)).scalar_one() > 0
        self.plan_id = str(uuid.uuid4())
        self._plan: dict[str, Any] | None = {"id": self.plan_id, "campaign_id": campaign_id, "run": run, "made_at": now}

    def known(self, keys: Iterable[str]) -> dict[str, Known]:
        """Return what the ledger knows of some recipient keys."""
        query = (
            sa.select(_payouts.c.recipient_key, _payouts.c.state, _batches.c.plan_id)
            .join(_batches, _batches.c.id == _payouts.c.batch_id)
            .where(_payouts.c.campaign_id == self._campaign_id, _payouts.c.recipient_key.in_(list(keys)))
        )
        return {key: Known(state, plan_id) for key, state, plan_id in self._connection.execute(query)}

    def add(self, payouts: Sequence[Payout], known: Mapping[str, Known], *, currency: str, description: str) -> None:
        """Write down a batch.

        :param payouts: its rows, in the order in which they are sent.
        :param known: those of them that have a row in the ledger already: failed or rejected.
        :param currency: currency of the balance that pays.
        :param description: description of the order.
        """
        if self._plan is not None:
            self._connection.execute(sa.insert(_plans).values(**self._plan))
            self._plan = None  # a plan of nothing is none: the input may come later
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
        """Return number and sum of all rows of the campaign that are still to be paid, this plan's among them.

        :param currency: of one currency.
        """
        return count_and_sum(_open_amounts(self._connection, self._campaign_id, currency))


def count_and_sum(amounts: Mapping[Decimal, int]) -> tuple[int, Decimal]:
    """Return how many rows there are, and the sum of their amounts.

    :param amounts: amount -> how many rows have it.
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
