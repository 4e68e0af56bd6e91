"""RunaOrderTrigger: waits in the triggerer until orders are final. It sends only GET requests.

A trigger may run more than once, in two triggerers at a time or again after a restart, and its arguments and
events are stored and logged in clear. So it never sends an order, and it contains only ids, numbers and states.
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
#: ``execute`` again. With this pause or a longer one, the race was not seen.
MIN_PAUSE = 5.0

#: How many polls in a row Runa may reject before the trigger gives up. The account may not show an order yet that was
#: accepted a moment ago, and a person may be changing the connection.
TOLERATED_REJECTIONS = 5

#: The statuses of this trigger's events.
EVENT_STATUSES = (EventStatus.FINAL, EventStatus.TIMED_OUT, EventStatus.UNREADABLE)


class RunaOrderTrigger(BaseTrigger):
    """Fires once, when all orders are COMPLETED or FAILED, at the first FAILED one, or at the deadline.

    .. seealso:: :doc:`/authoring`

    All triggers of a connection in a triggerer share one client and one poll per interval (see ``_status_poller``).

    The event is ``{"status": "final" | "timed_out" | "unreadable", "orders": {order id: status}}``. The task that
    receives it reads the orders again. ``unreadable`` comes with a ``reason``: Runa rejects the request, which no
    waiting fixes. After any other error the trigger polls again until the deadline.

    :param order_ids: ids of the orders.
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``.
    :param poll_interval: seconds between two polls of an order, at least 5. Triggers of the same connection poll
        together, which may shorten it to half. Default: 30.
    :param deadline: when to give up, in seconds since the epoch. An order that is final by then is reported even if the
        triggerer was down when the deadline passed. Default: never.
    :param fail_fast: whether the first FAILED order ends the wait for the others. Default: ``True``.
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
        """Poll until the orders are final or the wait ends, then yield the event."""
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
                # After half of the pause, they may be read together with the orders of other triggers.
                states |= await poller.read(pending, after=max(soonest, pause / 2), within=pause)
                rejections = 0
            except UnreadableOrdersError as error:
                states |= error.statuses
                rejected = {order_id: one for order_id, one in error.errors.items() if isinstance(one, NON_RETRYABLE)}
                rejections = rejections + 1 if rejected else 0
                reason = str(UnreadableOrdersError({}, rejected or error.errors))
                log.warning("The orders could not be read. The trigger tries again: %s", reason)
            soonest = 0.0
            if (self.fail_fast and OrderStatus.FAILED in states.values()) or all(
                map(OrderStatus.is_final, states.values())
            ):
                return {"status": EventStatus.FINAL.value, "orders": states}
            if rejections >= TOLERATED_REJECTIONS:
                return {"status": EventStatus.UNREADABLE.value, "orders": states, "reason": reason}
            # After the read, so that an order that is final in time is never reported as late.
            if self.deadline is not None and time.time() >= self.deadline:
                return {"status": EventStatus.TIMED_OUT.value, "orders": states}

    def _pause(self) -> float:
        rest = float("inf") if self.deadline is None else self.deadline - time.time()
        return max(MIN_PAUSE, min(self.poll_interval, rest))
