"""RunaOrderSensor against the sandbox over real sockets, in each of its modes."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
    TaskDeferred,
)

from airflow_provider_runa.api.client import ATTEMPTS
from airflow_provider_runa.api.errors import RunaError
from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.sensors.runa import RunaOrderSensor
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers.runa import MIN_PAUSE, RunaOrderTrigger
from tests.support.airflow import task_context
from tests.support.sandbox import RunningSandbox

MODES = pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable", "resumed"])


def place(runa: RunningSandbox, *, done: bool = True) -> str:
    order = NewOrder.build(
        currency="USD",
        items=[
            {
                "face_value": 10,
                "distribution_method": {"type": "PAYOUT_LINK"},
                "products": {"type": "SINGLE", "value": "AMZ-US"},
            }
        ],
    )
    hook = RunaHook()
    order_id = hook.create_order(order, idempotency_key=f"key-{time.monotonic()}").id
    hook.close()
    if done:
        runa.advance(10)
    return order_id


def wait(mode: str, order_id: Any, *, event: str = EventStatus.FINAL, **values: Any) -> Any:
    """Run the sensor in a mode; ``resumed`` is the deferrable one after its trigger has fired."""
    deferrable = mode in ("deferrable", "resumed")
    sensor = RunaOrderSensor(
        task_id="wait",
        order_id=order_id,
        deferrable=deferrable,
        **({"mode": "poke" if deferrable else mode, "poke_interval": 0.05} | values),
    )
    if mode != "resumed":
        return sensor.execute(context())
    ids = [order_id] if isinstance(order_id, str) else order_id
    events = {"event": {"status": event, "orders": dict.fromkeys(ids, "COMPLETED"), "reason": "no answer"}}
    return sensor.resume_execution("execute_complete", events, context())


def context() -> Any:
    values = task_context(task_id="wait")
    values["ti"].get_first_reschedule_date = lambda context: None
    return values


@MODES
def test_it_ends_with_the_ids_once_all_orders_are_completed(runa: RunningSandbox, mode: str) -> None:
    ids = [place(runa), place(runa)]
    assert wait(mode, ids) == ids
    assert wait(mode, ids[0]) == [ids[0]]


@MODES
def test_outputs_of_mapped_and_skipped_tasks_may_be_in_one_list(runa: RunningSandbox, mode: str) -> None:
    ids = [place(runa), place(runa), place(runa)]
    if mode == "resumed":
        pytest.skip("the event names single ids")
    assert wait(mode, [ids[:2], None, ids[2], []]) == ids


@pytest.mark.parametrize(("mode", "pause"), [("reschedule", MIN_PAUSE), ("poke", 0.05)])
def test_a_reschedule_is_not_sooner_than_a_trigger_would_fire(mode: str, pause: float) -> None:
    assert RunaOrderSensor(task_id="wait", order_id="O-1", mode=mode, poke_interval=0.05).poke_interval == pause


def test_a_guard_against_nested_operators_does_not_stop_it(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one of Airflow 2.11, which a call of the base class's ``execute`` does not pass."""
    order_id = place(runa)

    @functools.wraps(BaseSensorOperator.execute)
    def guarded(self: Any, context: Any) -> Any:
        raise AssertionError("execute cannot be called outside TaskInstance!")

    monkeypatch.setattr(BaseSensorOperator, "execute", guarded)
    assert wait("poke", order_id) == [order_id]


@MODES
@pytest.mark.parametrize("mildness", [None, "soft_fail", "never_fail", "silent_fail"])
def test_a_failed_order_fails_the_task_in_every_mode(runa: RunningSandbox, mode: str, mildness: str | None) -> None:
    runa.faults({"kind": "fail_order"})
    ids = [place(runa), place(runa)]
    with pytest.raises(AirflowFailException, match=f"Nobody was paid: order {ids[0]} ended FAILED"):
        wait(mode, ids, timeout=1, **({mildness: True} if mildness else {}))


