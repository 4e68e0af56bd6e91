"""A caller of the sandbox's engine, in process and with its own clock."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from airflow_provider_runa.sandbox.engine import DEFAULT_API_KEY, Answer, Engine

ADDRESS = "ada.lovelace-7311@example.com"
BY_MAIL = {"type": "EMAIL", "email_address": ADDRESS}
LINK = {"type": "PAYOUT_LINK"}
BOOKS = {"type": "SINGLE", "value": "AMZ-US"}
TEMPLATE = {"type": "TEMPLATE", "template_id": "PT-01HQ12PV4B8XMBRTK281JM54KK"}
DAY = 86_400.0


def item(products: Any = BOOKS, face_value: Any = 10, method: Any = LINK) -> dict[str, Any]:
    """Return an item of an order."""
    return {"face_value": face_value, "distribution_method": method, "products": products}


def single(code: str, face_value: Any = 10, method: Any = LINK) -> dict[str, Any]:
    """Return an item of one product."""
    return item({"type": "SINGLE", "value": code}, face_value, method)


def order(*items: Any, currency: str = "USD", **fields: Any) -> dict[str, Any]:
    """Return the body of an order, of one item unless others are given."""
    return {
        "payment_method": {"type": "ACCOUNT_BALANCE", "currency": currency},
        "items": list(items) or [item()],
        **fields,
    }


def kind(answer: Answer) -> tuple[int, str]:
    """Return status and type of an error."""
    return answer.status, answer.json()["type"]


class Account:
    """One account at an engine.

    :param options: of the engine.
    """

    def __init__(self, **options: Any) -> None:
        self.time = 1_800_000_000.0
        self.engine = Engine(lambda: self.time, **options)
        self._keys = count()

    def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """Send a request; ``target`` is a path with its query, headers are written with underscores."""
        path, _, query = target.partition("?")
        sent = {"X-Api-Key": DEFAULT_API_KEY, "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        pairs = [tuple(pair.split("=")) for pair in query.split("&") if pair]
        return self.engine.handle(method, path, pairs, sent, raw)

    def get(self, target: str) -> Any:
        """Get what must be there."""
        answer = self.ask("GET", target)
        assert answer.status == 200, answer
        return answer.json()

    def post(self, body: Any = None, *, key: str | None = None, mode: str = "async", **headers: str) -> Answer:
        """Send an order, under a new key unless one is given."""
        key = f"key-{next(self._keys)}" if key is None else key
        chosen = order() if body is None else body
        return self.ask("POST", "/order", chosen, X_Idempotency_Key=key, X_Execution_Mode=mode, **headers)

    def place(self, body: Any = None, **options: Any) -> str:
        """Place an order that is accepted, and return its id."""
        answer = self.post(body, **options)
        assert answer.status in (200, 202), answer
        return str(answer.json()["id"])

    def balance(self, currency: str = "USD") -> str:
        """Return the balance of a currency."""
        return str(self.get(f"/balance?currency={currency}")["balance"])

    @property
    def count(self) -> int:
        """How many orders there are."""
        return len(self.engine.orders())
