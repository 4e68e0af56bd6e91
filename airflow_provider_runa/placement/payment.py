"""What moves money in an order, and how two payments are compared.

A payment is the environment, the currency and the items (face value, recipient, distribution, products) in any order.
A description that contains the time changes an order's body but not its payment. So do rows that a query returns in
another order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import unicodedata
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from airflow_provider_runa.api.models import NewOrder, NewOrderItem, Order, OrderItem


@dataclass(frozen=True)
class _Item:
    """What moves money in one item, in the same form for a request and an answer.

    ``None`` in an answer means "not shown": an answer may leave out templates and name its products UNKNOWN.
    """

    face_value: str
    distribution: str
    recipient: str | None
    reference: str | None
    redemption_template: str | None
    products: tuple[str, ...] | None
    spend_rules: str | None

    @classmethod
    def of(cls, item: Any) -> _Item:
        """Build it from an item of a request or an answer."""
        distribution, products = item.distribution_method, item.products
        kind = str(products.type)
        codes: tuple[str | None, ...] = ()
        if kind == "SINGLE":
            codes = (products.value,)
        elif kind == "MULTIPLE":
            codes = tuple(sorted(products.values or ()))
        elif kind == "TEMPLATE":
            codes = (products.template_id,)
        address = getattr(distribution, "email_address", None)
        usage = getattr(products, "usage_config", None)
        return cls(
            face_value=_plain(item.face_value),
            distribution=str(distribution.type),
            recipient=_one_spelling(address) if address else None,
            reference=getattr(distribution, "recipient_reference", None) or None,
            redemption_template=getattr(distribution, "template_id", None) or None,
            products=(kind, *map(str, codes)) if codes and all(codes) else None,
            spend_rules=(usage.spend_rules_template_id or None) if usage else None,
        )

    def differences(self, placed: _Item) -> list[str]:
        """Return the names of the fields in which a placed item differs. A field that is not shown does not differ."""
        fields = []
        if self.face_value != placed.face_value:
            fields.append("face_value")
        if self.distribution != placed.distribution:
            fields.append("distribution_method.type")
        if placed.recipient is not None and not _is_echo_of(self.recipient, placed.recipient):
            fields.append("distribution_method.email_address")
        if placed.reference is not None and not _is_echo_of(self.reference, placed.reference):
            fields.append("distribution_method.recipient_reference")
        # Runa may add a template that was not requested. It moves no money.
        if None not in (wanted := (self.redemption_template, placed.redemption_template)) and wanted[0] != wanted[1]:
            fields.append("distribution_method.template_id")
        if placed.products is not None and self.products != placed.products:
            fields.append("products")
        if placed.spend_rules is not None and self.spend_rules != placed.spend_rules:
            fields.append("products.usage_config")
        return fields

    def without_recipient(self) -> _Item:
        """Return what may be stored: neither recipient nor templates."""
        return replace(self, recipient=None, reference=None, redemption_template=None, spend_rules=None)

    @property
    def known_fields(self) -> float:
        """Number of fields that an answer shows of the item; a masked recipient counts half."""
        shown = sum(value is not None for value in vars(self).values())
        return shown - 0.5 * (self.recipient is not None and "*" in self.recipient)


def _plain(amount: Decimal) -> str:
    """Return an amount without trailing zeros: 10, 10.0 and 10.00 are the same money."""
    return format(amount.normalize(), "f")


# Characters that a masked recipient may show in place of others -> the usual one.
_MASK = str.maketrans(dict.fromkeys("•●█…\uff0a", "*"))


def _one_spelling(address: str) -> str:
    """Return an address in lower case, with the domain in the form that DNS has it (punycode)."""
    local, at, domain = address.strip().lower().translate(_MASK).rpartition("@")
    with contextlib.suppress(UnicodeError):
        # Read punycode first: of two standards, one writes "ß" as "ss" and the other one does not.
        labels = [
            label[4:].encode("ascii").decode("punycode") if label.startswith("xn--") else label
            for label in domain.split(".")
        ]
        domain = ".".join(labels).encode("idna").decode()
    return f"{local}{at}{domain}"


def _is_echo_of(wanted: str | None, shown: str) -> bool:
    """Return whether an answer may show a recipient that was sent: the same, or masked with asterisks."""
    if wanted is None:
        return False
    wanted, shown = unicodedata.normalize("NFC", wanted), unicodedata.normalize("NFC", shown).translate(_MASK)
    if "*" not in shown:
        return wanted == shown
    parts = [re.escape(part) for part in re.split(r"\*+", shown)]
    return re.fullmatch(".*".join(parts), wanted) is not None


def fingerprint(environment: str, order: NewOrder) -> str:
    """Return the SHA-256 of what moves money in an order, in hexadecimal.

    :param environment: environment of the order's identity.
    :param order: the order, sealed or not. Its description and metadata do not count.
    """
    items = sorted(json.dumps(list(vars(_Item.of(item)).values())) for item in order.items)
    text = json.dumps([environment, order.payment_method.currency, items])
    return hashlib.sha256(text.encode()).hexdigest()


def differences(wanted: NewOrder, placed: Order) -> list[str]:
    """Return how the payment of a placed order differs from the wanted one.

    The texts name fields and item indexes, but no recipients and no links.

    :param wanted: the order that this attempt would send.
    :param placed: Runa's order, as ``GET /order/{id}`` shows it when it is COMPLETED.
    :returns: one text per difference; empty if both pay the same.
    """
    found = []
    currency = (placed.payment_method and placed.payment_method.currency) or placed.currency
    if currency and currency != wanted.payment_method.currency:
        found.append(f"currency: {wanted.payment_method.currency} is wanted, {currency} was paid")
    theirs = [_Item.of(item) for item in placed.items or []]
    ours = [_Item.of(item) for item in wanted.items]
    if len(ours) != len(theirs):
        found.append(f"items: {len(ours)} are wanted, {len(theirs)} were paid")
    matched = _match(ours, theirs)
    unmatched = sorted(set(range(len(theirs))) - set(matched.values()))
    for index in sorted(set(range(len(ours))) - set(matched)):
        item = ours[index]
        # Compare with the item at the same index if it is left: that explains the difference best.
        if unmatched:
            counterpart = index if index in unmatched else unmatched[0]
            unmatched.remove(counterpart)
            found.append(f"items[{index}]: differs in {', '.join(item.differences(theirs[counterpart]))}")
    return found


def counterparts(wanted: NewOrder, placed: Order) -> dict[int, OrderItem]:
    """Return which placed item belongs to which wanted item: index of the wanted item -> placed item.

    Runa's items carry no reference to the request. Items that pay exactly the same are matched in their sequence.

    :param wanted: the order that was sent.
    :param placed: Runa's order, as ``GET /order/{id}`` shows it when it is COMPLETED.
    """
    items = placed.items or ()
    matched = _match([_Item.of(item) for item in wanted.items], [_Item.of(item) for item in items])
    return {index: items[position] for index, position in matched.items()}


@dataclass(frozen=True)
class ItemCheck:
    """What a COMPLETED order shows of one wanted item.

    :param item: the placed item; ``None`` if the order shows none for it.
    :param problem: why it does not pay as wanted, without recipients and links; ``None`` if it does.
    """

    item: OrderItem | None
    problem: str | None


def check_items(wanted: NewOrder, placed: Order) -> list[ItemCheck]:
    """Check that a COMPLETED order pays each wanted item: it is there, with its amount, and not cancelled.

    :param wanted: the order that was sent.
    :param placed: Runa's order, in full.
    :returns: one check per wanted item, in their sequence.
    """
    ours, theirs = [_Item.of(item) for item in wanted.items], [_Item.of(item) for item in placed.items or ()]
    return _check(wanted.payment_method.currency, ours, placed, theirs)


def _check(currency: str, ours: Sequence[_Item], placed: Order, theirs: Sequence[_Item]) -> list[ItemCheck]:
    """Do what :func:`check_items` does.

    :param theirs: the items of the placed order, in their sequence.
    """
    items = placed.items or ()
    matched = _match(ours, theirs)
    left = [position for position in range(len(theirs)) if position not in set(matched.values())]
    paid_from = (placed.payment_method and placed.payment_method.currency) or placed.currency
    # A conversion names the other currency.
    known = {currency, *(placed.transaction_detail or ())}
    checks = []
    for index, ours_item in enumerate(ours):
        problem: str | None = None
        position = matched.get(index)
        if position is None:
            position = _most_similar(ours_item, index, theirs, left)
            if position is None:
                checks.append(ItemCheck(None, "the order has no item for it"))
                continue
            left.remove(position)
            problem = f"the order's item differs in {', '.join(ours_item.differences(theirs[position]))}"
        item = items[position]
        if paid_from is not None and paid_from != currency:
            problem = f"it was paid from {_label(paid_from)}, not from {currency}"
        elif placed.currency is not None and placed.currency not in known:
            problem = f"the order is in {_label(placed.currency)}, not in {currency}"
        elif item.currency not in (None, *known) and (placed.transaction_detail or len(ours) > 1):
            problem = f"its amount is in {_label(str(item.currency))}, not in {currency}"
        elif _is_cancelled(item):
            problem = "its payout is CANCELLED"
        checks.append(ItemCheck(item, problem))
    return checks


def _is_cancelled(item: OrderItem) -> bool:
    return item.payout is not None and (item.payout.status or "").upper() == "CANCELLED"


def _label(text: str) -> str:
    """Return a code of Runa's, such as a currency, for a message: it may be any text."""
    return text if re.fullmatch(r"[\w.-]{1,12}", text) else "another currency"


