"""Running the same coroutine several times at once, for paying and settling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

#: Orders that are under way at once. The client keeps to the account's orders per minute.
CONCURRENCY = 16


async def run_concurrently(work: Callable[[], Coroutine[Any, Any, None]], count: int = CONCURRENCY) -> None:
    """Run a coroutine several times at once, and raise the first error.

    :param work: makes the coroutine. Each takes its work from a queue that all share.
    :param count: how many run at once.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except BaseExceptionGroup as several:  # BaseException: a timeout of Airflow's is no Exception
        raise several.exceptions[0] from None
