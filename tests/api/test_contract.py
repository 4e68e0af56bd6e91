"""Requests agree with Runa's contract, if a copy of it is next to the repository."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.models import EstimateRequest, NewOrder
from tests.support.raw import RawServer, http, start_raw

CONTRACT = Path(__file__).parents[2].parent / "shared" / "runa" / "openapi.json"

pytestmark = pytest.mark.skipif(not CONTRACT.is_file(), reason="the vendor's contract is not beside this repository")


@cache
def contract() -> dict[str, Any]:
    return json.loads(CONTRACT.read_bytes())


@cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Return the validator of one of the contract's schemas."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": contract()["components"]}
    return jsonschema.Draft202012Validator(schema)


def found(name: str, body: bytes) -> list[str]:
    """Return what the contract says against a body."""
    return [error.json_path for error in validator(name).iter_errors(json.loads(body))]


METHODS: list[dict[str, Any]] = [
    {"type": "EMAIL", "email_address": "ada@example.com"},
    {"type": "EMAIL", "email_address": "ada@example.com", "template_id": "DT-01HPSF51G0ZWHJ3JTNWRH0WDYK"},
    {"type": "PAYOUT_LINK"},
    {"type": "PAYOUT_LINK", "template_id": "DT-01HPSF51G0ZWHJ3JTNWRH0WDYK"},
    {"type": "RECIPIENT", "recipient_reference": "aZ0-_@.", "email_address": "ada@example.com"},
]
ONE = {"type": "SINGLE", "value": "AMZ-US"}
SEVERAL = {"type": "MULTIPLE", "values": ["AMZ-US", "AIRBNB-US"]}
PRODUCTS: list[dict[str, Any]] = [
    ONE,
    {**ONE, "usage_config": {"spend_rules_template_id": "PSR-01HQ12PV4B8XMBRTK281JM54KK"}},
    SEVERAL,
    {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"},
]

items = st.fixed_dictionaries(
    {
        "face_value": st.integers(1, 10**6),
        "distribution_method": st.sampled_from(METHODS),
        "products": st.sampled_from(PRODUCTS),
    }
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    st.lists(items, min_size=1, max_size=6),
    st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=128),
    st.none() | st.dictionaries(texts, texts, max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_an_order_agrees_with_the_contract(
    rows: list[dict[str, Any]], description: str | None, metadata: dict[str, str] | None
) -> None:
    order = NewOrder.build(currency="USD", items=rows, description=description, metadata=metadata)
    assert found("NewOrderDetails", order.body()) == []


@pytest.mark.parametrize("value", ["0.01", "10.10", 5, "999999999999.99"])
@pytest.mark.parametrize("count", [1, 200])
def test_an_order_at_the_limits_agrees_with_the_contract(value: Any, count: int) -> None:
    item = {"face_value": value, "distribution_method": METHODS[0], "products": ONE}
    metadata = {f"{number:040}": "v" * 200 for number in range(20)}
    order = NewOrder.build(currency="USD", items=[item] * count, description="x" * 128, metadata=metadata)
    assert found("NewOrderDetails", order.body()) == []


@pytest.mark.parametrize("products", [ONE, SEVERAL], ids=["SINGLE", "MULTIPLE"])
@pytest.mark.parametrize("count", [1, 500])
def test_an_estimate_agrees_with_the_contract(products: dict[str, Any], count: int) -> None:
    request = EstimateRequest.build(currency="USD", items=[{"face_value": 10, "products": products}] * count)
    assert found("OrderPriceRequest", request.body()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$.items", []),
        ("$.items[0].face_value", "10.00"),
        ("$.items[0].face_value", 0),
        ("$.items[0].products", {"type": "SINGLE"}),
        ("$.items[0].distribution_method", {"type": "EMAIL"}),
        ("$.payment_method.currency", "usd"),
        ("$.description", "x" * 129),
        ("$.metadata", {"run": 1}),
    ],
)
def test_the_contract_would_notice(path: str, value: Any) -> None:
    """A validator that accepts everything would prove nothing."""
    order = NewOrder.build(
        currency="USD", items=[{"face_value": 10, "distribution_method": METHODS[0], "products": ONE}]
    )
    body = json.loads(order.body())
    *way, last = re.findall(r"\w+", path)
    place = body
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    assert [where for where in found("NewOrderDetails", json.dumps(body).encode()) if where.startswith(path)]


# -- paths, queries and headers ---------------------------------------------------------------------------------------

ORDER = NewOrder.build(currency="USD", items=[{"face_value": 10, "distribution_method": METHODS[2], "products": ONE}])
ESTIMATE = EstimateRequest.build(currency="USD", items=[{"face_value": 10, "products": ONE}])
FILTERS: dict[str, Any] = {"is_orderable": True, "countries": ["US", "GB"], "categories": ["fashion"]}

CALLS: dict[str, Callable[[RunaClient], Any]] = {
    "GET /ping": lambda client: client.ping(),
    "GET /balance": lambda client: (client.get_balance("USD"), client.get_balances()),
    "POST /order": lambda client: client.create_order(ORDER, idempotency_key="key-1"),
    "GET /order": lambda client: list(client.list_orders()),
    "GET /order/{id}": lambda client: client.get_order("O-1"),
    "POST /order/estimate": lambda client: client.estimate_order(ESTIMATE),
    "GET /product": lambda client: list(client.list_products(**FILTERS)),
    "GET /product/{product_code}": lambda client: client.get_product("A/B"),
    "GET /product/countries": lambda client: client.list_countries(),
    "GET /product/categories": lambda client: client.list_categories(),
}


def row(**cursor: str) -> bytes:
    """An answer that every call can read."""
    order = {"id": "O-1", "status": "COMPLETED", "payment_method": {"type": "ACCOUNT_BALANCE"}, "currency": "USD"}
    product = {"code": "A", "name": "A", "state": "LIVE", "is_orderable": True, "payout_type": "gift_card"}
    amounts = {"total_price": "1.00", "total_discount": "0.00", "balance": "1.00"}
    lists = {"items": [], "catalog": [], "countries": [], "categories": []}
    if cursor:
        lists |= {"items": [order], "catalog": [product | {"currency": "USD"}]}
    return json.dumps(order | product | amounts | lists | {"pagination": {"cursors": cursor}}).encode()


@pytest.fixture
def server() -> Iterator[RawServer]:
    with start_raw(http("200 OK", row()), http("200 OK", b"[]")) as running:
        yield running


def parameters(operation: dict[str, Any], place: str) -> dict[str, dict[str, Any]]:
    """Return an operation's parameters of one place (query, header), by name."""
    shared = contract()["components"]["parameters"]
    named = [shared[one["$ref"].rpartition("/")[2]] if "$ref" in one else one for one in operation["parameters"]]
    return {one["name"]: one for one in named if one["in"] == place}


