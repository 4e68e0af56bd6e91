"""What the sandbox says although it is not so, or not as the contract has it: orders, rows and lists that lie.

A lie changes answers, never the orders. The judges of a test (``Engine.orders``, ``Engine.payouts``) see the truth.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_runa.sandbox import catalogue, rules
from airflow_provider_runa.sandbox.faults import Countdown

_CODE = r"[A-Z]{3}"
_STATUS = r"[A-Z_]+"
_NAME = r"[a-z_]+"
_AMOUNT = r"[0-9]+\.[0-9]{2}"

#: Kinds that change the items of an order that is shown in full -> form of their value.
_ITEM_KINDS = {
    "item_missing": None,
    "item_extra": None,
    "item_face_value": _AMOUNT,
    "item_currency": _CODE,
    "item_payout": _STATUS,
    "item_recipient": r"masked|lower|punycode",
    "item_unknown": None,
    "item_template": None,
    "item_without": _NAME,
}
#: Kinds that change the rest of it.
_ORDER_KINDS = {
    "order_reversed": None,
    "order_currency": _CODE,
    "order_status": _STATUS,
    "order_bare": None,
    "order_without": _NAME,
}
#: Kinds that change rows of the order list.
_ROW_KINDS = {"row_late": r"[0-9]+", "row_status": _STATUS, "row_bare": None, "row_without": _NAME}
#: Kinds that change the list itself.
_LIST_KINDS = {
    "list_without": r"items|pagination|cursors",
    "list_pages": r"[1-9][0-9]?",
    "list_circle": None,
    "list_oldest_first": None,
}
_KINDS = _ITEM_KINDS | _ORDER_KINDS | _ROW_KINDS | _LIST_KINDS

#: Kinds that hide what the others change.
_LAST = {"item_without": 1, "order_bare": 2}

LIE_KINDS = tuple(_KINDS)


@dataclass
class Lie(Countdown):
    """Something false in the answers that show orders. Lies add up; those about missing fields come last.

    Kinds for an order that is shown in full, that is by ``GET /order/{id}`` and by the answer of sync mode:

    - ``item_missing``: the item is not shown. ``item_extra``: it is shown twice, with another id and link.
    - ``item_face_value``, ``item_currency``, ``item_payout``: another face value, currency or status of the payout.
    - ``item_recipient``: the address is spelled otherwise: ``masked``, ``lower`` or ``punycode``.
    - ``item_unknown``: the products are UNKNOWN. ``item_template``: a template shows its products.
    - ``item_without``: the field is missing.
    - ``order_reversed``: the items are in another order.
    - ``order_currency``, ``order_status``: another currency or status.
    - ``order_bare``: only ``id``, ``status`` and ``message``. ``order_without``: the field is missing.

    Kinds for rows of ``GET /order``:

    - ``row_late``: the row is not shown before the order is so many seconds old.
    - ``row_status``: another status. ``row_bare`` and ``row_without``: as for an order.

    Kinds for ``GET /order`` as a whole:

    - ``list_without``: without ``items``, ``pagination`` or ``cursors``.
    - ``list_pages``: at most so many rows in a page, whatever the limit.
    - ``list_circle``: the cursor after the last page leads to the first.
    - ``list_oldest_first``: sorted the wrong way.

    An order whose status is PROCESSING is always bare.

    :param kind: one of the kinds.
    :param value: what is said, for the kinds that need it.
    :param order_id: the order that is lied about; ``None``: every order.
    :param item: index of the item that is lied about, for the kinds that begin with ``item_``; ``None``: every item.
    :param count: how many answers it changes; ``None``: all, until it is cleared.
    :param skip: how many answers it leaves true before.
    """

    kind: str
    value: str | None = None
    order_id: str | None = None
    item: int | None = None
    count: int | None = None
    skip: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(LIE_KINDS)}, not {self.kind!r}")
        form = _KINDS[self.kind]
        if form is None and self.value is not None:
            raise ValueError(f"value must be left out for {self.kind}")
        if form is not None and not re.fullmatch(form, self.value or ""):
            raise ValueError(f"value must match {form} for {self.kind}, not {self.value!r}")
        if self.order_id is not None and self.kind in _LIST_KINDS:
            raise ValueError(f"order_id must be left out for {self.kind}")
        if self.item is not None and self.kind not in _ITEM_KINDS:
            raise ValueError(f"item must be left out for {self.kind}")

    def about(self, order_id: str) -> bool:
        """Return whether an order is lied about."""
        return self.order_id in (None, order_id)


def about_list(lies: Sequence[Lie]) -> list[Lie]:
    """Return the lies that change a page of the order list, and count them."""
    return [lie for lie in lies if lie.kind in _ROW_KINDS | _LIST_KINDS and lie.counts()]


# -- an order ----------------------------------------------------------------------------------------------------------


def bare(order: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of an order that is not settled."""
    return {"id": order["id"], "status": order["status"], "message": "The order is being processed."}


