"""RunaBalanceSensor: waits until the account's balance covers what is going to be paid."""

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
from airflow_provider_runa.utils.masking import MaskRecipientsMixin

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaBalanceSensor(MaskRecipientsMixin, WaitingSensor):
    """Waits until the balance of a currency covers an amount, or what an order of ``items`` would cost.

    It reserves nothing: another order may spend the balance in between. With ``soft_fail=True`` the task is skipped
    if the balance does not cover it in time. Wrong input, a connection that cannot be used and what Runa refuses fail
    it at once, in every mode; a balance that cannot be read is looked at again, and fails the task if that is so when
    the time is over. Returns ``{"currency", "amount", "balance"}``, amounts as decimal strings.

    :param currency: currency of the account balance, three capital letters. (templated)
    :param amount: what the balance has to cover. (templated)
    :param items: instead of ``amount``: up to 500 payouts, as :class:`~.operators.runa.RunaCreateOrderOperator` takes
        them; Runa is asked what they would cost, once; with ``mode="reschedule"`` before each look. Not for selection
        templates, and not in the playground. (templated)
    :param deferrable: wait in the triggerer, where ``exponential_backoff`` and ``max_wait`` have no effect. Default:
        ``[operators] default_deferrable``.
    :param runa_conn_id: id of the Airflow connection. (templated)
    :param poke_interval: seconds between two looks. Default: 60.
    :param timeout: seconds until the sensor gives up. Default: 86400, a day to top up the balance.
    """

    template_fields: Sequence[str] = ("currency", "amount", "items", "runa_conn_id")
    template_fields_renderers = {"items": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"
    subject = "The balance"
    outcome = "Nobody was paid, because this only asks"

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
            raise ValueError("amount, items: give one of them")
        self.currency = currency
        self.amount = amount
        self.items = items
        self.deferrable = deferrable
        self.runa_conn_id = runa_conn_id
        self._by_amount = amount is not None
        self._needed: Decimal | None = None

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, str]:
        """Take up the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaBalanceTrigger`.
        """
        event = read_event(event, allowed=EVENT_STATUSES, needs="amount")
        if event["status"] == EventStatus.UNREADABLE:
            # It may be readable by now; and whether a retry makes sense is for a look to say, not for the event.
            self._needed = read_amount("amount", event["amount"])
            found: dict[str, str] | None = self._look()
            if found is None:
                raise self._unreadable(self._unread or event.get("reason"))
            return found
        if event["status"] == EventStatus.TIMED_OUT:
            message = (
                f"The balance is {event['balance']} {event['currency']} after {self.timeout:.0f} s, "
                f"less than {event['amount']}. Top it up, then clear the task."
            )
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        return {name: event[name] for name in ("currency", "amount", "balance")}

    def _ask(self, hook: RunaHook) -> dict[str, str] | None:
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
        if self._needed is None:  # what items cost could not be asked, and items are not for a trigger's row
            return None
        return RunaBalanceTrigger(
            self.currency, str(self._needed), self.runa_conn_id, float(self.poke_interval), deadline=deadline
        )