@MODES
def test_a_connection_that_cannot_be_used_fails_the_task(
    runa: RunningSandbox, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", '{"conn_type": "runa"}')
    with pytest.raises(AirflowFailException, match="the API key is missing"):
        wait(mode, "O-1", soft_fail=True)


@MODES
def test_an_order_unknown_to_the_account_fails_the_task(runa: RunningSandbox, mode: str) -> None:
    with pytest.raises(AirflowFailException, match="The Runa account of connection 'runa_default' does not have order"):
        wait(mode, "O-NONE", soft_fail=True)


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
@pytest.mark.parametrize(
    "order_id",
    [None, [], "", [""], [None, [None]], ["O-1", 42], [["O-1"], {"O-2": 1}], 42, "None", "['O-1']", "O-1 O-2"],
)
def test_wrong_input_fails_the_task_and_is_never_a_skip(runa: RunningSandbox, mode: str, order_id: Any) -> None:
    with pytest.raises(AirflowFailException, match="order_id: must be an order id or a list of order ids"):
        wait(mode, order_id, soft_fail=True)


def test_poke_waits_until_it_is_done(runa: RunningSandbox) -> None:
    order_id = place(runa, done=False)
    pokes = []

    class Watched(RunaOrderSensor):
        def poke(self, context: Any) -> Any:
            pokes.append(runa.advance(1))
            return super().poke(context)

    sensor = Watched(task_id="wait", order_id=order_id, poke_interval=0.05)
    assert sensor.execute(context()) == [order_id]
    assert len(pokes) in (3, 4)


@pytest.mark.parametrize("mode", ["poke", "deferrable"])
def test_orders_of_mapped_tasks_are_waited_for(runa: RunningSandbox, mode: str) -> None:
    fetched = []

    class Collected(Sequence[str]):
        """As Airflow hands over the XComs of mapped tasks: each look at one of them is a request."""

        def __getitem__(self, index: Any) -> str:
            fetched.append(ids[index])
            return ids[index]

        def __len__(self) -> int:
            return 2

    ids = [place(runa), place(runa)]
    assert wait(mode, Collected()) == ids
    assert fetched == ids


def test_an_order_that_is_completed_is_not_fetched_again(runa: RunningSandbox) -> None:
    pokes = []

    class Watched(RunaOrderSensor):
        def poke(self, context: Any) -> Any:
            pokes.append(1)
            return super().poke(context)

    sensor = Watched(task_id="wait", order_id=[place(runa), place(runa, done=False)], poke_interval=0.05, timeout=0.2)
    with pytest.raises(AirflowSensorTimeout):
        sensor.execute(context())
    assert len(pokes) > 1
    assert runa.stats()["requests"]["GET /order/{id}"] == len(pokes) + 1


def test_reschedule_frees_the_worker(runa: RunningSandbox) -> None:
    with pytest.raises(AirflowRescheduleException):
        wait("reschedule", place(runa, done=False))


def test_deferrable_defers_with_the_deadline_in_the_trigger(runa: RunningSandbox) -> None:
    order_id = place(runa, done=False)
    with pytest.raises(TaskDeferred) as caught:
        wait("deferrable", order_id, timeout=600, poke_interval=20)
    trigger = caught.value.trigger
    assert isinstance(trigger, RunaOrderTrigger)
    assert (caught.value.timeout, caught.value.method_name) == (None, "execute_complete")
    assert (trigger.order_ids, trigger.poll_interval) == ([order_id], 20)
    assert abs(trigger.deadline - time.time() - 600) < 30  # type: ignore[operator]


@pytest.mark.parametrize("mode", ["poke", "resumed"])
@pytest.mark.parametrize(("soft_fail", "ending"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_soft_fail_covers_running_out_of_time(
    runa: RunningSandbox, mode: str, soft_fail: bool, ending: type[Exception]
) -> None:
    with pytest.raises(ending):
        wait(mode, place(runa, done=False), event=EventStatus.TIMED_OUT, timeout=0.1, soft_fail=soft_fail)


def test_an_order_that_ends_at_the_last_moment_is_seen(runa: RunningSandbox) -> None:
    order_id = place(runa)
    assert wait("resumed", order_id, event=EventStatus.TIMED_OUT) == [order_id]


def test_orders_that_could_not_be_read_are_a_failure_that_a_retry_may_fix(runa: RunningSandbox) -> None:
    with pytest.raises(
        RunaError, match=r"could not be read: no answer. The orders continue.*\nThe next retry reads again"
    ):
        wait("resumed", place(runa, done=False), event=EventStatus.UNREADABLE)


@MODES
@pytest.mark.parametrize("status", [401, 403])
def test_what_runa_rejects_fails_at_once_in_every_mode(runa: RunningSandbox, mode: str, status: int) -> None:
    order_id = place(runa)
    runa.faults({"kind": "status", "method": "GET", "path": "/order/*", "status": status, "count": 100})
    with pytest.raises(AirflowFailException, match=f"(?s)^The orders continue at Runa.*: {status} .*clear the task"):
        wait(mode, order_id, event=EventStatus.UNREADABLE, soft_fail=True)


@pytest.mark.parametrize(("mode", "ending"), [("reschedule", AirflowRescheduleException), ("deferrable", TaskDeferred)])
def test_what_cannot_be_read_now_is_polled_again_in_every_mode(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, mode: str, ending: type[BaseException]
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    order_id = place(runa)
    fault = {"kind": "status", "method": "GET", "path": "/order/*", "status": 503, "count": ATTEMPTS}
    runa.faults(fault)
    with pytest.raises(ending):
        wait(mode, order_id)
    runa.faults(fault)
    assert wait("poke", order_id) == [order_id]


@pytest.mark.parametrize("mode", ["poke", "reschedule", "resumed"])
def test_orders_that_cannot_be_read_at_the_timeout_are_a_failure_and_no_skip(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    order_id = place(runa)
    runa.faults({"kind": "status", "method": "GET", "path": "/order/*", "status": 503, "count": 1000})
    with pytest.raises(RunaError, match="could not be read: 503"):
        wait(mode, order_id, event=EventStatus.TIMED_OUT, timeout=0.00001, soft_fail=True)


def test_an_event_that_runa_contradicts_is_a_failure(runa: RunningSandbox) -> None:
    with pytest.raises(RunaError, match="all orders are final, but some are not"):
        wait("resumed", place(runa, done=False), event=EventStatus.FINAL)


@pytest.mark.parametrize("event", [None, {}, "done", {"status": "success"}])
def test_a_missing_or_unknown_event_fails_loudly(runa: RunningSandbox, event: Any) -> None:
    sensor = RunaOrderSensor(task_id="wait", order_id=place(runa))
    with pytest.raises(ValueError, match="missing or unknown"):
        sensor.execute_complete(context(), event)


# -- COMPLETED is not enough ----------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"kind": "item_payout", "value": "CANCELLED"}, r"1 of 1 payout\(s\) are CANCELLED"),
        ({"kind": "order_without", "value": "items"}, "it shows no items"),
        ({"kind": "item_missing"}, "it shows no items"),
    ],
)
def test_a_completed_order_that_is_not_paid_fails_the_task_in_every_mode(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, mode: str, lie: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr("airflow_provider_runa.sensors.runa._PAUSES_BEFORE_MISMATCH", (0.0, 0.0))
    order_id = place(runa)
    runa.lies(lie)
    with pytest.raises(AirflowFailException, match=f"^Order {order_id} is COMPLETED, but does not pay .*: {told}"):
        wait(mode, order_id, soft_fail=True)


@MODES
def test_items_that_are_shown_late_are_waited_for(runa: RunningSandbox, mode: str) -> None:
    order_id = place(runa)
    runa.lies({"kind": "order_without", "value": "items", "count": 1})
    assert wait(mode, order_id) == [order_id]


@pytest.mark.parametrize("status", ["CLAIMED", "EXPIRED"])
def test_other_states_of_a_payout_complete_the_task(runa: RunningSandbox, status: str) -> None:
    order_id = place(runa)
    runa.lies({"kind": "item_payout", "value": status})
    assert wait("poke", order_id) == [order_id]


def test_a_wrong_value_is_not_shown_as_it_is(runa: RunningSandbox) -> None:
    """An XCom of rewards, say, in place of the ids of their orders."""
    reward = {"name": "Ada Lovelace", "email_address": "ada-7311@example.com"}
    with pytest.raises(AirflowFailException, match=r"not \[\{'name', 'email_address'\}\] \(list\)") as caught:
        wait("poke", [reward])
    with pytest.raises(AirflowFailException, match=r"not '\*\*\*\\n\\x1b\[31m' \(str\)") as other:
        wait("poke", "https://payouts.example.com/7311\n\x1b[31m")
    assert not [text for text in ("7311", "Lovelace") if text in f"{caught.value}{other.value}"]


def test_the_log_says_which_orders_it_reads_and_when_one_is_completed(
    runa: RunningSandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    order_id = place(runa)
    wait("poke", [order_id])
    log = capsys.readouterr().out
    assert f"Reading 1 of 1 order(s): {order_id}." in log
    assert f"Order {order_id} is COMPLETED." in log
