"""The ports of ``placement`` on a worker: client, record store and clock, blocking or for an event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

from airflow_provider_runa.api.client import AsyncRunaClient, RunaClient
from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.record import Record

log = logging.getLogger(__name__)


class BlockingOrderClient:
    """A client for :func:`~.placement.ports.run_blocking`, whose coroutines block and never suspend.

    :param client: the synchronous client of Runa's API.
    """

    def __init__(self, client: RunaClient) -> None:
        self._client = client

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        """Send the order once. ``placement`` decides whether to send it again."""
        return self._client.create_order(
            order, idempotency_key=idempotency_key, execution_mode=execution_mode, retry=False
        )

    async def get_order(self, order_id: str) -> Order:
        """Fetch an order."""
        return self._client.get_order(order_id)

    async def list_orders(self) -> AsyncGenerator[Order, None]:
        """Iterate over the account's orders."""
        for order in self._client.list_orders():
            yield order


class AsyncOrderClient:
    """A client for an event loop.

    :param client: the asynchronous client of Runa's API.
    """

    def __init__(self, client: AsyncRunaClient) -> None:
        self._client = client
        self.get_order = client.get_order
        self.list_orders = client.list_orders

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        """Send the order once. ``placement`` decides whether to send it again."""
        return await self._client.create_order(
            order, idempotency_key=idempotency_key, execution_mode=execution_mode, retry=False
        )


class TaskStateRecords:
    """The record of an identity in Airflow's task state store (Airflow 3.3 and later), where it never expires.

    :param store: ``context["task_state_store"]``; ``None`` if Airflow has none, in which case nothing is kept.
    :param identity: the identity that the record belongs to. Each identity of a task has a separate record.
    """

    def __init__(self, store: Any, identity: OrderIdentity) -> None:
        self.store = store
        self.name = f"runa_order_{identity.short_name}"

    async def load(self) -> Record | None:
        """Return the record, ``None`` if there is none or if it cannot be read as one."""
        values = self.store.get(self.name) if self.store is not None else None
        if values is None:
            return None
        try:
            return Record.from_json(values)
        except ValueError as error:
            log.warning("The record %s is ignored: %s", self.name, error)
            return None

    async def save(self, record: Record) -> None:
        """Store the record."""
        if self.store is not None:
            from airflow.sdk.execution_time.context import NEVER_EXPIRE

            self.store.set(self.name, record.to_json(), retention=NEVER_EXPIRE)


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the time in UTC."""
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        """Block for a number of seconds."""
        time.sleep(seconds)  # noqa: ASYNC251 - this port blocks, which is what run_blocking needs


class AsyncClock(SystemClock):
    """The machine's clock for an event loop."""

    async def sleep(self, seconds: float) -> None:
        """Wait for a number of seconds."""
        await asyncio.sleep(seconds)
