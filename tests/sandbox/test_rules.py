"""What the sandbox refuses: bodies of the wrong form, products that cannot be had, requests that cannot be read."""

from __future__ import annotations

import json
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_runa.sandbox import catalogue
from airflow_provider_runa.sandbox.rules import ascii_domain
from tests.sandbox.account import ADDRESS, BOOKS, BY_MAIL, LINK, TEMPLATE, Account, item, kind, order, single


@pytest.fixture
def account() -> Account:
    return Account()


# -- the form of a body -----------------------------------------------------------------------------------------------

REFERENCE = {"type": "RECIPIENT", "recipient_reference": "ada", "email_address": ADDRESS}
REDEMPTION = "DT-01HPSF51G0ZWHJ3JTNWRH0WDYK"
RULES = "PSR-01HQ12PV4B8XMBRTK281JM54KK"
BY_CARD = {"type": "SINGLE", "value": "VISA-US"}
SEVERAL = {"type": "MULTIPLE", "values": ["AMZ-US", "AIRBNB-US"]}


def card(rules: Any) -> dict[str, Any]:
    return order(item(BY_CARD | {"usage_config": {"spend_rules_template_id": rules}}))


def by(**fields: Any) -> dict[str, Any]:
    """Return an order by e-mail, with other fields in its distribution method."""
    return order(item(method=BY_MAIL | fields))


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


METHOD, PRODUCTS = "items.0.distribution_method", "items.0.products"

WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([], ""),
    "nothing": (None, ""),
    "no payment": (without(order(), "payment_method"), "payment_method"),
    "payment by card": (order() | {"payment_method": {"type": "CARD", "currency": "USD"}}, "payment_method.type"),
    "payment is text": (order() | {"payment_method": "USD"}, "payment_method"),
    "payment without currency": (order() | {"payment_method": {"type": "ACCOUNT_BALANCE"}}, "payment_method.currency"),
    "currency": (order(currency="usd"), "payment_method.currency"),
    "currency is a number": (
        order() | {"payment_method": {"type": "ACCOUNT_BALANCE", "currency": 840}},
        "payment_method.currency",
    ),
    "no items": (order() | {"items": []}, "items"),
    "items missing": (without(order(), "items"), "items"),
    "201 items": (order(*[item()] * 201), "items"),
    "items are text": (order() | {"items": "all"}, "items"),
    "item is text": (order(item(), "one"), "items.1"),
    "face value missing": (order(without(item(), "face_value")), "items.0.face_value"),
    "face value is text": (order(item(face_value="10.00")), "items.0.face_value"),
    "face value is a truth": (order(item(face_value=True)), "items.0.face_value"),
    "face value is null": (order(item(face_value=None)), "items.0.face_value"),
    "face value of zero": (order(item(), item(face_value=0)), "items.1.face_value"),
    "face value below zero": (order(item(face_value=-10)), "items.0.face_value"),
    "face value without end": (order(item(TEMPLATE, face_value=10**400)), "items.0.face_value"),
    "half a cent": (order(item(face_value=10.005)), "items.0.face_value"),
    "template of cents": (order(item(TEMPLATE, face_value=0.5)), "items.0.face_value"),
    "MULTIPLE of cents": (order(item(SEVERAL, 1.5)), "items.0.face_value"),
    "products missing": (order(without(item(), "products")), "items.0.products"),
    "products are text": (order(item("AMZ-US")), "items.0.products"),
    "products untyped": (order(item({"value": "AMZ-US"})), "items.0.products.type"),
    "products of an unknown type": (order(item({"type": "UNKNOWN"})), "items.0.products.type"),
    "products whose type is a list": (order(item({"type": ["SINGLE"]})), "items.0.products.type"),
    "SINGLE without code": (order(item({"type": "SINGLE"})), "items.0.products.value"),
    "SINGLE of an empty code": (order(single("")), "items.0.products.value"),
    "SINGLE of two": (order(item({"type": "SINGLE", "value": ["AMZ-US"]})), "items.0.products.value"),
    "SINGLE with values": (order(item(BOOKS | {"values": ["AMZ-US"]})), "items.0.products.values"),
    "usage is null": (order(item(BY_CARD | {"usage_config": None})), "items.0.products.usage_config"),
    "usage of something else": (
        order(item(BY_CARD | {"usage_config": {"limit": 5}})),
        "items.0.products.usage_config.limit",
    ),
    "spend rules are null": (card(None), "items.0.products.usage_config.spend_rules_template_id"),
    "spend rules of a payout": (
        card("PT-01HQ12PV4B8XMBRTK281JM54KK"),
        f"{PRODUCTS}.usage_config.spend_rules_template_id",
    ),
    "spend rules too short": (card(RULES[:-1]), f"{PRODUCTS}.usage_config.spend_rules_template_id"),
    "spend rules with a U": (card(RULES[:-1] + "U"), f"{PRODUCTS}.usage_config.spend_rules_template_id"),
    "spend rules with a line's end": (card(RULES + "\n"), f"{PRODUCTS}.usage_config.spend_rules_template_id"),
    "MULTIPLE of one": (order(item({"type": "MULTIPLE", "values": ["AMZ-US"]})), "items.0.products.values"),
    "MULTIPLE twice": (order(item({"type": "MULTIPLE", "values": ["AMZ-US"] * 2})), "items.0.products.values"),
    "MULTIPLE of objects": (order(item({"type": "MULTIPLE", "values": [{}, {"a": 1}]})), "items.0.products.values"),
    "TEMPLATE without id": (order(item({"type": "TEMPLATE"})), "items.0.products.template_id"),
    "TEMPLATE with a number": (order(item({"type": "TEMPLATE", "template_id": 1})), "items.0.products.template_id"),
    "TEMPLATE with values": (order(item(TEMPLATE | {"values": ["A", "B"]})), "items.0.products.values"),
    "11 templates": (
        order(*[item({"type": "TEMPLATE", "template_id": f"PT-{number}"}) for number in range(11)]),
        "items",
    ),
    "distribution missing": (order(without(item(), "distribution_method")), "items.0.distribution_method"),
    "distribution is text": (order(item(method="EMAIL")), "items.0.distribution_method"),
    "distribution untyped": (order(item(method={})), "items.0.distribution_method.type"),
    "distribution of an unknown type": (order(item(method={"type": "SMS"})), "items.0.distribution_method.type"),
    "EMAIL without address": (order(item(method={"type": "EMAIL"})), "items.0.distribution_method.email_address"),
    "EMAIL to null": (by(email_address=None), "items.0.distribution_method.email_address"),
    "EMAIL to nowhere": (by(email_address="ada"), "items.0.distribution_method.email_address"),
    "EMAIL with a reference": (by(recipient_reference="ada"), "items.0.distribution_method.recipient_reference"),
    "PAYOUT_LINK with an address": (order(item(method=LINK | {"email_address": ADDRESS})), f"{METHOD}.email_address"),
    "template of another kind": (by(template_id=TEMPLATE["template_id"]), "items.0.distribution_method.template_id"),
    "template is null": (by(template_id=None), "items.0.distribution_method.template_id"),
    "RECIPIENT without reference": (
        order(item(BY_CARD, method=without(REFERENCE, "recipient_reference"))),
        f"{METHOD}.recipient_reference",
    ),
    "RECIPIENT with an empty reference": (
        order(item(BY_CARD, method=REFERENCE | {"recipient_reference": ""})),
        f"{METHOD}.recipient_reference",
    ),
    "RECIPIENT with a blank": (
        order(item(BY_CARD, method=REFERENCE | {"recipient_reference": "ada l"})),
        f"{METHOD}.recipient_reference",
    ),
    "RECIPIENT of 256": (
        order(item(BY_CARD, method=REFERENCE | {"recipient_reference": "a" * 256})),
        f"{METHOD}.recipient_reference",
    ),
    "RECIPIENT without address": (
        order(item(BY_CARD, method=without(REFERENCE, "email_address"))),
        f"{METHOD}.email_address",
    ),
    "description of 129": (order(description="x" * 129), "description"),
    "description is a number": (order(description=5), "description"),
    "description of half a character": (order(description="\ud83d"), "description"),
    "metadata is a list": (order(metadata=[]), "metadata"),
    "metadata is empty text": (order(metadata=""), "metadata"),
    "metadata is false": (order(metadata=False), "metadata"),
    "21 pairs": (order(metadata={f"k{number}": "v" for number in range(21)}), "metadata"),
    "metadata key of 41": (order(metadata={"k" * 41: "v"}), f"metadata.{'k' * 41}"),
    "metadata value of 201": (order(metadata={"run": "v" * 201}), "metadata.run"),
    "metadata value is a number": (order(metadata={"run": 5}), "metadata.run"),
    "metadata value is null": (order(metadata={"run": None}), "metadata.run"),
    "unknown field": (order(reference="x"), "reference"),
    "unknown field of the payment": (
        order() | {"payment_method": order()["payment_method"] | {"account": "1"}},
        "payment_method.account",
    ),
    "unknown field of an item": (order(item() | {"currency": "USD"}), "items.0.currency"),
    "unknown field of a method": (order(item(method=LINK | {"name": "Ada"})), "items.0.distribution_method.name"),
}


