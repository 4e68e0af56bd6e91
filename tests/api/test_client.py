"""Both clients over real sockets, against the sandbox and against a server that gives unusual answers."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from airflow_provider_runa import __version__
from airflow_provider_runa.api import client as client_module
from airflow_provider_runa.api.client import ATTEMPTS, AsyncRunaClient, RunaClient
from airflow_provider_runa.api.errors import (
    InvalidOrderError,
    RunaApiError,
    RunaAuthenticationError,
    RunaConnectionError,
    RunaCurrencyMismatchError,
    RunaError,
    RunaIdempotencyInProgressError,
    RunaIdempotencyMismatchError,
    RunaInsufficientFundsError,
    RunaNotFoundError,
    RunaRateLimitError,
    RunaServerError,
    RunaUnreachableError,
    RunaValidationError,
    RunaVersionRemovedError,
)
from airflow_provider_runa.api.models import EstimateRequest, NewOrder
from airflow_provider_runa.api.retry import is_outcome_unknown
from tests.support.frames import assert_no_secrets
from tests.support.raw import Raw, http, start_raw
from tests.support.sandbox import RunningSandbox, start_sandbox

EMAIL = "ada.lovelace@example.com"
API_KEY = "XXplanted.k3y-part"
LINK = "https://payouts.example.com/claim/s3cret-t0ken"
PLANTED = ("XXplanted", "k3y-part", "lovelace", "s3cret")

ITEM = {
    "face_value": "10.50",
    "distribution_method": {"type": "EMAIL", "email_address": EMAIL},
    "products": {"type": "SINGLE", "value": "AMZ-US"},
}


def an_order(count: int = 1, **changes: Any) -> NewOrder:
    return NewOrder.build(**({"currency": "USD", "items": [ITEM] * count} | changes))


# -- the twins --------------------------------------------------------------------------------------------------------


class Blocking:
    """An ``AsyncRunaClient`` with the synchronous methods of a ``RunaClient``, so that one test covers both."""

    def __init__(self, api_key: str, *, sleep: Callable[[float], object], **settings: Any) -> None:
        async def pause(seconds: float) -> None:
            sleep(seconds)

        self._runner = asyncio.Runner()
        self._client = AsyncRunaClient(api_key, sleep=pause, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            return self._runner.run(_all(answer) if inspect.isasyncgen(answer) else answer)

        return call

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


async def _all(rows: AsyncIterator[Any]) -> list[Any]:
    return [row async for row in rows]


class Clients:
    """Creates clients of one kind, and records how long they waited between attempts (without waiting)."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self._made: list[Any] = []
        self.pauses: list[float] = []

    def __call__(self, url: str, api_key: str = API_KEY, **settings: Any) -> Any:
        options = {"sleep": self.pauses.append, "timeout": 5.0} | settings
        self._made.append(self._kind(api_key, base_url=url, **options))
        return self._made[-1]

    def close(self) -> None:
        for client in self._made:
            client.close()


@pytest.fixture(params=[RunaClient, Blocking], ids=["sync", "async"])
def clients(request: pytest.FixtureRequest) -> Iterator[Clients]:
    made = Clients(request.param)
    yield made
    made.close()