@dataclass(frozen=True)
class Expectation:
    """What a COMPLETED order must pay. It can be stored, without recipients, while a task is deferred.

    :param currency: currency of the balance that pays.
    :param items: the items.
    :param has_recipients: whether the recipients are known.
    """

    currency: str
    items: tuple[_Item, ...]
    has_recipients: bool = True

    @classmethod
    def of(cls, order: NewOrder) -> Expectation:
        """Return what an order must pay.

        :param order: the order, as it was sent.
        """
        return cls(order.payment_method.currency, tuple(_Item.of(item) for item in order.items))

    def to_json(self) -> dict[str, Any]:
        """Return the expectation without recipients, as strings and lists."""
        return {
            "currency": self.currency,
            "face_values": [item.face_value for item in self.items],
            "distributions": [item.distribution for item in self.items],
            "products": [list(item.products or ()) for item in self.items],
        }

    @classmethod
    def from_json(cls, values: Any) -> Expectation | None:
        """Return the expectation that :meth:`to_json` returned, ``None`` if the values are none.

        :param values: the values.
        """
        try:
            items = tuple(
                _Item(_plain(Decimal(face_value)), str(kind), None, None, None, tuple(map(str, products)) or None, None)
                for face_value, kind, products in zip(
                    values["face_values"], values["distributions"], values["products"], strict=True
                )
            )
            return cls(str(values["currency"]), items, has_recipients=False) if items else None
        except (TypeError, KeyError, ValueError, ArithmeticError):
            return None

    def mismatches(self, placed: Order) -> list[str]:
        """Return how a COMPLETED order does not pay as expected, by item index.

        :param placed: Runa's order, in full.
        :returns: one text per item, without recipients and links; empty if it pays as expected.
        """
        theirs = [_Item.of(item) for item in placed.items or ()]
        if not theirs:
            return [f"it shows no items, {len(self.items)} were ordered"]
        if not self.has_recipients:
            theirs = [item.without_recipient() for item in theirs]
        checks = _check(self.currency, self.items, placed, theirs)
        found = [f"items[{index}]: {check.problem}" for index, check in enumerate(checks) if check.problem]
        more = len(theirs) - sum(check.item is not None for check in checks)
        return found + ([f"it has {more} item(s) that were not ordered"] if more > 0 else [])


