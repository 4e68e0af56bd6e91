"""The events of this provider's triggers, and their validation by operators and sensors."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import Any


class EventStatus(StrEnum):
    """How a trigger ended. Events contain the plain text, because they are stored as JSON."""

    #: All orders are COMPLETED or FAILED, or one is FAILED and the trigger fails fast.
    FINAL = "final"
    #: The balance covers the amount.
    COVERED = "covered"
    #: The deadline passed.
    TIMED_OUT = "timed_out"
    #: Runa rejects the request, or gave no usable answer at the deadline.
    UNREADABLE = "unreadable"


def read_event(event: Any, *, allowed: Collection[str], needs: str) -> dict[str, Any]:
    """Return the event of a trigger after validation.

    :param event: the event that Airflow passes to ``execute_complete``.
    :param allowed: the allowed values of its ``status``.
    :param needs: the field that it must have.
    :raises ValueError: if the event is missing or unknown. A wait must never end by mistake.
    """
    if isinstance(event, dict) and event.get("status") in allowed and event.get(needs):
        return event
    kind = event.get("status") if isinstance(event, dict) else type(event).__name__
    raise ValueError(f"The trigger's event is missing or unknown ({kind!r}). Clear the task: it reads again.")
