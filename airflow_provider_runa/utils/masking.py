"""Masks recipients, so that rendered fields, XComs, logs and errors do not show them.

Airflow stores rendered fields, and not every release masks registered secrets in them: Airflow 3.0 does not. So the
stored text must not contain recipients in the first place.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from airflow_provider_runa._compat import mask_secret, secrets_masker

# Also in JSON text, where an address may contain escapes. The limit keeps the time linear in a long text without an @.
_EMAIL = re.compile(r"[^\s\"'<>,;:/=|{}\[\]()@]{1,256}@[\w\\-]+(?:\.[\w\\-]+)+")

# For text of any kind: whatever has an @, and links.
_SECRET_LOOKING = re.compile(r"[^\s\"'<>,;]+@[^\s\"'<>,;]+|[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)

#: How many characters of a wrong value an error shows.
EXCERPT_LENGTH = 40

#: How many secrets are registered with Airflow's supervisor, which compiles its pattern anew for each of them: 400 take
#: 2 s there. In the task's own process, any number takes one compilation.
MOST_FOR_SUPERVISOR = 400

_MANY = (list, tuple, set, frozenset)

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

    # A subclass or a function of the user may read the field.

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]


class MaskRecipientsMixin:
    """Masks the recipients in the fields of an operator or a sensor before Airflow stores the fields."""

    template_fields: Sequence[str]

    # Not an attribute of the instance: OpenLineage makes a mapping of those, whose own ``items`` it would replace.
    @property
    def items(self) -> Any:
        """The payouts, as they were given or rendered."""
        return self._items

    @items.setter
    def items(self, items: Any) -> None:
        self._items = items

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
        masked_here = _mask_here(recipients)
        if not masked_here or len(recipients) <= MOST_FOR_SUPERVISOR:
            mask_secret([*recipients])


def _mask_here(secrets: Sequence[str]) -> bool:
    """Register secrets in this process, with one compilation of Airflow's pattern instead of one for each.

    :returns: whether that was possible. It relies on names that are not public.
    """
    with contextlib.suppress(Exception):
        masker = secrets_masker()
        shortest = getattr(masker, "min_length_to_mask", 5)
        adapted = {
            secret: [re.escape(form) for form in masker._adaptations(secret) if form and len(form) >= shortest]
            for secret in secrets
        }
        new = [secret for secret, patterns in adapted.items() if patterns and not masker.patterns.issuperset(patterns)]
        for secret in new[:-1]:
            masker.patterns.update(adapted[secret])
        for secret in new[-1:]:
            masker.add_mask(secret)  # compiles the pattern
        return True
    return False


def printable(text: str) -> str:
    """Return a text of others, such as a status, without characters that change how a terminal or a page shows it.

    :param text: the text. Line breaks, control and direction characters in it are escaped.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def excerpt(value: Any) -> str:
    """Return the type of a wrong value and the beginning of its text, for an error message.

    Addresses and links are masked. Of mappings, only the names are shown. Special characters are escaped.

    :param value: the value.
    """
    if value is None:
        return "None"
    text = _outline(value, 3)
    if len(text) > EXCERPT_LENGTH:
        text = f"{text[:EXCERPT_LENGTH]}…"
    return f"{text} ({type(value).__name__})" if text else type(value).__name__


def _outline(value: Any, depth: int) -> str:
    """Return the text of a value without what may be a secret; empty if its type is unknown."""
    if isinstance(value, str):
        return _outline_text(value[:400], depth)
    if value is None or isinstance(value, bool | int | float | Decimal | datetime | timedelta):
        with contextlib.suppress(ValueError):  # Python turns no integer of very many digits into text
            return str(value)
    if isinstance(value, Mapping) and depth:
        return f"{{{', '.join(_outline(name, 0) for name in list(value)[:EXCERPT_LENGTH])}}}"
    if isinstance(value, list | tuple) and depth:
        return f"[{', '.join(_outline(inner, depth - 1) or '…' for inner in value[:EXCERPT_LENGTH])}]"
    return ""


def _outline_text(text: str, depth: int) -> str:
    if "{" in text:  # JSON, or the text of a Python object: it may hold anything
        with contextlib.suppress(ValueError):
            return repr(_outline(json.loads(text), depth))
        text = text[: text.index("{")] + "{…"
    return repr(_SECRET_LOOKING.sub("***", text))


def _masked(value: Any) -> Any:
    """Return a copy of a value with its recipients replaced by ``***``."""
    if isinstance(value, str):
        return _EMAIL.sub("***", value)
    if isinstance(value, Mapping):
        return {
            name: "***" if name in _NAMES_RECIPIENTS and isinstance(inner, str) else _masked(inner)
            for name, inner in value.items()
        }
    return [_masked(inner) for inner in value] if isinstance(value, _MANY) else value


def _recipients(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from _EMAIL.findall(value)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key in _NAMES_RECIPIENTS and isinstance(inner, str):
                yield inner
            else:
                yield from _recipients(inner)
    elif isinstance(value, _MANY):
        for inner in value:
            yield from _recipients(inner)