def test_the_twins_have_the_same_methods_and_parameters() -> None:
    def interface(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [str(parameter) for parameter in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_") and name not in ("close", "aclose")
        }

    assert interface(RunaClient) == interface(AsyncRunaClient)
    assert len(interface(RunaClient)) == 12  # ten endpoints, one of them with two answers, and the rate limit


# -- against the sandbox ----------------------------------------------------------------------------------------------


class OneConnection(RunningSandbox):
    """A sandbox whose control client keeps one connection, because it is called hundreds of times here."""

    controls: httpx.Client

    def _control(self, method: str, name: str, body: Any = None) -> Any:
        url = f"{self.url.removesuffix('/v2')}/_sandbox/{name}"
        return self.controls.request(method, url, json=body).raise_for_status().json()


@pytest.fixture(scope="module")
def running() -> Iterator[RunningSandbox]:
    with start_sandbox("--processing-delay", "60") as started, httpx.Client(verify=False, timeout=10) as controls:
        sandbox = OneConnection(started.url)
        sandbox.controls = controls
        yield sandbox


@pytest.fixture
def sandbox(running: RunningSandbox) -> RunningSandbox:
    running.reset()
    return running


@pytest.fixture
def runa_client(clients: Clients, sandbox: RunningSandbox) -> Any:
    """A client of the sandbox."""
    return clients(sandbox.url, sandbox.api_key)


def test_an_async_order_is_processing_and_then_completed(runa_client: Any, sandbox: RunningSandbox) -> None:
    order = runa_client.create_order(an_order(2, metadata={"run": "1"}, description="Spring"), idempotency_key="key-1")
    assert (order.status, order.items) == ("PROCESSING", None)
    assert runa_client.get_order(order.id).status == "PROCESSING"
    sandbox.advance(60)
    done = runa_client.get_order(order.id)
    assert (done.id, done.status, done.total_price) == (order.id, "COMPLETED", Decimal("21.00"))
    assert (done.metadata, done.description) == ({"run": "1"}, "Spring")
    assert [item.face_value for item in done.items] == [Decimal("10.50")] * 2
    assert all(item.payout.url.get_secret_value().startswith("http") for item in done.items)
    assert sandbox.orders()[0]["idempotency_key"] == "key-1"


def test_a_sync_order_is_complete_at_once(runa_client: Any) -> None:
    order = runa_client.create_order(an_order(), idempotency_key="key-1", execution_mode="sync")
    assert order.status == "COMPLETED"
    assert order.items[0].payout.url.get_secret_value().startswith("http")


def test_a_sync_order_converts_currencies(runa_client: Any) -> None:
    order = runa_client.create_order(an_order(currency="GBP"), idempotency_key="key-1", execution_mode="sync")
    assert (order.currency, order.total_price) == ("GBP", Decimal("8.40"))
    assert order.transaction_detail["USD"].fx.rate == Decimal("0.8")


def test_the_same_key_places_one_order(runa_client: Any, sandbox: RunningSandbox) -> None:
    ids = {runa_client.create_order(an_order(), idempotency_key="key-1").id for _ in range(3)}
    assert len(ids) == 1
    assert len(sandbox.orders()) == 1
    with pytest.raises(RunaIdempotencyMismatchError):
        runa_client.create_order(an_order(2), idempotency_key="key-1")


def test_ping_balances_and_estimate(runa_client: Any, sandbox: RunningSandbox) -> None:
    assert runa_client.ping() is None
    sandbox.balance("USD", "12.34")
    sandbox.balance("EUR", "0")
    assert runa_client.get_balance("USD").balance == Decimal("12.34")
    balances = {balance.currency: balance.balance for balance in runa_client.get_balances()}
    assert balances["USD"] == Decimal("12.34")
    assert "EUR" not in balances
    priced = {"face_value": "10.10", "products": {"type": "SINGLE", "value": "SHOE-US"}}
    estimate = runa_client.estimate_order(EstimateRequest.build(currency="USD", items=[priced, priced]))
    assert [estimate.total_price, estimate.total_discount] == [Decimal("18.18"), Decimal("2.02")]
    assert estimate.items[0].face_value == Decimal("10.1")
    assert sandbox.orders() == []


def test_the_catalogue(runa_client: Any) -> None:
    assert runa_client.get_product("CAFE-US").gift_card.denominations.available_list[0] == Decimal("5.00")
    assert runa_client.get_product("TUNES-US").subscription.subscription_plans[0].price == Decimal("30.00")
    assert set(runa_client.list_countries()) == {"US", "GB", "DE", "CA"}
    assert "prepaid-card" in runa_client.list_categories()
    everything = {product.code: product for product in runa_client.list_products()}
    assert not everything["GONE-US"].is_orderable
    assert "GONE-US" not in {product.code for product in runa_client.list_products(is_orderable=True)}
    assert {product.code for product in runa_client.list_products(countries=["GB", "DE"])} == {"TEA-GB", "MART-DE"}
    assert {product.code for product in runa_client.list_products(categories=["food-and-drink", "supermarkets"])} == {
        "CAFE-US",
        "TEA-GB",
        "MART-DE",
    }


@pytest.mark.parametrize("size", [1, 2, 5, 500])
def test_lists_are_read_to_the_last_page(
    runa_client: Any, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", size)
    ids = [runa_client.create_order(an_order(), idempotency_key=f"key-{number}").id for number in range(5)]
    assert [order.id for order in runa_client.list_orders()] == ids[::-1]
    assert sandbox.stats()["requests"]["GET /order"] == -(-5 // size) + 1
    codes = [product.code for product in runa_client.list_products()]
    assert len(codes) == len(set(codes)) == 11


def test_a_lost_page_is_requested_again(
    runa_client: Any, sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 2)
    ids = [runa_client.create_order(an_order(), idempotency_key=f"key-{number}").id for number in range(5)]
    sandbox.faults({"kind": "half_answer", "method": "GET", "path": "/order", "skip": 1})
    assert [order.id for order in runa_client.list_orders()] == ids[::-1]


def test_an_empty_list_is_empty(runa_client: Any) -> None:
    assert list(runa_client.list_orders()) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"api_key": API_KEY}, RunaAuthenticationError),
        ({"api_version": "2023-01-01"}, RunaVersionRemovedError),
    ],
)
def test_a_request_rejected_before_processing_is_sent_once(
    clients: Clients, sandbox: RunningSandbox, settings: dict[str, str], expected: type[RunaError]
) -> None:
    client = clients(sandbox.url, **({"api_key": sandbox.api_key} | settings))
    with pytest.raises(expected):
        client.ping()
    assert sandbox.stats()["requests"] == {"GET /ping": 1}
    with pytest.raises(expected) as caught:
        client.create_order(an_order(), idempotency_key="key-1")
    assert not is_outcome_unknown(caught.value)
    assert sandbox.stats()["requests"]["POST /order"] == 1
    assert clients.pauses == []


