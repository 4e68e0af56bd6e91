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

A search proves that there is no order only if the order would be in the list by now. So it searches again after a
quiet time. The record keeps since when no order was found, so that an attempt that is killed while it waits does not
make the next one wait from the beginning:

- After a search before anything was sent, the record keeps that time until a request is sent.
- If Runa holds an answer under the key, the record keeps that time for as long as that key is used: requests under it
  cannot place an order any more. This counts only while Runa remembers all keys of the identity. After that, and for an
  ``order_key`` that is a day after the first request, a wait is not carried over.
"""

from __future__ import annotations

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
from airflow_provider_runa.placement.digest import Digests
from airflow_provider_runa.placement.errors import (
    AccessRejectedError,
    GenerationsExhaustedError,
    InconclusiveSearchError,
    KeySpentError,
    NothingSentError,
    OrderFailedError,
    OrderHeldBackError,
    OrderRejectedError,
    OutcomeUnknownError,
    PaymentChangedError,
    PlacementError,
    RecordUnavailableError,
    SearchRejectedError,
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

#: How far the clocks of two workers may differ without one of them waiting too short for what another one remembered.
WORKERS_APART = timedelta(minutes=1)

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
    :raises OvertakenError: if the record store says that another attempt works on the identity now.
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
    """The outcome is still unknown, and the budget is used up, or the 5xx may be a stored answer.

    :param error: the last answer.
    """

    def __init__(self, error: RunaError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(kw_only=True)
class _Placer:
    """One attempt to place an order. The parameters up to ``rng`` are those of :func:`place`.

    :param payment: fingerprint of the payment.
    :param digests: the digests of the payment and its bodies for the record.
    :param started: when this attempt began.
    :param earlier: the record of earlier attempts, as it was when this attempt began.
    :param latest: the record as it is now, to the knowledge of this attempt.
    :param sent: whether a request of this attempt may have reached Runa.
    :param lost: whether a request of this attempt may have reached Runa and got no usable answer.
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
    digests: Digests = field(init=False)
    started: datetime = field(init=False)
    earlier: Record | None = field(init=False, default=None)
    latest: Record | None = field(init=False, default=None)
    sent: bool = field(init=False, default=False)
    lost: bool = field(init=False, default=False)
    all_accounted: bool = field(init=False, default=False)
    searched_back_to: datetime = field(init=False)

    def __post_init__(self) -> None:
        self.payment = fingerprint(self.identity.environment, self.order)
        self.started = self.clock.now()
        self.searched_back_to = self.started - KEY_MEMORY if self.identity.survives_runs else self.started

    async def run(self) -> Placement:
        """Resume where the last attempt stopped, then try one generation after the other."""
        self.identity.seal(self.order, LAST_GENERATION, marked=True)  # raises if the order has no room, for any copy
        self.earlier = self.latest = await self._load()
        self.digests = self._digests()
        self.all_accounted = self._is_first and not self.identity.survives_runs
        try:
            return await self._advance()
        except NothingSentError:
            await self._save_result(replace(self.latest or self._record(0), sent=False, attempt=self.attempt.number))
            raise

    async def _advance(self) -> Placement:
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
        """Whether no earlier attempt of this task can have sent anything."""
        return self.earlier is None and self._earlier_attempts == 0

    @property
    def _earlier_attempts(self) -> int:
        """How many attempts of this task may have sent something without a record of it."""
        # A record that is never lost, and is missing, proves that nothing was sent.
        return 0 if self.attempt.exclusive and self.earlier is None else self.attempt.number - 1

    @property
    def _nothing_was_sent(self) -> bool:
        """Whether neither this nor an earlier attempt of this task can have sent anything."""
        record = self.earlier
        return not self.sent and (self._is_first or (record is not None and not record.sent and self._follows(record)))

    def _follows(self, record: Record) -> bool:
        """Return whether the last attempt before this one wrote a record. Otherwise it may be an outdated one."""
        return record.attempt in (self.attempt.number - 1, self.attempt.number)

    @property
    def _keys_are_remembered(self) -> bool:
        """Whether Runa still knows every key that was used."""
        return self.started - self._not_before() <= KEY_LIFETIME

    # -- steps: each returns the placement, or the generation to try next -------------------------------------------

    async def _resume(self) -> Placement | int:
        """Resume the order of an earlier attempt, or return the generation to begin with."""
        record = self.earlier
        generation = record.generation if record is not None else 0
        if record is not None and record.order_id is not None:
            if placement := await self._resume_order(record, record.order_id):
                return placement
            generation += 1
        if not self._keys_are_remembered:
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
        if record.payment != self._digests_of(record).payment:
            changed = differences(self.order, order) if order.items is not None else []
            raise PaymentChangedError(order_id=order_id, fields="; ".join(changed) or "its items or its currency")
        return self._adopt(order, record.generation, record)

    # -- one generation ---------------------------------------------------------------------------------------------

    async def _try(self, generation: int, *, marked: bool = False) -> Placement | int:
        """Send one generation, and act on what the answer proves.

        The branches follow the rows of the table at the head of this file. Only the first row, an accepted order, comes
        last.

        :param generation: the generation.
        :param marked: whether to send a marked copy, which shows whether Runa holds an answer under this key.
        """
        try:
            order = await self._send(generation, marked=marked)
        except _OutcomeStillUnknownError as unknown:  # 102 and 429, no or a broken answer, 5xx
            return await self._after_unknown_outcome(generation, unknown.error, marked=marked)
        except RunaIdempotencyMismatchError as error:  # 400 idempotency_validation_error
            return await self._after_key_mismatch(generation, error)
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

    async def _after_key_mismatch(self, generation: int, error: RunaError) -> Placement | int:
        """Find the order that used this key, or prove that there is none and the key is spent.

        Nobody knows which answer Runa holds. It may be a 5xx, whose order takes longest to appear in the list.
        """
        self.searched_back_to = self.started - KEY_MEMORY
        self.all_accounted = False
        reason = f"its key was used before: {error}"
        reached = await self._search(generation + 1, reason, self.policy.settling, held=generation)
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
        return await self._try(generation, marked=True)

    async def _after_rejection(self, error: RunaApiError, *, marked: bool) -> Placement:
        """Raise the rejection of this request, unless an earlier request has placed the order."""
        if is_rejected_before_processing(error):
            raise AccessRejectedError(answer=error, earlier=self._earlier_requests()) from None
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
        return generation <= (self.earlier.generation if self.earlier is not None else self._earlier_attempts - 1)

    async def _send(self, generation: int, *, marked: bool) -> Order:
        """Send under a generation's key until the outcome is known, the budget is used up or a 5xx may be stored.

        The record is written before the first request, and again before a later one if it is older than
        :data:`INTENT_LIFETIME`: another attempt that has taken over since then must stop this one.
        """
        sealed = self.identity.seal(self.order, generation, marked=marked)
        written: datetime | None = None
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
                order = await self.client.create_order(
                    sealed, idempotency_key=record.idempotency_key, execution_mode=self.execution_mode
                )
            except RunaError as error:
                self._note_failure(error)
                if not is_outcome_unknown(error):
                    raise
                pause = pause_before_retry(tries, error, self.rng)
                # A stored 5xx is repeated for ever, so a retry does not use up the budget before the marked copy.
                may_be_stored = isinstance(error, RunaServerError) and not marked and self._key_may_be_used(generation)
                if self.clock.now() + timedelta(seconds=pause) > deadline or (may_be_stored and tries > 1):
                    raise _OutcomeStillUnknownError(error) from None
                log.warning("Outcome unknown (%s): sending again with the same key in %.0f s.", error, pause)
            else:
                self.sent = True
                return order
            await self.clock.sleep(pause)
        raise AssertionError("unreachable")

    def _note_failure(self, error: RunaError) -> None:
        """Note what a failed request leaves open. One for which no connection could be opened leaves nothing open."""
        if not isinstance(error, RunaUnreachableError):
            self.sent = True
            if is_outcome_unknown(error):
                self.lost = True
                self.all_accounted = False

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
        self._raise_if_nothing_was_sent(error)
        result = await self._search_once()
        if result.order is not None:
            return await self._adopt_found(result.order, result.generation)
        if isinstance(error, RunaServerError) and not marked and self._key_may_be_used(generation):
            log.warning("Still answered %s; sending a marked copy, which shows if that is a stored answer.", error)
            return await self._try(generation, marked=True)
        raise OutcomeUnknownError(answer=error, reference=self._search_term())

    # -- searching --------------------------------------------------------------------------------------------------

    async def _search(self, following: int, reason: str, quiet: float, *, held: int | None = None) -> Placement | int:
        """Find and adopt the order, or prove that there is none and return the next generation.

        :param following: the next generation, unless an order of this or a higher generation ended FAILED.
        :param reason: why to search, for the log and the error.
        :param quiet: how long an existing order may be missing from the list, in seconds.
        :param held: generation under whose key Runa holds an answer, if the search is for the order of that answer.
        :raises InconclusiveSearchError: if hidden orders remain.
        """
        log.warning("Searching the order list for %s: %s.", self._search_term(), reason)
        result = await self._search_twice(quiet, held=held)
        if result.order is not None:
            return await self._adopt_found(result.order, result.generation)
        if not result.absent:
            raise InconclusiveSearchError(reason=reason, hidden=len(result.hidden), reference=self._search_term())
        return max({following - 1} | result.failed) + 1

    async def _search_twice(self, quiet: float, *, held: int | None = None) -> SearchResult:
        """Search, and if there is no order, search again when an order in flight must be in the list.

        :param quiet: how long an existing order may be missing from the list, in seconds. 0: search once.
        :param held: see :meth:`_search`.
        """
        began = self.clock.now()
        result = await self._search_once()
        if not result.absent or quiet <= 0:
            return result
        absent_since = self._absent_since(held)
        until = (began if absent_since is None else absent_since + WORKERS_APART) + timedelta(seconds=quiet)
        await self._remember_absence(absent_since or began, held)
        if began < until:
            pause = max(0.0, (until - self.clock.now()).total_seconds())
            log.warning("Not found; searching again in %.0f s, when an order in flight must be in the list.", pause)
            await self.clock.sleep(pause)
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
            self._raise_if_nothing_was_sent(error)
            if is_rejected_before_processing(error):
                outcome = f"Unknown whether an earlier request placed the order (reference {self._search_term()})"
                if self._nothing_was_sent:
                    outcome = "Nothing was sent"
                raise SearchRejectedError(answer=error, outcome=outcome) from None
            raise OutcomeUnknownError(answer=error, reference=self._search_term()) from None

    def _raise_if_nothing_was_sent(self, error: RunaError) -> None:
        """Raise ``NothingSentError`` if Runa could not be reached, and nothing was sent before either."""
        if isinstance(error, RunaUnreachableError) and self._nothing_was_sent:
            raise NothingSentError(outcome="Nothing was sent", address=error.address, answer=error) from None

    def _absent_since(self, held: int | None) -> datetime | None:
        """Return since when an earlier attempt found no order, if nothing that can place one was sent since then.

        :param held: see :meth:`_search`.
        """
        if held is not None:
            # A fact about Runa, which also an outdated record states rightly while Runa cannot have forgotten the key.
            record = self.latest
            usable = record is not None and record.key_held and record.generation == held and self._keys_are_remembered
        else:
            # Writing an intent clears it in the record. If the requests of this attempt got usable answers, none of
            # them placed an order.
            record = self.earlier
            usable = record is not None and not record.key_held and self._follows(record) and not self.lost
        if not usable or record is None or record.absent_since is None or record.absent_since > self.started:
            return None
        return record.absent_since

    async def _remember_absence(self, since: datetime, held: int | None) -> None:
        """Write since when no order was found. If this fails, the next attempt waits from the beginning."""
        record = self.latest or self._record(held or 0)
        record = replace(record, absent_since=since, key_held=held is not None, attempt=self.attempt.number)
        try:
            await self.records.save(record)
        except (OvertakenError, PlacementError):
            raise
        except Exception as error:
            log.warning("The record of %s could not be written (%s).", self._search_term(), type(error).__name__)
        else:
            self.latest = record

    def _not_before(self) -> datetime:
        """Return the earliest time at which this order can have been placed."""
        origin = self.earlier.first_sent if self.earlier else self._no_attempt_before()
        if self.identity.survives_runs:
            origin -= DEFAULT_LOOK_BACK if self.attempt.look_back is None else self.attempt.look_back
        return origin

    def _no_attempt_before(self) -> datetime:
        return self.started if self._earlier_attempts == 0 else min(self.attempt.began_after, self.started)

    # -- adopting ---------------------------------------------------------------------------------------------------

    async def _adopt_found(self, order: Order, generation: int) -> Placement:
        """Adopt an order that a search found, if it pays what this attempt would pay."""
        if order.items is None:  # it shows its description, and not yet what it pays
            raise StatusUnreadableError(order_id=order.id, answer=f"it is {order.status} and shows no items")
        if changed := differences(self.order, order):
            raise PaymentChangedError(order_id=order.id, fields="; ".join(changed))
        await self._save_result(replace(self._record(generation), order_id=order.id))
        return self._adopt(order, generation, None)

    def _adopt(self, order: Order, generation: int, record: Record | None) -> Placement:
        log.info("Order %s was placed earlier and is %s: nothing is sent.", order.id, order.status)
        sealed = self.identity.seal(self.order, generation)
        unlike = order.items is not None and (order.description, unmarked(order.metadata)) != (
            sealed.description,
            sealed.metadata,
        )
        if unlike or (record is not None and record.body != self._digests_of(record).of_body(sealed.body())):
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
        record, known = self._record(generation), self.latest
        if known is not None and known.key_held and known.generation == generation and self._keys_are_remembered:
            record = replace(record, absent_since=known.absent_since, key_held=True)
        try:
            await self.records.save(record)
        except (OvertakenError, PlacementError):
            raise
        except Exception as error:
            raise RecordUnavailableError(verb="written", reason=type(error).__name__) from None
        self.latest = record
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
            payment=self.digests.payment,
            body=self.digests.of_body(self.identity.seal(self.order, generation).body()),
            salt=self.digests.salt,
            attempt=self.attempt.number,
            first_sent=self.earlier.first_sent if self.earlier is not None else self._no_attempt_before(),
        )

    def _digests(self) -> Digests:
        """Return the digests for the records of this attempt."""
        if self.attempt.exclusive:
            return Digests(self.payment, "")  # such a record is stored beside the recipients, and shown to nobody
        return Digests(self.payment, (self.earlier and self.earlier.salt) or Digests.new_salt())

    def _digests_of(self, record: Record) -> Digests:
        """Return the digests of this attempt's payment under the salt of a record."""
        return self.digests if record.salt == self.digests.salt else Digests(self.payment, record.salt)

    def _search_term(self) -> str:
        """Return the text to search for in the portal. The reference of every generation contains it."""
        return f"af-{self.identity.short_name}"

    def _earlier_requests(self) -> str:
        if self.all_accounted:
            return "no earlier request is known"
        return f"an earlier request may have, under reference {self._search_term()}"


def is_rejected_before_processing(error: RunaError) -> bool:
    """Return whether Runa rejected a request before it looked at the order: the key, address or version is wrong."""
    about_the_order = isinstance(error, ORDER_REJECTIONS) and not isinstance(error, REJECTED_BEFORE_PROCESSING)
    return isinstance(error, RunaApiError) and not is_outcome_unknown(error) and not about_the_order
