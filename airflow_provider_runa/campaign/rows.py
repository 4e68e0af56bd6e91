"""Read and check a campaign's name and its rows, before anything is written or sent: who gets how much of what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from numbers import Integral
from typing import Any
from uuid import UUID

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.api.models import NewOrderItem
from airflow_provider_runa.placement.identity import MAX_USER_DESCRIPTION
from airflow_provider_runa.placement.keys import find_invisible, is_missing, to_key

#: Fields that a row may have: the key, three fields as in Runa's API, and short forms of the last two.
FIELDS = frozenset(
    {
        "recipient_key",
        "face_value",
        "distribution_method",
        "products",
        "email_address",
        "recipient_reference",
        "redemption_template_id",
        "product",
        "template_id",
    }
)

#: The longest recipient key, in characters. Every database accepts it as part of a primary key.
MAX_RECIPIENT_KEY = 200

# Fields that say who is paid. As a default, they would pay what is meant for many to one.
_OF_EACH_ROW = ("recipient_key", "email_address", "recipient_reference")

# A valid item, to check each default by itself: rows may replace the others.
_EXAMPLE: Mapping[str, Any] = {
    "face_value": 1,
    "distribution_method": {"type": "PAYOUT_LINK"},
    "products": {"type": "SINGLE", "value": "any"},
}


@dataclass(frozen=True)
class Payout:
    """One checked row.

    :param recipient_key: the user's key of the recipient, unique in the campaign.
    :param item: the order item that is sent for the row.
    """

    recipient_key: str = field(repr=False)
    item: NewOrderItem = field(repr=False)


class Defaults(dict[str, Any]):
    """Checked defaults: ``face_value``, ``distribution_method`` and ``products``, as far as they are given."""


def read_row(row: Any, defaults: Mapping[str, Any]) -> Payout:
    """Read and check a row.

    A row is a mapping with these fields:

    - ``recipient_key``: text, a whole number, a UUID, a date or a time. Text is the same key in Unicode's forms NFC and
      NFD; white space around it is ignored; case counts, except in a UUID. Invisible characters are rejected. A whole
      number is the same key in every type, as are the date and its midnight. Times are written in UTC, without their
      zone; a time without one is taken as UTC.
    - ``face_value``: a number, or text such as ``12.50``: digits, at most two decimals after a point.
    - ``distribution_method`` as in Runa's API. Short forms: ``email_address`` for EMAIL, with ``recipient_reference``
      for RECIPIENT. ``redemption_template_id`` is the method's ``template_id``.
    - ``products`` as in Runa's API. Short forms: ``product`` for SINGLE, ``template_id`` for TEMPLATE.

    ``distribution_method`` and ``products`` may be JSON text. A value is missing if it is ``None``, NaN, blank, or text
    such as ``nan`` (see :func:`~.keys.is_missing`).

    A field that says who gets how much is never replaced by a default: if the row has ``recipient_key``,
    ``face_value``, ``email_address``, ``recipient_reference`` or ``distribution_method`` with a missing value, the row
    is wrong. (Those of an address may be missing beside a ``distribution_method``, and that beside an
    ``email_address``.) The other fields with a missing value count as absent, so that a default applies.

    Where a row has an address, a default ``distribution_method`` adds what the row lacks: its ``template_id``, and
    EMAIL or RECIPIENT as the type. Where a row has a ``product``, a default SINGLE adds its ``usage_config``.

    :param row: the row.
    :param defaults: values for fields that the row does not have, as :func:`read_defaults` takes or returns them.
    :raises InvalidOrderError: if the row or a default is wrong; one line without the row's values.
    """
    found = _read(row, defaults)
    del row, defaults  # a traceback may show local variables, and a row contains a recipient
    if isinstance(found, str):
        raise InvalidOrderError(found)
    return found


def read_defaults(defaults: Any) -> Defaults:
    """Read and check the defaults of rows.

    A default that no row could use is rejected: an unknown field, a missing or wrong value, two fields that say the
    same, or a field that says who is paid.

    :param defaults: a mapping of fields of a row, its JSON text, or ``None``.
    :raises InvalidOrderError: if a default is wrong.
    """
    if isinstance(defaults, Defaults):
        return defaults
    try:
        found: Defaults | str = _defaults(defaults)
    except InvalidOrderError as error:
        found = f"defaults: {error}"
    del defaults
    if isinstance(found, str):
        raise InvalidOrderError(found)
    return found


def read_campaign(campaign: Any) -> str:
    """Read and check the name of a campaign.

    :param campaign: the name, as it was rendered.
    :returns: the name as a key; see :func:`~.keys.to_key`.
    :raises InvalidOrderError: if it is missing, too long or no text, or has an invisible character.
    """
    if is_missing(campaign):
        raise InvalidOrderError("campaign: is missing")
    if not isinstance(campaign, str):
        raise InvalidOrderError(
            f"campaign: must be text, not {type(campaign).__name__}. With render_template_as_native_obj=True, 2026_10 "
            "becomes the number 202610: begin the name with a letter, as in 'spring-2026_10'"
        )
    if problem := find_invisible(campaign):
        raise InvalidOrderError(f"campaign: {problem}")
    name = to_key(campaign)
    if len(name) > MAX_USER_DESCRIPTION:  # it is the description of the orders
        raise InvalidOrderError(f"campaign: must have at most {MAX_USER_DESCRIPTION} characters, has {len(name)}")
    return name


def check_rows(rows: Any) -> str | None:
    """Return why rows cannot be read one by one; ``None`` if they can.

    :param rows: the rows: a list, or another iterable of mappings.
    """
    if rows is None:
        return "rows: is missing; give a list of mappings, or override iter_rows"
    kind = type(rows).__name__
    if hasattr(rows, "columns"):  # it would yield the names of its columns
        return f"rows: must be a list of mappings, not {kind}; convert it, as in frame.to_dict('records')"
    if isinstance(rows, Mapping | str | bytes | bytearray | memoryview) or not isinstance(rows, Iterable):
        return f"rows: must be a list, not {kind}"
    return None


def find_rendered_key(template: Any, rendered: Any) -> int | None:
    """Return the index of the first row whose recipient key was text before it was rendered, and is not any more.

    With ``render_template_as_native_obj=True``, the text ``+447911123456`` becomes a number. Its text is another one.

    :param template: the rows before they were rendered.
    :param rendered: the rows after that.
    """
    if not isinstance(template, list | tuple) or not isinstance(rendered, list | tuple):
        return None
    for index, (before, after) in enumerate(zip(template, rendered, strict=False)):
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            key = after.get("recipient_key")
            if isinstance(before.get("recipient_key"), str) and not isinstance(key, str) and not is_missing(key):
                return index
    return None


def _read(row: Any, defaults: Mapping[str, Any]) -> Payout | str:
    """Return the payout, or what is wrong with the row.

    The error is not passed on, because its traceback leads to frames that have the row.
    """
    try:
        return _payout(row, read_defaults(defaults))
    except InvalidOrderError as error:
        return str(error)


def _payout(row: Any, defaults: Defaults) -> Payout:
    if not isinstance(row, Mapping):
        raise InvalidOrderError(f"must be a mapping of fields, not {type(row).__name__}")
    _check_names(row)
    fields = {name: value for name, value in row.items() if not is_missing(value)}
    if "recipient_key" not in fields:
        raise InvalidOrderError("recipient_key: is missing")
    key = _recipient_key(fields["recipient_key"])
    if "face_value" in row and "face_value" not in fields:
        raise InvalidOrderError("face_value: is missing; a default is only for rows that do not have the field")
    item = {
        "face_value": fields.get("face_value", defaults.get("face_value")),
        "distribution_method": _distribution(row, fields, defaults),
        "products": _products(fields, defaults),
    }
    return Payout(key, NewOrderItem.build({name: value for name, value in item.items() if value is not None}))


def _defaults(defaults: Any) -> Defaults:
    defaults = _from_json(defaults) if isinstance(defaults, str) else defaults
    if defaults is None:
        return Defaults()
    if not isinstance(defaults, Mapping):
        raise InvalidOrderError(f"must be a mapping of fields, not {type(defaults).__name__}")
    _check_names(defaults)
    for name, value in defaults.items():
        if name in _OF_EACH_ROW:
            raise InvalidOrderError(f"{name}: is a field of each row, and has no default")
        if is_missing(value):
            raise InvalidOrderError(f"{name}: is missing")
    checked = {
        "face_value": defaults.get("face_value"),
        "distribution_method": _default_distribution(defaults),
        "products": _products(defaults, Defaults()),
    }
    checked = {name: value for name, value in checked.items() if value is not None}
    for name, value in checked.items():
        if name != "distribution_method":
            NewOrderItem.build({**_EXAMPLE, name: value})
    return Defaults(checked)


def _default_distribution(defaults: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the default distribution method. It may lack its type, and has no recipient."""
    _one_of(defaults, "distribution_method", "redemption_template_id")
    as_link = {"type": "PAYOUT_LINK"}
    method: dict[str, Any]
    if "redemption_template_id" in defaults:
        method = {"template_id": defaults["redemption_template_id"]}
        checked = as_link | method
    elif "distribution_method" in defaults:
        method = dict(_object(defaults, "distribution_method"))
        if address := [name for name in _OF_EACH_ROW if name in method]:
            raise InvalidOrderError(f"distribution_method.{address[0]}: is a field of each row, and has no default")
        # What is left of these types is what a link has.
        checked = method | as_link if method.get("type") in ("EMAIL", "RECIPIENT") else method
    else:
        return None
    NewOrderItem.build({**_EXAMPLE, "distribution_method": checked})
    return method


