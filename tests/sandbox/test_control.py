"""What a test can set at the sandbox's engine, and what it can ask it for a verdict."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_runa.sandbox
from airflow_provider_runa.sandbox.answers import Refusal
from airflow_provider_runa.sandbox.engine import Fault, Lie, Payout
from tests.sandbox.account import BY_MAIL, LINK, Account, item, kind, order, single


@pytest.fixture
def account() -> Account:
    return Account()


def by_mail(address: str) -> dict[str, Any]:
    return {"type": "EMAIL", "email_address": address}


# -- orders of somebody else ------------------------------------------------------------------------------------------


def test_an_order_of_somebody_else_is_listed_and_costs_nothing(account: Account) -> None:
    ours = account.place(order(description="Spring [af-1.0]"))
    theirs = account.engine.add_order(order(single("SHOE-US", 19.99), description="Spring [af-2.0]"))
    account.time += 10
    assert [(row["id"], row["description"]) for row in account.get("/order")["items"]] == [
        (theirs, "Spring [af-2.0]"),
        (ours, "Spring [af-1.0]"),
    ]
    shown = account.get(f"/order/{theirs}")
    assert (shown["status"], shown["items"][0]["face_value"], shown["total_price"]) == ("COMPLETED", "19.99", "17.99")
    assert account.balance() == "999990.00"
    assert account.engine.order_posts == {"key-0": 1}


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
def test_an_order_of_somebody_else_has_ended(account: Account, status: Any) -> None:
    order_id = account.engine.add_order(order(), status=status)
    assert account.get(f"/order/{order_id}")["status"] == status
    assert account.get("/order")["items"][0]["status"] == status
    assert account.balance() == "1000000.00"


def test_an_order_of_somebody_else_never_ends(account: Account) -> None:
    order_id = account.engine.add_order(order(description="Spring"), status="PROCESSING")
    account.time += 10 * 365 * 86_400
    bare = {"id": order_id, "status": "PROCESSING", "message": "The order is being processed."}
    assert account.get("/order")["items"] == [bare]
    assert account.get(f"/order/{order_id}") == bare
    account.engine.lies.append(Lie("row_status", "COMPLETED"))
    assert account.get("/order")["items"][0]["description"] == "Spring"
    account.engine.set_status(order_id, "FAILED")
    assert account.get(f"/order/{order_id}")["status"] == "FAILED"
    assert account.balance() == "1000000.00"


@pytest.mark.parametrize("body", [{}, order(reference="x"), order(single("NONE-US"))])
def test_an_order_of_somebody_else_is_a_right_one(account: Account, body: Any) -> None:
    with pytest.raises(Refusal):
        account.engine.add_order(body)
    assert account.count == 0


# -- how orders and payouts end ---------------------------------------------------------------------------------------


def test_an_order_is_settled(account: Account) -> None:
    account.engine.processing_delay = 600
    order_id = account.place()
    account.engine.set_status(order_id, "COMPLETED")
    shown = account.get(f"/order/{order_id}")
    assert (shown["status"], shown["completed_at"]) == ("COMPLETED", shown["created_at"])
    account.engine.set_status(order_id, "PROCESSING")
    account.time += 10**6
    assert account.get(f"/order/{order_id}")["status"] == "PROCESSING"
    account.engine.set_status(order_id, "FAILED")
    assert account.get(f"/order/{order_id}")["status"] == "FAILED"
    assert account.balance() == "1000000.00"


@pytest.mark.parametrize("status", ["CLAIMED", "CANCELLED", "EXPIRED"])
def test_a_payout_ends(account: Account, status: Any) -> None:
    order_id = account.place(order(item(), item()))
    account.time += 86_400
    before = account.get(f"/order/{order_id}")
    account.engine.set_payout(order_id, status, item=1)
    after = account.get(f"/order/{order_id}")
    first, second = (one["payout"] for one in after["items"])
    assert after["status"] == "COMPLETED"
    assert first == before["items"][0]["payout"]
    assert (second["status"], second["url"]) == (status, before["items"][1]["payout"]["url"])
    moment = datetime.fromtimestamp(account.time, UTC).isoformat().replace("+00:00", "Z")
    assert second["status_updated_at"] == moment
    assert second.get("expiry_date") == (moment if status == "EXPIRED" else None)


def test_a_payout_will_expire(account: Account) -> None:
    order_id = account.place()
    account.time += 10
    account.engine.set_payout(order_id, "ACTIVE", expiry_date=datetime(2028, 1, 1, tzinfo=UTC))
    account.engine.set_payout(order_id, "EXPIRED")
    payout = account.get(f"/order/{order_id}")["items"][0]["payout"]
    assert (payout["status"], payout["expiry_date"]) == ("EXPIRED", "2028-01-01T00:00:00Z")


def test_what_is_not_there_cannot_be_set(account: Account) -> None:
    order_id = account.place()
    for number in (-1, 1):
        with pytest.raises(LookupError):
            account.engine.set_payout(order_id, "CLAIMED", item=number)
    with pytest.raises(LookupError):
        account.engine.set_payout("O-1", "CLAIMED")
    with pytest.raises(LookupError):
        account.engine.set_status("O-1", "FAILED")
    with pytest.raises(ValueError, match="must be one of"):
        account.engine.set_status(order_id, "ON_HOLD")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of"):
        account.engine.set_payout(order_id, "FROZEN")  # type: ignore[arg-type]


# -- another account --------------------------------------------------------------------------------------------------

OTHER = "XXother.secret"


def test_another_account_shares_nothing_but_the_clock() -> None:
    account = Account(orders_per_minute=2)
    other = account.engine.add_account(OTHER)
    ours = account.place(key="one")
    theirs = account.place(order(description="theirs"), key="one", X_Api_Key=OTHER)
    assert ours != theirs
    assert [account.ask("GET", f"/order/{ours}", X_Api_Key=key).status for key in ("XXsandbox.secret", OTHER)] == [
        200,
        404,
    ]
    assert kind(account.ask("GET", f"/order/{theirs}")) == (404, "not_found")
    listed = account.ask("GET", "/order", X_Api_Key=OTHER).json()["items"]
    assert [row["id"] for row in listed] == [theirs]
    assert [row["id"] for row in account.get("/order")["items"]] == [ours]
    assert [order.id for order in other.orders()] == [theirs]
    assert (other.order_posts, account.engine.order_posts) == ({"one": 1}, {"one": 1})
    account.post()
    assert [account.post(X_Api_Key=key).status for key in ("XXsandbox.secret", OTHER)] == [429, 202]
    account.engine.faults.append(Fault("status", count=None, method="GET", path="*"))
    account.engine.advance(60)
    answer = account.ask("GET", f"/order/{theirs}", X_Api_Key=OTHER)
    assert (answer.status, answer.json()["status"]) == (200, "COMPLETED")


def test_accounts_are_found_by_their_keys() -> None:
    account = Account(api_keys=("XXsandbox.secret", "XXrotated.secret"))
    other = account.engine.add_account(OTHER)
    assert account.engine.account(OTHER) is other
    assert account.engine.account("XXrotated.secret") is account.engine
    with pytest.raises(LookupError, match=r"^no account has this key$"):
        account.engine.account("XXnobody.secret")
    with pytest.raises(ValueError, match="first account"):
        account.engine.add_account("XXrotated.secret")


def test_a_reset_forgets_lies_and_other_accounts(account: Account) -> None:
    account.engine.add_account(OTHER)
    account.engine.lies.append(Lie("list_circle"))
    account.engine.reset()
    assert account.engine.lies == []
    assert kind(account.ask("GET", "/ping", X_Api_Key=OTHER)) == (401, "invalid_api_key")


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_payouts_are_those_of_orders_that_have_not_failed(account: Account) -> None:
    account.engine.faults.append(Fault("fail_order", skip=1))
    first = account.place(order(item(method=BY_MAIL, face_value=10.5), item(method=LINK), metadata={"run": "1"}))
    account.place(order(item(method=BY_MAIL), metadata={"run": "1"}))
    third = account.place(order(item(method=BY_MAIL), metadata={"run": "2", "map": "0"}))
    account.time += 10
    account.engine.set_payout(first, "CLAIMED")
    address = BY_MAIL["email_address"]
    assert account.engine.payouts() == [
        Payout(first, 0, "COMPLETED", address, Decimal("10.50"), "USD", "CLAIMED"),
        Payout(first, 1, "COMPLETED", None, Decimal("10.00"), "USD", "ACTIVE"),
        Payout(third, 0, "COMPLETED", address, Decimal("10.00"), "USD", "ACTIVE"),
    ]
    assert account.engine.payouts_by_recipient() == Counter({address: 2})
    assert account.engine.payouts_by_recipient(metadata={"run": "2"}) == Counter({address: 1})
    assert [order.id for order in account.engine.paying_orders()] == [first, third]
    assert [order.id for order in account.engine.paying_orders({"run": "2"})] == [third]
    assert account.engine.paying_orders({"run": "2", "map": "1"}) == []
    assert [payout.item for payout in account.engine.payouts(metadata={"run": "1"})] == [0, 1]


def test_a_recipient_is_one_in_every_spelling(account: Account) -> None:
    for address in ("Ada@Bücher.example", "ada@bücher.example", "ada@xn--bcher-kva.example", "bob@bücher.example"):
        account.place(order(item(method=by_mail(address))))
    assert len(account.engine.payouts("ADA@bücher.example")) == 3
    assert account.engine.payouts("eve@example.com") == []
    assert account.engine.payouts_by_recipient() == {"ada@xn--bcher-kva.example": 3, "bob@xn--bcher-kva.example": 1}


def test_orders_of_somebody_else_are_in_no_verdict(account: Account) -> None:
    account.engine.add_order(order(item(method=BY_MAIL), metadata={"run": "1"}))
    assert len(account.engine.orders()) == 1
    assert (account.engine.payouts(), account.engine.paying_orders()) == ([], [])


def test_verdicts_are_not_about_what_is_shown(account: Account) -> None:
    order_id = account.place(order(item(method=BY_MAIL)))
    account.time += 10
    account.engine.lies += [Lie("item_missing"), Lie("order_status", "FAILED"), Lie("row_status", "FAILED")]
    assert account.get(f"/order/{order_id}")["items"] == []
    assert account.engine.payouts_by_recipient() == {BY_MAIL["email_address"]: 1}


def test_the_sandbox_shares_no_code_with_the_rest() -> None:
    folder = Path(airflow_provider_runa.sandbox.__file__).parent
    lines = [line for path in folder.glob("*.py") for line in path.read_text().splitlines() if "import" in line]
    ours = [line.split()[1] for line in lines if line.strip().startswith(("from airflow", "import airflow"))]
    assert ours
    assert {name for name in ours if not name.startswith("airflow_provider_runa.sandbox")} == set()
    assert json.dumps(lines).count("pydantic") == 2  # in the controls over HTTP