# -- asking again -----------------------------------------------------------------------------------------------------

# Answers that leave the outcome unknown, and the error for each.
UNKNOWN: dict[str, tuple[dict[str, Any], type[RunaError]]] = {
    "dropped before": ({"kind": "drop_before"}, RunaConnectionError),
    "dropped after": ({"kind": "drop_after"}, RunaConnectionError),
    "half an answer": ({"kind": "half_answer"}, RunaConnectionError),
    "102": ({"kind": "status", "status": 102, "type": "idempotency_in_progress"}, RunaConnectionError),
    "429": ({"kind": "status", "status": 429}, RunaRateLimitError),
    "500": ({"kind": "status", "status": 500}, RunaServerError),
    "502 of a gateway": ({"kind": "status", "status": 502, "typed": False}, RunaServerError),
    "504": ({"kind": "status", "status": 504}, RunaServerError),
    "in progress": (
        {"kind": "status", "status": 400, "type": "idempotency_in_progress"},
        RunaIdempotencyInProgressError,
    ),
}
FAULTS = pytest.mark.parametrize(("fault", "expected"), UNKNOWN.values(), ids=UNKNOWN)


@FAULTS
def test_an_order_is_sent_again_until_the_outcome_is_known(
    clients: Clients, runa_client: Any, sandbox: RunningSandbox, fault: dict[str, Any], expected: type[RunaError]
) -> None:
    sandbox.faults(fault | {"count": ATTEMPTS - 1})
    order = runa_client.create_order(an_order(), idempotency_key="key-1")
    assert [(row["id"], row["idempotency_key"]) for row in sandbox.orders()] == [(order.id, "key-1")]
    assert sandbox.stats()["requests"] == {"POST /order": ATTEMPTS}
    assert len(clients.pauses) == ATTEMPTS - 1
    assert all(pause >= (5.0 if expected is RunaRateLimitError else 0.5) for pause in clients.pauses)


@FAULTS
def test_an_order_is_given_up_after_the_last_attempt(
    runa_client: Any, sandbox: RunningSandbox, fault: dict[str, Any], expected: type[RunaError]
) -> None:
    sandbox.faults(fault | {"count": 100})
    with pytest.raises(expected) as caught:
        runa_client.create_order(an_order(), idempotency_key="key-1")
    assert is_outcome_unknown(caught.value)
    assert sandbox.stats()["requests"] == {"POST /order": ATTEMPTS}


@FAULTS
def test_an_order_is_sent_once_without_retry(
    clients: Clients, runa_client: Any, sandbox: RunningSandbox, fault: dict[str, Any], expected: type[RunaError]
) -> None:
    sandbox.faults(fault)
    with pytest.raises(expected) as caught:
        runa_client.create_order(an_order(), idempotency_key="key-1", retry=False)
    assert is_outcome_unknown(caught.value)
    assert sandbox.stats()["requests"] == {"POST /order": 1}
    assert clients.pauses == []


def test_a_500_that_is_replayed_stays_unknown(runa_client: Any, sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "status_after", "status": 500})
    with pytest.raises(RunaServerError) as caught:
        runa_client.create_order(an_order(), idempotency_key="key-1")
    assert is_outcome_unknown(caught.value)
    assert len(sandbox.orders()) == 1
    assert sandbox.stats()["order_posts_by_key"] == {"key-1": ATTEMPTS}


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "insufficient_funds", RunaInsufficientFundsError),
        (401, "invalid_api_key", RunaAuthenticationError),
        (404, "not_found", RunaNotFoundError),
        (422, "validation_error", RunaValidationError),
    ],
)
def test_a_final_rejection_is_not_retried(
    clients: Clients, runa_client: Any, sandbox: RunningSandbox, status: int, kind: str, expected: type[RunaError]
) -> None:
    sandbox.faults({"kind": "status", "status": status, "type": kind})
    with pytest.raises(expected) as caught:
        runa_client.create_order(an_order(), idempotency_key="key-1")
    assert not is_outcome_unknown(caught.value)
    assert sandbox.stats()["requests"] == {"POST /order": 1}
    assert clients.pauses == []