def _check_names(fields: Mapping[Any, Any]) -> None:
    if unknown := sorted(str(name) for name in set(fields) - FIELDS):
        raise InvalidOrderError(
            f"has no use for the field(s) {', '.join(map(_name, unknown[:5]))}; known are {', '.join(sorted(FIELDS))}"
        )


def _name(field: str) -> str:
    """Return a field's name, masked if it may be data: in a file without a header, the first row becomes the names."""
    return field if field.isidentifier() else "***"


def _recipient_key(value: Any) -> str:
    text = _text(value)
    if problem := find_invisible(text):
        raise InvalidOrderError(f"recipient_key: {problem}")  # nor does every database accept them
    key = to_key(text)
    if len(key) > MAX_RECIPIENT_KEY:
        raise InvalidOrderError(f"recipient_key: must have at most {MAX_RECIPIENT_KEY} characters")
    return key


def _text(key: Any) -> str:
    """Return a key as text.

    A whole number becomes the same text in any type: data frames and databases turn 42 into 42.0, the same recipient.
    """
    if isinstance(key, str):
        return key
    if isinstance(key, UUID):
        return str(key)
    if isinstance(key, datetime):
        return _time(key)
    if isinstance(key, date):
        return key.isoformat()
    # The text of other types may change from run to run, e.g. of psycopg2's memoryview of a bytea: paid in every run.
    if isinstance(key, bool) or not isinstance(key, Integral | Decimal | float):
        raise InvalidOrderError(f"recipient_key: must be text or a whole number, not {type(key).__name__}")
    return str(_whole(key))


