"""Parses rendered arguments, from templates and XComs: JSON text, items, amounts, durations, dates and times."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.api.models import EstimateRequest
from airflow_provider_runa.utils.masking import Masked, excerpt

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: The default of a limit or check that the author did not set. Not ``None``, which in a mapped task may be a missing
#: value.
NOTSET: Any = object()

_AMOUNT = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{1,2})?")


def unset_to_none(value: Any) -> Any:
    """Return a value, ``None`` in place of :data:`NOTSET`."""
    return None if value is NOTSET else value


def check_own_task(operator: Any, context: Context, *, or_else: str = "") -> None:
    """Check that an operator runs as the task that it is, and not inside another task.

    A function of TaskFlow may create operators and call their ``execute``. What they derive from the task instance
    would be the same for all of them, so that the second one would count as done when the first one is.

    :param operator: the operator.
    :param context: the context of the task that runs.
    :param or_else: what else helps, besides a task for each operator.
    :raises InvalidOrderError: if it runs inside another task.
    """
    running = context["ti"].task_id
    if operator.task_id != running:
        raise InvalidOrderError(
            f"task_id: {operator.task_id} runs inside task {running}, and would share its identity with every other "
            f"operator in there; make each of them a task{f', or {or_else}' if or_else else ''}"
        )


def read_json(name: str, value: Any) -> Any:
    """Return a rendered value: text parsed as JSON, any other type unchanged.

    :param name: name of the parameter, for the error message.
    :param value: the rendered value.
    :raises InvalidOrderError: if it is text that is not JSON.
    """
    value = value.value if isinstance(value, Masked) else value
    if callable(value) or (isinstance(value, str) and value.startswith("<built-in method")):
        raise InvalidOrderError(
            f"{name}: is a method of a dict; in a template, write params['items'], not params.items"
        )
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_float=Decimal)
    except (ValueError, RecursionError):
        del value  # a traceback may show local variables
        raise InvalidOrderError(
            f"{name}: rendered to text that is not JSON; end the template with '| tojson', "
            "or set render_template_as_native_obj=True on the DAG"
        ) from None


def read_items(items: Any) -> Sequence[Mapping[str, Any]]:
    """Return items as a list.

    :param items: a list, or the JSON text of a list.
    :raises InvalidOrderError: if it is neither.
    """
    items = read_json("items", items)
    if hasattr(items, "columns"):
        raise InvalidOrderError("items: must be a list, not a data frame; convert it, as in frame.to_dict('records')")
    if not isinstance(items, list | tuple):
        # An iterator or a set has no order that the next attempt could repeat.
        raise InvalidOrderError(f"items: must be a list, not {type(items).__name__}")
    return items


def read_amount(name: str, value: Any) -> Decimal:
    """Return an amount as a ``Decimal``.

    :param name: name of the parameter, for the error message.
    :param value: a number, or its text in ASCII digits, with at most two decimals: ``1.000`` is a thousand to some.
    :raises InvalidOrderError: if it is neither, or missing.
    """
    amount = Decimal("NaN")
    if not isinstance(value, str) or _AMOUNT.fullmatch(value.strip()):
        with contextlib.suppress(InvalidOperation, ValueError):  # ValueError: an integer of too many digits
            amount = Decimal(str(value))
    if isinstance(value, str) and "," in value and _AMOUNT.fullmatch(value.replace(",", "").strip()):
        raise InvalidOrderError(f"{name}: must be written without commas, such as 1234.50")
    if not amount.is_finite():
        raise InvalidOrderError(f"{name}: must be an amount, not {excerpt(value)}")
    return amount


def read_estimate(currency: str, items: Any) -> EstimateRequest:
    """Return the request for an estimate of items, without their recipients.

    :param currency: currency of the balance that would pay.
    :param items: the items of an order: a list, or the JSON text of a list.
    :raises InvalidOrderError: if they cannot be estimated.
    """
    return EstimateRequest.build(
        currency=currency,
        items=[
            {name: value for name, value in item.items() if name != "distribution_method"}
            if isinstance(item, Mapping)
            else item
            for item in read_items(items)
        ],
    )


def read_days(name: str, value: Any) -> timedelta:
    """Return a period that is given in days.

    :param name: name of the parameter, for the error.
    :param value: a ``timedelta``, or a number of days.
    :raises InvalidOrderError: if it is neither, or negative.
    """
    try:
        period = value if isinstance(value, timedelta) else timedelta(days=float(value))
    except (TypeError, ValueError, OverflowError):
        period = timedelta(-1)
    if period < timedelta(0):
        raise InvalidOrderError(f"{name}: must be a timedelta or a number of days, not {excerpt(value)}")
    return period


def to_seconds(name: str, value: float | timedelta) -> float:
    """Return a duration in seconds.

    :param name: name of the parameter, for the error message.
    :param value: a number of seconds, or a ``timedelta``.
    :raises ValueError: if it is not above zero.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < float("inf"):
        raise ValueError(f"{name}: must be a timedelta or a number of seconds above zero, not {excerpt(value)}")
    return float(seconds)


def parse_datetime(name: str, value: datetime | str | None) -> datetime | None:
    """Return a date or a time as a ``datetime`` with a time zone.

    :param name: name of the parameter, for the error message.
    :param value: a ``datetime``, or text in ISO 8601; without a zone it is UTC.
    :raises InvalidOrderError: if it is neither.
    """
    if value is None:
        return None
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except ValueError:
        raise InvalidOrderError(
            f"{name}: must be a date or a time such as 2026-01-31T12:00Z, not {excerpt(value)}"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
