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
from airflow_provider_runa.asking import FINAL
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID
from airflow_provider_runa.triggers._watch import Watch, watch_orders

log = logging.getLogger(__name__)

#: The shortest pause before the first poll, and the shortest interval, in seconds. A trigger that fires within about
#: 2 s of the task's deferral can hit a race in Airflow's scheduler (measured on 3.3.2) which fails the task or runs
#: ``execute`` again; at this distance and more none was seen.
MIN_PAUSE = 5.0

#: Polls, one after the other, that Runa may refuse before the trigger gives up: the account may not show yet an order
#: that was accepted a moment ago, and a person may be changing the connection.
TOLERATED_REFUSALS = 5

#: What an event's ``status`` may be.
SETTLED, TIMED_OUT, UNREADABLE = "settled", "timed_out", "unreadable"

# Any other state, also one that Runa adds some day, may still change.
_FINAL = frozenset({OrderStatus.COMPLETED.value, OrderStatus.FAILED.value})


class RunaOrderTrigger(BaseTrigger):
    """Fires once: when all orders are COMPLETED or FAILED, at the first that is FAILED, or at the deadline.

    However many of them wait in a triggerer, they share one client and one poll per interval (see ``_watch``).

    The event is ``{"status": "settled" | "timed_out" | "unreadable", "orders": {order id: status}}``: whoever gets
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
        async with watch_orders(self.runa_conn_id) as watch:
            event = await self._wait(watch)
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _wait(self, watch: Watch) -> dict[str, Any]:
        states: dict[str, str] = dict.fromkeys(self.order_ids, OrderStatus.PROCESSING.value)
        refusals = 0
        soonest = MIN_PAUSE
        while True:
            pending = [order_id for order_id, state in states.items() if state not in _FINAL]
            pause = self._pause()
            reason = None
            try:
                # From half of the pause on it is read together with the orders of other triggers.
                states |= await watch.read(pending, after=max(soonest, pause / 2), within=pause)
                refusals = 0
            except UnreadableOrdersError as error:
                states |= error.statuses
                final = {order_id: one for order_id, one in error.errors.items() if isinstance(one, FINAL)}
                refusals = refusals + 1 if final else 0
                reason = str(UnreadableOrdersError({}, final or error.errors))
                log.warning("The orders could not be read, which is tried again: %s", reason)
            soonest = 0.0
            if (self.fail_fast and OrderStatus.FAILED in states.values()) or _FINAL.issuperset(states.values()):
                return {"status": SETTLED, "orders": states}
            if refusals >= TOLERATED_REFUSALS:
                return {"status": UNREADABLE, "orders": states, "reason": reason}
            # The status was read before this line, so an order that settled in time is never called late.
            if self.deadline is not None and time.time() >= self.deadline:
                return {"status": TIMED_OUT, "orders": states}

    def _pause(self) -> float:
        rest = float("inf") if self.deadline is None else self.deadline - time.time()
        return max(MIN_PAUSE, min(self.poll_interval, rest))


def read_event(
    event: Any, *, statuses: Sequence[str] = (SETTLED, TIMED_OUT, UNREADABLE), needs: str = "orders"
) -> dict[str, Any]:
    """Return the event of a trigger, checked.

    :param event: what Airflow handed to ``execute_complete``.
    :param statuses: what its ``status`` may be. Default: those of a :class:`RunaOrderTrigger`.
    :param needs: what it must not be without. Default: ``orders``, which is a :class:`RunaOrderTrigger`'s.
    :raises ValueError: if it is missing or not one of its events: waiting must never end by mistake.
    """
    if isinstance(event, dict) and event.get("status") in statuses and event.get(needs):
        return event
    kind = event.get("status") if isinstance(event, dict) else type(event).__name__
    raise ValueError(f"The trigger's event is missing or unknown ({kind!r}). Clear the task: it looks again.")