def test_each_rejection_of_the_sandbox_has_its_error(runa_client: Any, sandbox: RunningSandbox) -> None:
    with pytest.raises(RunaCurrencyMismatchError):
        runa_client.create_order(an_order(currency="GBP"), idempotency_key="key-1")
    sandbox.balance("USD", "10.49")
    with pytest.raises(RunaInsufficientFundsError):
        runa_client.create_order(an_order(), idempotency_key="key-2")
    with pytest.raises(RunaNotFoundError):
        runa_client.get_order("O-NONE")
    with pytest.raises(RunaNotFoundError):
        runa_client.get_product("NONE-US")


READS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "ping": ("/ping", lambda client: client.ping() is None),
    "get_order": ("/order/*", lambda client: client.get_order(next(iter(client.list_orders())).id)),
    "list_orders": ("/order", lambda client: list(client.list_orders())),
    "get_balance": ("/balance", lambda client: client.get_balance("USD")),
    "get_balances": ("/balance", lambda client: client.get_balances()),
    "list_products": ("/product", lambda client: list(client.list_products())),
    "get_product": ("/product/*", lambda client: client.get_product("AMZ-US")),
    "list_countries": ("/product/countries", lambda client: client.list_countries()),
    "list_categories": ("/product/categories", lambda client: client.list_categories()),
}


@pytest.mark.parametrize(("path", "read"), READS.values(), ids=READS)
def test_reads_are_retried(
    clients: Clients, runa_client: Any, sandbox: RunningSandbox, path: str, read: Callable[[Any], Any]
) -> None:
    runa_client.create_order(an_order(), idempotency_key="key-1")
    hits = {"method": "GET", "path": path}
    sandbox.faults(
        {"kind": "status", "status": 503, "typed": False} | hits,
        {"kind": "status", "status": 429, "skip": 1} | hits,
        {"kind": "drop_before", "skip": 2} | hits,
        {"kind": "half_answer", "skip": 3} | hits,
    )
    assert read(runa_client)
    assert len(clients.pauses) == 4
    assert clients.pauses[1] >= 5.0


def test_an_estimate_is_retried(clients: Clients, runa_client: Any, sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "drop_before", "path": "/order/estimate", "count": 2})
    item = {"face_value": 10, "products": {"type": "SINGLE", "value": "AMZ-US"}}
    assert runa_client.estimate_order(EstimateRequest.build(currency="USD", items=[item])).total_price == 10
    assert len(clients.pauses) == 2


def test_reads_are_given_up_after_the_last_attempt(runa_client: Any, sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "status", "status": 500, "method": "GET", "path": "/balance", "count": 100})
    with pytest.raises(RunaServerError):
        runa_client.get_balance("USD")
    assert sandbox.stats()["requests"] == {"GET /balance": ATTEMPTS}


def test_order_requests_keep_to_the_rate_limit(clients: Clients, sandbox: RunningSandbox) -> None:
    """Failed requests count, the 60 seconds slide, and reads are free."""
    now = [1000.0]
    sent = []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    client = clients(sandbox.url, sandbox.api_key, orders_per_minute=3, monotonic=lambda: now[0], sleep=sleep)
    sandbox.faults({"kind": "drop_before", "skip": 1, "count": 2})
    for number in range(8):
        client.create_order(an_order(), idempotency_key=f"key-{number}")
        client.ping()
        sent.append(now[0])
        now[0] += 7
    # Ten requests went out for eight orders; the last of each order is known.
    assert all(sent[index] - sent[index - 3] >= 60 for index in range(4, 8))
    assert sent[1] - sent[0] >= 60, "the two that failed count"
    assert sent[-1] - sent[0] < 300


