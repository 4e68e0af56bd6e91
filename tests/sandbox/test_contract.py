"""What the sandbox answers agrees with the vendor's contract, where a copy of it lies beside the repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import jsonschema
import pytest

from airflow_provider_runa.sandbox.engine import Answer, Engine, Fault, Lie
from tests.api.test_contract import CONTRACT, contract, operation_of
from tests.sandbox.account import BOOKS, BY_MAIL, LINK, TEMPLATE, Account, item, order, single
from tests.sandbox.test_rules import RIGHT, mutations

pytestmark = pytest.mark.skipif(not CONTRACT.is_file(), reason="the vendor's contract is not beside this repository")


@cache
def components() -> Any:
    return modern(contract()["components"])


def modern(schema: Any) -> Any:
    """Return a schema of OpenAPI 3.0 as JSON Schema, which spells ``nullable`` differently."""
    if isinstance(schema, list):
        return [modern(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {name: modern(part) for name, part in schema.items()}
    return {"anyOf": [changed, {"type": "null"}]} if schema.get("nullable") is True else changed


FORMATS = jsonschema.FormatChecker(["email"])


@FORMATS.checks("date-time", raises=ValueError)
def is_moment(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@FORMATS.checks("decimal", raises=ArithmeticError)
def is_amount(value: object) -> bool:
    return not isinstance(value, str) or Decimal(value).is_finite()


def found(schema: dict[str, Any], value: Any) -> list[str]:
    """Return what a schema of the contract says against a value."""
    validator = jsonschema.Draft202012Validator(modern(schema) | {"components": components()}, format_checker=FORMATS)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


class Checked(Account):
    """An account that holds every answer against the contract, and notes which kinds of answers it has seen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: set[tuple[str, int]] = set()

    def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        answer = super().ask(method, target, body, **headers)
        name, operation = operation_of(method, target.partition("?")[0])
        # What an operation does not document (404 for a balance, 410, 504) has the form of every other error.
        documented = operation["responses"].get(str(answer.status), {"$ref": "#/components/responses/BadRequest"})
        if "$ref" in documented:
            documented = contract()["components"]["responses"][documented["$ref"].rpartition("/")[2]]
        wrong = found(documented["content"]["application/json"]["schema"], answer.json())
        assert not wrong, (name, answer, wrong)
        self.seen.add((name, answer.status))
        return answer


def orders(account: Checked) -> None:
    """Place an order of every kind, and look at each in every state."""
    recipient = {"type": "RECIPIENT", "recipient_reference": "ada", "email_address": "ada@example.com"}
    rules = {"usage_config": {"spend_rules_template_id": "PSR-01HQ12PV4B8XMBRTK281JM54KK"}}
    every_kind = [
        item(method=BY_MAIL),
        item({"type": "SINGLE", "value": "VISA-US"}, method=recipient),
        item(TEMPLATE),
        item({"type": "MULTIPLE", "values": ["AMZ-US", "AIRBNB-US"]}),
        item({"type": "SINGLE", "value": "VISA-US"} | rules, 10.5),
    ]
    account.engine.faults.append(Fault("fail_order"))
    ids = [account.place(), account.place(order(*every_kind, description="Spring", metadata={"run": "1"}))]
    for _ in range(2):
        for order_id in ids:
            account.get(f"/order/{order_id}")
        account.get("/order")
        account.time += 10
    account.post(order(item({"type": "SINGLE", "value": "TEA-GB"})), mode="sync")
    account.get("/order?limit=1")
    account.time += 10
    assert {row["status"] for row in account.get("/order")["items"]} == {"COMPLETED", "FAILED"}


def reading(account: Checked) -> None:
    """Ask everything that can be asked."""
    for target in ("/ping", "/balance", "/balance?currency=USD", "/product", "/product?limit=1"):
        account.get(target)
    for target in ("/product/countries", "/product/categories", "/product/TUNES-US", "/product/VISA-US"):
        account.get(target)
    estimated = [{"face_value": 5, "products": BOOKS}]
    estimated += [{"face_value": 6, "products": {"type": "MULTIPLE", "values": ["AMZ-US", "AIRBNB-US"]}}]
    assert account.ask("POST", "/order/estimate", order(*estimated)).status == 200


def controls(account: Checked) -> None:
    """Look at what a test can set."""
    ids = [account.engine.add_order(order(single("MART-DE"), currency="EUR"), status="PROCESSING")]
    ids += [account.engine.add_order(order(), status="FAILED"), account.engine.add_order(order(item(), item()))]
    account.engine.set_payout(ids[2], "EXPIRED")
    account.engine.set_payout(ids[2], "CLAIMED", item=1, expiry_date=datetime(2028, 1, 1, tzinfo=UTC))
    account.engine.add_account("XXother.secret")
    account.place(X_Api_Key="XXother.secret")
    for _ in range(2):
        for key in ("XXsandbox.secret", "XXother.secret"):
            account.ask("GET", "/order", X_Api_Key=key)
        for order_id in ids:
            account.get(f"/order/{order_id}")
        account.engine.set_status(ids[0], "COMPLETED")


