"""RunaBalanceSensor against the sandbox over real sockets, in each of its modes."""

from __future__ import annotations

import time
from typing import Any

import pytest
from airflow.exceptions import AirflowRescheduleException
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_runa.api.client import ATTEMPTS
from airflow_provider_runa.api.errors import RunaError, RunaServerError
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.sensors.balance import RunaBalanceSensor
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers.balance import RunaBalanceTrigger
from tests.support.airflow import task_context
from tests.support.sandbox import RunningSandbox

MODES = pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable"])
ITEM: dict[str, Any] = {
    "face_value": 100,
    "distribution_method": {"type": "EMAIL", "email_address": "ada@example.com"},
    "products": {"type": "SINGLE", "value": "SHOE-US"},
}


def sensor(mode: str, **values: Any) -> RunaBalanceSensor:
    given: dict[str, Any] = {"currency": "USD", "poke_interval": 0.05}
    if "items" not in values:
        given["amount"] = 100
    if mode == "deferrable":
        given["deferrable"] = True
    else:
        given["mode"] = mode
    return RunaBalanceSensor(task_id="wait", **(given | values))


def context() -> Any:
    values = task_context(task_id="wait")
    values["ti"].get_first_reschedule_date = lambda context: None
    return values


@MODES
def test_it_ends_once_the_balance_covers_the_amount(runa: RunningSandbox, mode: str) -> None:
    runa.balance("USD", "100")
    result = sensor(mode).execute(context())
    assert result == {"currency": "USD", "amount": "100", "balance": "100.00"}


@MODES
def test_it_ends_once_the_balance_covers_the_cost_of_items(runa: RunningSandbox, mode: str) -> None:
    runa.balance("USD", "90")  # of 100, a tenth is discount
    assert sensor(mode, items=[ITEM]).execute(context())["amount"] == "90.0"


def test_poke_waits_for_the_top_up(runa: RunningSandbox) -> None:
    runa.balance("USD", "99.99")
    pokes = []

    class Watched(RunaBalanceSensor):
        def poke(self, context: Any) -> Any:
            pokes.append(1)
            if len(pokes) == 3:
                runa.balance("USD", "100")
            return super().poke(context)

    Watched(task_id="wait", currency="USD", amount="100", poke_interval=0.01).execute(context())
    assert len(pokes) == 3


def test_reschedule_frees_the_worker(runa: RunningSandbox) -> None:
    runa.balance("USD", "1")
    with pytest.raises(AirflowRescheduleException):
        sensor("reschedule").execute(context())


