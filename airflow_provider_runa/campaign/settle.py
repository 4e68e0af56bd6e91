"""Settle batches: write to the ledger how the orders of a campaign ended."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.api.models import OrderStatus
from airflow_provider_runa.campaign.concurrency import run_concurrently
from airflow_provider_runa.campaign.ledger import Batch, BatchState, FencedError, Ledger
from airflow_provider_runa.placement.errors import OrderFailedError
from airflow_provider_runa.placement.payment import counterparts
from airflow_provider_runa.placement.ports import Clock, OrderClient

log = logging.getLogger(__name__)


async def settle(
    ledger: Ledger,
    *,
    client: OrderClient,
    statuses: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]],
    clock: Clock,
    keep_links: bool = False,
) -> list[str]:
    """Read the status of all placed orders once, and settle the batches whose order is final.

    :param ledger: the ledger of the campaign.
    :param client: Runa.
    :param statuses: reads the status of many orders; returns id -> status.
    :param clock: the current time.
    :param keep_links: whether to store payout links in the ledger.
    :returns: ids of the orders that are still PROCESSING or could not be read.
    :raises RunaError: if Runa cannot be read.
    """
    placed = {batch.order_id: batch for batch in ledger.batches(BatchState.PLACED) if batch.order_id is not None}
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
                    await _settle(ledger, batch, client, clock, keep_links=keep_links)
            except FencedError:
                continue  # another run has settled the batch
            except RunaError as error:
                log.warning("Order %s is %s and could not be read in full: %s", order_id, status, error)
                unread.append(order_id)

    await run_concurrently(work)
    return [id_ for id_ in placed if id_ in unread or not OrderStatus.is_final(found.get(id_, ""))]


async def _settle(ledger: Ledger, batch: Batch, client: OrderClient, clock: Clock, *, keep_links: bool) -> None:
    """Fetch a batch's order and settle the batch. The order itself decides, because the order list may be wrong."""
    if batch.order_id is None:
        raise RunaError(f"batch {batch.id} has no order")
    placed = await client.get_order(batch.order_id)
    if placed.status == OrderStatus.FAILED:
        ledger.settle_failed(batch, OrderFailedError(order_id=placed.id).happened)
        return
    if placed.status != OrderStatus.COMPLETED:
        raise RunaError(f"fetched alone, it is {placed.status}")
    items = {}
    for position, item in counterparts(ledger.order(batch), placed).items():
        link = item.payout.url.get_secret_value() if keep_links and item.payout and item.payout.url else None
        items[position] = (item.id, link)
    ledger.settle_completed(batch, items, clock.now())
