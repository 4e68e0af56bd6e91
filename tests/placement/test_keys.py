"""Order keys: what counts as the same key, and what is rejected."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.keys import is_missing

URL = "https://api.example.com/v2"


def test_an_order_key_is_the_same_in_all_forms_of_its_characters() -> None:
    keys = ("jos\u00e9-42", "jose\u0301-42", "\u3000 jos\u00e9-42\n")
    assert len({OrderIdentity.from_order_key(URL, key).idempotency_key(0) for key in keys}) == 1
    assert OrderIdentity.from_order_key(URL, "Jos\u00e9-42") != OrderIdentity.from_order_key(URL, keys[0])


@pytest.mark.parametrize(
    ("key", "place"), [("ada-7311\u200b", "position 9 (U+200B)"), ("\ufeffa", "position 1 (U+FEFF)")]
)
def test_an_order_key_with_an_invisible_character_is_rejected(key: str, place: str) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        OrderIdentity.from_order_key(URL, key)
    assert str(caught.value) == f"order_key: has an invisible character at {place}"
    trace = caught.value.__traceback__
    assert trace is not None
    assert trace.tb_next is not None
    assert "7311" not in repr(trace.tb_next.tb_frame.f_locals)


@pytest.mark.parametrize("value", [None, " NaN ", "n/a", float("nan"), Decimal("sNaN"), Decimal("-NaN"), ""])
def test_a_missing_value_is_recognized(value: Any) -> None:
    assert is_missing(value)


@pytest.mark.parametrize("value", [0, False, 10**5000, float("inf"), Decimal(0), {}, [], "0", "nano"], ids=type)
def test_a_value_that_is_there_is_not_missing(value: Any) -> None:
    assert not is_missing(value)
