"""Run the same coroutine several times at once, to pay and settle a campaign."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

#: Runs a call that blocks, such as a statement that waits for a row lock, so that the event loop does not wait for it.
Offload = Callable[..., Awaitable[Any]]

#: Orders that are in flight at once. The client keeps to the account's limit of orders per minute.
CONCURRENCY = 16


async def run_concurrently(work: Callable[[], Coroutine[Any, Any, None]], count: int = CONCURRENCY) -> None:
    """Run a coroutine several times at once, and raise the first error.

    :param work: creates the coroutine. All coroutines take their work from a shared queue.
    :param count: how many run at once.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except BaseExceptionGroup as several:  # Airflow's timeout is a BaseException, not an Exception
        raise several.exceptions[0] from None