def allowed_lies(account: Checked) -> None:
    """Look at what is false and still has the contract's form."""
    order_id = account.place(order(item(TEMPLATE, method=BY_MAIL), item(method=LINK), description="Spring"))
    account.time += 10
    lies = [Lie("item_missing"), Lie("item_extra"), Lie("item_face_value", "1.00"), Lie("item_currency", "EUR")]
    lies += [Lie("item_payout", "EXPIRED"), Lie("item_unknown"), Lie("item_template"), Lie("item_without", "currency")]
    lies += [Lie("order_reversed"), Lie("order_currency", "EUR"), Lie("order_status", "PROCESSING"), Lie("order_bare")]
    lies += [Lie("order_without", "metadata"), Lie("row_late", "60"), Lie("row_status", "FAILED"), Lie("row_bare")]
    lies += [Lie("row_without", "description"), Lie("list_pages", "1"), Lie("list_circle"), Lie("list_oldest_first")]
    for lie in lies:
        account.engine.lies = [lie]
        account.get("/order")
        account.get(f"/order/{order_id}")


def refusals(account: Checked) -> None:
    """Do everything that is refused."""
    for target in ("/order/O-1", "/product/NONE-US", "/order?limit=0", "/product?limit=0", "/balance?currency=x"):
        assert account.ask("GET", target).status in (400, 404)
    for target in ("/ping", "/order"):
        account.ask("GET", target, X_Api_Key="")
        account.ask("GET", target, X_Api_Version="2021-06-30")
        account.ask("GET", target, X_Api_Version="none")
    account.ask("POST", "/order/estimate", order({"face_value": 5, "products": TEMPLATE}))
    account.post(b"{")
    account.post([])
    account.post(key="")
    account.post(order(item(), item()), mode="sync")
    account.post(X_Trigger_Error="internal_server_error")
    account.post(order(item({"type": "SINGLE", "value": "GONE-US"})))
    account.place(key="one")
    account.post(order(item(face_value=11)), key="one")
    account.engine.faults.append(Fault("latency", seconds=5))
    account.place(key="two")
    account.post(key="two")
    for status in (403, 429, 500, 504):
        account.engine.faults.append(Fault("status", status=status))
        account.post()
    account.engine.set_balance("USD", Decimal(0))
    account.post()


SCENES = [orders, reading, controls, allowed_lies, refusals]


@pytest.mark.parametrize("scene", SCENES)
def test_every_answer_agrees_with_the_contract(scene: Callable[[Checked], None]) -> None:
    scene(Checked())


def test_every_success_that_the_contract_documents_was_seen() -> None:
    account = Checked()
    for scene in SCENES:
        scene(account)
    documented = {
        (f"{method.upper()} {path}", int(status))
        for path, methods in contract()["paths"].items()
        for method, operation in methods.items()
        if method in ("get", "post")
        for status in operation["responses"]
    }
    successes = {(name, status) for name, status in documented if status < 300}
    assert successes <= account.seen
    assert {status for _, status in documented} <= {status for _, status in account.seen}


def test_the_contract_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that accepts everything would prove nothing."""
    account = Checked()
    order_id = account.place()
    monkeypatch.setattr(Engine, "_status", lambda *_: "DONE")
    with pytest.raises(AssertionError, match="is not valid under any"):
        account.get(f"/order/{order_id}")


@pytest.mark.parametrize(
    "lie",
    [
        Lie("order_status", "ON_HOLD"),
        Lie("row_status", "ON_HOLD"),
        Lie("order_without", "total_price"),
        Lie("list_without", "items"),
        Lie("list_without", "pagination"),
        Lie("list_without", "cursors"),
    ],
    ids=lambda lie: f"{lie.kind} {lie.value}",
)
def test_the_contract_notices_a_lie(lie: Lie) -> None:
    account = Checked()
    order_id = account.place()
    account.time += 10
    account.engine.lies.append(lie)
    with pytest.raises(AssertionError):
        account.get(f"/order/{order_id}" if lie.kind.startswith("order_") else "/order")


# -- what is sent to the sandbox --------------------------------------------------------------------------------------


def schema_of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


@pytest.mark.parametrize("body", RIGHT.values(), ids=RIGHT)
def test_what_the_sandbox_accepts_agrees_with_the_contract(body: Any) -> None:
    assert found(schema_of("NewOrderDetails"), body) == []


def test_no_body_that_the_contract_refuses_is_accepted() -> None:
    account = Checked(orders_per_minute=10**9)
    chosen = ("redemption template", "RECIPIENT", "spend rules", "MULTIPLE", "TEMPLATE", "empty")
    bodies = [body for name in chosen for body in mutations(RIGHT[name])]
    accepted = [body for body in bodies if account.post(json.dumps(body).encode()).status == 202]
    assert len(accepted) > len(chosen)
    for body in accepted:
        assert found(schema_of("NewOrderDetails"), body) == [], body


def test_no_estimate_that_the_contract_refuses_is_given() -> None:
    account = Checked()
    several = {"type": "MULTIPLE", "values": ["AMZ-US", "AIRBNB-US"]}
    bodies = mutations(order({"face_value": 5, "products": BOOKS}, {"face_value": 6, "products": several}))
    accepted = [body for body in bodies if account.ask("POST", "/order/estimate", body).status == 200]
    assert accepted
    for body in accepted:
        assert found(schema_of("OrderPriceRequest"), body) == [], body
