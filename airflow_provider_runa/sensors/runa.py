"""RunaOrderSensor: waits until orders are COMPLETED."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, conf

from airflow_provider_runa.api.errors import InvalidOrderError, RunaError, RunaNotFoundError
from airflow_provider_runa.api.models import Order, OrderStatus
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.placement.errors import OrderMismatchError
from airflow_provider_runa.placement.payment import unpaid
from airflow_provider_runa.sensors._waiting import PermanentSensorFailure, WaitingSensor
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.runa import EVENT_STATUSES, RunaOrderTrigger
from airflow_provider_runa.utils.masking import excerpt

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Pauses before a COMPLETED order without items is read again, in seconds.
_PAUSES_BEFORE_MISMATCH = (0.0, 2.0, 5.0)


class RunaOrderSensor(WaitingSensor):
    """Waits until one or more orders are COMPLETED.

    .. seealso:: :doc:`/authoring`

    A FAILED order, a COMPLETED order without items or with a cancelled payout, an order that the account does not have,
    invalid input, a connection that cannot be used and a rejected request fail the task at once, in every mode. If
    orders cannot be read, the sensor tries again, and the task fails if that is still so at the timeout. With
    ``soft_fail=True`` the task is skipped if the orders are still PROCESSING at the timeout; all other failures still
    fail the task. The sensor returns the ids of the orders.

    :param order_id: id of the order, or a list of ids, such as the ``output`` of the task that placed them, mapped or
        not. A list may contain several of those; the ``None`` of a task that was skipped is left out, as long as an id
        remains. (templated)
    :param deferrable: wait in the triggerer, where ``exponential_backoff`` and ``max_wait`` have no effect. Default:
        ``[operators] default_deferrable``.
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``. (templated)
    :param poke_interval: time between two polls, in seconds or as a ``timedelta``; with ``mode="reschedule"`` at least
        5 seconds. Default: 30 seconds.
    :param timeout: time until the sensor gives up, in seconds or as a ``timedelta``. Default: 1 hour.
    """

    template_fields: Sequence[str] = ("order_id", "runa_conn_id")
    ui_color = "#e8e3ff"
    subject = "The orders"
    outcome = "The orders continue at Runa, because this task only reads"

    def __init__(
        self,
        *,
        order_id: str | Sequence[Any],
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        runa_conn_id: str = DEFAULT_CONN_ID,
        poke_interval: float | timedelta = 30.0,
        timeout: float | timedelta = 3600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.order_id = order_id
        self.deferrable = deferrable
        self.runa_conn_id = runa_conn_id
        self._completed: set[str] = set()

    def execute_complete(self, context: Context, event: Any = None) -> list[str]:
        """Poll the orders again after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        """
        event = read_event(event, allowed=EVENT_STATUSES, needs="orders")
        found: list[str] | None = self._poll()
        if found is not None:
            return found
        if self._unread is not None or event["status"] == EventStatus.UNREADABLE:
            raise self._unreadable(self._unread or event.get("reason"))
        if event["status"] != EventStatus.TIMED_OUT:
            raise RunaError(f"The trigger read that all orders are final, but some are not: {event['orders']}")
        message = f"Orders are still PROCESSING after {self.timeout:.0f} s. They continue at Runa: {event['orders']}"
        raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)

    def _fetch(self, hook: RunaHook) -> list[str] | None:
        ids = self.order_id = self._order_ids()
        waiting = [order_id for order_id in ids if order_id not in self._completed]
        more = f" and {len(waiting) - 5} more" if len(waiting) > 5 else ""
        self.log.info("Reading %d of %d order(s): %s%s.", len(waiting), len(ids), ", ".join(waiting[:5]), more)
        for order_id in waiting:
            try:
                order = hook.get_order(order_id)
            except RunaNotFoundError:
                raise PermanentSensorFailure(
                    f"The Runa account of connection {self.runa_conn_id!r} does not have order {order_id}.\n"
                    "The task fails without further retries.\n"
                    "Correct the connection, then clear the task."
                ) from None
            if order.status == OrderStatus.FAILED:
                raise PermanentSensorFailure(
                    f"Nobody was paid: order {order_id} ended FAILED. Runa gives no reason.\n"
                    "The task fails without further retries.\n"
                    "Clear the task that placed the order: it places the order again, as a new order."
                )
            if order.status == OrderStatus.COMPLETED:
                _check_paid(hook, order)
                self._completed.add(order_id)
                self.log.info("Order %s is COMPLETED.", order_id)
        return ids if self._completed.issuperset(ids) else None

    def _trigger(self, deadline: float) -> RunaOrderTrigger:
        return RunaOrderTrigger(self._order_ids(), self.runa_conn_id, float(self.poke_interval), deadline)

    def _order_ids(self) -> list[str]:
        value = self.order_id
        ids = list(_flatten(value))
        if not ids or not all(map(_may_be_an_id, ids)):
            wrong = excerpt(value if isinstance(value, str) else ids or value)
            raise InvalidOrderError(
                f"order_id: must be an order id or a list of order ids, not {wrong}; check that the "
                "upstream task pushes it and that it is passed as the task's output"
            )
        return ids


def _check_paid(hook: RunaHook, order: Order) -> None:
    """Raise a failure if a COMPLETED order shows no items, or payouts that are cancelled."""
    for pause in _PAUSES_BEFORE_MISMATCH:
        if order.items:
            break
        time.sleep(pause)  # Runa may show the items late
        order = hook.get_order(order.id)
    if problems := unpaid(order):
        raise PermanentSensorFailure(str(OrderMismatchError(order_id=order.id, problems="; ".join(problems))))


def _flatten(given: Any) -> Iterator[Any]:
    """Yield the ids of what upstream tasks pushed: a mapped one pushes several, a skipped one ``None``."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        for inner in given:
            yield from _flatten(inner)
    elif given is not None:
        yield given


def _may_be_an_id(given: Any) -> bool:
    """Return whether a value looks like an order id, and not like the text of a list or of a missing value."""
    return isinstance(given, str) and bool(re.fullmatch(r"[\w-]+", given)) and given.lower() not in ("none", "null")
