"""RunaBalanceSensor: waits until the account's balance covers what is going to be paid."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
    conf,
)

from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.asking import FINAL, refused
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.rendered import RecipientsHidden, read_amount, read_estimate
from airflow_provider_runa.sensors._waiting import NoUseWaiting
from airflow_provider_runa.triggers.balance import STATUSES, RunaBalanceTrigger
from airflow_provider_runa.triggers.runa import TIMED_OUT, UNREADABLE, read_event

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaBalanceSensor(RecipientsHidden, BaseSensorOperator):
    """Waits until the balance of a currency covers an amount, or what an order of ``items`` would cost.

    It reserves nothing: another order may spend the balance in between. With ``soft_fail=True`` the task is skipped
    if the balance does not cover it in time; wrong input, a connection that cannot be used and a Runa that cannot be
    read are failures all the same. Returns ``{"currency", "amount", "balance"}``, amounts as decimal strings.

    :param currency: currency of the account balance, three capital letters. (templated)
    :param amount: what the balance has to cover. (templated)
    :param items: instead of ``amount``: up to 500 payouts, as :class:`~.operators.runa.RunaCreateOrderOperator` takes
        them; Runa is asked what they would cost. Not for selection templates, and not in the playground. (templated)
    :param deferrable: wait in the triggerer. Default: ``[operators] default_deferrable``.
    :param runa_conn_id: id of the Airflow connection. (templated)
    :param poke_interval: seconds between two looks. Default: 60.
    :param timeout: seconds until the sensor gives up. Default: 86400, a day to top up the balance.
    """

    template_fields: Sequence[str] = ("currency", "amount", "items", "runa_conn_id")
    template_fields_renderers = {"items": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"

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
        self._needed = Decimal(0)
        self._unread: RunaError | None = None

    def execute(self, context: Context) -> Any:
        """Wait in the chosen mode."""
        try:
            # Wrong input fails here: in ``poke``, ``soft_fail`` would make it a skip.
            self._needed = self._read_needed()
            if not self.deferrable:
                return super().execute(context)
            if (found := self._look()) is not None:
                return found
        except NoUseWaiting as error:
            raise AirflowFailException(str(error)) from None
        except FINAL as error:
            raise refused(error) from None
        except (AirflowSensorTimeout, AirflowSkipException):
            if self._unread is not None:
                raise _unreadable(self._unread) from None
            raise
        self.defer(
            trigger=RunaBalanceTrigger(
                self.currency,
                str(self._needed),
                self.runa_conn_id,
                float(self.poke_interval),
                time.time() + float(self.timeout),
            ),
            method_name="execute_complete",
            timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
        )
        return None

    def poke(self, context: Context) -> PokeReturnValue:
        """Look at the balance once.

        :param context: the task's context.
        """
        found = self._look()
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, str]:
        """Take up the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaBalanceTrigger`.
        """
        event = read_event(event, statuses=STATUSES, needs="amount")
        if event["status"] == UNREADABLE:
            raise _unreadable(event.get("reason"))
        if event["status"] == TIMED_OUT:
            message = (
                f"The balance is {event['balance']} {event['currency']} after {self.timeout:.0f} s, "
                f"less than {event['amount']}. Top it up, then clear the task."
            )
            raise AirflowSkipException(message) if self.soft_fail else AirflowSensorTimeout(message)
        return {name: event[name] for name in ("currency", "amount", "balance")}

    def _read_needed(self) -> Decimal:
        if self._by_amount:
            return read_amount("amount", self.amount)
        request = read_estimate(self.currency, self.items)
        with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
            return hook.estimate_order(request).total_price

    def _look(self) -> dict[str, str] | None:
        """Return the balance if it covers what is needed; ``None`` if not, or if it cannot be read now."""
        try:
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                balance = hook.get_balance(self.currency).balance
        except FINAL as error:
            raise NoUseWaiting(str(refused(error))) from None
        except RunaError as error:
            self.log.warning("The balance could not be read: %s", error)
            self._unread = error
            return None
        self._unread = None
        self.log.info("The balance is %s %s; %s is needed.", balance, self.currency, self._needed)
        if balance < self._needed:
            return None
        return {"currency": self.currency, "amount": str(self._needed), "balance": str(balance)}


def _unreadable(reason: Any) -> RunaError:
    return RunaError(f"The balance could not be read: {reason}. Nobody was paid; a retry looks again.")