def _whole(key: Integral | Decimal | float) -> int:
    """Return a number as a whole one that is short enough for a key."""
    limit = 10**MAX_RECIPIENT_KEY
    if not isinstance(key, Integral) and key in (float("inf"), float("-inf")):
        raise InvalidOrderError("recipient_key: must be text or a whole number, not infinite")
    # The comparison comes first: to turn a number of very many digits into a whole one, or into text, may fail.
    if not -limit < key < limit:
        raise InvalidOrderError(f"recipient_key: must have at most {MAX_RECIPIENT_KEY} characters")
    whole = int(key)
    if key != whole or (isinstance(key, float) and abs(key) >= 2**53):  # from there, two ids share a float
        raise InvalidOrderError("recipient_key: must be text or a whole number")
    return whole


def _time(time: datetime) -> str:
    """Return a time as text: in UTC, without the zone, and only the date if it is midnight.

    So it is the same text whether the database's column has a zone or not, and whether it is a date or a time.
    """
    if getattr(time, "nanosecond", 0):  # of pandas: two of its times would share a text
        raise InvalidOrderError("recipient_key: must not be a time with nanoseconds")
    try:
        time = time.astimezone(UTC) if time.utcoffset() is not None else time
    except OverflowError:
        raise InvalidOrderError("recipient_key: must be a time between the years 1 and 9999 in UTC") from None
    # Subclasses write themselves in other ways.
    plain = datetime(time.year, time.month, time.day, time.hour, time.minute, time.second, time.microsecond)
    return plain.isoformat(sep=" ").removesuffix(" 00:00:00")


