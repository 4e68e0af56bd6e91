"""Masking: recipients in rendered fields and XComs are never stored or logged in clear.

Airflow stores rendered fields, and only some releases mask registered secrets in them: Airflow 3.0 does not. So the
stored text itself does not name recipients.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_runa._compat import mask_secret

# In JSON text, too, where an address may hold escapes.
_EMAIL = re.compile(r"[^\s\"'<>,;:/=|{}\[\]()@]+@[\w\\-]+(?:\.[\w\\-]+)+")

_NAMES_RECIPIENTS = ("email_address", "recipient_reference")


class Masked:
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


class MaskRecipientsMixin:
    """For operators and sensors whose fields may name recipients: has them masked before Airflow stores them."""

    template_fields: Sequence[str]
    items: Any

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        # Airflow's own place to look at rendered fields, for mapped tasks too.
        super()._do_render_template_fields(parent, *args, **kwargs)  # type: ignore[misc] # of Airflow's class
        items = getattr(self, "items", None)
        if isinstance(items, Sequence) and not isinstance(items, str):
            items = list(items)  # the XComs of mapped tasks come as a sequence that fetches one by one
        mask_recipients([items, *(getattr(self, name) for name in self.template_fields)])
        if items is not None:
            self.items = Masked(items)


def mask_recipients(fields: Iterable[Any]) -> None:
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
