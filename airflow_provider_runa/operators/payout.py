"""RunaPayoutOperator: pays the rows of a campaign, each recipient once, with a ledger that remembers who was paid."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_runa.api.client import AsyncRunaClient
from airflow_provider_runa.api.errors import (
    InvalidOrderError,
    RunaApiError,
    RunaError,
    RunaNotFoundError,
    RunaRateLimitError,
    UnreadableOrdersError,
    parse_error,
)
from airflow_provider_runa.api.statuses import read_statuses
from airflow_provider_runa.campaign.errors import (
    BalanceTooLowError,
    CampaignFailedError,
    CampaignRejectedError,
    CampaignStillProcessingError,
    CampaignUnfinishedError,
    InvalidCampaignError,
    OrderNotInLedgerError,
)
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.pay import Paid, pay
from airflow_provider_runa.campaign.plan import Limits, check_planned, plan
from airflow_provider_runa.campaign.settle import settle
from airflow_provider_runa.campaign.tables import BatchState, RowState, campaigns
from airflow_provider_runa.hooks.ledger import LedgerHook
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.links.portal import RunaPortalLink
from airflow_provider_runa.operators._placement_ports import AsyncClock, AsyncOrderClient
from airflow_provider_runa.operators.runa import INLINE_SECONDS
from airflow_provider_runa.placement.errors import PlacementError, StatusUnreadableError, WrongAccountError
from airflow_provider_runa.placement.identity import MAX_USER_DESCRIPTION
from airflow_provider_runa.placement.missing import is_missing
from airflow_provider_runa.placement.place import RECOVERABLE_REJECTIONS, Policy
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.runa import EVENT_STATUSES, RunaOrderTrigger
from airflow_provider_runa.utils.arguments import NOTSET, read_amount, read_json, to_seconds, unset_to_none
from airflow_provider_runa.utils.assets import add_asset_event_extra
from airflow_provider_runa.utils.failures import to_airflow_exception
from airflow_provider_runa.utils.masking import Masked
from airflow_provider_runa.utils.openlineage import build_lineage

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Seconds between two lines of progress in the log.
PROGRESS_SECONDS = 5.0

#: What the operator does: plan and pay, only plan, or only pay what was planned.
MODES = ("plan_and_pay", "plan", "pay")

ON_PARTIAL_FAILURE = ("fail", "warn")

#: Ids of orders that are not done -> why that could not be read, if it could not.
_Processing = Mapping[str, Exception | None]


class RunaPayoutOperator(BaseOperator):
    """Pays a campaign: each recipient key once, however often and from whichever DAG it is run.

    The rows are checked and written into the ledger, in batches of up to 200 that become one order each; that plan is
    frozen before the first order is sent. A retry or a clear of the same run sends the same orders, whatever the input
    says by then; rows whose order failed or was rejected are planned again, with what the input says of them now.
    Recipients whom the ledger knows as paid are left out.

    Returns a summary: ``{"campaign", "currency", "rows", "amounts"}``: the number of rows and the sum of their amounts
    (decimal strings) by state: ``paid``, ``sent``, ``planned``, ``failed``, ``rejected``. What became of each row is in
    the ledger. Events of assets among its ``outlets`` get the summary as ``extra``.

    :param campaign: name of the campaign, at most 109 characters; it is the description of its orders. Who is paid once
        is decided within a campaign. (templated)
    :param rows: a list, an XCom, or a template that renders to a list or to JSON; see :func:`~.campaign.rows.read_row`.
        For anything else, override :meth:`iter_rows`. (templated)
    :param currency: currency of the account balance that pays, three capital letters. (templated)
    :param ledger_conn_id: id of the Airflow connection to the ledger's database: PostgreSQL, or SQLite
        for development. The tables are created on first use. (templated)
    :param defaults: fields for rows that lack them, such as ``{"template_id": "PT-…"}``. (templated)
    :param mode: ``"plan_and_pay"``; ``"plan"`` stops after the plan and returns its summary; ``"pay"`` pays what was
        planned in this campaign, by whichever task, if it is within the limits, and reads no rows; its retry orders
        again for rows whose order it had placed and Runa could not complete. (templated)
    :param max_total: what is to be paid may not sum up to more, earlier plans of the campaign included. This limit and
        the next two: left out, there is none; ``None`` is refused, because it may be a missing value. (templated)
    :param max_per_recipient: no row may be above this. (templated)
    :param max_recipients: not more rows may be to be paid, earlier plans of the campaign included. (templated)
    :param check_balance: see before the first order that the balance covers the face values of what is to be paid.
        Switch it off if your account pays less than face value, and the balance is meant to cover just that.
    :param on_partial_failure: whether rows that were not paid ``"fail"`` the task or only ``"warn"``.
    :param isolate_rejections: split an order that Runa refuses until the rows are found that it refuses; the others
        are paid.
    :param store_links: keep payout links in the ledger (column ``payout_link``). A link is cash.
    :param deferrable: wait in the triggerer instead of on a worker. Default: ``[operators] default_deferrable``.
    :param poll_interval: seconds between two looks at the orders, or a ``timedelta``.
    :param timeout: how long one attempt waits for the orders once they are placed, in seconds or as a ``timedelta``.
        They go on after that.
    :param runa_conn_id: id of the Airflow connection to Runa. (templated)
    :raises AirflowFailException: for everything that a retry cannot heal, in one line.
    :raises PlacementError: for everything that a retry can heal.
    """

    template_fields: Sequence[str] = (
        "campaign",
        "rows",
        "currency",
        "ledger_conn_id",
        "defaults",
        "mode",
        "max_total",
        "max_per_recipient",
        "max_recipients",
        "runa_conn_id",
    )
    template_fields_renderers = {"defaults": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"
    operator_extra_links = (RunaPortalLink(),)

    #: How long the steps of placing may take.
    policy = Policy()

    def __init__(
        self,
        *,
        campaign: str,
        currency: str,
        ledger_conn_id: str,
        rows: Any = None,
        defaults: Mapping[str, Any] | None = None,
        mode: str = "plan_and_pay",
        max_total: Decimal | float | str = NOTSET,
        max_per_recipient: Decimal | float | str = NOTSET,
        max_recipients: int | str = NOTSET,
        check_balance: bool = True,
        on_partial_failure: str = "fail",
        isolate_rejections: bool = False,
        store_links: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta = 3600.0,
        runa_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if on_partial_failure not in ON_PARTIAL_FAILURE:
            raise ValueError(f"on_partial_failure: must be one of {', '.join(ON_PARTIAL_FAILURE)}")
        self.campaign = campaign
        self.rows = rows
        self.currency = currency
        self.ledger_conn_id = ledger_conn_id
        self.defaults = defaults
        self.mode = mode
        limits = {"max_total": max_total, "max_per_recipient": max_per_recipient, "max_recipients": max_recipients}
        self._limited = tuple(name for name, limit in limits.items() if limit is not NOTSET)
        self.max_total = unset_to_none(max_total)
        self.max_per_recipient = unset_to_none(max_per_recipient)
        self.max_recipients = unset_to_none(max_recipients)
        self.check_balance = check_balance
        self.on_partial_failure = on_partial_failure
        self.isolate_rejections = isolate_rejections
        self.store_links = store_links
        self.deferrable = deferrable
        self.poll_interval = to_seconds("poll_interval", poll_interval)
        self.timeout = to_seconds("timeout", timeout)
        self.runa_conn_id = runa_conn_id
        self.clock = AsyncClock()
        self._paid_summary: dict[str, Any] | None = None
        self._environment = ""

    # -- Airflow's side ---------------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, pay and wait."""
        try:
            with self._ledger() as ledger:
                if self.mode == "pay":
                    self._plan_failed_again(ledger, context)
                    check_planned(ledger, currency=self.currency, limits=self._limits())
                else:
                    self._plan(ledger, context)
                if self.mode == "plan":
                    return self._publish(context, self._summary(ledger))
                if self.check_balance:
                    self._check_balance(ledger)
                processing, deadline, cause = asyncio.run(self._pay(ledger, _run_of(context)))
                if processing and self.deferrable:
                    self._defer(processing, deadline, cause)
                return self._publish(context, self._report(ledger, processing, cause))
        except RunaError as error:
            raise to_airflow_exception(error) from None

    def execute_complete(
        self, context: Context, event: Any = None, refusal: tuple[int, str | None] | None = None
    ) -> dict[str, Any]:
        """Take up the orders again after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        :param refusal: status and type of what kept orders from being placed before the task deferred.
        """
        cause = parse_error(refusal[0], {"type": refusal[1], "message": "before the deferral"}) if refusal else None
        event = read_event(event, allowed=EVENT_STATUSES, needs="orders")
        try:
            with self._ledger() as ledger:
                known = {
                    batch.order_id
                    for batch in ledger.batches(BatchState.PLACED, BatchState.COMPLETED, BatchState.FAILED)
                }
                if unknown := [order_id for order_id in event["orders"] if order_id not in known]:
                    raise OrderNotInLedgerError(order_id=unknown[0], campaign=ledger.campaign)
                # The list, which the trigger reads, may be ahead of the orders.
                seconds = INLINE_SECONDS if event["status"] == EventStatus.FINAL else 0.0
                processing = asyncio.run(self._settle_within(ledger, seconds))
                return self._publish(context, self._report(ledger, processing, cause))
        except RunaError as error:
            raise to_airflow_exception(error, outcome="The orders that were placed go on") from None

    def on_kill(self) -> None:
        """Say that orders go on: Runa has no way to cancel one."""
        self.log.warning(
            "The task is stopped. Orders that were placed go on; the ledger knows them. Clear it to go on."
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return what OpenLineage is told: the campaign as output dataset, its totals as a facet, and nobody's name.

        Nothing of a plan, which pays nobody.

        :param task_instance: the task instance.
        """
        if self._paid_summary is None:
            return None
        return build_lineage(
            self._environment,
            self._paid_summary["campaign"],
            status=None,
            currency=self._paid_summary["currency"],
            paid=sum(self._paid_summary["rows"].get(state, 0) for state in (RowState.PAID, RowState.SENT)),
            counts=self._paid_summary["rows"],
            amounts=self._paid_summary["amounts"],
        )

    def iter_rows(self, context: Context) -> Iterator[Any]:
        """Yield the rows; override it for rows that come from elsewhere.

        :param context: the task's context.
        """
        rows = read_json("rows", self.rows)
        if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
            raise InvalidOrderError(f"rows: must be a list, not {type(rows).__name__}")
        yield from rows

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        # Airflow stores rendered fields, and rows name recipients.
        super()._do_render_template_fields(parent, *args, **kwargs)
        if self.rows is not None:
            counted = hasattr(self.rows, "__len__") and not isinstance(self.rows, str)
            self.rows = Masked(self.rows, f"{len(self.rows)} rows" if counted else "rows")

    # -- planning ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        if self.mode not in MODES:
            raise InvalidOrderError(f"mode: must be one of {', '.join(MODES)}")
        campaign = str(self.campaign or "").strip()
        if is_missing(campaign):
            raise InvalidOrderError("campaign: is missing")
        if len(campaign) > MAX_USER_DESCRIPTION:
            raise InvalidOrderError(
                f"campaign: must have at most {MAX_USER_DESCRIPTION} characters, has {len(campaign)}"
            )
        self._environment = environment = RunaHook(self.runa_conn_id).get_settings().base_url
        with LedgerHook(self.ledger_conn_id).open() as engine:
            if self.mode == "pay" and campaign not in campaigns(engine, environment):
                raise InvalidCampaignError(
                    f"campaign: the ledger has no campaign {campaign!r} in {environment}. Nothing was sent. Mend the "
                    'name, or plan it first (mode="plan")'
                )
            yield Ledger(engine, environment, campaign)

    def _limits(self) -> Limits:
        return Limits(
            total=self._amount("max_total"),
            per_recipient=self._amount("max_per_recipient"),
            recipients=self._count("max_recipients"),
        )

    def _plan(self, ledger: Ledger, context: Context) -> None:
        with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
            report = plan(
                ledger,
                self.iter_rows(context),
                run=_run_of(context),
                currency=self.currency,
                defaults=self.defaults or {},
                limits=self._limits(),
                product=hook.get_product,
                now=self.clock.now(),
            )
        self.log.info("Campaign %r is planned: %s %s.", ledger.campaign, report, self.currency)

    def _plan_failed_again(self, ledger: Ledger, context: Context) -> None:
        """What an earlier attempt of this task has ordered, and Runa could not complete, is still to be paid."""
        if count := ledger.plan_failed_again(_run_of(context), self.clock.now()):
            self.log.info("Campaign %r: %d row(s) whose orders FAILED are ordered again.", ledger.campaign, count)

    def _amount(self, name: str) -> Decimal | None:
        if name not in self._limited:
            return None
        value = getattr(self, name)
        if value is None:
            raise InvalidOrderError(f"{name}: its value is missing; leave it out for no limit")
        return read_amount(name, value)

    def _count(self, name: str) -> int | None:
        limit = self._amount(name)
        if limit is not None and limit != int(limit):
            raise InvalidOrderError(f"{name}: must be a whole number, not {limit}")
        return None if limit is None else int(limit)

    def _check_balance(self, ledger: Ledger) -> None:
        """See before the first order that the balance covers what was never sent."""
        count, total = ledger.totals(self.currency).get(RowState.PLANNED, (0, Decimal(0)))
        if not count:
            return
        with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
            try:
                balance = hook.get_balance(self.currency).balance
            except RunaError as error:
                self.log.warning(
                    "The balance could not be read (%s); each order is checked by Runa all the same.", error
                )
                return
        if balance < total:
            asyncio.run(self._settle_within(ledger, 0.0))  # what was sent before is told all the same
            raise BalanceTooLowError(count=count, total=total, currency=self.currency, balance=balance)

    # -- paying -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncRunaClient]:
        # The settings are read without the event loop: on a worker, Airflow answers one question at a time.
        settings = RunaHook(self.runa_conn_id).get_settings()
        async with AsyncRunaClient(**settings.client_arguments()) as client:
            yield client

    async def _pay(self, ledger: Ledger, owner: str) -> tuple[_Processing, datetime, RunaApiError | None]:
        """Place all orders, and wait for a while, or as long as it may take if the task does not defer.

        :returns: the orders that are still PROCESSING, until when they are waited for, and what a retry has to wait for
            before it places the others.
        """
        progress = _Progress(self, ledger)
        async with self._client() as client:
            began = self.clock.now()
            paid = await pay(
                ledger,
                owner=owner,
                client=AsyncOrderClient(client),
                clock=self.clock,
                isolate_rejections=self.isolate_rejections,
                policy=self.policy,
                progress=progress.placing,
            )
            placed = self.clock.now()
            seconds = (placed - began).total_seconds()
            self.log.info("Campaign %r: %d order(s) placed in %.1f s.", ledger.campaign, paid.placed, seconds)
            deadline = placed + timedelta(seconds=self.timeout)
            until = min(deadline, placed + timedelta(seconds=INLINE_SECONDS)) if self.deferrable else deadline
            return await self._wait(ledger, client, until, progress), deadline, _what_to_wait_for(paid)

    async def _settle_within(self, ledger: Ledger, seconds: float) -> _Processing:
        async with self._client() as client:
            until = self.clock.now() + timedelta(seconds=seconds)
            return await self._wait(ledger, client, until, _Progress(self, ledger))

    async def _wait(self, ledger: Ledger, client: AsyncRunaClient, until: datetime, progress: _Progress) -> _Processing:
        pause = 1.0
        while processing := await self._settle(ledger, client):
            if (left := (until - self.clock.now()).total_seconds()) <= 0:
                break
            progress.waiting(len(processing))
            await self.clock.sleep(min(pause, left, self.poll_interval))
            pause = min(pause * 2, self.poll_interval)
        return processing

    async def _settle(self, ledger: Ledger, client: AsyncRunaClient) -> _Processing:
        """Look once at the orders."""
        unreadable: dict[str, Exception] = {}

        async def statuses(order_ids: Sequence[str]) -> dict[str, str]:
            try:
                return await read_statuses(client, order_ids)
            except UnreadableOrdersError as error:
                self.log.warning("%s", error)
                unreadable.update(error.errors)
                return error.statuses

        try:
            processing = await settle(
                ledger,
                client=AsyncOrderClient(client),
                statuses=statuses,
                clock=self.clock,
                keep_links=self.store_links,
            )
        except RunaError as error:
            self.log.warning("The orders could not be read: %s", error)
            return {batch.order_id: error for batch in ledger.batches(BatchState.PLACED) if batch.order_id}
        return {order_id: unreadable.get(order_id) for order_id in processing}

    def _defer(self, processing: _Processing, deadline: datetime, cause: RunaApiError | None) -> None:
        self.log.info("%d order(s) are PROCESSING: waiting in the triggerer.", len(processing))
        self.defer(
            # All of them, also after one has FAILED: each order is somebody else's money.
            trigger=RunaOrderTrigger(
                list(processing), self.runa_conn_id, self.poll_interval, deadline.timestamp(), fail_fast=False
            ),
            method_name="execute_complete",
            kwargs={"refusal": [cause.status, cause.type]} if cause else None,
            timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
        )

    # -- reporting --------------------------------------------------------------------------------------------------

    def _publish(self, context: Context, summary: dict[str, Any]) -> dict[str, Any]:
        """Hand the summary to whoever is told of the campaign besides the XCom, and return it."""
        add_asset_event_extra(context, self.outlets, summary)
        if self.mode != "plan":
            self._paid_summary = summary
        return summary

    def _summary(self, ledger: Ledger) -> dict[str, Any]:
        totals = ledger.totals(self.currency)
        return {
            "campaign": ledger.campaign,
            "currency": self.currency,
            "rows": {state.value: count for state, (count, _) in sorted(totals.items())},
            "amounts": {state.value: f"{amount:.2f}" for state, (_, amount) in sorted(totals.items())},
        }

    def _report(self, ledger: Ledger, processing: _Processing, cause: RunaApiError | None) -> dict[str, Any]:
        """Return the summary, or raise what keeps the campaign from being finished."""
        summary = self._summary(ledger)
        states = ledger.totals()  # of every currency: all open orders of the campaign were sent
        counts = ", ".join(f"{count} {state}" for state, count in summary["rows"].items())
        self.log.info("Campaign %r: %s.", ledger.campaign, counts)
        facts = {"campaign": ledger.campaign, "counts": counts}
        error: PlacementError | None = None
        if open_batches := ledger.batches(BatchState.OPEN):
            reason = ledger.reason(BatchState.OPEN) or "another run of the campaign is at work on them"
            error = CampaignUnfinishedError(**facts, unplaced=len(open_batches), reason=reason, answer=cause)
        elif processing:
            error = _why(processing) or CampaignStillProcessingError(**facts, orders=len(processing))
        elif RowState.FAILED in states:
            error = CampaignFailedError(**facts)
        elif RowState.REJECTED in states:
            error = CampaignRejectedError(**facts, reason=ledger.reason(BatchState.REJECTED))
        if error is None:
            return summary
        # Whose outcome is not known yet is not a partial failure: only another attempt can tell.
        is_partial_failure = isinstance(error, CampaignFailedError | CampaignRejectedError)
        if is_partial_failure and self.on_partial_failure == "warn":
            self.log.warning("%s", error)
            return summary
        raise error


def _what_to_wait_for(paid: Paid) -> RunaApiError | None:
    """Return why orders are not placed, if a retry has to wait for that: first for a person, then for a rate limit."""
    for kinds in (RECOVERABLE_REJECTIONS, RunaRateLimitError):
        for error in paid.unplaced:
            if isinstance(error.cause, kinds):
                return error.cause
    return None


def _why(processing: _Processing) -> PlacementError | None:
    """Return why orders that were placed are not known to be done, if it is not that they are PROCESSING."""
    unreadable = {order_id: error for order_id, error in processing.items() if error is not None}
    for order_id, error in unreadable.items():
        if isinstance(error, RunaNotFoundError):
            return WrongAccountError(order_id=order_id)
    for order_id, error in unreadable.items():
        return StatusUnreadableError(order_id=order_id, answer=error)
    return None


class _Progress:
    """Tells the log how far the orders are, every few seconds."""

    def __init__(self, operator: RunaPayoutOperator, ledger: Ledger) -> None:
        self.operator = operator
        self.ledger = ledger
        self.began = self.last_logged = operator.clock.now()

    def placing(self, paid: Paid, left: int) -> None:
        """Tell how many orders are placed and left."""
        rate = paid.placed / ((self.operator.clock.now() - self.began).total_seconds() or 1.0)
        to_go = f", about {left / rate:.0f} s to go" if rate else ""
        self._log(f"{paid.placed} order(s) placed, {left} left, {rate:.1f} a second{to_go}")

    def waiting(self, processing: int) -> None:
        """Tell how many orders are not done."""
        self._log(f"{processing} order(s) are PROCESSING")

    def _log(self, orders: str) -> None:
        now = self.operator.clock.now()
        if (now - self.last_logged).total_seconds() < PROGRESS_SECONDS:
            return
        self.last_logged = now
        rows = ", ".join(f"{count} {state}" for state, (count, _) in sorted(self.ledger.totals().items()))
        self.operator.log.info("Campaign %r: %s; rows: %s.", self.ledger.campaign, orders, rows)


def _run_of(context: Context) -> str:
    """Return what tells this task's plans from those of others, and is the same for each of its attempts."""
    task = context["ti"]
    names = [task.dag_id, task.run_id, task.task_id, -1 if task.map_index is None else task.map_index]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
