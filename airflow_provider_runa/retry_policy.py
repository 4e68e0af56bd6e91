"""A retry policy for tasks that call Runa (Airflow 3.3 and later): fail at once, or pause as long as the error needs.

The operators are safe without it: they raise ``AirflowFailException`` if no retry can help, and no release of Airflow
retries that. The policy adds a pause for each kind of error, also for functions that call ``RunaHook``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

try:
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryDecision, RetryRule
except ImportError:
    raise ImportError(
        "airflow_provider_runa.retry_policy needs Airflow 3.3 or later, which has retry policies. On older ones set "
        "retries=5, retry_delay=timedelta(minutes=2) and retry_exponential_backoff=True: errors that no retry can fix "
        "are not retried anyway."
    ) from None

from airflow_provider_runa.api.errors import RunaError, RunaIdempotencyInProgressError, RunaRateLimitError
from airflow_provider_runa.campaign.errors import BalanceTooLowError
from airflow_provider_runa.placement.errors import OrderHeldBackError, PlacementError
from airflow_provider_runa.placement.place import RECOVERABLE_REJECTIONS
from airflow_provider_runa.utils.failures import NON_RETRYABLE

#: Answers of Runa that determine the pause, also as the cause of another error.
_PAUSING = (RunaRateLimitError, *RECOVERABLE_REJECTIONS)


class _ByCause(ExceptionRetryPolicy):
    """Rules by the class of an error, or of the answer that caused an error of ``placement`` or ``campaign``."""

    def evaluate(self, exception: BaseException, *arguments: Any, **options: Any) -> RetryDecision:
        """Return the decision of :class:`ExceptionRetryPolicy` for the error or its cause.

        :param exception: the error that the task failed with.
        """
        cause = exception.cause if isinstance(exception, PlacementError) else None
        return super().evaluate(cause if isinstance(cause, _PAUSING) else exception, *arguments, **options)


def runa_retry_policy(
    *,
    unknown: timedelta = timedelta(minutes=2),
    rate_limit: timedelta = timedelta(minutes=5),
    top_up: timedelta = timedelta(minutes=30),
) -> ExceptionRetryPolicy:
    """Return a policy for the ``retry_policy`` of a task. The task's ``retries`` limit how often it is retried.

    :param unknown: the pause after an unknown outcome, or while an order is still PROCESSING. The next attempt
        continues with the same order. Default: 2 minutes.
    :param rate_limit: the pause after a 429, also if it left an outcome unknown. Default: 5 minutes.
    :param top_up: the pause after an error that a person has to fix: a balance that is too low, or a restriction.
        Default: 30 minutes.
    """
    return _ByCause(
        [
            _rule(rate_limit, "Runa's rate limit: wait, then send the same request", RunaRateLimitError),
            _rule(top_up, "wait for a top-up", OrderHeldBackError, BalanceTooLowError, *RECOVERABLE_REJECTIONS),
            _rule(
                unknown,
                "the next attempt continues with the same order",
                PlacementError,
                RunaIdempotencyInProgressError,
            ),
            RetryRule(
                [*NON_RETRYABLE],
                RetryAction.FAIL,
                reason="no retry fixes this: fix what the error names, then clear the task",
            ),
            _rule(unknown, "Runa gave no usable answer", RunaError),
        ]
    )


def _rule(pause: timedelta, reason: str, *errors: type[BaseException]) -> RetryRule:
    return RetryRule([*errors], RetryAction.RETRY, retry_delay=pause, reason=reason)
