"""Validation of orders, exact amounts in requests and answers, and values that are never shown."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_provider_runa.api import models
from airflow_provider_runa.api.errors import InvalidOrderError, RunaError
from airflow_provider_runa.api.models import (
    EmailDistribution,
    EstimateRequest,
    NewOrder,
    NewOrderItem,
    Order,
    OrderPage,
    OrderStatus,
    Product,
    RecipientDistribution,
    check_execution_mode,
)

EMAIL = "ada.lovelace@example.com"
REFERENCE = "ada-lovelace_1815"
LINK = "https://payouts.example.com/claim/s3cret-t0ken"
RULES = "PSR-01HQ12PV4B8XMBRTK281JM54KK"

SINGLE = {"type": "SINGLE", "value": "AMZ-US"}
MULTIPLE = {"type": "MULTIPLE", "values": ["AMZ-US", "AIRBNB-US"]}
TEMPLATE = {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"}


def item(**changes: Any) -> dict[str, Any]:
    """A payout by e-mail, with changes; ``None`` removes a field."""
    values = {"face_value": 10, "distribution_method": {"type": "EMAIL", "email_address": EMAIL}, "products": SINGLE}
    return {name: value for name, value in (values | changes).items() if value is not None}


def recipient(**changes: Any) -> dict[str, Any]:
    """A payout to a known recipient, with changes of the distribution method."""
    method = {"type": "RECIPIENT", "recipient_reference": REFERENCE, "email_address": EMAIL}
    return item(distribution_method=method | changes)


def build(*items: Any, **changes: Any) -> NewOrder:
    return NewOrder.build(**({"currency": "USD", "items": items or [item()]} | changes))


def templates(count: int) -> list[dict[str, Any]]:
    return [item(products={"type": "TEMPLATE", "template_id": f"PT-{number}"}) for number in range(count)]


def distribution(**method: Any) -> dict[str, Any]:
    return item(distribution_method=method)


# -- limits -----------------------------------------------------------------------------------------------------------


def single(**changes: Any) -> dict[str, Any]:
    return item(products=SINGLE | changes)


def multiple(*values: str) -> dict[str, Any]:
    return item(products={"type": "MULTIPLE", "values": values})


# Invalid orders, with the place and the reason that the error must name.
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no items": ({"items": []}, "items: ", "at least 1, has 0"),
    "201 items": ({"items": [item()] * 201}, "items: ", "at most 200 entries, has 201"),
    "items is text": ({"items": EMAIL}, "items: ", ""),
    "an item is text": ({"items": [item(), EMAIL]}, "items[1]: ", ""),
    "face_value 0": ({"items": [item(face_value=0)]}, "items[0].face_value: ", "at least 0.01"),
    "face_value negative": ({"items": [item(), item(face_value=-5)]}, "items[1].face_value: ", "at least 0.01"),
    "face_value 0.009": ({"items": [item(face_value="0.009")]}, "items[0].face_value: ", "2 decimals"),
    "face_value of 3 decimals": ({"items": [item(face_value=1.005)]}, "items[0].face_value: ", "2 decimals"),
    "face_value of 13 digits": ({"items": [item(face_value=10**12)]}, "items[0].face_value: ", "12 digits"),
    "face_value NaN": ({"items": [item(face_value=float("nan"))]}, "items[0].face_value: ", "an amount"),
    "face_value infinite": ({"items": [item(face_value=Decimal("Infinity"))]}, "items[0].face_value: ", "an amount"),
    "face_value true": ({"items": [item(face_value=True)]}, "items[0].face_value: ", "an amount"),
    "face_value is text": ({"items": [item(face_value="ten")]}, "items[0].face_value: ", "an amount"),
    "face_value with an underscore": ({"items": [item(face_value="1_000")]}, "items[0].face_value: ", "such as 12.50"),
    "face_value with zeros": ({"items": [item(face_value="1.000")]}, "items[0].face_value: ", "at most 2 decimals"),
    "face_value with a comma": ({"items": [item(face_value="1,000")]}, "items[0].face_value: ", "without commas"),
    "face_value with a comma for cents": ({"items": [item(face_value="10,5")]}, "items[0].face_value: ", "commas"),
    "face_value of wide digits": (
        {"items": [item(face_value="\uff11\uff10")]},
        "items[0].face_value: ",
        "such as 12.50",
    ),
    "face_value of other digits": ({"items": [item(face_value="\u0661\u0660")]}, "items[0].face_value: ", "such as 12"),
    "face_value as a power": ({"items": [item(face_value="1e2")]}, "items[0].face_value: ", "such as 12.50"),
    "face_value with a sign": ({"items": [item(face_value="$10")]}, "items[0].face_value: ", "such as 12.50"),
    "face_value of much text": (
        {"items": [item(face_value="9" * 5000)]},
        "items[0].face_value: ",
        "12 digits",
    ),
    "face_value of 5,000 digits": ({"items": [item(face_value=10**5000)]}, "items[0].face_value: ", "12 digits"),
    "face_value beyond a context": ({"items": [item(face_value=Decimal("1E9999999"))]}, "items[0].face_value: ", "12"),
    "face_value near zero": (
        {"items": [item(face_value=Decimal("1E-9999999"))]},
        "items[0].face_value: ",
        "2 decimals",
    ),
    "face_value signalling NaN": ({"items": [item(face_value=Decimal("sNaN"))]}, "items[0].face_value: ", "an amount"),
    "face_value infinite text": ({"items": [item(face_value="Infinity")]}, "items[0].face_value: ", "an amount"),
    "face_value is a list": ({"items": [item(face_value=[10])]}, "items[0].face_value: ", "an amount"),
    "face_value missing": ({"items": [item(), item(face_value=None)]}, "items[1].face_value: ", "missing"),
    "MULTIPLE of cents": (
        {"items": [item(), item(face_value="1.50", products=MULTIPLE)]},
        "items[1].face_value: ",
        "whole number",
    ),
    "TEMPLATE of cents": ({"items": [item(face_value=0.5, products=TEMPLATE)]}, "items[0].face_value: ", "whole"),
    "description of 129": ({"description": "x" * 129}, "description: ", "at most 128"),
    "description is a number": ({"description": 5}, "description: ", "text"),
    "21 pairs of metadata": ({"metadata": {f"k{n}": "v" for n in range(21)}}, "metadata: ", "at most 20"),
    "metadata key of 41": ({"metadata": {"k" * 41: "v"}}, "metadata.kkk", "at most 40"),
    "metadata value of 201": ({"metadata": {"run": "v" * 201}}, "metadata.run: ", "at most 200"),
    "metadata value is a number": ({"metadata": {"run": 5}}, "metadata.run: ", "text"),
    "metadata is text": ({"metadata": "run"}, "metadata: ", "an object"),
    "11 templates": ({"items": templates(11)}, "items: ", "at most 10 selection templates"),
    "currency in small letters": ({"currency": "usd"}, "currency: ", "three capital letters"),
    "currency with a line break": ({"currency": "USD\n"}, "currency: ", "three capital letters"),
    "currency missing": ({"currency": None}, "currency: ", "text"),
    "reference empty": (
        {"items": [recipient(recipient_reference="")]},
        "items[0].distribution_method.recipient_reference: ",
        "must match",
    ),
    "reference of 256": (
        {"items": [item(), recipient(recipient_reference="a" * 256)]},
        "items[1].distribution_method.recipient_reference: ",
        "at most 255",
    ),
    "reference with a space": (
        {"items": [recipient(recipient_reference=f"{REFERENCE} x")]},
        "items[0].distribution_method.recipient_reference: ",
        "must match",
    ),
    "reference with a line break": (
        {"items": [recipient(recipient_reference=f"{REFERENCE}\n")]},
        "items[0].distribution_method.recipient_reference: ",
        "must match",
    ),
    "reference with an umlaut": (
        {"items": [recipient(recipient_reference=f"{REFERENCE}ü")]},
        "items[0].distribution_method.recipient_reference: ",
        "must match",
    ),
    "e-mail without @": (
        {"items": [distribution(type="EMAIL", email_address=EMAIL.replace("@", "."))]},
        "items[0].distribution_method.email_address: ",
        "an e-mail address",
    ),
    "e-mail with a name": (
        {"items": [item(), distribution(type="EMAIL", email_address=f"Ada <{EMAIL}>")]},
        "items[1].distribution_method.email_address: ",
        "an e-mail address",
    ),
    "e-mail of a recipient": (
        {"items": [recipient(email_address=f"{EMAIL} x")]},
        "items[0].distribution_method.email_address: ",
        "an e-mail address",
    ),
    "e-mail missing": ({"items": [distribution(type="EMAIL")]}, "items[0].distribution_method.email_address: ", ""),
    "a second e-mail": (
        {"items": [distribution(type="EMAIL", email_address=EMAIL, email=EMAIL)]},
        "items[0].distribution_method.email: ",
        "no such field",
    ),
    "e-mail of a link": (
        {"items": [distribution(type="PAYOUT_LINK", email_address=EMAIL)]},
        "items[0].distribution_method.email_address: ",
        "no such field",
    ),
    "distribution unknown": (
        {"items": [distribution(type="SMS", email_address=EMAIL)]},
        "items[0].distribution_method: ",
        "type must be one of 'EMAIL', 'PAYOUT_LINK', 'RECIPIENT'",
    ),
    "distribution untyped": (
        {"items": [distribution(email_address=EMAIL)]},
        "items[0].distribution_method: ",
        "type is missing",
    ),
    "distribution is text": ({"items": [item(distribution_method=EMAIL)]}, "items[0].distribution_method: ", ""),
    "products missing": ({"items": [item(products=None)]}, "items[0].products: ", "missing"),
    "products unknown": ({"items": [item(products={"type": "ANY"})]}, "items[0].products: ", "type must be one of"),
    "product without code": ({"items": [single(value="")]}, "items[0].products.value: ", "empty"),
    "product of blanks": ({"items": [single(value="  ")]}, "items[0].products.value: ", "empty"),
    "spend rules malformed": (
        {"items": [single(usage_config={"spend_rules_template_id": "PSR-1"})]},
        "items[0].products.usage_config.spend_rules_template_id: ",
        "must match",
    ),
    "MULTIPLE of one": ({"items": [item(), multiple("A")]}, "items[1].products.values: ", "at least 2, has 1"),
    "MULTIPLE twice the same": ({"items": [multiple("A", "A")]}, "items[0].products.values: ", "twice"),
    "template without id": (
        {"items": [item(products={"type": "TEMPLATE"})]},
        "items[0].products.template_id: ",
        "missing",
    ),
    "item is text": ({"items": [item(), EMAIL]}, "items[1]: ", "must be an object"),
    "item is missing": ({"items": [None]}, "items[0]: ", "must be an object"),
    "field named by an address": ({"items": [item(**{f"to\n{EMAIL}": 5})]}, "items[0].to ***: ", "no such field"),
    "metadata named by an address": ({"metadata": {EMAIL: 5}}, "metadata.***: ", "text"),
    "field unknown": ({"items": [item(), item(note=EMAIL)]}, "items[1].note: ", "no such field"),
}


@pytest.mark.parametrize(("changes", "place", "reason"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_order_is_rejected_with_field_and_item(changes: dict[str, Any], place: str, reason: str) -> None:
    with pytest.raises(InvalidOrderError) as caught:
        build(**changes)
    text = str(caught.value)
    assert text.startswith(place)
    assert reason in text
    assert "\n" not in text
    assert "; " not in text, "one finding, and no other that misleads"
    assert "lovelace" not in text
    assert "lovelace" not in repr(caught.value)


ALLOWED: dict[str, dict[str, Any]] = {
    "1 item": {"items": [item()]},
    "200 items": {"items": [item()] * 200},
    "0.01": {"items": [item(face_value=0.01)]},
    "12 digits and 2 decimals": {"items": [item(face_value="999999999999.99")]},
    "MULTIPLE, whole": {"items": [item(face_value="5.00", products=MULTIPLE)]},
    "TEMPLATE, whole": {"items": [item(face_value=5.0, products=TEMPLATE)]},
    "10 templates, each twice": {"items": templates(10) * 2},
    "description of 128": {"description": "x" * 128},
    "metadata to the limit": {"metadata": {f"{n:040}": "v" * 200 for n in range(20)}},
    "an address with a name in it": {"items": [distribution(type="EMAIL", email_address="o'neill+7@mail.example.com")]},
    "an address of other letters": {
        "items": [distribution(type="EMAIL", email_address="j\u00fcrgen@b\u00fccher.example")],
    },
    "reference of 255": {"items": [recipient(recipient_reference="aZ0-_@." + "a" * 248)]},
    "a payout link": {"items": [distribution(type="PAYOUT_LINK", template_id="DT-1")]},
    "spend rules": {"items": [single(usage_config={"spend_rules_template_id": RULES})]},
}


@pytest.mark.parametrize("changes", ALLOWED.values(), ids=ALLOWED)
def test_an_order_at_the_limit_is_allowed(changes: dict[str, Any]) -> None:
    order = build(**changes)
    assert len(json.loads(order.body())["items"]) == len(changes.get("items", [item()]))


@pytest.mark.parametrize(
    "address",
    [
        "ada@localhost",
        "ada@example",
        "ada..lovelace@example.com",
        ".ada@example.com",
        "ada.@example.com",
        "ada@exam_ple.com",
        "ada@-example.com",
        "ada@example..com",
        "ada@example.com.",
        "ada@[127.0.0.1]",
        "ada@host.local",
        "ada@example.invalid",
        "ada,bob@example.com",
        "ada\u200b@example.com",
        "ada@example.com\u200b",
        "ada@example.com, bob@example.com",
        f"{'x' * 300}@example.com",
        f"ada@{'x' * 64}.com",
    ],
)
def test_what_is_no_address_of_a_public_domain_is_rejected(address: str) -> None:
    with pytest.raises(InvalidOrderError, match=r"must be an e-mail address of a public domain$") as caught:
        build(distribution(type="EMAIL", email_address=address))
    assert "ada" not in str(caught.value)


@pytest.mark.parametrize("written", ["Ada.Lovelace@Example.COM", "jose\u0301@example.com", "ada@xn--bcher-kva.example"])
def test_an_address_is_sent_as_it_was_written_without_space_around_it(written: str) -> None:
    order = build(distribution(type="EMAIL", email_address=f"\t {written}\n"))
    assert order.recipients() == {written}


def test_no_name_server_is_asked_for_a_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*args: object, **kwargs: object) -> None:
        raise AssertionError("a name server was asked")

    monkeypatch.setattr("dns.resolver.Resolver.resolve", ask)
    assert build(distribution(type="EMAIL", email_address="ada@no-such-domain-7311.com")).recipients()


locals_of_addresses = st.from_regex(r"[A-Za-z0-9._+'-]{1,70}", fullmatch=True) | st.text(max_size=12)
domains_of_addresses = st.from_regex(r"[A-Za-z0-9-]{1,66}(\.[A-Za-z0-9-]{1,20}){0,4}", fullmatch=True) | st.text(
    max_size=12
)


@given(st.builds("{}@{}".format, locals_of_addresses, domains_of_addresses) | st.text() | st.emails())
@settings(max_examples=500, deadline=None)
def test_the_short_way_for_plain_addresses_accepts_what_the_library_accepts(address: str) -> None:
    assert models._is_address(address) == models._is_valid(address)


def test_a_rejection_is_raised_where_no_local_variable_has_a_value() -> None:
    def frames(build: Any) -> str:
        with pytest.raises(InvalidOrderError) as caught:
            build()
        assert caught.value.__context__ is None
        shown = []
        trace = caught.value.__traceback__
        while trace is not None:
            if "airflow_provider_runa" in trace.tb_frame.f_code.co_filename:
                shown.append(repr(trace.tb_frame.f_locals))
            trace = trace.tb_next
        return "\n".join(shown)

    wrong = recipient(email_address="ada lovelace")
    for order in (
        frames(lambda: NewOrder.build(currency="USD", items=[wrong], metadata={"to": "lovelace"})),
        frames(lambda: NewOrderItem.build(wrong)),
        frames(lambda: EstimateRequest.build(currency="USD", items=[wrong])),
    ):
        assert "built" in order
        assert "lovelace" not in order


def test_a_mapping_whose_names_are_no_text_is_rejected() -> None:
    with pytest.raises(InvalidOrderError, match="should be strings"):
        NewOrderItem.build({5: 1} | item())  # type: ignore[dict-item]


def test_several_findings_stay_one_line_of_sane_length() -> None:
    with pytest.raises(InvalidOrderError, match=r"items\[4\]\.face_value: .*; and 45 more$"):
        build(*[item(face_value=0)] * 50)


def test_an_invalid_order_is_a_value_error_and_one_of_runas_errors() -> None:
    assert issubclass(InvalidOrderError, ValueError)
    assert issubclass(InvalidOrderError, RunaError)


@pytest.mark.parametrize("count", [2, 200])
def test_sync_takes_exactly_one_item(count: int) -> None:
    with pytest.raises(InvalidOrderError, match=rf"execution_mode: .*exactly one item.* {count}"):
        check_execution_mode(build(*[item()] * count), "sync")
    check_execution_mode(build(*[item()] * count), "async")
    check_execution_mode(build(item()), "sync")


def test_an_unknown_execution_mode_is_rejected() -> None:
    with pytest.raises(InvalidOrderError, match="execution_mode: must be one of async, sync"):
        check_execution_mode(build(), "SYNC")


def test_an_estimate_takes_500_items_and_no_template() -> None:
    priced = {"face_value": 10, "products": SINGLE}
    assert len(EstimateRequest.build(currency="USD", items=[priced] * 500).items) == 500
    with pytest.raises(InvalidOrderError, match=r"^items: must have at most 500 entries, has 501"):
        EstimateRequest.build(currency="USD", items=[priced] * 501)
    with pytest.raises(InvalidOrderError, match=r"^items\[1\]\.products: type must be one of 'SINGLE', 'MULTIPLE'$"):
        EstimateRequest.build(currency="USD", items=[priced, priced | {"products": TEMPLATE}])
    with pytest.raises(InvalidOrderError, match=r"^items: must have at least 1, has 0"):
        EstimateRequest.build(currency="USD", items=[])


# -- recipients -------------------------------------------------------------------------------------------------------


def test_recipients_show_in_no_text_of_an_order() -> None:
    order = build(item(), recipient())
    for text in (repr(order), str(order), repr(order.items), f"{order.items[0].distribution_method}"):
        assert "lovelace" not in text
    assert order.recipients() == {EMAIL, REFERENCE}


def test_a_payout_link_has_no_recipient() -> None:
    assert build(distribution(type="PAYOUT_LINK")).recipients() == frozenset()


@pytest.mark.parametrize("model", [EmailDistribution, RecipientDistribution])
def test_models_built_without_build_do_not_show_rejected_values(model: type) -> None:
    with pytest.raises(ValidationError) as caught:
        model(email_address="ada lovelace", recipient_reference="ada lovelace")
    assert "lovelace" not in str(caught.value)


# -- money ------------------------------------------------------------------------------------------------------------

cents = st.integers(min_value=1, max_value=10**14 - 1)


def spellings(number: int) -> list[Any]:
    """Return an amount of cents in every way in which people write it."""
    amount = Decimal(number).scaleb(-2)
    ways = [amount, f"{amount:.2f}", f" {amount} ", float(amount), Decimal(f"{amount:.4f}")]
    return [*ways, number // 100] if number % 100 == 0 else ways


@given(cents)
@settings(max_examples=150, deadline=None)
def test_money_survives_exactly_as_a_json_number(number: int) -> None:
    amount = Decimal(number).scaleb(-2)
    bodies = {build(item(face_value=way)).body() for way in spellings(number)}
    assert len(bodies) == 1
    sent = json.loads(bodies.pop(), parse_float=Decimal)["items"][0]["face_value"]
    assert type(sent) in (int, Decimal)
    assert sent == amount
    assert build(item(face_value=float(amount))).items[0].face_value == amount


@given(st.lists(cents, min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_the_total_is_exact(numbers: list[int]) -> None:
    order = build(*[item(face_value=Decimal(number).scaleb(-2)) for number in numbers])
    assert order.total == Decimal(sum(numbers)).scaleb(-2)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
codes = st.text("ABCDEFGHIJ-", min_size=1, max_size=8)
products = st.one_of(
    st.builds(lambda code: {"type": "SINGLE", "value": code}, codes),
    st.builds(lambda values: {"type": "MULTIPLE", "values": values}, st.lists(codes, min_size=2, unique=True)),
    st.builds(lambda code: {"type": "TEMPLATE", "template_id": code}, codes),
)
methods = st.one_of(
    st.just({"type": "EMAIL", "email_address": EMAIL}),
    st.builds(lambda code: {"type": "PAYOUT_LINK", "template_id": code}, codes),
    st.just({"type": "RECIPIENT", "recipient_reference": REFERENCE, "email_address": EMAIL}),
)
payouts = st.builds(
    lambda amount, method, product: {"face_value": amount, "distribution_method": method, "products": product},
    st.integers(1, 10**6),
    methods,
    products,
)
orders = st.fixed_dictionaries(
    {"currency": st.sampled_from(["USD", "GBP"]), "items": st.lists(payouts, min_size=1, max_size=4)},
    optional={"description": words, "metadata": st.dictionaries(words, words, max_size=5)},
)


def reordered(value: Any) -> Any:
    """Return equal values, the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


