"""What a COMPLETED order must show of each item that was ordered, and which differences are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.placement.payment import Expectation, check_items, counterparts, differences, unpaid

ADDRESS = "ada.lovelace-7311@example.com"


def item(amount: Any = 10, address: str | None = ADDRESS, **values: Any) -> dict[str, Any]:
    method = {"type": "EMAIL", "email_address": address} if address else {"type": "PAYOUT_LINK"}
    product = {"type": "SINGLE", "value": "AMZ-US"}
    return {"face_value": amount, "distribution_method": method, "products": product} | values


def wanted(*items: dict[str, Any]) -> NewOrder:
    return NewOrder.build(currency="USD", items=items)


def placed(*items: dict[str, Any], currency: str = "USD", status: str = "ACTIVE", **values: Any) -> Order:
    rows = [{"id": f"I-{n}", "payout": {"status": status}} | shown for n, shown in enumerate(items)]
    method = {"type": "ACCOUNT_BALANCE", "currency": currency}
    return Order.model_validate({"id": "O-1", "status": "COMPLETED", "payment_method": method, "items": rows, **values})


def problems(order: NewOrder, answer: Order) -> list[str | None]:
    return [check.problem for check in check_items(order, answer)]


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("Ada@Example.com", "ada@example.com"),
        ("ada@example.com", "a***@example.com"),
        ("ada@example.com", "a**@e******.com"),
        ("ada@example.com", "a\u2022\u2022@example.com"),
        ("ada@example.com", ""),
        ("ada@münchen.example", "ada@xn--mnchen-3ya.example"),
        ("ada@xn--mnchen-3ya.example", "ada@MÜNCHEN.example"),
        ("ada@straße.example", "ada@xn--strae-oqa.example"),
        ("ada@straße.example", "ada@strasse.example"),
        ("jose\u0301@example.com", "jos\u00e9@example.com"),
    ],
)
def test_a_recipient_in_another_spelling_is_no_difference(sent: str, shown: str) -> None:
    assert problems(wanted(item(address=sent)), placed(item() | _to(shown))) == [None]
    assert differences(wanted(item(address=sent)), placed(item() | _to(shown))) == []


def _to(address: str) -> dict[str, Any]:
    return {"distribution_method": {"type": "EMAIL", "email_address": address}}


@pytest.mark.parametrize("shown", ["grace@example.com", "g***@example.com", "ada.lovelace-7311@example.org", "*@*.org"])
def test_another_recipient_is_a_difference(shown: str) -> None:
    (problem,) = problems(wanted(item()), placed(item() | _to(shown)))
    assert problem == "the order's item differs in distribution_method.email_address"


@pytest.mark.parametrize("shown", ["reference-7311", "ref***", "", None])
def test_a_reference_may_be_masked_or_missing(shown: str | None) -> None:
    method = {"type": "RECIPIENT", "email_address": ADDRESS, "recipient_reference": "reference-7311"}
    answer = item() | {"distribution_method": method | {"recipient_reference": shown}}
    assert problems(wanted(item() | {"distribution_method": method}), placed(answer)) == [None]


@pytest.mark.parametrize(
    "products",
    [
        {"type": "UNKNOWN"},
        {},
        {"type": "SINGLE"},
        {"type": "MULTIPLE"},
        {"type": "TEMPLATE"},
        {"type": "SINGLE", "value": "AMZ-US", "usage_config": {"spend_rules_template_id": ""}},
    ],
)
def test_products_that_are_not_shown_are_no_difference(products: dict[str, Any]) -> None:
    assert problems(wanted(item()), placed(item() | {"products": products})) == [None]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (placed(item("11.00")), "the order's item differs in face_value"),
        (placed(item(products={"type": "SINGLE", "value": "SHOE-US"})), "the order's item differs in products"),
        (placed(), "the order has no item for it"),
        (placed(item(99, "grace@example.com")), "the order has no item for it"),
        (placed(item(), status="CANCELLED"), "its payout is CANCELLED"),
        (placed(item(), status="cancelled"), "its payout is CANCELLED"),
        (placed(item(), currency="EUR"), "it was paid from EUR, not from USD"),
        (placed(item(), currency="EUR\n\x1b[31m"), "it was paid from another currency, not from USD"),
    ],
)
def test_an_item_that_is_not_paid_as_ordered_has_a_problem(answer: Order, problem: str) -> None:
    assert problems(wanted(item()), answer) == [problem]


@pytest.mark.parametrize("status", ["ACTIVE", "CLAIMED", "EXPIRED", "NEW", None])
def test_other_states_of_a_payout_are_no_problem(status: str | None) -> None:
    assert problems(wanted(item()), placed(item() | {"payout": {"status": status}})) == [None]
    assert problems(wanted(item()), placed(item() | {"payout": None})) == [None]


def test_the_checks_have_the_sequence_of_the_wanted_items() -> None:
    order = wanted(item(1), item(2, "b@example.com"), item(3, None), item(4, "d@example.com"))
    answer = placed(item(3, None), item(4, "d@example.com"), item(1))
    checks = check_items(order, answer)
    assert [check.problem for check in checks] == [None, "the order has no item for it", None, None]
    assert [check.item and check.item.id for check in checks] == ["I-2", None, "I-0", "I-1"]


def test_as_many_masked_items_as_possible_find_the_one_they_belong_to() -> None:
    """Greedily, the first would take ada, who is the only one that fits the second."""
    order = wanted(item(address="ada@example.com"), item(address="bob@example.com"))
    answer = placed(item(address="*@example.com"), item(address="a*@example.com"))
    assert problems(order, answer) == [None, None]
    assert {index: found.id for index, found in counterparts(order, answer).items()} == {0: "I-1", 1: "I-0"}


def test_two_hundred_masked_items_are_matched() -> None:
    order = wanted(*(item(address=f"{n:03}-ada@example.com") for n in range(200)))
    answer = placed(*(item(address="*@example.com") for n in range(199)), item(address="000-*@example.com"))
    assert set(problems(order, answer)) == {None}


def test_items_that_pay_the_same_are_matched_in_their_sequence() -> None:
    order = wanted(item(10, None), item(20, None), item(10, None))
    answer = placed(item(20, None), item(10, None), item(10, None))
    assert [check.item and check.item.id for check in check_items(order, answer)] == ["I-1", "I-0", "I-2"]


# -- what a deferral hands over -------------------------------------------------------------------------------------


ORDER = wanted(item("10.50"), item(20, None), item(20, "grace@example.com"))


def expectations() -> list[Expectation]:
    stored = Expectation.from_json(json.loads(json.dumps(Expectation.of(ORDER).to_json())))
    assert stored is not None
    return [Expectation.of(ORDER), stored]


def test_an_expectation_is_stored_without_recipients() -> None:
    stored = json.dumps(Expectation.of(ORDER).to_json())
    assert "example.com" not in stored
    assert json.loads(stored)["face_values"] == ["10.5", "20", "20"]


@pytest.mark.parametrize("expected", expectations())
def test_an_order_that_pays_as_expected_has_no_mismatch(expected: Expectation) -> None:
    assert expected.mismatches(placed(item(20, "g*@example.com"), item("10.5"), item(20, None))) == []


@pytest.mark.parametrize("expected", expectations())
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (placed(), ["it shows no items, 3 were ordered"]),
        (
            placed(item("10.50"), item(20, "grace@example.com")),
            ["items[1]: the order has no item for it"],
        ),
        (
            placed(item("10.50"), item(20, None), item(21, "grace@example.com")),
            ["items[2]: the order's item differs in face_value"],
        ),
        (
            placed(item("10.50"), item(20, None), item(20, "grace@example.com"), item(5), item(6)),
            ["it has 2 item(s) that were not ordered"],
        ),
        (
            placed(item("10.50"), item(20, None), item(20, "grace@example.com") | {"payout": {"status": "CANCELLED"}}),
            ["items[2]: its payout is CANCELLED"],
        ),
        (
            placed(item("10.50"), item(20, None), item(20, "grace@example.com"), currency="EUR"),
            [f"items[{n}]: it was paid from EUR, not from USD" for n in range(3)],
        ),
    ],
)
def test_a_mismatch_names_the_index(expected: Expectation, answer: Order, told: list[str]) -> None:
    assert expected.mismatches(answer) == told


def test_only_a_stored_expectation_ignores_the_recipient() -> None:
    complete, stored = expectations()
    answer = placed(item("10.50", "eve@example.com"), item(20, None), item(20, "grace@example.com"))
    assert complete.mismatches(answer) == ["items[0]: the order's item differs in distribution_method.email_address"]
    assert stored.mismatches(answer) == []


@pytest.mark.parametrize(
    "values",
    [
        None,
        "x",
        [],
        {},
        {"currency": "USD"},
        {"currency": "USD", "face_values": [], "distributions": [], "products": []},
        {"currency": "USD", "face_values": ["ten"], "distributions": ["EMAIL"], "products": [[]]},
        {"currency": "USD", "face_values": ["1", "2"], "distributions": ["EMAIL"], "products": [[]]},
        {"currency": "USD", "face_values": 5, "distributions": ["EMAIL"], "products": [[]]},
    ],
)
def test_values_that_are_no_expectation_are_none(values: Any) -> None:
    assert Expectation.from_json(values) is None


def test_without_an_expectation_only_counts_are_known() -> None:
    assert unpaid(placed(item(), item())) == []
    assert unpaid(placed()) == ["it shows no items"]
    assert unpaid(Order.model_validate({"id": "O-1", "status": "COMPLETED"})) == ["it shows no items"]
    assert unpaid(placed(item(), item() | {"payout": {"status": "CANCELLED"}})) == ["1 of 2 payout(s) are CANCELLED"]
