"""Pay a campaign: place the orders of the batches that a run has checked, many at once.

``placement`` places the order of each batch under the batch's identity, with the ledger as its record store. If Runa
rejects an order and nobody was paid, the batch is closed, or split in two to isolate the rows that Runa rejects. If a
batch's key is spent without having paid anybody, its rows move to a new batch, which has another key.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from airflow_provider_runa.api.models import NewOrder, Order
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.concurrency import CONCURRENCY, Offload, run_concurrently
from airflow_provider_runa.campaign.ledger import LEASE, FencedError, Ledger
from airflow_provider_runa.campaign.tables import BatchState
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    KeySpentError,
    NothingSentError,
    OrderFailedError,
    OrderHeldBackError,
    PlacementError,
    RejectedError,
)
from airflow_provider_runa.placement.place import Attempt, Policy, place
from airflow_provider_runa.placement.ports import Clock, OrderClient
from airflow_provider_runa.placement.record import Record

log = logging.getLogger(__name__)

#: How long to wait before checking again the batches that another run has taken, in seconds.
OTHERS_PAUSE = 10.0

#: How long to wait for batches that another run has taken: longer than the lease of a run that was killed.
_PATIENCE = LEASE + timedelta(seconds=60)

#: How old a lease may be before it is renewed.
_RENEW_AFTER = timedelta(seconds=30)

_POLICY = Policy()


@dataclass
class Paid:
    """The result of an attempt to pay a campaign's batches.

    :param placed: number of orders that were placed or found.
    :param in_flight: number of orders that are being placed now.
    :param open: number of chosen batches whose order is not placed, or not known to be.
    :param unplaced: for each order that was tried and is not known to be placed, the reason.
    :param rejected: for each order that Runa rejected and that paid nobody, the reason.
    """

    placed: int = 0
    in_flight: int = 0
    open: int = 0
    unplaced: list[PlacementError] = field(default_factory=list)
    rejected: list[PlacementError] = field(default_factory=list)


async def pay(
    ledger: Ledger,
    *,
    batches: Sequence[Batch],
    owner: str,
    client: OrderClient,
    clock: Clock,
    isolate_rejections: bool = False,
    concurrency: int = CONCURRENCY,
    policy: Policy = _POLICY,
    progress: Callable[[Paid, int], None] = lambda paid, left: None,
    offload: Offload = asyncio.to_thread,
) -> Paid:
    """Place the orders of batches, and of no others.

    :param ledger: the ledger of the campaign.
    :param batches: the batches that the run has checked.
    :param owner: the run that pays. It waits for batches that another run has taken until their lease ends.
    :param client: Runa.
    :param clock: the current time.
    :param isolate_rejections: whether to split a rejected batch until the rows that Runa rejects are isolated.
    :param concurrency: number of orders in flight at once.
    :param policy: time limits of placing.
    :param progress: called before and after each order with the result so far and the number of batches in the queue.
    :param offload: see :data:`~.concurrency.Offload`.
    """
    payer = _Payer(
        ledger=ledger,
        owner=owner,
        client=client,
        clock=clock,
        isolate_rejections=isolate_rejections,
        policy=policy,
        offload=offload,
        queue=deque(batches),
        chosen={batch.id for batch in batches},
    )
    waiting_since = None

    async def work() -> None:
        while payer.queue and payer.halted is None:
            batch = payer.queue.popleft()
            payer.paid.in_flight += 1
            progress(payer.paid, len(payer.queue))
            try:
                await payer.place(batch)
            finally:
                payer.paid.in_flight -= 1
            progress(payer.paid, len(payer.queue))

    while payer.queue and payer.halted is None:
        await run_concurrently(work, concurrency)
        # Another run places the batches that it has taken. If it was killed, its lease on them ends.
        payer.queue.extend(batch for batch in await payer.chosen_and_open() if batch.id not in payer.left)
        if payer.queue and payer.halted is None:
            waiting_since = waiting_since or clock.now()
            if clock.now() > waiting_since + _PATIENCE:
                break
            log.info(
                "Another run has taken %d batch(es), until %s if it was killed: checking again in %.0f s.",
                len(payer.queue),
                f"{await payer.taken_until():%Y-%m-%d %H:%M:%S} UTC",
                OTHERS_PAUSE,
            )
            await clock.sleep(OTHERS_PAUSE)
    payer.paid.open = len(await payer.chosen_and_open())
    return payer.paid


@dataclass(kw_only=True)
class _Payer:
    """One attempt to pay. Parameters that are not listed here are those of :func:`pay`.

    :param queue: batches whose orders are still to be placed.
    :param chosen: ids of the batches that the run may pay: those that it has checked, and what became of them.
    :param paid: the result so far.
    :param left: ids of the batches that this attempt leaves open.
    :param halted: why no further order is sent: all of them would end with this error.
    """

    ledger: Ledger
    owner: str
    client: OrderClient
    clock: Clock
    isolate_rejections: bool
    policy: Policy
    offload: Offload
    queue: deque[Batch]
    chosen: set[str]
    paid: Paid = field(default_factory=Paid)
    left: set[str] = field(default_factory=set)
    halted: PlacementError | None = None

    async def chosen_and_open(self) -> list[Batch]:
        """Return the chosen batches that are open."""
        batches = await self.offload(self.ledger.batches, BatchState.OPEN)
        return [batch for batch in batches if batch.id in self.chosen]

    async def taken_until(self) -> datetime:
        """Return when the last lease of another run on a batch in the queue ends."""
        until = await self.offload(self.ledger.taken_until, [batch.id for batch in self.queue])
        return until or self.clock.now()  # it has just finished with them

    async def place(self, batch: Batch) -> None:
        """Take a batch and place its order, unless another run has the batch."""
        attempt = await self.offload(self.ledger.take, batch.id, self.owner, self.clock.now())
        if attempt is None:
            return  # another run has it, or has placed it
        try:
            await self._place(batch, attempt)
        except FencedError:
            log.warning("Another attempt has taken batch %s and continues with its order.", batch.id)
            self.left.add(batch.id)  # otherwise the two attempts would take it from each other for ever

    async def _place(self, batch: Batch, attempt: int) -> None:
        order = await self.offload(self.ledger.order, batch)
        lease = _Lease(self.ledger, batch, attempt, self.clock, self.offload)
        try:
            placement = await place(
                order,
                await self.offload(self.ledger.identity_with_rows, batch),
                Attempt(attempt, batch.planned_at, exclusive=True),
                execution_mode="async",
                client=_LeasedClient(self.client, lease),
                records=BatchRecords(lease),
                clock=_LeasedClock(self.clock, lease),
                policy=self.policy,
            )
        except OrderFailedError as error:
            await self.offload(self.ledger.fail, batch.id, attempt, error.happened)
        except KeySpentError as error:
            await self._replace(batch, attempt, error)
        except RejectedError as error:
            await self._after_rejection(batch, attempt, error, items=len(order.items))
        except PlacementError as error:
            await self._leave(batch, attempt, error)
        else:
            reference = placement.reference.strip("[]")
            await self.offload(
                self.ledger.mark_placed, batch.id, attempt, order_id=placement.order.id, reference=reference
            )
            self.paid.placed += 1

    async def _after_rejection(self, batch: Batch, attempt: int, error: RejectedError, *, items: int) -> None:
        if isinstance(error, OrderHeldBackError) or not error.nobody_was_paid:
            await self._leave(batch, attempt, error)
        elif self.isolate_rejections and items > 1:
            await self._replace(batch, attempt, error, parts=2)
        else:
            await self.offload(self.ledger.reject, batch.id, attempt, error.happened)
            self.paid.rejected.append(error)

    async def _replace(self, batch: Batch, attempt: int, error: PlacementError, *, parts: int = 1) -> None:
        """Move the rows of a batch that paid nobody to new batches, and place those."""
        new = await self.offload(self.ledger.replace, batch, attempt, error.happened, self.clock.now(), parts=parts)
        self.chosen.update(one.id for one in new)
        self.queue.extend(new)

    async def _leave(self, batch: Batch, attempt: int, error: PlacementError) -> None:
        """Leave the batch open for the next attempt."""
        self.left.add(batch.id)
        await self.offload(self.ledger.note_error, batch.id, attempt, error.happened)
        self.paid.unplaced.append(error)
        if isinstance(error, OrderHeldBackError | AccessRejectedError | NothingSentError):
            self.halted = self.halted or error


class _Lease:
    """Keeps a batch for the attempt that works on it, for as long as it does.

    :param ledger: the ledger of the campaign.
    :param batch: the batch.
    :param attempt: the number of the attempt.
    :param clock: the current time.
    :param offload: see :data:`~.concurrency.Offload`.
    """

    def __init__(self, ledger: Ledger, batch: Batch, attempt: int, clock: Clock, offload: Offload) -> None:
        self.ledger = ledger
        self.batch = batch
        self.attempt = attempt
        self.clock = clock
        self.offload = offload
        self.renewed: datetime = clock.now()

    async def renew(self) -> None:
        """Renew the lease if it is due.

        :raises FencedError: if another attempt has taken the batch.
        """
        now = self.clock.now()
        if now - self.renewed >= _RENEW_AFTER:
            await self.offload(self.ledger.renew, self.batch.id, self.attempt, now)
            self.renewed = now


@dataclass(frozen=True)
class BatchRecords:
    """Stores the record of placing one batch's order in the ledger. A fenced attempt cannot save."""

    lease: _Lease

    async def load(self) -> Record | None:
        """Return the record, or ``None`` if there is none. Then nothing was sent."""
        record: Record | None = await self.lease.offload(self.lease.ledger.load_record, self.lease.batch.id)
        return record

    async def save(self, record: Record) -> None:
        """Save the record.

        :raises FencedError: if another attempt has taken the batch.
        """
        lease = self.lease
        now = lease.clock.now()
        await lease.offload(lease.ledger.save_record, lease.batch.id, lease.attempt, record, now)
        lease.renewed = now


@dataclass(frozen=True)
class _LeasedClock:
    """A clock that renews the lease while it sleeps."""

    clock: Clock
    lease: _Lease

    def now(self) -> datetime:
        return self.clock.now()

    async def sleep(self, seconds: float) -> None:
        while seconds > 0:
            step = min(seconds, _RENEW_AFTER.total_seconds())
            await self.clock.sleep(step)
            seconds -= step
            await self.lease.renew()


@dataclass(frozen=True)
class _LeasedClient:
    """A client that renews the lease before it reads. Sending is different: the record is written just before it."""

    client: OrderClient
    lease: _Lease

    def reserve_turn(self) -> float:
        return self.client.reserve_turn()

    async def create_order(self, order: NewOrder, *, idempotency_key: str, execution_mode: str) -> Order:
        return await self.client.create_order(order, idempotency_key=idempotency_key, execution_mode=execution_mode)

    async def get_order(self, order_id: str) -> Order:
        await self.lease.renew()
        return await self.client.get_order(order_id)

    async def list_orders(self) -> AsyncIterator[Order]:
        async for order in self.client.list_orders():
            await self.lease.renew()
            yield order
