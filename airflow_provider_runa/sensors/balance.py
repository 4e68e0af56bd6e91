"""RunaBalanceSensor: waits until the account's balance covers an amount or the cost of an order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException, conf

from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.sensors._waiting import WaitingSensor
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.balance import EVENT_STATUSES, RunaBalanceTrigger
from airflow_provider_runa.utils.arguments import read_amount, read_estimate
from airflow_provider_runa.utils.failures import READ_ONLY
from airflow_provider_runa.utils.masking import MaskRecipientsMixin

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaBalanceSensor(MaskRecipientsMixin, WaitingSensor):
    """Waits until the balance of a currency covers an amount, or the cost of an order with ``items``.

    .. seealso:: :doc:`/authoring`

    The sensor reserves nothing: another order may spend the balance afterwards. With ``soft_fail=True`` the task is
    skipped if the balance is too low at the timeout. Invalid input, a connection that cannot be used and a rejected
    request fail the task at once, in every mode. If the balance cannot be read, the sensor tries again, and the task
    fails if that is still so at the timeout. The sensor returns ``{"currency", "amount", "balance"}``, with amounts as
    decimal strings.

    :param currency: currency of the account balance, three capital letters. (templated)
    :param amount: the amount that the balance must cover. (templated)
    :param items: instead of ``amount``, up to 500 payouts in the form that
        :class:`~.operators.runa.RunaCreateOrderOperator` takes. Their cost is estimated once, or before each poll with
        ``mode="reschedule"``. Runa cannot estimate selection templates, and the playground has no estimates.
        (templated)
    :param deferrable: wait in the triggerer, where ``exponential_backoff`` and ``max_wait`` have no effect. Default:
        ``[operators] default_deferrable``.
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``. (templated)
    :param poke_interval: time between two polls, in seconds or as a ``timedelta``; with ``mode="reschedule"`` at least
        5 seconds. Default: 60 seconds.
    :param timeout: time until the sensor gives up, in seconds or as a ``timedelta``. Default: 1 day.
    """

    template_fields: Sequence[str] = ("currency", "amount", "items", "runa_conn_id")
    template_fields_renderers = {"items": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"
    subject = "The balance"
    outcome = READ_ONLY

    def __init__(
        self,
        *,
        currency: str,
        amount: Decimal | float | str | None = None,
        items: Sequence[Mapping[str, Any]] | str | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        runa_conn_id: str = DEFAULT_CONN_ID,
        poke_interval: float | timedelta = 60.0,
        timeout: float | timedelta = 86400.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        if (amount is None) == (items is None):
            raise ValueError("amount, items: set exactly one of them")
        self.currency = currency
        self.amount = amount
        self.items = items
        self.deferrable = deferrable
        self.runa_conn_id = runa_conn_id
        self._by_amount = amount is not None
        self._needed: Decimal | None = None

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, str]:
        """Return the result of the trigger's event, or raise its failure.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaBalanceTrigger`.
        """
        event = read_event(event, allowed=EVENT_STATUSES, needs="amount")
        if event["status"] == EventStatus.UNREADABLE:
            # Poll again: the balance may be readable by now, and only an error shows whether a retry makes sense.
            self._needed = read_amount("amount", event["amount"])
            found: dict[str, str] | None = self._poll()
            if found is None:
                raise self._unreadable(self._unread or event.get("reason"))
            return found
        if event["status"] == EventStatus.TIMED_OUT:
            message = (
                f"The balance is {event['balance']} {event['currency']} after {self.timeout:.0f} s, "
                f"less than {event['amount']}. Top up the balance, then clear the task."
            )
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        return {name: event[name] for name in ("currency", "amount", "balance")}

    def _fetch(self, hook: RunaHook) -> dict[str, str] | None:
        if self._needed is None:
            self._needed = self._read_needed(hook)
        balance = hook.get_balance(self.currency).balance
        self.log.info("The balance is %s %s; %s is needed.", balance, self.currency, self._needed)
        if balance < self._needed:
            return None
        return {"currency": self.currency, "amount": str(self._needed), "balance": str(balance)}

    def _read_needed(self, hook: RunaHook) -> Decimal:
        if self._by_amount:
            return read_amount("amount", self.amount)
        return hook.estimate_order(read_estimate(self.currency, self.items)).total_price

    def _trigger(self, deadline: float) -> RunaBalanceTrigger | None:
        if self._needed is None:  # the estimate failed, and the arguments of a trigger must not contain items
            return None
        return RunaBalanceTrigger(
            self.currency, str(self._needed), self.runa_conn_id, float(self.poke_interval), deadline=deadline
        )
