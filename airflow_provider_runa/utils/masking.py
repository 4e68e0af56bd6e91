"""Masks recipients, so that rendered fields, XComs and logs do not show them.

Airflow stores rendered fields, and not every release masks registered secrets in them: Airflow 3.0 does not. So the
stored text must not contain recipients in the first place.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from airflow_provider_runa._compat import mask_secret

# Also in JSON text, where an address may contain escapes.
_EMAIL = re.compile(r"[^\s\"'<>,;:/=|{}\[\]()@]+@[\w\\-]+(?:\.[\w\\-]+)+")

_NAMES_RECIPIENTS = ("email_address", "recipient_reference")


class Masked:
    """A rendered field whose text, which is what Airflow stores, does not show recipients.

    :param value: the value of the field.
    :param shown: the text to show. Default: the value as JSON, with recipients replaced by ``***``.
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
    """Masks the recipients in the fields of an operator or a sensor before Airflow stores the fields."""

    template_fields: Sequence[str]
    items: Any

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        # Airflow calls this after rendering, also for mapped tasks.
        super()._do_render_template_fields(parent, *args, **kwargs)  # type: ignore[misc] # Airflow's base class has it
        items = getattr(self, "items", None)
        if isinstance(items, Sequence) and not isinstance(items, str):
            items = list(items)  # the XComs of mapped tasks are a lazy sequence, which fetches one by one
        mask_recipients([items, *(getattr(self, name) for name in self.template_fields)])
        if items is not None:
            self.items = Masked(items)


def mask_recipients(fields: Iterable[Any]) -> None:
    """Register the recipients in rendered fields as secrets, which Airflow masks in logs and stored fields.

    :param fields: the fields. Text is also read as JSON.
    """
    fields = list(fields)
    for field in [field for field in fields if isinstance(field, str)]:
        with contextlib.suppress(ValueError):
            fields.append(json.loads(field))
    if recipients := sorted(set(_recipients(fields))):
        mask_secret([*recipients])


def _masked(value: Any) -> Any:
    """Return a copy of a value with its recipients replaced by ``***``."""
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
