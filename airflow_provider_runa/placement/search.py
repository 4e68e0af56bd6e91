"""Looking for an order in Runa's order list, the one thing that outlives Runa's memory of keys.

The list shows an order's description, and with it the reference, only once the order is no longer PROCESSING. So a
search that finds nothing proves something only when every order that was hidden at its start has shown itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from airflow_provider_runa.api.models import Order, OrderStatus
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.ports import Clock, OrderClient, OrderReader

#: How far the clocks of a worker and of Runa may differ before a search misses an order.
CLOCK_SLACK = timedelta(hours=1)


@dataclass
class SearchResult:
    """What a search has seen.

    :param order: the identity's order that is not FAILED, in full; ``None`` if there is none to be seen.
    :param generation: its generation.
    :param failed: generations whose order ended FAILED: they paid nobody.
    :param hidden: ids of orders that do not show what they are; the search is conclusive only without them.
    """

    order: Order | None = None
    generation: int = 0
    failed: set[int] = field(default_factory=set)
    hidden: list[str] = field(default_factory=list)

    @property
    def absent(self) -> bool:
        """Whether the search proves that the identity has no order in the window that is not FAILED."""
        return self.order is None and not self.hidden


async def list_since(since: datetime, client: OrderReader) -> AsyncIterator[Order]:
    """Iterate over the order list until it has gone back beyond a moment; some older orders may be among them.

    :param since: the earliest moment an order of interest can have been placed, by the caller's clock.
    :param client: how to ask Runa.
    """
    horizon, newest = since - CLOCK_SLACK, None
    async for row in client.list_orders():
        if row.created_at is not None:
            newest = max(newest or row.created_at, row.created_at)
            # No contract says how the list is sorted: stop only where it has fallen by a day, as newest first does.
            if row.created_at < min(horizon, newest - timedelta(days=1)):
                return
        yield row


async def search(
    identity: OrderIdentity,
    *,
    since: datetime,
    client: OrderClient,
    clock: Clock,
    patience: float,
    pause: float,
) -> SearchResult:
    """Look for the identity's order among all orders since a moment.

    Orders that are hidden when the search begins are asked for one by one until they show themselves or patience
    ends. Orders that come later are not waited for: they cannot have been placed before the search.

    :param identity: whose order is looked for, in any generation.
    :param since: the earliest moment the order can have been placed.
    :param client: how to ask Runa.
    :param clock: the time.
    :param patience: how long to wait for hidden orders, in seconds.
    :param pause: how long to wait between two looks at them, in seconds.
    """
    result = SearchResult()
    async for row in list_since(since, client):
        if await _take_in(row, identity, result, client):
            return result

    deadline = clock.now() + timedelta(seconds=patience)
    while result.hidden and clock.now() < deadline:
        await clock.sleep(pause)
        for order_id in list(result.hidden):
            order = await client.get_order(order_id)
            if OrderStatus.is_final(order.status):
                result.hidden.remove(order_id)
                if await _take_in(order, identity, result, client):
                    return result
    return result


async def _take_in(row: Order, identity: OrderIdentity, result: SearchResult, client: OrderClient) -> bool:
    """Note what a row tells; return whether it is the order that was looked for."""
    if not OrderStatus.is_final(row.status):
        result.hidden.append(row.id)
        return False
    generation = identity.generation_in(row.description)
    if generation is None:
        return False
    order = row if row.items is not None else await client.get_order(row.id)
    if not identity.owns(order.metadata):
        return False
    if order.status == OrderStatus.FAILED:
        result.failed.add(generation)
        return False
    result.order, result.generation = order, generation
    return True
