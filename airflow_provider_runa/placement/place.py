"""The algorithm: place an order exactly once.

One generation is tried after the other, each under its own idempotency key, and the record is written before anything
is sent. The next key is used only when the one before is **spent**: Runa holds an answer under it, and that answer
paid nobody. So whoever comes later, knowing nothing, can begin with the first key: each spent one repeats its answer,
the one that paid leads to its order, and nobody is paid under two. That holds for 30 days from the first request on;
later, the order list is searched first. What an answer proves:

===========================================  ================  =======================================================
answer to ``POST /order``                    proves            then
===========================================  ================  =======================================================
200, 202                                     placed            record the id; if that order FAILED, the key is spent
102, 400 ``idempotency_in_progress``         nothing           wait, same key
429, no or a broken answer, 5xx              nothing           wait, same key; when the budget is spent, search
400 ``idempotency_validation_error``         Runa holds an     search; found: compare the payment; absent: the key is
                                             answer            spent
4xx, to a request that can be the first      nobody was paid   fail; the next attempt sends it again
under its key                                by this request
4xx, not in Runa's words                     nothing           search; absent: the next attempt asks again
other 4xx; a 5xx under a key that an         nothing           send a marked copy under the same key
earlier attempt may have used
===========================================  ================  =======================================================

A 4xx or 5xx that comes back may be a stored answer, which will be repeated for 30 days, or one that was given before
Runa looked at the key: then the key is still good, and may even have placed an order whose answer was lost. The two
look alike. A **marked copy** tells them apart: the same order with one more pair of metadata. If Runa holds an answer
under the key, the copy is "another body" and is refused as such; if it does not, the copy is placed, which is what was
wanted.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import random
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from airflow_provider_runa.api.errors import (
    RunaApiError,
    RunaBadRequestError,
    RunaError,
    RunaForbiddenError,
    RunaIdempotencyMismatchError,
    RunaInsecureProtocolError,
    RunaInsufficientFundsError,
    RunaInvalidVersionError,
    RunaNotFoundError,
    RunaOrderingRestrictedError,
    RunaPaymentMethodUnavailableError,
    RunaServerError,
    RunaValidationError,
)
from airflow_provider_runa.api.models import NewOrder, Order, OrderStatus
from airflow_provider_runa.api.retry import is_outcome_unknown, pause_before_retry
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    GenerationsExhaustedError,
    InconclusiveSearchError,
    OrderFailedError,
    OrderHeldBackError,
    OrderRejectedError,
    OutcomeUnknownError,
    PaymentChangedError,
    RecordUnavailableError,
    StatusUnreadableError,
    WrongAccountError,
)
from airflow_provider_runa.placement.identity import LAST_GENERATION, OrderIdentity, unmarked
from airflow_provider_runa.placement.payment import differences, fingerprint
from airflow_provider_runa.placement.ports import Clock, OrderClient, RecordStore
from airflow_provider_runa.placement.record import Record
from airflow_provider_runa.placement.search import CLOCK_SLACK, SearchResult, search

log = logging.getLogger(__name__)

#: How long a key may be relied upon: Runa keeps keys for 30 days, and one of them is the margin.
KEY_LIFETIME = timedelta(days=29)

#: How long ago another run may have used an ``order_key``, if the user does not say: what Runa's memory of keys
#: covers, less a day for the retries of this run.
DEFAULT_LOOK_BACK = timedelta(days=28)

#: No key that Runa still knows is older than this.
KEY_MEMORY = timedelta(days=31)

#: After this time an attempt sends nothing more: it looked at the age of its keys when it began.
LONGEST_ATTEMPT = timedelta(hours=12)

#: Answers that time or a top-up can heal, so that a retry makes sense.
RECOVERABLE_REJECTIONS = (RunaInsufficientFundsError, RunaOrderingRestrictedError, RunaPaymentMethodUnavailableError)

#: Answers about the order, which Runa replays under its key. Any other 4xx is given at the door.
ORDER_REJECTIONS = (RunaBadRequestError, RunaForbiddenError, RunaValidationError)
REJECTED_BEFORE_PROCESSING = (RunaInsecureProtocolError, RunaInvalidVersionError)


@dataclass(frozen=True)
class Attempt:
    """Which attempt this is.

    :param number: 1 for the first. It never starts again as long as the identity lives (Airflow's ``try_number``).
    :param began_after: no attempt of this task can have begun earlier (UTC), e.g. the run's ``run_after``.
    :param look_back: how long ago another run may have sent its first request for the same ``order_key``, a refused
        one included. Up to 29 days Runa's own memory covers it; beyond, the order list is searched before the first
        request. Default: 28 days.
    :param exclusive: whether the record is never lost, and no earlier attempt can write it any more. Then no record
        proves that nothing was sent; and a refusal proves that nobody was, and will be, paid by this identity, if every
        key that was sent before is spent (see :attr:`~.RejectedError.nobody_was_paid`).
    """

    number: int
    began_after: datetime
    look_back: timedelta | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class Policy:
    """How long things may take, in seconds.

    :param budget: how long an attempt goes on sending while the outcome is unknown.
    :param in_flight: how long a request whose sender is gone, or gave up, may still be on its way or at work.
    :param settling: how long the order of a request that was answered 5xx may be missing from the list.
    :param patience: how long a search waits for orders that do not show what they are.
    :param search_pause: how long it waits between two looks at them.
    """

    budget: float = 120.0
    in_flight: float = 120.0
    settling: float = 600.0
    patience: float = 300.0
    search_pause: float = 5.0

    @property
    def quiet(self) -> float:
        """How long after an attempt began one that Airflow gave up on may still place an order."""
        return self.budget + self.in_flight


@dataclass(frozen=True)
class Placement:
    """An order that was placed.

    :param order: the order as Runa showed it last: PROCESSING or COMPLETED.
    :param generation: the generation it was placed in.
    :param reference: the marker in its description.
    :param adopted: whether this attempt found it instead of sending it.
    """

    order: Order
    generation: int
    reference: str
    adopted: bool


async def place(
    order: NewOrder,
    identity: OrderIdentity,
    attempt: Attempt,
    *,
    execution_mode: str,
    client: OrderClient,
    records: RecordStore,
    clock: Clock,
    policy: Policy = Policy(),
    rng: random.Random | None = None,
) -> Placement:
    """Place the order of an identity, or adopt the one that an earlier attempt placed.

    :param order: the user's order, without reference and provenance.
    :param identity: what makes two attempts the same order.
    :param attempt: which attempt this is.
    :param execution_mode: ``"async"`` or ``"sync"``.
    :param client: Runa.
    :param records: where the record of the identity is kept.
    :param clock: the time.
    :param policy: how long things may take.
    :param rng: randomness of the pauses between requests.
    :raises InvalidOrderError: if the order leaves no room for what is added to it; nothing was sent.
    :raises PlacementError: if the attempt ends without an order; see ``errors``.
    """
    rng = rng or random.Random()  # noqa: S311 - jitter is no secret
    placer = _Placer(
        order=order,
        identity=identity,
        attempt=attempt,
        execution_mode=execution_mode,
        client=client,
        records=records,
        clock=clock,
        policy=policy,
        rng=rng,
    )
    return await placer.run()


class _OutcomeStillUnknownError(Exception):
    """The budget is spent and the outcome still unknown; ``error`` is the last answer."""

    def __init__(self, error: RunaError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(kw_only=True)
class _Placer:
    """One attempt to place an order. The parameters up to ``rng`` are those of :func:`place`.

    :param payment: fingerprint of the payment.
    :param started: when this attempt began.
    :param earlier: the record that earlier attempts left, as it was when this attempt began.
    :param all_accounted: whether every known request for this identity got a usable answer.
    :param searched_back_to: how far back a search goes at least. It must find every order whose key Runa still knows.
    """

    order: NewOrder
    identity: OrderIdentity
    attempt: Attempt
    execution_mode: str
    client: OrderClient
    records: RecordStore
    clock: Clock
    policy: Policy
    rng: random.Random
    payment: str = field(init=False)
    started: datetime = field(init=False)
    earlier: Record | None = field(init=False, default=None)
    all_accounted: bool = field(init=False, default=False)
    searched_back_to: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.payment = fingerprint(self.identity.environment, self.order)
        self.started = self.clock.now()
        self.searched_back_to = self.started - KEY_MEMORY if self.identity.survives_runs else self.started

    async def run(self) -> Placement:
        """Begin where the last attempt stopped, then try one generation after the other."""
        self.identity.seal(self.order, LAST_GENERATION, marked=True)  # whatever is wrong with the order shows here
        self.earlier = await self._load()
        if self.attempt.exclusive and self.earlier is None:
            self.attempt = replace(self.attempt, number=1)  # nothing was sent by the attempts before
        self.all_accounted = self._is_first and not self.identity.survives_runs
        reached = await self._resume()
        while not isinstance(reached, Placement):
            if reached > LAST_GENERATION:
                raise GenerationsExhaustedError(count=LAST_GENERATION + 1)
            reached = await self._try(reached)
        return reached

    @property
    def _is_first(self) -> bool:
        """Whether no earlier attempt of this task is known."""
        return self.earlier is None and self.attempt.number == 1

    # Each step below returns the placement, or the generation to try next.

    async def _resume(self) -> Placement | int:
        """Begin: with the order of an earlier attempt, or with its generation."""
        record = self.earlier
        generation = record.generation if record is not None else 0
        if record is not None and record.order_id is not None:
            if placement := await self._resume_order(record, record.order_id):
                return placement
            generation += 1
        if self.started - self._not_before() > KEY_LIFETIME:
            # Runa may have forgotten a key, and would place a second order under it. If there is no order, begin with
            # the first key, as every other attempt would that comes now: whatever it knows, it uses the same key.
            quiet = 0.0 if self._is_first else self.policy.quiet
            return await self._search(0, "it may be older than Runa's memory of keys", quiet)
        return generation

    async def _resume_order(self, record: Record, order_id: str) -> Placement | None:
        """Adopt the order that is on record, unless it FAILED (``None``), is unknown here or pays something else."""
        try:
            order = await self.client.get_order(order_id)
        except RunaNotFoundError:
            raise WrongAccountError(order_id=order_id) from None
        except RunaError as error:
            raise StatusUnreadableError(order_id=order_id, answer=error) from None
        if order.status == OrderStatus.FAILED:
            log.warning("Order %s ended FAILED and paid nobody: placing it again as a new order.", order_id)
            return None
        if record.payment != self.payment:
            changed = differences(self.order, order) if order.items is not None else []
            raise PaymentChangedError(order_id=order_id, fields="; ".join(changed) or "its items or its currency")
        return self._adopt(order, record.generation, record.body)

    # -- one generation: each row of the table at the head of this file is one line of _try ---------------------------

    async def _try(self, generation: int, *, marked: bool = False, quiet: float | None = None) -> Placement | int:
        """Send one generation, and act on what the answer proves.

        :param generation: the generation.
        :param marked: send a marked copy, to learn whether Runa holds an answer under this key.
        :param quiet: how long an order that used the key may be missing from the list, in seconds. Default: the
            policy's settling time, because the stored answer may be a 5xx.
        """
        record = await self._write_intent(generation)
        try:
            order = await self._send(record, marked=marked)
        except _OutcomeStillUnknownError as unknown:
            return await self._resolve(generation, unknown.error, marked=marked)
        except RunaIdempotencyMismatchError as error:
            return await self._after_used_key(generation, error, self.policy.settling if quiet is None else quiet)
        except RunaApiError as error:
            if error.type is None:
                return await self._after_foreign_answer(generation, error, marked=marked)
            if self._may_be_repeated(generation) and not marked:
                return await self._send_marked_copy(generation, error)
            return await self._after_rejection(error, marked=marked)
        return await self._after_accepted(record, order)

    async def _after_accepted(self, record: Record, order: Order) -> Placement | int:
        """Save the order's id. An order that FAILED paid nobody: its key is spent."""
        generation = record.generation
        await self._save_result(replace(record, order_id=order.id))
        if not self._is_fresh(generation):
            order = await self._refresh(order)
        if order.status != OrderStatus.FAILED:
            return Placement(order, generation, self.identity.reference(generation), adopted=False)
        placed_before = order.created_at is not None and order.created_at < self.started - CLOCK_SLACK
        if not (self._may_be_repeated(generation) or placed_before):
            raise OrderFailedError(order_id=order.id)
        log.warning("Order %s ended FAILED and paid nobody: placing it again as a new order.", order.id)
        return generation + 1

    async def _after_used_key(self, generation: int, error: RunaError, quiet: float) -> Placement | int:
        """Runa holds an answer under this key. Find its order, or prove that there is none: then the key is spent."""
        self.searched_back_to = self.started - KEY_MEMORY
        reached = await self._search(generation + 1, f"its key was used before: {error}", quiet)
        self.all_accounted = self.attempt.exclusive  # a request that is still under way gets the stored answer
        return reached

    async def _after_foreign_answer(self, generation: int, error: RunaApiError, *, marked: bool) -> Placement | int:
        """Not an answer of Runa's: a gateway blocked the request, or only the answer to it."""
        self.all_accounted = False
        return await self._resolve(generation, error, marked=marked)

    async def _send_marked_copy(self, generation: int, error: RunaError) -> Placement | int:
        """The rejection may be a stored answer. A marked copy shows whether it is."""
        log.warning("Rejected (%s); sending a marked copy, which shows whether that is an old answer.", error)
        return await self._try(generation, marked=True, quiet=self.policy.in_flight)

    async def _after_rejection(self, error: RunaApiError, *, marked: bool) -> Placement:
        """Runa rejected this request, which paid nobody. Raise, unless an earlier request has placed the order."""
        self._raise_if_rejected_before_processing(error)
        if self.attempt.exclusive and not self.all_accounted:
            # An earlier request whose answer was lost may have placed the order. If Runa rejects the marked copy as
            # well, it does so before it looks at the key, and no answer will ever show it: only the list does.
            result = await self._look_again(self.policy.settling if marked else 0.0)
            self.all_accounted = marked and result.absent
            if result.order is not None:
                return await self._adopt_found(result.order, result.generation)
        kind = OrderHeldBackError if isinstance(error, RECOVERABLE_REJECTIONS) else OrderRejectedError
        raise kind(answer=error, earlier=self._earlier_requests(), accounted=self.all_accounted) from None

    def _is_fresh(self, generation: int) -> bool:
        """Whether an order that was accepted now was placed by the one request there was, so that it is as it says."""
        return self.attempt.exclusive and self.all_accounted and generation == 0

    def _may_be_repeated(self, generation: int) -> bool:
        """Whether an earlier attempt can have sent a generation, so that an answer may be the one it got.

        Each attempt uses at most one new generation, so that without a record their number is the limit.
        """
        return generation <= (self.earlier.generation if self.earlier is not None else self.attempt.number - 2)

    async def _send(self, record: Record, *, marked: bool) -> Order:
        """Send under the record's key until the answer is known or the budget is spent."""
        sealed = self.identity.seal(self.order, record.generation, marked=marked)
        deadline = self.clock.now() + timedelta(seconds=self.policy.budget)
        for tries in itertools.count(1):
            if self.clock.now() - self.started > LONGEST_ATTEMPT:
                raise OutcomeUnknownError(answer="the attempt lasts too long", reference=self._any_reference())
            try:
                return await self.client.create_order(
                    sealed, idempotency_key=record.idempotency_key, execution_mode=self.execution_mode
                )
            except RunaError as error:
                if not is_outcome_unknown(error):
                    raise
                self.all_accounted = False
                pause = pause_before_retry(tries, error, self.rng)
                if self.clock.now() + timedelta(seconds=pause) > deadline:
                    raise _OutcomeStillUnknownError(error) from None
                log.warning("Outcome unknown (%s): asking again with the same key in %.0f s.", error, pause)
            await self.clock.sleep(pause)
        raise AssertionError("unreachable")

    async def _refresh(self, order: Order) -> Order:
        """Return the order as it is now: the answer to a POST may be the replay of one that has FAILED since."""
        if order.status == OrderStatus.COMPLETED:
            return order
        try:
            return await self.client.get_order(order.id)
        except RunaNotFoundError:
            return order  # accepted a moment ago
        except RunaError as error:
            raise StatusUnreadableError(order_id=order.id, answer=error) from None

    async def _resolve(self, generation: int, error: RunaError, *, marked: bool) -> Placement | int:
        """The budget is spent: search, and if Runa itself keeps failing under this key, see whether it is spent."""
        result = await self._look()
        if result.order is not None:
            return await self._adopt_found(result.order, result.generation)
        if isinstance(error, RunaServerError) and not marked and self._may_be_repeated(generation):
            log.warning("Still answered %s; sending a marked copy, which tells whether that is an old answer.", error)
            return await self._try(generation, marked=True, quiet=self.policy.settling)
        raise OutcomeUnknownError(answer=error, reference=self._any_reference())

    # -- searching --------------------------------------------------------------------------------------------------

    async def _search(self, following: int, reason: str, quiet: float) -> Placement | int:
        """Find the order, or prove that there is none, and return the generation to send then.

        :param following: that generation, unless one that ended FAILED is as high.
        :param reason: why it is searched, for the log and the error.
        :param quiet: how long an order that is there may still be missing from the list, in seconds.
        """
        log.warning("Searching the order list for %s: %s.", self._any_reference(), reason)
        result = await self._look_again(quiet)
        if result.order is not None:
            return await self._adopt_found(result.order, result.generation)
        if not result.absent:
            raise InconclusiveSearchError(reason=reason, hidden=len(result.hidden), reference=self._any_reference())
        return max({following - 1} | result.failed) + 1

    async def _look_again(self, quiet: float) -> SearchResult:
        """Look, and if there is nothing once more.

        :param quiet: how long an order that is there may still be missing from the list, in seconds; 0: look once.
        """
        result = await self._look()
        if result.absent and quiet > 0:
            log.warning("Not found; looking again in %.0f s, when an order under way must show.", quiet)
            await self.clock.sleep(quiet)
            result = await self._look()
        return result

    async def _look(self) -> SearchResult:
        try:
            return await search(
                self.identity,
                since=min(self._not_before(), self.searched_back_to),
                client=self.client,
                clock=self.clock,
                patience=self.policy.patience,
                pause=self.policy.search_pause,
            )
        except RunaError as error:
            self._raise_if_rejected_before_processing(error)
            raise OutcomeUnknownError(answer=error, reference=self._any_reference()) from None

    def _raise_if_rejected_before_processing(self, error: RunaError) -> None:
        """Raise if Runa refused a request before it looked at what it is about."""
        about_the_order = isinstance(error, ORDER_REJECTIONS) and not isinstance(error, REJECTED_BEFORE_PROCESSING)
        if isinstance(error, RunaApiError) and not is_outcome_unknown(error) and not about_the_order:
            raise AccessRejectedError(answer=error, earlier=self._earlier_requests()) from None

    def _not_before(self) -> datetime:
        """Return the moment before which nobody can have placed this order."""
        origin = self.earlier.first_sent if self.earlier else self._no_attempt_before()
        if self.identity.survives_runs:
            origin -= DEFAULT_LOOK_BACK if self.attempt.look_back is None else self.attempt.look_back
        return origin

    def _no_attempt_before(self) -> datetime:
        return self.started if self.attempt.number == 1 else min(self.attempt.began_after, self.started)

    # -- adopting ---------------------------------------------------------------------------------------------------

    async def _adopt_found(self, order: Order, generation: int) -> Placement:
        """Adopt an order that a search has found, if it pays what this attempt would pay."""
        if changed := differences(self.order, order):
            raise PaymentChangedError(order_id=order.id, fields="; ".join(changed))
        await self._save_result(replace(self._record(generation), order_id=order.id))
        return self._adopt(order, generation, None)

    def _adopt(self, order: Order, generation: int, body: str | None) -> Placement:
        log.info("Order %s was placed earlier and is %s: nothing is sent.", order.id, order.status)
        sealed = self.identity.seal(self.order, generation)
        unlike = order.items is not None and (order.description, unmarked(order.metadata)) != (
            sealed.description,
            sealed.metadata,
        )
        if body not in (None, _hash(sealed)) or unlike:
            log.warning("Its description or metadata differ from this task's; it keeps the ones it has.")
        return Placement(order, generation, self.identity.reference(generation), adopted=True)

    # -- the record -------------------------------------------------------------------------------------------------

    async def _load(self) -> Record | None:
        try:
            return await self.records.load()
        except Exception as error:
            raise RecordUnavailableError(verb="read", reason=type(error).__name__) from error

    async def _write_intent(self, generation: int) -> Record:
        """Write down what is about to be sent. Nothing is sent if this fails."""
        record = self._record(generation)
        try:
            await self.records.save(record)
        except Exception as error:
            raise RecordUnavailableError(verb="written", reason=type(error).__name__) from error
        return record

    async def _save_result(self, record: Record) -> None:
        """Write down what became known. If this fails the attempt goes on: the key leads to the same order again."""
        try:
            await self.records.save(record)
        except Exception as error:
            log.warning("The record of %s could not be written (%s).", self._any_reference(), type(error).__name__)

    def _record(self, generation: int) -> Record:
        """Build the record of a request that is sent now."""
        return Record(
            generation=generation,
            idempotency_key=self.identity.idempotency_key(generation),
            payment=self.payment,
            body=_hash(self.identity.seal(self.order, generation)),
            first_sent=self.earlier.first_sent if self.earlier is not None else self._no_attempt_before(),
        )

    def _any_reference(self) -> str:
        """Return what to search for in the portal: it stands in the reference of every generation."""
        return f"af-{self.identity.short_name}"

    def _earlier_requests(self) -> str:
        if self.all_accounted:
            return "no earlier request is known"
        return f"an earlier request may have, under reference {self._any_reference()}"


def _hash(order: NewOrder) -> str:
    return hashlib.sha256(order.body()).hexdigest()
