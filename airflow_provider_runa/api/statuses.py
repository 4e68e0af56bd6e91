"""Reading the statuses of many orders with few requests: from the order list where that is cheaper, one by one else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

from airflow_provider_runa.api.client import PAGE_SIZE
from airflow_provider_runa.api.errors import RunaError, RunaNotFoundError, UnreadableOrdersError
from airflow_provider_runa.api.models import Order

#: How many orders a page of the list must be able to spare one by one before it is asked for. A page of 500 rows takes
#: this process about as long as ten orders do.
ORDERS_PER_PAGE = 10


class OrderReader(Protocol):
    """The part of a client that reading needs: :class:`.client.AsyncRunaClient`, or whatever asks like it."""

    async def get_order(self, order_id: str) -> Order:
        """Fetch an order."""
        ...

    def list_orders(self) -> AsyncGenerator[Order, None]:
        """Iterate over the account's orders; the next page is asked for only when its first row is wanted."""
        ...


async def read_statuses(client: OrderReader, order_ids: Iterable[str]) -> dict[str, str]:
    """Return the status of each order.

    The newest orders are on the first pages of the list. No contract says so, and orders come and go in between, so
    that an order which the list does not show is asked for by its id. Each page stands for ten orders: in the worst
    case, when the list shows none of them, a tenth more requests are sent than there are orders.

    :param client: how to ask Runa; it may retry inside.
    :param order_ids: ids of the orders.
    :returns: order id -> status, for every id.
    :raises UnreadableOrdersError: if some could not be read, because the account does not know them or because Runa
        did not answer. It holds the statuses of all others.
    """
    missing = dict.fromkeys(order_ids)
    statuses: dict[str, str] = {}
    errors: dict[str, Exception] = {}
    failures = 0  # in a row: one may be an order's or the list's own, two are Runa's
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
