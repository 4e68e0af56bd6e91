"""The sandbox's behaviour: what Runa answers to a request, given the requests before and the time.

No web framework and no socket in here: ``Engine.handle`` takes a request and returns an answer, so that a model test
can drive it in process with a clock of its own. State is kept in SQLite, in memory or in a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from airflow_provider_runa.sandbox import catalogue

API_VERSION = "2024-02-05"
KEY_MEMORY = 30 * 24 * 3600.0  # seconds
DEFAULT_API_KEY = "XXsandbox.secret"
DEFAULT_BALANCES = {currency: Decimal("1000000.00") for currency in catalogue.RATES}

FAULT_KINDS = ("latency", "status", "drop_before", "drop_after", "half_answer", "status_after", "fail_order")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL, idempotency_key TEXT NOT NULL, body TEXT NOT NULL, items TEXT NOT NULL,
    currency TEXT NOT NULL, price TEXT NOT NULL, discount TEXT NOT NULL, detail TEXT NOT NULL,
    created REAL NOT NULL, settles REAL NOT NULL, fails INTEGER NOT NULL, refunded INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS answers (
    idempotency_key TEXT PRIMARY KEY, body TEXT NOT NULL, status INTEGER NOT NULL, answer TEXT NOT NULL,
    created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS balances (currency TEXT PRIMARY KEY, balance TEXT NOT NULL);
"""


@dataclass
class Fault:
    """Something that goes wrong with requests that match, once or more often.

    :param kind: ``latency`` (wait ``seconds``), ``status`` (answer ``status`` instead), ``drop_before`` (drop the
        connection, nothing is stored), ``drop_after`` (the request is served, its answer dropped),
        ``half_answer`` (half of the answer is sent), ``status_after`` (the order is stored, but ``status`` is
        answered, and replayed unless it is a gateway's), ``fail_order`` (the order is accepted and will end FAILED).
    :param count: how many requests it hits.
    :param skip: how many matching requests it lets pass before.
    :param method: of the requests it hits.
    :param path: of the requests it hits, without ``/v2``; ``*`` at its end matches any rest.
    :param status: HTTP status, 100 to 599, for the kinds that answer one.
    :param typed: whether the body is Runa's (``False``: a gateway's HTML or, of a 4xx, its problem+json).
    :param stored: whether a ``status`` is remembered under the idempotency key.
    :param type: Runa's type of the error, if it is not the usual one of the status.
    :param seconds: for ``latency``.
    """

    kind: str
    count: int = 1
    skip: int = 0
    method: str = "POST"
    path: str = "/order"
    status: int = 500
    typed: bool = True
    stored: bool = False
    type: str | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in FAULT_KINDS:
            raise ValueError(f"kind must be one of {', '.join(FAULT_KINDS)}, not {self.kind!r}")
        if not 100 <= self.status <= 599:
            raise ValueError(f"status must be 100 to 599, not {self.status}")
        if self.seconds < 0:
            raise ValueError(f"seconds must be 0 or more, not {self.seconds}")

    def hits(self, method: str, path: str) -> bool:
        """Whether a request is hit; counts it."""
        matches = path.startswith(self.path[:-1]) if self.path.endswith("*") else path == self.path
        if self.count <= 0 or method != self.method or not matches:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.count -= 1
        return True


