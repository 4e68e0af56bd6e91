"""Find differences between the ledger and Runa: who was paid, and how much.

Runa is read first and the ledger after it, so an order that is placed in between is no difference. Orders are paired
with batches by the reference in their description, and their items with the rows of the batch by id and amount. Nothing
is written, neither to the ledger nor to Runa.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy.engine import Engine

from airflow_provider_runa.api.errors import RunaNotFoundError
from airflow_provider_runa.api.models import Order, OrderItem, OrderStatus
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.errors import InvalidCampaignError, unknown_campaign
from airflow_provider_runa.campaign.ledger import FencedError, Ledger, Row
from airflow_provider_runa.campaign.tables import BatchState, RowState, campaigns
from airflow_provider_runa.placement.identity import METADATA_PREFIX, short_name_in
from airflow_provider_runa.placement.payment import counterparts
from airflow_provider_runa.placement.ports import OrderReader
from airflow_provider_runa.placement.search import CLOCK_SLACK, list_since

#: Kinds of differences.
UNKNOWN_TO_LEDGER = "unknown_to_ledger"  # Runa paid; the ledger does not know the order, or says that it paid nobody
UNKNOWN_TO_RUNA = "unknown_to_runa"  # the ledger has an order, or an item, that Runa does not have
PAID_TWICE = "paid_twice"  # two orders paid the rows of one batch
NOT_PAID = "not_paid"  # the ledger has an order that did not pay
AMOUNT_DIFFERS = "amount_differs"  # both have it, with different amounts or currencies

#: Number of pairings whose orders are fetched at once.
_AT_ONCE = 8

#: Default begin and end of the period.
_BEGIN, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class Difference:
    """A difference between the ledger and Runa.

    :param kind: one of the constants above.
    :param campaign: name of the campaign.
    :param recipient_key: the user's key of the recipient; ``None`` if the difference concerns the whole order. It may
        be an address, so do not log it.
    :param order_id: Runa's id of the order.
    :param text: what differs, on one line, without recipients and links.
    """

    kind: str
    campaign: str
    recipient_key: str | None = field(repr=False)
    order_id: str | None
    text: str


@dataclass
class Reconciliation:
    """The result of a comparison.

    :param differences: what differs.
    :param orders: number of orders that were fetched.
    :param hidden: number of hidden orders that are not in the ledger. It is not known what they pay.
    :param open_rows: number of rows that are not settled yet, by state. They are no differences.
    """

    differences: list[Difference] = field(default_factory=list)
    orders: int = 0
    hidden: int = 0
    open_rows: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return the number of differences by kind."""
        return dict(sorted(Counter(difference.kind for difference in self.differences).items()))

    def __str__(self) -> str:
        parts = [f"{self.orders} order(s) compared", f"{len(self.differences)} difference(s)"]
        parts += [f"{count} row(s) {state}" for state, count in self.open_rows.items()]
        if self.hidden:
            parts.append(f"{self.hidden} order(s) still PROCESSING that do not show yet what they pay")
        return f"{'; '.join(parts)}."


