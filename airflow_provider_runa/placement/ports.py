"""The interfaces that the algorithm needs (client, record store, clock), and how to run it without an event loop.

The algorithm is written once, as coroutines. With asynchronous ports it runs on an event loop, many orders at once.
With blocking ports (as on a worker), :func:`run_blocking` runs it to its end in the calling thread, where a signal such
as Airflow's ``execution_timeout`` interrupts it like any other code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from typing import Any, Protocol, TypeVar

from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement.record import Record

T = TypeVar("T")


class OrderReader(Protocol):
    """The part of Runa's API that reads orders. Errors are those of ``airflow_provider_runa.api.errors``."""

    async def get_order(self, order_id: str) -> Order:
        """Fetch an order. The implementation may retry."""
        ...

    def list_orders(self) -> AsyncIterator[Order]:
        """Iterate over the account's orders, through all pages. The implementation may retry."""
        ...


class OrderClient(OrderReader, Protocol):
    """The part of Runa's API that places orders."""

    def reserve_turn(self) -> float:
        """Reserve the next place in the account's rate limit; return how many seconds to wait for it.

        It is waited for before the record is written, so that a record is never old when its request is sent.
        """
        ...

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        """Send the order once. The implementation must not retry: the algorithm decides whether to send again."""
        ...


class OvertakenError(Exception):
    """Another attempt works on this identity now. This one must not send or write any more."""


class RecordStore(Protocol):
    """Where the record of one identity is kept. A store that keeps nothing is allowed.

    A store may raise :class:`OvertakenError`, or a ``PlacementError``, which then ends the attempt as it is.
    """

    async def load(self) -> Record | None:
        """Return the record, or ``None`` if there is none."""
        ...

    async def save(self, record: Record) -> None:
        """Replace the record by this one."""
        ...


class Clock(Protocol):
    """The current time, passed in so that weeks can pass in a test."""

    def now(self) -> datetime:
        """Return the current time (UTC, timezone-aware)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait for some seconds."""
        ...


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose ports block, without an event loop, and return its result.

    Such a coroutine never suspends, so a single step runs it to its end.

    :param coroutine: the coroutine.
    :raises RuntimeError: if it suspends, because one of its ports needs an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a port waited for an event loop; run_blocking takes ports that block")
