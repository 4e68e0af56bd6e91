"""RunaBalanceTrigger: waits in the triggerer until a balance covers an amount. It sends only ``GET /balance``."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers.runa import MIN_PAUSE
from airflow_provider_runa.utils.failures import NON_RETRYABLE

log = logging.getLogger(__name__)

#: The statuses of this trigger's events.
EVENT_STATUSES = (EventStatus.COVERED, EventStatus.TIMED_OUT, EventStatus.UNREADABLE)


class RunaBalanceTrigger(BaseTrigger):
    """Fires once, when the balance of a currency covers an amount, or at the deadline.

    .. seealso:: :doc:`/authoring`

    The event is ``{"status": "covered" | "timed_out" | "unreadable", "currency", "amount", "balance"}``. Amounts are
    decimal strings; ``balance`` is ``None`` if it was never read. ``unreadable`` comes with a ``reason``: Runa rejects
    the request, or gave no usable answer at the deadline.

    :param currency: currency of the balance, three capital letters.
    :param amount: the amount that the balance must cover, as a decimal string.
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``.
    :param poll_interval: seconds between two polls, at least 5. Default: 60.
    :param deadline: when to give up, in seconds since the epoch.
    """

    def __init__(
        self,
        currency: str,
        amount: str,
        runa_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = 60.0,
        *,
        deadline: float,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.currency = currency
        self.amount = amount
        self.runa_conn_id = runa_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the trigger's class path and its arguments: strings and numbers only."""
        names = ("currency", "amount", "runa_conn_id", "poll_interval", "deadline")
        return f"{type(self).__module__}.{type(self).__qualname__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the balance covers the amount or the wait ends, then yield the event."""
        hook = RunaHook(self.runa_conn_id)
        try:
            event = await self._wait(hook)
        finally:
            await hook.aclose()
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _wait(self, hook: RunaHook) -> dict[str, Any]:
        balance: Decimal | None = None
        while True:
            await asyncio.sleep(max(MIN_PAUSE, min(self.poll_interval, self.deadline - time.time())))
            reason = None
            try:
                balance = (await hook.aget_balance(self.currency)).balance
            except NON_RETRYABLE as error:
                return self._event(EventStatus.UNREADABLE, balance) | {"reason": str(error)}
            except Exception as error:  # also Airflow's: its API server may be unavailable
                reason = str(error)
                log.warning("The balance could not be read: %s", error)
                with suppress(Exception):  # the next poll reads the Airflow connection again
                    await hook.aclose()
            else:
                if balance >= Decimal(self.amount):
                    return self._event(EventStatus.COVERED, balance)
            # After the read, so that a balance that is high enough in time is never reported as late.
            if time.time() >= self.deadline:
                if reason is not None:
                    return self._event(EventStatus.UNREADABLE, balance) | {"reason": reason}
                return self._event(EventStatus.TIMED_OUT, balance)

    def _event(self, status: EventStatus, balance: Decimal | None) -> dict[str, Any]:
        return {
            "status": status.value,
            "currency": self.currency,
            "amount": self.amount,
            "balance": None if balance is None else str(balance),
        }