def test_threads_can_share_a_client(sandbox: RunningSandbox) -> None:
    placed: dict[str, str] = {}

    def place(client: RunaClient, number: int) -> None:
        placed[f"key-{number}"] = client.create_order(an_order(), idempotency_key=f"key-{number}").id

    with RunaClient(sandbox.api_key, base_url=sandbox.url, timeout=5.0) as client:
        threads = [threading.Thread(target=place, args=(client, number)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert placed == {row["idempotency_key"]: row["id"] for row in sandbox.orders()}
    assert len(set(placed.values())) == 20


# -- what is sent -----------------------------------------------------------------------------------------------------

ACCEPTED = http("202 Accepted", b'{"id": "O-1", "status": "PROCESSING"}', "Content-Type: application/json")


def test_the_headers_of_an_order(clients: Clients) -> None:
    with start_raw(ACCEPTED) as server:
        client = clients(f"{server.url}/", api_version="2024-02-05")
        assert client.create_order(an_order(), idempotency_key="key-1").id == "O-1"
        assert client.create_order(an_order(), idempotency_key="key-2", execution_mode="sync").id == "O-1"
    first, second = server.heads()
    assert first[""] == "POST /v2/order HTTP/1.1"
    assert first["x-api-key"] == API_KEY
    assert first["x-api-version"] == "2024-02-05"
    assert first["user-agent"].startswith(f"airflow-provider-runa/{__version__} ")
    assert first["content-type"] == first["accept"] == "application/json"
    assert (first["x-idempotency-key"], first["x-execution-mode"]) == ("key-1", "async")
    assert (second["x-idempotency-key"], second["x-execution-mode"]) == ("key-2", "sync")
    assert server.bodies() == [an_order().body()] * 2


def test_a_read_has_no_headers_of_an_order(clients: Clients) -> None:
    with start_raw(http("200 OK", b'{"message": "pong"}')) as server:
        clients(server.url).ping()
    (head,) = server.heads()
    assert head["x-api-version"] == "2024-02-05"
    assert not {"x-idempotency-key", "x-execution-mode", "content-type"} & set(head)


def test_names_are_quoted_in_paths(clients: Clients) -> None:
    with start_raw(http("404 Not Found")) as server:
        client = clients(server.url)
        for name in ("100%/a b?c#d", "%2e%2e", "Zürich"):
            with pytest.raises(RunaNotFoundError):
                client.get_product(name)
            with pytest.raises(RunaNotFoundError):
                client.get_order(name)
    paths = [head[""].split()[1] for head in server.heads()]
    quoted = ["100%25%2Fa%20b%3Fc%23d", "%252e%252e", "Z%C3%BCrich"]
    assert paths == [f"/v2/{kind}/{name}" for name in quoted for kind in ("product", "order")]


def test_filters_and_cursors_are_sent(clients: Clients) -> None:
    product = {
        "code": "A",
        "name": "A",
        "currency": "USD",
        "state": "LIVE",
        "is_orderable": True,
        "payout_type": "gift_card",
    }
    pages = [
        {"catalog": [product], "pagination": {"cursors": {"after": "A+/1&="}}},
        {"catalog": [], "pagination": {"cursors": {}}},
    ]
    with start_raw(*[http("200 OK", json.dumps(page).encode()) for page in pages]) as server:
        rows = clients(server.url).list_products(is_orderable=True, countries=["US", "GB"], categories=["food & drink"])
        assert [row.code for row in rows] == ["A"]
    first, second = (httpx.URL(head[""].split()[1]).params.multi_items() for head in server.heads())
    assert first == [
        ("limit", "500"),
        ("is_orderable", "true"),
        ("countries_redeemable_in", "US"),
        ("countries_redeemable_in", "GB"),
        ("categories", "food & drink"),
    ]
    assert second == [*first, ("after", "A+/1&=")]


def a_page(field_name: str, after: str | None) -> bytes:
    row = {
        "items": {"id": "O-1", "status": "PROCESSING"},
        "catalog": {
            "code": "A",
            "name": "A",
            "currency": "USD",
            "state": "LIVE",
            "is_orderable": True,
            "payout_type": "gift_card",
        },
    }[field_name]
    cursors = {} if after is None else {"after": after}
    return http("200 OK", json.dumps({field_name: [row], "pagination": {"cursors": cursors}}).encode())


LISTS: dict[str, Callable[[Any], list[Any]]] = {
    "items": lambda client: list(client.list_orders()),
    "catalog": lambda client: list(client.list_products()),
}
OF_LISTS = pytest.mark.parametrize(("field_name", "read"), LISTS.items(), ids=LISTS)


@OF_LISTS
@pytest.mark.parametrize("cursors", [["A-1", "A-1"], ["A-1", "A-2", "A-1"], ["A-1", "A-2", "A-3", "A-2"]])
def test_a_cursor_that_was_seen_before_is_an_error(
    clients: Clients, field_name: str, read: Callable[[Any], list[Any]], cursors: list[str]
) -> None:
    """Rows that are not seen must not count as absent, and no list may be read for ever."""
    answers = [a_page(field_name, cursor) for cursor in cursors]
    with start_raw(*answers, http("404 Not Found")) as server:
        with pytest.raises(RunaConnectionError, match="the cursor of the next page was seen before"):
            read(clients(server.url))
        assert len(server.requests) == len(cursors)


@OF_LISTS
def test_a_page_without_a_cursor_is_the_last(
    clients: Clients, field_name: str, read: Callable[[Any], list[Any]]
) -> None:
    with start_raw(a_page(field_name, None)) as server:
        assert len(read(clients(server.url))) == 1
        assert len(server.requests) == 1


@OF_LISTS
@pytest.mark.parametrize(
    "page",
    [
        {},
        {"pagination": {"cursors": {}}},
        {"rows": []},
        {"rows": [], "pagination": None},
        {"rows": [], "pagination": {}},
        {"rows": None, "pagination": {"cursors": {}}},
    ],
    ids=str,
)
def test_a_list_without_rows_or_pagination_is_a_broken_answer(
    clients: Clients, field_name: str, read: Callable[[Any], list[Any]], page: dict[str, Any]
) -> None:
    """Otherwise an order that is not listed would count as absent."""
    named = {field_name if name == "rows" else name: value for name, value in page.items()}
    answer = http("200 OK", json.dumps(named).encode())
    with start_raw(answer) as server, pytest.raises(RunaConnectionError, match="the answer has an unexpected form"):
        read(clients(server.url))


def test_a_redirect_is_not_followed(clients: Clients) -> None:
    with start_raw(http("200 OK", b"{}")) as elsewhere:
        moved = http("307 Temporary Redirect", b"", f"Location: {elsewhere.url}/order")
        with start_raw(moved) as server:
            client = clients(server.url)
            with pytest.raises(RunaApiError, match="307: redirects are not followed"):
                client.create_order(an_order(), idempotency_key="key-1")
            with pytest.raises(RunaApiError, match="307: redirects are not followed"):
                client.ping()
    assert elsewhere.requests == []


@pytest.mark.parametrize(("count", "mode"), [(2, "sync"), (1, "later")])
def test_an_execution_mode_that_does_not_fit_sends_nothing(clients: Clients, count: int, mode: str) -> None:
    with start_raw(ACCEPTED) as server:
        with pytest.raises(InvalidOrderError, match=r"^execution_mode: "):
            clients(server.url).create_order(an_order(count), idempotency_key="key-1", execution_mode=mode)
        assert server.requests == []


# -- odd answers ------------------------------------------------------------------------------------------------------

_JSON = "Content-Type: application/json"
_HTML = f"<html><body>upstream error: {API_KEY} {EMAIL} {LINK}</body></html>".encode()
_IN_PROGRESS = b'{"type": "idempotency_in_progress", "message": "wait"}'
_ECHO = json.dumps({"type": "timeout", "message": f"{API_KEY} {EMAIL} {LINK}"}).encode()
_ROW = json.dumps({"id": "O-1", "status": "COMPLETED", "items": [{"id": LINK, "price": EMAIL}]}).encode()

ODD: dict[str, Raw | bytes] = {
    "closed at once": Raw(read=False),
    "reset at once": Raw(read=False, then="reset"),
    "no answer, closed": b"",
    "no answer, reset": Raw(then="reset"),
    "never answers": Raw(then="hang"),
    "half a status line": b"HTTP/1.1 202 Acc",
    "half a head": b"HTTP/1.1 202 Accepted\r\nContent-Le",
    "half a head, silent": Raw(b"HTTP/1.1 202 Accepted\r\nContent-Le", then="hang"),
    "body cut off": http("202 Accepted", b'{"id": "O-1", "status": "PROC', _JSON, length=90),
    "body cut off, silent": Raw(http("202 Accepted", b'{"id": "O-1", "stat', _JSON, length=90), then="hang"),
    "whole body, more promised": http("202 Accepted", b'{"id": "O-1", "status": "PROCESSING"}', _JSON, length=90),
    "body longer than promised": http("202 Accepted", b'{"id": "O-1", "status": "PROCESSING"}', _JSON, length=20),
    "body cut off, no length": b'HTTP/1.1 202 Accepted\r\n\r\n{"id": "O-1", "status": "PROC',
    "chunks cut off": b'HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{"id": "O-1"}',
    "bad gzip": http("202 Accepted", b'{"id": "O-1", "status": "PROCESSING"}', _JSON, "Content-Encoding: gzip"),
    "rejection cut off": http("400 Bad Request", _IN_PROGRESS[:30], _JSON, length=len(_IN_PROGRESS)),
    "102 with a body": http("102 Processing", _IN_PROGRESS, _JSON),
    "102 with a body, silent": Raw(http("102 Processing", _IN_PROGRESS, _JSON), then="hang"),
    "102 without a body": b"HTTP/1.1 102 Processing\r\n\r\n",
    "100 with a body": http("100 Continue", _IN_PROGRESS, _JSON),
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "202 empty": http("202 Accepted"),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "200 of HTML": http("200 OK", _HTML, "Content-Type: text/html"),
    "200 of bytes": http("200 OK", b"\xff\xfe\x00{", _JSON),
    "200 null": http("200 OK", b"null", _JSON),
    "200 of a list": http("200 OK", b"[]", _JSON),
    "200 of text": http("200 OK", b'"O-1"', _JSON),
    "200 without id": http("200 OK", b'{"status": "COMPLETED"}', _JSON),
    "200 without status": http("200 OK", b'{"id": "O-1"}', _JSON),
    "200 of another thing": http("200 OK", _ROW, _JSON),
    "429": http("429 Too Many Requests", b'{"error": "rate exceeded"}', _JSON),
    "429 empty": http("429 Too Many Requests"),
    "500 echo": http("500 Internal Server Error", _ECHO, _JSON),
    "502 of HTML": http("502 Bad Gateway", _HTML, "Content-Type: text/html"),
    "503 empty": http("503 Service Unavailable"),
    "504 cut off": http("504 Gateway Timeout", _ECHO[:30], _JSON, length=len(_ECHO)),
    "no such status": http("999 Odd", _HTML),
    "status of no digits": http("OK", _HTML),
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "endless head": b"HTTP/1.1 202 Accepted\r\nX-Odd: " + b"a" * 200_000,
    "in progress": http("400 Bad Request", _IN_PROGRESS, _JSON),
}


def linked(error: BaseException | None) -> list[BaseException]:
    """Return an error, and all that are chained to it."""
    found: list[BaseException] = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def assert_shows_no_secret(error: BaseException) -> None:
    printed = "".join(traceback.format_exception(error)) + repr(error)
    assert not [part for part in PLANTED if part in printed]
    assert_no_secrets(error, PLANTED)
    # httpx's errors hold the request, and with it the key and the recipients.
    assert not [one for one in linked(error) if isinstance(one, httpx.HTTPError)]


@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_an_odd_answer_leaves_an_order_unknown(clients: Clients, answer: Raw | bytes) -> None:
    """It is neither a success nor a final rejection, and the traceback shows no secret."""
    silent = isinstance(answer, Raw) and answer.then == "hang"
    with start_raw(answer) as server:
        client = clients(server.url, timeout=0.2 if silent else 5.0)
        began = time.monotonic()
        with pytest.raises(RunaError) as caught:
            client.create_order(an_order(), idempotency_key="key-1", retry=False)
        assert time.monotonic() - began < 2, "the timeout is not kept"
    assert is_outcome_unknown(caught.value)
    assert_shows_no_secret(caught.value)
    assert len(server.requests) <= 1


def test_a_refused_connection_says_that_nothing_was_sent(clients: Clients) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v2"
    with pytest.raises(RunaUnreachableError, match="POST /order: no connection") as caught:
        clients(url).create_order(an_order(), idempotency_key="key-1")
    assert is_outcome_unknown(caught.value)
    assert isinstance(caught.value, RunaUnreachableError)
    assert caught.value.address == url.removeprefix("http://").removesuffix("/v2")
    assert (str(again := pickle.loads(pickle.dumps(caught.value))), again.address) == (
        str(caught.value),
        caught.value.address,
    )
    assert_shows_no_secret(caught.value)
    assert len(clients.pauses) == ATTEMPTS - 1


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError])
def test_an_error_of_connecting_proves_that_nothing_was_sent(clients: Clients, error: type[httpx.HTTPError]) -> None:
    client = transported(clients, error)
    with pytest.raises(RunaUnreachableError) as caught:
        client.create_order(an_order(), idempotency_key="key-1", retry=False)
    assert caught.value.address == "runa.example.com:443"
    assert_shows_no_secret(caught.value)


