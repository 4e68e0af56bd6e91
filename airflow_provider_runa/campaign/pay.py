"""The open batches of a campaign into orders, many at once; and what became of the orders into the ledger.

Each batch is placed by ``placement`` under an identity of its own, with the ledger as its record. A batch that is
refused and proven to have paid nobody is closed, or split in two to find the rows that Runa refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.api.models import OrderStatus
from airflow_provider_runa.campaign.ledger import FAILED, LEASE, OPEN, PLACED, REJECTED, Batch, FencedError, Ledger
from airflow_provider_runa.placement.errors import (
    AccessRefusedError,
    GenerationsExhaustedError,
    OrderFailedError,
    OrderHeldBackError,
    PlacementError,
    RefusedError,
)
from airflow_provider_runa.placement.payment import counterparts
from airflow_provider_runa.placement.place import Attempt, Policy, place
from airflow_provider_runa.placement.ports import Clock, OrderClient
from airflow_provider_runa.placement.record import Record

log = logging.getLogger(__name__)

#: Orders that are under way at once. The client keeps to the account's orders per minute.
CONCURRENCY = 16

#: Seconds between two looks at batches that another run has taken.
OTHERS_PAUSE = 10.0

#: How long batches that another run has taken are waited for: longer than one that was killed holds them.
_PATIENCE = LEASE + timedelta(seconds=60)

_POLICY = Policy()

_SETTLED = (OrderStatus.COMPLETED, OrderStatus.FAILED)


@dataclass
class Paid:
    """How an attempt to pay a campaign's open batches ended.

    :param placed: orders that were placed, or found.
    :param unplaced: why orders that were tried are not placed, or not known to be.
    :param rejected: why orders were refused, which paid nobody.
    """

    placed: int = 0
    unplaced: list[PlacementError] = field(default_factory=list)
    rejected: list[PlacementError] = field(default_factory=list)


@dataclass(frozen=True)
class BatchRecords:
    """The record of placing one batch's order, in the ledger; fenced."""

    ledger: Ledger
    batch: Batch
    attempt: int
    clock: Clock

    async def load(self) -> Record | None:
        """Return the record, ``None`` if there is none: then nothing was sent."""
        return self.ledger.load_record(self.batch.id)

    async def save(self, record: Record) -> None:
        """Keep the record."""
        self.ledger.save_record(self.batch.id, self.attempt, record, self.clock.now())


async def pay(
    ledger: Ledger,
    *,
    owner: str,
    client: OrderClient,
    clock: Clock,
    isolate_rejections: bool = False,
    concurrency: int = CONCURRENCY,
    policy: Policy = _POLICY,
    progress: Callable[[Paid, int], None] = lambda paid, left: None,
) -> Paid:
    """Place the orders of all open batches.

    :param ledger: the ledger of the campaign.
    :param owner: the run that pays; a batch that another run has taken lately is left to that one, and waited for.
    :param client: Runa.
    :param clock: the time.
    :param isolate_rejections: split a refused batch until the rows are found that Runa refuses.
    :param concurrency: orders under way at once.
    :param policy: how long the steps of placing may take.
    :param progress: told after each order: what there is so far, and how many batches are left.
    """
    queue = deque(ledger.batches(OPEN))
    paying = _Paying(ledger, owner, client, clock, isolate_rejections, policy, queue)
    waiting_since = None

    async def work() -> None:
        while queue and paying.halted is None:
            if await paying.place(queue.popleft()):
                progress(paying.paid, len(queue))

    while queue and paying.halted is None:
        await _at_once(work, concurrency)
        # What another run has taken it places, or its lease ends: it may have been killed.
        queue.extend(batch for batch in ledger.batches(OPEN) if batch.id not in paying.left)
        if queue and paying.halted is None:
            waiting_since = waiting_since or clock.now()
            if clock.now() > waiting_since + _PATIENCE:
                break
            log.info("%d order(s) are taken by another run: looking again in %.0f s.", len(queue), OTHERS_PAUSE)
            await clock.sleep(OTHERS_PAUSE)
    return paying.paid


