"""Settle batches: write to the ledger how the orders of a campaign ended."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal

from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.api.models import NewOrder, NewOrderItem, Order, OrderItem, OrderStatus
from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.concurrency import Offload, run_concurrently
from airflow_provider_runa.campaign.ledger import FencedError, Ledger, Row, SettledItem
from airflow_provider_runa.campaign.tables import BatchState, RowState
from airflow_provider_runa.placement.errors import OrderFailedError
from airflow_provider_runa.placement.payment import check_items, item_of_recipient
from airflow_provider_runa.placement.ports import Clock, OrderReader

log = logging.getLogger(__name__)


async def settle(
    ledger: Ledger,
    *,
    client: OrderReader,
    statuses: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]],
    clock: Clock,
    keep_links: bool = False,
    offload: Offload = asyncio.to_thread,
) -> list[str]:
    """Read the status of all placed orders once, and settle the batches whose order is final.

    :param ledger: the ledger of the campaign.
    :param client: Runa.
    :param statuses: reads the status of many orders; returns id -> status.
    :param clock: the current time.
    :param keep_links: whether to store payout links in the ledger.
    :param offload: see :data:`~.concurrency.Offload`.
    :returns: ids of the orders that are still PROCESSING or could not be read.
    :raises RunaError: if Runa cannot be read.
    """
    batches = await offload(ledger.batches, BatchState.PLACED)
    placed = {batch.order_id: batch for batch in batches if batch.order_id is not None}
    if not placed:
        return []
    found = await statuses(list(placed))
    queue = deque(found.items())
    unread: list[str] = []

    async def work() -> None:
        while queue:
            order_id, status = queue.popleft()
            batch = placed[order_id]
            try:
                if OrderStatus.is_final(status):
                    await _settle(ledger, batch, client, clock, keep_links=keep_links, offload=offload)
            except FencedError:
                continue  # another run has settled the batch
            except RunaError as error:
                log.warning("Order %s is %s and could not be read in full: %s", order_id, status, error)
                unread.append(order_id)

    await run_concurrently(work)
    return [id_ for id_ in placed if id_ in unread or not OrderStatus.is_final(found.get(id_, ""))]


async def _settle(
    ledger: Ledger, batch: Batch, client: OrderReader, clock: Clock, *, keep_links: bool, offload: Offload
) -> None:
    """Fetch a batch's order and settle the batch. The order itself decides, because the order list may be wrong."""
    if batch.order_id is None:
        raise RunaError(f"batch {batch.id} has no order")
    placed = await client.get_order(batch.order_id)
    if placed.status == OrderStatus.FAILED:
        await offload(ledger.settle_failed, batch, OrderFailedError(order_id=placed.id).happened)
        return
    if placed.status != OrderStatus.COMPLETED:
        raise RunaError(f"fetched alone, it is {placed.status}")
    if placed.items is None:
        raise RunaError("it does not show what it pays")
    check = _check_found if batch.found else _check
    items = check(await offload(ledger.rows_of, batch), await offload(ledger.items_of, batch), batch, placed)
    if not keep_links:
        items = {position: replace(item, link=None) for position, item in items.items()}
    await offload(ledger.settle_completed, batch, items, clock.now())


def _check(
    rows: Sequence[Row], sent: Mapping[int, NewOrderItem], batch: Batch, placed: Order
) -> dict[int, SettledItem]:
    """Check that the order pays each row of its batch as it was sent."""
    if len(sent) != len(rows):
        raise FencedError(batch.id)  # another run has settled the batch
    wanted = NewOrder.build(currency=batch.currency, items=[sent[row.position] for row in rows])
    settled = {}
    for row, found in zip(rows, check_items(wanted, placed), strict=True):
        settled[row.position] = _settled(found.item, mismatch=found.problem)
    extra = len(placed.items or ()) - sum(found.item_id is not None for found in settled.values())
    if extra > 0:
        log.error("Order %s has %d item(s) more than were ordered. See runa-reconcile.", placed.id, extra)
    return settled


def _check_found(
    rows: Sequence[Row], sent: Mapping[int, NewOrderItem], batch: Batch, placed: Order
) -> dict[int, SettledItem]:
    """Read what an order pays that was found at Runa: what was sent for its rows is not known, only who they are."""
    places = {digest: place for place, digest in enumerate(digests.from_metadata(placed.metadata))}
    items = placed.items or ()
    settled = {}
    for row in rows:
        if row.state != RowState.SENT:
            continue  # it was settled before others joined the batch
        place = places.get(row.digest, row.position)
        item = item_of_recipient(sent[row.position], placed, place=place) if row.position in sent else None
        if item is None and len(items) == len(places) and place < len(items):
            item = items[place]
        mismatch = None if item is not None else "the order has no item for it"
        if item is not None and item.payout is not None and item.payout.status == "CANCELLED":
            mismatch = "its payout is CANCELLED"
        settled[row.position] = _settled(item, mismatch=mismatch, amount=item.face_value if item else None)
    return settled


def _settled(item: OrderItem | None, *, mismatch: str | None, amount: Decimal | None = None) -> SettledItem:
    if item is None:
        return SettledItem(mismatch=mismatch)
    link = item.payout.url.get_secret_value() if item.payout and item.payout.url else None
    return SettledItem(item.id, link, amount, mismatch)
