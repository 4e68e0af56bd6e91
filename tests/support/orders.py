"""Orders of a test, and orders by the hundred in a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow_provider_runa.api.client import AsyncRunaClient
from airflow_provider_runa.api.models import NewOrder
from tests.support.sandbox import RunningSandbox, start_sandbox


def link(amount: int) -> dict[str, Any]:
    """Return an item that is paid by a payout link."""
    return {
        "face_value": amount,
        "distribution_method": {"type": "PAYOUT_LINK"},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }


ORDER = NewOrder.build(currency="USD", items=[link(10)])

#: Until an order is settled, in seconds of the sandbox's clock.
PROCESSING = 1_000_000.0


@contextmanager
def start_patient_sandbox() -> Iterator[RunningSandbox]:
    """Run a sandbox that takes any number of orders, which stay PROCESSING until its clock is moved."""
    with start_sandbox("--orders-per-minute", "1000000", "--processing-delay", str(PROCESSING)) as running:
        yield running


def client_of(runa: RunningSandbox, **options: Any) -> AsyncRunaClient:
    """Return a client that sends orders as fast as it can."""
    return AsyncRunaClient(runa.api_key, base_url=runa.url, orders_per_minute=1_000_000, **options)


def place_many(runa: RunningSandbox, count: int) -> list[str]:
    """Place orders and return their ids, roughly oldest first."""
    ids: list[str] = []
    numbers = iter(range(count))

    async def place(client: AsyncRunaClient) -> None:
        for number in numbers:
            ids.append((await client.create_order(ORDER, idempotency_key=f"many-{number}")).id)

    async def place_all() -> None:
        async with client_of(runa) as client:
            await asyncio.gather(*(place(client) for _ in range(8)))

    asyncio.run(place_all())
    return ids


def reads(runa: RunningSandbox) -> dict[str, int]:
    """Return how many pages and single orders the sandbox was asked for so far."""
    requests = runa.stats()["requests"]
    return {"pages": requests.get("GET /order", 0), "orders": requests.get("GET /order/{id}", 0)}
