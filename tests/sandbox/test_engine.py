"""The sandbox's engine in process: that it behaves as Runa's guides say, and goes wrong as a test asks."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_runa.sandbox import catalogue
from airflow_provider_runa.sandbox.engine import API_VERSION, Engine, Fault
from tests.sandbox.account import ADDRESS, BY_MAIL, DAY, LINK, Account, item, kind, order, single


@pytest.fixture
def account() -> Account:
    return Account()


# -- keys, versions and paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method_and_target", [("GET", "/ping"), ("POST", "/order"), ("GET", "/nowhere")])
@pytest.mark.parametrize(
    ("header", "value", "expected"),
    [
        ("X_Api_Key", "", (401, "unauthorized")),
        ("X_Api_Key", "wgother.secret", (401, "invalid_api_key")),
        ("X_Api_Version", "2021-06-30", (410, "version_removed")),
        ("X_Api_Version", "2999-01-01", (400, "invalid_version")),
        ("X_Api_Version", "latest", (400, "invalid_version")),
    ],
)
def test_key_and_version_are_looked_at_first(
    account: Account, method_and_target: tuple[str, str], header: str, value: str, expected: tuple[int, str]
) -> None:
    assert kind(account.ask(*method_and_target, order(), **{header: value})) == expected
    assert account.count == 0


def test_every_key_that_was_given_is_accepted() -> None:
    account = Account(api_keys=("XXone.secret", "XXtwo.secret"))
    statuses = [account.ask("GET", "/ping", X_Api_Key=f"XX{name}.secret").status for name in ("one", "two", "three")]
    assert statuses == [200, 200, 401]


def test_every_answer_has_the_version(account: Account) -> None:
    account.engine.faults.append(Fault("status"))
    answers = [account.ask("GET", "/ping"), account.ask("GET", "/nowhere"), account.post(), account.post()]
    assert [answer.status for answer in answers] == [200, 404, 500, 202]
    assert {answer.headers["X-Api-Version"] for answer in answers} == {API_VERSION}


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/nowhere"), ("GET", "/"), ("DELETE", "/order/O-1"), ("PUT", "/order"), ("GET", "/order/O-1/items")],
)
def test_what_is_not_there_is_not_found(account: Account, method: str, target: str) -> None:
    assert kind(account.ask(method, target)) == (404, "not_found")


# -- an order's life --------------------------------------------------------------------------------------------------


def test_an_order_is_processing_for_a_while_and_then_completed() -> None:
    account = Account(processing_delay=5.0)
    order_id = account.place(order(item(method=BY_MAIL), description="Spring", metadata={"run": "1"}))
    assert account.get(f"/order/{order_id}").keys() == {"id", "status", "message"}
    account.time += 4.9
    assert account.get(f"/order/{order_id}")["status"] == "PROCESSING"
    account.time += 0.1
    shown = account.get(f"/order/{order_id}")
    assert (shown["status"], shown["description"], shown["metadata"]) == ("COMPLETED", "Spring", {"run": "1"})
    assert (shown["total_price"], shown["total_discount"], shown["currency"]) == ("10.00", "0.00", "USD")
    (payout,) = shown["items"]
    assert (payout["face_value"], payout["price"], payout["distribution_method"]) == ("10.00", "10.00", BY_MAIL)
    assert payout["payout"]["status"] == "ACTIVE"


def test_a_sync_order_is_complete_at_once() -> None:
    account = Account(processing_delay=5.0)
    answer = account.post(mode="sync")
    assert answer.status == 200
    assert answer.json() == account.get(f"/order/{answer.json()['id']}")
    assert answer.json()["status"] == "COMPLETED"


def test_every_payout_has_another_link() -> None:
    account = Account(link_base="http://127.0.0.1:1/claim")
    order_id = account.place(order(*[item()] * 3))
    account.time += 10
    links = {payout["payout"]["url"] for payout in account.get(f"/order/{order_id}")["items"]}
    assert len(links) == 3
    assert all(link.startswith("http://127.0.0.1:1/claim/") for link in links)


def test_rows_of_the_list_show_less(account: Account) -> None:
    done = account.place(order(description="Spring", metadata={"run": "1"}))
    account.time += 10
    pending = account.place()
    first, second = account.get("/order")["items"]
    assert first == {"id": pending, "status": "PROCESSING", "message": "The order is being processed."}
    assert (second["id"], second["description"]) == (done, "Spring")
    assert not second.keys() & {"items", "metadata"}


def test_an_order_costs_its_price(account: Account) -> None:
    account.place(order(single("SHOE-US", 50), single("AMZ-US", 9.99)))
    assert account.balance() == "999945.01"  # ten percent off the shoes
    account.engine.set_balance("USD", Decimal("0"))
    assert kind(account.post()) == (400, "insufficient_funds")


def test_a_sync_order_in_another_currency_is_converted(account: Account) -> None:
    shown = account.post(order(single("TEA-GB")), mode="sync").json()
    assert (shown["currency"], shown["total_price"], shown["items"][0]["currency"]) == ("USD", "12.50", "GBP")
    detail = shown["transaction_detail"]["GBP"]
    assert (detail["value"], detail["fx"]["rate"], detail["fx"]["rate_symbol"]) == ("10.00", "1.2500", "GBPUSD")
    assert (account.balance("USD"), account.balance("GBP")) == ("999987.50", "1000000.00")


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_an_order_that_fails_is_accepted_and_paid_back_once(account: Account, mode: str) -> None:
    account.engine.faults.append(Fault("fail_order"))
    answer = account.post(mode=mode)
    assert answer.status == 202
    assert account.balance() == "999990.00"
    account.time += 10
    assert [account.balance(), account.balance()] == ["1000000.00"] * 2
    shown = account.get(f"/order/{answer.json()['id']}")
    assert (shown["status"], shown["items"][0]["payout"]["url"]) == ("FAILED", "")
    assert account.get("/order")["items"][0]["status"] == "FAILED"


def test_an_order_that_is_half_placed_is_not_placed(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("killed here")

    monkeypatch.setattr(Engine, "_item", broken)
    with pytest.raises(RuntimeError, match="killed here"):
        account.post(key="one")
    monkeypatch.undo()
    assert (account.count, account.balance()) == (0, "1000000.00")
    account.place(key="one")


# -- idempotency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "  "])
def test_an_order_needs_a_key(account: Account, key: str) -> None:
    assert kind(account.post(key=key)) == (400, "bad_request")
    assert account.count == 0


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_the_same_key_and_body_have_the_same_answer(account: Account, mode: str) -> None:
    first = account.post(key="one", mode=mode)
    account.time += 20 * DAY
    again = account.post(key="one", mode=mode)
    assert (again.status, again.body) == (first.status, first.body)
    assert (account.count, account.balance()) == (1, "999990.00")


@pytest.mark.parametrize(
    ("body", "mode"),
    [(order(item(face_value=11)), "async"), (order(description="other"), "async"), (order(), "sync"), (b"{", "async")],
)
def test_another_request_under_a_key_is_refused(account: Account, body: Any, mode: str) -> None:
    first = account.post(key="one")
    assert kind(account.post(body, key="one", mode=mode)) == (400, "idempotency_validation_error")
    assert account.post(key="one").body == first.body
    assert account.count == 1


def test_a_key_is_forgotten_after_30_days(account: Account) -> None:
    first = account.place(key="one")
    account.time += 30 * DAY - 1
    assert account.place(key="one") == first
    account.time += 1
    assert account.place(key="one") != first
    assert account.count == 2


def test_a_refusal_is_replayed_although_its_cause_is_gone(account: Account) -> None:
    account.engine.set_balance("USD", Decimal("0"))
    first = account.post(key="one")
    account.engine.set_balance("USD", Decimal("1000"))
    assert kind(first) == (400, "insufficient_funds")
    assert account.post(key="one").body == first.body
    assert account.count == 0
    account.place(key="two")


def test_what_was_refused_before_the_key_was_read_is_not_replayed() -> None:
    account = Account(orders_per_minute=2)
    account.engine.faults.append(Fault("status", status=503))
    assert account.post(key="one").status == 503
    assert account.post(key="one", X_Api_Key="XXother.secret").status == 401
    account.place()
    account.place()
    assert account.post(key="one").status == 429
    account.time += 60
    account.place(key="one")


@pytest.mark.parametrize("status", [400, 102])
def test_a_key_in_use_says_so_until_its_answer_is_due(status: int) -> None:
    account = Account(in_progress_status=status)
    account.engine.faults.append(Fault("latency", seconds=30))
    first = account.post(key="one")
    assert first.delay == 30
    account.time += 29
    waiting = account.post(key="one")
    assert (kind(waiting), waiting.delay) == ((status, "idempotency_in_progress"), 0)
    assert kind(account.post(order(currency="EUR"), key="one")) == (400, "idempotency_validation_error")
    account.time += 1
    assert account.post(key="one").body == first.body
    assert account.count == 1


def test_an_order_shows_in_the_list_when_its_answer_is_due(account: Account) -> None:
    account.engine.faults.append(Fault("latency", seconds=30))
    order_id = account.place()
    account.time += 29
    assert account.get("/order")["items"] == []
    account.time += 1
    assert [row["id"] for row in account.get("/order")["items"]] == [order_id]


# -- limits and pages -------------------------------------------------------------------------------------------------


def test_the_rate_limit_counts_every_order_request_of_a_minute() -> None:
    account = Account(orders_per_minute=3)
    statuses = [account.post(key=key).status for key in ("one", "one", "")]
    assert statuses == [202, 202, 400]
    account.time += 59
    answer = account.post(key="two")
    assert (answer.status, answer.json()) == (429, {"error": "rate exceeded"})
    assert account.ask("GET", "/order").status == 200
    account.time += 1
    assert account.post(key="two").status == 202


def pages(account: Account, target: str, rows: str, name: str) -> list[list[str]]:
    """Read a list page by page, as a client does."""
    found, cursor = [], ""
    while True:
        page = account.get(f"{target}{cursor}")
        if not page[rows]:
            return found
        found.append([row[name] for row in page[rows]])
        cursor = f"&after={page['pagination']['cursors']['after']}"


def test_the_order_list_is_read_in_pages_newest_first(account: Account) -> None:
    ids = [account.place() for _ in range(5)]
    assert pages(account, "/order?limit=2", "items", "id") == [ids[4:2:-1], ids[2:0:-1], ids[:1]]
    assert account.get("/order")["pagination"]["page"] == {"limit": 100}
    older = account.get("/order?limit=2")["pagination"]["cursors"]["after"]
    assert [row["id"] for row in account.get(f"/order?limit=9&after={older}")["items"]] == ids[2::-1]
    oldest = account.get(f"/order?limit=9&after={older}")["pagination"]["cursors"]["before"]
    assert [row["id"] for row in account.get(f"/order?limit=1&before={oldest}")["items"]] == [ids[3]]
    assert [row["id"] for row in account.get(f"/order?limit=2&before={oldest}")["items"]] == ids[:2:-1]
    newest = account.get("/order")["pagination"]["cursors"]["before"]
    assert account.get(f"/order?before={newest}")["items"] == []


def test_an_order_that_comes_between_two_pages_shifts_none(account: Account) -> None:
    ids = [account.place() for _ in range(4)]
    cursor = account.get("/order?limit=2")["pagination"]["cursors"]["after"]
    account.place()
    assert [row["id"] for row in account.get(f"/order?limit=2&after={cursor}")["items"]] == ids[1::-1]


def test_the_catalogue_is_read_in_pages(account: Account) -> None:
    codes = list(catalogue.PRODUCTS)
    assert pages(account, "/product?limit=4", "catalog", "code") == [codes[:4], codes[4:8], codes[8:]]
    back = account.get("/product?limit=4&after=A-8")["pagination"]["cursors"]["before"]
    assert [row["code"] for row in account.get(f"/product?limit=4&before={back}")["catalog"]] == codes[4:8]


@pytest.mark.parametrize("path", ["/order", "/product"])
@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "after=1", "before=A-x", "after=A-1&before=A-2"])
def test_a_wrong_page_is_refused(account: Account, path: str, query: str) -> None:
    assert kind(account.ask("GET", f"{path}?{query}")) == (400, "pagination_error")


# -- everything else --------------------------------------------------------------------------------------------------


def test_ping(account: Account) -> None:
    assert account.get("/ping") == {"message": "pong"}


def test_balances() -> None:
    account = Account(balances={"USD": Decimal("5"), "EUR": Decimal("0")})
    assert account.get("/balance") == [{"currency": "USD", "balance": "5.00"}]
    assert account.get("/balance?currency=EUR") == {"currency": "EUR", "balance": "0.00"}
    assert kind(account.ask("GET", "/balance?currency=euro")) == (400, "bad_request")


@pytest.mark.parametrize(
    ("query", "codes"),
    [
        ("is_orderable=false", set(catalogue.PRODUCTS)),
        ("is_orderable=true", set(catalogue.PRODUCTS) - {"GONE-US", "PAUSED-US"}),
        ("countries_redeemable_in=GB&countries_redeemable_in=DE", {"TEA-GB", "MART-DE"}),
        ("categories=supermarkets&categories=prepaid-card", {"MART-DE", "VISA-US"}),
        ("categories=food-and-drink&countries_redeemable_in=US", {"CAFE-US"}),
    ],
)
def test_the_catalogue_is_filtered(account: Account, query: str, codes: set[str]) -> None:
    assert {product["code"] for product in account.get(f"/product?{query}")["catalog"]} == codes


def test_an_id_may_be_quoted(account: Account) -> None:
    order_id = account.place()
    assert account.get(f"/order/{order_id.replace('-', '%2D')}")["id"] == order_id


def test_countries_categories_and_a_product(account: Account) -> None:
    assert account.get("/product/countries") == {"countries": ["CA", "DE", "GB", "US"]}
    assert {"code": "fashion"} in account.get("/product/categories")["categories"]
    assert account.get("/product/AMZ%2DUS")["code"] == "AMZ-US"
    assert kind(account.ask("GET", "/product/NONE-US")) == (404, "not_found")


def test_an_estimate_places_nothing(account: Account) -> None:
    items = [{"face_value": 50, "products": {"type": "SINGLE", "value": "SHOE-US"}}] * 500
    answer = account.ask("POST", "/order/estimate", order(*items))
    assert answer.status == 200
    assert (answer.json()["total_price"], answer.json()["total_discount"]) == (22500.0, 2500.0)
    assert (account.count, account.balance()) == (0, "1000000.00")


@pytest.mark.parametrize(("forced", "status"), [("insufficient_funds", 400), ("internal_server_error", 500)])
def test_an_error_can_be_asked_for_and_is_replayed(account: Account, forced: str, status: int) -> None:
    first = account.post(key="one", X_Trigger_Error=forced)
    assert kind(first) == (status, forced)
    assert account.post(key="one").body == first.body
    assert account.count == 0
    account.place(key="two")


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_fault_hits_so_many_requests_after_those_it_skips(account: Account) -> None:
    account.engine.faults += [Fault("status", status=500, count=2, skip=1), Fault("status", status=504, count=0)]
    assert [account.post().status for _ in range(5)] == [202, 500, 500, 202, 202]
    assert account.engine.faults == []


def test_a_fault_without_a_count_hits_until_it_is_cleared(account: Account) -> None:
    order_id = account.place()
    account.engine.faults += [Fault("status", count=None, skip=1, method="GET", path=f"/order/{order_id}", status=503)]
    assert [account.ask("GET", f"/order/{order_id}").status for _ in range(50)] == [200] + [503] * 49
    assert account.ask("GET", f"/order/{account.place()}").status == 200
    account.engine.faults.clear()
    assert account.ask("GET", f"/order/{order_id}").status == 200


def test_an_order_that_is_listed_is_not_found(account: Account) -> None:
    order_id = account.place()
    account.engine.faults.append(Fault("status", count=None, method="GET", path=f"/order/{order_id}", status=404))
    assert [row["id"] for row in account.get("/order")["items"]] == [order_id]
    assert kind(account.ask("GET", f"/order/{order_id}")) == (404, "not_found")


@pytest.mark.parametrize("status", [400, 102])
def test_a_key_is_said_to_be_in_use_although_nothing_runs(account: Account, status: int) -> None:
    account.engine.faults.append(Fault("status", count=3, status=status, type="idempotency_in_progress"))
    assert [kind(account.post(key="one")) for _ in range(3)] == [(status, "idempotency_in_progress")] * 3
    account.place(key="one")
    assert account.count == 1


def test_a_storm_of_429_stores_nothing(account: Account) -> None:
    account.engine.faults.append(Fault("status", count=40, status=429))
    answers = [account.post(key="one") for _ in range(40)]
    assert {(answer.status, answer.body) for answer in answers} == {(429, b'{"error": "rate exceeded"}')}
    assert account.count == 0
    account.place(key="one")


@pytest.mark.parametrize(("fault", "orders"), [("drop_before", 0), ("drop_after", 1)])
def test_a_connection_can_be_reset_instead(account: Account, fault: str, orders: int) -> None:
    account.engine.faults.append(Fault(fault, reset=True))
    assert (account.post().drop, account.count) == ("reset", orders)


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        ({}, {"POST /order"}),
        ({"method": "GET"}, {"GET /order"}),
        ({"method": "GET", "path": "/order/*"}, {"GET /order/O-1"}),
        ({"method": "GET", "path": "/order/O-1"}, {"GET /order/O-1"}),
        ({"method": "GET", "path": "*"}, {"GET /order", "GET /order/O-1", "GET /ping"}),
    ],
)
def test_a_fault_hits_the_requests_it_names(account: Account, fault: dict[str, Any], hit: set[str]) -> None:
    account.engine.faults.append(Fault("status", status=503, count=9, **fault))
    requests = ["POST /order", "GET /order", "GET /order/O-1", "GET /ping", "POST /order/estimate"]
    assert {request for request in requests if account.ask(*request.split(), {}).status == 503} == hit


@pytest.mark.parametrize(
    ("fault", "body"),
    [
        ({"status": 429}, {"error": "rate exceeded"}),
        ({"status": 500}, "internal_server_error"),
        ({"status": 504}, "timeout"),
        ({"status": 400, "type": "currency_mismatch"}, "currency_mismatch"),
        ({"status": 502, "typed": False}, None),
    ],
)
def test_a_status_has_runas_body_or_a_gateways(account: Account, fault: dict[str, Any], body: Any) -> None:
    account.engine.faults.append(Fault("status", **fault))
    answer = account.post()
    assert answer.status == fault["status"]
    if body is None:
        assert answer.headers["Content-Type"] == "text/html"
        assert answer.body.startswith(b"<html>")
    else:
        assert answer.json() == body or answer.json()["type"] == body
    assert account.count == 0


@pytest.mark.parametrize("stored", [False, True])
def test_a_status_is_forgotten_or_remembered(account: Account, stored: bool) -> None:
    account.engine.faults.append(Fault("status", status=500, stored=stored))
    assert account.post(key="one").status == 500
    assert account.post(key="one").status == (500 if stored else 202)
    assert account.count == (0 if stored else 1)


def test_a_status_after_the_order_was_stored_is_replayed(account: Account) -> None:
    account.engine.faults.append(Fault("status_after", status=504))
    assert [account.post(key="one").status for _ in range(2)] == [504, 504]
    assert account.count == 1


def test_what_a_gateway_says_after_the_order_was_stored_is_not_replayed(account: Account) -> None:
    account.engine.faults.append(Fault("status_after", status=403, typed=False))
    assert [account.post(key="one").status for _ in range(2)] == [403, 202]
    assert account.count == 1


def test_a_connection_dropped_before_leaves_nothing(account: Account) -> None:
    account.engine.faults.append(Fault("drop_before"))
    assert account.post(key="one").drop == "all"
    assert account.count == 0
    account.place(key="one")


@pytest.mark.parametrize(("fault", "drop"), [("drop_after", "all"), ("half_answer", "half")])
def test_an_answer_that_is_lost_leaves_the_order(account: Account, fault: str, drop: str) -> None:
    account.engine.faults.append(Fault(fault))
    lost = account.post(key="one")
    assert (lost.drop, account.count) == (drop, 1)
    again = account.post(key="one")
    assert (again.drop, again.body) == ("", lost.body)
    assert account.count == 1


def test_latency_is_for_all_answers_or_for_some() -> None:
    account = Account(latency=0.5)
    account.engine.faults.append(Fault("latency", seconds=2, method="GET", path="/ping"))
    assert [account.ask("GET", "/ping").delay for _ in range(2)] == [2.5, 0.5]


def test_faults_can_meet(account: Account) -> None:
    account.engine.faults += [Fault("drop_after"), Fault("fail_order"), Fault("latency", seconds=3)]
    lost = account.post()
    assert (lost.drop, lost.delay) == ("all", 3)
    account.time += 10
    assert account.engine.orders()[0].status == "FAILED"


@pytest.mark.parametrize(
    "values", [{"kind": "explode"}, {"kind": "status", "status": 42}, {"kind": "latency", "seconds": -1}]
)
def test_a_fault_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Fault(**values)


# -- controls ---------------------------------------------------------------------------------------------------------


def test_stats_count_and_name_no_recipient(account: Account) -> None:
    account.engine.faults.append(Fault("fail_order", skip=1))
    account.place(order(item(method=BY_MAIL), item(method=BY_MAIL)), key="one")
    account.place(order(item(method=BY_MAIL)), key="two")
    account.place(order(item(method=LINK)), key="three")
    account.post(key="three", mode="sync")
    account.time += 10
    account.ask("GET", "/order/O-1")
    account.ask("GET", "/product/countries")
    stats = account.engine.stats()
    assert stats["orders"] == {"COMPLETED": 2, "FAILED": 1}
    assert stats["payouts"] == 3
    assert stats["requests"] == {"POST /order": 4, "GET /order/{id}": 1, "GET /product/countries": 1}
    assert stats["order_posts_by_key"] == {"one": 1, "two": 1, "three": 2}
    assert list(stats["orders_by_recipient"].values()) == [2]
    assert ADDRESS not in json.dumps(stats)


def test_a_reset_leaves_the_settings() -> None:
    account = Account(orders_per_minute=2)
    account.engine.faults += [Fault("latency", seconds=30), Fault("status", count=9, skip=1)]
    account.place(key="one")
    account.engine.reset()
    assert (account.count, account.balance()) == (0, "1000000.00")
    assert account.engine.stats()["requests"] == {"GET /balance": 1}
    first = account.place(order(item(face_value=11)), key="one")
    assert account.place(order(item(face_value=11)), key="one") == first


def test_time_can_pass(account: Account) -> None:
    order_id = account.place()
    account.engine.advance(60)
    assert account.engine.now() == account.time + 60
    assert account.get(f"/order/{order_id}")["status"] == "COMPLETED"


def test_a_file_keeps_orders_answers_and_balances(tmp_path: Path) -> None:
    before = Account(database=tmp_path / "runa.db")
    order_id = before.place(key="one")
    after = Account(database=tmp_path / "runa.db")
    assert after.balance() == "999990.00"
    assert after.place(key="one") == order_id
    assert [row["id"] for row in after.get("/order")["items"]] == [order_id]
