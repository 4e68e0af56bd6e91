"""Catching up: before a campaign sends anything, its ledger is brought up to date with Runa's order list.

The list is read from where it was compared last. An order whose description is the campaign's, and that no batch of the
ledger accounts for, is fetched: its metadata lists the rows that it pays, and those are taken into the ledger. So a
ledger that was lost, or restored from a copy, pays nobody twice for as long as Runa lists the orders.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from airflow_provider_runa.api.errors import RunaError, RunaNotFoundError, RunaUnreachableError
from airflow_provider_runa.api.models import Order, OrderStatus
from airflow_provider_runa.campaign import digests
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.errors import (
    CatchUpInconclusiveError,
    LedgerBehindError,
    OrderListUnreadableError,
    OtherAccountError,
)
from airflow_provider_runa.campaign.found import Absorbed, FoundOrder, absorb, compared_until
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.placement.errors import NothingSentError, PlacementError, SearchRejectedError
from airflow_provider_runa.placement.identity import METADATA_PREFIX, OrderIdentity, short_name_in
from airflow_provider_runa.placement.place import Policy, is_rejected_before_processing
from airflow_provider_runa.placement.ports import Clock, OrderReader
from airflow_provider_runa.placement.search import OrderScan

log = logging.getLogger(__name__)

#: How far back the order list is read for a campaign that the ledger does not know.
LOOK_BACK = timedelta(days=31)

#: Orders that are fetched at once.
_AT_ONCE = 8


async def catch_up(
    ledger: Ledger,
    *,
    client: OrderReader,
    clock: Clock,
    look_back: timedelta = LOOK_BACK,
    since: datetime | None = None,
    policy: Policy = Policy(),  # noqa: B008 - immutable
) -> Absorbed:
    """Bring a ledger up to date with Runa's order list. Nothing is sent.

    :param ledger: the ledger of the campaign. Its placed orders must have been settled just before.
    :param client: Runa.
    :param clock: the time.
    :param look_back: how far back the list is read if this ledger has never been compared with it.
    :param since: read the list from here on, even if the ledger was compared later.
    :param policy: how long the steps may take.
    :raises PlacementError: if the ledger cannot be brought up to date, so that nothing may be sent.
    """
    started = clock.now()
    accounted = {batch.order_id: batch for batch in ledger.batches() if batch.order_id is not None}
    try:
        scan = OrderScan(
            client,
            clock,
            since=since or compared_until(ledger) or started - look_back,
            known=accounted.keys(),
            patience=policy.patience,
            pause=policy.search_pause,
        )
        listed = [order async for order in scan if _may_be_ours(order, ledger.campaign)]
        if accounted and not accounted.keys() & scan.seen:
            await _check_account(ledger, list(accounted.values()), client)
        found = await _fetch(ledger, [order.id for order in listed], client)
    except PlacementError:  # it says itself what is wrong
        raise
    except RunaError as error:
        outcome = "Nothing was sent in this attempt"
        if isinstance(error, RunaUnreachableError):
            raise NothingSentError(outcome=outcome, address=error.address, answer=error) from None
        if is_rejected_before_processing(error):
            raise SearchRejectedError(outcome=outcome, answer=error) from None
        raise OrderListUnreadableError(answer=error) from None
    if scan.hidden:
        raise CatchUpInconclusiveError(hidden=len(scan.hidden), campaign=ledger.campaign)
    settling = timedelta(seconds=policy.settling)
    absorbed = absorb(ledger, found, until=started - settling, now=clock.now(), settling=settling)
    _report(ledger, found, absorbed)
    return absorbed


def _may_be_ours(order: Order, campaign: str) -> bool:
    """Return whether a listed order may pay rows of a campaign: the description of its orders is its name."""
    title = (order.description or "").rpartition("[af-")[0].strip()
    return short_name_in(order.description) is not None and title == campaign and order.status != OrderStatus.FAILED


async def _check_account(ledger: Ledger, placed: Sequence[Batch], client: OrderReader) -> None:
    """Check that Runa knows the order that was placed last: otherwise the connection leads to another account."""
    last = max(placed, key=lambda batch: batch.planned_at)
    try:
        await client.get_order(str(last.order_id))
    except RunaNotFoundError:
        raise OtherAccountError(order_id=last.order_id, campaign=ledger.campaign) from None


async def _fetch(ledger: Ledger, order_ids: Sequence[str], client: OrderReader) -> list[FoundOrder]:
    """Fetch listed orders that no batch accounts for, and return those of this campaign.

    :raises LedgerBehindError: if some of them do not show which rows they pay.
    """
    found: list[FoundOrder] = []
    unreadable: list[str] = []
    for first in range(0, len(order_ids), _AT_ONCE):
        for order in await asyncio.gather(*map(client.get_order, order_ids[first : first + _AT_ONCE])):
            if order.status == OrderStatus.FAILED or _is_of_another_kind(order, ledger):
                continue
            read = _read(order, ledger)
            if read is None:
                unreadable.append(order.id)
            else:
                found.append(read)
    if unreadable:
        raise LedgerBehindError(campaign=ledger.campaign, orders=len(unreadable), order_id=unreadable[0])
    return found


def _is_of_another_kind(order: Order, ledger: Ledger) -> bool:
    """Return whether an order shows that it is none of this campaign's, although its description looks like it."""
    metadata = order.metadata or {}
    campaign = metadata.get(f"{METADATA_PREFIX}campaign")
    return f"{METADATA_PREFIX}identity" in metadata and campaign != ledger.campaign


def _read(order: Order, ledger: Ledger) -> FoundOrder | None:
    """Return which rows an order pays; ``None`` if it does not show them."""
    metadata = order.metadata or {}
    batch_id = metadata.get(f"{METADATA_PREFIX}batch")
    rows = digests.from_metadata(metadata)
    if batch_id is None or not rows:
        return None
    identity = OrderIdentity.from_campaign(ledger.environment, campaign=ledger.campaign, batch=batch_id)
    generation = identity.generation_in(order.description)
    if generation is None or not identity.owns(metadata):
        return None
    currency = (order.payment_method and order.payment_method.currency) or order.currency
    if currency is None or order.created_at is None:
        return None
    reference = identity.reference(generation).strip("[]")
    return FoundOrder(order.id, batch_id, reference, currency, order.created_at, rows)


def _report(ledger: Ledger, found: Sequence[FoundOrder], absorbed: Absorbed) -> None:
    if found:
        log.warning(
            "Campaign %r: Runa has %d order(s) that this ledger did not know. Is it another database, or an older "
            "copy? %d of its rows are paid by them and are not paid again.",
            ledger.campaign,
            len(found),
            absorbed.rows,
        )
    if absorbed.unknown:
        log.warning(
            "Campaign %r: %d recipient(s) that Runa has paid are not in this ledger. They are recognized when a row "
            "names them.",
            ledger.campaign,
            absorbed.unknown,
        )