@dataclass
class Answer:
    """What is answered.

    :param status: HTTP status.
    :param body: the body.
    :param headers: headers besides the usual.
    :param delay: how many seconds to wait before it is sent.
    :param drop: ``""``, ``"all"`` (the connection is closed without an answer) or ``"half"``.
    """

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: str = ""

    def json(self) -> Any:
        """Return the body, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class OrderRow:
    """An order as the sandbox knows it, for judges of a test. ``body`` holds the recipients."""

    id: str
    status: str
    idempotency_key: str
    body: dict[str, Any]
    created: float


class _Refusal(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, kind: str, message: str, *, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {"type": kind, "message": message, "help": "See the API reference."}
        if details is not None:
            self.body["details"] = details


_STATUS_TYPES = {
    400: "bad_request",
    401: "invalid_api_key",
    403: "forbidden",
    404: "not_found",
    410: "version_removed",
    500: "internal_server_error",
    504: "timeout",
}


class Engine:
    """Runa, for one account.

    :param clock: the time, in seconds since the epoch.
    :param api_keys: keys that are accepted.
    :param processing_delay: seconds an order stays PROCESSING.
    :param balances: currency -> balance at the start.
    :param orders_per_minute: order requests in any 60 seconds, failed ones included; more are answered 429.
    :param database: file to keep the state in; ``None`` keeps it in memory.
    :param latency: seconds every answer takes.
    :param link_base: where payout links seem to lead.
    :param in_progress_status: what a request is answered whose key is in use: 400 or 102.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        api_keys: Sequence[str] = (DEFAULT_API_KEY,),
        processing_delay: float = 1.0,
        balances: Mapping[str, Decimal] | None = None,
        orders_per_minute: int = 300,
        database: Path | None = None,
        latency: float = 0.0,
        link_base: str = "https://payouts.example.com",
        in_progress_status: int = 400,
    ) -> None:
        self._clock = clock
        self._shift = 0.0
        self._api_keys = frozenset(api_keys)
        self.processing_delay = processing_delay
        self._opening_balances = dict(DEFAULT_BALANCES if balances is None else balances)
        self.orders_per_minute = orders_per_minute
        self.latency = latency
        self._link_base = link_base
        self._in_progress_status = in_progress_status
        self._lock = threading.RLock()
        self._db = sqlite3.connect(database or ":memory:", check_same_thread=False, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self.faults: list[Fault] = []
        self.requests: Counter[str] = Counter()
        self.order_posts: Counter[str] = Counter()
        self._recent_posts: deque[float] = deque()
        self._running: dict[str, float] = {}
        for currency, balance in self._opening_balances.items():
            self._db.execute("INSERT OR IGNORE INTO balances VALUES (?, ?)", (currency, str(balance)))

    # -- control ----------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the sandbox's time, in seconds since the epoch."""
        return self._clock() + self._shift

    def advance(self, seconds: float) -> None:
        """Let time pass for the sandbox."""
        self._shift += seconds

    def reset(self) -> None:
        """Forget everything but the settings."""
        with self._lock:
            self._db.executescript("DELETE FROM orders; DELETE FROM answers; DELETE FROM balances;")
            for currency, balance in self._opening_balances.items():
                self.set_balance(currency, balance)
            self.faults.clear()
            self.requests.clear()
            self.order_posts.clear()
            self._recent_posts.clear()
            self._running.clear()

    def set_balance(self, currency: str, balance: Decimal) -> None:
        """Set the balance of a currency."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO balances VALUES (?, ?)", (currency, str(balance)))

    def orders(self) -> list[OrderRow]:
        """Return all orders, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, settles, fails, idempotency_key, body, created FROM orders ORDER BY seq"
            ).fetchall()
            return [OrderRow(row[0], self._status(row[1], row[2]), row[3], json.loads(row[4]), row[5]) for row in rows]

    def stats(self) -> dict[str, Any]:
        """Return counts of orders, payouts and requests, without links or recipients."""
        orders = self.orders()
        alive = [order for order in orders if order.status != "FAILED"]
        recipients = Counter(
            hashlib.sha256(address.encode()).hexdigest()
            for order in alive
            for item in order.body["items"]
            if (address := item["distribution_method"].get("email_address"))
        )
        return {
            "orders": dict(Counter(order.status for order in orders)),
            "payouts": sum(len(order.body["items"]) for order in alive),
            "requests": dict(self.requests),
            "order_posts_by_key": dict(self.order_posts),
            "orders_by_recipient": dict(recipients),
        }

    # -- requests ---------------------------------------------------------------------------------------------------

    def handle(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Answer a request.

        :param method: HTTP method.
        :param path: path below ``/v2``, still quoted.
        :param query: names and values.
        :param headers: headers; names in any case.
        :param body: the body.
        """
        heads = {name.lower(): value for name, value in (headers or {}).items()}
        # One transaction: a sandbox that is killed remembers an order with its answer and its price, or none of them.
        with self._lock, self._db:
            self._db.execute("BEGIN")
            self.requests[f"{method} {self._route(path)}"] += 1
            hit = [fault for fault in self.faults if fault.hits(method, path)]
            self.faults = [fault for fault in self.faults if fault.count > 0]
            delay = self.latency + sum(fault.seconds for fault in hit if fault.kind == "latency")
            answer = self._answer(method, path, query, heads, body, hit, delay)
            answer.delay = delay
            answer.headers["X-Api-Version"] = API_VERSION
            if answer.delay and method == "POST" and path == "/order":
                key = heads.get("x-idempotency-key", "")
                self._running.setdefault(key, self.now() + answer.delay)
            return answer

    @staticmethod
    def _route(path: str) -> str:
        known = {"/order/estimate", "/product/countries", "/product/categories"}
        if path in known:
            return path
        return re.sub(r"^/(order|product)/.+$", r"/\1/{id}", path)

    def _answer(
        self,
        method: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: bytes,
        hit: Sequence[Fault],
        delay: float,
    ) -> Answer:
        kinds = {fault.kind: fault for fault in hit}
        if "drop_before" in kinds:
            return Answer(0, b"", drop="all")
        fault = kinds.get("status")
        try:
            if fault is not None and not (fault.stored and path == "/order"):
                return _fault_answer(fault)
            self._admit(headers)
            if (method, path) == ("POST", "/order"):
                answer = self._post_order(headers, body, kinds, delay)
            else:
                answer = _json(200, self._get(method, path, query, body, headers))
        except _Refusal as refusal:
            answer = _json(refusal.status, refusal.body)
        if "drop_after" in kinds:
            answer.drop = "all"
        elif "half_answer" in kinds:
            answer.drop = "half"
        return answer

    def _admit(self, headers: Mapping[str, str]) -> None:
        key = headers.get("x-api-key")
        if not key:
            raise _Refusal(401, "unauthorized", "An API key is needed.")
        if key not in self._api_keys:
            raise _Refusal(401, "invalid_api_key", "The API key is not valid in this environment.")
        version = headers.get("x-api-version", API_VERSION)
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", version) or version > API_VERSION:
            raise _Refusal(400, "invalid_version", "There is no such API version.")
        if version < API_VERSION:
            raise _Refusal(410, "version_removed", "This API version has been removed.")

    # -- orders: placing ----------------------------------------------------------------------------------------------

    def _post_order(self, headers: Mapping[str, str], body: bytes, kinds: Mapping[str, Fault], delay: float) -> Answer:
        now = self.now()
        while self._recent_posts and self._recent_posts[0] <= now - 60:
            self._recent_posts.popleft()
        if len(self._recent_posts) >= self.orders_per_minute:
            return Answer(429, b'{"error": "rate exceeded"}')
        self._recent_posts.append(now)

        key = headers.get("x-idempotency-key", "")
        if not key.strip():
            raise _Refusal(400, "bad_request", "The header X-Idempotency-Key is needed.")
        self.order_posts[key] += 1
        mode = headers.get("x-execution-mode", "async")
        digest = hashlib.sha256(mode.encode() + b"\0" + body).hexdigest()

        self._db.execute("DELETE FROM answers WHERE created <= ?", (now - KEY_MEMORY,))
        known = self._db.execute(
            "SELECT body, status, answer FROM answers WHERE idempotency_key = ?", (key,)
        ).fetchone()
        if known is not None:
            if known[0] != digest:
                raise _Refusal(400, "idempotency_validation_error", "The key was used for another request.")
            if self._running.get(key, 0.0) > now:
                return self._in_progress()
            return Answer(known[1], known[2].encode())

        try:
            answer = self._place(headers, key, mode, body, kinds, delay)
        except _Refusal as refusal:
            answer = _json(refusal.status, refusal.body)
        remembered = answer
        if fault := kinds.get("status_after"):
            answer = _fault_answer(fault)
            remembered = answer if fault.typed else remembered  # what a gateway says, Runa does not know
        self._db.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
            (key, digest, remembered.status, remembered.body.decode(), now),
        )
        return answer

    def _in_progress(self) -> Answer:
        refusal = _Refusal(
            self._in_progress_status, "idempotency_in_progress", "A request with this key is still running."
        )
        return _json(refusal.status, refusal.body)

    def _place(
        self, headers: Mapping[str, str], key: str, mode: str, body: bytes, kinds: Mapping[str, Fault], delay: float
    ) -> Answer:
        forced = headers.get("x-trigger-error")
        if forced == "internal_server_error":
            raise _Refusal(500, forced, "Forced by X-Trigger-Error.")
        if forced == "insufficient_funds":
            raise _Refusal(400, forced, "Forced by X-Trigger-Error.")
        if "status" in kinds:
            return _fault_answer(kinds["status"])
        if mode not in ("async", "sync"):
            raise _Refusal(400, "invalid_execution_mode", "The execution mode is async or sync.")
        order = _parse(body)
        _check_shape(order, most=200)
        if mode == "sync" and len(order["items"]) != 1:
            raise _Refusal(400, "invalid_execution_mode", "Sync mode takes exactly one item.")

        payment = order["payment_method"]["currency"]
        currencies = [self._check_products(item) for item in order["items"]]
        if len(set(currencies)) > 1:
            raise _Refusal(400, "product_validation_error", "All products of an order have one country and currency.")
        currency = currencies[0]
        if currency != payment and mode != "sync":
            raise _Refusal(400, "currency_mismatch", "The payment's currency is not the products'.")
        self._refund_failed()
        row = self._db.execute("SELECT balance FROM balances WHERE currency = ?", (payment,)).fetchone()
        if row is None:
            raise _Refusal(400, "payment_method_unavailable", "The account has no balance in this currency.")

        priced = [self._price(item) for item in order["items"]]
        value = sum((amount for amount, _ in priced), Decimal(0))
        discount = sum((amount - price for amount, price in priced), Decimal(0))
        rate = catalogue.RATES[payment] / catalogue.RATES[currency]
        total = ((value - discount) * rate).quantize(Decimal("0.01"))
        if Decimal(row[0]) < total:
            raise _Refusal(400, "insufficient_funds", "The balance does not cover the order.")
        self.set_balance(payment, Decimal(row[0]) - total)

        fx = None
        if currency != payment:
            symbol = f"{currency}{payment}"
            fx = {"rate": f"{rate:.4f}", "rate_symbol": symbol, "fee": {"value": "0.00", "currency": payment}}
        now = self.now() + delay  # the order is there, and shows in the list, when its answer is due
        order_id = f"O-{_ulid(now)}"
        items = [
            self._item(item, currency, amount, price, now)
            for item, (amount, price) in zip(order["items"], priced, strict=True)
        ]
        self._db.execute(
            "INSERT INTO orders (id, idempotency_key, body, items, currency, price, discount, detail, created, "
            "settles, fails) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                order_id,
                key,
                json.dumps(order, default=float),
                json.dumps(items),
                payment,
                f"{total:.2f}",
                f"{discount:.2f}",
                json.dumps({currency: {"value": f"{value:.2f}"} | ({"fx": fx} if fx else {})}),
                now,
                now if mode == "sync" and "fail_order" not in kinds else now + self.processing_delay,
                int("fail_order" in kinds),
            ),
        )
        if mode == "sync" and "fail_order" not in kinds:
            return _json(200, self._order(order_id))
        return _json(202, {"id": order_id, "status": "PROCESSING"})

    @staticmethod
    def _check_products(item: Mapping[str, Any]) -> str:
        """Check that an item can be ordered and return its currency."""
        products, amount = item["products"], Decimal(str(item["face_value"]))
        if products["type"] == "TEMPLATE":
            currency = catalogue.TEMPLATES.get(products["template_id"])
            if currency is None:
                raise _Refusal(400, "product_validation_error", "There is no such payout selection template.")
            return currency
        codes = [products["value"]] if products["type"] == "SINGLE" else products["values"]
        found = [catalogue.find(code) for code in codes]
        if not all(product and product["is_orderable"] for product in found):
            raise _Refusal(400, "product_validation_error", "A product does not exist or cannot be ordered.")
        chosen = [product for product in found if product is not None]
        for product in chosen:
            limits = product.get("gift_card", product.get("payment", {})).get("denominations", {})
            if limits and not Decimal(limits["minimum_value"]) <= amount <= Decimal(limits["maximum_value"]):
                raise _Refusal(400, "product_validation_error", "The face value is outside of the product's limits.")
            fixed = limits.get("available_list")
            if fixed and amount not in {Decimal(value) for value in fixed}:
                raise _Refusal(400, "product_validation_error", "The product does not have this face value.")
        currencies = {product["currency"] for product in chosen}
        if len(currencies) > 1:
            raise _Refusal(400, "product_validation_error", "All products of an item have one currency.")
        return str(currencies.pop())

    @staticmethod
    def _price(item: Mapping[str, Any]) -> tuple[Decimal, Decimal]:
        """Return an item's face value and what it costs."""
        amount = Decimal(str(item["face_value"]))
        product = catalogue.find(item["products"].get("value", ""))
        discount = Decimal(product["discount_multiplier"]) if product else Decimal(0)
        return amount, (amount * (1 - discount)).quantize(Decimal("0.01"))

    def _item(
        self, item: Mapping[str, Any], currency: str, amount: Decimal, price: Decimal, now: float
    ) -> dict[str, Any]:
        return {
            "id": f"E-{secrets.token_hex(5).upper()}",
            "distribution_method": item["distribution_method"],
            "products": item["products"],
            "face_value": f"{amount:.2f}",
            "price": f"{price:.2f}",
            "currency": currency,
            "payout": {
                "status": "ACTIVE",
                "status_updated_at": _iso(now),
                "url": f"{self._link_base}/{secrets.token_urlsafe(16)}",
            },
        }

    # -- orders: reading ----------------------------------------------------------------------------------------------

    def _status(self, settles: float, fails: int) -> str:
        if settles > self.now():
            return "PROCESSING"
        return "FAILED" if fails else "COMPLETED"

    def _refund_failed(self) -> None:
        """Give back what was taken for orders that have FAILED since the last look."""
        rows = self._db.execute(
            "SELECT id, currency, price FROM orders WHERE fails = 1 AND refunded = 0 AND settles <= ?", (self.now(),)
        ).fetchall()
        for order_id, currency, price in rows:
            balance = self._db.execute("SELECT balance FROM balances WHERE currency = ?", (currency,)).fetchone()
            self.set_balance(currency, Decimal(balance[0]) + Decimal(price))
            self._db.execute("UPDATE orders SET refunded = 1 WHERE id = ?", (order_id,))

    _COLUMNS = "seq, id, body, items, currency, price, discount, detail, created, settles, fails"

    def _order(self, order_id: str) -> dict[str, Any]:
        row = self._db.execute(f"SELECT {self._COLUMNS} FROM orders WHERE id = ?", (order_id,)).fetchone()  # noqa: S608
        if row is None:
            raise _Refusal(404, "not_found", "There is no such order.")
        return self._show(row, full=True)

    def _show(self, row: Sequence[Any], *, full: bool) -> dict[str, Any]:
        _, order_id, body, items, currency, price, discount, detail, created, settles, fails = row
        status = self._status(settles, fails)
        if status == "PROCESSING":
            return {"id": order_id, "status": status, "message": "The order is being processed."}
        order = json.loads(body)
        shown = {
            "id": order_id,
            "status": status,
            "created_at": _iso(created),
            "completed_at": _iso(settles),
            "description": order.get("description"),
            "payment_method": order["payment_method"],
            "currency": currency,
            "total_price": price,
            "total_discount": discount,
        }
        if full:
            payouts = json.loads(items)
            if status == "FAILED":
                for item in payouts:
                    item["payout"] |= {"status": "CANCELLED", "url": ""}
            shown |= {
                "items": payouts,
                "transaction_detail": json.loads(detail),
                "metadata": order.get("metadata"),
            }
        return shown

    def _list_orders(self, query: Sequence[tuple[str, str]]) -> dict[str, Any]:
        limit, where, arguments, backwards = _page(query, default=100)
        rows = self._db.execute(
            f"SELECT {self._COLUMNS} FROM orders WHERE created <= ? AND {where} "  # noqa: S608
            f"ORDER BY seq {'ASC' if backwards else 'DESC'} LIMIT ?",
            (self.now(), *arguments, limit),
        ).fetchall()
        if backwards:
            rows.reverse()
        items = [self._show(row, full=False) for row in rows]
        cursors = {"after": f"A-{rows[-1][0]}", "before": f"A-{rows[0][0]}"} if rows else {}
        return {"items": items, "pagination": {"cursors": cursors, "page": {"limit": limit}}}

    # -- everything else ----------------------------------------------------------------------------------------------

    def _get(
        self, method: str, path: str, query: Sequence[tuple[str, str]], body: bytes, headers: Mapping[str, str]
    ) -> Any:
        self._refund_failed()
        values = dict(query)
        if method == "POST" and path == "/order/estimate":
            return self._estimate(body)
        if method != "GET":
            raise _Refusal(404, "not_found", "There is no such endpoint.")
        if path == "/ping":
            return {"message": "pong"}
        if path == "/order":
            return self._list_orders(query)
        if path.startswith("/order/"):
            return self._order(unquote(path.removeprefix("/order/")))
        if path == "/balance":
            return self._balances(values.get("currency"))
        if path == "/product":
            return _list_products(query)
        if path == "/product/countries":
            countries = {country for p in catalogue.PRODUCTS.values() for country in p["countries_redeemable_in"]}
            return {"countries": sorted(countries)}
        if path == "/product/categories":
            return {"categories": [{"code": code} for code in catalogue.CATEGORIES]}
        if path.startswith("/product/"):
            product = catalogue.PRODUCTS.get(unquote(path.removeprefix("/product/")))
            if product is not None:
                return product
        raise _Refusal(404, "not_found", "There is no such thing.")

    def _balances(self, currency: str | None) -> Any:
        if currency is not None and not re.fullmatch(r"[A-Z]{3}", currency):
            raise _Refusal(400, "bad_request", "A currency has three capital letters.")
        rows = dict(self._db.execute("SELECT currency, balance FROM balances ORDER BY currency").fetchall())
        if currency is not None:
            return {"currency": currency, "balance": f"{Decimal(rows.get(currency, '0')):.2f}"}
        return [
            {"currency": name, "balance": f"{Decimal(value):.2f}"} for name, value in rows.items() if Decimal(value)
        ]

    def _estimate(self, body: bytes) -> dict[str, Any]:
        request = _parse(body)
        _check_shape(request, most=500, distribution=False)
        priced = []
        for item in request["items"]:
            if item["products"]["type"] == "TEMPLATE":
                raise _Refusal(422, "validation_error", "A template cannot be estimated.", details=[])
            currency = self._check_products(item)
            amount, price = self._price(item)
            product = catalogue.find(item["products"].get("value", ""))
            priced.append(
                {
                    "products": item["products"],
                    "face_value": float(amount),
                    "price": float(price),
                    "discount_multiplier": product["discount_multiplier"] if product else "0.00",
                    "currency": currency,
                }
            )
        total = sum(item["price"] for item in priced)
        return {
            "payment_method": request["payment_method"],
            "items": priced,
            "currency": request["payment_method"]["currency"],
            "total_discount": round(sum(item["face_value"] for item in priced) - total, 2),
            "total_price": round(total, 2),
        }


# -- bodies ------------------------------------------------------------------------------------------------------------


def _json(status: int, body: Any) -> Answer:
    return Answer(status, json.dumps(body).encode())


def _fault_answer(fault: Fault) -> Answer:
    if fault.status == 429:
        return Answer(429, b'{"error": "rate exceeded"}')
    if not fault.typed and 400 <= fault.status < 500:
        problem = {"type": "about:blank", "title": "Blocked", "status": fault.status}
        return Answer(fault.status, json.dumps(problem).encode(), {"Content-Type": "application/problem+json"})
    if not fault.typed:
        return Answer(fault.status, b"<html><body>upstream error</body></html>", {"Content-Type": "text/html"})
    kind = fault.type or _STATUS_TYPES.get(fault.status, "internal_server_error")
    return _json(fault.status, _Refusal(fault.status, kind, "The sandbox was told to answer this.").body)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_float=Decimal)
    except ValueError:
        raise _Refusal(400, "bad_request", "The body is not JSON.") from None