@given(orders)
@settings(max_examples=100, deadline=None)
def test_the_body_is_canonical(values: dict[str, Any]) -> None:
    body = NewOrder.build(**values).body()
    assert NewOrder.build(**reordered(values)).body() == body
    rebuilt = json.loads(body, parse_float=Decimal)
    assert NewOrder(**rebuilt).body() == body
    # Nothing is lost, and nothing added.
    assert rebuilt.pop("payment_method") == {"type": "ACCOUNT_BALANCE", "currency": values["currency"]}
    assert rebuilt == {name: value for name, value in values.items() if name != "currency"}


def test_another_order_has_another_body() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"currency": "GBP"},
        {"description": "x"},
        {"metadata": {"a": "b"}},
        {"items": [item(face_value="10.01")]},
        {"items": [item(), item()]},
        {"items": [recipient()]},
        {"items": [item(products=MULTIPLE, face_value=10)]},
    ]
    assert len({build(**change).body() for change in changes}) == len(changes)


def test_an_order_cannot_be_changed_after_it_was_checked() -> None:
    order = build()
    with pytest.raises(ValidationError, match="frozen"):
        order.items[0].face_value = Decimal(-1)  # type: ignore[misc]


# -- answers ----------------------------------------------------------------------------------------------------------

COMPLETED: dict[str, Any] = {
    "id": "O-1",
    "status": "COMPLETED",
    "created_at": "2024-02-05T10:00:00.000Z",
    "completed_at": "2024-02-05T10:00:01Z",
    "payment_method": {"type": "ACCOUNT_BALANCE", "currency": "USD"},
    "currency": "USD",
    "total_price": "12.60",
    "total_discount": "0.10",
    "items": [
        {
            "id": "E-1",
            "distribution_method": {"type": "EMAIL", "email_address": EMAIL},
            "products": SINGLE,
            "face_value": "10.10",
            "price": "10.00",
            "payout": {"status": "ACTIVE", "status_updated_at": "2024-02-05T10:00:01Z", "url": LINK},
        }
    ],
    "transaction_detail": {
        "GBP": {
            "value": "10.10",
            "fx": {"rate": "1.2345678901234567", "rate_symbol": "GBPUSD", "fee": {"value": "0.10", "currency": "USD"}},
        }
    },
    "metadata": {"run": "1"},
}