async def _at_once(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Do the same several times at once; raise the first error, which is the same for all."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except BaseExceptionGroup as several:  # a timeout of Airflow's is none of Exception's
        raise several.exceptions[0] from None


class _Paying:
    def __init__(
        self,
        ledger: Ledger,
        owner: str,
        client: OrderClient,
        clock: Clock,
        isolate_rejections: bool,
        policy: Policy,
        queue: deque[Batch],
    ) -> None:
        self.ledger = ledger
        self.owner = owner
        self.client = client
        self.clock = clock
        self.isolate_rejections = isolate_rejections
        self.policy = policy
        self.queue = queue
        self.paid = Paid()
        #: Batches that this attempt leaves open.
        self.left: set[str] = set()
        #: Why no further order is sent: the next one would end the same.
        self.halted: PlacementError | None = None

    async def place(self, batch: Batch) -> bool:
        """Place a batch's order; return whether it was this run's to place."""
        attempt = self.ledger.take(batch.id, self.owner, self.clock.now())
        if attempt is None:
            return False  # another run has it, or has placed it
        try:
            await self._place(batch, attempt)
        except FencedError:
            log.warning("Batch %s was taken over by another attempt, which goes on with its order.", batch.id)
            self.left.add(batch.id)  # or the two would take it from each other for ever
        return True

    async def _place(self, batch: Batch, attempt: int) -> None:
        order = self.ledger.order(batch)
        try:
            placement = await place(
                order,
                self.ledger.identity(batch.id),
                Attempt(attempt, batch.planned_at, exclusive=True),
                execution_mode="async",
                client=self.client,
                records=BatchRecords(self.ledger, batch, attempt, self.clock),
                clock=self.clock,
                policy=self.policy,
            )
        except OrderFailedError as error:
            self.ledger.reject(batch.id, attempt, FAILED, error.happened)
        except RefusedError as error:
            if isinstance(error, OrderHeldBackError) or not error.nobody_was_paid:
                self._leave(batch, attempt, error)
            elif self.isolate_rejections and len(order.items) > 1:
                self.queue.extend(self.ledger.split(batch, attempt, error.happened, self.clock.now()))
            else:
                self.ledger.reject(batch.id, attempt, REJECTED, error.happened)
                self.paid.rejected.append(error)
        except GenerationsExhaustedError as error:
            self.ledger.reject(batch.id, attempt, REJECTED, error.happened)  # every key is spent: plan the rows anew
            self.paid.rejected.append(error)
        except PlacementError as error:
            self._leave(batch, attempt, error)
        else:
            self.ledger.mark_placed(
                batch.id, attempt, order_id=placement.order.id, reference=placement.reference.strip("[]")
            )
            self.paid.placed += 1

    def _leave(self, batch: Batch, attempt: int, error: PlacementError) -> None:
        """Leave the batch open for the next attempt."""
        self.left.add(batch.id)
        self.ledger.note_error(batch.id, attempt, error.happened)
        self.paid.unplaced.append(error)
        if isinstance(error, OrderHeldBackError | AccessRefusedError):
            self.halted = self.halted or error


async def settle(
    ledger: Ledger,
    *,
    client: OrderClient,
    statuses: Callable[[Sequence[str]], Awaitable[Mapping[str, str]]],
    clock: Clock,
    keep_links: bool = False,
) -> list[str]:
    """Look once at the orders that are placed, and note those that are COMPLETED or FAILED.

    :param ledger: the ledger of the campaign.
    :param client: Runa.
    :param statuses: reads the status of many orders: id -> status.
    :param clock: the time.
    :param keep_links: store payout links in the ledger.
    :returns: ids of the orders that are still PROCESSING, or could not be read.
    :raises RunaError: if Runa cannot be read.
    """
    placed = {batch.order_id: batch for batch in ledger.batches(PLACED) if batch.order_id is not None}
    if not placed:
        return []
    found = await statuses(list(placed))
    queue = deque(found.items())
    unread: list[str] = []

    async def work() -> None:
        while queue:
            order_id, status = queue.popleft()
            batch = placed[order_id]
            try:
                if status in _SETTLED:
                    await _settle(ledger, batch, client, clock, keep_links=keep_links)
            except FencedError:
                continue  # another run has noted it already
            except RunaError as error:
                log.warning("Order %s is %s and could not be read in full: %s", order_id, status, error)
                unread.append(order_id)

    await _at_once(work, CONCURRENCY)
    return [order_id for order_id in placed if order_id in unread or found.get(order_id) not in _SETTLED]


async def _settle(ledger: Ledger, batch: Batch, client: OrderClient, clock: Clock, *, keep_links: bool) -> None:
    """Note what became of an order, as the order itself says: the list, which was read, may be ahead or wrong."""
    if batch.order_id is None:
        raise RunaError(f"batch {batch.id} has no order")
    placed = await client.get_order(batch.order_id)
    if placed.status == OrderStatus.FAILED:
        ledger.settle_failed(batch, OrderFailedError(order_id=placed.id).happened)
        return
    if placed.status != OrderStatus.COMPLETED:
        raise RunaError(f"fetched alone, it is {placed.status}")
    items = {}
    for position, item in counterparts(ledger.order(batch), placed).items():
        link = item.payout.url.get_secret_value() if keep_links and item.payout and item.payout.url else None
        items[position] = (item.id, link)
    ledger.settle_completed(batch, items, clock.now())