def _check_shape(order: Any, *, most: int, distribution: bool = True) -> None:
    """Check a body's fields as Runa's validation does; 422 with all findings."""
    findings: list[dict[str, Any]] = []

    def wrong(message: str, *location: object, kind: str = "value_error") -> None:
        findings.append({"type": kind, "message": message, "location": [str(step) for step in location]})

    def mapping(value: Any, *location: object) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        wrong("must be an object", *location, kind="type_error")
        return {}

    def text(value: Any, *location: object, pattern: str = r".+", longest: int = 1000) -> None:
        if not isinstance(value, str) or len(value) > longest or not re.fullmatch(pattern, value, re.DOTALL):
            wrong("must be text of the right form", *location)

    order = mapping(order)
    payment = mapping(order.get("payment_method"), "payment_method")
    if payment.get("type") != "ACCOUNT_BALANCE":
        wrong("must be ACCOUNT_BALANCE", "payment_method", "type")
    text(payment.get("currency"), "payment_method", "currency", pattern=r"[A-Z]{3}")
    if order.get("description") is not None:
        text(order["description"], "description", pattern=r".*", longest=128)
    metadata = mapping(order.get("metadata") or {}, "metadata")
    if len(metadata) > 20:
        wrong("must have at most 20 pairs", "metadata")
    for key, value in metadata.items():
        text(key, "metadata", key, longest=40)
        text(value, "metadata", key, pattern=r".*", longest=200)
    items = order.get("items")
    if not isinstance(items, list) or not 1 <= len(items) <= most:
        wrong(f"must be a list of 1 to {most}", "items")
        items = []
    for index, item in enumerate(items):
        here = ("items", index)
        item = mapping(item, *here)
        products = mapping(item.get("products"), *here, "products")
        kind = products.get("type")
        if kind == "SINGLE":
            text(products.get("value"), *here, "products", "value")
            usage = mapping(products.get("usage_config") or {}, *here, "products", "usage_config")
            if rules := usage.get("spend_rules_template_id"):
                text(rules, *here, "products", "usage_config", pattern=r"PSR-[0-9A-HJKMNP-TV-Z]{26}")
        elif kind == "MULTIPLE":
            values = products.get("values")
            codes = values if isinstance(values, list) and all(isinstance(value, str) for value in values) else []
            if len(codes) < 2 or len(set(codes)) < len(codes):
                wrong("must be two or more codes, each once", *here, "products", "values")
        elif kind == "TEMPLATE":
            text(products.get("template_id"), *here, "products", "template_id")
        else:
            wrong("must be SINGLE, MULTIPLE or TEMPLATE", *here, "products", "type")
        amount = item.get("face_value")
        if isinstance(amount, bool) or not isinstance(amount, int | Decimal) or not Decimal("0.01") <= amount < 10**12:
            wrong("must be a number of 0.01 or more, and of 12 digits at most", *here, "face_value")
        elif kind != "SINGLE" and amount != int(amount):
            wrong("must be a whole number", *here, "face_value")
        if not distribution:
            continue
        method = mapping(item.get("distribution_method"), *here, "distribution_method")
        if method.get("type") in ("EMAIL", "RECIPIENT"):
            text(method.get("email_address"), *here, "distribution_method", "email_address", pattern=r"[^@\s]+@[^@\s]+")
        if method.get("type") == "RECIPIENT":
            reference = method.get("recipient_reference")
            pattern = r"[A-Za-z0-9\-_@.]{1,255}"
            text(reference, *here, "distribution_method", "recipient_reference", pattern=pattern)
        if method.get("type") not in ("EMAIL", "PAYOUT_LINK", "RECIPIENT"):
            wrong("must be EMAIL, PAYOUT_LINK or RECIPIENT", *here, "distribution_method", "type")
    templates = {str(item["products"].get("template_id")) for item in items if _is_template(item)}
    if len(templates) > 10:
        wrong("must have at most 10 selection templates", "items")
    if findings:
        raise _Refusal(422, "validation_error", "The request is not valid, see details.", details=findings)


