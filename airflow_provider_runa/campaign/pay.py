"""Pay a campaign: place the orders of its open batches, many at once.

``placement`` places the order of each batch under the batch's identity, with the ledger as its record store. If Runa
rejects an order and nobody was paid, the batch is closed, or split in two to isolate the rows that Runa rejects.
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

#: How long to wait before checking again the batches that another run has taken, in seconds.
OTHERS_PAUSE = 10.0

#: How long to wait for batches that another run has taken: longer than the lease of a run that was killed.
_PATIENCE = LEASE + timedelta(seconds=60)

_POLICY = Policy()


@dataclass
class Paid:
    """The result of an attempt to pay a campaign's open batches.

    :param placed: number of orders that were placed or found.
    :param unplaced: for each order that was tried and is not known to be placed, the reason.
    :param rejected: for each order that Runa rejected and that paid nobody, the reason.
    """

    placed: int = 0
    unplaced: list[PlacementError] = field(default_factory=list)
    rejected: list[PlacementError] = field(default_factory=list)


@dataclass(frozen=True)
class BatchRecords:
    """Store the record of placing one batch's order in the ledger. A fenced attempt cannot save."""

    ledger: Ledger
    batch: Batch
    attempt: int
    clock: Clock

    async def load(self) -> Record | None:
        """Return the record, or ``None`` if there is none. Then nothing was sent."""
        return self.ledger.load_record(self.batch.id)

    async def save(self, record: Record) -> None:
        """Save the record.

        :raises FencedError: if another attempt has taken the batch.
        """
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
    :param owner: the run that pays. It waits for batches that another run has taken until their lease ends.
    :param client: Runa.
    :param clock: the current time.
    :param isolate_rejections: whether to split a rejected batch until the rows that Runa rejects are isolated.
    :param concurrency: number of orders in flight at once.
    :param policy: time limits of placing.
    :param progress: called after each order with the result so far and the number of batches in the queue.
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
        # Another run places the batches that it has taken. If it was killed, its lease on them ends.
        queue.extend(batch for batch in ledger.batches(BatchState.OPEN) if batch.id not in run.left)
        if queue and run.halted is None:
            waiting_since = waiting_since or clock.now()
            if clock.now() > waiting_since + _PATIENCE:
                break
            log.info("Another run has taken %d batch(es): checking again in %.0f s.", len(queue), OTHERS_PAUSE)
            await clock.sleep(OTHERS_PAUSE)
    return run.paid


@dataclass(kw_only=True)
class _Payer:
    """One attempt to pay. The parameters are those of :func:`pay`.

    :param queue: batches whose orders are still to be placed.
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
    queue: deque[Batch]
    paid: Paid = field(default_factory=Paid)
    left: set[str] = field(default_factory=set)
    halted: PlacementError | None = None

    async def place(self, batch: Batch) -> bool:
        """Take a batch and place its order; return whether this run could take it."""
        attempt = self.ledger.take(batch.id, self.owner, self.clock.now())
        if attempt is None:
            return False  # another run has it, or has placed it
        try:
            await self._place(batch, attempt)
        except FencedError:
            log.warning("Another attempt has taken batch %s and continues with its order.", batch.id)
            self.left.add(batch.id)  # otherwise the two attempts would take it from each other for ever
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
            self.ledger.reject(batch.id, attempt, error.happened)  # every key is spent: plan the rows again
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
