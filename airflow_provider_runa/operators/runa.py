"""RunaCreateOrderOperator: places one order exactly once, and optionally waits until it is COMPLETED."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, conf

from airflow_provider_runa.api.errors import InvalidOrderError, RunaError
from airflow_provider_runa.api.models import MAX_ITEMS, NewOrder, Order, OrderStatus, check_execution_mode
from airflow_provider_runa.hooks.runa import DEFAULT_CONN_ID, RunaHook
from airflow_provider_runa.links.portal import RunaPortalLink
from airflow_provider_runa.operators._placement_ports import BlockingOrderClient, SystemClock, TaskStateRecords
from airflow_provider_runa.placement.errors import (
    LinksNotWrittenError,
    OrderFailedError,
    OrderMismatchError,
    RecordUnavailableError,
    StatusUnreadableError,
    StillProcessingError,
)
from airflow_provider_runa.placement.identity import DEPLOYMENT, OrderIdentity
from airflow_provider_runa.placement.payment import Expectation, unpaid
from airflow_provider_runa.placement.place import KEY_MEMORY, Attempt, Placement, Policy, place
from airflow_provider_runa.placement.ports import run_blocking
from airflow_provider_runa.triggers._events import EventStatus, read_event
from airflow_provider_runa.triggers.runa import EVENT_STATUSES, RunaOrderTrigger
from airflow_provider_runa.utils.arguments import (
    NOTSET,
    check_own_task,
    read_amount,
    read_days,
    read_items,
    read_json,
    to_seconds,
    unset_to_none,
)
from airflow_provider_runa.utils.assets import add_asset_event_extra
from airflow_provider_runa.utils.failures import to_airflow_exception
from airflow_provider_runa.utils.masking import MaskRecipientsMixin, printable
from airflow_provider_runa.utils.openlineage import build_lineage
from airflow_provider_runa.utils.payout_links import check_links_target, write_payout_links

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_runa.api.settings import RunaSettings

#: How long a deferrable task polls before it defers, in seconds. Most orders are final by then, and a trigger that
#: fires right after the deferral is a risk (see ``triggers.runa``).
INLINE_SECONDS = 15.0

#: Pauses between the first polls, in seconds.
_FIRST_PAUSES = (1.0, 2.0, 4.0, 8.0)

#: Pauses before a COMPLETED order that does not pay what was ordered is read again, in seconds.
_PAUSES_BEFORE_MISMATCH = (0.0, 2.0, 5.0)

#: Number of problems that an error lists.
_MOST_LISTED = 5


class RunaCreateOrderOperator(MaskRecipientsMixin, BaseOperator):
    """Places one order at Runa exactly once, and returns its id.

    .. seealso:: :doc:`/authoring`, :doc:`/guarantees`

    Retries, clears and crashes do not pay twice: for one order identity there is never more than one order that is not
    FAILED, and the task succeeds only with that order. The identity is the ``order_key``, or by default the task
    instance. A COMPLETED order is compared with what was ordered: each item must be there, with its amount, and its
    payout must not be cancelled.

    The operator pushes the XCom ``order``, ``{"id", "status", "currency", "face_value", "items", "total_price",
    "total_discount"}``. ``face_value`` is the sum of the payouts in the currency of their products, ``items`` is their
    number. Amounts are decimal strings; prices are ``None`` until the order is COMPLETED. The operator never pushes
    links or recipients, and pushes nothing with ``do_xcom_push=False``. Events of assets in ``outlets`` get the same
    values as ``extra``, with the key ``order_id`` for ``id``.

    :param items: the payouts, 1 to 200, each in the form of Runa's API: ``{"face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": …}, "products": {"type": "SINGLE", "value": …}}``.
        A list, an XCom, or a template that renders to a list or to JSON. (templated)
    :param currency: currency of the account balance that pays, three capital letters. (templated)
    :param description: text that Runa's portal shows and recipients do not see; at most 109 characters. (templated)
    :param metadata: pairs of strings to find the order by, or their JSON; at most 14 (18 with an ``order_key``, 13 if
        the connection names its deployment). (templated)
    :param order_key: business key of the order, such as ``spring-winback/customer-42``. All tasks with the same key
        share one order, which is paid once, also in other Airflow installations on the same account. Default: the
        task instance, so that each run and each mapped task pays once. ``None`` is rejected, because it may be a
        missing value. (templated)
    :param look_back: how long ago *another* run may have sent its first request (a rejected one included) for the same
        ``order_key``: a ``timedelta`` or a number of days. Runa remembers requests for 29 days; for a longer time, the
        order list is searched before the first request. Default: 28 days. (templated)
    :param execution_mode: ``"async"``, or ``"sync"`` for exactly one item: Runa answers when the order is final.
        Default: ``"async"``. (templated)
    :param wait_for_completion: wait until the order is COMPLETED. Default: ``False``.
    :param deferrable: wait in the triggerer instead of on a worker, if the task waits at all. Default: ``[operators]
        default_deferrable``.
    :param poll_interval: time between two polls, in seconds or as a ``timedelta``. Default: 30 seconds.
    :param timeout: how long one attempt waits for the order, in seconds or as a ``timedelta``. After that, the attempt
        fails and the order continues at Runa. Default: 1 hour.
    :param max_total: upper limit for the sum of all face values, as a guard against wrong input. Default: no limit.
        ``None`` is rejected, because it may be a missing value. (templated)
    :param links_to: file for the payout links of items with the distribution method PAYOUT_LINK, written when the order
        is COMPLETED: an absolute path or the URL of an object store, ending in ``.jsonl`` or ``.csv``. A link is cash,
        see :doc:`/payout-links`. Needs ``wait_for_completion`` or sync mode. Default: links stay at Runa. (templated)
    :param runa_conn_id: id of the Airflow connection. Default: ``runa_default``. (templated)
    :raises AirflowFailException: if no retry can fix the failure. Its message says what happened to the money, what
        happens next and what to do.
    :raises PlacementError: if a retry can fix the failure. Its message says the same.
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

    #: The time limits for placing an order.
    policy = Policy()

    def __init__(
        self,
        *,
        items: Sequence[Mapping[str, Any]] | str,
        currency: str,
        description: str | None = None,
        metadata: Mapping[str, str] | str | None = None,
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
        # A guard must still apply if its value renders to None.
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
        """Place the order, and wait for it if the task waits."""
        try:
            wanted = self._build()
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                order = self._place(hook, context, wanted).order
                if self._waits():
                    order = self._wait(hook, order, wanted)
                if order.status == OrderStatus.COMPLETED:
                    order = self._check_paid(hook, order, Expectation.of(wanted))
            self._write_payout_links(order, wanted)
        except RunaError as error:
            raise to_airflow_exception(error) from None
        return self._report(context, order, wanted)

    def execute_complete(self, context: Context, event: Any = None, expected: Any = None) -> str:
        """Continue with the order after the trigger's event.

        :param context: the task's context.
        :param event: the event of :class:`~.RunaOrderTrigger`.
        :param expected: what the order must pay; see :meth:`.Expectation.to_json`. ``dag.test()`` does not pass it.
        """
        event = read_event(event, allowed=EVENT_STATUSES, needs="orders")
        (order_id,) = event["orders"]
        try:
            if event["status"] == EventStatus.UNREADABLE:
                raise StatusUnreadableError(order_id=order_id, answer=event.get("reason"))
            with contextlib.closing(RunaHook(self.runa_conn_id)) as hook:
                order = self._fetch(hook, order_id)
                self._environment = hook.get_settings().identity_environment
                for pause in _FIRST_PAUSES if event["status"] == EventStatus.FINAL else ():
                    if self._completed(order) is None:  # the list, which the trigger may have read, was newer
                        run_blocking(self.clock.sleep(pause))
                        order = self._fetch(hook, order_id)
                if self._completed(order) is None:
                    raise StillProcessingError(order_id=order_id, seconds=f"at most {self.timeout:.0f}")
                expectation = Expectation.from_json(expected)
                order = self._check_paid(hook, order, expectation)
            if expectation is None:
                self._warn_if_changed(order)
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
        """Log that the order continues: Runa cannot cancel an order."""
        if self._order_id:
            self.log.warning("The task is stopped, but order %s continues: Runa cannot cancel it.", self._order_id)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the lineage: the order as output dataset with its totals as a facet, without recipients.

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
        self._environment = settings.identity_environment
        identity = self._identity(settings, context)
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
                # `airflow tasks test` has try number 0.
                Attempt(max(1, context["ti"].try_number), self._began_after(context), self._look_back()),
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
            printable(placement.order.status),
            placement.reference,
            ", placed earlier" if placement.adopted else "",
        )
        deployment = (placement.order.metadata or {}).get(DEPLOYMENT)
        if deployment not in (None, settings.deployment):
            self.log.warning(
                "Order %s was placed by deployment %s, and the connection names deployment %s.",
                placement.order.id,
                printable(str(deployment)),
                settings.deployment,
            )
        return placement

    def _identity(self, settings: RunaSettings, context: Context) -> OrderIdentity:
        if self._has_order_key:
            if self.order_key is None:
                raise InvalidOrderError("order_key: its value is missing; omit it to pay once per task instance")
            return OrderIdentity.from_order_key(settings.identity_environment, self.order_key)
        check_own_task(self, context, or_else="give each an order_key")
        task = context["ti"]
        names: dict[str, Any] = {
            "dag_id": task.dag_id,
            "run_id": task.run_id,
            "task_id": task.task_id,
            "map_index": -1 if task.map_index is None else task.map_index,
        }
        identity = OrderIdentity.from_task(settings.identity_environment, **names, deployment=settings.deployment)
        if settings.deployment is not None:
            without = OrderIdentity.from_task(settings.identity_environment, **names)
            if self._has_record(context, without):
                self.log.warning(
                    "This task placed its order before the connection named its deployment; it continues with that "
                    "order."
                )
                return without
        return identity

    def _has_record(self, context: Context, identity: OrderIdentity) -> bool:
        """Return whether this task, in this Airflow installation, has sent an order of an identity before."""
        try:
            return run_blocking(TaskStateRecords(context.get("task_state_store"), identity).load()) is not None
        except Exception as error:
            raise RecordUnavailableError(verb="read", reason=type(error).__name__) from None

    def _build(self) -> NewOrder:
        """Return the order of the rendered fields, after all checks that are possible before it is sent."""
        if self.currency is None:
            raise InvalidOrderError("currency: is missing; set the currency of the balance that pays, such as USD")
        items = read_items(self.items)
        if (count := len(items)) > MAX_ITEMS:
            del items  # a traceback may show local variables
            raise InvalidOrderError(
                f"items: has {count} entries, and an order takes at most {MAX_ITEMS}; use RunaPayoutOperator, which "
                "places as many orders as it needs"
            )
        order = NewOrder.build(
            currency=self.currency,
            items=items,
            description=self.description or None,
            metadata=read_json("metadata", self.metadata or None) or None,
        )
        check_execution_mode(order, self.execution_mode)
        if self._has_links_to:
            if not self._waits():
                raise InvalidOrderError(
                    "links_to: needs wait_for_completion=True, because only a COMPLETED order has links"
                )
            check_links_target(self.links_to, order)
        if self._has_max_total:
            limit = read_amount("max_total", self.max_total)
            if order.total > limit:
                raise InvalidOrderError(f"max_total: the items add up to {order.total}, more than the {limit} allowed")
        return order

    def _wanted(self, context: Context) -> NewOrder:
        """Return the order again, after a deferral."""
        return self._build()

    def _rendered(self) -> NewOrder | None:
        """Return the order that the fields describe now, ``None`` if they do not describe one."""
        try:
            return self._build()
        except InvalidOrderError:
            return None

    def _look_back(self) -> timedelta | None:
        return read_days("look_back", self.look_back) if self._has_look_back else None

    def _began_after(self, context: Context) -> datetime:
        """Return a time before the first attempt: a run cannot start before it is due."""
        run: Any = context["dag_run"]
        due = (getattr(run, "run_after", None), getattr(run, "logical_date", None))
        known = [moment for moment in due if moment is not None]
        return min(known) if known else self.clock.now() - KEY_MEMORY

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _waits(self) -> bool:
        return self.wait_for_completion or self.execution_mode == "sync"

    def _wait(self, hook: RunaHook, order: Order, wanted: NewOrder) -> Order:
        """Poll until the order is COMPLETED; a deferrable task defers after :data:`INLINE_SECONDS`."""
        began = self.clock.now()
        deadline = began + timedelta(seconds=self.timeout)
        pauses = iter(_FIRST_PAUSES)
        while (completed := self._completed(order)) is None:
            now = self.clock.now()
            if now >= deadline:
                raise StillProcessingError(order_id=order.id, seconds=f"{self.timeout:.0f}")
            if self.deferrable and now - began >= timedelta(seconds=INLINE_SECONDS):
                self.log.info("Order %s is %s: waiting in the triggerer.", order.id, printable(order.status))
                self.defer(
                    trigger=RunaOrderTrigger([order.id], self.runa_conn_id, self.poll_interval, deadline.timestamp()),
                    method_name="execute_complete",
                    kwargs={"expected": Expectation.of(wanted).to_json()},
                    timeout=None,  # the deadline is the trigger's: Airflow's own would not reach execute_complete
                )
            pause = min(next(pauses, self.poll_interval), self.poll_interval, (deadline - now).total_seconds())
            run_blocking(self.clock.sleep(pause))
            order = self._fetch(hook, order.id)
        return completed

    def _completed(self, order: Order) -> Order | None:
        """Return the order if it is COMPLETED, ``None`` if it is not final.

        :raises OrderFailedError: if it is FAILED.
        """
        if order.status == OrderStatus.FAILED:
            raise OrderFailedError(order_id=order.id)
        if order.status != OrderStatus.COMPLETED:
            return None
        self.log.info("Order %s is COMPLETED.", order.id)
        return order

    def _check_paid(self, hook: RunaHook, order: Order, expected: Expectation | None) -> Order:
        """Return a COMPLETED order in full, if it pays what was ordered.

        An order that does not is read again a few times, because Runa may show its items late.

        :param expected: what was ordered. ``None`` if that is not known: then all that the order shows must be paid.
        :raises OrderMismatchError: if it does not pay what was ordered.
        """
        for pause in (*_PAUSES_BEFORE_MISMATCH, None):
            problems = unpaid(order) if expected is None else expected.mismatches(order)
            if not problems:
                return order
            if pause is None:
                break
            run_blocking(self.clock.sleep(pause))
            order = self._fetch(hook, order.id)
            self._completed(order)
        more = f"; and {len(problems) - _MOST_LISTED} more" if len(problems) > _MOST_LISTED else ""
        raise OrderMismatchError(order_id=order.id, problems="; ".join(problems[:_MOST_LISTED]) + more)

    def _warn_if_changed(self, order: Order) -> None:
        """Log how an order differs from the task's fields, which may have been rendered anew since it was placed."""
        rendered = self._rendered()
        if rendered is not None and (problems := Expectation.of(rendered).mismatches(order)):
            self.log.warning(
                "Order %s differs from what the task's fields are now: %s.",
                order.id,
                "; ".join(problems[:_MOST_LISTED]),
            )

    def _fetch(self, hook: RunaHook, order_id: str) -> Order:
        self._order_id = order_id
        try:
            return hook.get_order(order_id)
        except RunaError as error:
            raise StatusUnreadableError(order_id=order_id, answer=error) from None

    def _write_payout_links(self, order: Order, wanted: NewOrder) -> None:
        """Write the payout links to ``links_to``, if it is set."""
        if self._has_links_to:
            count = write_payout_links(str(self.links_to), wanted, order)
            self.log.info("%d payout link(s) of order %s were written to links_to.", count, order.id)

    # -- reporting --------------------------------------------------------------------------------------------------

    def _report(self, context: Context, order: Order, wanted: NewOrder | None = None) -> str:
        """Push the summary, and return the order id.

        While Runa does not show the items, the summary describes the order that was sent. After a deferral it never
        does: by then the templates may render to something else, and the order is COMPLETED anyway.
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