@pytest.mark.parametrize(("body", "where"), WRONG.values(), ids=WRONG)
def test_a_wrong_body_is_refused_with_where_it_is_wrong(account: Account, body: Any, where: str) -> None:
    answer = account.post(json.dumps(body).encode())
    assert kind(answer) == (422, "validation_error")
    details = answer.json()["details"]
    assert where in [".".join(detail["location"]) for detail in details]
    assert all(detail["type"] and detail["message"] for detail in details)
    assert (account.count, account.balance()) == (0, "1000000.00")


def test_all_findings_are_named_at_once(account: Account) -> None:
    details = account.post(order(item(face_value=0), item("x"), currency="x")).json()["details"]
    assert [detail["location"] for detail in details] == [
        ["payment_method", "currency"],
        ["items", "0", "face_value"],
        ["items", "1", "products"],
    ]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@example",
        "ada@localhost",
        "ada@example.test",
        "ada@example.com ",
        " ada@example.com",
        "ada@example.com\n",
        "ada lovelace@example.com",
        "ada@@example.com",
        "ada@b@example.com",
        "ada..l@example.com",
        ".ada@example.com",
        "ada@exa_mple.com",
        "ada@-example.com",
        "ada@example..com",
        "ada@example.com.",
        "ada@[127.0.0.1]",
        '"ada l"@example.com',
        "Ada <ada@example.com>",
        "ada@example.com,grace@example.com",
        "mailto:ada@example.com",
        f"{'a' * 65}@example.com",
        f"ada@{'a' * 64}.com",
        f"ada@{'.'.join(['a' * 60] * 5)}.com",
        "ada\u200b@example.com",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    assert ascii_domain(address) is None


@pytest.mark.parametrize(
    "address",
    ["ada@example.com", "Ada.L+x@Mail.Example.COM", "o'brien@example.com", "ada@bücher.example", "ä@example.com"],
)
def test_what_is_an_address_is_accepted(account: Account, address: str) -> None:
    order_id = account.place(by(email_address=address))
    account.time += 10
    (shown,) = account.get(f"/order/{order_id}")["items"]
    assert shown["distribution_method"]["email_address"] == address


RIGHT: dict[str, dict[str, Any]] = {
    "EMAIL": order(item(method=BY_MAIL)),
    "RECIPIENT": order(item(BY_CARD, method=REFERENCE)),
    "RECIPIENT of 255": order(item(BY_CARD, method=REFERENCE | {"recipient_reference": "aZ0-_@." * 36 + "abc"})),
    "RECIPIENT of a template": order(item(TEMPLATE, method=REFERENCE)),
    "redemption template": by(template_id=REDEMPTION),
    "cents": order(item(BY_CARD, 1.01)),
    "a whole number with decimals": order(item(TEMPLATE, 10.0)),
    "spend rules": card(RULES),
    "usage without rules": order(item(BY_CARD | {"usage_config": {}})),
    "MULTIPLE": order(item(SEVERAL)),
    "MULTIPLE of more than each allows": order(item(SEVERAL, 501)),
    "TEMPLATE": order(item(TEMPLATE)),
    "a template for many": order(*[item(TEMPLATE)] * 20),
    "a plan of a subscription": order(single("TUNES-US-3M", 30)),
    "a fixed face value": order(single("CAFE-US", 25)),
    "the least face value": order(single("AMZ-US", 1)),
    "the greatest face value": order(single("AMZ-US", 500)),
    "200 items": order(*[item()] * 200),
    "nothing that is optional": order(description=None, metadata=None),
    "empty": order(description="", metadata={"": ""}),
    "everything at its limit": order(
        description="x" * 128, metadata={f"{number:040}": "v" * 200 for number in range(20)}
    ),
    "another currency": order(single("TEA-GB"), currency="GBP"),
}


@pytest.mark.parametrize("body", RIGHT.values(), ids=RIGHT)
def test_a_right_body_is_an_order(account: Account, body: dict[str, Any]) -> None:
    answer = account.post(body)
    assert answer.status == 202, answer
    assert answer.json() == {"id": account.engine.orders()[0].id, "status": "PROCESSING"}


def test_spend_rules_are_kept_for_cards_and_ignored_for_all_others(account: Account) -> None:
    usage = {"usage_config": {"spend_rules_template_id": RULES}}
    order_id = account.place(order(item(BY_CARD | usage), item(BOOKS | usage)))
    account.time += 10
    assert [one["products"] for one in account.get(f"/order/{order_id}")["items"]] == [BY_CARD | usage, BOOKS]


