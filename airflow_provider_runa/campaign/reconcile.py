"""What differs between the ledger and Runa: who is paid according to the one and not, or otherwise, to the other.

Runa is read first and the ledger after it, so that an order which is placed meanwhile is no difference. Orders are
related to batches by the reference in their description, and compared with the rows of their batch by amounts and ids
of items. Nothing is written, neither here nor there.
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
from airflow_provider_runa.campaign.errors import InvalidCampaignError
from airflow_provider_runa.campaign.ledger import Batch, BatchState, FencedError, Ledger, Row, RowState, campaigns
from airflow_provider_runa.placement.identity import METADATA_PREFIX, short_name_in
from airflow_provider_runa.placement.payment import counterparts
from airflow_provider_runa.placement.ports import OrderReader
from airflow_provider_runa.placement.search import CLOCK_SLACK, list_since

#: Kinds of differences.
UNKNOWN_TO_LEDGER = "unknown_to_ledger"  # Runa pays, and the ledger does not know it or says that nobody was paid
UNKNOWN_TO_RUNA = "unknown_to_runa"  # the ledger knows an order, or an item of it, that Runa does not know
PAID_TWICE = "paid_twice"  # more than one order pays what one was to pay
NOT_PAID = "not_paid"  # the ledger knows an order that does not pay
AMOUNT_DIFFERS = "amount_differs"  # both know it, with another amount or currency

#: Orders that are fetched at once.
_AT_ONCE = 8

#: When a period begins and ends whose limits are left out.
_BEGIN, _END = datetime(2000, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class Difference:
    """Something that ledger and Runa do not agree on.

    :param kind: which kind, see the constants above.
    :param campaign: name of the campaign.
    :param recipient_key: who is concerned, if it is one recipient. It may be an address: for the user's eyes only.
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
    """What a comparison has come to.

    :param differences: what differs.
    :param orders: orders that were looked at.
    :param hidden: orders that are not in the ledger and still PROCESSING: they do not tell what they are.
    :param open_rows: rows of the ledger that are not settled yet, by state: no differences.
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

    :param engine: the ledger's database; the tables must be there.
    :param environment: base URL of Runa's API.
    :param client: Runa.
    :param campaign: which campaign; all that the ledger knows if it is left out, and orders of those it does not know.
    :param since: only orders that were placed at or after this moment; since the first plan if it is left out.
    :param until: only orders that were placed before this moment.
    :raises InvalidCampaignError: if the ledger knows no such campaign, or none at all.
    :raises RunaError: if Runa cannot be read.
    """
    known = campaigns(engine, environment)
    if not known or campaign not in (None, *known):
        wanted = "campaign" if campaign is None else f"campaign {campaign!r}"
        raise InvalidCampaignError(f"campaign: the ledger has no {wanted} on {environment}")
    names = known if campaign is None else [campaign]
    ledgers = [Ledger(engine, environment, name) for name in names]
    planned = [batch.planned_at for ledger in ledgers for batch in ledger.batches()]
    # Runa's clock may be behind the one that planned.
    begin = since.astimezone(UTC) if since else min(planned, default=_BEGIN) - CLOCK_SLACK
    return await _Comparer(ledgers, client, campaign, begin, (until or _END).astimezone(UTC)).compare()


@dataclass(frozen=True)
class _Listed:
    """What is kept of a row of the order list."""

    id: str
    short_name: str
    title: str


@dataclass(frozen=True)
class _Case:
    """Orders to look at: those of a batch, or one that belongs to none."""

    order_ids: list[str]
    ledger: Ledger | None = None
    batch: Batch | None = None


class _Comparer:
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
        paying, hidden = await self._read_list()
        cases = self._cases(paying, hidden)
        for first in range(0, len(cases), _AT_ONCE):
            for found in await asyncio.gather(*map(self._look_at, cases[first : first + _AT_ONCE])):
                self.result.differences += found
        return self.result

    async def _read_list(self) -> tuple[list[_Listed], set[str]]:
        """Return the orders of the period that are marked and pay, and the ids of those that are PROCESSING."""
        paying, hidden = [], set()
        async for row in list_since(self.since, self.client):
            if not OrderStatus.is_final(row.status):
                hidden.add(row.id)
                continue
            short_name = short_name_in(row.description)
            outside = row.created_at is not None and not self.since <= row.created_at < self.until
            if short_name is not None and row.status == OrderStatus.COMPLETED and not outside:
                title = (row.description or "").rpartition("[af-")[0].strip()
                paying.append(_Listed(row.id, short_name, title))
        return paying, hidden

    def _cases(self, paying: list[_Listed], hidden: set[str]) -> list[_Case]:
        """Relate orders to batches: the listed ones, and those that the ledger says were placed in the period."""
        by_name: dict[str, _Case] = {}
        wanted: set[str] = set()
        open_rows: Counter[str] = Counter()
        for ledger in self.ledgers:
            sent = ledger.sent_between(self.since, self.until)
            for batch in ledger.batches():
                placed = batch.state in (BatchState.PLACED, BatchState.COMPLETED) and batch.order_id is not None
                short_name = ledger.identity(batch.id).short_name
                by_name[short_name] = _Case([batch.order_id] if placed and batch.order_id else [], ledger, batch)
                hidden.discard(batch.order_id or "")
                if placed and batch.id in sent:
                    wanted.add(short_name)
            open_rows.update(
                {
                    state: count
                    for state, (count, _) in ledger.totals().items()
                    if state in (RowState.PLANNED, RowState.SENT)
                }
            )
        strangers = []
        for listed in paying:
            if listed.short_name in by_name:
                order_ids = by_name[listed.short_name].order_ids
                if listed.id not in order_ids:
                    order_ids.append(listed.id)
                wanted.add(listed.short_name)
            elif self.campaign in (None, listed.title):  # the description of a campaign's orders is its name
                strangers.append(_Case([listed.id]))
        self.result.hidden, self.result.open_rows = len(hidden), dict(sorted(open_rows.items()))
        return [case for short_name, case in by_name.items() if short_name in wanted] + strangers

    async def _look_at(self, case: _Case) -> list[Difference]:
        orders: dict[str, Order | None] = {}
        for order_id in case.order_ids:
            try:
                orders[order_id] = await self.client.get_order(order_id)
            except RunaNotFoundError:
                orders[order_id] = None
            else:
                self.result.orders += 1
        if case.ledger is None or case.batch is None:
            return [difference for order in orders.values() if order for difference in self._stranger(order)]
        try:
            return list(_compare(case.ledger, case.batch, orders))
        except FencedError:  # a run has settled the batch since it was read
            (batch,) = (batch for batch in case.ledger.batches() if batch.id == case.batch.id)
            return list(_compare(case.ledger, batch, orders))

    def _stranger(self, order: Order) -> Iterator[Difference]:
        """Tell of an order that belongs to no batch, if it is one of a campaign's: not every marked order is."""
        campaign = (order.metadata or {}).get(f"{METADATA_PREFIX}campaign")
        if campaign is not None and self.campaign in (None, campaign):
            text = f"Runa paid {_sum(order)}, and the ledger has no such order"
            yield Difference(UNKNOWN_TO_LEDGER, campaign, None, order.id, text)


