"""The base class of the sensors: one rule for the modes poke, reschedule and deferrable.

An error that waiting cannot fix fails the task at once. After any other error the sensor polls again until the timeout.
"""

from __future__ import annotations

import contextlib
import inspect
import time
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    PokeReturnValue,
)

from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.triggers.runa import MIN_PAUSE
from airflow_provider_runa.utils.failures import NON_RETRYABLE, to_airflow_exception
from airflow_provider_runa.utils.masking import printable

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger


class PermanentSensorFailure(BaseException):
    """Waiting cannot change the result: an order FAILED, the account does not have it, or Runa rejects the request.

    It is not an ``Exception``, because ``soft_fail``, ``never_fail`` and ``silent_fail`` turn exceptions into skips or
    ignore them, in some modes and not in others.
    """


class WaitingSensor(BaseSensorOperator):
    """A sensor that polls Runa until there is a result."""

    #: What it reads, and what happens to the money in the meantime, for messages.
    subject: ClassVar[str]
    outcome: ClassVar[str]

    deferrable: bool
    runa_conn_id: str

    #: Why the last poll failed.
    _unread: RunaError | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.reschedule:  # Airflow's scheduler may meet the same race as with a trigger that fires too soon
            self.poke_interval = max(self.poke_interval, MIN_PAUSE)

    def execute(self, context: Context) -> Any:
        """Wait in the chosen mode."""
        # Without its wrapper, which on Airflow 2.11 takes the call of a base class for that of a nested operator.
        wait = inspect.unwrap(BaseSensorOperator.execute)
        try:
            return self._defer() if self.deferrable else wait(self, context)
        except PermanentSensorFailure as error:
            raise AirflowFailException(str(error)) from None
        except (AirflowSensorTimeout, AirflowSkipException):
            if self._unread is not None:
                raise self._unreadable(self._unread) from None
            raise

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume after the trigger."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except PermanentSensorFailure as error:
            raise AirflowFailException(str(error)) from None

    def poke(self, context: Context) -> PokeReturnValue:
        """Poll once.

        :param context: the task's context.
        """
        found = self._poll()
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def _fetch(self, hook: RunaHook) -> Any:
        """Read from Runa once: return the result of the task, ``None`` if there is none yet."""
        raise NotImplementedError

    def _trigger(self, deadline: float) -> BaseTrigger | None:
        """Return the trigger, ``None`` if it cannot be created yet."""
        raise NotImplementedError

    def _poll(self) -> Any:
        """Return the result of the task, ``None`` if there is none yet or if it cannot be read now."""
        try:
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                found = self._fetch(hook)
        except NON_RETRYABLE as error:
            raise PermanentSensorFailure(str(to_airflow_exception(error, outcome=self.outcome))) from None
        except RunaError as error:
            self.log.warning(
                "%s could not be read. The sensor tries again until the timeout: %s",
                self.subject,
                printable(str(error)),
            )
            self._unread = error
            return None
        self._unread = None
        return found

    def _defer(self) -> Any:
        deadline = time.time() + float(self.timeout)
        while (found := self._poll()) is None:
            if trigger := self._trigger(deadline):
                self.defer(
                    trigger=trigger,
                    method_name="execute_complete",
                    timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
                )
            if time.time() >= deadline:
                raise AirflowSensorTimeout(f"After {self.timeout:.0f} s it is still unknown what to wait for.")
            time.sleep(float(self.poke_interval))
        return found

    def _unreadable(self, reason: Any) -> RunaError:
        text = printable(str(reason).rstrip("."))
        return RunaError(
            f"{self.subject} could not be read: {text}. {self.outcome}.\n"
            "The next retry reads again.\n"
            "If no retry is left, clear the task."
        )