def _is_template(item: Any) -> bool:
    products = item.get("products") if isinstance(item, dict) else None
    return isinstance(products, dict) and products.get("type") == "TEMPLATE"


def _page(query: Sequence[tuple[str, str]], *, default: int) -> tuple[int, str, tuple[int, ...], bool]:
    """Read limit and cursors; return the limit, an SQL condition with its arguments, and whether it goes backwards."""
    values = dict(query)
    try:
        limit = int(values.get("limit", default))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 500:
        raise _Refusal(400, "pagination_error", "The limit is 1 to 500.")
    if "after" in values and "before" in values:
        raise _Refusal(400, "pagination_error", "Only one cursor at a time.")
    for name, operator in (("after", "<"), ("before", ">")):
        if name in values:
            found = re.fullmatch(r"A-(\d{1,18})", values[name])
            if not found:
                raise _Refusal(400, "pagination_error", "The cursor is not one of Runa's.")
            return limit, f"seq {operator} ?", (int(found.group(1)),), name == "before"
    return limit, "TRUE", (), False


def _list_products(query: Sequence[tuple[str, str]]) -> dict[str, Any]:
    values = dict(query)
    countries = {value for name, value in query if name == "countries_redeemable_in"}
    categories = {value for name, value in query if name == "categories"}
    chosen = [
        product
        for product in catalogue.PRODUCTS.values()
        if (values.get("is_orderable") != "true" or product["is_orderable"])
        and (not countries or countries & set(product["countries_redeemable_in"]))
        and (not categories or categories & set(product["categories"]))
    ]
    limit, _, arguments, backwards = _page(query, default=500)
    begin = arguments[0] if arguments and not backwards else 0
    if backwards:
        begin = max(0, arguments[0] - limit)
    rows = chosen[begin : begin + limit]
    cursors = {"after": f"A-{begin + len(rows)}", "before": f"A-{begin}"} if rows else {}
    return {"catalog": rows, "pagination": {"cursors": cursors, "page": {"limit": limit}}}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def _ulid(moment: float) -> str:
    """Return an id of 26 letters and digits that sorts by time."""
    number = (int(moment * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))
