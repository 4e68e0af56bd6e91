"""Batches: the rows that one order pays. Inserting them and moving rows between them, inside a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.tables import UNSENT, BatchState, RowState, batch_table, row_table


@dataclass(frozen=True)
class CampaignRef:
    """A campaign, as the statements need it.

    :param id: its id in the ledger.
    :param environment: the environment, in its one spelling.
    :param name: its name, which is the description of its orders.
    """

    id: int
    environment: str
    name: str


@dataclass(frozen=True)
class Batch:
    """What one order pays.

    :param id: its name in the ledger, and part of the order's identity.
    :param plan_id: the plan it belongs to.
    :param currency: currency of the balance that pays.
    :param description: the order's description, without the reference.
    :param state: see :class:`~.tables.BatchState`.
    :param order_id: Runa's id of the order, once it is placed.
    :param found: whether its order was found at Runa, so that the ledger does not know what exactly was sent.
    :param planned_at: before this moment nothing was sent for it (UTC).
    """

    id: str
    plan_id: str
    currency: str
    description: str
    state: BatchState
    order_id: str | None
    found: bool
    planned_at: datetime


@dataclass(frozen=True)
class Member:
    """A row as a batch has it.

    :param recipient_key: who is paid.
    :param digest: the row's digest.
    :param taken: how many batches had the row before this one.
    """

    recipient_key: str = field(repr=False)
    digest: str
    taken: int


#: The columns of a :class:`Batch`, in its order.
BATCH_COLUMNS = tuple(batch_table.c[one.name] for one in fields(Batch))


def insert_batch(
    connection: Connection,
    campaign: CampaignRef,
    members: Sequence[Member],
    *,
    plan_id: str,
    currency: str,
    now: datetime,
) -> Batch:
    """Insert an open batch. Its id is derived from its members.

    :param connection: the transaction.
    :param campaign: whose batch it is.
    :param members: its rows.
    :param plan_id: the plan it belongs to.
    :param currency: currency of the balance that pays.
    :param now: the time (UTC).
    """
    id_ = digests.batch_id(campaign.environment, campaign.name, ((one.digest, one.taken) for one in members))
    batch = Batch(id_, plan_id, currency, campaign.name, BatchState.OPEN, None, False, now)
    values = {one.name: getattr(batch, one.name) for one in fields(Batch)}
    connection.execute(sa.insert(batch_table).values(campaign_id=campaign.id, attempts=0, **values))
    return batch


def move_rows(
    connection: Connection,
    campaign: CampaignRef,
    members: Sequence[Member],
    *,
    plan_id: str,
    currency: str,
    now: datetime,
) -> Batch:
    """Put rows whose batch paid nobody into a new batch, as they are.

    :param members: the rows, as their last batch had them.
    """
    again = [Member(one.recipient_key, one.digest, one.taken + 1) for one in sorted(members, key=lambda m: m.digest)]
    batch = insert_batch(connection, campaign, again, plan_id=plan_id, currency=currency, now=now)
    update_rows(
        connection,
        campaign,
        [
            {"its_key": one.recipient_key, "its_position": place, "its_taken": one.taken}
            for place, one in enumerate(again)
        ],
        {
            "position": sa.bindparam("its_position"),
            "taken": sa.bindparam("its_taken"),
            "batch_id": batch.id,
            "state": RowState.PLANNED,
            "planned_at": now,
        }
        | UNSENT,
    )
    return batch


def update_rows(
    connection: Connection, campaign: CampaignRef, rows: Sequence[dict[str, Any]], values: dict[str, Any]
) -> None:
    """Update rows one by one, by their key.

    :param rows: parameters of each row; ``its_key`` is its recipient key.
    :param values: column -> value, or a bind parameter.
    """
    if rows:
        mine = (row_table.c.campaign_id == campaign.id, row_table.c.recipient_key == sa.bindparam("its_key"))
        connection.execute(sa.update(row_table).where(*mine).values(values), list(rows))


def members_of(connection: Connection, batch_id: str) -> list[Member]:
    """Return the rows of a batch, in the order in which they are sent."""
    query = sa.select(row_table.c.recipient_key, row_table.c.digest, row_table.c.taken)
    found = connection.execute(query.where(row_table.c.batch_id == batch_id).order_by(row_table.c.position))
    return [Member(*row) for row in found]
