"""Maps the errors of this provider to Airflow's exceptions, so that errors which no retry can fix are not retried."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api.errors import InvalidOrderError, RunaConfigurationError, RunaError, RunaRequestError
from airflow_provider_runa.placement.errors import PlacementError

#: Errors that no retry and no waiting fixes: wrong input, a connection that cannot be used, a request Runa rejects.
NON_RETRYABLE = (InvalidOrderError, RunaConfigurationError, RunaRequestError)

#: What happened to the money when a task only reads.
READ_ONLY = "Nobody was paid, because this task only reads"


def to_airflow_exception(error: RunaError, *, outcome: str = "Nothing was sent in this attempt") -> Exception:
    """Return the exception that a task should raise for an error.

    :param error: the error.
    :param outcome: what happened to the money, for errors that do not say it.
    :returns: ``AirflowFailException`` if no retry can help, so that Airflow does not retry; otherwise ``error``. Both
        without a traceback, whose frames may have recipients in local variables.
    """
    error = error.with_traceback(None)
    if isinstance(error, PlacementError):
        return error if error.retryable else AirflowFailException(str(error))
    if isinstance(error, NON_RETRYABLE):
        reason = str(error).rstrip(".")
        return AirflowFailException(
            f"{outcome}: {reason}.\nThe task fails without further retries.\nFix that, then clear the task."
        )
    return error
