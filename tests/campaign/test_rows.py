"""What a row of the input may contain, and what the errors say about a wrong row."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.rows import MAX_RECIPIENT_KEY, read_row

TEMPLATE = "PT-01HQ12PV4B8XMBRTK281JM54KK"


def item(row: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    payout = read_row({"recipient_key": "ada", "face_value": 10} | row, defaults)
    return payout.item.model_dump(mode="python", exclude_none=True)


def rejection(row: Any, **defaults: Any) -> str:
    with pytest.raises(InvalidOrderError) as caught:
        read_row(row, defaults)
    return str(caught.value)


def test_an_address_is_short_for_email() -> None:
    assert item({"email_address": "ada@example.com", "product": "AMZ-US"}) == {
        "face_value": Decimal(10),
        "distribution_method": {"type": "EMAIL", "email_address": "ada@example.com"},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }


def test_an_address_with_a_reference_is_short_for_recipient() -> None:
    row = {"email_address": "ada@example.com", "recipient_reference": "ada-1", "template_id": TEMPLATE}
    built = item(row)
    assert built["distribution_method"] == {
        "type": "RECIPIENT",
        "email_address": "ada@example.com",
        "recipient_reference": "ada-1",
    }
    assert built["products"] == {"type": "TEMPLATE", "template_id": TEMPLATE}


@pytest.mark.parametrize(
    "both",
    [
        {"distribution_method": {"type": "PAYOUT_LINK"}, "email_address": "ada@example.com"},
        {"products": {"type": "SINGLE", "value": "AMZ-US"}, "product": "CAFE-US"},
        {"product": "CAFE-US", "template_id": "PT-1"},
    ],
)
def test_two_fields_that_say_the_same_are_rejected(both: dict[str, Any]) -> None:
    with pytest.raises(InvalidOrderError, match="says the same as") as caught:
        item(both)
    assert "ada@example.com" not in str(caught.value)


@pytest.mark.parametrize("key", [True, b"42", memoryview(b"42"), ["42"], 12345678901234567.0, 1.5])
def test_an_ambiguous_key_is_rejected(key: Any) -> None:
    with pytest.raises(InvalidOrderError, match="must be text or a whole number"):
        read_row({"recipient_key": key, "face_value": 1, "email_address": "ada@example.com"}, {"product": "AMZ-US"})


def test_defaults_fill_in_what_a_row_lacks_and_nothing_else() -> None:
    defaults = {"face_value": 5, "product": "CAFE-US", "distribution_method": {"type": "PAYOUT_LINK"}}
    built = item({"face_value": None}, **defaults)
    assert (built["face_value"], built["products"]["value"]) == (5, "CAFE-US")
    assert built["distribution_method"] == {"type": "PAYOUT_LINK"}
    built = item({"face_value": 7, "template_id": TEMPLATE, "email_address": "ada@example.com"}, **defaults)
    assert (built["face_value"], built["products"]["type"]) == (7, "TEMPLATE")
    assert built["distribution_method"]["type"] == "EMAIL"


def test_a_key_is_text_without_blanks_around_it() -> None:
    row = {"face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US"}
    assert read_row(row | {"recipient_key": "  ada "}, {}).recipient_key == "ada"
    assert read_row(row | {"recipient_key": 42}, {}).recipient_key == "42"


@pytest.mark.parametrize("key", [42.0, Decimal("42.00"), "42"])
def test_a_whole_number_of_another_type_is_the_same_recipient(key: Any) -> None:
    row = {"face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US", "recipient_key": key}
    assert read_row(row, {}).recipient_key == "42"


def test_a_key_may_be_a_uuid_or_a_date() -> None:
    row = {"face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US"}
    keys = {UUID("00000000-0000-4000-8000-0000000000AA"): "00000000-0000-4000-8000-0000000000aa"}
    keys |= {date(2026, 10, 1): "2026-10-01"}
    for key, text in keys.items():
        assert read_row(row | {"recipient_key": key}, {}).recipient_key == text


def test_a_key_that_is_a_fraction_is_rejected() -> None:
    assert rejection({"recipient_key": 42.5, "face_value": 10}) == "recipient_key: must be text or a whole number"


@pytest.mark.parametrize("key", [None, "", "  ", "None", "NaN", "null", "NaT", float("nan")])
def test_a_missing_key_is_rejected(key: Any) -> None:
    assert rejection({"recipient_key": key, "face_value": 10}) == "recipient_key: is missing"
    assert rejection({"face_value": 10}) == "recipient_key: is missing"


def test_a_key_has_a_longest_length() -> None:
    row = {"face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US"}
    assert read_row(row | {"recipient_key": "k" * MAX_RECIPIENT_KEY}, {})
    text = rejection(row | {"recipient_key": "k" * (MAX_RECIPIENT_KEY + 1)})
    assert text == "recipient_key: must have at most 200 characters"


@pytest.mark.parametrize("key", ["ada\x00", "ada\nlovelace", "ada\ud800"])
def test_a_key_with_control_characters_is_rejected(key: str) -> None:
    row = {"face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US", "recipient_key": key}
    assert rejection(row) == "recipient_key: must not have control characters"


def test_a_row_that_is_no_mapping_is_rejected() -> None:
    assert rejection(["ada", 10]) == "must be a mapping of fields, not list"
    assert rejection("ada") == "must be a mapping of fields, not str"


def test_an_unknown_field_is_rejected_by_name() -> None:
    text = rejection({"recipient_key": "ada", "face_value": 10, "email": "ada@example.com"})
    assert text.startswith("has no use for the field(s) email; known are ")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"face_value": "secret-7311"}, "face_value"),
        ({"face_value": "0.001"}, "face_value"),
        ({"face_value": "-7311"}, "face_value"),
        ({"face_value": None}, "face_value"),
        ({"email_address": "secret-7311"}, "email_address"),
        ({"email_address": None}, "distribution_method"),
        ({"product": None}, "products"),
        ({"face_value": "10.50", "product": None, "template_id": TEMPLATE}, "face_value"),
        ({"recipient_reference": "secret 7311!"}, "recipient_reference"),
    ],
)
def test_an_error_is_one_line_without_values(fields: dict[str, Any], named: str) -> None:
    row = {"recipient_key": "key-7311", "face_value": 10, "email_address": "ada-7311@example.com", "product": "AMZ-US"}
    text = rejection(row | fields)
    assert named in text
    assert "\n" not in text
    assert "7311" not in text


def test_a_payout_does_not_show_what_is_sent() -> None:
    row = {"recipient_key": "ada", "face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US"}
    assert "example.com" not in repr(read_row(row, {}))
