"""The algorithm: place an order exactly once.

An attempt tries one generation after the other, each under its own idempotency key. It writes the record before it
sends anything. It uses the next key only when the one before is **spent**: Runa holds an answer under it, and that
answer paid nobody. So a later attempt without a record can start with the first key: each spent key repeats its answer,
the key that paid leads to its order, and nobody is paid under two keys. This holds for 30 days from the first request.
After that, an attempt searches the order list first. What an answer proves:

===========================================  ================  =======================================================
answer to ``POST /order``                    proves            then
===========================================  ================  =======================================================
200, 202                                     placed            record the id; if that order FAILED, the key is spent
102, 400 ``idempotency_in_progress``         nothing           wait, same key
429, no or a broken answer, 5xx              nothing           wait, same key; when the budget is used up, search
400 ``idempotency_validation_error``         Runa holds an     search; found: compare the payment; absent: the key is
                                             answer            spent
4xx, to a request that can be the first      nobody was paid   fail; the next attempt sends it again
under its key                                by this request
4xx without Runa's error type                nothing           search; absent: the next attempt sends it again
other 4xx; a 5xx under a key that an         nothing           send a marked copy under the same key
earlier attempt may have used
===========================================  ================  =======================================================

A 4xx or 5xx may be a stored answer, which Runa repeats for 30 days. Or Runa gave it before it looked at the key: then
the key is still good, and an earlier request may even have placed an order whose answer was lost. The two look alike. A
**marked copy** shows which one it is: the same order with one more pair of metadata. If Runa holds an answer under the
key, it rejects the copy as "another body". If it holds none, it places the copy, which is the wanted order.
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
    RunaUnreachableError,
    RunaValidationError,
)
from airflow_provider_runa.api.models import NewOrder, Order, OrderStatus
from airflow_provider_runa.api.retry import is_outcome_unknown, pause_before_retry
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    GenerationsExhaustedError,
    InconclusiveSearchError,
    KeySpentError,
    OrderFailedError,
    OrderHeldBackError,
    OrderRejectedError,
    OutcomeUnknownError,
    PaymentChangedError,
    PlacementError,
    RecordUnavailableError,
    RunaOutOfReachError,
    StatusUnreadableError,
    WrongAccountError,
)
from airflow_provider_runa.placement.identity import LAST_GENERATION, OrderIdentity, unmarked
from airflow_provider_runa.placement.payment import differences, fingerprint
from airflow_provider_runa.placement.ports import Clock, OrderClient, OvertakenError, RecordStore
from airflow_provider_runa.placement.record import Record
from airflow_provider_runa.placement.search import CLOCK_SLACK, SearchResult, search

log = logging.getLogger(__name__)

#: How long a key is relied upon: Runa keeps keys for 30 days, and one day is the margin.
KEY_LIFETIME = timedelta(days=29)

#: Default of ``look_back``, how long ago another run may have used an ``order_key``: what Runa's memory of keys
#: covers, less a day for the retries of this run.
DEFAULT_LOOK_BACK = timedelta(days=28)

#: Runa knows no key that is older than this.
KEY_MEMORY = timedelta(days=31)

#: How old a record may be when its request is sent.
INTENT_LIFETIME = timedelta(minutes=1)

#: An attempt sends nothing after this time, because it checked the age of its keys only when it began.
LONGEST_ATTEMPT = timedelta(hours=12)

#: Rejections that time or a top-up can fix, so that a retry makes sense.
RECOVERABLE_REJECTIONS = (RunaInsufficientFundsError, RunaOrderingRestrictedError, RunaPaymentMethodUnavailableError)

#: Rejections that may concern the order itself, which Runa then repeats under the key. Runa gives any other 4xx before
#: it processes the order.
ORDER_REJECTIONS = (RunaBadRequestError, RunaForbiddenError, RunaValidationError)

#: Rejections among them that Runa gives before it processes the order.
REJECTED_BEFORE_PROCESSING = (RunaInsecureProtocolError, RunaInvalidVersionError)


@dataclass(frozen=True)
class Attempt:
    """Which attempt this is.

    :param number: number of the attempt (Airflow's ``try_number``), from 1. It never starts again for an identity.
    :param began_after: no attempt of this task began before this time (UTC), e.g. the run's ``run_after``.
    :param look_back: how long ago another run may have sent its first request for the same ``order_key``, including a
        rejected one. Runa's memory of keys covers 29 days; for a longer time, the order list is searched before the
        first request. Default: 28 days.
    :param exclusive: whether the record is never lost, and no earlier attempt can write it any more. Then a missing
        record proves that nothing was sent. And if every key that was sent before is spent, a rejection proves that
        this identity has paid nobody and never will (see :attr:`~.RejectedError.nobody_was_paid`).
    """

    number: int
    began_after: datetime
    look_back: timedelta | None = None
    exclusive: bool = False


@dataclass(frozen=True)
class Policy:
    """Time limits, in seconds.

    :param budget: how long an attempt continues to send while the outcome is unknown.
    :param in_flight: how long a request may still reach Runa or be processed after its sender was killed or gave up.
    :param settling: how long the order of a request that was answered with a 5xx may be missing from the list.
    :param patience: how long a search waits for hidden orders.
    :param search_pause: how long it waits before it fetches hidden orders again.
    """

    budget: float = 120.0
    in_flight: float = 120.0
    settling: float = 600.0
    patience: float = 300.0
    search_pause: float = 5.0

    @property
    def quiet(self) -> float:
        """How long after this attempt began an earlier one, which Airflow gave up on, may still place an order."""
        return self.budget + self.in_flight


@dataclass(frozen=True)
class Placement:
    """An order that was placed.

    :param order: the order in its last known state: PROCESSING or COMPLETED.
    :param generation: generation of the order.
    :param reference: the marker in its description.
    :param adopted: whether this attempt found the order instead of sending it.
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
    """Place the order of an identity, or adopt the order that an earlier attempt placed.

    :param order: the user's order, without reference and provenance.
    :param identity: what makes two attempts the same order.
    :param attempt: which attempt this is.
    :param execution_mode: ``"async"`` or ``"sync"``.
    :param client: Runa.
    :param records: the store of the identity's record.
    :param clock: the current time.
    :param policy: time limits.
    :param rng: source of the jitter in pauses between requests.
    :returns: the order, PROCESSING or COMPLETED.
    :raises InvalidOrderError: if the order leaves no room for what is added to it. Nothing was sent.
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
    """The budget is used up and the outcome is still unknown.

    :param error: the last answer.
    """

    def __init__(self, error: RunaError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(kw_only=True)
class _Placer:
    """One attempt to place an order. The parameters up to ``rng`` are those of :func:`place`.

    :param payment: fingerprint of the payment.
    :param started: when this attempt began.
    :param earlier: the record of earlier attempts, as it was when this attempt began.
    :param all_accounted: whether every known request for this identity got a usable answer.
    :param searched_back_to: every search goes back at least to this time. It must find each order whose key Runa still
        knows.
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
        """Resume where the last attempt stopped, then try one generation after the other."""
        self.identity.seal(self.order, LAST_GENERATION, marked=True)  # raises if the order has no room, for any copy
        self.earlier = await self._load()
        if self.attempt.exclusive and self.earlier is None:
            self.attempt = replace(self.attempt, number=1)  # nothing was sent by the attempts before
        self.all_accounted = self._is_first and not self.identity.survives_runs
        reached = await self._resume()
        while not isinstance(reached, Placement):
            if reached > 0 and self.attempt.exclusive:
                raise KeySpentError(reference=self._search_term())
            if reached > LAST_GENERATION:
                raise GenerationsExhaustedError(count=LAST_GENERATION + 1)
            reached = await self._try(reached)
        return reached

    @property
    def _is_first(self) -> bool:
        """Whether no earlier attempt of this task is known."""
        return self.earlier is None and self.attempt.number == 1

    # -- steps: each returns the placement, or the generation to try next -------------------------------------------

    async def _resume(self) -> Placement | int:
        """Resume the order of an earlier attempt, or return the generation to begin with."""
        record = self.earlier
        generation = record.generation if record is not None else 0
        if record is not None and record.order_id is not None:
            if placement := await self._resume_order(record, record.order_id):
                return placement
            generation += 1
        if self.started - self._not_before() > KEY_LIFETIME:
            # Runa may have forgotten a key, and would place a second order under it. So search first. If there is no
            # order, begin with the first key: any other attempt that begins now does the same, and uses the same key.
            quiet = 0.0 if self._is_first else self.policy.quiet
            return await self._search(0, "it may be older than Runa's memory of keys", quiet)
        return generation

    async def _resume_order(self, record: Record, order_id: str) -> Placement | None:
        """Adopt the order that is on record.

        :returns: ``None`` if the order ended FAILED.
        :raises WrongAccountError: if this Runa account does not have the order.
        :raises PaymentChangedError: if it pays something else.
        :raises StatusUnreadableError: if it cannot be read.
        """
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

    # -- one generation ---------------------------------------------------------------------------------------------

    async def _try(self, generation: int, *, marked: bool = False, quiet: float | None = None) -> Placement | int:
        """Send one generation, and act on what the answer proves.

        The branches follow the rows of the table at the head of this file. Only the first row, an accepted order, comes
        last.

        :param generation: the generation.
        :param marked: whether to send a marked copy, which shows whether Runa holds an answer under this key.
        :param quiet: how long an order that used the key may be missing from the list, in seconds. Default: the
            policy's settling time, because the stored answer may be a 5xx.
        """
        try:
            order = await self._send(generation, marked=marked)
        except _OutcomeStillUnknownError as unknown:  # 102 and 429, no or a broken answer, 5xx: the budget is used up
            return await self._after_unknown_outcome(generation, unknown.error, marked=marked)
        except RunaIdempotencyMismatchError as error:  # 400 idempotency_validation_error
            return await self._after_key_mismatch(generation, error, self.policy.settling if quiet is None else quiet)
        except RunaApiError as error:
            has_type = error.type is not None
            can_be_first = marked or not self._key_may_be_used(generation)
            if has_type and can_be_first:  # 4xx, to a request that can be the first under its key
                return await self._after_rejection(error, marked=marked)
            if not has_type:  # 4xx without Runa's error type
                return await self._after_answer_not_from_runa(generation, error, marked=marked)
            return await self._send_marked_copy(generation, error)  # other 4xx
        return await self._after_accepted(generation, order)  # 200, 202

    async def _after_accepted(self, generation: int, order: Order) -> Placement | int:
        """Save the id of an accepted order. If the order FAILED, it paid nobody and its key is spent."""
        await self._save_result(replace(self._record(generation), order_id=order.id))
        if not self._is_fresh(generation):
            order = await self._refresh(order)
        if order.status != OrderStatus.FAILED:
            return Placement(order, generation, self.identity.reference(generation), adopted=False)
        placed_before = order.created_at is not None and order.created_at < self.started - CLOCK_SLACK
        if not (self._key_may_be_used(generation) or placed_before):
            raise OrderFailedError(order_id=order.id)
        log.warning("Order %s ended FAILED and paid nobody: placing it again as a new order.", order.id)
        return generation + 1

    async def _after_key_mismatch(self, generation: int, error: RunaError, quiet: float) -> Placement | int:
        """Find the order that used this key, or prove that there is none and the key is spent."""
        self.searched_back_to = self.started - KEY_MEMORY
        reached = await self._search(generation + 1, f"its key was used before: {error}", quiet)
        self.all_accounted = self.attempt.exclusive  # a request that is still in flight gets the stored answer
        return reached

    async def _after_answer_not_from_runa(
        self, generation: int, error: RunaApiError, *, marked: bool
    ) -> Placement | int:
        """Search for the order, because a gateway may have blocked the request or only Runa's answer."""
        self.all_accounted = False
        return await self._after_unknown_outcome(generation, error, marked=marked)

    async def _send_marked_copy(self, generation: int, error: RunaError) -> Placement | int:
        """Send a marked copy, to learn whether a rejection is a stored answer."""
        log.warning("Rejected (%s); sending a marked copy, which shows whether that is a stored answer.", error)
        return await self._try(generation, marked=True, quiet=self.policy.in_flight)

    async def _after_rejection(self, error: RunaApiError, *, marked: bool) -> Placement:
        """Raise the rejection of this request, unless an earlier request has placed the order."""
        self._raise_if_rejected_before_processing(error)
        if self.attempt.exclusive and not self.all_accounted:
            # An earlier request whose answer was lost may have placed the order. If Runa rejects the marked copy as
            # well, it does so before it looks at the key. Then no answer shows the order; only the list does.
            result = await self._search_twice(self.policy.settling if marked else 0.0)
            self.all_accounted = marked and result.absent
            if result.order is not None:
                return await self._adopt_found(result.order, result.generation)
        kind = OrderHeldBackError if isinstance(error, RECOVERABLE_REJECTIONS) else OrderRejectedError
        raise kind(answer=error, earlier=self._earlier_requests(), accounted=self.all_accounted) from None

    def _is_fresh(self, generation: int) -> bool:
        """Return whether an accepted order is the answer to the only request so far, and so shows the current state."""
        return self.attempt.exclusive and self.all_accounted and generation == 0

    def _key_may_be_used(self, generation: int) -> bool:
        """Return whether an earlier attempt may have used a generation's key, so that its answer may be repeated now.

        Each attempt uses at most one new generation. So without a record, the number of attempts is the limit.
        """
        return generation <= (self.earlier.generation if self.earlier is not None else self.attempt.number - 2)

    async def _send(self, generation: int, *, marked: bool) -> Order:
        """Send under a generation's key until the outcome is known or the budget is used up.

        The record is written before the first request, and again before a later one if it is older than
        :data:`INTENT_LIFETIME`: another attempt that has taken over since then must stop this one.
        """
        sealed = self.identity.seal(self.order, generation, marked=marked)
        written: datetime | None = None
        was_sent = False
        for tries in itertools.count(1):
            await self._wait_for_turn()
            now = self.clock.now()
            if now - self.started > LONGEST_ATTEMPT:
                raise OutcomeUnknownError(answer="the attempt lasts too long", reference=self._search_term())
            if written is None or now - written > INTENT_LIFETIME:
                record = await self._write_intent(generation)
                written = now
            if tries == 1:
                deadline = now + timedelta(seconds=self.policy.budget)
            try:
                return await self.client.create_order(
                    sealed, idempotency_key=record.idempotency_key, execution_mode=self.execution_mode
                )
            except RunaError as error:
                if not is_outcome_unknown(error):
                    raise
                if not isinstance(error, RunaUnreachableError):
                    was_sent, self.all_accounted = True, False
                pause = pause_before_retry(tries, error, self.rng)
                if self.clock.now() + timedelta(seconds=pause) > deadline:
                    if not was_sent:
                        raise RunaOutOfReachError(answer=error, earlier=self._earlier_requests()) from None
                    raise _OutcomeStillUnknownError(error) from None
                outcome = "Outcome unknown" if was_sent else "Nothing was sent yet"
                log.warning("%s (%s): sending again with the same key in %.0f s.", outcome, error, pause)
            await self.clock.sleep(pause)
        raise AssertionError("unreachable")

    async def _wait_for_turn(self) -> None:
        """Wait for the account's rate limit."""
        if (pause := self.client.reserve_turn()) > 0:
            await self.clock.sleep(pause)

    async def _refresh(self, order: Order) -> Order:
        """Return the order as it is now. The answer to a POST may be stored: the order may have FAILED since."""
        if order.status == OrderStatus.COMPLETED:
            return order
        try:
            return await self.client.get_order(order.id)
        except RunaNotFoundError:
            return order  # accepted a moment ago
        except RunaError as error:
            raise StatusUnreadableError(order_id=order.id, answer=error) from None

    async def _after_unknown_outcome(self, generation: int, error: RunaError, *, marked: bool) -> Placement | int:
        """Search for the order. If Runa answered with a 5xx, send a marked copy to learn whether the key is spent."""
        result = await self._search_once()
        if result.order is not None:
            return await self._adopt_found(result.order, result.generation)
        if isinstance(error, RunaServerError) and not marked and self._key_may_be_used(generation):
            log.warning("Still answered %s; sending a marked copy, which shows if that is a stored answer.", error)
            return await self._try(generation, marked=True, quiet=self.policy.settling)
        raise OutcomeUnknownError(answer=error, reference=self._search_term())

    # -- searching --------------------------------------------------------------------------------------------------

    async def _search(self, following: int, reason: str, quiet: float) -> Placement | int:
        """Find and adopt the order, or prove that there is none and return the next generation.

        :param following: the next generation, unless an order of this or a higher generation ended FAILED.
        :param reason: why to search, for the log and the error.
        :param quiet: how long an existing order may be missing from the list, in seconds.
        :raises InconclusiveSearchError: if hidden orders remain.
        """
        log.warning("Searching the order list for %s: %s.", self._search_term(), reason)
        result = await self._search_twice(quiet)
        if result.order is not None:
            return await self._adopt_found(result.order, result.generation)
        if not result.absent:
            raise InconclusiveSearchError(reason=reason, hidden=len(result.hidden), reference=self._search_term())
        return max({following - 1} | result.failed) + 1

    async def _search_twice(self, quiet: float) -> SearchResult:
        """Search, and if there is no order, search again after a pause.

        :param quiet: how long an existing order may be missing from the list, in seconds. 0: search once.
        """
        result = await self._search_once()
        if result.absent and quiet > 0:
            log.warning("Not found; searching again in %.0f s, when an order in flight must be in the list.", quiet)
            await self.clock.sleep(quiet)
            result = await self._search_once()
        return result

    async def _search_once(self) -> SearchResult:
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
            raise OutcomeUnknownError(answer=error, reference=self._search_term()) from None

    def _raise_if_rejected_before_processing(self, error: RunaError) -> None:
        """Raise ``AccessRejectedError`` if Runa rejected a request before processing it."""
        about_the_order = isinstance(error, ORDER_REJECTIONS) and not isinstance(error, REJECTED_BEFORE_PROCESSING)
        if isinstance(error, RunaApiError) and not is_outcome_unknown(error) and not about_the_order:
            raise AccessRejectedError(answer=error, earlier=self._earlier_requests()) from None

    def _not_before(self) -> datetime:
        """Return the earliest time at which this order can have been placed."""
        origin = self.earlier.first_sent if self.earlier else self._no_attempt_before()
        if self.identity.survives_runs:
            origin -= DEFAULT_LOOK_BACK if self.attempt.look_back is None else self.attempt.look_back
        return origin

    def _no_attempt_before(self) -> datetime:
        return self.started if self.attempt.number == 1 else min(self.attempt.began_after, self.started)

    # -- adopting ---------------------------------------------------------------------------------------------------

    async def _adopt_found(self, order: Order, generation: int) -> Placement:
        """Adopt an order that a search found, if it pays what this attempt would pay."""
        if order.items is None:  # it shows its description, and not yet what it pays
            raise StatusUnreadableError(order_id=order.id, answer=f"it is {order.status} and shows no items")
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
            log.warning("The order's description or metadata differ from this task's. The order keeps its own.")
        return Placement(order, generation, self.identity.reference(generation), adopted=True)

    # -- the record -------------------------------------------------------------------------------------------------

    async def _load(self) -> Record | None:
        try:
            return await self.records.load()
        except (OvertakenError, PlacementError):
            raise
        except Exception as error:
            raise RecordUnavailableError(verb="read", reason=type(error).__name__) from None

    async def _write_intent(self, generation: int) -> Record:
        """Write the record of the request that is sent next. If this fails, nothing is sent."""
        record = self._record(generation)
        try:
            await self.records.save(record)
        except (OvertakenError, PlacementError):
            raise
        except Exception as error:
            raise RecordUnavailableError(verb="written", reason=type(error).__name__) from None
        return record

    async def _save_result(self, record: Record) -> None:
        """Write what is known now. If this fails, the attempt continues: the key leads to the same order again."""
        try:
            await self.records.save(record)
        except Exception as error:
            log.warning("The record of %s could not be written (%s).", self._search_term(), type(error).__name__)

    def _record(self, generation: int) -> Record:
        """Build the record of a request that is sent next."""
        return Record(
            generation=generation,
            idempotency_key=self.identity.idempotency_key(generation),
            payment=self.payment,
            body=_hash(self.identity.seal(self.order, generation)),
            first_sent=self.earlier.first_sent if self.earlier is not None else self._no_attempt_before(),
        )

    def _search_term(self) -> str:
        """Return the text to search for in the portal. The reference of every generation contains it."""
        return f"af-{self.identity.short_name}"

    def _earlier_requests(self) -> str:
        if self.all_accounted:
            return "no earlier request is known"
        return f"an earlier request may have, under reference {self._search_term()}"


def _hash(order: NewOrder) -> str:
    return hashlib.sha256(order.body()).hexdigest()