def grown(value: Any) -> Any:
    """Return an answer of a later day: every object has a field more, and every enum a value that is new."""
    if isinstance(value, dict):
        enums = {name: "BRAND_NEW" for name in ("type", "status", "payout_type", "state") if name in value}
        return {name: grown(inner) for name, inner in value.items()} | enums | {"new_field": "BRAND_NEW"}
    return [grown(inner) for inner in value] if isinstance(value, list) else value


def test_money_in_an_answer_is_exact() -> None:
    order = Order.model_validate(COMPLETED)
    assert order.items is not None
    assert order.transaction_detail is not None
    fx = order.transaction_detail["GBP"].fx
    assert fx is not None
    found = [order.total_price, order.total_discount, order.items[0].face_value, fx.rate, fx.fee.value]
    assert [str(value) for value in found] == ["12.60", "0.10", "10.10", "1.2345678901234567", "0.10"]
    assert {type(value) for value in found} == {Decimal}


def test_an_order_survives_fields_and_values_that_are_new() -> None:
    answer = grown(COMPLETED)
    answer["transaction_detail"].pop("new_field")
    order = Order.model_validate(answer)
    assert order.status == "BRAND_NEW"
    assert order.items is not None
    assert order.items[0].products.type == order.items[0].distribution_method.type == "BRAND_NEW"
    assert order.items[0].payout is not None
    assert order.items[0].payout.status == "BRAND_NEW"
    assert order.items[0].face_value == Decimal("10.10")
    assert "new_field" not in order.model_dump()


