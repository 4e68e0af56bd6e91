"""The ledger: which recipients of a campaign were paid. The statements of paying, settling and reading.

There is one row per campaign and recipient key, which is the primary key: each recipient is paid at most once. Rows
that one order pays are a **batch**. A row belongs to one batch at a time, and leaves it only when that batch is proven
to have paid nobody. A batch is also the record of placing its order. It is **fenced**: an attempt takes the batch by
counting its attempts up, and everything it writes later fails once another attempt has done the same.

===========  =========================================================================================================
state        of a row
===========  =========================================================================================================
planned      its batch was not sent
sent         its batch was, or may have been, sent
paid         its order is COMPLETED and pays it as planned (see ``settle``); what was sent for it is erased
mismatch     its order is COMPLETED and does not show its payout as planned; a person has to look, it is not paid again
failed       its order ended FAILED and paid nobody; the next plan plans it again
rejected     Runa rejected its order and paid nobody; the next plan plans it again
withdrawn    its plan was withdrawn before it was sent; the next plan plans it again
===========  =========================================================================================================

The ledger is a memory, and Runa's orders are the truth. If this ledger was lost, restored from a copy, or is one of
several, ``catch_up`` updates it from Runa.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from airflow_provider_runa.api.models import NewOrder, NewOrderItem
from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.batches import BATCH_COLUMNS, Batch, CampaignRef, members_of, move_rows
from airflow_provider_runa.campaign.planning import Planning, amounts_of, lock_campaign, payable
from airflow_provider_runa.campaign.tables import (
    BatchState,
    RowState,
    batch_table,
    campaign_table,
    plan_table,
    row_table,
)
from airflow_provider_runa.placement.identity import OrderIdentity, normalize_environment
from airflow_provider_runa.placement.ports import OvertakenError
from airflow_provider_runa.placement.record import Record

#: How long a batch belongs to the run that took it. The run renews it while it works on the batch.
LEASE = timedelta(minutes=3)


@dataclass(frozen=True)
class Row:
    """One payout of a batch.

    :param recipient_key: who is paid.
    :param digest: the row's digest.
    :param position: its place in the order, as it was sent.
    :param amount: the face value.
    :param item_id: Runa's id of the item, once it is known.
    :param state: its state.
    """

    recipient_key: str = field(repr=False)
    digest: str
    position: int
    amount: Decimal
    item_id: str | None
    state: RowState


@dataclass(frozen=True)
class SettledItem:
    """What the order says of one row of its batch.

    :param item_id: Runa's id of the item; ``None`` if the order shows no item for the row.
    :param link: the payout link, if it is to be kept.
    :param amount: the face value that Runa paid, if it is known.
    :param mismatch: what does not fit, if anything does not.
    """

    item_id: str | None = None
    link: str | None = field(default=None, repr=False)
    amount: Decimal | None = None
    mismatch: str | None = None


class FencedError(OvertakenError):
    """Another attempt has taken the batch since. This one must not write or send any more."""


class Ledger:
    """The ledger of one campaign.

    :param engine: see :func:`~.tables.open_engine`; the tables must be there (``create``, ``check``).
    :param environment: base URL of Runa's API: a campaign on the playground is not the one in production.
    :param campaign: the campaign's name, at most 109 characters.
    """

    def __init__(self, engine: Engine, environment: str, campaign: str) -> None:
        self.engine = engine
        self.environment = normalize_environment(environment)
        self.campaign = campaign
        self._id = self._find_or_add()
        self.ref = CampaignRef(self._id, self.environment, campaign)

    def _find_or_add(self) -> int:
        wanted = (campaign_table.c.environment == self.environment, campaign_table.c.name == self.campaign)
        for _ in range(2):
            with self.engine.begin() as connection:
                found = connection.execute(sa.select(campaign_table.c.id).where(*wanted)).scalar()
                if found is not None:
                    return int(found)
            try:
                with self.engine.begin() as connection:
                    values = {"environment": self.environment, "name": self.campaign}
                    connection.execute(sa.insert(campaign_table).values(**values))
            except sa.exc.IntegrityError:
                pass  # another run was faster
        with self.engine.begin() as connection:
            return int(connection.execute(sa.select(campaign_table.c.id).where(*wanted)).scalar_one())

    def digest(self, recipient_key: str) -> str:
        """Return the digest of a recipient key's row."""
        return digests.row_digest(self.environment, self.campaign, recipient_key)

    def identity(self, batch_id: str) -> OrderIdentity:
        """Return the identity of a batch's order."""
        return OrderIdentity.from_campaign(self.environment, campaign=self.campaign, batch=batch_id)

    def identity_with_rows(self, batch: Batch) -> OrderIdentity:
        """Return the identity of a batch's order, with the digests of its rows for the order's metadata."""
        rows = digests.to_metadata([row.digest for row in self.rows_of(batch)])
        return replace(self.identity(batch.id), rows=tuple(rows.items()))

    # -- planning -----------------------------------------------------------------------------------------------------

    @contextmanager
    def planning(self, run: str, now: datetime) -> Iterator[Planning]:
        """Plan: all or nothing. What is planned is frozen when the block ends well.

        Only one run at a time plans a campaign. The plan is committed and frozen when the block ends, and undone when
        the block raises.

        :param run: id of the run; at most 64 characters.
        :param now: the current time (UTC).
        """
        with self.engine.connect().execution_options(deferred=True) as connection, connection.begin():
            yield Planning(connection, self.ref, run, now)

    def plan_failed_again(self, owner: str, now: datetime) -> int:
        """Plan the rows again, as they were, of orders that a run placed and that ended FAILED.

        :param owner: the run. The orders of others stay as they are.
        :param now: the time (UTC).
        :returns: the number of rows.
        """
        ended = (batch_table.c.campaign_id == self._id, batch_table.c.state == BatchState.FAILED)
        still_failed = sa.select(row_table.c.batch_id).where(row_table.c.state == RowState.FAILED)
        query = sa.select(batch_table.c.id, batch_table.c.plan_id, batch_table.c.currency)
        count = 0
        with self.engine.begin() as connection:
            lock_campaign(connection, self._id)
            for id_, plan_id, currency in connection.execute(
                query.where(*ended, batch_table.c.owner == owner, batch_table.c.id.in_(still_failed)).order_by(
                    batch_table.c.planned_at, batch_table.c.id
                )
            ).all():
                members = members_of(connection, id_)
                move_rows(connection, self.ref, members, plan_id=plan_id, currency=currency, now=now)
                count += len(members)
        return count

    def withdraw(self, now: datetime) -> dict[str, tuple[int, Decimal]]:
        """Withdraw what was planned and never sent. The next plan of the campaign may plan these rows again.

        Batches that a run has begun to send, or has taken just now, stay as they are.

        :param now: the time (UTC).
        :returns: currency -> number of rows, and the sum of their amounts.
        """
        unsent = (
            batch_table.c.campaign_id == self._id,
            batch_table.c.state == BatchState.OPEN,
            batch_table.c.record.is_(None),
            sa.or_(batch_table.c.owner.is_(None), batch_table.c.owned_until < now),
        )
        withdrawn: dict[str, tuple[int, Decimal]] = {}
        with self.engine.begin() as connection:
            lock_campaign(connection, self._id)
            for batch in [Batch(*row) for row in connection.execute(sa.select(*BATCH_COLUMNS).where(*unsent)).all()]:
                closed = sa.update(batch_table).where(batch_table.c.id == batch.id, *unsent)
                attempts = batch_table.c.attempts + 1  # an attempt that has it writes no more
                if not connection.execute(closed.values(state=BatchState.REPLACED, attempts=attempts)).rowcount:
                    continue
                count, total = withdrawn.get(batch.currency, (0, Decimal(0)))
                for amount, rows in amounts_of(connection, [batch]).items():
                    count, total = count + rows, total + amount * rows
                withdrawn[batch.currency] = (count, total)
                rows_of_batch = sa.update(row_table).where(row_table.c.batch_id == batch.id)
                connection.execute(rows_of_batch.values(state=RowState.WITHDRAWN, item=None))
        return withdrawn

    def payable(self, run: str, currency: str, now: datetime) -> list[Batch]:
        """Return the open batches that a run is to pay; see :func:`~.planning.payable`."""
        with self.engine.begin() as connection:
            return payable(connection, self._id, run, currency, now)

    def amounts(self, batches: Sequence[Batch], *states: RowState) -> dict[Decimal, int]:
        """Return the amounts of the rows of batches, and how many rows have each.

        :param batches: the batches.
        :param states: only rows in these states. Default: all.
        """
        with self.engine.begin() as connection:
            return amounts_of(connection, batches, *states)

    def open_batches_of(self, run: str) -> list[str]:
        """Return the ids of the open batches that a run has planned or taken."""
        query = self._batches_of(run).where(batch_table.c.state == BatchState.OPEN)
        with self.engine.begin() as connection:
            return list(connection.execute(query).scalars())

    def orders_of(self, run: str) -> set[str]:
        """Return Runa's ids of the orders of the batches that a run has planned or taken."""
        mine = batch_table.c.id.in_(self._batches_of(run))
        query = sa.select(batch_table.c.order_id).where(mine, batch_table.c.order_id.is_not(None))
        with self.engine.begin() as connection:
            return set(connection.execute(query).scalars())

    def row_error(self, state: RowState, *, run: str) -> str | None:
        """Return the reason of one row in a state that a run has planned or taken; without a full stop."""
        query = sa.select(row_table.c.error).where(
            row_table.c.batch_id.in_(self._batches_of(run)), row_table.c.state == state
        )
        with self.engine.begin() as connection:
            found = connection.execute(query.limit(1)).scalar()
        return None if found is None else str(found).rstrip(".")

    # -- placing ------------------------------------------------------------------------------------------------------

    def batches(self, *states: BatchState) -> list[Batch]:
        """Return the batches, oldest first.

        :param states: only batches in these states. Default: all states.
        """
        query = sa.select(*BATCH_COLUMNS).where(
            batch_table.c.campaign_id == self._id, batch_table.c.state.in_(states or tuple(BatchState))
        )
        with self.engine.begin() as connection:
            return [
                Batch(*row) for row in connection.execute(query.order_by(batch_table.c.planned_at, batch_table.c.id))
            ]

    def order(self, batch: Batch) -> NewOrder:
        """Return the order of a batch: the same bytes every time, whatever the input says by now.

        :raises FencedError: if it is not there any more, because another attempt has settled or replaced the batch.
        """
        texts = self._item_texts(batch)
        if not texts or None in texts.values():
            raise FencedError(batch.id)
        items = json.loads(f"[{','.join(filter(None, texts.values()))}]", parse_float=Decimal)
        return NewOrder.build(currency=batch.currency, items=items, description=batch.description)

    def items_of(self, batch: Batch) -> dict[int, NewOrderItem]:
        """Return what was sent for the rows of a batch, by position, as far as the ledger has it."""
        texts = self._item_texts(batch).items()
        return {
            position: NewOrderItem.build(json.loads(text, parse_float=Decimal))
            for position, text in texts
            if text is not None
        }

    def _item_texts(self, batch: Batch) -> dict[int, str | None]:
        query = sa.select(row_table.c.position, row_table.c.item).where(row_table.c.batch_id == batch.id)
        with self.engine.begin() as connection:
            rows = connection.execute(query.order_by(row_table.c.position))
            return {row.position: row.item for row in rows}

    def take(self, batch_id: str, owner: str, now: datetime) -> int | None:
        """Take an open batch, to place its order.

        :param batch_id: id of the batch.
        :param owner: the run that takes it.
        :param now: the current time (UTC).
        :returns: number of the attempt, from 1; ``None`` if another run has taken the batch, or it is no longer open.
        """
        mine = sa.or_(batch_table.c.owner.is_(None), batch_table.c.owner == owner, batch_table.c.owned_until < now)
        with self.engine.begin() as connection:
            taken = connection.execute(
                sa.update(batch_table)
                .where(batch_table.c.id == batch_id, batch_table.c.state == BatchState.OPEN, mine)
                .values(attempts=batch_table.c.attempts + 1, owner=owner, owned_until=now + LEASE)
            )
            if not taken.rowcount:
                return None
            query = sa.select(batch_table.c.attempts).where(batch_table.c.id == batch_id)
            return int(connection.execute(query).scalar_one())

    def taken_until(self, batch_ids: Sequence[str]) -> datetime | None:
        """Return when the last lease on some batches ends, unless it is renewed; ``None`` if no run has taken one.

        :param batch_ids: ids of the batches.
        """
        query = sa.select(batch_table.c.owned_until).where(
            batch_table.c.id.in_(batch_ids), batch_table.c.owned_until.is_not(None)
        )
        with self.engine.begin() as connection:
            return max(connection.execute(query).scalars(), default=None)

    def renew(self, batch_id: str, attempt: int, now: datetime) -> None:
        """Keep a batch for the attempt that works on it.

        :raises FencedError: if another attempt has taken the batch.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, owned_until=now + LEASE)

    def _write(self, connection: Connection, batch_id: str, attempt: int, **values: Any) -> None:
        mine = (
            batch_table.c.id == batch_id,
            batch_table.c.attempts == attempt,
            batch_table.c.state == BatchState.OPEN,
        )
        if not connection.execute(sa.update(batch_table).where(*mine).values(**values)).rowcount:
            raise FencedError(batch_id)

    def load_record(self, batch_id: str) -> Record | None:
        """Return the record of placing a batch's order, or ``None`` if nothing was sent."""
        with self.engine.begin() as connection:
            text = connection.execute(sa.select(batch_table.c.record).where(batch_table.c.id == batch_id)).scalar()
        return None if text is None else Record.from_json(json.loads(text))

    def save_record(self, batch_id: str, attempt: int, record: Record, now: datetime) -> None:
        """Keep the record of placing. From now on the batch's rows may have been sent.

        :raises FencedError: if another attempt has taken the batch.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, record=json.dumps(record.to_json()), owned_until=now + LEASE)
            connection.execute(
                sa.update(row_table)
                .where(row_table.c.batch_id == batch_id, row_table.c.state == RowState.PLANNED)
                .values(state=RowState.SENT, sent_at=now)
            )

    def mark_placed(self, batch_id: str, attempt: int, *, order_id: str, reference: str) -> None:
        """Save the order of a batch.

        :raises FencedError: if another attempt has taken the batch. That attempt finds the same order.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch_id, attempt, state=BatchState.PLACED, order_id=order_id, error=None)
            connection.execute(
                sa.update(row_table)
                .where(row_table.c.batch_id == batch_id)
                .values(order_id=order_id, order_reference=reference, error=None)
            )

    def note_error(self, batch_id: str, attempt: int, error: str) -> None:
        """Save why an attempt ended without an order. The batch stays open."""
        with self.engine.begin() as connection:
            try:
                self._write(connection, batch_id, attempt, error=error)
            except FencedError:
                return
            connection.execute(sa.update(row_table).where(row_table.c.batch_id == batch_id).values(error=error))

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
                sa.update(row_table).where(row_table.c.batch_id == batch_id).values(state=rows, error=error)
            )

    def replace(self, batch: Batch, attempt: int, error: str, now: datetime, *, parts: int = 1) -> list[Batch]:
        """Close a batch that is proven to have paid nobody, and put its rows, as they are, into new batches.

        :param batch: which.
        :param attempt: the attempt that has proven it.
        :param error: the proof, for a person.
        :param now: the time (UTC).
        :param parts: into how many batches.
        :raises FencedError: if another attempt has taken the batch, which may pay.
        """
        with self.engine.begin() as connection:
            self._write(connection, batch.id, attempt, state=BatchState.REPLACED, error=error)
            members = sorted(members_of(connection, batch.id), key=lambda member: member.digest)
            size = -(-len(members) // parts)
            return [
                move_rows(
                    connection,
                    self.ref,
                    members[first : first + size],
                    plan_id=batch.plan_id,
                    currency=batch.currency,
                    now=now,
                )
                for first in range(0, len(members), size)
            ]

    # -- settling -----------------------------------------------------------------------------------------------------

    def settle_completed(self, batch: Batch, items: Mapping[int, SettledItem], now: datetime) -> None:
        """Save that the order of a batch is COMPLETED. What was sent for rows that are paid is erased.

        :param batch: which.
        :param items: position of a row -> what the order says of it; for every row of the batch.
        :param now: the time (UTC).
        """
        mine = (row_table.c.batch_id == batch.id, row_table.c.position == sa.bindparam("place"))
        paid = [
            {"place": place, "its_id": item.item_id, "its_link": item.link, "its_amount": item.amount}
            for place, item in items.items()
            if item.mismatch is None
        ]
        wrong = [
            {"place": place, "its_id": item.item_id, "its_link": item.link, "its_error": item.mismatch}
            for place, item in items.items()
            if item.mismatch is not None
        ]
        found: dict[str, Any] = {"item_id": sa.bindparam("its_id"), "payout_link": sa.bindparam("its_link")}
        with self.engine.begin() as connection:
            self._settle(connection, batch, BatchState.COMPLETED)
            if paid:
                amount = sa.func.coalesce(sa.bindparam("its_amount", type_=row_table.c.amount.type), row_table.c.amount)
                values = found | {"state": RowState.PAID, "paid_at": now, "item": None, "error": None, "amount": amount}
                connection.execute(sa.update(row_table).where(*mine).values(values), paid)
            if wrong:
                values = found | {"state": RowState.MISMATCH, "error": sa.bindparam("its_error")}
                connection.execute(sa.update(row_table).where(*mine).values(values), wrong)

    def settle_failed(self, batch: Batch, error: str) -> None:
        """Save that the order of a batch ended FAILED and paid nobody. Its rows may be planned again."""
        with self.engine.begin() as connection:
            self._settle(connection, batch, BatchState.FAILED, error=error)
            connection.execute(
                sa.update(row_table).where(row_table.c.batch_id == batch.id).values(state=RowState.FAILED, error=error)
            )

    @staticmethod
    def _settle(connection: Connection, batch: Batch, state: BatchState, **values: Any) -> None:
        placed = (
            batch_table.c.id == batch.id,
            batch_table.c.state == BatchState.PLACED,
            batch_table.c.order_id == batch.order_id,
        )
        if not connection.execute(sa.update(batch_table).where(*placed).values(state=state, **values)).rowcount:
            raise FencedError(batch.id)  # another run was faster

    # -- reading ------------------------------------------------------------------------------------------------------

    def totals(self, currency: str | None = None, *, run: str | None = None) -> dict[RowState, tuple[int, Decimal]]:
        """Return the number of rows and the sum of their amounts, by state.

        :param currency: only rows in this currency.
        :param run: only rows that this run has planned or taken over.
        """
        totals: dict[RowState, tuple[int, Decimal]] = {}
        query = sa.select(row_table.c.state, row_table.c.amount, sa.func.count()).where(
            row_table.c.campaign_id == self._id
        )
        if currency is not None:
            query = query.where(row_table.c.currency == currency)
        if run is not None:
            query = query.where(row_table.c.batch_id.in_(self._batches_of(run)))
        with self.engine.begin() as connection:
            for state, amount, count in connection.execute(query.group_by(row_table.c.state, row_table.c.amount)):
                rows, total = totals.get(state, (0, Decimal(0)))
                totals[state] = (rows + count, total + amount * count)
        return totals

    def _batches_of(self, run: str) -> Any:
        planned = sa.select(plan_table.c.id).where(plan_table.c.campaign_id == self._id, plan_table.c.run == run)
        mine = sa.or_(batch_table.c.owner == run, batch_table.c.plan_id.in_(planned))
        return sa.select(batch_table.c.id).where(batch_table.c.campaign_id == self._id, mine)

    def sent_between(self, since: datetime, until: datetime) -> set[str]:
        """Return the ids of the batches that have a row which was first sent in a period.

        :param since: begin of the period (UTC), inclusive.
        :param until: end of the period (UTC), exclusive.
        """
        sent = (row_table.c.campaign_id == self._id, row_table.c.sent_at >= since, row_table.c.sent_at < until)
        with self.engine.begin() as connection:
            return set(connection.execute(sa.select(row_table.c.batch_id).where(*sent).distinct()).scalars())

    def rows_of(self, batch: Batch) -> list[Row]:
        """Return what the ledger says of a batch's rows, in the order in which they were sent."""
        query = sa.select(*(row_table.c[one.name] for one in fields(Row)))
        with self.engine.begin() as connection:
            found = connection.execute(query.where(row_table.c.batch_id == batch.id).order_by(row_table.c.position))
            return [Row(*row) for row in found]

    def reason(self, state: BatchState, *, run: str | None = None) -> str | None:
        """Return why a batch is in a state, if that is known of any; without a full stop.

        :param state: the state.
        :param run: only batches that this run has planned or taken over.
        """
        query = sa.select(batch_table.c.error).where(
            batch_table.c.campaign_id == self._id, batch_table.c.state == state, batch_table.c.error.is_not(None)
        )
        if run is not None:
            query = query.where(batch_table.c.id.in_(self._batches_of(run)))
        with self.engine.begin() as connection:
            found = connection.execute(query.order_by(batch_table.c.planned_at.desc()).limit(1)).scalar()
        return None if found is None else str(found).rstrip(".")

    def rows(self, *states: RowState) -> Iterator[dict[str, Any]]:
        """Iterate over the rows, without what is sent for them and without payout links.

        :param states: only rows in these states. Default: all states.
        """
        hidden = ("campaign_id", "item", "payout_link", "position", "digest", "taken")
        query = sa.select(*(column for column in row_table.c if column.name not in hidden))
        query = query.where(row_table.c.campaign_id == self._id)
        if states:
            query = query.where(row_table.c.state.in_(states))
        with self.engine.connect() as connection:
            result = connection.execution_options(stream_results=True).execute(
                query.order_by(row_table.c.recipient_key)
            )
            for row in result.mappings():
                yield dict(row)


def count_and_sum(amounts: Mapping[Decimal, int]) -> tuple[int, Decimal]:
    """Return the number of rows and the sum of their amounts.

    :param amounts: amount -> number of rows.
    """
    return sum(amounts.values()), sum((amount * count for amount, count in amounts.items()), Decimal(0))