@pytest.mark.parametrize(
    "error",
    [httpx.ReadTimeout, httpx.WriteTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError],
)
def test_any_other_error_of_the_network_proves_nothing(clients: Clients, error: type[httpx.HTTPError]) -> None:
    with pytest.raises(RunaConnectionError) as caught:
        transported(clients, error).create_order(an_order(), idempotency_key="key-1", retry=False)
    assert not isinstance(caught.value, RunaUnreachableError)


def transported(clients: Clients, error: type[BaseException]) -> Any:
    """Return a client whose requests all end in an error."""

    def fail(request: httpx.Request) -> httpx.Response:
        raise error("planted")

    return clients("https://runa.example.com/v2", transport=httpx.MockTransport(fail))


@pytest.mark.parametrize("status", ["403 Forbidden", "502 Bad Gateway", "407 Proxy Authentication Required"])
def test_a_proxy_that_opens_no_tunnel_has_passed_nothing_on(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    with start_raw(http(status)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.removesuffix("/v2"))
        monkeypatch.setenv("NO_PROXY", "")
        with pytest.raises(RunaUnreachableError, match="ProxyError"):
            clients("https://runa.example.com/v2").create_order(an_order(), idempotency_key="key-1", retry=False)
    assert [head[""] for head in proxy.heads()] == ["CONNECT runa.example.com:443 HTTP/1.1"]


class Interrupted(BaseException):
    """A signal, such as Airflow's for ``execution_timeout``."""


def test_an_interrupted_request_leaves_no_secret_in_the_frames(clients: Clients) -> None:
    with pytest.raises(Interrupted) as caught:
        transported(clients, Interrupted).create_order(an_order(), idempotency_key="key-1")
    assert_shows_no_secret(caught.value)


@pytest.mark.parametrize("name", ["no answer, closed", "body cut off", "102 with a body", "200 of HTML", "502 of HTML"])
def test_every_attempt_sends_the_same_bytes_under_the_same_key(clients: Clients, name: str) -> None:
    with start_raw(ODD[name], ODD[name], ACCEPTED) as server:
        assert clients(server.url).create_order(an_order(), idempotency_key="key-1").id == "O-1"
    assert len(server.requests) == 3
    assert len(set(server.requests)) == 1
    assert server.bodies()[0] == an_order().body()


def test_a_connection_error_contains_its_cause(clients: Clients) -> None:
    with pytest.raises(RunaConnectionError, match=r"GET /ping: no connection \(ConnectError: .+\)") as caught:
        clients("http://127.0.0.1:9/v2").ping(retry=False)
    assert clients.pauses == []
    assert_shows_no_secret(caught.value)


def test_requests_to_this_machine_use_no_proxy(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with start_raw(http("200 OK", b'{"message": "pong"}', _JSON)) as server:
        clients(server.url).ping(retry=False)
    assert len(server.requests) == 1


def test_a_102_before_the_answer_is_waited_out(clients: Clients) -> None:
    with start_raw(b"HTTP/1.1 102 Processing\r\n\r\n" + ACCEPTED) as server:
        assert clients(server.url).create_order(an_order(), idempotency_key="key-1", retry=False).id == "O-1"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "422 Unprocessable"])