def operation_of(method: str, path: str) -> tuple[str, dict[str, Any]]:
    """Return the contract's operation for a request, and its name; a path without a variable goes first."""
    for template in sorted(contract()["paths"], key=lambda one: one.count("{")):
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path) and method.lower() in contract()["paths"][template]:
            return f"{method} {template}", contract()["paths"][template][method.lower()]
    raise AssertionError(f"the contract has no {method} {path}")


def check(server: RawServer, name: str) -> None:
    """Check every request that came against the contract's operation."""
    for head in server.heads():
        method, target, _ = head[""].split()
        url = urlsplit(target)
        operation = operation_of(method, url.path.removeprefix("/v2"))
        assert operation[0] == name
        headers, queries = parameters(operation[1], "header"), parameters(operation[1], "query")
        for header, one in headers.items():
            assert header.lower() in head or not one.get("required")
            if header.lower() in head:
                jsonschema.validate(head[header.lower()], one["schema"])
        for query, value in parse_qsl(url.query, keep_blank_values=True):
            schema = queries[query]["schema"]
            single = schema["items"] if schema["type"] == "array" else schema
            read = value if single["type"] == "string" else json.loads(value)
            jsonschema.validate(read, single)


@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS)
def test_requests_agree_with_the_contract(server: RawServer, name: str, call: Callable[[RunaClient], Any]) -> None:
    with RunaClient("XXplanted.key", base_url=server.url, timeout=5.0) as client:
        call(client)
    assert server.requests
    check(server, name)


@pytest.mark.parametrize("name", ["GET /order", "GET /product"])
def test_further_pages_agree_with_the_contract(name: str) -> None:
    with start_raw(http("200 OK", row(after="A-1")), http("200 OK", row())) as server:
        with RunaClient("XXplanted.key", base_url=server.url, timeout=5.0) as client:
            CALLS[name](client)
        assert len(server.requests) == 2
        assert "after=A-1" in server.heads()[1][""]
        check(server, name)


def test_every_endpoint_of_the_contract_is_called() -> None:
    methods = {"get", "post", "put", "patch", "delete"}
    theirs = {f"{method.upper()} {path}" for path, ways in contract()["paths"].items() for method in methods & {*ways}}
    assert theirs == set(CALLS)
