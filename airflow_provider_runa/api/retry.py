"""When to ask again, and how long to wait before: one rule for the clients and for ``placement``."""

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

#: The shortest pause after a 429, in seconds (Runa promises no ``Retry-After``; its guide asks for 5 s and more).
RATE_LIMIT_PAUSE = 5.0


def is_outcome_unknown(error: BaseException) -> bool:
    """Whether an error leaves open what Runa did, so that only the same request under the same key may follow."""
    return isinstance(
        error, RunaConnectionError | RunaRateLimitError | RunaServerError | RunaIdempotencyInProgressError
    )


def pause_before_retry(attempt: int, error: RunaError, rng: random.Random) -> float:
    """Return how many seconds to wait before asking again: exponential with jitter, longer after a 429.

    :param attempt: how often it was asked already, from 1.
    :param error: what came of the last time.
    :param rng: randomness of the jitter.
    """
    ceiling = min(LONGEST_PAUSE, 2.0 ** min(attempt - 1, 10))
    if isinstance(error, RunaRateLimitError):
        return min(LONGEST_PAUSE, RATE_LIMIT_PAUSE * attempt) + rng.uniform(0, ceiling)
    return rng.uniform(ceiling / 2, ceiling)
