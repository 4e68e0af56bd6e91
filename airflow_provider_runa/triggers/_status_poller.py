"""One status poller per connection, which reads the orders of all triggers on an event loop together.

A triggerer runs up to a thousand triggers on one event loop. With a client each, they would open a thousand connections
and send a thousand requests per interval. Instead, each trigger says by when it needs a status, and the poller reads
all orders that are due in one cycle, mostly from the order list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass

from airflow_provider_runa.api.errors import UnreadableOrdersError
from airflow_provider_runa.api.statuses import read_statuses
from airflow_provider_runa.hooks.runa import RunaHook

log = logging.getLogger(__name__)

#: The shortest pause between two cycles, in seconds. Orders that come due in it are read together, so the number of
#: cycles does not grow with the number of triggers and their different intervals.
MIN_PAUSE_BETWEEN_CYCLES = 1.0


@asynccontextmanager
async def shared_status_poller(runa_conn_id: str) -> AsyncIterator[StatusPoller]:
    """Give access to the status poller of a connection. The first subscriber starts it, and the last one closes it.

    :param runa_conn_id: id of the Airflow connection.
    """
    # A client belongs to the event loop that it was created on. A process may have several loops, one after the other
    # or in threads.
    key = (asyncio.get_running_loop(), runa_conn_id)
    if key not in _pollers:
        _pollers[key] = StatusPoller(runa_conn_id)
    poller = _pollers[key]
    poller.subscribers += 1
    try:
        yield poller
    finally:
        poller.subscribers -= 1
        if poller.subscribers == 0:
            del _pollers[key]  # before anything is awaited, so that the next subscriber starts a new one
            await poller.aclose()


@dataclass(eq=False)
class _StatusRequest:
    """The request of one trigger. Times are on the event loop's clock."""

    order_ids: tuple[str, ...]
    earliest: float
    latest: float
    answer: asyncio.Future[dict[str, str]]


class StatusPoller:
    """Reads the statuses of orders through one client; get it from :func:`shared_status_poller`.

    :param runa_conn_id: id of the Airflow connection.
    """

    def __init__(self, runa_conn_id: str) -> None:
        self.subscribers = 0
        self._hook = RunaHook(runa_conn_id)
        self._loop = asyncio.get_running_loop()
        self._requests: set[_StatusRequest] = set()
        self._asked = asyncio.Event()
        # In a new context: the current one belongs to a trigger, and its log lines go to the log of that task.
        self._task = self._loop.create_task(self._run(), name=f"status poller of {runa_conn_id}", context=Context())

    async def read(self, order_ids: Iterable[str], *, after: float, within: float) -> dict[str, str]:
        """Return the statuses of orders, read after a delay.

        :param order_ids: ids of the orders.
        :param after: the earliest time to read them, in seconds from now.
        :param within: the latest time to read them, in seconds from now, plus up to :data:`MIN_PAUSE_BETWEEN_CYCLES`.
            They are read earlier if the orders of another trigger are due.
        :returns: order id -> status.
        :raises UnreadableOrdersError: if some of these orders could not be read. It has the statuses of the others.
        """
        now = self._loop.time()
        request = _StatusRequest(tuple(order_ids), now + after, now + within, self._loop.create_future())
        self._requests.add(request)
        self._asked.set()
        try:
            return await request.answer
        finally:
            self._requests.discard(request)

    async def aclose(self) -> None:
        """Stop polling and close the client."""
        try:
            while not self._task.done():
                self._task.cancel()  # again: asgiref, with which Airflow 2 reads connections, may swallow it
                await asyncio.wait({self._task}, timeout=0.1)
        finally:
            await self._hook.aclose()

    async def _run(self) -> None:
        try:
            while True:
                await self._until_due()
                await self._answer({request for request in self._requests if request.earliest <= self._loop.time()})
                await asyncio.sleep(MIN_PAUSE_BETWEEN_CYCLES)
        finally:
            # No request is left when the poller is closed. If it ends for another reason, no trigger must wait forever:
            # Airflow restarts a trigger that was cancelled.
            for request in self._requests:
                request.answer.cancel()

    async def _until_due(self) -> None:
        while True:
            self._asked.clear()
            latest = min((request.latest for request in self._requests), default=None)
            if latest is not None and latest <= self._loop.time():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(latest):
                    await self._asked.wait()

    async def _answer(self, requests: set[_StatusRequest]) -> None:
        statuses, errors = await self._read({order_id for request in requests for order_id in request.order_ids})
        self._requests -= requests
        for request in requests:
            if request.answer.done():  # its trigger was cancelled in the meantime
                continue
            read = {order_id: statuses[order_id] for order_id in request.order_ids if order_id in statuses}
            not_read = {order_id: errors[order_id] for order_id in request.order_ids if order_id in errors}
            if not_read:
                request.answer.set_exception(UnreadableOrdersError(read, not_read))
            else:
                request.answer.set_result(read)

    async def _read(self, order_ids: set[str]) -> tuple[dict[str, str], dict[str, Exception]]:
        """Return the statuses of the orders, and the errors of those that could not be read."""
        try:
            return await read_statuses(await self._hook.aget_conn(), order_ids), {}
        except UnreadableOrdersError as error:
            unreadable = error
        except Exception as error:  # also Airflow's: the connection may be missing or wrong
            unreadable = UnreadableOrdersError({}, dict.fromkeys(order_ids, error))
        log.warning("%d of %d orders could not be read: %s", len(unreadable.errors), len(order_ids), unreadable)
        # The next cycle reads the Airflow connection again, because its key or host may have changed by then.
        with suppress(Exception):
            await self._hook.aclose()
        return unreadable.statuses, unreadable.errors


_pollers: dict[tuple[asyncio.AbstractEventLoop, str], StatusPoller] = {}