def unpaid(placed: Order) -> list[str]:
    """Return why a COMPLETED order does not pay all its items, if nothing is known of what was ordered.

    :param placed: Runa's order, in full.
    :returns: texts with counts; empty if no item of it is known to be unpaid.
    """
    items = placed.items or ()
    if not items:
        return ["it shows no items"]
    cancelled = sum(map(_is_cancelled, items))
    return [f"{cancelled} of {len(items)} payout(s) are CANCELLED"] if cancelled else []


def _most_similar(wanted: _Item, index: int, theirs: Sequence[_Item], left: Sequence[int]) -> int | None:
    """Return the position of the item, of those that are left, that differs least from a wanted one."""
    best = min(left, key=lambda position: (len(wanted.differences(theirs[position])), position != index), default=None)
    if best is None or len(wanted.differences(theirs[best])) > 1:
        return None  # it may be anybody's
    return best


def item_of_recipient(wanted: NewOrderItem, placed: Order, *, place: int) -> OrderItem | None:
    """Return the item that pays a recipient, whatever its amount; ``None`` if the order does not show which it is.

    :param wanted: what would be sent to the recipient now.
    :param placed: Runa's order, in full.
    :param place: place of the recipient in the order, which decides if several items may be the recipient's.
    """
    ours = _Item.of(wanted)
    items = placed.items or ()
    fits = [
        index
        for index, item in enumerate(items)
        if (ours.recipient is not None or ours.reference is not None) and _pays_the_same(ours, _Item.of(item))
    ]
    if not fits and ours.recipient is None and place < len(items):
        return items[place]
    return items[place if place in fits else fits[0]] if fits else None


