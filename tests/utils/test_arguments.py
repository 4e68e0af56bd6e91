"""Parsing of rendered arguments: accepted forms, and errors that name the parameter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.utils.arguments import (
    NOTSET,
    check_own_task,
    parse_datetime,
    read_amount,
    read_days,
    read_estimate,
    read_items,
    read_json,
    to_seconds,
    unset_to_none,
)
from airflow_provider_runa.utils.masking import Masked

ITEM: dict[str, Any] = {
    "face_value": 10,
    "distribution_method": {"type": "EMAIL", "email_address": "ada-7311@example.com"},
    "products": {"type": "SINGLE", "value": "AMZ-US"},
}


@pytest.mark.parametrize("value", [None, 0, "", "x"])
def test_only_notset_becomes_none(value: Any) -> None:
    assert unset_to_none(value) is value
    assert unset_to_none(NOTSET) is None


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ('[{"a": 1}]', [{"a": 1}]),
        ('{"a": null}', {"a": None}),
        ([{"a": 1}], [{"a": 1}]),
        (None, None),
        (7, 7),
        (Masked('["a"]'), ["a"]),
        (Masked(["a"]), ["a"]),
    ],
)
def test_text_is_parsed_as_json_and_other_values_are_unchanged(value: Any, parsed: Any) -> None:
    assert read_json("rows", value) == parsed


def test_decimals_in_json_are_exact() -> None:
    (value,) = read_json("rows", "[10.10]")
    assert isinstance(value, Decimal)
    assert str(value) == "10.10"


@pytest.mark.parametrize("text", ["", "[{'face_value': 10}]", "None", "rows"])
def test_text_that_is_not_json_is_rejected_with_the_fix(text: str) -> None:
    with pytest.raises(
        InvalidOrderError, match=r"^rows: rendered to text that is not JSON; end .* '\| tojson'"
    ) as error:
        read_json("rows", text)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__, "a parser error would show the text, which may contain recipients"


@pytest.mark.parametrize("items", [[ITEM], (ITEM,), '[{"face_value": 10}]', []])
def test_items_are_a_list(items: Any) -> None:
    assert len(read_items(items)) in (0, 1)


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        ({"face_value": 10}, "dict"),
        ('{"face_value": 10}', "dict"),
        (None, "NoneType"),
        ({1}, "set"),
        (iter([ITEM]), ""),
    ],
)
def test_items_without_an_order_are_rejected(items: Any, kind: str) -> None:
    with pytest.raises(InvalidOrderError, match=f"^items: must be a list, not .*{kind}"):
        read_items(items)


@pytest.mark.parametrize(
    ("value", "amount"), [("10.50", "10.50"), (" 7 ", "7"), (3, "3"), (0.1, "0.1"), (Decimal("1.00"), "1.00")]
)
def test_amounts_are_exact(value: Any, amount: str) -> None:
    assert str(read_amount("max_total", value)) == amount


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "ten",
        "1.000",
        "1_000",
        "\uff11\uff10",
        "1e3",
        "NaN",
        "Infinity",
        float("inf"),
        [1],
    ],
)
def test_a_value_that_is_no_amount_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidOrderError, match=r"^max_total: must be an amount, not "):
        read_amount("max_total", value)


def test_a_number_of_too_many_digits_is_rejected() -> None:
    with pytest.raises(InvalidOrderError, match=r"^max_total: must be an amount, not int$"):
        read_amount("max_total", 10**5000)


def test_an_estimate_has_no_recipients() -> None:
    request = read_estimate("USD", [ITEM])
    assert request.payment_method.currency == "USD"
    assert b"AMZ-US" in request.body()
    assert b"ada-7311" not in request.body()
    assert b"distribution_method" not in request.body()
    assert "distribution_method" in ITEM, "the items of the task are unchanged"


def test_an_estimate_rejects_other_entries_than_items() -> None:
    with pytest.raises(InvalidOrderError, match=r"items\[0\]: must be an object"):
        read_estimate("USD", ["AMZ-US"])


@pytest.mark.parametrize(("value", "seconds"), [(30, 30.0), (0.5, 0.5), (timedelta(minutes=2), 120.0)])
def test_durations_are_seconds(value: Any, seconds: float) -> None:
    assert to_seconds("timeout", value) == seconds


@pytest.mark.parametrize("value", [0, -1, None, True, "30", float("inf"), float("nan"), timedelta(0)])
def test_a_value_that_is_no_duration_is_rejected(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^timeout: must be a timedelta or a number of seconds above zero, not "):
        to_seconds("timeout", value)


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        (" 2026-01-31T12:00Z ", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        (datetime(2026, 1, 31), datetime(2026, 1, 31, tzinfo=UTC)),
    ],
)
def test_times_without_a_zone_are_utc(value: Any, time: datetime) -> None:
    parsed = parse_datetime("since", value)
    assert parsed == time
    assert parsed is not None
    assert parsed.tzinfo is not None


def test_a_zone_is_kept() -> None:
    value = datetime(2026, 1, 31, tzinfo=timezone(timedelta(hours=5)))
    assert parse_datetime("since", value) is value


def test_no_time_stays_none() -> None:
    assert parse_datetime("since", None) is None


@pytest.mark.parametrize("value", ["", "None", "yesterday", 20260131.5])
def test_a_value_that_is_no_time_is_rejected(value: Any) -> None:
    with pytest.raises(InvalidOrderError, match=r"^since: must be a date or a time such as 2026-01-31T12:00Z, not "):
        parse_datetime("since", value)


# -- wrong values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_amount, read_days, parse_datetime, to_seconds])
def test_an_error_shows_no_recipient_and_no_link(read: Any) -> None:
    for value in ([ITEM], f"{ITEM}", "ada-7311@example.com", "https://payouts.example.com/7311\n"):
        with pytest.raises(ValueError, match=r"^name: must be .*, not .* \((list|str)\)$") as caught:
            read("name", value)
        assert "7311" not in str(caught.value)


def test_an_operator_inside_another_task_is_rejected() -> None:
    context: Any = {"ti": SimpleNamespace(task_id="group.pay")}
    check_own_task(SimpleNamespace(task_id="group.pay"), context)
    with pytest.raises(InvalidOrderError, match=r"^task_id: inner runs inside task group.pay.* make each .* a task$"):
        check_own_task(SimpleNamespace(task_id="inner"), context)
    with pytest.raises(InvalidOrderError, match=r"a task, or give each a key$"):
        check_own_task(SimpleNamespace(task_id="inner"), context, or_else="give each a key")


@pytest.mark.parametrize("items", [{}.items, str({}.items)], ids=["method", "text"])
def test_the_method_of_a_dict_is_named(items: Any) -> None:
    with pytest.raises(InvalidOrderError, match=r"items: is a method of a dict.*params\['items'\]"):
        read_items(items)


def test_a_data_frame_says_how_to_convert_it() -> None:
    with pytest.raises(InvalidOrderError, match="to_dict"):
        read_items(SimpleNamespace(columns=["face_value"]))


def test_an_amount_with_a_comma_says_so() -> None:
    with pytest.raises(InvalidOrderError, match="max_total: must be written without commas"):
        read_amount("max_total", "1,000")
