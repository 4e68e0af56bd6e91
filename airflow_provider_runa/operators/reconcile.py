"""RunaReconcileOperator: fails if the ledger and Runa do not say the same of who was paid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator
from sqlalchemy.engine import Engine

from airflow_provider_runa.api.client import AsyncRunaClient
from airflow_provider_runa.api.errors import InvalidOrderError, RunaError
from airflow_provider_runa.campaign.errors import LedgerDiffersError
from airflow_provider_runa.campaign.reconcile import Difference, Reconciliation, reconcile
from airflow_provider_runa.hooks.ledger import LedgerHook
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook, RunaSettings
from airflow_provider_runa.utils.arguments import parse_datetime
from airflow_provider_runa.utils.failures import to_airflow_exception

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


class RunaReconcileOperator(BaseOperator):
    """Compares a campaign's ledger with Runa, and fails if they differ.

    It finds orders that pay and the ledger does not know, orders and items that the ledger knows and Runa does not,
    orders that do not pay as the ledger says, recipients whom two orders pay, and amounts that differ. Rows that are
    still to be paid are no difference. It only reads. The log has one line per difference, without recipients;
    ``runa-reconcile`` tells them, too.

    Returns a summary: ``{"campaign", "differences", "orders", "hidden", "open_rows"}``: the number of differences by
    kind (none), of orders that were looked at, of orders still PROCESSING that could not be, and of open rows by state.
    Pushes it as the XCom ``summary`` before it fails, too.

    :param campaign: name of the campaign. Left out, the period decides: all campaigns that the ledger knows, and orders
        of others that it does not. (templated)
    :param since: orders that were placed at or after this moment: a ``datetime``, or text such as ``2026-01-31`` or
        ``{{ data_interval_start }}``; UTC if it names no zone. Left out, since the campaign's first plan. (templated)
    :param until: orders that were placed before this moment. (templated)
    :param ledger_conn_id: id of the Airflow connection to the ledger's database. (templated)
    :param runa_conn_id: id of the Airflow connection to Runa. (templated)
    :raises AirflowFailException: if anything differs, in one line.
    :raises RunaError: if Runa cannot be read; a retry may heal that.
    """

    template_fields: Sequence[str] = ("campaign", "since", "until", "ledger_conn_id", "runa_conn_id")
    ui_color = "#e8e3ff"

    def __init__(
        self,
        *,
        ledger_conn_id: str,
        campaign: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        runa_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if campaign is None and since is None:
            raise ValueError("a campaign or the begin of a period (since) is needed")
        self.campaign = campaign
        self.since = since
        self.until = until
        self.ledger_conn_id = ledger_conn_id
        self.runa_conn_id = runa_conn_id
        # What was given must not be gone once it is rendered: something else would be compared than was meant.
        self._given = tuple(name for name in ("campaign", "since", "until") if getattr(self, name) is not None)

    def execute(self, context: Context) -> dict[str, Any]:
        """Compare."""
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
        if gone := [name for name in self._given if not str(getattr(self, name) or "").strip()]:
            raise InvalidOrderError(f"{gone[0]}: its value is missing")
        since, until = parse_datetime("since", self.since), parse_datetime("until", self.until)
        settings = RunaHook(self.runa_conn_id).get_settings()
        with LedgerHook(self.ledger_conn_id).open(reading=True) as engine:
            return compare(engine, settings, campaign=self.campaign, since=since, until=until)


def _shown(difference: Difference) -> tuple[str, str, str | None, str]:
    """Return what everybody may see of a difference who may read the task's log."""
    return difference.kind, difference.campaign, difference.order_id, difference.text


def compare(
    engine: Engine,
    settings: RunaSettings,
    *,
    campaign: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Reconciliation:
    """Compare a ledger with the Runa of a connection.

    :param engine: the ledger's database.
    :param settings: what the connection to Runa says.
    :param campaign: see :func:`~.campaign.reconcile.reconcile`.
    :param since: begin of the period.
    :param until: end of the period.
    :raises InvalidOrderError: if there is no such campaign or period.
    """
    campaign = campaign if campaign is None else campaign.strip()
    if since is not None and until is not None and since >= until:
        raise InvalidOrderError("until: must be after since")

    async def look() -> Reconciliation:
        async with AsyncRunaClient(**settings.client_arguments()) as client:
            return await reconcile(
                engine, settings.base_url, client=client, campaign=campaign, since=since, until=until
            )

    return asyncio.run(look())