def _pays_the_same(wanted: _Item, placed: _Item) -> bool:
    if placed.recipient is not None and not _is_echo_of(wanted.recipient, placed.recipient):
        return False
    if placed.recipient is None and placed.reference is None:
        return False
    return placed.reference is None or _is_echo_of(wanted.reference, placed.reference)


def _match(ours: Sequence[_Item], theirs: Sequence[_Item]) -> dict[int, int]:
    """Return index of a wanted item -> position of a placed item that pays the same.

    As many as possible are matched: a masked placed item may fit several wanted items, and the one that fits first is
    not always right. Items that pay exactly the same are matched in their sequence.
    """
    left: dict[_Item, deque[int]] = defaultdict(deque)
    for index, item in enumerate(ours):
        left[item].append(index)
    matched, others = {}, []
    for position, placed in enumerate(theirs):
        if left.get(placed):
            matched[left[placed].popleft()] = position
        else:
            others.append(position)
    fitting: dict[_Item, list[int]] = {}
    for placed in {theirs[position] for position in others}:
        same = [indexes for item, indexes in left.items() if not item.differences(placed)]
        fitting[placed] = [index for indexes in same for index in indexes]
    fits = {position: fitting[theirs[position]] for position in others}
    taken: dict[int, int] = {}
    # Those that show more fit fewer.
    for position in sorted(others, key=lambda position: -theirs[position].known_fields):
        _take_one(position, fits, taken, set())
    return matched | taken


def _take_one(position: int, fits: Mapping[int, Sequence[int]], taken: dict[int, int], tried: set[int]) -> bool:
    """Match a placed item, if another one that it displaces finds another wanted item (an augmenting path)."""
    for index in fits[position]:
        if index not in taken:
            taken[index] = position
            return True
    for index in fits[position]:
        if index not in tried:
            tried.add(index)
            if _take_one(taken[index], fits, taken, tried):
                taken[index] = position
                return True
    return False
