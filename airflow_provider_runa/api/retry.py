"""When to retry a request and how long to wait before: one rule for the clients and for ``placement``."""

from __future__ import annotations

import random

from airflow_provider_runa.api.errors import (
    RunaConnectionError,
    RunaError,
    RunaIdempotencyInProgressError,
    RunaRateLimitError,
    RunaServerError,
)

#: The longest pause between two requests, in seconds.
LONGEST_PAUSE = 30.0

#: The shortest pause after a 429, in seconds. Runa does not promise a ``Retry-After``; its guide asks for 5 s or more.
RATE_LIMIT_PAUSE = 5.0


def is_outcome_unknown(error: BaseException) -> bool:
    """Return whether an error leaves open what Runa did.

    After such an error only the same request under the same key may be sent.

    :param error: the error of the last request.
    """
    return isinstance(
        error, RunaConnectionError | RunaRateLimitError | RunaServerError | RunaIdempotencyInProgressError
    )


def pause_before_retry(attempt: int, error: RunaError, rng: random.Random) -> float:
    """Return how many seconds to wait before a retry: exponential with jitter, longer after a 429.

    :param attempt: how many requests were sent so far, from 1.
    :param error: the error of the last request.
    :param rng: randomness of the jitter.
    """
    ceiling = min(LONGEST_PAUSE, 2.0 ** min(attempt - 1, 10))
    if isinstance(error, RunaRateLimitError):
        return min(LONGEST_PAUSE, RATE_LIMIT_PAUSE * attempt) + rng.uniform(0, ceiling)
    return rng.uniform(ceiling / 2, ceiling)
