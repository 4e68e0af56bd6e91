"""How the sensors wait, in three modes with one rule: what no waiting heals fails the task at once, and anything else
is "not yet" until the timeout.
"""

from __future__ import annotations

import contextlib
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
from airflow_provider_runa.utils.failures import NON_RETRYABLE, to_airflow_exception

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger


class PermanentSensorFailure(BaseException):
    """No later look changes that: an order is FAILED or unknown to the account, or Runa refuses to tell.

    Not an Exception, because ``soft_fail``, ``never_fail`` and ``silent_fail`` turn those into skips or into nothing,
    in some modes and not in others.
    """


class WaitingSensor(BaseSensorOperator):
    """A sensor that looks at something of Runa's until it is there."""

    #: What it looks at, and what becomes of the money meanwhile, for messages.
    subject: ClassVar[str]
    outcome: ClassVar[str]

    deferrable: bool
    runa_conn_id: str

    #: Why the last look told nothing.
    _unread: RunaError | None = None

    def execute(self, context: Context) -> Any:
        """Wait in the chosen mode."""
        try:
            return self._defer() if self.deferrable else super().execute(context)
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
        """Look once.

        :param context: the task's context.
        """
        found = self._look()
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def _ask(self, hook: RunaHook) -> Any:
        """Ask Runa once: return the result of the task, ``None`` if it is not there yet."""
        raise NotImplementedError

    def _trigger(self, deadline: float) -> BaseTrigger | None:
        """Return what waits in the triggerer, ``None`` if it is not known yet what for."""
        raise NotImplementedError

    def _look(self) -> Any:
        """Return the result of the task, ``None`` if it is not there yet or cannot be read now."""
        try:
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                found = self._ask(hook)
        except NON_RETRYABLE as error:
            raise PermanentSensorFailure(str(to_airflow_exception(error, outcome=self.outcome))) from None
        except RunaError as error:
            self.log.warning("%s could not be read, which is tried again until the timeout: %s", self.subject, error)
            self._unread = error
            return None
        self._unread = None
        return found

    def _defer(self) -> Any:
        deadline = time.time() + float(self.timeout)
        while (found := self._look()) is None:
            if trigger := self._trigger(deadline):
                self.defer(
                    trigger=trigger,
                    method_name="execute_complete",
                    timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
                )
            if time.time() >= deadline:
                raise AirflowSensorTimeout(f"Not known after {self.timeout:.0f} s what to wait for.")
            time.sleep(float(self.poke_interval))
        return found

    def _unreadable(self, reason: Any) -> RunaError:
        found = str(reason).rstrip(".")
        return RunaError(f"{self.subject} could not be read: {found}. {self.outcome}; a retry looks again.")
