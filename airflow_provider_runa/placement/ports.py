"""What the algorithm is handed: a client, a record store and a clock; and how it runs without an event loop.

The algorithm is written once, as coroutines. With ports that really wait it runs on an event loop, many orders at
once; with ports that block (as a worker's do) :func:`run_blocking` runs it to its end in the calling thread, where
a signal such as Airflow's ``execution_timeout`` interrupts it as it would any other code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from datetime import datetime
from typing import Any, Protocol, TypeVar

from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement.record import Record

T = TypeVar("T")


class OrderReader(Protocol):
    """The part of Runa that looking needs. Errors are those of ``airflow_provider_runa.api.errors``."""

    async def get_order(self, order_id: str) -> Order:
        """Fetch an order. Reading may be retried inside."""
        ...

    def list_orders(self) -> AsyncIterator[Order]:
        """Iterate over the account's orders through all pages. Reading may be retried inside."""
        ...


class OrderClient(OrderReader, Protocol):
    """The part of Runa that placing needs."""

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        """Send the order once: the algorithm decides itself whether to send it again."""
        ...


class RecordStore(Protocol):
    """Where the record of one identity is kept. One that keeps nothing is allowed."""

    async def load(self) -> Record | None:
        """Return the record, ``None`` if there is none."""
        ...

    async def save(self, record: Record) -> None:
        """Keep the record instead of the one before."""
        ...


class Clock(Protocol):
    """The time, injected, so that weeks can pass in a test."""

    def now(self) -> datetime:
        """Return the time, aware of its zone (UTC)."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


def run_blocking(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose ports block instead of waiting: it never suspends, so one step takes it to its end.

    :param coroutine: the coroutine.
    :raises RuntimeError: if it does suspend, because one of its ports wants an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a port waited for an event loop; run_blocking takes ports that block")