def _one_of(fields: Mapping[str, Any], full: str, *short: str) -> None:
    if full in fields and (both := [name for name in short if name in fields]):
        raise InvalidOrderError(f"{full}: says the same as {', '.join(both)}; give one of them")


def _from_json(text: str) -> Any:
    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError):
        raise InvalidOrderError("is text that is not JSON") from None


def _object(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that is an object of Runa's API, or its JSON text, as a column of a database has it."""
    value = fields[name]
    try:
        value = _from_json(value) if isinstance(value, str) else value
    except InvalidOrderError as error:
        raise InvalidOrderError(f"{name}: {error}") from None
    if not isinstance(value, Mapping):
        raise InvalidOrderError(f"{name}: must be an object, not {type(value).__name__}")
    return value


def _distribution(row: Mapping[str, Any], fields: Mapping[str, Any], defaults: Defaults) -> Mapping[str, Any] | None:
    """Return the distribution method of a row.

    :param row: the row.
    :param fields: its fields that are not missing.
    :param defaults: the defaults.
    """
    _one_of(fields, "distribution_method", "email_address", "recipient_reference", "redemption_template_id")
    default = defaults.get("distribution_method", {})
    template = {"template_id": default["template_id"]} if "template_id" in default else {}
    if "redemption_template_id" in fields:
        template = {"template_id": fields["redemption_template_id"]}
    if "distribution_method" in fields:
        return {**template, **_object(fields, "distribution_method")}
    names = ("email_address", "recipient_reference")
    address = {name: fields[name] for name in names if name in fields}
    _check_address(row, address)
    if not address:
        return {**default, **template} if "type" in default else None
    by_row = "RECIPIENT" if "recipient_reference" in address else "EMAIL"
    by_default = default.get("type", "PAYOUT_LINK")
    return {"type": by_row if by_default == "PAYOUT_LINK" else by_default} | template | address


def _check_address(row: Mapping[str, Any], address: Sequence[str] | Mapping[str, Any]) -> None:
    """Check that no field of a row without a value leads to another place to pay to."""
    for name in ("email_address", "recipient_reference"):
        if name in row and name not in address:
            raise InvalidOrderError(f"{name}: is missing")
    if "distribution_method" in row and not address:
        raise InvalidOrderError("distribution_method: is missing")


def _products(fields: Mapping[str, Any], defaults: Defaults) -> Mapping[str, Any] | None:
    _one_of(fields, "products", "product", "template_id")
    _one_of(fields, "product", "template_id")
    default: Mapping[str, Any] | None = defaults.get("products")
    if "products" in fields:
        return _object(fields, "products")
    if "product" in fields:
        rules = {name: value for name, value in (default or {}).items() if name == "usage_config"}
        return {"type": "SINGLE", "value": fields["product"]} | rules
    if "template_id" in fields:
        return {"type": "TEMPLATE", "template_id": fields["template_id"]}
    return default
