"""The sandbox's behaviour: what Runa answers to a request, given the requests before and the time.

No web framework and no socket in here: ``Engine.handle`` takes a request and returns an answer, so that a model test
can drive it in process with its own clock. State is kept in SQLite, in memory or in a file.
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
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

from airflow_provider_runa.sandbox import DEFAULT_API_KEY, catalogue, lies, rules
from airflow_provider_runa.sandbox.answers import (
    API_VERSION,
    Answer,
    Page,
    Query,
    Refusal,
    iso,
    json_answer,
    pagination,
    parameters,
    rate_exceeded,
    ulid,
)
from airflow_provider_runa.sandbox.faults import FAULT_KINDS, Fault
from airflow_provider_runa.sandbox.lies import LIE_KINDS, Lie

__all__ = [
    "API_VERSION",
    "DEFAULT_API_KEY",
    "FAULT_KINDS",
    "LIE_KINDS",
    "Answer",
    "Engine",
    "Fault",
    "Lie",
    "OrderRow",
    "Payout",
]

KEY_MEMORY = 30 * 24 * 3600.0  # seconds
DEFAULT_BALANCES = {currency: Decimal("1000000.00") for currency in catalogue.RATES}

OrderStatus = Literal["PROCESSING", "COMPLETED", "FAILED"]
PayoutStatus = Literal["ACTIVE", "CLAIMED", "CANCELLED", "EXPIRED"]

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


@dataclass(frozen=True)
class OrderRow:
    """An order as the sandbox knows it, for judges of a test.

    :param id: its id.
    :param status: its status.
    :param idempotency_key: the key it was placed under; empty if the test added it.
    :param body: the body of the request, which holds the recipients.
    :param created: when it was placed, in seconds since the epoch.
    """

    id: str
    status: str
    idempotency_key: str
    body: dict[str, Any]
    created: float


@dataclass(frozen=True)
class Payout:
    """A payout as the sandbox knows it, for judges of a test.

    :param order_id: its order.
    :param item: its index in the order.
    :param order_status: status of the order, never FAILED.
    :param recipient: the e-mail address; ``None`` if the account sends the link itself.
    :param face_value: what the recipient gets.
    :param currency: currency of the face value.
    :param status: status of the payout.
    """

    order_id: str
    item: int
    order_status: str
    recipient: str | None
    face_value: Decimal
    currency: str
    status: str


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
        self.lies: list[Lie] = []
        self.requests: Counter[str] = Counter()
        self.order_posts: Counter[str] = Counter()
        self._recent_posts: deque[float] = deque()
        self._running: dict[str, float] = {}
        self._others: dict[str, Engine] = {}
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
            self.lies.clear()
            self.requests.clear()
            self.order_posts.clear()
            self._recent_posts.clear()
            self._running.clear()
            self._others.clear()

    def set_balance(self, currency: str, balance: Decimal) -> None:
        """Set the balance of a currency."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO balances VALUES (?, ?)", (currency, str(balance)))

    def add_account(self, api_key: str) -> Engine:
        """Open another account of the same environment, in memory, and return it.

        It shares the clock and the settings, and nothing else. A request with its key is answered by it.

        :param api_key: the key of the account.
        """
        if api_key in self._api_keys:
            raise ValueError("this is a key of the first account")
        account = Engine(
            self.now,
            api_keys=(api_key,),
            processing_delay=self.processing_delay,
            balances=self._opening_balances,
            orders_per_minute=self.orders_per_minute,
            latency=self.latency,
            link_base=self._link_base,
            in_progress_status=self._in_progress_status,
        )
        self._others[api_key] = account
        return account

    def account(self, api_key: str) -> Engine:
        """Return the account of a key.

        :param api_key: the key.
        :raises LookupError: if no account has it.
        """
        if api_key in self._api_keys:
            return self
        if api_key not in self._others:
            raise LookupError("no account has this key")
        return self._others[api_key]

    def add_order(self, body: Mapping[str, Any], *, status: OrderStatus = "COMPLETED") -> str:
        """Add an order that somebody else placed on this account, and return its id. It costs nothing.

        :param body: the body of the request, which must be valid.
        :param status: ``COMPLETED``, ``FAILED`` or ``PROCESSING``, which then never ends.
        """
        order = rules.parse({"content-type": "application/json"}, json.dumps(body).encode())
        rules.check_order(order)
        currency = rules.check_products(order["items"])
        now = self.now()
        with self._lock, self._db:
            self._db.execute("BEGIN")
            order_id = self._store(order, currency, [rules.price(item) for item in order["items"]], key="", created=now)
            self._db.execute("UPDATE orders SET refunded = 1 WHERE id = ?", (order_id,))
            self.set_status(order_id, status)
        return order_id

    def set_status(self, order_id: str, status: OrderStatus) -> None:
        """Settle an order now, or never.

        :param order_id: the order.
        :param status: ``COMPLETED``, ``FAILED`` or ``PROCESSING``, which then never ends.
        """
        if status not in get_args(OrderStatus):
            raise ValueError(f"status must be one of {', '.join(get_args(OrderStatus))}, not {status!r}")
        settles = float("inf") if status == "PROCESSING" else self.now()
        statement = "UPDATE orders SET settles = ?, fails = ? WHERE id = ?"
        with self._lock:
            if not self._db.execute(statement, (settles, int(status == "FAILED"), order_id)).rowcount:
                raise LookupError("there is no such order")

    def set_payout(
        self, order_id: str, status: PayoutStatus, *, item: int = 0, expiry_date: datetime | None = None
    ) -> None:
        """Let a payout be claimed, cancelled or expire.

        :param order_id: its order.
        :param status: ``ACTIVE``, ``CLAIMED``, ``CANCELLED`` or ``EXPIRED``.
        :param item: index of its item.
        :param expiry_date: when the link expires. An EXPIRED one that has no date yet expires now.
        """
        if status not in get_args(PayoutStatus):
            raise ValueError(f"status must be one of {', '.join(get_args(PayoutStatus))}, not {status!r}")
        with self._lock:
            row = self._db.execute("SELECT items FROM orders WHERE id = ?", (order_id,)).fetchone()
            items = [] if row is None else json.loads(row[0])
            if not 0 <= item < len(items):
                raise LookupError("there is no such item")
            now = iso(self.now())
            payout = items[item]["payout"] | {"status": status, "status_updated_at": now}
            if expiry_date is not None:
                payout["expiry_date"] = iso(expiry_date.timestamp())
            elif status == "EXPIRED":
                payout.setdefault("expiry_date", now)
            items[item]["payout"] = payout
            self._db.execute("UPDATE orders SET items = ? WHERE id = ?", (json.dumps(items), order_id))

    # -- the truth, for judges ----------------------------------------------------------------------------------------

    def orders(self) -> list[OrderRow]:
        """Return all orders, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, settles, fails, idempotency_key, body, created FROM orders ORDER BY seq"
            ).fetchall()
            return [OrderRow(row[0], self._status(row[1], row[2]), row[3], json.loads(row[4]), row[5]) for row in rows]

    def paying_orders(self, metadata: Mapping[str, str] | None = None) -> list[OrderRow]:
        """Return the orders that requests placed and that are not FAILED, oldest first.

        :param metadata: only those with these pairs.
        """
        return [
            order
            for order in self.orders()
            if order.idempotency_key
            and order.status != "FAILED"
            and (metadata or {}).items() <= (order.body.get("metadata") or {}).items()
        ]

    def payouts(self, recipient: str | None = None, *, metadata: Mapping[str, str] | None = None) -> list[Payout]:
        """Return the payouts of the orders that requests placed and that are not FAILED, oldest first.

        :param recipient: only those for this e-mail address, in any spelling.
        :param metadata: only those of orders with these pairs.
        """
        with self._lock:
            items = dict(self._db.execute("SELECT id, items FROM orders").fetchall())
            orders = self.paying_orders(metadata)
        found = [
            Payout(
                order.id,
                index,
                order.status,
                item["distribution_method"].get("email_address"),
                Decimal(item["face_value"]),
                item["currency"],
                item["payout"]["status"],
            )
            for order in orders
            for index, item in enumerate(json.loads(items[order.id]))
        ]
        if recipient is None:
            return found
        return [one for one in found if one.recipient and _mailbox(one.recipient) == _mailbox(recipient)]

    def payouts_by_recipient(self, *, metadata: Mapping[str, str] | None = None) -> Counter[str]:
        """Return how many payouts each e-mail address has, with addresses in lower case and their domains in ASCII.

        :param metadata: only those of orders with these pairs.
        """
        return Counter(_mailbox(payout.recipient) for payout in self.payouts(metadata=metadata) if payout.recipient)

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
        query: Query = (),
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
        if other := self._others.get(heads.get("x-api-key", "")):
            return other.handle(method, path, query, heads, body)
        # One transaction: a sandbox that is killed remembers an order with its answer and its price, or none of them.
        with self._lock, self._db:
            self._db.execute("BEGIN")
            self.requests[f"{method} {self._route(path)}"] += 1
            hit = [fault for fault in self.faults if fault.hits(method, path)]
            delay = self.latency + sum(fault.seconds for fault in hit if fault.kind == "latency")
            answer = self._answer(method, path, query, heads, body, hit, delay)
            self.faults = [fault for fault in self.faults if not fault.spent]
            self.lies = [lie for lie in self.lies if not lie.spent]
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
        query: Query,
        headers: Mapping[str, str],
        body: bytes,
        hit: Sequence[Fault],
        delay: float,
    ) -> Answer:
        kinds = {fault.kind: fault for fault in hit}
        if fault := kinds.get("drop_before"):
            return Answer(0, b"", drop=fault.drop)
        fault = kinds.get("status")
        try:
            if fault is not None and not (fault.stored and path == "/order"):
                return fault.answer()
            self._admit(headers)
            if (method, path) == ("POST", "/order"):
                parameters(query)
                answer = self._post_order(headers, body, kinds, delay)
            else:
                answer = json_answer(200, self._get(method, path, query, body, headers))
        except Refusal as refusal:
            answer = json_answer(refusal.status, refusal.body)
        if fault := kinds.get("drop_after"):
            answer.drop = fault.drop
        elif "half_answer" in kinds:
            answer.drop = "half"
        return answer

    def _admit(self, headers: Mapping[str, str]) -> None:
        key = headers.get("x-api-key")
        if not key:
            raise Refusal(401, "unauthorized", "An API key is needed.")
        if key not in self._api_keys:
            raise Refusal(401, "invalid_api_key", "The API key is not valid in this environment.")
        version = headers.get("x-api-version", API_VERSION)
        if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", version) or version > API_VERSION:
            raise Refusal(400, "invalid_version", "There is no such API version.")
        if version < API_VERSION:
            raise Refusal(410, "version_removed", "This API version has been removed.")

    # -- orders: placing ----------------------------------------------------------------------------------------------

    def _post_order(self, headers: Mapping[str, str], body: bytes, kinds: Mapping[str, Fault], delay: float) -> Answer:
        now = self.now()
        while self._recent_posts and self._recent_posts[0] <= now - 60:
            self._recent_posts.popleft()
        if len(self._recent_posts) >= self.orders_per_minute:
            return rate_exceeded()
        self._recent_posts.append(now)

        key = headers.get("x-idempotency-key", "")
        if not key.strip():
            raise Refusal(400, "bad_request", "The header X-Idempotency-Key is needed.")
        self.order_posts[key] += 1
        mode = headers.get("x-execution-mode", "async")
        digest = hashlib.sha256(mode.encode() + b"\0" + body).hexdigest()

        self._db.execute("DELETE FROM answers WHERE created <= ?", (now - KEY_MEMORY,))
        known = self._db.execute(
            "SELECT body, status, answer FROM answers WHERE idempotency_key = ?", (key,)
        ).fetchone()
        if known is not None:
            if known[0] != digest:
                raise Refusal(400, "idempotency_validation_error", "The key was used for another request.")
            if self._running.get(key, 0.0) > now:
                return self._in_progress()
            return self._shown(Answer(known[1], known[2].encode()))

        try:
            answer = self._place(headers, key, mode, body, kinds, delay)
        except Refusal as refusal:
            answer = json_answer(refusal.status, refusal.body)
        remembered = answer
        if fault := kinds.get("status_after"):
            answer = fault.answer()
            remembered = answer if fault.typed else remembered  # what a gateway says, Runa does not know
        self._db.execute(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
            (key, digest, remembered.status, remembered.body.decode(), now),
        )
        return self._shown(answer)

    def _shown(self, answer: Answer) -> Answer:
        """Return the answer to an order request with what is lied about the order."""
        if answer.status == 200 and self.lies:
            return json_answer(200, lies.show_order(answer.json(), self.lies))
        return answer

    def _in_progress(self) -> Answer:
        refusal = Refusal(
            self._in_progress_status, "idempotency_in_progress", "A request with this key is still running."
        )
        return json_answer(refusal.status, refusal.body)

    def _place(
        self, headers: Mapping[str, str], key: str, mode: str, body: bytes, kinds: Mapping[str, Fault], delay: float
    ) -> Answer:
        forced = headers.get("x-trigger-error")
        if forced == "internal_server_error":
            raise Refusal(500, forced, "Forced by X-Trigger-Error.")
        if forced == "insufficient_funds":
            raise Refusal(400, forced, "Forced by X-Trigger-Error.")
        if "status" in kinds:
            return kinds["status"].answer()
        if mode not in ("async", "sync"):
            raise Refusal(400, "invalid_execution_mode", "The execution mode is async or sync.")
        order = rules.parse(headers, body)
        rules.check_order(order)
        if mode == "sync" and len(order["items"]) != 1:
            raise Refusal(400, "invalid_execution_mode", "Sync mode takes exactly one item.")
        currency = rules.check_products(order["items"])
        if currency != order["payment_method"]["currency"] and mode != "sync":
            raise Refusal(400, "currency_mismatch", "The payment's currency is not the products'.")
        priced = [rules.price(item) for item in order["items"]]
        self._pay(order, currency, priced)
        # The order is there, and shows in the list, when its answer is due.
        order_id = self._store(order, currency, priced, key=key, created=self.now() + delay)
        if "fail_order" in kinds:
            self._db.execute("UPDATE orders SET fails = 1 WHERE id = ?", (order_id,))
        elif mode == "sync":
            self._db.execute("UPDATE orders SET settles = created WHERE id = ?", (order_id,))
            return json_answer(200, self._details(self._row(order_id), full=True) | {"status": "COMPLETED"})
        return json_answer(202, {"id": order_id, "status": "PROCESSING"})

    def _pay(self, order: Mapping[str, Any], currency: str, priced: Sequence[tuple[Decimal, Decimal]]) -> None:
        """Take an order's price from the balance."""
        payment = order["payment_method"]["currency"]
        self._refund_failed()
        row = self._db.execute("SELECT balance FROM balances WHERE currency = ?", (payment,)).fetchone()
        if row is None or payment not in catalogue.RATES:
            raise Refusal(400, "payment_method_unavailable", "The account has no balance in this currency.")
        left = Decimal(row[0]) - _total(priced, catalogue.rate(currency, payment))
        if left < 0:
            raise Refusal(400, "insufficient_funds", "The balance does not cover the order.")
        self.set_balance(payment, left)

    def _store(
        self,
        order: Mapping[str, Any],
        currency: str,
        priced: Sequence[tuple[Decimal, Decimal]],
        *,
        key: str,
        created: float,
    ) -> str:
        """Store an order and return its id."""
        payment = order["payment_method"]["currency"]
        rate = catalogue.rate(currency, payment)
        value = sum((amount for amount, _ in priced), Decimal(0))
        discount = sum((amount - price for amount, price in priced), Decimal(0))
        detail: dict[str, Any] = {"value": f"{value:.2f}"}
        if currency != payment:
            fee = {"value": "0.00", "currency": payment}
            detail["fx"] = {"rate": f"{rate:.4f}", "rate_symbol": f"{currency}{payment}", "fee": fee}
        order_id = f"O-{ulid(created)}"
        items = [
            self._item(item, currency, amount, price, created)
            for item, (amount, price) in zip(order["items"], priced, strict=True)
        ]
        self._db.execute(
            "INSERT INTO orders (id, idempotency_key, body, items, currency, price, discount, detail, created, "
            "settles, fails) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                order_id,
                key,
                json.dumps(order, default=float),
                json.dumps(items),
                payment,
                f"{_total(priced, rate):.2f}",
                f"{discount:.2f}",
                json.dumps({currency: detail}),
                created,
                created + self.processing_delay,
            ),
        )
        return order_id

    def _item(
        self, item: Mapping[str, Any], currency: str, amount: Decimal, price: Decimal, now: float
    ) -> dict[str, Any]:
        return {
            "id": f"E-{secrets.token_hex(5).upper()}",
            "distribution_method": item["distribution_method"],
            "products": rules.kept(item["products"]),
            "face_value": f"{amount:.2f}",
            "price": f"{price:.2f}",
            "currency": currency,
            "payout": {
                "status": "ACTIVE",
                "status_updated_at": iso(now),
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

    def _row(self, order_id: str) -> Sequence[Any]:
        row: Sequence[Any] | None = self._db.execute(
            f"SELECT {self._COLUMNS} FROM orders WHERE id = ?",  # noqa: S608
            (order_id,),
        ).fetchone()
        if row is None:
            raise Refusal(404, "not_found", "There is no such order.")
        return row

    def _read(self, row: Sequence[Any], *, full: bool) -> dict[str, Any]:
        """Return as much of an order as can be shown."""
        _, order_id, *_, settles, fails = row
        if not self.lies and self._status(settles, fails) == "PROCESSING":
            return {"id": order_id, "status": "PROCESSING"}
        return self._details(row, full=full)

    def _details(self, row: Sequence[Any], *, full: bool) -> dict[str, Any]:
        """Return an order's details, whether it is settled or not."""
        _, order_id, body, items, currency, price, discount, detail, created, settles, fails = row
        order = json.loads(body)
        status = self._status(settles, fails)
        details = {
            "id": order_id,
            "status": status,
            "created_at": iso(created),
            "completed_at": iso(min(settles, max(created, self.now()))),
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
            details |= {
                "items": payouts,
                "transaction_detail": json.loads(detail),
                "metadata": order.get("metadata"),
            }
        return details

    def _list_orders(self, query: Query) -> dict[str, Any]:
        page = Page.of(parameters(query, "limit", "after", "before"), default=100)
        active = lies.about_list(self.lies)
        newest_first = lies.value_of(active, "list_oldest_first") is None
        visible = "created <= ?"
        arguments: list[Any] = [self.now()]
        for lie in active:
            if lie.kind == "row_late":
                visible += " AND NOT (created > ? AND id LIKE ?)"
                arguments += [self.now() - float(lie.value or 0), lie.order_id or "%"]
        falling = newest_first != page.backwards
        beyond = f"seq {'<' if falling else '>'} ?" if page.cursor is not None else "TRUE"
        rows = self._db.execute(
            f"SELECT {self._COLUMNS} FROM orders WHERE {visible} AND {beyond} "  # noqa: S608
            f"ORDER BY seq {'DESC' if falling else 'ASC'} LIMIT ?",
            (
                *arguments,
                *(() if page.cursor is None else (page.cursor,)),
                min(page.limit, int(lies.value_of(active, "list_pages") or page.limit)),
            ),
        ).fetchall()
        if page.backwards:
            rows.reverse()
        before, after = (rows[0][0], rows[-1][0]) if rows else (None, None)
        if rows and lies.value_of(active, "list_circle") is not None:
            statement = f"SELECT MIN(seq), MAX(seq) FROM orders WHERE {visible}"  # noqa: S608
            oldest, newest = self._db.execute(statement, arguments).fetchone()
            if after == (oldest if newest_first else newest):
                after = newest + 1 if newest_first else oldest - 1
        items = [lies.show_row(self._read(row, full=False), active) for row in rows]
        answer = {"items": items, "pagination": pagination(page.limit, before=before, after=after)}
        return lies.show_list(answer, active)

    # -- everything else ----------------------------------------------------------------------------------------------

    def _get(self, method: str, path: str, query: Query, body: bytes, headers: Mapping[str, str]) -> Any:
        self._refund_failed()
        if method == "POST" and path == "/order/estimate":
            parameters(query)
            return _estimate(headers, body)
        if method != "GET":
            raise Refusal(404, "not_found", "There is no such endpoint.")
        kind, _, name = path.removeprefix("/").partition("/")
        if kind == "order" and name:
            parameters(query)
            return lies.show_order(self._read(self._row(unquote(name)), full=True), self.lies)
        if path == "/order":
            return self._list_orders(query)
        if path == "/balance":
            return self._balances(parameters(query, "currency").get("currency"))
        if path == "/ping":
            parameters(query)
            return {"message": "pong"}
        return catalogue.answer(path, query)

    def _balances(self, currency: str | None) -> Any:
        if currency is not None and not re.fullmatch(r"[A-Z]{3}", currency):
            raise Refusal(400, "bad_request", "A currency has three capital letters.")
        rows = dict(self._db.execute("SELECT currency, balance FROM balances ORDER BY currency").fetchall())
        if currency is not None:
            return {"currency": currency, "balance": f"{Decimal(rows.get(currency, '0')):.2f}"}
        return [
            {"currency": name, "balance": f"{Decimal(value):.2f}"} for name, value in rows.items() if Decimal(value)
        ]


def _mailbox(address: str) -> str:
    """Return one spelling of an e-mail address: lower case, the domain in ASCII."""
    return lies.punycode(address.lower())


def _total(priced: Sequence[tuple[Decimal, Decimal]], rate: Decimal) -> Decimal:
    """Return what an order costs in the currency that pays."""
    return (sum((price for _, price in priced), Decimal(0)) * rate).quantize(Decimal("0.01"))


def _estimate(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    request = rules.parse(headers, body)
    rules.check_estimate(request)
    currency = rules.check_products(request["items"])
    payment = request["payment_method"]["currency"]
    if currency != payment:
        raise Refusal(400, "currency_mismatch", "The payment's currency is not the products'.")
    priced = []
    for item in request["items"]:
        amount, price = rules.price(item)
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
        "currency": payment,
        "total_discount": round(sum(item["face_value"] for item in priced) - total, 2),
        "total_price": round(total, 2),
    }