def test_an_order_that_is_processing_has_few_fields() -> None:
    order = Order.model_validate({"id": "O-1", "status": "PROCESSING", "message": "wait"})
    assert order.status == OrderStatus.PROCESSING
    assert order.items is None
    assert order.total_price is None


def test_a_product_survives_fields_and_values_that_are_new() -> None:
    answer = {
        "code": "AMZ-US",
        "name": "Books",
        "currency": "USD",
        "state": "LIVE",
        "is_orderable": True,
        "payout_type": "gift_card",
        "discount_multiplier": "0.10",
        "gift_card": {"denominations": {"type": "fixed", "available_list": ["10.00", "20.50"]}},
    }
    product = Product.model_validate(grown(answer))
    assert product.payout_type == product.state == "BRAND_NEW"
    assert product.discount_multiplier == Decimal("0.10")
    assert product.gift_card is not None
    assert product.gift_card.denominations is not None
    assert product.gift_card.denominations.available_list == (Decimal("10.00"), Decimal("20.50"))


def test_payout_links_show_only_when_asked_for() -> None:
    order = Order.model_validate(COMPLETED)
    page = OrderPage.model_validate({"items": (order,), "pagination": {"cursors": {}}})
    assert order.items is not None
    payout = order.items[0].payout
    assert payout is not None
    dump = order.model_dump()
    for text in (repr(order), str(order), repr(page), repr(payout), f"{payout.url}", repr(dump)):
        assert "s3cret" not in text
    for text in (order.model_dump_json(), page.model_dump_json(), json.dumps(dump, default=str)):
        assert "s3cret" not in text
    assert payout.url is not None
    assert payout.url.get_secret_value() == LINK


def test_recipients_show_in_no_text_of_an_answer() -> None:
    order = Order.model_validate(COMPLETED)
    assert order.items is not None
    for text in (repr(order), str(order), repr(order.items[0].distribution_method)):
        assert "lovelace" not in text


def test_an_invalid_answer_does_not_show_its_values() -> None:
    answer = {**COMPLETED, "items": [{**COMPLETED["items"][0], "face_value": LINK}]}
    with pytest.raises(ValidationError) as caught:
        Order.model_validate(answer)
    assert "s3cret" not in str(caught.value)
    assert "lovelace" not in str(caught.value)
