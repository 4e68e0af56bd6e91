"""RunaOrderTrigger: waits in the triggerer until orders are settled. It only GETs.

A trigger may run more than once, in two triggerers at a time or again after a restart, and its arguments and
events are stored and logged in clear. So it never sends an order, and all it carries are ids, numbers and states.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_runa.api.errors import UnreadableOrdersError
from airflow_provider_runa.api.models import OrderStatus
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers._status_poller import StatusPoller, shared_status_poller
from airflow_provider_runa.utils.failures import NON_RETRYABLE

log = logging.getLogger(__name__)

#: The shortest pause before the first poll, and the shortest interval, in seconds. A trigger that fires within about
#: 2 s of the task's deferral can hit a race in Airflow's scheduler (measured on 3.3.2) which fails the task or runs
#: ``execute`` again; at this distance and more none was seen.
MIN_PAUSE = 5.0

#: Polls, one after the other, that Runa may refuse before the trigger gives up: the account may not show yet an order
#: that was accepted a moment ago, and a person may be changing the connection.
TOLERATED_REJECTIONS = 5

#: The statuses of this trigger's events.
EVENT_STATUSES = (EventStatus.FINAL, EventStatus.TIMED_OUT, EventStatus.UNREADABLE)


class RunaOrderTrigger(BaseTrigger):
    """Fires once: when all orders are COMPLETED or FAILED, at the first that is FAILED, or at the deadline.

    However many of them wait in a triggerer, they share one client and one poll per interval (see ``_watch``).

    The event is ``{"status": "final" | "timed_out" | "unreadable", "orders": {order id: status}}``: whoever gets
    it fetches the orders again. ``unreadable`` has a ``reason``: Runa refuses to tell, which no waiting heals. A poll
    that fails otherwise is tolerated until the deadline.

    :param order_ids: ids of the orders.
    :param runa_conn_id: id of the Airflow connection.
    :param poll_interval: seconds between two looks at an order, at least 5. Triggers of the same connection look
        together, so that it may be less, down to half of it.
    :param deadline: when to give up, in seconds since the epoch; ``None`` never. An order that settled before is
        seen even if the triggerer was down when the deadline passed.
    :param fail_fast: whether the first FAILED order ends the wait for the others.
    """

    def __init__(
        self,
        order_ids: Sequence[str],
        runa_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = 30.0,
        deadline: float | None = None,
        fail_fast: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order_ids = list(order_ids)
        self.runa_conn_id = runa_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.fail_fast = fail_fast

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the trigger's class path and its arguments: strings, numbers and lists of strings only."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "order_ids": self.order_ids,
                "runa_conn_id": self.runa_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "fail_fast": self.fail_fast,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until there is something to say."""
        async with shared_status_poller(self.runa_conn_id) as poller:
            event = await self._wait(poller)
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _wait(self, poller: StatusPoller) -> dict[str, Any]:
        states: dict[str, str] = dict.fromkeys(self.order_ids, OrderStatus.PROCESSING.value)
        rejections = 0
        soonest = MIN_PAUSE
        while True:
            pending = [order_id for order_id, state in states.items() if not OrderStatus.is_final(state)]
            pause = self._pause()
            reason = None
            try:
                # From half of the pause on it is read together with the orders of other triggers.
                states |= await poller.read(pending, after=max(soonest, pause / 2), within=pause)
                rejections = 0
            except UnreadableOrdersError as error:
                states |= error.statuses
                rejected = {order_id: one for order_id, one in error.errors.items() if isinstance(one, NON_RETRYABLE)}
                rejections = rejections + 1 if rejected else 0
                reason = str(UnreadableOrdersError({}, rejected or error.errors))
                log.warning("The orders could not be read, which is tried again: %s", reason)
            soonest = 0.0
            if (self.fail_fast and OrderStatus.FAILED in states.values()) or all(
                map(OrderStatus.is_final, states.values())
            ):
                return {"status": EventStatus.FINAL.value, "orders": states}
            if rejections >= TOLERATED_REJECTIONS:
                return {"status": EventStatus.UNREADABLE.value, "orders": states, "reason": reason}
            # The status was read before this line, so an order that settled in time is never called late.
            if self.deadline is not None and time.time() >= self.deadline:
                return {"status": EventStatus.TIMED_OUT.value, "orders": states}

    def _pause(self) -> float:
        rest = float("inf") if self.deadline is None else self.deadline - time.time()
        return max(MIN_PAUSE, min(self.poll_interval, rest))
