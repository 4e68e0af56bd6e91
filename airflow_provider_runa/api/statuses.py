"""Reads the statuses of many orders with few requests: from the order list where that is cheaper, else one by one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

from airflow_provider_runa.api.client import PAGE_SIZE
from airflow_provider_runa.api.errors import RunaError, RunaNotFoundError, UnreadableOrdersError
from airflow_provider_runa.api.models import Order

#: How many orders must be left to read for each page of the list that is requested. A page of 500 rows takes about as
#: long as ten single orders.
ORDERS_PER_PAGE = 10


class OrderReader(Protocol):
    """The methods of a client that are needed here, such as of :class:`.client.AsyncRunaClient`."""

    async def get_order(self, order_id: str) -> Order:
        """Fetch an order."""
        ...

    def list_orders(self) -> AsyncGenerator[Order, None]:
        """Iterate over the account's orders; a page is requested only when its first row is read."""
        ...


async def read_statuses(client: OrderReader, order_ids: Iterable[str]) -> dict[str, str]:
    """Return the status of each order.

    The newest orders are on the first pages of the list. Runa does not guarantee that, and new orders shift the pages,
    so an order that the list does not show is fetched by its id. One page is requested for every ten orders: in the
    worst case, when the list shows none of them, 10 % more requests are sent than there are orders.

    :param client: a client of Runa's API; it may retry.
    :param order_ids: ids of the orders.
    :returns: order id -> status, for every id.
    :raises UnreadableOrdersError: if some could not be read, because the account does not have them or because Runa
        did not answer. It contains the statuses of all others.
    """
    missing = dict.fromkeys(order_ids)
    statuses: dict[str, str] = {}
    errors: dict[str, Exception] = {}
    failures = 0  # in a row: one may concern only that order or the list, two concern Runa
    rows_left = len(missing) // ORDERS_PER_PAGE * PAGE_SIZE
    if rows_left:
        try:
            async with aclosing(client.list_orders()) as rows:
                async for row in rows:
                    if row.id in missing:
                        statuses[row.id] = str(row.status)
                        del missing[row.id]
                    rows_left -= 1
                    if not missing or not rows_left:
                        break
        except RunaError:
            failures = 1
    while missing:
        order_id, _ = missing.popitem()
        try:
            statuses[order_id] = str((await client.get_order(order_id)).status)
            failures = 0
        except RunaNotFoundError as error:
            errors[order_id] = error
            failures = 0
        except RunaError as error:
            errors[order_id] = error
            failures += 1
            if failures >= 2:
                errors |= dict.fromkeys(missing, error)
                break
    if errors:
        raise UnreadableOrdersError(statuses, errors)
    return statuses