async def reconcile(
    engine: Engine,
    environment: str,
    *,
    client: OrderReader,
    campaign: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Reconciliation:
    """Compare a ledger with Runa.

    :param engine: the ledger's database. The tables must exist.
    :param environment: base URL of Runa's API.
    :param client: Runa.
    :param campaign: only this campaign. Default: all campaigns, including those that the ledger does not have.
    :param since: only orders that were placed at or after this time. Default: since the first plan.
    :param until: only orders that were placed before this time. Default: no limit.
    :raises InvalidCampaignError: if the ledger does not have the campaign, or has no campaign at all.
    :raises RunaError: if Runa cannot be read.
    """
    known = campaigns(engine, environment)
    if campaign is not None and campaign not in known:
        raise unknown_campaign(campaign, known, environment)
    if not known:
        raise InvalidCampaignError(f"campaign: the ledger has no campaign on {environment}")
    names = known if campaign is None else [campaign]
    ledgers = [Ledger(engine, environment, name) for name in names]
    planned = [batch.planned_at for ledger in ledgers for batch in ledger.batches()]
    # Runa's clock may be behind the clock of the worker that planned.
    begin = since.astimezone(UTC) if since else min(planned, default=_BEGIN) - CLOCK_SLACK
    return await _Comparer(ledgers, client, campaign, begin, (until or _END).astimezone(UTC)).compare()


@dataclass(frozen=True)
class _ListedOrder:
    """The part of a row of the order list that is kept.

    :param id: Runa's id of the order.
    :param short_name: short name of the identity in the order's reference.
    :param title: the order's description without its reference.
    """

    id: str
    short_name: str
    title: str


@dataclass(frozen=True)
class _Pairing:
    """Orders to fetch, and the batch that they belong to.

    :param order_ids: Runa's ids of the orders; the order that the ledger names comes first.
    :param ledger: the ledger of the batch; ``None`` if the ledger has no batch for the order.
    :param batch: the batch; ``None`` likewise.
    """

    order_ids: list[str]
    ledger: Ledger | None = None
    batch: Batch | None = None


class _Comparer:
    """One comparison. The parameters are those of :func:`reconcile`, ``ledgers`` those of the campaigns to compare."""

    def __init__(
        self, ledgers: list[Ledger], client: OrderReader, campaign: str | None, since: datetime, until: datetime
    ) -> None:
        self.ledgers = ledgers
        self.client = client
        self.campaign = campaign
        self.since = since
        self.until = until
        self.result = Reconciliation()

    async def compare(self) -> Reconciliation:
        listed, hidden = await self._read_list()
        pairings = self._pair(listed, hidden)
        for first in range(0, len(pairings), _AT_ONCE):
            for found in await asyncio.gather(*map(self._compare_pairing, pairings[first : first + _AT_ONCE])):
                self.result.differences += found
        return self.result

    async def _read_list(self) -> tuple[list[_ListedOrder], set[str]]:
        """Return the COMPLETED orders of the period that have a reference, and the ids of all hidden orders."""
        listed, hidden = [], set()
        async for row in list_since(self.since, self.client):
            if not OrderStatus.is_final(row.status):
                hidden.add(row.id)
                continue
            short_name = short_name_in(row.description)
            outside = row.created_at is not None and not self.since <= row.created_at < self.until
            if short_name is not None and row.status == OrderStatus.COMPLETED and not outside:
                title = (row.description or "").rpartition("[af-")[0].strip()
                listed.append(_ListedOrder(row.id, short_name, title))
        return listed, hidden

    # -- pairing orders with batches ----------------------------------------------------------------------------------

    def _pair(self, listed: list[_ListedOrder], hidden: set[str]) -> list[_Pairing]:
        """Pair orders with batches: the listed orders, and those that the ledger placed in the period."""
        pairings: dict[str, _Pairing] = {}
        wanted: set[str] = set()
        open_rows: Counter[str] = Counter()
        for ledger in self.ledgers:
            wanted |= self._add_batches(ledger, pairings)
            open_rows.update(_count_open_rows(ledger))
        in_ledger = {pairing.batch.order_id for pairing in pairings.values() if pairing.batch is not None}
        self.result.hidden, self.result.open_rows = len(hidden - in_ledger), dict(sorted(open_rows.items()))
        wanted |= _add_listed(listed, pairings)
        paired = [pairing for short_name, pairing in pairings.items() if short_name in wanted]
        return paired + self._without_batch(listed, pairings)

    def _add_batches(self, ledger: Ledger, pairings: dict[str, _Pairing]) -> set[str]:
        """Add a pairing for each batch of a ledger.

        :returns: short names of the batches whose order was placed in the period.
        """
        placed_in_period = set()
        sent = ledger.sent_between(self.since, self.until)
        for batch in ledger.batches():
            order_id = batch.order_id if _is_placed(batch) else None
            short_name = ledger.identity(batch.id).short_name
            pairings[short_name] = _Pairing([order_id] if order_id else [], ledger, batch)
            if order_id is not None and batch.id in sent:
                placed_in_period.add(short_name)
        return placed_in_period

    def _without_batch(self, listed: list[_ListedOrder], pairings: Mapping[str, _Pairing]) -> list[_Pairing]:
        """Return the listed orders that belong to no batch. Their description may be the campaign's name."""
        return [
            _Pairing([order.id])
            for order in listed
            if order.short_name not in pairings and self.campaign in (None, order.title)
        ]

    # -- comparing ----------------------------------------------------------------------------------------------------

    async def _compare_pairing(self, pairing: _Pairing) -> list[Difference]:
        """Fetch the orders of a pairing, and compare them with their batch."""
        orders: dict[str, Order | None] = {}
        for order_id in pairing.order_ids:
            try:
                orders[order_id] = await self.client.get_order(order_id)
            except RunaNotFoundError:
                orders[order_id] = None
            else:
                self.result.orders += 1
        if pairing.ledger is None or pairing.batch is None:
            return [difference for order in orders.values() if order for difference in self._unknown_order(order)]
        try:
            return list(_compare_batch(pairing.ledger, pairing.batch, orders))
        except FencedError:  # a run has settled the batch since it was read
            (batch,) = (batch for batch in pairing.ledger.batches() if batch.id == pairing.batch.id)
            return list(_compare_batch(pairing.ledger, batch, orders))

    def _unknown_order(self, order: Order) -> Iterator[Difference]:
        """Yield a difference if an order without a batch belongs to a campaign. Other orders do not."""
        campaign = (order.metadata or {}).get(f"{METADATA_PREFIX}campaign")
        if campaign is not None and self.campaign in (None, campaign):
            text = f"Runa paid {_sum(order)}, and the ledger has no such order"
            yield Difference(UNKNOWN_TO_LEDGER, campaign, None, order.id, text)


def _is_placed(batch: Batch) -> bool:
    """Return whether the ledger says that a batch's order pays or will pay."""
    return batch.state in (BatchState.PLACED, BatchState.COMPLETED)


def _count_open_rows(ledger: Ledger) -> dict[str, int]:
    """Return the number of rows that are not settled, by state."""
    open_states = (RowState.PLANNED, RowState.SENT)
    return {state: count for state, (count, _) in ledger.totals().items() if state in open_states}


def _add_listed(listed: list[_ListedOrder], pairings: Mapping[str, _Pairing]) -> set[str]:
    """Add each listed order to the pairing of its batch, if it has one.

    :returns: short names of these batches.
    """
    found = set()
    for order in listed:
        if pairing := pairings.get(order.short_name):
            found.add(order.short_name)
            if order.id not in pairing.order_ids:
                pairing.order_ids.append(order.id)
    return found


def _compare_batch(ledger: Ledger, batch: Batch, orders: Mapping[str, Order | None]) -> Iterator[Difference]:
    """Compare a batch with the orders that have its reference.

    :param ledger: the ledger of the batch.
    :param batch: the batch.
    :param orders: id -> order, or ``None`` if Runa does not have it. The order that the ledger names comes first.
    """

    def differs(kind: str, text: str, *, order_id: str | None, key: str | None = None) -> Difference:
        return Difference(kind, ledger.campaign, key, order_id, text)

    identity = ledger.identity(batch.id)
    paying_id: str | None = None
    for order_id, order in orders.items():
        in_ledger = order_id == batch.order_id and _is_placed(batch)
        if order is None:
            if in_ledger:
                text = f"the ledger says {batch.state}, and Runa has no such order: not the account that paid?"
                yield differs(UNKNOWN_TO_RUNA, text, order_id=order_id)
        elif order.status != OrderStatus.COMPLETED:
            if order.status == OrderStatus.FAILED or batch.state == BatchState.COMPLETED:
                text = f"the ledger says {batch.state}, and Runa says {order.status}"
                yield differs(NOT_PAID, text, order_id=order_id)
        elif not in_ledger and not identity.owns(order.metadata):
            continue  # another identity that has the same short name by chance
        elif paying_id is not None:
            text = f"Runa paid {_sum(order)}, and {paying_id} pays the same recipients"
            yield differs(PAID_TWICE, text, order_id=order_id)
        else:
            paying_id = order_id
            if in_ledger:
                for kind, key, text in _compare_items(ledger, batch, order):
                    yield differs(kind, text, order_id=order_id, key=key)
            else:
                text = f"Runa paid {_sum(order)}, and the ledger says {batch.state}"
                yield differs(UNKNOWN_TO_LEDGER, text, order_id=order_id)


def _compare_items(ledger: Ledger, batch: Batch, order: Order) -> Iterator[tuple[str, str | None, str]]:
    """Compare the rows of a batch with the items of its order.

    :returns: for each difference its kind, the recipient key and the text.
    """
    currency = (order.payment_method and order.payment_method.currency) or order.currency
    if currency is not None and currency != batch.currency:
        yield AMOUNT_DIFFERS, None, f"the ledger says {batch.currency}, and Runa paid from {currency}"

    items = {item.id: item for item in order.items or ()}
    rows = ledger.rows_of(batch)
    matched = _match_items(ledger, batch, rows, order)
    for row in rows:
        item = matched.get(row.position)
        if item is None and row.item_id is not None:
            yield UNKNOWN_TO_RUNA, row.recipient_key, f"the order has no item {row.item_id}, the ledger's {row.amount}"
        elif item is None:
            yield UNKNOWN_TO_RUNA, row.recipient_key, f"the order has no item for the ledger's {row.amount}"
        else:
            items.pop(item.id, None)
            if item.face_value != row.amount:
                text = f"the ledger says {row.amount}, and Runa paid {item.face_value}"
                yield AMOUNT_DIFFERS, row.recipient_key, text
            if item.payout is not None and item.payout.status == "CANCELLED":
                yield NOT_PAID, row.recipient_key, f"the ledger says {row.state}, and the payout is CANCELLED"
    for item in items.values():
        yield UNKNOWN_TO_LEDGER, None, f"the ledger has no row for item {item.id} of {item.face_value}"


def _match_items(ledger: Ledger, batch: Batch, rows: Sequence[Row], order: Order) -> dict[int, OrderItem]:
    """Return which item pays which row: position of the row -> item.

    A row is matched by what was sent for it, or, when that is erased, by the item's id. Some rows match neither way,
    e.g. if Runa shows a recipient in another form than it was sent. They get an item of the same amount, or else any
    item that is left.
    """
    if batch.state == BatchState.PLACED and not batch.found:
        matched = counterparts(ledger.order(batch), order)
    else:
        matched = _match_by_id(rows, order)
    used = {item.id for item in matched.values()}
    left = [item for item in order.items or () if item.id not in used]
    left = _match_by_amount(matched, _unmatched(rows, matched), left)
    _match_in_sequence(matched, _unmatched(rows, matched), left)
    return matched


def _unmatched(rows: Sequence[Row], matched: Mapping[int, OrderItem]) -> list[Row]:
    """Return the rows that have no item. A row whose item is known by its id gets no other item."""
    return [row for row in rows if row.position not in matched and row.item_id is None]


def _match_by_id(rows: Sequence[Row], order: Order) -> dict[int, OrderItem]:
    items = {item.id: item for item in order.items or ()}
    return {row.position: items[row.item_id] for row in rows if row.item_id in items}


def _match_by_amount(matched: dict[int, OrderItem], rows: Sequence[Row], items: Sequence[OrderItem]) -> list[OrderItem]:
    """Match each row with an item of the same amount, and return the items that are left."""
    by_amount: dict[Decimal, deque[OrderItem]] = defaultdict(deque)
    for item in items:
        by_amount[item.face_value].append(item)
    for row in rows:
        if same_amount := by_amount[row.amount]:
            matched[row.position] = same_amount.popleft()
    return [item for same_amount in by_amount.values() for item in same_amount]


def _match_in_sequence(matched: dict[int, OrderItem], rows: Sequence[Row], items: Sequence[OrderItem]) -> None:
    """Match rows with items one after the other, until one side runs out."""
    matched.update({row.position: item for row, item in zip(rows, items, strict=False)})


def _sum(order: Order) -> str:
    """Return number and sum of an order's items, as text."""
    items = order.items or ()
    return f"{len(items)} payout(s), {sum((item.face_value for item in items), Decimal(0))} {order.currency}"
