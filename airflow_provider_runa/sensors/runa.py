"""RunaOrderSensor: waits until orders are COMPLETED."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, conf

from airflow_provider_runa.api.errors import InvalidOrderError, RunaError, RunaNotFoundError
from airflow_provider_runa.api.models import OrderStatus
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.sensors._waiting import PermanentSensorFailure, WaitingSensor
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.runa import EVENT_STATUSES, RunaOrderTrigger

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaOrderSensor(WaitingSensor):
    """Waits until one or more orders are COMPLETED. A FAILED order fails the task at once, in every mode.

    So do wrong input, an order that the account does not know, a connection that cannot be used and what Runa refuses.
    Orders that cannot be read are looked at again, and fail the task if that is so when the time is over.

    With ``soft_fail=True`` the task is skipped if the orders are not done in time; all that is a failure all the
    same. Returns the ids of the orders.

    :param order_id: id of the order, or a list of ids, such as the ``output`` of the task that placed them, mapped or
        not. (templated)
    :param deferrable: wait in the triggerer, where ``exponential_backoff`` and ``max_wait`` have no effect. Default:
        ``[operators] default_deferrable``.
    :param runa_conn_id: id of the Airflow connection. (templated)
    :param poke_interval: seconds between two looks. Default: 30.
    :param timeout: seconds until the sensor gives up. Default: 3600.
    """

    template_fields: Sequence[str] = ("order_id", "runa_conn_id")
    ui_color = "#e8e3ff"
    subject = "The orders"
    outcome = "The orders go on at Runa, because this only asks"

    def __init__(
        self,
        *,
        order_id: str | Sequence[str],
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
        """Look at the orders again after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        """
        event = read_event(event, allowed=EVENT_STATUSES, needs="orders")
        found: list[str] | None = self._look()
        if found is not None:
            return found
        if self._unread is not None or event["status"] == EventStatus.UNREADABLE:
            raise self._unreadable(self._unread or event.get("reason"))
        if event["status"] != EventStatus.TIMED_OUT:
            raise RunaError(f"The trigger saw all orders settled, Runa says otherwise now: {event['orders']}")
        message = f"Orders are still PROCESSING after {self.timeout:.0f} s; they go on at Runa: {event['orders']}"
        raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)

    def _ask(self, hook: RunaHook) -> list[str] | None:
        ids = self.order_id = self._order_ids()
        for order_id in [order_id for order_id in ids if order_id not in self._completed]:
            try:
                status = hook.get_order(order_id).status
            except RunaNotFoundError:
                raise PermanentSensorFailure(
                    f"Order {order_id} is unknown to the account of connection {self.runa_conn_id!r}. "
                    "Set the connection right, then clear the task."
                ) from None
            if status == OrderStatus.FAILED:
                raise PermanentSensorFailure(
                    f"Nobody was paid by order {order_id}: it ended FAILED at Runa, which gives no reason. "
                    "Clear the task that placed it: it places the order again, as a new one."
                )
            if status == OrderStatus.COMPLETED:
                self._completed.add(order_id)
        return ids if self._completed.issuperset(ids) else None

    def _trigger(self, deadline: float) -> RunaOrderTrigger:
        return RunaOrderTrigger(self._order_ids(), self.runa_conn_id, float(self.poke_interval), deadline)

    def _order_ids(self) -> list[str]:
        value = self.order_id
        ids = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else []
        if not ids or not all(map(_may_be_an_id, ids)):
            raise InvalidOrderError(
                f"order_id: must be an order id or a list of them, not {ids or value!r}; see whether the task before "
                "pushes it, and whether it is passed on as its output"
            )
        return ids


def _may_be_an_id(given: Any) -> bool:
    """Tell an id from what a template leaves behind: the text of a list, or of a missing value."""
    return isinstance(given, str) and bool(re.fullmatch(r"[\w-]+", given)) and given.lower() not in ("none", "null")