def test_deferrable_defers_with_the_deadline_in_the_trigger(runa: RunningSandbox) -> None:
    runa.balance("USD", "1")
    with pytest.raises(TaskDeferred) as caught:
        sensor("deferrable", timeout=600, poke_interval=20).execute(context())
    trigger = caught.value.trigger
    assert isinstance(trigger, RunaBalanceTrigger)
    assert (caught.value.timeout, caught.value.method_name) == (None, "execute_complete")
    assert (trigger.currency, trigger.amount, trigger.poll_interval) == ("USD", "100", 20)
    assert abs(trigger.deadline - time.time() - 600) < 30


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize(("soft_fail", "ending"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_soft_fail_covers_running_out_of_time(
    runa: RunningSandbox, mode: str, soft_fail: bool, ending: type[Exception]
) -> None:
    runa.balance("USD", "1")
    with pytest.raises(ending):
        sensor(mode, timeout=0.00001, soft_fail=soft_fail).execute(context())


def event(status: str, **values: Any) -> dict[str, Any]:
    result = {"status": status, "currency": "USD", "amount": "100", "balance": "120.00"} | values
    return {"event": result}


def run(mode: str, **values: Any) -> Any:
    """Run the sensor in a mode; ``resumed`` is the deferrable one after its trigger could not read the balance."""
    if mode != "resumed":
        return sensor(mode, **values).execute(context())
    result = event(EventStatus.UNREADABLE, reason="no answer")
    return sensor("deferrable", **values).resume_execution("execute_complete", result, context())


def test_after_the_trigger_it_returns_the_event() -> None:
    result = sensor("deferrable").resume_execution("execute_complete", event(EventStatus.COVERED), context())
    assert result == {"currency": "USD", "amount": "100", "balance": "120.00"}


@pytest.mark.parametrize(("soft_fail", "ending"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_after_the_trigger_gave_up_soft_fail_skips(soft_fail: bool, ending: type[Exception]) -> None:
    task = sensor("deferrable", soft_fail=soft_fail)
    with pytest.raises(ending):
        task.resume_execution("execute_complete", event(EventStatus.TIMED_OUT, balance="5"), context())


def test_a_balance_that_could_not_be_read_is_a_failure_that_a_retry_may_fix(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    runa.balance("USD", "1")
    with pytest.raises(RunaError, match=r"could not be read: no answer. Nobody was paid.*\nThe next retry reads again"):
        run("resumed", soft_fail=True)

    def unreadable(self: RunaHook, currency: str) -> Any:
        raise RunaServerError(503)

    monkeypatch.setattr(RunaHook, "get_balance", unreadable)
    with pytest.raises(RunaError, match="could not be read: 503"):
        sensor("poke", soft_fail=True, timeout=0.02, poke_interval=0.01).execute(context())
    with pytest.raises(RunaError, match="could not be read: 503"):
        run("resumed", soft_fail=True)


def test_a_balance_that_is_readable_again_after_the_trigger_gave_up_is_taken(runa: RunningSandbox) -> None:
    assert run("resumed") == {"currency": "USD", "amount": "100", "balance": "1000000.00"}


def test_a_single_poll_computes_the_needed_amount(runa: RunningSandbox) -> None:
    runa.balance("USD", "99")
    assert not sensor("poke").poke(context())
    runa.balance("USD", "100")
    assert sensor("poke").poke(context())
    assert sensor("poke", items=[ITEM]).poke(context())


@pytest.mark.parametrize("mode", ["poke", "reschedule", "deferrable", "resumed"])
@pytest.mark.parametrize("status", [401, 403])
def test_what_runa_rejects_fails_at_once_in_every_mode(runa: RunningSandbox, mode: str, status: int) -> None:
    runa.faults({"kind": "status", "method": "GET", "path": "/balance", "status": status, "count": 100})
    with pytest.raises(AirflowFailException, match=f"(?s)^Nobody was paid.*: {status} .*clear the task"):
        run(mode, soft_fail=True)


@pytest.mark.parametrize("values", [{}, {"items": [ITEM]}])
@MODES
def test_what_cannot_be_read_now_is_polled_again_in_every_mode(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, mode: str, values: dict[str, Any]
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    fault = {"kind": "status", "method": "POST" if values else "GET", "status": 503, "count": ATTEMPTS}
    runa.faults(fault | {"path": "/order/estimate" if values else "/balance"})
    amount = "90.0" if values else "100"
    if mode == "poke":
        assert sensor(mode, **values).execute(context())["amount"] == amount
        return
    runa.balance("USD", "1")
    with pytest.raises(AirflowRescheduleException if mode == "reschedule" else TaskDeferred) as caught:
        sensor(mode, **values).execute(context())
    if mode == "deferrable":
        assert caught.value.trigger.amount == amount  # type: ignore[union-attr]


def test_an_estimate_that_cannot_be_read_in_time_is_a_failure(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_runa.api.client.pause_before_retry", lambda *_: 0.0)
    runa.faults({"kind": "status", "method": "POST", "path": "/order/estimate", "status": 503, "count": 1000})
    with pytest.raises(RunaError, match="could not be read: 503"):
        sensor("deferrable", items=[ITEM], timeout=0.1, soft_fail=True).execute(context())


@MODES
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"amount": "None"}, "amount: must be an amount, not 'None'"),
        ({"items": "none"}, "items: rendered to text that is not JSON"),
        ({"currency": "dollars"}, "bad_request"),
        ({"runa_conn_id": "runa_keyless"}, "the API key is missing"),
    ],
)
def test_wrong_input_fails_the_task_and_is_never_a_skip(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, mode: str, values: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_KEYLESS", '{"conn_type": "runa"}')
    with pytest.raises(AirflowFailException, match=f"^Nobody was paid.*{message}"):
        sensor(mode, soft_fail=True, **values).execute(context())


@pytest.mark.parametrize("values", [{}, {"amount": 1, "items": [ITEM]}])
def test_exactly_one_of_amount_and_items_is_set(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="amount, items: set exactly one of them"):
        RunaBalanceSensor(task_id="wait", currency="USD", **values)


@pytest.mark.parametrize("given", [None, {}, "done", {"status": "success"}, {"status": EventStatus.COVERED}])
def test_a_missing_or_unknown_event_fails_loudly(given: Any) -> None:
    with pytest.raises(ValueError, match="missing or unknown"):
        sensor("deferrable").execute_complete(context(), given)
