"""Search Runa's order list for an order. The list still shows an order after Runa has forgotten its key.

The list shows an order's description, and with it the reference, only when the order is no longer PROCESSING. Until
then the order is **hidden**. So a search that finds nothing proves something only when none of the orders that were
hidden at its start is still hidden.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from airflow_provider_runa.api.errors import RunaNotFoundError
from airflow_provider_runa.api.models import Order, OrderStatus
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.ports import Clock, OrderClient, OrderReader

#: How far the clocks of a worker and Runa may differ without a search missing an order.
CLOCK_SLACK = timedelta(hours=1)

# What shows that the list is sorted newest first, see ``list_since``.
_DESCENT = timedelta(days=1)
_BEYOND = 100


@dataclass
class SearchResult:
    """The result of a search.

    :param order: the identity's order that is not FAILED, in full. ``None`` if the search found none.
    :param generation: generation of that order.
    :param failed: generations whose order ended FAILED: they paid nobody.
    :param hidden: ids of orders that are still hidden. The search is conclusive only if there are none.
    """

    order: Order | None = None
    generation: int = 0
    failed: set[int] = field(default_factory=set)
    hidden: list[str] = field(default_factory=list)

    @property
    def absent(self) -> bool:
        """Whether the search proves that the identity has no order in the period, except FAILED ones."""
        return self.order is None and not self.hidden


async def list_since(since: datetime, client: OrderReader) -> AsyncIterator[Order]:
    """Iterate over all orders since a time.

    The result may contain some older orders, too. No contract says how the list is sorted, so it ends before the end of
    the list only if everything that was read shows that the list is sorted newest first:

    - Each row was created before the rows above it, or at most :data:`CLOCK_SLACK` after one of them.
    - The list has gone back by at least a day from the newest row.
    - A hundred rows in sequence are older than the time.

    Otherwise the whole list is read. Rows that show no time, such as those that are PROCESSING, count neither way.

    :param since: the earliest time at which an order of interest can have been placed, by the caller's clock.
    :param client: Runa.
    """
    horizon = since - CLOCK_SLACK
    newest = oldest = None
    is_sorted, beyond = True, 0
    async for row in client.list_orders():
        if row.created_at is not None:
            newest, oldest = (
                max(newest or row.created_at, row.created_at),
                min(oldest or row.created_at, row.created_at),
            )
            is_sorted = is_sorted and row.created_at <= oldest + CLOCK_SLACK
            beyond = beyond + 1 if row.created_at < min(horizon, newest - _DESCENT) else 0
            if is_sorted and beyond > _BEYOND:
                return
        yield row


class OrderScan:
    """Reads the order list back to a moment: iterate over it to get the orders that show what they are.

    A listed order that shows no description is **hidden**, whatever its status: it may be any order. Hidden orders are
    fetched one by one after the list, until they show a description or are final, or the patience ends; ``hidden``
    holds the others. A 404 for an order that was listed a moment ago shows nothing, so the order stays hidden.

    :param client: Runa.
    :param clock: the current time.
    :param since: the earliest time at which an order of interest can have been placed, by the caller's clock.
    :param known: ids of orders that are of no interest, whatever they show.
    :param patience: how long to wait for hidden orders, in seconds.
    :param pause: how long to wait before fetching hidden orders again, in seconds.
    """

    def __init__(
        self,
        client: OrderReader,
        clock: Clock,
        *,
        since: datetime,
        known: Collection[str] = (),
        patience: float,
        pause: float,
    ) -> None:
        self._client = client
        self._clock = clock
        self._since = since
        self._known = known
        self._patience = patience
        self._pause = pause
        #: Ids of the orders that were listed.
        self.seen: set[str] = set()
        #: Ids of the orders that are still hidden. The scan is conclusive only if there are none.
        self.hidden: list[str] = []

    async def __aiter__(self) -> AsyncIterator[Order]:
        async for row in list_since(self._since, self._client):
            self.seen.add(row.id)
            if row.id in self._known:
                continue
            if row.description is None:
                self.hidden.append(row.id)
            else:
                yield row
        deadline = self._clock.now() + timedelta(seconds=self._patience)
        while True:
            for order_id in list(self.hidden):
                order = await self._fetch(order_id)
                if order is not None and (order.description is not None or OrderStatus.is_final(order.status)):
                    self.hidden.remove(order_id)
                    yield order
            if not self.hidden or self._clock.now() >= deadline:
                return
            await self._clock.sleep(self._pause)

    async def _fetch(self, order_id: str) -> Order | None:
        try:
            return await self._client.get_order(order_id)
        except RunaNotFoundError:
            return None


async def search(
    identity: OrderIdentity,
    *,
    since: datetime,
    client: OrderClient,
    clock: Clock,
    patience: float,
    pause: float,
) -> SearchResult:
    """Search for the identity's order, of any generation, among all orders since a time.

    Orders that are hidden in the list are fetched one by one until they are no longer hidden or the patience ends.
    Orders that appear later are not waited for: they were placed after the search began.

    :param identity: the identity of the order.
    :param since: the earliest time at which the order can have been placed.
    :param client: Runa.
    :param clock: the current time.
    :param patience: how long to wait for hidden orders, in seconds.
    :param pause: how long to wait before fetching hidden orders again, in seconds.
    """
    result = SearchResult()
    scan = OrderScan(client, clock, since=since, patience=patience, pause=pause)
    async for row in scan:
        if await _is_the_order(row, identity, result, client):
            return result
    result.hidden += scan.hidden
    return result


async def _is_the_order(row: Order, identity: OrderIdentity, result: SearchResult, client: OrderClient) -> bool:
    """Return whether a row of the list is the order in question, and add what the row shows to the result."""
    generation = identity.generation_in(row.description)
    if generation is None:
        return False
    try:
        order = row if row.items is not None else await client.get_order(row.id)
    except RunaNotFoundError:
        result.hidden.append(row.id)  # it was listed a moment ago, so this shows nothing
        return False
    if not identity.owns(order.metadata):
        return False
    if order.status == OrderStatus.FAILED:
        result.failed.add(generation)
        return False
    result.order, result.generation = order, generation
    return True
