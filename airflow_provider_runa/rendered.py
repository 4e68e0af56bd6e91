"""What rendered templates and XComs leave behind: items, amounts, and recipients that must not be seen.

For operators and sensors alike. Airflow stores rendered fields, and only some releases mask what has been registered as
secret in them: Airflow 3.0 does not. So what is stored does not name recipients in the first place.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from airflow_provider_runa._compat import mask_secret
from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.api.models import EstimateRequest

# In JSON text, too, where an address may hold escapes.
_EMAIL = re.compile(r"[^\s\"'<>,;:/=|{}\[\]()@]+@[\w\\-]+(?:\.[\w\\-]+)+")

_NAMES_RECIPIENTS = ("email_address", "recipient_reference")

#: Stands for a guard that was left out: ``None`` may be a missing value, also that of a mapped task.
LEFT_OUT: Any = object()


def given(value: Any) -> Any:
    """Return a guard's value, ``None`` if it was left out."""
    return None if value is LEFT_OUT else value


class Hidden:
    """A rendered field that names recipients. As text, which is what Airflow stores, it does not show them.

    :param value: the field.
    :param shown: what to show instead. Default: the field as JSON, without those who are paid.
    """

    def __init__(self, value: Any, shown: str | None = None) -> None:
        self.value = value
        self._shown = shown

    def __repr__(self) -> str:
        if self._shown is not None:
            return self._shown
        value = self.value
        with contextlib.suppress(ValueError):
            value = json.loads(value) if isinstance(value, str) else value
        masked = _masked(value)
        return masked if isinstance(masked, str) else json.dumps(masked, indent=2, default=str)


def read_json(name: str, value: Any) -> Any:
    """Return what a template stands for: text is JSON, anything else is what it is.

    :param name: the parameter, for the error.
    :param value: the rendered value.
    :raises InvalidOrderError: if it is text that is not JSON.
    """
    value = value.value if isinstance(value, Hidden) else value
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_float=Decimal)
    except ValueError:
        raise InvalidOrderError(
            f"{name}: rendered to text that is not JSON; end the template with '| tojson', "
            "or set render_template_as_native_obj=True on the DAG"
        ) from None


def read_items(items: Any) -> Sequence[Mapping[str, Any]]:
    """Return items as a list.

    :param items: a list, or JSON text of one.
    :raises InvalidOrderError: if it is neither.
    """
    items = read_json("items", items)
    if not isinstance(items, list | tuple):
        # Whatever else an XCom holds: an iterator or a set has no order that the next attempt could repeat.
        raise InvalidOrderError(f"items: must be a list, not {type(items).__name__}")
    return items


def read_amount(name: str, value: Any) -> Decimal:
    """Return an amount.

    :param name: the parameter, for the error.
    :param value: a number, or text of one.
    :raises InvalidOrderError: if it is neither, or missing.
    """
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise InvalidOrderError(f"{name}: must be an amount, not {value!r}")
    return amount


def read_estimate(currency: str, items: Any) -> EstimateRequest:
    """Return the request for an estimate of items; what says who gets them is left out.

    :param currency: currency of the balance that would pay.
    :param items: a list, or JSON text of one; as for an order.
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


class RecipientsHidden:
    """For operators and sensors whose fields may name recipients: has them masked before Airflow stores them."""

    template_fields: Sequence[str]
    items: Any

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        # Airflow's own place to look at rendered fields, for mapped tasks too.
        super()._do_render_template_fields(parent, *args, **kwargs)  # type: ignore[misc] # of Airflow's class
        items = getattr(self, "items", None)
        if isinstance(items, Sequence) and not isinstance(items, str):
            items = list(items)  # the XComs of mapped tasks come as a sequence that fetches one by one
        hide_recipients([items, *(getattr(self, name) for name in self.template_fields)])
        if items is not None:
            self.items = Hidden(items)


def hide_recipients(fields: Iterable[Any]) -> None:
    """Have Airflow mask everything in rendered fields that names a recipient, in logs and wherever it stores them.

    :param fields: the fields; text may be JSON.
    """
    fields = list(fields)
    for field in [field for field in fields if isinstance(field, str)]:
        with contextlib.suppress(ValueError):
            fields.append(json.loads(field))
    if recipients := sorted(set(_recipients(fields))):
        mask_secret([*recipients])


def _masked(value: Any) -> Any:
    """Return a value without the recipients in it."""
    if isinstance(value, str):
        return _EMAIL.sub("***", value)
    if isinstance(value, Mapping):
        return {
            name: "***" if name in _NAMES_RECIPIENTS and isinstance(inner, str) else _masked(inner)
            for name, inner in value.items()
        }
    return [_masked(inner) for inner in value] if isinstance(value, list | tuple) else value


def _recipients(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _EMAIL.findall(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _NAMES_RECIPIENTS and isinstance(inner, str):
                yield inner
            else:
                yield from _recipients(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _recipients(inner)