def _compare(ledger: Ledger, batch: Batch, orders: Mapping[str, Order | None]) -> Iterator[Difference]:
    """Compare a batch with the orders that are known to belong to it.

    :param orders: id -> order, ``None`` if Runa does not know it; the ledger's own first, if the ledger has one.
    """

    def differs(kind: str, text: str, *, order_id: str | None, key: str | None = None) -> Difference:
        return Difference(kind, ledger.campaign, key, order_id, text)

    identity = ledger.identity(batch.id)
    pays: str | None = None
    for order_id, order in orders.items():
        ours = order_id == batch.order_id and batch.state in (BatchState.PLACED, BatchState.COMPLETED)
        if order is None:
            if ours:
                text = f"the ledger says {batch.state}, and Runa has no such order: not the account that paid?"
                yield differs(UNKNOWN_TO_RUNA, text, order_id=order_id)
        elif order.status != OrderStatus.COMPLETED:
            if order.status == OrderStatus.FAILED or batch.state == BatchState.COMPLETED:
                text = f"the ledger says {batch.state}, and Runa says {order.status}"
                yield differs(NOT_PAID, text, order_id=order_id)
        elif not ours and not identity.owns(order.metadata):
            continue  # its reference is like ours by chance
        elif pays is not None:
            text = f"Runa paid {_sum(order)}, and {pays} pays the same recipients"
            yield differs(PAID_TWICE, text, order_id=order_id)
        else:
            pays = order_id
            if ours:
                for kind, key, text in _compare_items(ledger, batch, order):
                    yield differs(kind, text, order_id=order_id, key=key)
            else:
                text = f"Runa paid {_sum(order)}, and the ledger says {batch.state}"
                yield differs(UNKNOWN_TO_LEDGER, text, order_id=order_id)


def _compare_items(ledger: Ledger, batch: Batch, order: Order) -> Iterator[tuple[str, str | None, str]]:
    """Compare the rows of a batch with the items of its order; yield kind, recipient key and text."""
    currency = (order.payment_method and order.payment_method.currency) or order.currency
    if currency is not None and currency != batch.currency:
        yield AMOUNT_DIFFERS, None, f"the ledger says {batch.currency}, and Runa paid from {currency}"

    items = {item.id: item for item in order.items or ()}
    rows = ledger.rows_of(batch)
    matched = _match(ledger, batch, rows, order)
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
    for item in items.values():
        yield UNKNOWN_TO_LEDGER, None, f"the ledger has no row for item {item.id} of {item.face_value}"


def _match(ledger: Ledger, batch: Batch, rows: Sequence[Row], order: Order) -> dict[int, OrderItem]:
    """Return position of a row -> the item that pays it: by what was sent, and once that is erased by the item's id.

    Rows of which neither tells (Runa may show a recipient otherwise than it was sent) get an item of the same amount,
    or else any that is left.
    """
    if batch.state == BatchState.PLACED:
        matched = counterparts(ledger.order(batch), order)
    else:
        items = {item.id: item for item in order.items or ()}
        matched = {row.position: items[row.item_id] for row in rows if row.item_id in items}
    taken = {item.id for item in matched.values()}
    left = [item for item in order.items or () if item.id not in taken]
    loose = [row for row in rows if row.position not in matched and row.item_id is None]
    for exactly in (True, False):
        by_amount: dict[Decimal | None, deque[OrderItem]] = defaultdict(deque)
        for item in left:
            by_amount[item.face_value if exactly else None].append(item)
        for row in loose:
            if fits := by_amount[row.amount if exactly else None]:
                matched[row.position] = fits.popleft()
        left = [item for items_left in by_amount.values() for item in items_left]
        loose = [row for row in loose if row.position not in matched]
    return matched


def _sum(order: Order) -> str:
    """Say what an order pays."""
    items = order.items or ()
    return f"{len(items)} payout(s), {sum((item.face_value for item in items), Decimal(0))} {order.currency}"
