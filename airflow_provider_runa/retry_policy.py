"""A retry policy for tasks that talk to Runa (Airflow 3.3 and later): fail fast, or wait as long as it makes sense.

The operators need none to be safe: what a retry cannot heal they raise as ``AirflowFailException``, which no Airflow
retries. The policy adds the right pause for each error, and does the same for functions that call ``RunaHook``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

try:
    from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryDecision, RetryRule
except ImportError:
    raise ImportError(
        "airflow_provider_runa.retry_policy needs Airflow 3.3 or later, which has retry policies. On older ones set "
        "retries=5, retry_delay=timedelta(minutes=2) and retry_exponential_backoff=True: what no retry can heal is not "
        "retried anyway."
    ) from None

from airflow_provider_runa.api.errors import RunaError, RunaIdempotencyInProgressError, RunaRateLimitError
from airflow_provider_runa.campaign.errors import BalanceTooLowError
from airflow_provider_runa.placement.errors import OrderHeldBackError, PlacementError
from airflow_provider_runa.placement.place import RECOVERABLE_REJECTIONS
from airflow_provider_runa.utils.failures import NON_RETRYABLE

#: What says how long to wait, also where another error tells of it.
_PAUSING = (RunaRateLimitError, *RECOVERABLE_REJECTIONS)


class _ByCause(ExceptionRetryPolicy):
    """Rules by the kind of an error, or of the answer that an error of ``placement`` or ``campaign`` tells of."""

    def evaluate(self, exception: BaseException, *arguments: Any, **options: Any) -> RetryDecision:
        """Decide as :class:`ExceptionRetryPolicy` does.

        :param exception: why the task failed.
        """
        cause = exception.cause if isinstance(exception, PlacementError) else None
        return super().evaluate(cause if isinstance(cause, _PAUSING) else exception, *arguments, **options)


def runa_retry_policy(
    *,
    unknown: timedelta = timedelta(minutes=2),
    rate_limit: timedelta = timedelta(minutes=5),
    top_up: timedelta = timedelta(minutes=30),
) -> ExceptionRetryPolicy:
    """Return a policy for the ``retry_policy`` of a task; how often it retries at most is its ``retries``.

    :param unknown: the pause after an outcome that is not known, or an order that is not done: what the next attempt
        takes up. Default: 2 minutes.
    :param rate_limit: the pause after a 429, also where that left an outcome unknown. Default: 5 minutes.
    :param top_up: the pause after what a person has to heal: a balance that is too low, or a restriction.
        Default: 30 minutes.
    """
    return _ByCause(
        [
            _rule(rate_limit, "Runa's rate limit: a pause, then the same request", RunaRateLimitError),
            _rule(top_up, "waits for a top-up", OrderHeldBackError, BalanceTooLowError, *RECOVERABLE_REJECTIONS),
            _rule(
                unknown, "the next attempt takes up what this one left", PlacementError, RunaIdempotencyInProgressError
            ),
            RetryRule(
                [*NON_RETRYABLE],
                RetryAction.FAIL,
                reason="no retry heals this: mend what the error names, then clear the task",
            ),
            _rule(unknown, "Runa gave no usable answer", RunaError),
        ]
    )


def _rule(pause: timedelta, reason: str, *errors: type[BaseException]) -> RetryRule:
    return RetryRule([*errors], RetryAction.RETRY, retry_delay=pause, reason=reason)
