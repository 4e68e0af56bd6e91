"""Masking: the text of a field shows no recipient, and Airflow gets every recipient as a secret."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from airflow_provider_runa.utils.masking import (
    MOST_FOR_SUPERVISOR,
    Masked,
    MaskRecipientsMixin,
    excerpt,
    mask_recipients,
    printable,
)
from tests.support.airflow import redact, reset_secrets_masker

ADDRESS = "ada.lovelace-7311@example.com"
ITEM: dict[str, Any] = {
    "face_value": 10,
    "distribution_method": {"type": "RECIPIENT", "recipient_reference": "customer-7311", "email_address": ADDRESS},
}


@pytest.fixture(autouse=True)
def no_secrets() -> None:
    reset_secrets_masker()


@pytest.mark.parametrize("value", [[ITEM], (ITEM,), json.dumps([ITEM]), {"items": [ITEM]}])
def test_the_text_of_a_masked_field_shows_everything_but_the_recipients(value: Any) -> None:
    masked = Masked(value)
    assert masked.value is value
    for text in (str(masked), repr(masked), f"{masked}"):
        assert "7311" not in text
        assert '"face_value": 10' in text
        assert text.count("***") == 2


@pytest.mark.parametrize(
    "text",
    [
        f"pays {ADDRESS}, once",
        f"<{ADDRESS}>",
        f"[{{'email_address': '{ADDRESS}'}}]",
        "ada\\u002dlovelace-7311@example.co.uk",
    ],
)
def test_addresses_in_text_that_is_not_json_are_masked(text: str) -> None:
    assert "***" in str(Masked(text))
    assert "7311" not in str(Masked(text))


def test_text_without_addresses_is_unchanged() -> None:
    assert str(Masked("user@localhost pays @ 10")) == "user@localhost pays @ 10"


def test_the_shown_text_replaces_the_value() -> None:
    assert str(Masked([ITEM], "1 rows")) == "1 rows"


def test_values_that_json_does_not_have_are_shown_as_text() -> None:
    assert "None" not in str(Masked([{"face_value": None}]))
    assert str(Masked(object())).startswith('"<object object')


@pytest.mark.parametrize(
    "field", [[ITEM], (ITEM,), json.dumps([ITEM]), {"deep": [{"er": (ITEM,)}]}, {"to": ADDRESS, "or": ITEM}]
)
def test_recipients_become_secrets_of_airflow(field: Any) -> None:
    mask_recipients([field])
    assert redact(f"log line about {ADDRESS}") == "log line about ***"
    if "customer-7311" in str(field):
        assert redact("log line about customer-7311") == "log line about ***"


def test_an_address_with_an_escape_in_json_is_a_secret_in_clear() -> None:
    mask_recipients(['{"email_address": "ada\\u002dlovelace-7311@example.com"}'])
    assert redact("log line about ada-lovelace-7311@example.com") == "log line about ***"


@pytest.mark.parametrize("field", [[], None, 7, "winback", "[not json", {"face_value": 10}])
def test_without_recipients_nothing_becomes_a_secret(field: Any) -> None:
    mask_recipients([field])
    assert redact("winback 10 7 not json face_value") == "winback 10 7 not json face_value"


class Rendering:
    """Airflow's base class: the rendered fields are on the task when its method returns."""

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        self.rendered = parent


class Task(MaskRecipientsMixin, Rendering):
    template_fields = ("items", "order_key")

    def __init__(self, items: Any, order_key: Any = None) -> None:
        self.items, self.order_key = items, order_key


def test_the_mixin_masks_after_rendering() -> None:
    task = Task([ITEM], "winback/grace-7311@example.com")
    task._do_render_template_fields(task)
    assert task.rendered is task
    assert isinstance(task.items, Masked)
    assert task.items.value == [ITEM]
    assert redact(f"{ADDRESS} customer-7311 winback/grace-7311@example.com") == "*** *** winback/***"


