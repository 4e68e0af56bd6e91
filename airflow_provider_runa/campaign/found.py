"""Orders of a campaign that were found at Runa and that the ledger did not know: taking their rows into the ledger.

A ledger that was lost, restored from an older copy, or that is not the only one of a campaign, does not know every
order of it. The table ``runa_found`` holds the digests of such orders. Rows that the ledger has are moved into the
batch of the order that pays them; rows that it does not have stay there until an input names them, and are not planned
then.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from airflow_provider_runa.campaign.batches import BATCH_COLUMNS, Batch, CampaignRef, members_of, move_rows, update_rows
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.planning import ensure_found_batches, forget_found, lock_campaign
from airflow_provider_runa.campaign.tables import (
    BatchState,
    RowState,
    batch_table,
    campaign_table,
    found_table,
    row_table,
)

log = logging.getLogger(__name__)

#: Batches whose order is known: its rows are paid by that order, or will be.
_HAS_ORDER = (BatchState.PLACED, BatchState.COMPLETED)


@dataclass(frozen=True)
class FoundOrder:
    """An order of the campaign at Runa that no batch of the ledger accounts for.

    :param order_id: Runa's id of the order.
    :param batch_id: the batch that it was placed for.
    :param reference: the marker in its description.
    :param currency: currency of the balance that paid.
    :param placed_at: when it was placed (UTC).
    :param digests: the digests of its rows, in the order of its items.
    """

    order_id: str
    batch_id: str
    reference: str
    currency: str
    placed_at: datetime
    digests: Sequence[str]


@dataclass
class Absorbed:
    """What became known by taking found orders into the ledger.

    :param rows: rows of the ledger that an order pays which it did not know.
    :param unknown: rows that found orders pay and that the ledger does not have: no input has named them yet.
    :param doubled: rows that two orders pay.
    :param undecided: ids of batches that may not be sent in this attempt: one of their rows is paid by a found order,
        and a request for them may still be under way.
    """

    rows: int = 0
    unknown: int = 0
    doubled: int = 0
    undecided: set[str] = field(default_factory=set)


def compared_until(ledger: Ledger) -> datetime | None:
    """Return the moment up to which orders at Runa are accounted for; ``None``: they were never compared."""
    query = sa.select(campaign_table.c.compared_until).where(campaign_table.c.id == ledger.ref.id)
    with ledger.engine.begin() as connection:
        found: datetime | None = connection.execute(query).scalar()
    return found


def absorb(
    ledger: Ledger, orders: Sequence[FoundOrder], *, until: datetime, now: datetime, settling: timedelta
) -> Absorbed:
    """Take found orders into the ledger.

    :param ledger: the ledger of the campaign.
    :param orders: the orders.
    :param until: orders that Runa listed before this moment are accounted for from now on.
    :param now: the time (UTC).
    :param settling: how long after its last request a batch may still get an order that the list does not show.
    """
    with ledger.engine.begin() as connection:
        lock_campaign(connection, ledger.ref.id)
        absorbing = _Absorbing(connection, ledger.ref, now, settling)
        for order in orders:
            absorbing.remember(order)
        absorbing.absorb()
        connection.execute(
            sa.update(campaign_table).where(campaign_table.c.id == ledger.ref.id).values(compared_until=until)
        )
        return absorbing.result


@dataclass
class _Absorbing:
    """One transaction that takes found orders into the ledger. The parameters are those of :func:`absorb`."""

    connection: Connection
    campaign: CampaignRef
    now: datetime
    settling: timedelta
    result: Absorbed = field(default_factory=Absorbed)

    def remember(self, order: FoundOrder) -> None:
        """Save the digests of an order."""
        values = {
            "campaign_id": self.campaign.id,
            "order_id": order.order_id,
            "batch_id": order.batch_id,
            "reference": order.reference,
            "currency": order.currency,
            "placed_at": order.placed_at,
        }
        mine = (found_table.c.campaign_id == self.campaign.id, found_table.c.digest.in_(list(order.digests)))
        query = sa.select(found_table.c.digest, found_table.c.order_id).where(*mine)
        known = {row.digest: row.order_id for row in self.connection.execute(query)}
        self.result.doubled += sum(order_id != order.order_id for order_id in known.values())
        fresh = [
            values | {"digest": digest, "position": position}
            for position, digest in enumerate(order.digests)
            if digest not in known
        ]
        if fresh:
            self.connection.execute(sa.insert(found_table), fresh)

    def absorb(self) -> None:
        """Move every row that a found order pays into the batch of that order."""
        by_batch: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in self._rows_of_found_orders():
            by_batch[row["batch_id"]].append(row)
        self.result.undecided |= self._undecided([row for rows in by_batch.values() for row in rows])
        torn: set[str] = set()
        for batch_id, rows in by_batch.items():
            torn |= self._take_in(batch_id, rows)
        for batch_id in sorted(torn):
            self._replace(batch_id)
        count = sa.select(sa.func.count()).select_from(found_table)
        self.result.unknown = int(
            self.connection.execute(count.where(found_table.c.campaign_id == self.campaign.id)).scalar_one()
        )

    def _rows_of_found_orders(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the ledger that a found order pays, with that order and their present batch."""
        query = (
            sa.select(
                *(found_table.c[name] for name in ("digest", "order_id", "batch_id", "reference", "currency")),
                *(found_table.c[name] for name in ("position", "placed_at")),
                row_table.c.recipient_key,
                row_table.c.sent_at,
                row_table.c.batch_id.label("present_id"),
                batch_table.c.state.label("present_state"),
                batch_table.c.order_id.label("present_order"),
                batch_table.c.owned_until,
            )
            .select_from(
                found_table.join(
                    row_table,
                    sa.and_(
                        row_table.c.campaign_id == found_table.c.campaign_id, row_table.c.digest == found_table.c.digest
                    ),
                ).join(batch_table, batch_table.c.id == row_table.c.batch_id)
            )
            .where(
                found_table.c.campaign_id == self.campaign.id,
                sa.or_(row_table.c.batch_id != found_table.c.batch_id, batch_table.c.state.not_in(_HAS_ORDER)),
            )
            .order_by(found_table.c.batch_id, found_table.c.position)
        )
        return [dict(row) for row in self.connection.execute(query).mappings()]

    def _undecided(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Return the open batches that a row has to leave, and that may still get an order.

        That a row is paid in another batch proves that this one was closed, by the run that the ledger has lost. But a
        request of a run that the ledger does know may be under way: its order would show in the list after a while.
        """
        return {
            row["present_id"]
            for row in rows
            if row["present_state"] == BatchState.OPEN
            and row["present_id"] != row["batch_id"]
            and row["owned_until"] is not None
            and row["owned_until"] > self.now - self.settling
        }

    def _take_in(self, batch_id: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Take one found order into the ledger; return the open batches that rows have left."""
        order_id = rows[0]["order_id"]
        query = sa.select(batch_table.c.state, batch_table.c.order_id).where(batch_table.c.id == batch_id)
        present = self.connection.execute(query).first()
        if present is not None and present.state in _HAS_ORDER and present.order_id != order_id:
            self._report_doubled(rows)
            return set()
        moving = [row for row in rows if row["present_id"] not in self.result.undecided]
        doubled = [row for row in moving if row["present_state"] in _HAS_ORDER and row["present_order"] != order_id]
        if doubled:
            self._report_doubled(doubled)
        moving = [row for row in moving if row not in doubled]
        if not moving:
            return set()
        ensure_found_batches(self.connection, self.campaign, moving, self.now)
        self.connection.execute(
            sa.update(batch_table)
            .where(batch_table.c.id == batch_id, batch_table.c.state.not_in(_HAS_ORDER))
            .values(
                state=BatchState.PLACED,
                order_id=order_id,
                found=True,
                attempts=batch_table.c.attempts + 1,  # an attempt that has it writes no more
                owner=None,
                error=None,
            )
        )
        update_rows(
            self.connection,
            self.campaign,
            [
                {
                    "its_key": row["recipient_key"],
                    "its_place": row["position"],
                    "its_sent": row["sent_at"] or row["placed_at"],
                }
                for row in moving
            ],
            {
                "batch_id": batch_id,
                "position": sa.bindparam("its_place"),
                "sent_at": sa.bindparam("its_sent"),
                "state": RowState.SENT,
                "order_id": order_id,
                "order_reference": rows[0]["reference"],
                "error": None,
            },
        )
        forget_found(self.connection, self.campaign, [row["digest"] for row in moving])
        self.result.rows += len(moving)
        opened = (BatchState.OPEN,)
        return {row["present_id"] for row in moving if row["present_state"] in opened and row["present_id"] != batch_id}

    def _report_doubled(self, rows: Sequence[Mapping[str, Any]]) -> None:
        log.error(
            "%d recipient(s) of campaign %r are paid by two orders; one of them is %s. See runa-reconcile.",
            len(rows),
            self.campaign.name,
            rows[0]["order_id"],
        )
        self.result.doubled += len(rows)
        forget_found(self.connection, self.campaign, [row["digest"] for row in rows])

    def _replace(self, batch_id: str) -> None:
        """Close an open batch that rows have left, and put the others into a new one."""
        closed = sa.update(batch_table).where(batch_table.c.id == batch_id, batch_table.c.state == BatchState.OPEN)
        values = {
            "state": BatchState.REPLACED,
            "attempts": batch_table.c.attempts + 1,
            "error": "Another order pays rows of this batch.",
        }
        if not self.connection.execute(closed.values(values)).rowcount:
            return
        members = members_of(self.connection, batch_id)
        if members:
            row = self.connection.execute(sa.select(*BATCH_COLUMNS).where(batch_table.c.id == batch_id)).one()
            batch = Batch(*row)
            move_rows(
                self.connection,
                self.campaign,
                members,
                plan_id=batch.plan_id,
                currency=batch.currency,
                now=self.now,
            )
