"""Planning: the statements that turn staged rows into batches, in one transaction.

Rows are staged in a temporary table first, whatever their order is. What the ledger knows of them is then looked up
with one statement for all of them, so that a plan of a million rows costs the same per row as one of ten thousand; and
batches are cut in the order of digests, so that the same rows make the same batches whatever order they came in.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.batches import BATCH_COLUMNS, Batch, CampaignRef, Member, insert_batch, update_rows
from airflow_provider_runa.campaign.rows import MAX_RECIPIENT_KEY
from airflow_provider_runa.campaign.tables import (
    FREE,
    UNSENT,
    BatchState,
    Money,
    RowState,
    State,
    batch_table,
    campaign_table,
    found_table,
    plan_table,
    row_table,
)

#: Run of the plan that holds the batches of orders that were found at Runa.
FOUND_RUN = "found at Runa"

#: Rows that are written at a time.
CHUNK = 1000

_staged = sa.Table(
    "runa_staged",
    sa.MetaData(),
    sa.Column("number", sa.Integer, nullable=False),  # index of the row in the input
    sa.Column("digest", sa.String(digests.LENGTH), nullable=False),
    sa.Column("recipient_key", sa.String(MAX_RECIPIENT_KEY), nullable=False),
    sa.Column("amount", Money, nullable=False),
    sa.Column("group_name", sa.Text, nullable=False),  # what may go into one order
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("state", State(RowState)),  # of the ledger's row; NULL: the ledger has none
    sa.Column("taken", sa.Integer),
    sa.Column("known_amount", Money),  # of the ledger's row, like state and taken
    sa.Column("known_currency", sa.String(3)),
    sa.Column("known_batch_id", sa.String(36)),
    prefixes=["TEMPORARY"],
    postgresql_on_commit="DROP",
)


# As text, because SQLAlchemy 1.4 cannot write an UPDATE … FROM for SQLite, which has it since 3.33.
_LOOK_UP = sa.text(
    """
    UPDATE runa_staged SET state = runa_ledger.state, taken = runa_ledger.taken, known_amount = runa_ledger.amount,
        known_currency = runa_ledger.currency, known_batch_id = runa_ledger.batch_id
    FROM runa_ledger
    WHERE runa_ledger.campaign_id = :campaign_id AND runa_ledger.recipient_key = runa_staged.recipient_key
    """
)


@dataclass(frozen=True)
class StagedRow:
    """A row of the input, checked.

    :param number: its index in the input.
    :param digest: its digest.
    :param recipient_key: who is paid.
    :param amount: the face value.
    :param group_name: what may go into one order has the same.
    :param item: what is sent for it, as JSON.
    """

    number: int
    digest: str
    recipient_key: str = field(repr=False)
    amount: Decimal
    group_name: str
    item: str = field(repr=False)


@dataclass(frozen=True)
class Known:
    """What the ledger knows of the staged rows.

    :param new: staged rows that the ledger does not have.
    :param rows: state -> number of staged rows that the ledger has in it.
    :param other_amount: how many of those that are paid now ask for another amount or currency.
    :param open_elsewhere: how many of those that are planned or sent belong to another run.
    :param found: rows that an order at Runa pays which the ledger did not know.
    """

    new: int
    rows: Mapping[RowState, int]
    other_amount: int
    open_elsewhere: int
    found: int


class Planning:
    """One plan, inside its transaction: stage all rows, then :meth:`begin`, then the rest.

    :param connection: the transaction.
    :param campaign: whose plan it is.
    :param run: whose plan it is; at most 64 characters.
    :param now: the time (UTC).
    """

    def __init__(self, connection: Connection, campaign: CampaignRef, run: str, now: datetime) -> None:
        self._connection = connection
        self._campaign = campaign
        self._run = run
        self._now = now
        self._is_postgres = connection.dialect.name == "postgresql"
        connection.execute(sa.text("DROP TABLE IF EXISTS runa_staged"))
        _staged.create(connection)

    def stage(self, rows: Sequence[StagedRow]) -> None:
        """Stage rows. Nothing of the ledger is locked meanwhile."""
        if rows:
            self._connection.execute(sa.insert(_staged), [vars(row) for row in rows])

    def begin(self, *, plan_new: bool) -> bool:
        """Wait for other plans of the campaign, and look up what the ledger knows of the staged rows.

        :param plan_new: whether a run that has planned before may plan new recipients, once all its orders are final.
        :returns: whether the plan is frozen: then no new recipient may come in.
        """
        if not self._is_postgres:
            # Staging took no lock of the ledger's file. Now nobody else may write.
            self._connection.exec_driver_sql("COMMIT")
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        lock_campaign(self._connection, self._campaign.id)
        for name, columns in (("runa_staged_order", "group_name, digest"), ("runa_staged_digest", "digest")):
            self._connection.execute(sa.text(f"CREATE INDEX {name} ON runa_staged ({columns})"))
        if self._is_postgres:  # without figures it would take the table for an empty one
            self._connection.execute(sa.text("ANALYZE runa_staged"))
        self._connection.execute(_LOOK_UP, {"campaign_id": self._campaign.id})
        return self._is_frozen(plan_new)

    def _is_frozen(self, plan_new: bool) -> bool:
        mine = (plan_table.c.campaign_id == self._campaign.id, plan_table.c.run == self._run)
        planned_before = sa.select(sa.func.count()).select_from(plan_table).where(*mine)
        if not self._connection.execute(planned_before).scalar_one():
            return False
        unfinished = (
            sa.select(sa.func.count())
            .select_from(batch_table.join(plan_table, plan_table.c.id == batch_table.c.plan_id))
            .where(*mine, batch_table.c.state.in_((BatchState.OPEN, BatchState.PLACED)))
        )
        return not plan_new or bool(self._connection.execute(unfinished).scalar_one())

    def drop_duplicates(self, most: int) -> tuple[int, list[tuple[int, int]]]:
        """Keep the first row of each recipient key.

        :param most: how many duplicates to return.
        :returns: the number of rows that were dropped, and of some of them their index and that of the first row.
        """
        first = sa.func.min(_staged.c.number)
        keys = sa.select(_staged.c.digest, first.label("first")).group_by(_staged.c.digest)
        doubled = keys.having(sa.func.count() > 1).subquery()
        again = (
            sa.select(_staged.c.number, doubled.c.first)
            .join(doubled, doubled.c.digest == _staged.c.digest)
            .where(_staged.c.number != doubled.c.first)
            .order_by(_staged.c.number)
        )
        named = [(int(number), int(first)) for number, first in self._connection.execute(again.limit(most))]
        if not named:
            return 0, []
        numbers = sa.select(again.subquery().c.number)
        dropped = self._connection.execute(sa.delete(_staged).where(_staged.c.number.in_(numbers))).rowcount
        return int(dropped), named

    def known(self, currency: str) -> Known:
        """Return what the ledger knows of the staged rows.

        :param currency: the currency that they ask for.
        """
        counts = sa.select(_staged.c.state, sa.func.count()).group_by(_staged.c.state)
        rows: dict[RowState | None, int] = {state: int(count) for state, count in self._connection.execute(counts)}
        new = rows.pop(None, 0)
        other = sa.select(sa.func.count()).where(
            _staged.c.state == RowState.PAID,
            sa.or_(_staged.c.known_amount != _staged.c.amount, _staged.c.known_currency != currency),
        )
        open_rows = (RowState.PLANNED, RowState.SENT)
        others = (
            sa.select(batch_table.c.id)
            .join(plan_table, plan_table.c.id == batch_table.c.plan_id)
            .where(
                batch_table.c.campaign_id == self._campaign.id,
                plan_table.c.run != self._run,
                sa.or_(batch_table.c.owner.is_(None), batch_table.c.owner != self._run),
            )
        )
        elsewhere = sa.select(sa.func.count()).where(
            _staged.c.state.in_(open_rows), _staged.c.known_batch_id.in_(others)
        )
        found = sa.select(sa.func.count()).select_from(_staged.join(found_table, self._is_found))
        return Known(
            new=new,
            rows={state: count for state, count in rows.items() if state is not None},
            other_amount=int(self._connection.execute(other).scalar_one()) if rows.get(RowState.PAID) else 0,
            open_elsewhere=int(self._connection.execute(elsewhere).scalar_one()) if rows.keys() & {*open_rows} else 0,
            found=int(self._connection.execute(found.where(_staged.c.state.is_(None))).scalar_one()),
        )

    @property
    def _is_found(self) -> Any:
        """The condition that an order at Runa pays a staged row."""
        return sa.and_(found_table.c.digest == _staged.c.digest, found_table.c.campaign_id == self._campaign.id)

    def take_in_found(self) -> None:
        """Insert staged rows that an order at Runa pays which the ledger did not know. They are not planned."""
        query = (
            sa.select(
                *(_staged.c.recipient_key, _staged.c.digest, _staged.c.amount, _staged.c.item),
                *(found_table.c.batch_id, found_table.c.order_id, found_table.c.reference),
                *(found_table.c.currency, found_table.c.position, found_table.c.placed_at),
            )
            .select_from(_staged.join(found_table, self._is_found))
            .where(_staged.c.state.is_(None))
            .order_by(found_table.c.batch_id, found_table.c.position)
        )
        rows = [dict(row) for row in self._connection.execute(query).mappings()]
        ensure_found_batches(self._connection, self._campaign, rows, self._now)
        values = [
            {
                "campaign_id": self._campaign.id,
                "recipient_key": row["recipient_key"],
                "digest": row["digest"],
                "amount": row["amount"],
                "currency": row["currency"],
                "state": RowState.SENT,
                "batch_id": row["batch_id"],
                "position": row["position"],
                "taken": 0,
                "item": row["item"],
                "order_reference": row["reference"],
                "order_id": row["order_id"],
                "planned_at": self._now,
                "sent_at": row["placed_at"],
            }
            for row in rows
        ]
        for first in range(0, len(values), CHUNK):
            chunk = values[first : first + CHUNK]
            self._connection.execute(sa.insert(row_table), chunk)
            known = [row["digest"] for row in chunk]
            forget_found(self._connection, self._campaign, known)
            # They are in the ledger now: `write` must not take them for new.
            taken_in = sa.update(_staged).where(_staged.c.digest.in_(known))
            self._connection.execute(taken_in.values(state=RowState.SENT))

    def write(self, *, currency: str, most: int, new: bool) -> tuple[int, int]:
        """Write the batches of the rows that are to be paid.

        :param currency: currency of the balance that pays.
        :param most: rows of a batch at most.
        :param new: whether recipients come in that the ledger does not know.
        :returns: how many rows are new, and how many are planned again.
        """
        plan_id = str(uuid.uuid4())
        fresh = again = 0
        for group in self._groups(new):
            if not fresh + again:  # a plan of nothing is none: the input may come later
                values = {"id": plan_id, "campaign_id": self._campaign.id, "run": self._run, "made_at": self._now}
                self._connection.execute(sa.insert(plan_table).values(**values))
            for rows in self._in_batches(group, most, new):
                self._write_batch(rows, plan_id=plan_id, currency=currency)
                planned_again = sum(row["state"] is not None for row in rows)
                fresh, again = fresh + len(rows) - planned_again, again + planned_again
        return fresh, again

    def _wanted(self, new: bool) -> Any:
        """Return the condition for staged rows that are to be planned."""
        free = _staged.c.state.in_(FREE)
        if not new:
            return free
        unknown = sa.and_(_staged.c.state.is_(None), ~sa.exists().where(self._is_found))
        return sa.or_(free, unknown)

    def _groups(self, new: bool) -> list[str]:
        query = sa.select(_staged.c.group_name).where(self._wanted(new)).distinct().order_by(_staged.c.group_name)
        return list(self._connection.execute(query).scalars())

    def _in_batches(self, group: str, most: int, new: bool) -> Iterator[list[Mapping[str, Any]]]:
        """Yield the rows of a group in the order of their digests, so many at a time."""
        page = max(most, CHUNK // most * most)
        query = sa.select(_staged).where(_staged.c.group_name == group, self._wanted(new)).order_by(_staged.c.digest)
        after = ""
        while rows := self._connection.execute(query.where(_staged.c.digest > after).limit(page)).mappings().all():
            after = rows[-1]["digest"]
            for first in range(0, len(rows), most):
                yield [dict(row) for row in rows[first : first + most]]

    def _write_batch(self, rows: Sequence[Mapping[str, Any]], *, plan_id: str, currency: str) -> None:
        members = [
            Member(row["recipient_key"], row["digest"], 0 if row["taken"] is None else row["taken"] + 1) for row in rows
        ]
        batch = insert_batch(
            self._connection, self._campaign, members, plan_id=plan_id, currency=currency, now=self._now
        )
        fresh: list[dict[str, Any]] = []
        again: list[dict[str, Any]] = []
        for position, (row, member) in enumerate(zip(rows, members, strict=True)):
            values = {
                "digest": member.digest,
                "amount": row["amount"],
                "currency": currency,
                "state": RowState.PLANNED,
                "batch_id": batch.id,
                "position": position,
                "taken": member.taken,
                "item": row["item"],
                "planned_at": self._now,
            }
            if row["state"] is None:
                fresh.append({"campaign_id": self._campaign.id, "recipient_key": member.recipient_key, **values})
            else:
                again.append({"its_key": member.recipient_key} | {f"new_{name}": v for name, v in values.items()})
        if fresh:
            self._connection.execute(sa.insert(row_table), fresh)
        if again:
            names = [name.removeprefix("new_") for name in again[0] if name != "its_key"]
            new_values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in names}
            update_rows(self._connection, self._campaign, again, new_values | UNSENT)

    def payable(self, currency: str) -> list[Batch]:
        """Return the batches that this run is to pay; see :func:`payable`."""
        return payable(self._connection, self._campaign.id, self._run, currency, self._now)

    def amounts(self, batches: Sequence[Batch]) -> dict[Decimal, int]:
        """Return the amounts of the rows of batches, and how many rows have each."""
        return amounts_of(self._connection, batches)


def lock_campaign(connection: Connection, campaign_id: int) -> None:
    """Wait here for other plans of the same campaign. Those that only pay go on meanwhile."""
    if connection.dialect.name == "sqlite":
        return  # which lets one transaction write at a time
    query = sa.select(campaign_table.c.id).where(campaign_table.c.id == campaign_id)
    connection.execute(query.with_for_update(key_share=True))


def payable(connection: Connection, campaign_id: int, run: str, currency: str, now: datetime) -> list[Batch]:
    """Return the open batches that a run is to pay, oldest first.

    These are the batches that it has planned, and those that another run began to send and left: their rows may have
    been sent, and nobody else sees them to their end. Batches that others have planned and not begun stay theirs.

    :param run: the run.
    :param currency: currency of the balance that pays.
    :param now: the time (UTC).
    """
    left = sa.and_(batch_table.c.owner.is_not(None), batch_table.c.owned_until < now)
    query = (
        sa.select(*BATCH_COLUMNS)
        .join(plan_table, plan_table.c.id == batch_table.c.plan_id)
        .where(
            batch_table.c.campaign_id == campaign_id,
            batch_table.c.state == BatchState.OPEN,
            batch_table.c.currency == currency,
            sa.or_(plan_table.c.run == run, batch_table.c.owner == run, left),
        )
    )
    found = connection.execute(query.order_by(batch_table.c.planned_at, batch_table.c.id))
    return [Batch(*row) for row in found]


def amounts_of(connection: Connection, batches: Sequence[Batch], *states: RowState) -> dict[Decimal, int]:
    """Return the amounts of the rows of batches, and how many rows have each.

    :param states: only rows in these states. Default: all.
    """
    amounts: dict[Decimal, int] = {}
    for first in range(0, len(batches), CHUNK):
        ids = [batch.id for batch in batches[first : first + CHUNK]]
        query = sa.select(row_table.c.amount, sa.func.count()).where(row_table.c.batch_id.in_(ids))
        if states:
            query = query.where(row_table.c.state.in_(states))
        for amount, count in connection.execute(query.group_by(row_table.c.amount)):
            amounts[amount] = amounts.get(amount, 0) + int(count)
    return amounts


def forget_found(connection: Connection, campaign: CampaignRef, digests_of_rows: Sequence[str]) -> None:
    """Remove rows from the table of found orders, because the ledger has them now.

    :param digests_of_rows: the digests of the rows.
    """
    for first in range(0, len(digests_of_rows), CHUNK):
        chunk = list(digests_of_rows[first : first + CHUNK])
        mine = (found_table.c.campaign_id == campaign.id, found_table.c.digest.in_(chunk))
        connection.execute(sa.delete(found_table).where(*mine))


def ensure_found_batches(
    connection: Connection, campaign: CampaignRef, rows: Sequence[Mapping[str, Any]], now: datetime
) -> None:
    """Insert the batches of orders that were found at Runa, where they are missing, and open those that are settled.

    :param rows: rows of the table of found orders, which are about to join these batches.
    """
    orders = {row["batch_id"]: row for row in rows}
    if not orders:
        return
    plan_id = digests.batch_id(campaign.environment, campaign.name, [(FOUND_RUN, 0)])
    if connection.execute(sa.select(plan_table.c.id).where(plan_table.c.id == plan_id)).scalar() is None:
        values = {"id": plan_id, "campaign_id": campaign.id, "run": FOUND_RUN, "made_at": now}
        connection.execute(sa.insert(plan_table).values(**values))
    settled = (batch_table.c.found, batch_table.c.state == BatchState.COMPLETED)
    for batch_id, row in orders.items():
        mine = batch_table.c.id == batch_id
        connection.execute(sa.update(batch_table).where(mine, *settled).values(state=BatchState.PLACED))
        if connection.execute(sa.select(batch_table.c.id).where(mine)).scalar() is None:
            connection.execute(
                sa.insert(batch_table).values(
                    id=batch_id,
                    campaign_id=campaign.id,
                    plan_id=plan_id,
                    currency=row["currency"],
                    description=campaign.name,
                    state=BatchState.PLACED,
                    attempts=0,
                    order_id=row["order_id"],
                    found=True,
                    planned_at=row["placed_at"],
                )
            )
