"""RunaCreateOrderOperator: renders an order, places it exactly once, waits for it if asked to, and reports it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_runa.api.errors import InvalidOrderError, RunaError
from airflow_provider_runa.api.models import NewOrder, Order, OrderStatus, check_execution_mode
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.links.portal import RunaPortalLink
from airflow_provider_runa.operators._placement_ports import BlockingOrderClient, SystemClock, TaskStateRecords
from airflow_provider_runa.placement.errors import (
    LinksNotWrittenError,
    OrderFailedError,
    StatusUnreadableError,
    StillProcessingError,
)
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.place import KEY_MEMORY, Attempt, Placement, Policy, place
from airflow_provider_runa.placement.ports import run_blocking
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.runa import EVENT_STATUSES, RunaOrderTrigger
from airflow_provider_runa.utils.arguments import NOTSET, read_amount, read_items, to_seconds, unset_to_none
from airflow_provider_runa.utils.assets import add_asset_event_extra
from airflow_provider_runa.utils.failures import to_airflow_exception
from airflow_provider_runa.utils.masking import MaskRecipientsMixin
from airflow_provider_runa.utils.openlineage import build_lineage
from airflow_provider_runa.utils.payout_links import check_links_target, write_payout_links

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

#: How long a deferrable task polls before it defers, in seconds: most orders are done by then, and a trigger that
#: fires right after the deferral is a risk (see ``triggers.runa``).
INLINE_SECONDS = 15.0

#: Pauses of the first polls, in seconds.
_FIRST_PAUSES = (1.0, 2.0, 4.0, 8.0)


class RunaCreateOrderOperator(MaskRecipientsMixin, BaseOperator):
    """Places one Runa order, exactly once, and returns its id.

    However often the task is retried, cleared or killed: as long as the order's identity is the same, there is at
    most one order that pays, and the task is green only if it is there. See "What is guaranteed" in the README.

    Events of assets among its ``outlets`` get the same as ``extra``, with ``order_id`` for ``id``.

    Pushes the XCom ``order``: ``{"id", "status", "currency", "face_value", "items", "total_price",
    "total_discount"}``: ``face_value`` is the sum of the payouts in the currency of their products, ``items`` their
    number; amounts are decimal strings, prices ``None`` until the order is COMPLETED. Neither links nor recipients are
    pushed, and nothing with ``do_xcom_push=False``.

    :param items: the payouts, 1 to 200 of them, each as Runa's API takes it: ``{"face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": …}, "products": {"type": "SINGLE", "value": …}}``.
        A list, an XCom, or a template that renders to a list or to JSON. (templated)
    :param currency: currency of the account balance that pays, three capital letters. (templated)
    :param description: shown in Runa's portal, never to recipients; at most 109 characters. (templated)
    :param metadata: pairs of strings to find the order by, at most 14 (18 with an ``order_key``). (templated)
    :param order_key: business key of the order, such as ``spring-winback/customer-42``: whichever task orders it,
        it is paid once. Left out, it is the task itself, so that each run and each mapped task pays once; ``None`` is
        refused, because that is what a missing value looks like. (templated)
    :param look_back: how long ago *another* run may have sent its first request for the same ``order_key``, a refused
        one included: a ``timedelta`` or a number of days. Runa itself remembers for 29 days; for more the order list
        is searched before the first request. Default: 28 days. (templated)
    :param execution_mode: ``"async"``, or ``"sync"`` for exactly one item: Runa answers when it is done. (templated)
    :param wait_for_completion: whether the task ends only when the order is COMPLETED.
    :param deferrable: wait in the triggerer instead of on a worker, if the task waits at all. Default: ``[operators]
        default_deferrable``.
    :param poll_interval: seconds between two looks at the order, or a ``timedelta``.
    :param timeout: how long one attempt waits for the order, in seconds or as a ``timedelta``. The order goes on after
        that.
    :param max_total: the sum of all face values may not be more: a guard against a wrong column. Left out, there is no
        limit; ``None`` is refused, as it is for ``order_key``. (templated)
    :param links_to: a file for the payout links of the items that are distributed by PAYOUT_LINK, once the order is
        COMPLETED: an absolute path or the URL of an object store, ending in ``.jsonl`` or ``.csv``. A link is cash: see
        docs/payout-links.md. Needs ``wait_for_completion`` or sync mode. Default: links are left with Runa. (templated)
    :param runa_conn_id: id of the Airflow connection. (templated)
    :raises AirflowFailException: for everything that a retry cannot heal, in one line that says what happened to
        the money, what happens next and what to do.
    :raises PlacementError: for everything that a retry can heal.
    """

    template_fields: Sequence[str] = (
        "items",
        "currency",
        "description",
        "metadata",
        "order_key",
        "look_back",
        "execution_mode",
        "max_total",
        "links_to",
        "runa_conn_id",
    )
    template_fields_renderers = {"items": "json", "metadata": "json"}  # noqa: RUF012 - as Airflow declares it
    ui_color = "#e8e3ff"
    operator_extra_links = (RunaPortalLink(),)

    #: How long the steps of placing may take.
    policy = Policy()

    def __init__(
        self,
        *,
        items: Sequence[Mapping[str, Any]] | str,
        currency: str,
        description: str | None = None,
        metadata: Mapping[str, str] | None = None,
        order_key: str = NOTSET,
        look_back: timedelta | float | str = NOTSET,
        execution_mode: str = "async",
        wait_for_completion: bool = False,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | timedelta = 30.0,
        timeout: float | timedelta = 3600.0,
        max_total: Decimal | float | str = NOTSET,
        links_to: str | None = None,
        runa_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.items = items
        self.currency = currency
        self.description = description
        self.metadata = metadata
        self.order_key = unset_to_none(order_key)
        self.look_back = unset_to_none(look_back)
        self.execution_mode = execution_mode
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = to_seconds("poll_interval", poll_interval)
        self.timeout = to_seconds("timeout", timeout)
        self.max_total = unset_to_none(max_total)
        self.links_to = links_to
        self.runa_conn_id = runa_conn_id
        # What was given must not be gone once it is rendered: without its value, less would be guarded than was meant.
        self._has_order_key = order_key is not NOTSET
        self._has_look_back = look_back is not NOTSET
        self._has_max_total = max_total is not NOTSET
        self._has_links_to = links_to is not None
        self.clock = SystemClock()
        self._order_id: str | None = None
        self._summary: dict[str, Any] | None = None
        self._environment = ""

    # -- Airflow's side ---------------------------------------------------------------------------------------------

    def execute(self, context: Context) -> str:
        """Place the order, and wait for it if asked to."""
        try:
            wanted = self._build()
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                order = self._place(hook, context, wanted).order
                if self._waits():
                    order = self._wait(hook, order)
            self._write_payout_links(order, wanted)
        except RunaError as error:
            raise to_airflow_exception(error) from None
        return self._report(context, order, wanted)

    def execute_complete(self, context: Context, event: Any = None) -> str:
        """Take up the order again after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        """
        event = read_event(event, allowed=EVENT_STATUSES, needs="orders")
        (order_id,) = event["orders"]
        try:
            if event["status"] == EventStatus.UNREADABLE:
                raise StatusUnreadableError(order_id=order_id, answer=event.get("reason"))
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                order = self._fetch(hook, order_id)
                self._environment = hook.get_settings().base_url
                for pause in _FIRST_PAUSES if event["status"] == EventStatus.FINAL else ():
                    if self._settled(order) is None:  # the list, which the trigger may have read, was ahead
                        run_blocking(self.clock.sleep(pause))
                        order = self._fetch(hook, order_id)
            if self._settled(order) is None:
                raise StillProcessingError(order_id=order_id, seconds=f"at most {self.timeout:.0f}")
            if self._has_links_to:
                try:
                    wanted = self._wanted(context)
                except InvalidOrderError as error:
                    raise LinksNotWrittenError(order_id=order_id, reason=str(error).rstrip(".")) from None
                self._write_payout_links(order, wanted)
        except RunaError as error:
            raise to_airflow_exception(error) from None
        return self._report(context, order)

    def on_kill(self) -> None:
        """Say that the order goes on: Runa has no way to cancel one."""
        if self._order_id:
            self.log.warning("The task is stopped, but order %s goes on: Runa cannot cancel it.", self._order_id)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return what OpenLineage is told: the order as output dataset, its totals as a facet, and nobody's name.

        :param task_instance: the task instance.
        """
        summary = self._summary
        if summary is None:
            return None
        amounts = {name: summary[name] for name in ("face_value", "total_price", "total_discount") if summary[name]}
        return build_lineage(
            self._environment,
            summary["id"],
            status=summary["status"],
            currency=summary["currency"],
            paid=summary["items"],
            counts={"items": summary["items"]} if summary["items"] else {},
            amounts=amounts,
        )

    # -- placing ----------------------------------------------------------------------------------------------------

    def _place(self, hook: RunaHook, context: Context, order: NewOrder) -> Placement:
        settings = hook.get_settings()
        self._environment = settings.base_url
        task = context["ti"]
        if self._has_order_key:
            if self.order_key is None:
                raise InvalidOrderError("order_key: its value is missing; leave it out to pay once for each task")
            identity = OrderIdentity.from_order_key(settings.base_url, self.order_key)
        else:
            identity = OrderIdentity.from_task(
                settings.base_url,
                dag_id=task.dag_id,
                run_id=task.run_id,
                task_id=task.task_id,
                map_index=-1 if task.map_index is None else task.map_index,
            )
        self.log.info(
            "Placing an order of %d item(s), %s in total face value, on %s; reference %s.",
            len(order.items),
            order.total,
            settings.environment,
            identity.short_name,
        )
        placement = run_blocking(
            place(
                order,
                identity,
                Attempt(task.try_number, self._began_after(context), self._look_back()),
                execution_mode=self.execution_mode,
                client=BlockingOrderClient(hook.get_conn()),
                records=TaskStateRecords(context.get("task_state_store"), identity),
                clock=self.clock,
                policy=self.policy,
            )
        )
        self._order_id = placement.order.id
        self.log.info(
            "Order %s is %s (reference %s%s).",
            placement.order.id,
            placement.order.status,
            placement.reference,
            ", placed earlier" if placement.adopted else "",
        )
        return placement

    def _build(self) -> NewOrder:
        """Build the order from the rendered fields, and check everything that can be checked before it is sent."""
        order = NewOrder.build(
            currency=self.currency,
            items=read_items(self.items),
            description=self.description or None,
            metadata=self.metadata or None,
        )
        check_execution_mode(order, self.execution_mode)
        if self._has_links_to:
            if not self._waits():
                raise InvalidOrderError("links_to: needs wait_for_completion=True, because links come with completion")
            check_links_target(self.links_to, order)
        if self._has_max_total:
            limit = read_amount("max_total", self.max_total)
            if order.total > limit:
                raise InvalidOrderError(
                    f"max_total: the items add up to {order.total}, more than the {limit} allowed; nothing was sent"
                )
        return order

    def _wanted(self, context: Context) -> NewOrder:
        """Build the order anew, after a deferral."""
        return self._build()

    def _look_back(self) -> timedelta | None:
        if not self._has_look_back:
            return None
        try:
            value: Any = self.look_back
            look_back = value if isinstance(value, timedelta) else timedelta(days=float(value))
        except (TypeError, ValueError, OverflowError):
            look_back = timedelta(-1)
        if look_back < timedelta(0):
            raise InvalidOrderError(f"look_back: must be a timedelta or a number of days, not {self.look_back!r}")
        return look_back

    def _began_after(self, context: Context) -> datetime:
        """Return a moment before the first attempt: the run cannot have begun before it was due."""
        run: Any = context["dag_run"]
        due = (getattr(run, "run_after", None), getattr(run, "logical_date", None))
        known = [moment for moment in due if moment is not None]
        return min(known) if known else self.clock.now() - KEY_MEMORY

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _waits(self) -> bool:
        return self.wait_for_completion or self.execution_mode == "sync"

    def _wait(self, hook: RunaHook, order: Order) -> Order:
        """Poll until the order is settled; a deferrable task defers after a while."""
        began = self.clock.now()
        deadline = began + timedelta(seconds=self.timeout)
        pauses = iter(_FIRST_PAUSES)
        while (settled := self._settled(order)) is None:
            now = self.clock.now()
            if now >= deadline:
                raise StillProcessingError(order_id=order.id, seconds=f"{self.timeout:.0f}")
            if self.deferrable and now - began >= timedelta(seconds=INLINE_SECONDS):
                self.log.info("Order %s is %s: waiting in the triggerer.", order.id, order.status)
                self.defer(
                    trigger=RunaOrderTrigger([order.id], self.runa_conn_id, self.poll_interval, deadline.timestamp()),
                    method_name="execute_complete",
                    timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
                )
            pause = min(next(pauses, self.poll_interval), self.poll_interval, (deadline - now).total_seconds())
            run_blocking(self.clock.sleep(pause))
            order = self._fetch(hook, order.id)
        return settled

    def _settled(self, order: Order) -> Order | None:
        """Return the order if it is COMPLETED, ``None`` if it is not settled."""
        if order.status == OrderStatus.FAILED:
            raise OrderFailedError(order_id=order.id)
        if order.status != OrderStatus.COMPLETED:
            return None
        self.log.info("Order %s is COMPLETED.", order.id)
        return order

    def _fetch(self, hook: RunaHook, order_id: str) -> Order:
        self._order_id = order_id
        try:
            return hook.get_order(order_id)
        except RunaError as error:
            raise StatusUnreadableError(order_id=order_id, answer=error) from None

    def _write_payout_links(self, order: Order, wanted: NewOrder) -> None:
        """Write the payout links to where the author wants them, if anywhere."""
        if self._has_links_to:
            count = write_payout_links(str(self.links_to), wanted, order)
            self.log.info("%d payout link(s) of order %s were written to links_to.", count, order.id)

    # -- reporting --------------------------------------------------------------------------------------------------

    def _report(self, context: Context, order: Order, wanted: NewOrder | None = None) -> str:
        """Push the summary: what was paid as Runa tells it, and while it does not, as it was wanted.

        After a deferral the order is COMPLETED. What the templates render to by then may be something else.
        """
        payouts = order.items or (wanted.items if wanted else ())
        summary = {
            "id": order.id,
            "status": str(order.status),
            "currency": order.currency or (wanted.payment_method.currency if wanted else None),
            "face_value": f"{sum(payout.face_value for payout in payouts):.2f}" if payouts else None,
            "items": len(payouts) if payouts else None,
            "total_price": _text(order.total_price),
            "total_discount": _text(order.total_discount),
        }
        if self.do_xcom_push:
            context["ti"].xcom_push(key="order", value=summary)
        add_asset_event_extra(
            context, self.outlets, {"order_id": order.id, **{k: v for k, v in summary.items() if k != "id"}}
        )
        self._summary = summary
        return order.id


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else str(amount)