# -- what the catalogue sells -----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown product": (order(single("NONE-US")), "product_validation_error"),
    "product in lower case": (order(single("amz-us")), "product_validation_error"),
    "product that cannot be ordered": (order(single("GONE-US")), "product_validation_error"),
    "product that is paused": (order(single("PAUSED-US")), "product_validation_error"),
    "less than the product allows": (order(single("AMZ-US", 0.5)), "product_validation_error"),
    "more than the product allows": (order(single("AMZ-US", 500.01)), "product_validation_error"),
    "more than the card allows": (order(single("VISA-US", 501)), "product_validation_error"),
    "no face value of the product": (order(single("CAFE-US", 11)), "product_validation_error"),
    "subscription without a plan": (order(single("TUNES-US", 30)), "product_validation_error"),
    "no price of the plan": (order(single("TUNES-US-3M", 29.99)), "product_validation_error"),
    "unknown template": (order(item(TEMPLATE | {"template_id": "PT-0"})), "product_validation_error"),
    "template in lower case": (
        order(item(TEMPLATE | {"template_id": TEMPLATE["template_id"].lower()})),
        "product_validation_error",
    ),
    "MULTIPLE of less than one allows": (
        order(item({"type": "MULTIPLE", "values": ["AMZ-US", "CAFE-US"]}, 4)),
        "product_validation_error",
    ),
    "MULTIPLE with an unknown one": (
        order(item({"type": "MULTIPLE", "values": ["AMZ-US", "NONE-US"]})),
        "product_validation_error",
    ),
    "MULTIPLE of two currencies": (
        order(item({"type": "MULTIPLE", "values": ["AMZ-US", "TEA-GB"]})),
        "product_validation_error",
    ),
    "items of two currencies": (order(single("AMZ-US"), single("TEA-GB")), "product_validation_error"),
    "a template of another currency": (order(item(TEMPLATE), single("TEA-GB")), "product_validation_error"),
    "a gift card for a reference": (order(item(method=REFERENCE)), "product_validation_error"),
    "gift cards for a reference": (order(item(SEVERAL, method=REFERENCE)), "product_validation_error"),
    "paid in another currency": (order(single("TEA-GB")), "currency_mismatch"),
    "more than the balance": (order(*[single("AMZ-US", 500)] * 3), "insufficient_funds"),
}


@pytest.mark.parametrize(("body", "expected"), REFUSED.values(), ids=REFUSED)
def test_an_order_that_cannot_be_is_refused_and_costs_nothing(body: dict[str, Any], expected: str) -> None:
    account = Account(balances={"USD": Decimal("1000"), "GBP": Decimal("1000")})
    assert kind(account.post(body)) == (400, expected)
    assert (account.count, account.balance()) == (0, "1000.00")


def test_products_of_two_countries_are_two_orders(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalogue.PRODUCTS["SHOE-US"], "countries_redeemable_in", ["CA"])
    account.place(order(single("SHOE-US"), single("SHOE-US")))
    assert kind(account.post(order(single("AMZ-US"), single("SHOE-US")))) == (400, "product_validation_error")
    mixed = {"type": "MULTIPLE", "values": ["AMZ-US", "SHOE-US"]}
    assert kind(account.post(order(item(mixed)))) == (400, "product_validation_error")


def test_a_currency_without_a_rate_pays_nothing(account: Account) -> None:
    account.engine.set_balance("JPY", Decimal("1000"))
    assert kind(account.post(order(currency="JPY"), mode="sync")) == (400, "payment_method_unavailable")
    assert account.balance("JPY") == "1000.00"


# -- what cannot be read ----------------------------------------------------------------------------------------------


def plain(body: Any = None) -> bytes:
    return json.dumps(order() if body is None else body).encode()


@pytest.mark.parametrize(
    ("body", "mode", "expected"),
    [
        (order(item(), item()), "sync", "invalid_execution_mode"),
        (order(), "later", "invalid_execution_mode"),
        (order(), "", "invalid_execution_mode"),
        (b"", "async", "bad_request"),
        (b"{", "async", "bad_request"),
        (b"\xff\xfe", "async", "bad_request"),
        (plain().decode().encode("utf-16"), "async", "bad_request"),
        (plain().replace(b": 10,", b": NaN,"), "async", "bad_request"),
        (plain().replace(b": 10,", b": Infinity,"), "async", "bad_request"),
        (plain().replace(b'"face_value": 10,', b'"face_value": 10, "face_value": 11,'), "async", "bad_request"),
        (b"[" * 100_000, "async", "bad_request"),
        (order(currency="JPY"), "sync", "payment_method_unavailable"),
    ],
)
def test_other_refusals(account: Account, body: Any, mode: str, expected: str) -> None:
    assert kind(account.post(body, mode=mode)) == (400, expected)
    assert account.count == 0


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("path", ["/order", "/order/estimate"])
def test_a_body_is_said_to_be_json(account: Account, path: str, content_type: str) -> None:
    body = order() if path == "/order" else order({"face_value": 5, "products": BOOKS})
    for kind_of_body, accepted in [(content_type, False), ("Application/JSON; charset=utf-8", True)]:
        answer = account.ask("POST", path, body, X_Idempotency_Key=kind_of_body or "none", Content_Type=kind_of_body)
        assert (answer.status < 300) == accepted, answer


