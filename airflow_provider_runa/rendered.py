"""What rendered templates and XComs leave behind: items, amounts, and recipients that must not be seen.

For operators and sensors alike. Airflow stores rendered fields in clear, unless what must not be seen has been
registered before.
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


def read_json(name: str, value: Any) -> Any:
    """Return what a template stands for: text is JSON, anything else is what it is.

    :param name: the parameter, for the error.
    :param value: the rendered value.
    :raises InvalidOrderError: if it is text that is not JSON.
    """
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
            self.items = list(items)  # the XComs of mapped tasks come as a sequence that fetches one by one
        hide_recipients(getattr(self, name) for name in self.template_fields)


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


def _recipients(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _EMAIL.findall(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ("email_address", "recipient_reference") and isinstance(inner, str):
                yield inner
            else:
                yield from _recipients(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _recipients(inner)