def show_order(order: dict[str, Any], lies: Sequence[Lie]) -> dict[str, Any]:
    """Return an order as it is shown, and count the lies about it.

    :param order: all of the order, as it is.
    :param lies: all lies.
    """
    about = [lie for lie in lies if lie.kind in _ITEM_KINDS | _ORDER_KINDS and lie.about(order["id"])]
    for lie in sorted(about, key=lambda lie: _LAST.get(lie.kind, 0)):
        # Of an order that is PROCESSING nothing is shown that could be false, but its status.
        settled = order["status"] != "PROCESSING"
        if lie.kind != "order_without" and (settled or lie.kind == "order_status") and lie.counts():
            order = _change(order, lie)
    if order["status"] == "PROCESSING":
        order = bare(order)
    for lie in about:
        if lie.kind == "order_without" and lie.counts():
            order = _without(order, lie.value)
    return order


def show_row(order: dict[str, Any], lies: Sequence[Lie]) -> dict[str, Any]:
    """Return an order as a row of the list shows it.

    :param order: the order's basic details, as they are.
    :param lies: lies about the list.
    """
    about = [lie for lie in lies if lie.about(order["id"])]
    for lie in about:
        if lie.kind in ("row_status", "row_bare"):
            order = _change(order, lie)
    if order["status"] == "PROCESSING":
        order = bare(order)
    for lie in about:
        if lie.kind == "row_without":
            order = _without(order, lie.value)
    return order


def _without(shown: dict[str, Any], name: str | None) -> dict[str, Any]:
    return {field: value for field, value in shown.items() if field != name}


def _change(order: dict[str, Any], lie: Lie) -> dict[str, Any]:
    """Return an order with what a lie changes in it."""
    if lie.kind in _ITEM_KINDS:
        return order | {"items": _items(order.get("items", ()), lie)}
    if lie.kind == "order_reversed":
        return order | {"items": order.get("items", [])[::-1]}
    if lie.kind == "order_currency":
        return order | {"currency": lie.value}
    if lie.kind in ("order_status", "row_status"):
        return order | {"status": lie.value}
    return bare(order)


def _items(items: Sequence[dict[str, Any]], lie: Lie) -> list[dict[str, Any]]:
    """Return the items of an order as they are shown."""
    return [
        shown
        for index, item in enumerate(items)
        for shown in (_instead(item, lie) if lie.item in (None, index) else [item])
    ]


def _instead(item: dict[str, Any], lie: Lie) -> list[dict[str, Any]]:
    """Return what is shown instead of an item."""
    if lie.kind == "item_missing":
        return []
    if lie.kind == "item_extra":
        return [item, _another(item)]
    if lie.kind == "item_without":
        return [_without(item, lie.value)]
    return [item | _CHANGES[lie.kind](item, lie.value or "")]


def _another(item: dict[str, Any]) -> dict[str, Any]:
    token = secrets.token_hex(5).upper()
    return item | {"id": f"E-{token}", "payout": item["payout"] | {"url": f"{item['payout']['url']}-{token}"}}


def _recipient(item: dict[str, Any], spelling: str) -> dict[str, Any]:
    method = item["distribution_method"]
    if "email_address" not in method:
        return {}
    return {"distribution_method": method | {"email_address": _SPELLINGS[spelling](method["email_address"])}}


def _masked(address: str) -> str:
    local, _, domain = address.rpartition("@")
    return f"{local[0]}***@{domain}"


def punycode(address: str) -> str:
    """Return an address with the ASCII form of its domain."""
    local, _, domain = address.rpartition("@")
    return f"{local}@{rules.ascii_domain(address) or domain}"


def _template(item: dict[str, Any], _: str) -> dict[str, Any]:
    products = item["products"]
    if products["type"] != "TEMPLATE":
        return {}
    return {"products": products | {"values": list(catalogue.TEMPLATES[products["template_id"]])}}


_SPELLINGS: dict[str, Callable[[str], str]] = {"masked": _masked, "lower": str.lower, "punycode": punycode}

_CHANGES: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "item_face_value": lambda _, value: {"face_value": value},
    "item_currency": lambda _, value: {"currency": value},
    "item_payout": lambda item, value: {"payout": item["payout"] | {"status": value}},
    "item_recipient": _recipient,
    "item_unknown": lambda *_: {"products": {"type": "UNKNOWN"}},
    "item_template": _template,
}


# -- the list ----------------------------------------------------------------------------------------------------------


def value_of(lies: Sequence[Lie], kind: str) -> str | None:
    """Return the value of the last lie of a kind; ``""`` if the kind has none, ``None`` if there is no such lie."""
    found = [lie.value or "" for lie in lies if lie.kind == kind]
    return found[-1] if found else None


def show_list(answer: dict[str, Any], lies: Sequence[Lie]) -> dict[str, Any]:
    """Return a page of the list as it is shown.

    :param answer: ``items`` and ``pagination``.
    :param lies: lies about the list.
    """
    for lie in lies:
        if lie.kind == "list_without" and lie.value == "cursors":
            answer["pagination"].pop("cursors", None)
        elif lie.kind == "list_without":
            answer = _without(answer, lie.value)
    return answer
