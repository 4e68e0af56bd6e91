"""RunaReconcileOperator: compares a campaign's ledger with Runa."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator
from sqlalchemy.engine import Engine

from airflow_provider_runa.api.client import AsyncRunaClient
from airflow_provider_runa.api.errors import InvalidOrderError, RunaError
from airflow_provider_runa.api.statuses import read_statuses
from airflow_provider_runa.campaign.catch_up import catch_up
from airflow_provider_runa.campaign.errors import LedgerDiffersError
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.plan import recover
from airflow_provider_runa.campaign.reconcile import Difference, Reconciliation, reconcile
from airflow_provider_runa.campaign.rows import Defaults, read_campaign
from airflow_provider_runa.campaign.settle import settle
from airflow_provider_runa.hooks.ledger import LedgerHook
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook, RunaSettings, create_client
from airflow_provider_runa.operators._placement_ports import AsyncClock, AsyncOrderClient
from airflow_provider_runa.operators._rows import RowsMixin
from airflow_provider_runa.utils.arguments import parse_datetime
from airflow_provider_runa.utils.event_loop import run_async
from airflow_provider_runa.utils.failures import to_airflow_exception

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaReconcileOperator(RowsMixin, BaseOperator):
    """Compares a campaign's ledger with Runa, and fails if they differ.

    .. seealso:: :doc:`/campaigns`

    It reports orders that pay and are not in the ledger, orders and items that are in the ledger and not at Runa,
    orders that do not pay what the ledger says, recipients that two orders pay, and different amounts. Rows that are
    still to be paid are no difference. It only reads. The log has one line per difference, without recipients. The
    command ``runa-reconcile`` also shows recipient keys.

    The operator returns a summary, ``{"campaign", "differences", "orders", "hidden", "open_rows"}``: the number of
    differences by kind (empty), of orders that were compared, of orders that are still PROCESSING and could not be
    compared, and of open rows by state. If it fails, it pushes the same summary as the XCom ``summary``.

    :param campaign: name of the campaign. Default: all campaigns in the ledger, and orders of campaigns that the ledger
        does not have, within the period. (templated)
    :param since: compare orders placed at or after this time: a ``datetime``, or text such as ``2026-01-31`` or
        ``{{ data_interval_start }}``, in UTC if it has no zone. Default: the campaign's first plan. (templated)
    :param until: compare orders placed before this time. Default: no limit. (templated)
    :param rows: rebuild a ledger that was lost, before it is compared: rows that may have been paid, as
        :class:`~.operators.payout.RunaPayoutOperator` takes them. Those that an order of the campaign pays, since
        ``since``, are taken into the ledger. Nothing is planned and nothing is sent. (templated)
    :param defaults: values for fields that ``rows`` do not have. (templated)
    :param ledger_conn_id: id of the Airflow connection to the ledger's database. (templated)
    :param runa_conn_id: id of the Airflow connection to Runa. Default: ``runa_default``. (templated)
    :raises AirflowFailException: if anything differs, or if no retry can fix the failure.
    :raises RunaError: if Runa gives no usable answer.
    """

    template_fields: Sequence[str] = (
        "campaign",
        "since",
        "until",
        "rows",
        "defaults",
        "ledger_conn_id",
        "runa_conn_id",
    )
    ui_color = "#e8e3ff"

    def __init__(
        self,
        *,
        ledger_conn_id: str,
        campaign: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        rows: Any = None,
        defaults: Mapping[str, Any] | None = None,
        runa_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if campaign is None and since is None:
            raise ValueError("campaign, since: set at least one of them")
        if rows is not None and campaign is None:
            raise ValueError("rows: a ledger is rebuilt for one campaign; set campaign")
        self.campaign = campaign
        self.since = since
        self.until = until
        self.rows = rows
        self.defaults = defaults
        self._rebuilds = rows is not None
        self.ledger_conn_id = ledger_conn_id
        self.runa_conn_id = runa_conn_id
        # A field that renders to None must not silently change what is compared.
        self._given = tuple(name for name in ("campaign", "since", "until") if getattr(self, name) is not None)

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare the ledger with Runa, and return the summary."""
        try:
            result = self._compare()
            for difference in result.differences:
                self.log.error("%s: campaign %r, order %s: %s.", *_shown(difference))
            self.log.info("%s", result)
            summary = {
                "campaign": self.campaign,
                "differences": result.counts(),
                "orders": result.orders,
                "hidden": result.hidden,
                "open_rows": result.open_rows,
            }
            if result.differences:
                if self.do_xcom_push:
                    context["ti"].xcom_push(key="summary", value=summary)
                counts = ", ".join(f"{count} {kind}" for kind, count in result.counts().items())
                what = "the period" if self.campaign is None else f"campaign {self.campaign!r}"
                raise LedgerDiffersError(what=what, counts=counts)
        except RunaError as error:
            raise to_airflow_exception(error) from None
        return summary

    def _compare(self) -> Reconciliation:
        if missing := [name for name in self._given if not str(getattr(self, name) or "").strip()]:
            raise InvalidOrderError(f"{missing[0]}: its value is missing")
        since, until = parse_datetime("since", self.since), parse_datetime("until", self.until)
        settings = RunaHook(self.runa_conn_id).get_settings()
        with LedgerHook(self.ledger_conn_id).open(reading=not self._rebuilds) as engine:
            if self._rebuilds:
                rows, defaults = self._read_rows(), self._read_defaults()
                found = rebuild(engine, settings, self.campaign, rows, defaults=defaults, since=since)
                self.log.info("Campaign %r: %d row(s) were taken into the ledger.", self.campaign, found)
            return compare(engine, settings, campaign=self.campaign, since=since, until=until)