def test_a_rejection_that_echoes_the_request_shows_no_secret(clients: Clients, status: str) -> None:
    text = f"{API_KEY} {EMAIL} {LINK}"
    finding = {"type": text, "message": text, "location": ["items", text]}
    body = json.dumps({"type": "bad_request", "message": text, "help": text, "details": [finding]}).encode()
    with start_raw(http(status, body, _JSON)) as server, pytest.raises(RunaApiError) as caught:
        clients(server.url).create_order(an_order(), idempotency_key="key-1")
    assert not is_outcome_unknown(caught.value)
    assert_shows_no_secret(caught.value)
    assert not [part for part in PLANTED if part in repr(vars(caught.value))]


@pytest.mark.parametrize("name", ["never answers", "102 with a body, silent", "200 of HTML", "200 of a list", "204"])
def test_an_odd_answer_to_a_read_is_no_answer(clients: Clients, name: str) -> None:
    with start_raw(ODD[name]) as server:
        client = clients(server.url, timeout=0.1)
        with pytest.raises(RunaConnectionError, match="GET /order/O-1: ") as caught:
            client.get_order("O-1")
    assert_shows_no_secret(caught.value)


@pytest.mark.parametrize(
    ("body", "read"),
    [
        (b'{"currency": "USD"}', lambda client: client.get_balance("USD")),
        (b'[{"currency": "USD"}]', lambda client: client.get_balances()),
        (b'{"currency": "USD", "balance": "1.00"}', lambda client: client.get_balances()),
        (json.dumps({"x": LINK, "y": EMAIL}).encode(), lambda client: client.get_balances()),
        (json.dumps({"x": LINK, "y": EMAIL}).encode(), lambda client: client.list_countries()),
        (json.dumps({"x": LINK, "y": EMAIL}).encode(), lambda client: client.get_order("O-1")),
        (b"{}", lambda client: client.list_countries()),
        (b"[]", lambda client: client.list_countries()),
        (b'{"categories": ["fashion"]}', lambda client: client.list_categories()),
        (b'{"code": "A"}', lambda client: client.get_product("A")),
        (b'{"items": [{"id": "O-1"}]}', lambda client: list(client.list_orders())),
        (b'{"catalog": {}}', lambda client: list(client.list_products())),
    ],
)
def test_an_answer_of_another_shape_is_no_answer(clients: Clients, body: bytes, read: Callable[[Any], Any]) -> None:
    answer = http("200 OK", body, _JSON)
    with start_raw(answer) as server, pytest.raises(RunaConnectionError, match="GET /") as caught:
        read(clients(server.url))
    assert_shows_no_secret(caught.value)


def test_money_is_read_without_floats(clients: Clients) -> None:
    body = b'{"currency": "USD", "balance": 12345678901234567.89}'
    with start_raw(http("200 OK", body, _JSON)) as server:
        assert str(clients(server.url).get_balance("USD").balance) == "12345678901234567.89"
