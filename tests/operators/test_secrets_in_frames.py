"""No frame of an error holds a recipient, a link or the API key: error trackers send the local variables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.decorators.runa import RunaOrderDecoratedOperator
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.placement import errors
from airflow_provider_runa.sensors.balance import RunaBalanceSensor
from airflow_provider_runa.sensors.runa import RunaOrderSensor
from airflow_provider_runa.triggers._events import EventStatus
from scripts.error_table import kinds
from tests.support.airflow import SharedClock, TaskStates, task_context
from tests.support.frames import assert_no_secrets
from tests.support.sandbox import API_KEY, RunningSandbox

ADDRESS, REFERENCE, LINK = "ada.lovelace-7311@example.com", "customer-7311", "/claim"
SECRETS = (ADDRESS, REFERENCE, LINK, API_KEY)
ITEM: dict[str, Any] = {
    "face_value": 10,
    "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
    "products": {"type": "SINGLE", "value": "AMZ-US"},
}
BY_LINK = ITEM | {"distribution_method": {"type": "PAYOUT_LINK"}}


class World:
    """A task that is about to fail.

    :param runa: the sandbox.
    :param monkeypatch: changes of this test.
    :param folder: a folder for the links.
    """

    def __init__(self, runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.runa, self.monkeypatch, self.folder = runa, monkeypatch, folder
        self.states = TaskStates()
        self.values: dict[str, Any] = {
            "items": [ITEM, BY_LINK],
            "description": f"for {ADDRESS}",
            "metadata": {"customer": REFERENCE},
            "wait_for_completion": True,
        }
        self.clock = SharedClock(runa)
        self.resume: tuple[str, str] | None = None

    def run(self, kind: str, try_number: int = 1) -> Any:
        """Execute the operator, or the decorated function with the same arguments."""
        task = self._task(kind)
        task.clock = self.clock
        context = task_context(states=self.states, try_number=try_number)
        if self.resume is not None:
            order_id, status = self.resume
            return task.execute_complete(context, {"status": status, "orders": {order_id: "COMPLETED"}})
        return task.execute(context)

    def _task(self, kind: str) -> Any:
        if kind == "operator":
            return RunaCreateOrderOperator(task_id="pay", currency="USD", **self.values)
        settings = dict(self.values)
        returned = {name: settings.pop(name) for name in ("items", "description", "metadata") if name in settings}

        def pay(person: str) -> Any:
            return returned

        with DAG("rewards", schedule=None):
            return RunaOrderDecoratedOperator(
                task_id="pay", python_callable=pay, op_kwargs={"person": ADDRESS}, currency="USD", **settings
            )

    def placed(self) -> str:
        """Place the order, which ends COMPLETED."""
        order_id: str = self.run("operator")
        return order_id


def reject(world: World) -> None:
    gone = {"type": "SINGLE", "value": "GONE-US"}
    world.values["items"] = [ITEM | {"products": gone}]


def hold_back(world: World) -> None:
    world.runa.balance("USD", "0")


def deny_access(world: World) -> None:
    world.runa.faults({"kind": "status", "status": 401, "count": 99})


def answer_nothing(world: World) -> None:
    world.runa.faults({"kind": "status", "status": 503, "count": 999})


def drop(world: World) -> None:
    world.runa.faults({"kind": "drop_before", "count": 999})


def hide(world: World) -> None:
    hidden = {"currency": "USD", "type": "ACCOUNT_BALANCE"}
    world.runa.add_order({"payment_method": hidden, "items": [BY_LINK]}, "PROCESSING")
    world.runa.faults({"kind": "status", "status": 400, "type": "idempotency_validation_error", "count": 99})


def deny_the_list(world: World) -> None:
    world.runa.faults(
        {"kind": "status", "status": 400, "type": "idempotency_validation_error", "count": 99},
        {"kind": "status", "method": "GET", "path": "/order", "status": 401, "type": "unauthorized", "count": 99},
    )


def change(world: World) -> None:
    world.placed()
    world.values["items"] = [ITEM | {"face_value": 11}, BY_LINK]


def switch_account(world: World) -> None:
    world.placed()
    world.runa.reset()


def lose_the_store(world: World) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"cannot store {ADDRESS}")

    world.states.set = broken  # type: ignore[method-assign]


def fail(world: World) -> None:
    world.runa.faults({"kind": "fail_order"})


def hide_the_status(world: World) -> None:
    world.runa.faults({"kind": "status", "method": "GET", "path": "/order/*", "status": 503, "count": 99})


def exhaust(world: World) -> None:
    world.monkeypatch.setattr("airflow_provider_runa.placement.place.LAST_GENERATION", -1)


def process(world: World) -> None:
    world.clock = SharedClock(None)
    world.values["timeout"] = 1


def cancel(world: World) -> None:
    world.runa.lies({"kind": "item_payout", "value": "CANCELLED"})


def fill_the_disk(world: World) -> None:
    def full(fileno: int) -> None:
        raise OSError(28, "No space left on device", f"https://payouts.example.com{LINK}/1")

    world.monkeypatch.setattr("airflow_provider_runa.utils.payout_links.os.fsync", full)
    world.values["links_to"] = f"{world.folder}/links.jsonl"


def hide_a_link(world: World) -> None:
    world.values["links_to"] = f"{world.folder}/links.csv"
    world.runa.lies({"kind": "item_without", "item": 1, "value": "payout"})


def stop_while_writing(world: World) -> None:
    def stop(fileno: int) -> None:
        raise AirflowTaskTimeout("Timeout")

    world.monkeypatch.setattr("airflow_provider_runa.utils.payout_links.os.fsync", stop)
    world.values["links_to"] = f"{world.folder}/links.jsonl"


def stop_while_sending(world: World) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise AirflowTaskTimeout("Timeout")

    world.monkeypatch.setattr(httpx.HTTPTransport, "handle_request", stop)


def mistake_an_item(world: World) -> None:
    world.values["items"] = [ITEM | {ADDRESS: REFERENCE, "face_value": ADDRESS}]


def mistake_the_items(world: World) -> None:
    world.values["items"] = {ADDRESS: 10}


def exceed_the_limit(world: World) -> None:
    world.values["max_total"] = 1


def give_no_limit(world: World) -> None:
    world.values["max_total"] = [ITEM]


def connect(**values: Any) -> Callable[[World], None]:
    def change_the_connection(world: World) -> None:
        connection = json.loads(world.runa.connection) | values
        world.monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(connection))

    return change_the_connection


def mistake_the_proxy(world: World) -> None:
    connect(host="https://api.example.com/v2")(world)
    world.monkeypatch.setenv("NO_PROXY", "")
    world.monkeypatch.setenv("HTTPS_PROXY", "ftp://127.0.0.1:9")


def resume_unreadable(world: World) -> None:
    world.resume = (world.placed(), EventStatus.UNREADABLE)


def resume_early(world: World) -> None:
    world.resume = (world.placed(), EventStatus.TIMED_OUT)
    world.runa.lies({"kind": "order_status", "value": "PROCESSING"})


def resume_cancelled(world: World) -> None:
    world.resume = (world.placed(), EventStatus.FINAL)
    cancel(world)


def resume_without_links(world: World) -> None:
    world.resume = (world.placed(), EventStatus.FINAL)
    world.values |= {"links_to": f"{world.folder}/links.csv", "max_total": 1}


FAULTS: list[tuple[Callable[[World], None], type[BaseException], str]] = [
    (reject, AirflowFailException, errors.OrderRejectedError.__name__),
    (hold_back, errors.OrderHeldBackError, ""),
    (deny_access, AirflowFailException, errors.AccessRejectedError.__name__),
    (answer_nothing, errors.OutcomeUnknownError, ""),
    (drop, errors.OutcomeUnknownError, ""),
    (connect(host="http://127.0.0.1:9/v2"), errors.NothingSentError, ""),
    (hide, errors.InconclusiveSearchError, ""),
    (deny_the_list, AirflowFailException, errors.SearchRejectedError.__name__),
    (change, AirflowFailException, errors.PaymentChangedError.__name__),
    (switch_account, AirflowFailException, errors.WrongAccountError.__name__),
    (lose_the_store, errors.RecordUnavailableError, ""),
    (fail, errors.OrderFailedError, ""),
    (hide_the_status, errors.StatusUnreadableError, ""),
    (exhaust, AirflowFailException, errors.GenerationsExhaustedError.__name__),
    (process, errors.StillProcessingError, ""),
    (cancel, AirflowFailException, errors.OrderMismatchError.__name__),
    (fill_the_disk, errors.LinksNotWrittenError, ""),
    (hide_a_link, errors.LinksNotWrittenError, ""),
    (stop_while_writing, AirflowTaskTimeout, ""),
    (stop_while_sending, AirflowTaskTimeout, ""),
    (mistake_an_item, AirflowFailException, ""),
    (mistake_the_items, AirflowFailException, ""),
    (exceed_the_limit, AirflowFailException, ""),
    (give_no_limit, AirflowFailException, ""),
    (connect(password=""), AirflowFailException, ""),
    (connect(host=f"https://user:{API_KEY}@api.example.com"), AirflowFailException, ""),
    (connect(host="https://api..example.com/v2"), AirflowFailException, ""),
    (connect(host="https://xn--/v2"), AirflowFailException, ""),
    (connect(extra={"timeout": API_KEY}), AirflowFailException, ""),
    (connect(extra={"api_version": API_KEY}), AirflowFailException, ""),
    (mistake_the_proxy, AirflowFailException, ""),
    (resume_unreadable, errors.StatusUnreadableError, ""),
    (resume_early, errors.StillProcessingError, ""),
    (resume_cancelled, AirflowFailException, errors.OrderMismatchError.__name__),
    (resume_without_links, errors.LinksNotWrittenError, ""),
]


@pytest.mark.parametrize("kind", ["operator", "decorator"])
@pytest.mark.parametrize(("fault", "ending", "_"), FAULTS, ids=[fault.__name__ for fault, *_ in FAULTS])
def test_no_error_of_an_order_shows_a_secret(
    runa: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    fault: Callable[[World], None],
    ending: type[BaseException],
    _: str,
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    world = World(runa, monkeypatch, tmp_path)
    fault(world)
    with pytest.raises(ending) as caught:
        world.run(kind)
    # Frames of httpx below an interrupted request are for the client to remove.
    assert_no_secrets(caught.value, SECRETS, attributes=False)


def test_every_error_of_an_order_is_among_them() -> None:
    told = {name or ending.__name__ for _, ending, name in FAULTS}
    ours = {kind.__name__ for kind in kinds(errors)}  # type: ignore[arg-type]
    # An identity is exclusive in a campaign only.
    assert ours - told == {"KeySpentError"}


def answer_reads(**fault: Any) -> Callable[[World], None]:
    def let_reads_fail(world: World) -> None:
        reads = (("GET", "/order/*"), ("GET", "/balance"), ("POST", "/order/estimate"))
        world.runa.faults(*(fault | {"method": method, "path": path, "count": 99} for method, path in reads))

    return let_reads_fail


def spend(world: World) -> None:
    world.runa.balance("USD", "0")


def cancel_and_spend(world: World) -> None:
    cancel(world)
    spend(world)


def forget(world: World) -> None:
    world.runa.reset()
    spend(world)


def process_for_ever(world: World) -> None:
    world.runa.lies({"kind": "order_status", "value": "PROCESSING"})
    spend(world)


def settle_failed(world: World) -> None:
    world.runa.set_status(world.runa.orders()[0]["id"], "FAILED")
    RunaHook().get_balance("USD")  # the sandbox gives the money back at the next request
    spend(world)


READING_FAULTS: dict[str, Callable[[World], None]] = {
    "reject": answer_reads(kind="status", status=401),
    "drop": answer_reads(kind="drop_before"),
    "key": connect(password=""),
    "host": connect(host=f"https://user:{API_KEY}@api.example.com"),
    "cancel": cancel_and_spend,
    "fail": settle_failed,
    "unknown": forget,
    "late": process_for_ever,
    "input": spend,
}


@pytest.mark.parametrize("kind", [RunaOrderSensor, RunaBalanceSensor])
@pytest.mark.parametrize("mode", ["poke", "deferrable", "resumed"])
@pytest.mark.parametrize("fault", READING_FAULTS)
def test_no_error_of_a_sensor_shows_a_secret(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Any, mode: str, fault: str
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    world = World(runa, monkeypatch, tmp_path)
    order_id = world.placed()
    READING_FAULTS[fault](world)
    given: Any = {"order_id": order_id} if kind is RunaOrderSensor else {"currency": "USD", "items": [ITEM]}
    if fault == "input":
        given |= {"order_id": [ITEM]} if kind is RunaOrderSensor else {"items": {ADDRESS: ITEM}}
    sensor = kind(task_id="wait", deferrable=mode != "poke", poke_interval=0.01, timeout=0.05, **given)
    context: Any = task_context(task_id="wait")
    context["ti"].get_first_reschedule_date = lambda context: None
    event = {"status": EventStatus.TIMED_OUT, "orders": {order_id: "PROCESSING"}, "reason": "no answer"}
    event |= {"amount": "10", "balance": "1", "currency": "USD"}
    resumed = ("execute_complete", {"event": event}, context)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever it is
        sensor.resume_execution(*resumed) if mode == "resumed" else sensor.execute(context)
    assert_no_secrets(caught.value, SECRETS, only_own=isinstance(caught.value, TaskDeferred), attributes=False)


@pytest.mark.parametrize("method", ["ping", "get_order", "estimate_order", "list_orders", "get_conn"])
def test_no_error_of_the_hook_shows_the_key(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    world = World(runa, monkeypatch, tmp_path)
    mistake_the_proxy(world)
    with pytest.raises(RunaError, match="HTTPS_PROXY") as caught:
        list(getattr(RunaHook(), method)(*(["O-1"] if method in ("get_order", "estimate_order") else [])) or ())
    assert_no_secrets(caught.value, SECRETS, attributes=False)