def rebuild(
    engine: Engine,
    settings: RunaSettings,
    campaign: str | None,
    rows: Iterable[Any],
    *,
    defaults: Defaults,
    since: datetime | None,
) -> int:
    """Take rows into a ledger that orders at Runa pay; return how many. Nothing is planned and nothing is sent.

    :param engine: the ledger's database.
    :param settings: the settings of the connection to Runa.
    :param campaign: name of the campaign.
    :param rows: rows that may have been paid.
    :param defaults: values for fields that they do not have.
    :param since: read Runa's order list from here on; ``None`` for 31 days back.
    :raises RunaError: if a row is wrong, or Runa's orders cannot be read.
    """
    ledger, clock = Ledger(engine, settings.identity_environment, read_campaign(campaign)), AsyncClock()

    async def look(*, since: datetime | None) -> int:
        async with create_client(AsyncRunaClient, settings) as client:
            reader = AsyncOrderClient(client)
            statuses = functools.partial(read_statuses, client)
            await settle(ledger, client=reader, statuses=statuses, clock=clock)
            found = await catch_up(ledger, client=reader, clock=clock, since=since)
            report = await asyncio.to_thread(recover, ledger, rows, run="rebuild", defaults=defaults, now=clock.now())
            await settle(ledger, client=reader, statuses=statuses, clock=clock)
            return found.rows + report.found

    return run_async(look(since=since))


def _shown(difference: Difference) -> tuple[str, str, str | None, str]:
    """Return the parts of a difference that the task's log may show: no recipients."""
    return difference.kind, difference.campaign, difference.order_id, difference.text


def compare(
    engine: Engine,
    settings: RunaSettings,
    *,
    campaign: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Reconciliation:
    """Compare a ledger with Runa.

    :param engine: the ledger's database.
    :param settings: the settings of the connection to Runa.
    :param campaign: see :func:`~.campaign.reconcile.reconcile`.
    :param since: start of the period, inclusive; ``None`` for the campaign's first plan.
    :param until: end of the period, exclusive; ``None`` for no limit.
    :raises InvalidOrderError: if there is no such campaign or period.
    """
    campaign = campaign if campaign is None else read_campaign(campaign)
    if since is not None and until is not None and since >= until:
        raise InvalidOrderError("until: must be after since")

    async def look() -> Reconciliation:
        async with create_client(AsyncRunaClient, settings) as client:
            return await reconcile(
                engine, settings.identity_environment, client=client, campaign=campaign, since=since, until=until
            )

    return run_async(look())
