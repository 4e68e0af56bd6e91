"""RunaOrderSensor: waits until orders are COMPLETED."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_runa.api.errors import RunaError, RunaNotFoundError
from airflow_provider_runa.api.models import OrderStatus
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaConnectionSettingsError, RunaHook
from airflow_provider_runa.sensors._waiting import NoUseWaiting
from airflow_provider_runa.triggers.runa import TIMED_OUT, UNREADABLE, RunaOrderTrigger, read_event

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaOrderSensor(BaseSensorOperator):
    """Waits until one or more orders are COMPLETED. A FAILED order fails the task at once, in every mode.

    With ``soft_fail=True`` the task is skipped if the orders are not done in time; a FAILED order is a failure all
    the same. Returns the ids of the orders.

    :param order_id: id of the order, or a list of ids, such as the ``output`` of the task that placed them, mapped or
        not. (templated)
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param runa_conn_id: id of the Airflow connection. (templated)
    :param poke_interval: seconds between two looks. Default: 30.
    :param timeout: seconds until the sensor gives up. Default: 3600.
    """

    template_fields: Sequence[str] = ("order_id", "runa_conn_id")
    ui_color = "#e8e3ff"

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

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the orders once.

        :param context: the task's context.
        """
        return PokeReturnValue(is_done=self._all_completed(), xcom_value=self._order_ids())

    def execute(self, context: Context) -> Any:
        """Wait in the chosen mode."""
        # Wrong input fails here: in ``poke``, ``soft_fail`` would make it a skip.
        self.order_id = self._order_ids()
        try:
            if not self.deferrable:
                return super().execute(context)
            if self._all_completed():
                return self._order_ids()
        except NoUseWaiting as error:
            raise AirflowFailException(str(error)) from None
        self.defer(
            trigger=RunaOrderTrigger(
                self._order_ids(),
                self.runa_conn_id,
                float(self.poke_interval),
                time.time() + float(self.timeout),
            ),
            method_name="execute_complete",
            timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
        )
        return None

    def execute_complete(self, context: Context, event: Any = None) -> list[str]:
        """Look at the orders again after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        """
        event = read_event(event)
        if event["status"] == UNREADABLE:
            raise RunaError(f"The orders could not be read: {event.get('reason')}. A retry looks again.")
        if self._all_completed():
            return self._order_ids()
        if event["status"] != TIMED_OUT:
            raise RunaError(f"The trigger saw all orders settled, Runa says otherwise now: {event['orders']}")
        message = f"Orders are still PROCESSING after {self.timeout:.0f} s; they go on at Runa: {event['orders']}"
        raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the trigger; a FAILED order is no case for ``soft_fail``."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except NoUseWaiting as error:
            raise AirflowFailException(str(error)) from None

    def _order_ids(self) -> list[str]:
        given = self.order_id
        ids = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
        if not ids or not all(map(_may_be_an_id, ids)):
            raise AirflowFailException(
                f"order_id: must be an order id or a list of them, not {ids or given!r}; "
                "did the task before push it, and is it passed on as its output?"
            )
        return ids

    def _all_completed(self) -> bool:
        hook = RunaHook(self.runa_conn_id)
        ids = self._order_ids()
        try:
            for order_id in [order_id for order_id in ids if order_id not in self._completed]:
                try:
                    status = hook.get_order(order_id).status
                except RunaNotFoundError:
                    raise NoUseWaiting(
                        f"Order {order_id} is unknown to the account of connection {self.runa_conn_id!r}. "
                        "Set the connection right, then clear the task."
                    ) from None
                if status == OrderStatus.FAILED:
                    raise NoUseWaiting(
                        f"Nobody was paid by order {order_id}: it ended FAILED at Runa, which gives no reason. "
                        "Clear the task that placed it: it places the order again, as a new one."
                    )
                if status == OrderStatus.COMPLETED:
                    self._completed.add(order_id)
        except RunaConnectionSettingsError as error:
            raise NoUseWaiting(str(error)) from None
        finally:
            hook.close()
        return self._completed.issuperset(ids)


def _may_be_an_id(given: Any) -> bool:
    """Tell an id from what a template leaves behind: the text of a list, or of a missing value."""
    return isinstance(given, str) and bool(re.fullmatch(r"[\w-]+", given)) and given.lower() not in ("none", "null")
