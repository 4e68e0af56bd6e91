"""Runs coroutines from synchronous code, wherever that is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a new event loop until it ends, and return its result.

    Unlike ``asyncio.run``, it works where a loop is running already, as in a notebook and in ``dag.test()`` there: then
    the coroutine runs in another thread, and is cancelled if this one is interrupted.

    :param coroutine: the coroutine.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    from anyio.from_thread import start_blocking_portal

    async def wait() -> T:
        return await coroutine

    with start_blocking_portal() as portal:
        return portal.call(wait)