@pytest.mark.parametrize(
    "target",
    [
        "/ping?x=1",
        "/order?cursor=A-1",
        "/order?limit=1&limit=2",
        "/order/{id}?full=true",
        "/balance?Currency=USD",
        "/balance?currency=USD&currency=EUR",
        "/product?country=US",
        "/product?is_orderable=yes",
        "/product?countries_redeemable_in=us",
        "/product/AMZ-US?content=pdf",
        "/product/countries?limit=1",
        "/product/categories?limit=1",
    ],
)
def test_a_parameter_that_is_not_documented_is_refused(account: Account, target: str) -> None:
    order_id = account.place()
    assert kind(account.ask("GET", target.replace("{id}", order_id))) == (400, "bad_request")


def test_an_order_request_has_no_parameters(account: Account) -> None:
    answer = account.ask("POST", "/order?mode=sync", order(), X_Idempotency_Key="one")
    assert kind(answer) == (400, "bad_request")
    estimate = order({"face_value": 5, "products": BOOKS})
    assert kind(account.ask("POST", "/order/estimate?currency=USD", estimate)) == (400, "bad_request")
    assert account.count == 0


# -- estimates --------------------------------------------------------------------------------------------------------

PRICED = {"face_value": 5, "products": BOOKS}


@pytest.mark.parametrize(
    "body",
    [
        order() | {"items": []},
        order(*[PRICED] * 501),
        order({"face_value": 5, "products": TEMPLATE}),
        order({"face_value": 5}),
        order({"products": BOOKS}),
        order(PRICED | {"face_value": 0}),
        order({"face_value": 5.5, "products": SEVERAL}),
        order(item()),
        order(PRICED, description="Spring"),
        order({"face_value": 5, "products": BY_CARD | {"usage_config": {}}}),
        [],
    ],
)
def test_a_wrong_estimate_is_refused(account: Account, body: Any) -> None:
    assert kind(account.ask("POST", "/order/estimate", body)) == (422, "validation_error")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (order(PRICED, {"face_value": 5, "products": single("TEA-GB")["products"]}), "product_validation_error"),
        (order({"face_value": 5, "products": single("GONE-US")["products"]}), "product_validation_error"),
        (order(PRICED, currency="EUR"), "currency_mismatch"),
    ],
)
def test_an_estimate_that_cannot_be_is_refused(account: Account, body: Any, expected: str) -> None:
    assert kind(account.ask("POST", "/order/estimate", body)) == (400, expected)


# -- every rule at once -----------------------------------------------------------------------------------------------

JUNK = [None, True, 0, -1, 1.5, "", " ", "x" * 300, [], {}, ["x"], {"x": "y"}]


def mutations(body: Any) -> list[Any]:
    """Return a body with each of its values replaced by junk, left out, or with an unknown field beside it."""
    found: list[Any] = []

    def visit(value: Any, put: Any) -> None:
        found.extend(put(junk) for junk in JUNK)
        if isinstance(value, dict):
            found.append(put(value | {"unknown": "x"}))
            for name in value:
                found.append(put(without(value, name)))
                visit(value[name], lambda new, name=name: put(value | {name: new}))
        elif isinstance(value, list):
            for index, one in enumerate(value):
                visit(one, lambda new, index=index: put([*value[:index], new, *value[index + 1 :]]))

    visit(body, lambda new: new)
    return [deepcopy(one) for one in found]


def test_no_body_breaks_the_sandbox(account: Account) -> None:
    account.engine.orders_per_minute = 10**9
    body = order(item(method=BY_MAIL), item(SEVERAL, method=LINK), item(TEMPLATE), metadata={"a": "b"})
    body["items"].append(item(BY_CARD | {"usage_config": {"spend_rules_template_id": RULES}}, method=REFERENCE))
    statuses = {account.post(json.dumps(one).encode()).status for one in mutations(body)}
    assert statuses == {202, 400, 422}
