"""Paying: turns the open batches of a campaign into orders, many at once.

Each batch is placed by ``placement`` under an identity of its own, with the ledger as its record. A batch that is
refused and proven to have paid nobody is closed, or split in two to find the rows that Runa refuses.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from airflow_provider_runa.campaign.concurrency import CONCURRENCY, run_concurrently
from airflow_provider_runa.campaign.ledger import LEASE, Batch, BatchState, FencedError, Ledger
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    GenerationsExhaustedError,
    OrderFailedError,
    OrderHeldBackError,
    PlacementError,
    RejectedError,
)
from airflow_provider_runa.placement.place import Attempt, Policy, place
from airflow_provider_runa.placement.ports import Clock, OrderClient
from airflow_provider_runa.placement.record import Record

log = logging.getLogger(__name__)

#: Seconds between two looks at batches that another run has taken.
OTHERS_PAUSE = 10.0

#: How long batches that another run has taken are waited for: longer than one that was killed holds them.
_PATIENCE = LEASE + timedelta(seconds=60)

_POLICY = Policy()


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
    queue = deque(ledger.batches(BatchState.OPEN))
    run = _Payer(
        ledger=ledger,
        owner=owner,
        client=client,
        clock=clock,
        isolate_rejections=isolate_rejections,
        policy=policy,
        queue=queue,
    )
    waiting_since = None

    async def work() -> None:
        while queue and run.halted is None:
            if await run.place(queue.popleft()):
                progress(run.paid, len(queue))

    while queue and run.halted is None:
        await run_concurrently(work, concurrency)
        # What another run has taken it places, or its lease ends: it may have been killed.
        queue.extend(batch for batch in ledger.batches(BatchState.OPEN) if batch.id not in run.left)
        if queue and run.halted is None:
            waiting_since = waiting_since or clock.now()
            if clock.now() > waiting_since + _PATIENCE:
                break
            log.info("%d order(s) are taken by another run: looking again in %.0f s.", len(queue), OTHERS_PAUSE)
            await clock.sleep(OTHERS_PAUSE)
    return run.paid


@dataclass(kw_only=True)
class _Payer:
    """One attempt to pay. The parameters are those of :func:`pay`.

    :param queue: batches whose orders are to be placed.
    :param paid: how it went so far.
    :param left: ids of the batches that this attempt leaves open.
    :param halted: why no further order is sent: the next one would end the same.
    """

    ledger: Ledger
    owner: str
    client: OrderClient
    clock: Clock
    isolate_rejections: bool
    policy: Policy
    queue: deque[Batch]
    paid: Paid = field(default_factory=Paid)
    left: set[str] = field(default_factory=set)
    halted: PlacementError | None = None

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
            self.ledger.fail(batch.id, attempt, error.happened)
        except RejectedError as error:
            if isinstance(error, OrderHeldBackError) or not error.nobody_was_paid:
                self._leave(batch, attempt, error)
            elif self.isolate_rejections and len(order.items) > 1:
                self.queue.extend(self.ledger.split(batch, attempt, error.happened, self.clock.now()))
            else:
                self.ledger.reject(batch.id, attempt, error.happened)
                self.paid.rejected.append(error)
        except GenerationsExhaustedError as error:
            self.ledger.reject(batch.id, attempt, error.happened)  # every key is spent: plan the rows anew
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
        if isinstance(error, OrderHeldBackError | AccessRejectedError):
            self.halted = self.halted or error
