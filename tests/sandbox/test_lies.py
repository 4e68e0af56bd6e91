"""What the sandbox shows although it is not so: each lie changes what it names, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_runa.sandbox import catalogue
from airflow_provider_runa.sandbox.engine import LIE_KINDS, Lie
from tests.sandbox.account import LINK, TEMPLATE, Account, item, order, single


@pytest.fixture
def account() -> Account:
    return Account()


def by_mail(address: str) -> dict[str, Any]:
    return {"type": "EMAIL", "email_address": address}


ADA, GRACE, BUCH = "Ada.Lovelace@Example.com", "grace@example.com", "hedy@bücher.example"


@pytest.fixture
def placed(account: Account) -> str:
    """The id of a COMPLETED order of three items."""
    items = [single("AMZ-US", 10, by_mail(ADA)), item(TEMPLATE, 20, by_mail(BUCH)), single("SHOE-US", 30, LINK)]
    order_id = account.place(order(*items, description="Spring [af-1.0]", metadata={"run": "1"}))
    account.time += 10
    return order_id


def lie(account: Account, *kinds: str, **values: Any) -> None:
    account.engine.lies += [Lie(kind, **values) for kind in kinds]


def shown(account: Account, order_id: str) -> dict[str, Any]:
    return dict(account.get(f"/order/{order_id}"))


def addresses(items: list[dict[str, Any]]) -> list[str | None]:
    return [one["distribution_method"].get("email_address") for one in items]


# -- the items of an order --------------------------------------------------------------------------------------------


def test_an_item_is_missing(account: Account, placed: str) -> None:
    truth = shown(account, placed)
    lie(account, "item_missing", item=1)
    assert shown(account, placed) == truth | {"items": [truth["items"][0], truth["items"][2]]}
    account.engine.lies = [Lie("item_missing")]
    assert shown(account, placed) == truth | {"items": []}


def test_an_item_is_there_twice(account: Account, placed: str) -> None:
    truth = shown(account, placed)["items"]
    lie(account, "item_extra", item=2)
    *rest, extra = shown(account, placed)["items"]
    assert rest == truth
    assert extra.keys() == truth[2].keys()
    assert (extra["face_value"], extra["products"]) == (truth[2]["face_value"], truth[2]["products"])
    assert extra["id"] != truth[2]["id"]
    assert extra["payout"]["url"] != truth[2]["payout"]["url"]


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [("item_face_value", "10.01", "face_value"), ("item_currency", "EUR", "currency")],
)
def test_an_item_has_another_value(account: Account, placed: str, kind: str, value: str, field: str) -> None:
    truth = shown(account, placed)
    lie(account, kind, value=value, item=0)
    first, *rest = shown(account, placed)["items"]
    assert first == truth["items"][0] | {field: value}
    assert rest == truth["items"][1:]
    lie(account, kind, value=value)
    assert {one[field] for one in shown(account, placed)["items"]} == {value}


@pytest.mark.parametrize("status", ["CANCELLED", "EXPIRED", "FROZEN"])
def test_a_payout_has_another_status(account: Account, placed: str, status: str) -> None:
    lie(account, "item_payout", value=status, item=1)
    found = shown(account, placed)
    assert found["status"] == "COMPLETED"
    assert [one["payout"]["status"] for one in found["items"]] == ["ACTIVE", status, "ACTIVE"]


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("masked", ["A***@Example.com", "h***@bücher.example", None]),
        ("lower", ["ada.lovelace@example.com", BUCH, None]),
        ("punycode", ["Ada.Lovelace@example.com", "hedy@xn--bcher-kva.example", None]),
    ],
)
def test_recipients_are_spelled_otherwise(
    account: Account, placed: str, spelling: str, expected: list[str | None]
) -> None:
    lie(account, "item_recipient", value=spelling)
    assert addresses(shown(account, placed)["items"]) == expected
    assert addresses(account.engine.orders()[0].body["items"]) == [ADA, BUCH, None]


def test_products_are_unknown(account: Account, placed: str) -> None:
    lie(account, "item_unknown", item=1)
    assert [one["products"]["type"] for one in shown(account, placed)["items"]] == ["SINGLE", "UNKNOWN", "SINGLE"]


def test_templates_show_their_products(account: Account, placed: str) -> None:
    lie(account, "item_template")
    first, second, third = (one["products"] for one in shown(account, placed)["items"])
    assert second == TEMPLATE | {"values": list(catalogue.TEMPLATES[TEMPLATE["template_id"]])}
    assert (first, third) == (single("AMZ-US")["products"], single("SHOE-US")["products"])


def test_a_field_of_an_item_is_missing(account: Account, placed: str) -> None:
    truth = shown(account, placed)["items"]
    lie(account, "item_without", value="currency", item=2)
    found = shown(account, placed)["items"]
    assert found[:2] == truth[:2]
    assert truth[2].keys() - found[2].keys() == {"currency"}


# -- the rest of an order ---------------------------------------------------------------------------------------------


def test_items_are_in_another_order(account: Account, placed: str) -> None:
    truth = shown(account, placed)
    lie(account, "order_reversed")
    assert shown(account, placed) == truth | {"items": truth["items"][::-1]}


def test_an_order_has_another_currency(account: Account, placed: str) -> None:
    truth = shown(account, placed)
    lie(account, "order_currency", value="EUR")
    assert shown(account, placed) == truth | {"currency": "EUR"}


def test_an_order_has_another_status(account: Account, placed: str) -> None:
    truth = shown(account, placed)
    lie(account, "order_status", value="ON_HOLD")
    assert shown(account, placed) == truth | {"status": "ON_HOLD"}
    lie(account, "order_status", value="PROCESSING")
    assert shown(account, placed).keys() == {"id", "status", "message"}
    assert account.get("/order")["items"][0]["status"] == "COMPLETED"


def test_an_order_is_shown_before_it_is_complete(account: Account) -> None:
    order_id = account.place(order(description="Spring"))
    lie(account, "order_status", value="COMPLETED")
    found = shown(account, order_id)
    assert (found["status"], found["description"], len(found["items"])) == ("COMPLETED", "Spring", 1)
    assert account.engine.orders()[0].status == "PROCESSING"


def test_an_order_shows_only_its_status(account: Account, placed: str) -> None:
    lie(account, "order_status", value="ON_HOLD")
    lie(account, "order_bare")
    assert shown(account, placed) == {"id": placed, "status": "ON_HOLD", "message": "The order is being processed."}


@pytest.mark.parametrize("field", ["items", "metadata", "description", "currency", "status"])
def test_a_field_of_an_order_is_missing(account: Account, placed: str, field: str) -> None:
    truth = shown(account, placed)
    lie(account, "order_without", value=field)
    assert shown(account, placed) == {name: value for name, value in truth.items() if name != field}


def test_a_field_of_an_order_that_is_processing_is_missing(account: Account) -> None:
    order_id = account.place()
    lie(account, "order_without", value="message")
    lie(account, "row_without", value="status")
    assert shown(account, order_id) == {"id": order_id, "status": "PROCESSING"}
    assert rows(account)[0].keys() == {"id", "message"}


def test_an_answer_of_sync_mode_lies_too_and_so_does_its_replay(account: Account) -> None:
    lie(account, "item_face_value", value="11.00")
    lie(account, "order_without", value="metadata")
    for _ in range(2):
        answer = account.post(key="one", mode="sync").json()
        assert (answer["items"][0]["face_value"], "metadata" in answer) == ("11.00", False)
    account.engine.lies.clear()
    assert account.post(key="one", mode="sync").json()["items"][0]["face_value"] == "10.00"
    assert account.count == 1


# -- which answers are false ------------------------------------------------------------------------------------------


def test_lies_are_about_every_order_or_about_one(account: Account) -> None:
    first, second = account.place(), account.place()
    account.time += 10
    lie(account, "order_currency", value="EUR", order_id=first)
    assert (shown(account, first)["currency"], shown(account, second)["currency"]) == ("EUR", "USD")
    lie(account, "row_status", value="FAILED", order_id=second)
    assert [row["status"] for row in account.get("/order")["items"]] == ["FAILED", "COMPLETED"]


def test_lies_end_after_so_many_answers_and_begin_after_others(account: Account, placed: str) -> None:
    lie(account, "order_currency", value="EUR", skip=1, count=2)
    assert [shown(account, placed)["currency"] for _ in range(4)] == ["USD", "EUR", "EUR", "USD"]
    lie(account, "list_without", value="items", count=1)
    assert ["items" in account.get("/order") for _ in range(2)] == [False, True]
    assert account.engine.lies == []


def test_an_order_without_anything_to_be_false_counts_no_lie(account: Account) -> None:
    order_id = account.place()
    lie(account, "item_missing", count=1)
    assert shown(account, order_id)["status"] == "PROCESSING"
    account.time += 10
    assert [len(shown(account, order_id)["items"]) for _ in range(2)] == [0, 1]


def test_lies_add_up(account: Account, placed: str) -> None:
    lie(account, "item_missing", item=0)
    lie(account, "order_reversed")
    lie(account, "item_recipient", value="masked")
    assert addresses(shown(account, placed)["items"]) == [None, "h***@bücher.example"]


def test_fields_are_hidden_last(account: Account, placed: str) -> None:
    for field in ("payout", "products", "distribution_method"):
        lie(account, "item_without", value=field)
    lie(account, "item_extra", "item_template")
    lie(account, "item_payout", value="EXPIRED")
    lie(account, "item_recipient", value="masked")
    items = shown(account, placed)["items"]
    assert [one.keys() for one in items] == [{"id", "face_value", "price", "currency"}] * 6


def test_lies_that_have_nothing_to_change_change_nothing(account: Account, placed: str) -> None:
    truth = shown(account, placed)
    lie(account, "item_unknown", item=9)
    lie(account, "item_template", "order_reversed", order_id="O-1")
    lie(account, "item_without", value="nothing")
    assert shown(account, placed) == truth
    lie(account, "order_bare", "item_missing", "order_reversed")
    assert shown(account, placed).keys() == {"id", "status", "message"}


def test_no_lie_changes_the_truth(account: Account, placed: str) -> None:
    orders, payouts, stats = account.engine.orders(), account.engine.payouts(), account.engine.stats()
    values = {"row_late": "999", "list_pages": "1", "list_without": "cursors", "item_recipient": "masked"}
    values |= {"item_currency": "EUR", "order_currency": "EUR", "item_face_value": "1.00"}
    values |= {kind: "FAILED" for kind in LIE_KINDS if kind.endswith(("status", "payout"))}
    values |= dict.fromkeys(("item_without", "order_without"), "id") | {"row_without": "description"}
    for kind in LIE_KINDS:
        account.engine.lies = [Lie(kind, values.get(kind))]
        account.ask("GET", "/order")
        account.ask("GET", f"/order/{placed}")
    account.engine.lies.clear()
    assert (account.engine.orders(), account.engine.payouts()) == (orders, payouts)
    assert account.engine.stats()["orders"] == stats["orders"]


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "explode"},
        {"kind": "item_missing", "value": "1"},
        {"kind": "order_status"},
        {"kind": "order_status", "value": "on hold"},
        {"kind": "item_face_value", "value": "10"},
        {"kind": "item_recipient", "value": "upper"},
        {"kind": "list_without", "value": "page"},
        {"kind": "list_pages", "value": "0"},
        {"kind": "list_circle", "order_id": "O-1"},
        {"kind": "order_bare", "item": 0},
        {"kind": "row_bare", "item": 0},
    ],
)
def test_a_lie_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must "):
        Lie(**values)


# -- rows of the list -------------------------------------------------------------------------------------------------


def rows(account: Account) -> list[dict[str, Any]]:
    return list(account.get("/order")["items"])


@pytest.mark.parametrize("order_wise", [False, True])
def test_a_row_is_late(account: Account, order_wise: bool) -> None:
    other = account.place()
    account.time += 100
    order_id = account.place()
    lie(account, "row_late", value="600", order_id=order_id if order_wise else None)
    assert [row["id"] for row in rows(account)] == ([other] if order_wise else [])
    assert shown(account, order_id)["id"] == order_id
    account.time += 599
    assert [row["id"] for row in rows(account)] == [other]
    account.time += 1
    assert [row["id"] for row in rows(account)] == [order_id, other]


def test_a_row_that_is_late_shortens_no_page(account: Account) -> None:
    older, order_id = account.place(), account.place()
    lie(account, "row_late", value="600", order_id=order_id)
    assert [row["id"] for row in account.get("/order?limit=1")["items"]] == [older]


def test_the_list_is_behind_an_order(account: Account, placed: str) -> None:
    lie(account, "row_status", value="PROCESSING")
    assert rows(account) == [{"id": placed, "status": "PROCESSING", "message": "The order is being processed."}]
    assert shown(account, placed)["status"] == "COMPLETED"


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED"])
def test_the_list_is_ahead_of_an_order(account: Account, status: str) -> None:
    order_id = account.place(order(description="Spring"))
    lie(account, "row_status", value=status)
    (row,) = rows(account)
    assert (row["id"], row["status"], row["description"]) == (order_id, status, "Spring")
    assert shown(account, order_id)["status"] == "PROCESSING"


def test_a_row_has_a_status_that_nobody_knows(account: Account, placed: str) -> None:
    lie(account, "row_status", value="ON_HOLD")
    (row,) = rows(account)
    assert (row["status"], row["description"]) == ("ON_HOLD", "Spring [af-1.0]")
    lie(account, "row_bare")
    assert rows(account) == [{"id": placed, "status": "ON_HOLD", "message": "The order is being processed."}]


def test_a_row_hides_a_description(account: Account, placed: str) -> None:
    (truth,) = rows(account)
    lie(account, "row_without", value="description")
    assert rows(account) == [{name: value for name, value in truth.items() if name != "description"}]
    assert shown(account, placed)["description"] == "Spring [af-1.0]"


# -- the list ---------------------------------------------------------------------------------------------------------


def pages(account: Account, most: int = 10) -> tuple[list[list[str]], list[str]]:
    """Read the list until it ends, at most so many pages; return the ids in each, and the cursors."""
    found: list[list[str]] = []
    cursors: list[str] = []
    while len(found) < most:
        page = account.get(f"/order?after={cursors[-1]}" if cursors else "/order")
        if not page["items"]:
            break
        found.append([row["id"] for row in page["items"]])
        cursors.append(page["pagination"]["cursors"]["after"])
    return found, cursors


@pytest.mark.parametrize(
    ("what", "keys", "inner"),
    [
        ("items", {"pagination"}, {"cursors", "page"}),
        ("pagination", {"items"}, set()),
        ("cursors", {"items", "pagination"}, {"page"}),
    ],
)
def test_a_list_lacks_something(account: Account, placed: str, what: str, keys: set[str], inner: set[str]) -> None:
    lie(account, "list_without", value=what)
    answer = account.get("/order")
    assert answer.keys() == keys
    assert answer.get("pagination", {}).keys() == inner


def test_pages_are_shorter_than_asked_for(account: Account) -> None:
    ids = [account.place() for _ in range(5)]
    lie(account, "list_pages", value="2")
    assert account.get("/order?limit=500")["pagination"]["page"] == {"limit": 500}
    assert pages(account)[0] == [ids[4:2:-1], ids[2:0:-1], ids[:1]]
    assert len(account.get("/order?limit=1")["items"]) == 1


@pytest.mark.parametrize(("size", "length"), [("2", 3), ("5", 1), ("9", 1)])
def test_a_cursor_circles(account: Account, size: str, length: int) -> None:
    ids = [account.place() for _ in range(5)]
    lie(account, "list_circle")
    lie(account, "list_pages", value=size)
    found, cursors = pages(account)
    assert len(found) == 10
    assert found[length:] == found[:-length]
    assert cursors[length:] == cursors[:-length]
    assert len(set(cursors)) == length
    assert [one for page in found[:length] for one in page] == ids[::-1]


def test_a_circle_can_run_the_wrong_way(account: Account) -> None:
    ids = [account.place() for _ in range(3)]
    lie(account, "list_circle", "list_oldest_first")
    lie(account, "list_pages", value="2")
    assert pages(account, most=4)[0] == [ids[:2], ids[2:], ids[:2], ids[2:]]


def test_an_empty_list_does_not_circle(account: Account) -> None:
    lie(account, "list_circle")
    assert pages(account) == ([], [])


def test_a_list_is_sorted_oldest_first(account: Account) -> None:
    ids = [account.place() for _ in range(5)]
    lie(account, "list_oldest_first")
    lie(account, "list_pages", value="2")
    assert pages(account)[0] == [ids[:2], ids[2:4], ids[4:]]
    before = account.get("/order?after=A-2")["pagination"]["cursors"]["before"]
    assert [row["id"] for row in account.get(f"/order?before={before}")["items"]] == ids[:2]


def test_other_requests_count_no_lie_about_the_list(account: Account, placed: str) -> None:
    lie(account, "list_without", value="items", count=1)
    shown(account, placed)
    account.get("/ping")
    assert "items" not in account.get("/order")
