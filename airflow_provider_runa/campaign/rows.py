"""Read and check one row of a campaign, before anything is written or sent: who gets how much of which product."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from numbers import Integral
from typing import Any
from uuid import UUID

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.api.models import NewOrderItem
from airflow_provider_runa.placement.missing import is_missing

#: Fields that a row may have: the key, three fields as in Runa's API, and short forms of the last two.
FIELDS = frozenset(
    {
        "recipient_key",
        "face_value",
        "distribution_method",
        "products",
        "email_address",
        "recipient_reference",
        "product",
        "template_id",
    }
)

#: The longest recipient key, in characters. Every database accepts it as part of a primary key.
MAX_RECIPIENT_KEY = 200


@dataclass(frozen=True)
class Payout:
    """One checked row.

    :param recipient_key: the user's key of the recipient, unique in the campaign.
    :param item: the order item that is sent for the row.
    """

    recipient_key: str
    item: NewOrderItem = field(repr=False)


def read_row(row: Any, defaults: Mapping[str, Any]) -> Payout:
    """Read and check a row.

    :param row: a mapping with ``recipient_key`` and ``face_value``, and ``distribution_method`` and ``products`` as in
        Runa's API. Short forms are ``email_address`` (EMAIL; with ``recipient_reference`` RECIPIENT), ``product``
        (SINGLE) and ``template_id`` (TEMPLATE).
    :param defaults: values for fields that the row does not have.
    :raises InvalidOrderError: if the row is wrong; one line without the row's values.
    """
    if not isinstance(row, Mapping):
        raise InvalidOrderError(f"must be a mapping of fields, not {type(row).__name__}")
    if unknown := sorted(str(name) for name in set(row) - FIELDS):
        raise InvalidOrderError(
            f"has no use for the field(s) {', '.join(map(_name, unknown[:5]))}; known are {', '.join(sorted(FIELDS))}"
        )
    fields = {name: value for name, value in row.items() if value is not None}
    key = _text(fields.get("recipient_key", "")).strip()
    if is_missing(key):
        raise InvalidOrderError("recipient_key: is missing")
    if len(key) > MAX_RECIPIENT_KEY:
        raise InvalidOrderError(f"recipient_key: must have at most {MAX_RECIPIENT_KEY} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in key):
        raise InvalidOrderError("recipient_key: must not have control characters")  # not every database accepts them
    item = {
        "face_value": fields.get("face_value", defaults.get("face_value")),
        "distribution_method": _distribution(fields) or defaults.get("distribution_method"),
        "products": _products(fields) or _products(defaults),
    }
    return Payout(key, NewOrderItem.build({name: value for name, value in item.items() if value is not None}))


def _name(field: str) -> str:
    """Return a field's name, masked if it may be data: in a file without a header, the first row becomes the names."""
    return field if field.isidentifier() else "***"


def _text(key: Any) -> str:
    """Return a key as text.

    A whole number becomes the same text in any type: data frames and databases turn 42 into 42.0, the same recipient.
    """
    if isinstance(key, float | Decimal) and math.isfinite(key):
        if key != int(key) or (isinstance(key, float) and abs(key) >= 2**53):  # from there, two ids share a float
            raise InvalidOrderError("recipient_key: must be text or a whole number")
        key = int(key)
    # The text of other types may change from run to run, e.g. of psycopg2's memoryview of a bytea: paid in every run.
    if isinstance(key, bool) or not isinstance(key, str | Integral | Decimal | float | UUID | date):
        raise InvalidOrderError(f"recipient_key: must be text or a whole number, not {type(key).__name__}")
    return str(key)


def _one_of(fields: Mapping[str, Any], full: str, *short: str) -> None:
    if full in fields and (both := [name for name in short if name in fields]):
        raise InvalidOrderError(f"{full}: says the same as {', '.join(both)}; give one of them")


def _distribution(fields: Mapping[str, Any]) -> Any:
    _one_of(fields, "distribution_method", "email_address", "recipient_reference")
    if "distribution_method" in fields:
        return fields["distribution_method"]
    names = ("email_address", "recipient_reference")
    address = {name: fields[name] for name in names if name in fields}
    if not address:
        return None
    return {"type": "RECIPIENT" if "recipient_reference" in address else "EMAIL"} | address


def _products(fields: Mapping[str, Any]) -> Any:
    _one_of(fields, "products", "product", "template_id")
    _one_of(fields, "product", "template_id")
    if "products" in fields:
        return fields["products"]
    if "product" in fields:
        return {"type": "SINGLE", "value": fields["product"]}
    if "template_id" in fields:
        return {"type": "TEMPLATE", "template_id": fields["template_id"]}
    return None
