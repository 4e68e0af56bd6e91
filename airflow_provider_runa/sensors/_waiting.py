"""What ends the waiting of a sensor for good."""

from __future__ import annotations


class NoUseWaiting(BaseException):
    """No later look changes that: an order is FAILED or unknown to the account, or the connection cannot be used.

    Not an Exception, because ``soft_fail``, ``never_fail`` and ``silent_fail`` turn those into skips or into nothing,
    in some modes and not in others.
    """