def test_the_mixin_reads_a_lazy_sequence_once() -> None:
    class Lazy(tuple[Any, ...]):
        """The XComs of mapped tasks."""

    task = Task(Lazy([ITEM]))
    task._do_render_template_fields(task)
    assert type(task.items.value) is list


def test_a_hook_may_read_the_masked_items() -> None:
    task = Task([ITEM, ITEM])
    task._do_render_template_fields(task)
    assert (len(task.items), task.items[0], list(task.items), bool(task.items)) == (2, ITEM, [ITEM, ITEM], True)
    assert "items" not in vars(task), "OpenLineage would replace a method of its mapping"


def test_the_mixin_leaves_missing_items_alone() -> None:
    task = Task(None)
    task._do_render_template_fields(task)
    assert task.items is None


# -- texts of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        ("lots", "'lots' (str)"),
        (1.5, "1.5 (float)"),
        (f"to {ADDRESS}, https://payouts.example.com/7311", "'to ***, ***' (str)"),
        ("a\n\x1b[31m\u202eb", "'a\\n\\x1b[31m\\u202eb' (str)"),
        (["O-1", None, 7], "['O-1', None, 7] (list)"),
        ([ITEM], "[{'face_value', 'distribution_method'}] (list)"),
        (json.dumps([ITEM]), "\"[{'face_value', 'distribution_method'}]… (str)"),
        (str([ITEM]), "'[{…' (str)"),
        ({ADDRESS: 10}, "{'***'} (dict)"),
        (b"customer-7311", "bytes"),
        (object(), "object"),
        ("x" * 500, f"'{'x' * 39}… (str)"),
        ([[[["customer-7311"]]]], "[[[…]]] (list)"),
    ],
)
def test_an_excerpt_shows_the_type_and_no_recipient(value: Any, shown: str) -> None:
    text = excerpt(value)
    assert text == shown
    assert "7311" not in text
    assert len(text) < 60


def test_a_printable_text_has_no_control_characters() -> None:
    assert printable("Müller\u00a0\n\r\x1b[31m\u202e\u2066\u200b\u2028") == (
        "Müller\\xa0\\n\\r\\x1b[31m\\u202e\\u2066\\u200b\\u2028"
    )
    assert printable("PROCESSING") == "PROCESSING"


# -- many recipients --------------------------------------------------------------------------------------------------


def test_a_thousand_recipients_are_masked_with_one_pattern() -> None:
    """One by one they took 14 s: Airflow compiles its pattern anew for each."""
    began = time.monotonic()
    mask_recipients([{"email_address": f"person-{number}@example.com"} for number in range(1000)])
    assert time.monotonic() - began < 5
    assert redact("to person-0@example.com and person-999@example.com") == "to *** and ***"


def test_many_recipients_are_not_sent_to_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compile its pattern for each of them, and send no heartbeat meanwhile."""
    sent: list[int] = []
    monkeypatch.setattr("airflow_provider_runa.utils.masking.mask_secret", lambda secrets: sent.append(len(secrets)))
    for count in (MOST_FOR_SUPERVISOR, MOST_FOR_SUPERVISOR + 1):
        mask_recipients([[f"{count}-{number}@example.com" for number in range(count)]])
    assert sent == [MOST_FOR_SUPERVISOR]
    assert redact(f"to {MOST_FOR_SUPERVISOR + 1}-0@example.com") == "to ***"


def test_without_airflows_masker_every_recipient_goes_the_public_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> Any:
        raise ImportError

    sent: list[int] = []
    monkeypatch.setattr("airflow_provider_runa.utils.masking.secrets_masker", moved)
    monkeypatch.setattr("airflow_provider_runa.utils.masking.mask_secret", lambda secrets: sent.append(len(secrets)))
    mask_recipients([[f"{number}@example.com" for number in range(MOST_FOR_SUPERVISOR + 1)]])
    assert sent == [MOST_FOR_SUPERVISOR + 1]


def test_a_long_text_without_recipients_takes_no_time() -> None:
    began = time.monotonic()
    mask_recipients(["x" * 100_000])
    assert time.monotonic() - began < 5
