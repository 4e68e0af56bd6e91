"""RunaPayoutOperator: pays the rows of a campaign, each recipient once, with a ledger of who was paid."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.catch_up import LOOK_BACK, catch_up
from airflow_provider_runa.campaign.errors import (
    BalanceTooLowError,
    CampaignFailedError,
    CampaignRejectedError,
    CampaignStillProcessingError,
    CampaignUnfinishedError,
    OrderNotInLedgerError,
    PayoutMismatchError,
    unknown_campaign,
)
from airflow_provider_runa.campaign.found import Absorbed
from airflow_provider_runa.campaign.ledger import Ledger, count_and_sum
from airflow_provider_runa.campaign.pay import Paid, pay
from airflow_provider_runa.campaign.plan import Limits, PlanReport, choose_planned, plan
from airflow_provider_runa.campaign.rows import read_campaign
from airflow_provider_runa.campaign.settle import settle
from airflow_provider_runa.campaign.tables import BatchState, RowState, campaigns
from airflow_provider_runa.hooks.ledger import LedgerHook
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook, create_client
from airflow_provider_runa.links.portal import RunaPortalLink
from airflow_provider_runa.operators._placement_ports import AsyncClock, AsyncOrderClient
from airflow_provider_runa.operators._rows import RowsMixin
from airflow_provider_runa.operators.runa import INLINE_SECONDS
from airflow_provider_runa.placement.errors import PlacementError, StatusUnreadableError, WrongAccountError
from airflow_provider_runa.placement.place import RECOVERABLE_REJECTIONS, Policy
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.runa import EVENT_STATUSES, RunaOrderTrigger
from airflow_provider_runa.utils.arguments import (
    NOTSET,
    check_own_task,
    read_amount,
    read_days,
    to_seconds,
    unset_to_none,
)
from airflow_provider_runa.utils.assets import add_asset_event_extra
from airflow_provider_runa.utils.event_loop import run_async
from airflow_provider_runa.utils.failures import to_airflow_exception
from airflow_provider_runa.utils.openlineage import build_lineage

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: Time between two lines of progress in the log, in seconds.
PROGRESS_SECONDS = 5.0

#: The modes: plan and pay, only plan, only pay what was planned, or withdraw what was planned and not sent.
MODES = ("plan_and_pay", "plan", "pay", "withdraw")

#: What a run that has planned before does with recipients that are new in its input.
NEW_RECIPIENTS_ON_RERUN = ("leave_out", "pay")

ON_PARTIAL_FAILURE = ("fail", "warn")

#: Rows in these states were not paid, and need somebody or another plan.
_UNPAID = (RowState.FAILED, RowState.REJECTED, RowState.MISMATCH)

#: Counts of a plan that are part of the result.
_PLAN_COUNTS = ("read", "already_paid", "other_amount", "already_open", "open_elsewhere", "found", "left_out", "wrong")

#: Ids of orders that are not final -> the error, if their status could not be read.
_Processing = Mapping[str, Exception | None]


class RunaPayoutOperator(RowsMixin, BaseOperator):
    """Pays the rows of a campaign, each recipient key once.

    .. seealso:: :doc:`/campaigns`, :doc:`/guarantees`

    All runs and DAGs that use the same campaign and ledger share one record of who was paid. The operator checks the
    rows and writes them to the ledger in batches of up to 200. Each batch becomes one order. This plan is fixed before
    the first order is sent: a retry or a clear of the same run sends the same orders, even if the input has changed.
    Rows whose order failed or was rejected are planned again from the current input. Recipients that the ledger lists
    as paid are skipped.

    The operator returns a summary, ``{"campaign", "currency", "run", "rows", "amounts"}``. ``run`` is what this run
    did, in numbers of rows: ``read`` from the input; ``planned`` by this run, and of those ``paid`` (their sum is
    ``paid_amount``), ``open``, ``failed``, ``rejected``, ``mismatch``; and left out: ``already_paid`` (``other_amount``
    of them now ask for another amount), ``already_open`` in an earlier plan (``open_elsewhere`` of
    them in another run's), ``left_out`` because the plan is frozen,
    ``wrong``. ``rows`` and ``amounts`` are the totals of the campaign by state. Amounts are decimal strings. The ledger
    has the state of each row. Events of assets in ``outlets`` get the summary as ``extra``.

    Before anything is sent, the ledger is compared with Runa's order list. Rows that an order at Runa pays and that the
    ledger does not know, because it was lost or restored from a copy, are taken into the ledger and not paid again.

    :param campaign: name of the campaign, text of at most 109 characters. A recipient key is paid once per campaign.
        The name is also the description of the orders. (templated)
    :param rows: a list, an XCom, or a template that renders to a list or to JSON; see :func:`~.campaign.rows.read_row`.
        For any other source, override :meth:`iter_rows`. With ``render_template_as_native_obj=True``, a template must
        not write keys into the text of a list: ``[{"recipient_key": {{ phone }} }]`` turns +4479 into the number 4479,
        which nobody can tell from a key that is one. Let it render to JSON with ``tojson``. (templated)
    :param currency: currency of the account balance that pays, three capital letters. (templated)
    :param ledger_conn_id: id of the Airflow connection to the ledger's database: PostgreSQL, or SQLite for development.
        The tables are created on first use. (templated)
    :param defaults: values for fields that rows do not have, such as ``{"template_id": "PT-…"}``, or their JSON; see
        :func:`~.campaign.rows.read_row`. (templated)
    :param mode: ``"plan_and_pay"`` plans and pays. ``"plan"`` stops after the plan and returns its summary. ``"pay"``
        pays what any task has planned in this campaign, if it is within the limits, and reads no rows; its retries also
        order again for rows whose order this task placed and Runa could not complete. ``"withdraw"`` takes back what
        is planned in this campaign and was never sent; the next plan may plan it again. Default: ``"plan_and_pay"``.
        (templated)
    :param new_recipients_on_rerun: what a run that has planned before does with recipients that are new in its input,
        once all its orders are final: ``"leave_out"`` logs a warning, ``"pay"`` pays them. Choose ``"pay"`` for a
        query over a day that may get late rows, and ``"leave_out"`` for a query that draws winners at random. Default:
        ``"leave_out"``.
    :param look_back: how far back Runa's order list is read for a campaign that the ledger does not know: a
        ``timedelta`` or a number of days. Default: 31 days. (templated)
    :param max_total: upper limit for the sum of the amounts that this run sends. Default of this limit and the next
        two: no limit. ``None`` is rejected, because it may be a missing value. (templated)
    :param max_per_recipient: upper limit for the amount of one row. (templated)
    :param max_recipients: upper limit for the number of rows that this run pays. (templated)
    :param check_balance: check before the first order that the balance covers the face values to be paid. Set it to
        ``False`` if your account pays less than face value and the balance covers only that. Default: ``True``.
    :param on_partial_failure: ``"fail"``: rows that were not paid fail the task. ``"warn"``: they are only logged.
        Default: ``"fail"``.
    :param isolate_rejections: split an order that Runa rejects until the rejected rows are found, and pay the others.
        Default: ``False``.
    :param store_links: store payout links in the ledger (column ``payout_link``). A link is cash, see
        :doc:`/payout-links`. Default: ``False``.
    :param deferrable: wait in the triggerer instead of on a worker. Default: ``[operators] default_deferrable``.
    :param poll_interval: time between two polls, in seconds or as a ``timedelta``. Default: 30 seconds.
    :param timeout: how long one attempt waits for the orders after it placed them, in seconds or as a ``timedelta``.
        After that, the attempt fails and the orders continue at Runa. Default: 1 hour.
    :param runa_conn_id: id of the Airflow connection to Runa. Default: ``runa_default``. (templated)
    :raises AirflowFailException: if no retry can fix the failure. Its message says what happened to the money, what
        happens next and what to do.
    :raises PlacementError: if a retry can fix the failure. Its message says the same.
    """

    template_fields: Sequence[str] = (
        "campaign",
        "rows",
        "currency",
        "ledger_conn_id",
        "defaults",
        "mode",
        "look_back",
        "max_total",
        "max_per_recipient",
        "max_recipients",
        "runa_conn_id",
    )
    template_fields_renderers = {"defaults": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"
    operator_extra_links = (RunaPortalLink(),)

    #: The time limits for placing an order.
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
        new_recipients_on_rerun: str = "leave_out",
        look_back: timedelta | float | str = NOTSET,
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
        if new_recipients_on_rerun not in NEW_RECIPIENTS_ON_RERUN:
            raise ValueError(f"new_recipients_on_rerun: must be one of {', '.join(NEW_RECIPIENTS_ON_RERUN)}")
        if isinstance(rows, Iterator):
            raise ValueError(  # noqa: TRY004 - as for the other parameters
                f"rows: must be a list, not {type(rows).__name__}, which the next attempt could not read again; "
                "override iter_rows to stream rows"
            )
        self.campaign = campaign
        self.rows = rows
        self.currency = currency
        self.ledger_conn_id = ledger_conn_id
        self.defaults = defaults
        self.mode = mode
        self.new_recipients_on_rerun = new_recipients_on_rerun
        self.look_back = unset_to_none(look_back)
        self._has_look_back = look_back is not NOTSET
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
        self._deployment: str | None = None

    # -- Airflow's side ---------------------------------------------------------------------------------------------

    def execute(self, context: Context) -> dict[str, Any]:
        """Plan, pay, and wait until the orders are final."""
        try:
            check_own_task(self, context)
            with self._ledger() as ledger:
                run = _Run(self._run_id(context))
                if self.mode == "withdraw":
                    return self._publish(context, self._withdraw(ledger, run))
                run.undecided = run_async(self._catch_up(ledger)).undecided
                choose = self._choose_planned if self.mode == "pay" else self._plan
                batches = choose(ledger, run, context)
                if self.mode == "plan":
                    return self._publish(context, self._summary(ledger, run))
                if self.check_balance:
                    self._check_balance(ledger, batches)
                processing, deadline, cause = run_async(self._pay(ledger, run, batches))
                if processing and self.deferrable:
                    self._defer(processing, deadline, cause, run)
                return self._publish(context, self._report(ledger, run, processing, cause))
        except RunaError as error:
            raise to_airflow_exception(error) from None

    def execute_complete(
        self,
        context: Context,
        event: Any = None,
        refusal: tuple[int, str | None] | None = None,
        counts: dict[str, int] | None = None,
        unplaced: int = 0,
    ) -> dict[str, Any]:
        """Continue with the orders after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        :param refusal: HTTP status and type of the answer that kept orders from being placed before the task deferred.
        :param counts: what the plan counted before the task deferred.
        :param unplaced: number of orders that were not placed before the task deferred.
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
                # The list, which the trigger reads, may be newer than the single orders.
                seconds = INLINE_SECONDS if event["status"] == EventStatus.FINAL else 0.0
                run = _Run(self._run_id(context), counts or {}, unplaced=unplaced)
                processing = run_async(self._settle_within(ledger, run, seconds))
                return self._publish(context, self._report(ledger, run, processing, cause))
        except RunaError as error:
            raise to_airflow_exception(error, outcome="The orders that were placed continue") from None

    def on_kill(self) -> None:
        """Log that the orders continue: Runa cannot cancel an order."""
        self.log.warning(
            "The task is stopped. Orders that were placed continue at Runa and are in the ledger. Clear the task to "
            "continue with them."
        )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the lineage: the campaign as output dataset with its totals as a facet, without recipients.

        A plan has no lineage, because it pays nobody.

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
        """Yield the rows of the campaign. Override this method to read them from another source.

        :param context: the task's context.
        """
        yield from self._read_rows()

    # -- planning ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _ledger(self) -> Iterator[Ledger]:
        if self.mode not in MODES:
            raise InvalidOrderError(f"mode: must be one of {', '.join(MODES)}")
        campaign = read_campaign(self.campaign)
        settings = RunaHook(self.runa_conn_id).get_settings()
        self._environment = environment = settings.identity_environment
        self._deployment = settings.deployment
        with LedgerHook(self.ledger_conn_id).open() as engine:
            if self.mode == "pay" and campaign not in (known := campaigns(engine, environment)):
                raise unknown_campaign(campaign, known, environment)
            yield Ledger(engine, environment, campaign)

    def _run_id(self, context: Context) -> str:
        """Return the id of this task instance's plans, which is the same in each of its attempts."""
        task = context["ti"]
        names = [task.dag_id, task.run_id, task.task_id, -1 if task.map_index is None else task.map_index]
        # Another Airflow installation that shares the ledger may have a task instance with the same names.
        names += [self._deployment] if self._deployment is not None else []
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    def _limits(self) -> Limits:
        return Limits(
            total=self._amount("max_total"),
            per_recipient=self._amount("max_per_recipient"),
            recipients=self._count("max_recipients"),
        )

    def _withdraw(self, ledger: Ledger, run: _Run) -> dict[str, Any]:
        withdrawn = ledger.withdraw(self.clock.now())
        for currency, (count, total) in sorted(withdrawn.items()):
            self.log.warning("Campaign %r: %d row(s), %s %s, are withdrawn.", ledger.campaign, count, total, currency)
        run.counts["withdrawn"] = sum(count for count, _ in withdrawn.values())
        return self._summary(ledger, run)

    async def _catch_up(self, ledger: Ledger) -> Absorbed:
        """Bring the ledger up to date with Runa, before anything is planned or sent."""
        look_back = read_days("look_back", self.look_back) if self._has_look_back else LOOK_BACK
        async with self._client() as client:
            await self._settle(ledger, client)
            return await catch_up(
                ledger, client=AsyncOrderClient(client), clock=self.clock, look_back=look_back, policy=self.policy
            )

    def _plan(self, ledger: Ledger, run: _Run, context: Context) -> list[Batch]:
        with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
            report = plan(
                ledger,
                self.iter_rows(context),
                run=run.id,
                currency=self.currency,
                defaults=self._read_defaults(),
                limits=self._limits(),
                product=hook.get_product,
                now=self.clock.now(),
                new_recipients_on_rerun=self.new_recipients_on_rerun == "pay",
                excluded=run.undecided,
            )
        run.counts = {name: getattr(report, name) for name in _PLAN_COUNTS}
        self.log.info("Campaign %r is planned: %s.", ledger.campaign, report.describe(self.currency))
        self._warn(ledger, report)
        return report.batches

    def _warn(self, ledger: Ledger, report: PlanReport) -> None:
        """Log what a green run must not hide."""
        if not report.read:
            self.log.warning("Campaign %r: the input is empty, so there is nobody to pay.", ledger.campaign)
        if report.other_amount:
            self.log.warning(
                "Campaign %r: %d row(s) are paid already, and now ask for another amount or currency. They are not "
                "paid again.",
                ledger.campaign,
                report.other_amount,
            )
        if report.open_elsewhere:
            self.log.warning(
                "Campaign %r: %d row(s) are planned by another run and not paid yet. This run does not pay them: retry "
                'or clear that run, pay with mode="pay", or take the plan back with mode="withdraw".',
                ledger.campaign,
                report.open_elsewhere,
            )
        if report.left_out:
            self.log.warning(
                "Campaign %r: %d recipient(s) are new in the input of a run that has planned before. They are not "
                'paid: pay them with another run, or set new_recipients_on_rerun="pay".',
                ledger.campaign,
                report.left_out,
            )
        if report.mismatched:
            self.log.warning(
                "Campaign %r: %d row(s) are in COMPLETED orders that do not pay them as planned. They are not paid "
                "again; see runa-reconcile.",
                ledger.campaign,
                report.mismatched,
            )

    def _choose_planned(self, ledger: Ledger, run: _Run, context: Context) -> list[Batch]:
        """Return what is planned in the campaign, and the rows of orders of this task that Runa could not complete."""
        if count := ledger.plan_failed_again(run.id, self.clock.now()):
            self.log.info("Campaign %r: %d row(s) whose orders FAILED are ordered again.", ledger.campaign, count)
        batches, _ = choose_planned(ledger, currency=self.currency, limits=self._limits(), excluded=run.undecided)
        return batches

    def _amount(self, name: str) -> Decimal | None:
        if name not in self._limited:
            return None
        value = getattr(self, name)
        if value is None:
            raise InvalidOrderError(f"{name}: its value is missing; omit it for no limit")
        return read_amount(name, value)

    def _count(self, name: str) -> int | None:
        limit = self._amount(name)
        if limit is not None and limit != int(limit):
            raise InvalidOrderError(f"{name}: must be a whole number, not {limit}")
        return None if limit is None else int(limit)

    def _check_balance(self, ledger: Ledger, batches: Sequence[Batch]) -> None:
        """Check before the first order that the balance covers the rows that were never sent."""
        count, total = count_and_sum(ledger.amounts(batches, RowState.PLANNED))
        if not count:
            return
        with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
            try:
                balance = hook.get_balance(self.currency).balance
            except RunaError as error:
                self.log.warning(
                    "The balance could not be read (%s); the orders are sent, and Runa checks each of them.", error
                )
                return
        if balance < total:
            raise BalanceTooLowError(count=count, total=total, currency=self.currency, balance=balance)

    # -- paying -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncRunaClient]:
        # The settings are read outside the event loop: on a worker, Airflow answers one request at a time.
        settings = RunaHook(self.runa_conn_id).get_settings()
        async with create_client(AsyncRunaClient, settings) as client:
            yield client

    async def _pay(
        self, ledger: Ledger, run: _Run, batches: Sequence[Batch]
    ) -> tuple[_Processing, datetime, RunaApiError | None]:
        """Place all orders, then wait until they are final, or only for :data:`INLINE_SECONDS` if the task defers.

        :returns: the orders that are still PROCESSING, the deadline for them, and the answer that a retry has to wait
            for before it places the orders that are left.
        """
        settings = RunaHook(self.runa_conn_id).get_settings()
        progress = _Progress(self, ledger, settings.orders_per_minute)
        async with create_client(AsyncRunaClient, settings) as client:
            began = self.clock.now()
            async with progress.placing():
                paid = await pay(
                    ledger,
                    batches=batches,
                    owner=run.id,
                    client=AsyncOrderClient(client),
                    clock=self.clock,
                    isolate_rejections=self.isolate_rejections,
                    policy=self.policy,
                    progress=progress.note,
                )
            run.unplaced = paid.open
            placed = self.clock.now()
            seconds = (placed - began).total_seconds()
            self.log.info("Campaign %r: %d order(s) placed in %.1f s.", ledger.campaign, paid.placed, seconds)
            deadline = placed + timedelta(seconds=self.timeout)
            until = min(deadline, placed + timedelta(seconds=INLINE_SECONDS)) if self.deferrable else deadline
            return await self._wait(ledger, run, client, until, _Waiting(self, ledger)), deadline, _retry_cause(paid)

    async def _settle_within(self, ledger: Ledger, run: _Run, seconds: float) -> _Processing:
        async with self._client() as client:
            until = self.clock.now() + timedelta(seconds=seconds)
            return await self._wait(ledger, run, client, until, _Waiting(self, ledger))

    async def _wait(
        self, ledger: Ledger, run: _Run, client: AsyncRunaClient, until: datetime, waiting: _Waiting
    ) -> _Processing:
        """Settle until the orders of the run are final. The orders of other runs are settled with them."""
        pause = 1.0
        own = await asyncio.to_thread(ledger.orders_of, run.id)
        while processing := {id_: error for id_, error in (await self._settle(ledger, client)).items() if id_ in own}:
            if (left := (until - self.clock.now()).total_seconds()) <= 0:
                break
            waiting.log(len(processing))
            await self.clock.sleep(min(pause, left, self.poll_interval))
            pause = min(pause * 2, self.poll_interval)
        return processing

    async def _settle(self, ledger: Ledger, client: AsyncRunaClient) -> _Processing:
        """Read the orders once, and return those that are not final."""
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

    def _defer(self, processing: _Processing, deadline: datetime, cause: RunaApiError | None, run: _Run) -> None:
        self.log.info("%d order(s) are PROCESSING: waiting in the triggerer.", len(processing))
        self.defer(
            # Not fail_fast: the other orders continue after one has FAILED, and the ledger needs their outcome.
            trigger=RunaOrderTrigger(
                list(processing), self.runa_conn_id, self.poll_interval, deadline.timestamp(), fail_fast=False
            ),
            method_name="execute_complete",
            kwargs={"counts": run.counts, "unplaced": run.unplaced + len(run.undecided)}
            | ({"refusal": [cause.status, cause.type]} if cause else {}),
            timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
        )

    # -- reporting --------------------------------------------------------------------------------------------------

    def _publish(self, context: Context, summary: dict[str, Any]) -> dict[str, Any]:
        """Add the summary to the asset events and keep it for the lineage, then return it."""
        add_asset_event_extra(context, self.outlets, summary)
        if self.mode != "plan":
            self._paid_summary = summary
        return summary

    def _summary(self, ledger: Ledger, run: _Run) -> dict[str, Any]:
        totals, own = ledger.totals(self.currency), ledger.totals(run=run.id)
        paid, paid_amount = own.get(RowState.PAID, (0, Decimal(0)))
        by_state = {state: count for state, (count, _) in own.items()}
        return {
            "campaign": ledger.campaign,
            "currency": self.currency,
            "run": run.counts
            | {
                "planned": sum(by_state.values()),
                "paid": paid,
                "paid_amount": f"{paid_amount:.2f}",
                "open": by_state.get(RowState.PLANNED, 0) + by_state.get(RowState.SENT, 0),
            }
            | {
                state.value: by_state.get(state, 0) for state in (RowState.FAILED, RowState.REJECTED, RowState.MISMATCH)
            },
            "rows": {state.value: count for state, (count, _) in sorted(totals.items())},
            "amounts": {state.value: f"{amount:.2f}" for state, (_, amount) in sorted(totals.items())},
        }

    def _report(self, ledger: Ledger, run: _Run, processing: _Processing, cause: RunaApiError | None) -> dict[str, Any]:
        """Return the summary, or raise the reason why this run is not finished."""
        summary = self._summary(ledger, run)
        own = ledger.totals(run=run.id)
        counts = _describe(own, self.currency)
        self._warn_of_others(ledger, own)
        self.log.info("Campaign %r, this run: %s.", ledger.campaign, counts)
        error = self._failure(ledger, run, processing, cause, counts)
        if error is None:
            return summary
        # An unknown outcome is not a partial failure: the next attempt finds out.
        is_partial_failure = isinstance(error, CampaignFailedError | CampaignRejectedError)
        if is_partial_failure and self.on_partial_failure == "warn":
            self.log.warning("%s", error)
            return summary
        raise error

    def _failure(
        self, ledger: Ledger, run: _Run, processing: _Processing, cause: RunaApiError | None, counts: str
    ) -> PlacementError | None:
        """Return why this run is not finished, if it is not."""
        own = ledger.totals(run=run.id)
        facts = {"campaign": ledger.campaign, "counts": counts}
        own_open = set(ledger.open_batches_of(run.id)) - run.undecided
        if unplaced := max(run.unplaced, len(own_open)) + len(run.undecided):
            reason = ledger.reason(BatchState.OPEN, run=run.id) or "another run of the campaign is placing them"
            return CampaignUnfinishedError(**facts, unplaced=unplaced, reason=reason, answer=cause)
        if processing:
            return _unreadable_status(processing) or CampaignStillProcessingError(**facts, orders=len(processing))
        if RowState.MISMATCH in own:
            mismatch = ledger.row_error(RowState.MISMATCH, run=run.id)
            return PayoutMismatchError(**facts, rows=own[RowState.MISMATCH][0], reason=mismatch)
        if RowState.FAILED in own:
            return CampaignFailedError(**facts)
        if RowState.REJECTED in own:
            return CampaignRejectedError(**facts, reason=ledger.reason(BatchState.REJECTED, run=run.id))
        return None

    def _warn_of_others(self, ledger: Ledger, own: Mapping[RowState, tuple[int, Decimal]]) -> None:
        """Log rows of other runs of the campaign that need somebody. They do not fail this run."""
        others = {
            state: count - own.get(state, (0, Decimal(0)))[0]
            for state, (count, _) in ledger.totals().items()
            if state in _UNPAID
        }
        if listed := ", ".join(f"{count} {state}" for state, count in sorted(others.items()) if count):
            self.log.warning(
                "Campaign %r: rows that other runs have planned were not paid: %s. See runa-status.",
                ledger.campaign,
                listed,
            )


@dataclass
class _Run:
    """What this run is and what it has counted.

    :param id: the id of its plans.
    :param counts: what its plan counted; see :class:`RunaPayoutOperator`.
    :param undecided: ids of batches that must not be sent in this attempt.
    :param unplaced: batches that it was to pay and whose orders are not placed.
    """

    id: str
    counts: dict[str, int] = field(default_factory=dict)
    undecided: set[str] = field(default_factory=set)
    unplaced: int = 0


def _retry_cause(paid: Paid) -> RunaApiError | None:
    """Return the answer that a retry has to wait for: one that a person has to fix, else a rate limit, if any."""
    for kinds in (RECOVERABLE_REJECTIONS, RunaRateLimitError):
        for error in paid.unplaced:
            if isinstance(error.cause, kinds):
                return error.cause
    return None


def _unreadable_status(processing: _Processing) -> PlacementError | None:
    """Return the error for orders whose status could not be read, ``None`` if all are PROCESSING."""
    unreadable = {order_id: error for order_id, error in processing.items() if error is not None}
    for order_id, error in unreadable.items():
        if isinstance(error, RunaNotFoundError):
            return WrongAccountError(order_id=order_id)
    for order_id, error in unreadable.items():
        return StatusUnreadableError(order_id=order_id, answer=error)
    return None


def _describe(totals: Mapping[RowState, tuple[int, Decimal]], currency: str) -> str:
    """Return how much of a run is paid, and what became of its other rows."""
    if not totals:
        return "nobody to pay"
    paid, amount = totals.get(RowState.PAID, (0, Decimal(0)))
    others = ", ".join(f"{count} {state}" for state, (count, _) in sorted(totals.items()) if state != RowState.PAID)
    text = f"{paid} of {sum(count for count, _ in totals.values())} paid, {amount:,.2f} {currency}"
    return f"{text}; {others}" if others else text


class _Progress:
    """Logs the progress of placing orders every :data:`PROGRESS_SECONDS`, also while the rate limit lets none through.

    :param operator: whose clock and log it uses.
    :param ledger: the ledger of the campaign.
    :param per_minute: how many orders may be sent in a minute.
    """

    def __init__(self, operator: RunaPayoutOperator, ledger: Ledger, per_minute: int) -> None:
        self.operator = operator
        self.ledger = ledger
        self.per_minute = per_minute
        self.began = operator.clock.now()
        self.paid, self.queued = Paid(), 0

    def note(self, paid: Paid, queued: int) -> None:
        """Keep the result so far and the number of orders in the queue."""
        self.paid, self.queued = paid, queued

    @contextlib.asynccontextmanager
    async def placing(self) -> AsyncIterator[None]:
        """Log the progress for as long as the block runs."""
        logging = asyncio.create_task(self._log_repeatedly())
        try:
            yield
        finally:
            logging.cancel()

    async def _log_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)  # not the clock's: nothing but the log depends on it
            self.operator.log.info("Campaign %r: %s.", self.ledger.campaign, self.text())

    def text(self) -> str:
        """Return how many orders are placed, in flight and queued, and how long the rest will take."""
        paid = self.paid
        text = f"{paid.placed} order(s) placed, {paid.in_flight} in flight, {self.queued} queued"
        if not paid.placed:
            return text
        elapsed = (self.operator.clock.now() - self.began).total_seconds()
        left = paid.in_flight + self.queued
        # The first orders of each minute go at once, so that the rate so far promises too much.
        last_minute = 60.0 * ((paid.placed + left - 1) // self.per_minute)
        return f"{text}, about {max(left * elapsed / paid.placed, last_minute - elapsed):.0f} s to go"


class _Waiting:
    """Logs how many orders are PROCESSING, at most every :data:`PROGRESS_SECONDS`."""

    def __init__(self, operator: RunaPayoutOperator, ledger: Ledger) -> None:
        self.operator = operator
        self.ledger = ledger
        self.last_logged = operator.clock.now()

    def log(self, processing: int) -> None:
        """Log how many orders are still PROCESSING."""
        now = self.operator.clock.now()
        if (now - self.last_logged).total_seconds() >= PROGRESS_SECONDS:
            self.last_logged = now
            self.operator.log.info("Campaign %r: %d order(s) are PROCESSING.", self.ledger.campaign, processing)
