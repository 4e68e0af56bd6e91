"""What a row of the input may contain, and what the errors say about a wrong row."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pendulum
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.campaign.digests import row_digest
from airflow_provider_runa.campaign.rows import (
    MAX_RECIPIENT_KEY,
    check_rows,
    find_rendered_key,
    read_campaign,
    read_defaults,
    read_row,
)
from airflow_provider_runa.placement.keys import find_invisible, to_key

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
    built = read_row({"recipient_key": "ada"}, defaults).item.model_dump(exclude_none=True)
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


def key_of(value: Any) -> str:
    row = {"face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US", "recipient_key": value}
    return read_row(row, {}).recipient_key


def rejected_key(value: Any) -> str:
    return rejection({"recipient_key": value, "face_value": 10})


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("ada\x00", "position 4 (U+0000)"),
        ("ada\nlovelace", "position 4 (U+000A)"),
        ("ada\ud800", "position 4 (U+D800)"),
        ("ada\u200b", "position 4 (U+200B)"),
        ("  ada\u200b", "position 6 (U+200B)"),
        ("\ufeffada", "position 1 (U+FEFF)"),
        ("a\u00adda", "position 2 (U+00AD)"),
        ("ada\u202e42", "position 4 (U+202E)"),
        ("ada\u00a0lovelace", "position 4 (U+00A0)"),
        ("ada\u2028lovelace", "position 4 (U+2028)"),
        ("ada\u034f", "position 4 (U+034F)"),
        ("ada\ufe0f", "position 4 (U+FE0F)"),
        ("ada\u3164", "position 4 (U+3164)"),
        ("ada\ue000", "position 4 (U+E000)"),
        ("ada\u0378", "position 4 (U+0378)"),
    ],
)
def test_a_key_with_an_invisible_character_is_rejected_with_its_position(key: str, place: str) -> None:
    assert rejected_key(key) == f"recipient_key: has an invisible character at {place}"


def test_two_forms_of_a_character_are_one_key() -> None:
    assert key_of("jos\u00e9") == key_of("jose\u0301") == "jos\u00e9"
    assert key_of("\u212bngstr\u00f6m") == key_of("A\u030angstro\u0308m")
    assert key_of("Jos\u00e9") != key_of("jos\u00e9"), "case counts"


def test_a_key_is_measured_as_it_is_stored() -> None:
    assert len(key_of("e\u0301" * MAX_RECIPIENT_KEY)) == MAX_RECIPIENT_KEY


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (datetime(2026, 10, 1), "2026-10-01"),
        (datetime(2026, 10, 1, tzinfo=UTC), "2026-10-01"),
        (datetime(2026, 10, 1, 2, tzinfo=timezone(timedelta(hours=2))), "2026-10-01"),
        (datetime(2026, 10, 1, 12, 30), "2026-10-01 12:30:00"),
        (datetime(2026, 10, 1, 14, 30, tzinfo=timezone(timedelta(hours=2))), "2026-10-01 12:30:00"),
        (datetime(2026, 10, 1, 12, 30, 0, 5), "2026-10-01 12:30:00.000005"),
        (pendulum.datetime(2026, 10, 1, 14, 30, tz="Europe/Berlin"), "2026-10-01 12:30:00"),
        (pendulum.date(2026, 10, 1), "2026-10-01"),
        ("2026-10-01 00:00:00", "2026-10-01 00:00:00"),
    ],
)
def test_a_time_is_the_same_key_with_and_without_its_zone(key: Any, text: str) -> None:
    assert key_of(key) == text


def test_a_time_that_has_no_text_is_rejected() -> None:
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    assert rejected_key(early) == "recipient_key: must be a time between the years 1 and 9999 in UTC"

    class Timestamp(datetime):
        nanosecond = 5

    assert rejected_key(Timestamp(2026, 10, 1)) == "recipient_key: must not be a time with nanoseconds"


def test_a_uuid_is_the_same_key_in_every_case() -> None:
    upper = "00000000-0000-4000-8000-0000000000AA"
    assert key_of(upper) == key_of(UUID(upper)) == key_of(upper.lower()) == upper.lower()
    assert key_of(f"{upper}-B") == f"{upper}-B"


@pytest.mark.parametrize("key", [float("inf"), float("-inf"), Decimal("Infinity"), Decimal("-Infinity")])
def test_a_key_that_is_infinite_is_rejected(key: Any) -> None:
    assert rejected_key(key) == "recipient_key: must be text or a whole number, not infinite"


@pytest.mark.parametrize(
    "key", [10**5000, -(10**5000), 10**200, Decimal("1E5000"), Decimal("-1E9999999"), 1e300], ids=type
)
def test_a_number_of_very_many_digits_is_rejected(key: Any) -> None:
    assert rejected_key(key) == "recipient_key: must have at most 200 characters"


def test_a_number_next_to_zero_is_no_whole_number() -> None:
    assert rejected_key(Decimal("1E-9999999")) == "recipient_key: must be text or a whole number"


def test_the_text_of_an_enum_is_its_value() -> None:
    class Customer(str, Enum):  # noqa: UP042 - the text of such a member is its name
        ADA = "ada"

    assert key_of(Customer.ADA) == "ada"


class NAType:
    """As in pandas."""

    def __ne__(self, other: object) -> bool:
        raise TypeError("boolean value of NA is ambiguous")


class NaTType(datetime):
    """As in pandas, where it is a datetime."""


MISSING = [None, "", " ", "nan", "None", "#N/A", float("nan"), Decimal("NaN"), Decimal("sNaN"), NAType()]
MISSING.append(NaTType(2026, 10, 1))


@pytest.mark.parametrize("value", MISSING)
def test_what_is_missing_in_a_field_of_who_and_how_much_is_no_default(value: Any) -> None:
    row = {"recipient_key": "ada", "face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US"}
    defaults = {"face_value": 400, "distribution_method": {"type": "PAYOUT_LINK"}}
    assert rejection(row | {"face_value": value}, **defaults).startswith("face_value: is missing; a default is only")
    assert rejection(row | {"email_address": value}, **defaults) == "email_address: is missing"
    assert rejection(row | {"recipient_key": value}, **defaults) == "recipient_key: is missing"
    assert rejection(row | {"recipient_reference": value}, **defaults) == "recipient_reference: is missing"
    del row["email_address"]
    assert rejection(row | {"distribution_method": value}, **defaults) == "distribution_method: is missing"


@pytest.mark.parametrize("value", MISSING)
def test_what_is_missing_in_another_field_is_the_default(value: Any) -> None:
    row = {"email_address": "ada@example.com", "product": value, "template_id": value, "redemption_template_id": value}
    built = item(row, product="CAFE-US", redemption_template_id="DT-1")
    assert built["products"] == {"type": "SINGLE", "value": "CAFE-US"}
    assert built["distribution_method"]["template_id"] == "DT-1"


def test_of_two_ways_to_say_where_one_may_be_missing() -> None:
    link = {"type": "PAYOUT_LINK"}
    row = {"email_address": None, "recipient_reference": None, "distribution_method": link}
    assert item(row, product="AMZ-US")["distribution_method"] == link
    row = {"email_address": "ada@example.com", "distribution_method": None}
    assert item(row, product="AMZ-US")["distribution_method"]["type"] == "EMAIL"


@pytest.mark.parametrize(
    ("row", "default", "method"),
    [
        ({"email_address": "a@example.com"}, {"type": "EMAIL"}, {"type": "EMAIL", "template_id": "DT-1"}),
        ({"email_address": "a@example.com"}, {"type": "PAYOUT_LINK"}, {"type": "EMAIL", "template_id": "DT-1"}),
        ({}, {"type": "PAYOUT_LINK"}, {"type": "PAYOUT_LINK", "template_id": "DT-1"}),
        (
            {"email_address": "a@example.com", "recipient_reference": "a"},
            {"type": "RECIPIENT"},
            {"type": "RECIPIENT", "recipient_reference": "a", "template_id": "DT-1"},
        ),
        (
            {"email_address": "a@example.com", "redemption_template_id": "DT-2"},
            {"type": "EMAIL"},
            {"type": "EMAIL", "template_id": "DT-2"},
        ),
        ({"redemption_template_id": "DT-2"}, {"type": "PAYOUT_LINK"}, {"type": "PAYOUT_LINK", "template_id": "DT-2"}),
        (
            {"distribution_method": {"type": "EMAIL", "email_address": "a@example.com"}},
            {"type": "PAYOUT_LINK"},
            {"type": "EMAIL", "template_id": "DT-1"},
        ),
        (
            {"distribution_method": {"type": "EMAIL", "email_address": "a@example.com", "template_id": "DT-3"}},
            {"type": "EMAIL"},
            {"type": "EMAIL", "template_id": "DT-3"},
        ),
    ],
)
def test_a_row_keeps_the_redemption_template_of_the_defaults(
    row: dict[str, Any], default: dict[str, Any], method: dict[str, Any]
) -> None:
    built = item(row, product="AMZ-US", distribution_method=default | {"template_id": "DT-1"})["distribution_method"]
    assert {name: value for name, value in built.items() if name != "email_address"} == method


def test_a_row_of_another_type_than_the_default_is_rejected() -> None:
    row = {"recipient_key": "ada", "face_value": 10, "email_address": "ada@example.com", "product": "AMZ-US"}
    by_reference = {"distribution_method": {"type": "RECIPIENT"}}
    assert rejection(row, **by_reference) == "distribution_method.recipient_reference: is missing"
    text = rejection(row | {"recipient_reference": "ada"}, distribution_method={"type": "EMAIL"})
    assert text == "distribution_method.recipient_reference: there is no such field"


def test_a_product_of_a_row_keeps_the_rules_of_the_default() -> None:
    rules = {"usage_config": {"spend_rules_template_id": "PSR-01HQ12PV4B8XMBRTK281JM54KK"}}
    default = {"type": "SINGLE", "value": "CARD-US"} | rules
    built = item({"email_address": "ada@example.com", "product": "CARD-2-US"}, products=default)
    assert built["products"] == {"type": "SINGLE", "value": "CARD-2-US"} | rules


def test_objects_may_be_json_text() -> None:
    method, products = {"type": "PAYOUT_LINK"}, {"type": "MULTIPLE", "values": ["AMZ-US", "CAFE-US"]}
    built = item({"distribution_method": json.dumps(method), "products": json.dumps(products)})
    assert built["distribution_method"] == method
    assert built["products"]["values"] == ("AMZ-US", "CAFE-US")
    defaults = json.dumps({"product": "AMZ-US", "distribution_method": method, "face_value": 5.1})
    assert read_row({"recipient_key": "ada"}, read_defaults(defaults)).item.face_value == Decimal("5.1")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("PAYOUT_LINK", "distribution_method: is text that is not JSON"),
        ("[1, 2]", "distribution_method: must be an object, not list"),
        ("[" * 100_000, "distribution_method: is text that is not JSON"),
        (["PAYOUT_LINK"], "distribution_method: must be an object, not list"),
    ],
)
def test_a_method_that_is_no_object_is_rejected(text: Any, problem: str) -> None:
    assert rejection({"recipient_key": "ada", "face_value": 10, "distribution_method": text}) == problem


@pytest.mark.parametrize(
    ("defaults", "problem"),
    [
        ({"currency": "USD"}, "has no use for the field(s) currency; known are "),
        ({"recipient_key": "ada"}, "recipient_key: is a field of each row, and has no default"),
        ({"email_address": "a@example.com"}, "email_address: is a field of each row, and has no default"),
        ({"recipient_reference": "ada"}, "recipient_reference: is a field of each row, and has no default"),
        (
            {"distribution_method": {"type": "EMAIL", "email_address": "a@example.com"}},
            "distribution_method.email_address: is a field of each row, and has no default",
        ),
        ({"distribution_method": {"template_id": "DT-1"}}, "distribution_method: type is missing"),
        ({"distribution_method": {"type": "SMS"}}, "distribution_method: type must be one of "),
        ({"distribution_method": {"type": "EMAIL", "template": "DT-1"}}, "distribution_method.template: there is no "),
        (
            {"distribution_method": {"type": "EMAIL"}, "redemption_template_id": "DT-1"},
            "distribution_method: says the same as redemption_template_id; give one of them",
        ),
        ({"redemption_template_id": 5}, "distribution_method.template_id: must be text"),
        ({"product": "AMZ-US", "template_id": TEMPLATE}, "product: says the same as template_id; give one of them"),
        ({"product": None}, "product: is missing"),
        ({"template_id": "None"}, "template_id: is missing"),
        ({"products": {"type": "SINGLE"}}, "products.value: is missing"),
        ({"face_value": "1,50"}, "face_value: must be written without commas"),
        ({"face_value": float("nan")}, "face_value: is missing"),
        ("product", "is text that is not JSON"),
        ("[1]", "must be a mapping of fields, not list"),
        (["product"], "must be a mapping of fields, not list"),
    ],
)
def test_a_default_that_no_row_could_use_is_rejected(defaults: Any, problem: str) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        read_defaults(defaults)
    assert str(caught.value).startswith(f"defaults: {problem}")
    assert "\n" not in str(caught.value)
    assert "@example" not in str(caught.value)


def test_defaults_are_read_once() -> None:
    defaults = read_defaults({"product": "AMZ-US", "face_value": 5})
    assert read_defaults(defaults) is defaults
    assert read_defaults(None) == {}
    row = {"recipient_key": "ada", "email_address": "ada@example.com"}
    assert read_row(row, defaults).item == read_row(row, {"product": "AMZ-US", "face_value": 5}).item


@pytest.mark.parametrize(
    ("campaign", "problem"),
    [
        (None, "is missing"),
        (" N/A ", "is missing"),
        (float("nan"), "is missing"),
        (202610, "must be text, not int. With render_template_as_native_obj=True, 2026_10 becomes the number 202610"),
        (date(2026, 10, 1), "must be text, not date"),
        (["spring"], "must be text, not list"),
        ("spring\u2060", "has an invisible character at position 7 (U+2060)"),
        ("s" * 110, "must have at most 109 characters, has 110"),
    ],
)
def test_a_campaign_that_is_no_name_is_rejected(campaign: Any, problem: str) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        read_campaign(campaign)
    assert str(caught.value).startswith(f"campaign: {problem}")


def test_a_campaign_is_one_name_in_all_forms_of_its_characters() -> None:
    assert read_campaign(" e\u0301te\u0301 ") == read_campaign("\u00e9t\u00e9") == "\u00e9t\u00e9"
    assert len(read_campaign("e\u0301" * 109)) == 109


class Frame:
    """As in pandas."""

    columns = ("recipient_key", "face_value")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (Frame(), "rows: must be a list of mappings, not Frame; convert it, as in frame.to_dict('records')"),
        ("recipient_key", "rows: must be a list, not str"),
        (b"recipient_key", "rows: must be a list, not bytes"),
        ({"recipient_key": "ada"}, "rows: must be a list, not dict"),
        (5, "rows: must be a list, not int"),
        (None, "rows: is missing; give a list of mappings, or override iter_rows"),
        ([], None),
        (iter([]), None),
        ({}.values(), None),
    ],
)
def test_what_is_no_list_of_rows_is_rejected(rows: Any, problem: str | None) -> None:
    assert check_rows(rows) == problem


def test_a_key_that_was_text_before_it_was_rendered_is_found() -> None:
    def found(before: Any, after: Any) -> int | None:
        return find_rendered_key([{"recipient_key": "x"}, {"recipient_key": before}], [{"recipient_key": "x"}, after])

    assert found("{{ phone }}", {"recipient_key": 4479}) == 1
    assert found("{{ phone }}", {"recipient_key": "+4479"}) is None
    assert found("{{ phone }}", {"recipient_key": None}) is None, "is reported as missing"
    assert found(4479, {"recipient_key": 4479}) is None
    assert find_rendered_key("{{ rows }}", [{"recipient_key": 4479}]) is None, "nobody can tell"


def frames_of(error: BaseException) -> str:
    """Return the local variables of the provider's frames in an error's traceback, and of the errors before it."""
    shown, chain = [], [error]
    while chain:
        one = chain.pop()
        chain += [before for before in (one.__cause__, one.__context__) if before is not None]
        trace = one.__traceback__
        while trace is not None:
            if "airflow_provider_runa" in trace.tb_frame.f_code.co_filename:
                shown.append(f"{trace.tb_frame.f_code.co_name}: {trace.tb_frame.f_locals!r}")
            trace = trace.tb_next
    return "\n".join(shown)


@pytest.mark.parametrize(
    "fields",
    [
        {"face_value": "ten-7311"},
        {"face_value": None},
        {"email_address": "ada 7311"},
        {"recipient_key": "ada-7311\u200b"},
        {"recipient_key": b"7311"},
        {"recipient_reference": "7311!"},
        {"distribution_method": "7311"},
        {"product": 7311},
        {"template_id": "7311"},
        {"field_7311": 1},
    ],
)
def test_a_rejection_is_raised_where_no_local_variable_has_the_row(fields: dict[str, Any]) -> None:
    row = {"recipient_key": "key-7311", "face_value": 10, "email_address": "ada-7311@example.com", "product": "AMZ-US"}
    with pytest.raises(InvalidOrderError) as caught:
        read_row(row | fields, {"redemption_template_id": "DT-7311"})
    shown = frames_of(caught.value)
    assert shown.startswith("read_row: ")
    assert "7311" not in shown.replace(str(caught.value), "").replace(repr(str(caught.value)), "")


def test_defaults_are_rejected_where_no_local_variable_has_them() -> None:
    with pytest.raises(InvalidOrderError) as caught:
        read_defaults({"email_address": "ada-7311@example.com"})
    assert "read_defaults: " in frames_of(caught.value)
    assert "7311" not in frames_of(caught.value)


# -- keys as texts ----------------------------------------------------------------------------------------------------

UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def key_or_none(text: str) -> str | None:
    """Return the key of a text, ``None`` if it is rejected, which must be with one line."""
    try:
        return key_of(text)
    except InvalidOrderError as error:
        message = str(error)
    assert re.fullmatch(r"recipient_key: [ -~]+", message)
    return None


letters = st.characters(categories=["L", "M", "N", "P", "S"]) | st.sampled_from(
    "e\u0301\u00e9\u212b \u00a0\u200b\ufeff\t"
)
texts = st.text(max_size=40) | st.text(letters, max_size=220)


@given(texts)
@settings(max_examples=400, deadline=None)
def test_a_text_is_rejected_or_is_one_key_in_all_its_forms(text: str) -> None:
    key = key_or_none(text)
    for form in ("NFC", "NFD"):
        assert key_or_none(f" {unicodedata.normalize(form, text)}\u3000") == key
    if key is not None:
        assert key == key_of(key), "a key is its own"
        assert key == unicodedata.normalize("NFC", text.strip()) or UUID_TEXT.fullmatch(text.strip())
        assert key.isprintable()
        assert 0 < len(key) <= MAX_RECIPIENT_KEY
        digest = row_digest("https://example.com", "spring", key)
        assert digest == row_digest("https://example.com", "spring", key_of(unicodedata.normalize("NFD", text)))


@given(texts, texts)
@settings(max_examples=400, deadline=None)
def test_two_texts_that_look_different_are_two_keys(one: str, other: str) -> None:
    keys = key_or_none(one), key_or_none(other)
    if None in keys or any(UUID_TEXT.fullmatch(text.strip()) for text in (one, other)):
        return
    look_the_same = unicodedata.normalize("NFD", one.strip()) == unicodedata.normalize("NFD", other.strip())
    assert (keys[0] == keys[1]) == look_the_same


@given(texts, st.integers(0, 40), st.sampled_from("\u200b\u200d\ufeff\u00ad\u2060\u180e\u202e\x00\x7f"))
@settings(max_examples=200, deadline=None)
def test_an_invisible_twin_of_a_key_is_rejected(text: str, position: int, invisible: str) -> None:
    twin = f"{text[:position]}{invisible}{text[position:]}"
    assert key_or_none(f"x{twin}x") is None


def test_every_character_of_unicode_is_seen_or_rejected() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        shown = f"x{character}x"
        if unicodedata.category(character)[0] == "C" or (character.isspace() and character != " "):
            assert find_invisible(shown) == f"has an invisible character at position 2 (U+{code:04X})"
        elif find_invisible(shown) is None:
            assert find_invisible(to_key(shown)) is None


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
        ({"email_address": None}, "email_address"),
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
