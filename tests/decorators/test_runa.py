"""``@task.runa_order`` and ``@task.runa_payout`` against the sandbox over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskDeferred
from airflow.serialization import serialized_objects

from airflow_provider_runa.decorators.runa import runa_order_task, runa_payout_task
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from tests.support.airflow import (
    MASKS_STORED_FIELDS,
    SharedClock,
    redact,
    reset_secrets_masker,
    stored_fields,
    task_context,
)
from tests.support.sandbox import RunningSandbox

try:
    from airflow.sdk import task
except ImportError:  # Airflow 2
    from airflow.decorators import task

try:
    DagSerialization = serialized_objects.DagSerialization
except AttributeError:  # before Airflow 3.2
    DagSerialization = serialized_objects.SerializedDAG

ADDRESS = "ada.lovelace-7311@example.com"


def item(amount: Any = 10, address: str = ADDRESS) -> dict[str, Any]:
    return {
        "face_value": amount,
        "distribution_method": {"type": "EMAIL", "email_address": address},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }


def operator_of(decorated: Any, *args: Any, runa: RunningSandbox | None = None, **kwargs: Any) -> Any:
    """Call a decorated function in a DAG, and return its operator."""
    with DAG("rewards", schedule=None):
        found = decorated(*args, **kwargs).operator
    found.clock = SharedClock(runa)
    return found


def test_the_items_that_a_function_returns_are_ordered(runa: RunningSandbox) -> None:
    @task.runa_order(currency="USD", max_total=50)
    def pay(amount: int, dag_run: Any = None) -> list[dict[str, Any]]:
        assert dag_run.run_after
        return [item(amount)]

    found = operator_of(pay, 12)
    assert isinstance(found, RunaCreateOrderOperator)
    context = task_context()
    order_id = found.execute(context)
    (order,) = runa.orders()
    assert (order["id"], order["face_value"]) == (order_id, "12.00")
    assert set(context["ti"].xcoms) == {"order"}


def test_a_function_may_return_arguments_of_the_operator(runa: RunningSandbox) -> None:
    @task.runa_order
    def pay() -> dict[str, Any]:
        return {
            "items": [item()],
            "currency": "USD",
            "order_key": "spring/42",
            "description": "Spring",
            "max_total": 10,
        }

    found = operator_of(pay)
    assert found.multiple_outputs is False, "Airflow would fail the task after it has paid"
    first = found.execute(task_context())
    again = operator_of(pay).execute(task_context(task_id="another"))
    assert again == first
    assert runa.orders()[0]["description"].startswith("Spring [af-")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "items: must be a list, not NoneType"),
        ([], "items: "),
        ((item() for _ in range(1)), "items: must be a list, not generator"),
        ({"currency": "USD"}, "items: the function did not return any"),
        ({"items": [item()], "runa_conn_id": "other"}, "the function returned runa_conn_id, which is not allowed"),
        ({"items": [item()], "order_key": None}, "order_key: its value is missing"),
        ({"items": [item()], "max_total": None}, "max_total: must be an amount"),
        ({"items": [item()], "look_back": None}, "look_back: must be"),
    ],
)
def test_invalid_return_values_are_rejected_before_anything_is_sent(
    runa: RunningSandbox, returned: Any, message: str
) -> None:
    @task.runa_order(currency="USD")
    def pay() -> Any:
        return returned

    with pytest.raises(AirflowFailException, match=f"Nothing was sent in this attempt: .*{message}") as caught:
        operator_of(pay).execute(task_context())
    assert ADDRESS not in str(caught.value)
    assert runa.stats()["requests"] == {}


def test_a_retry_runs_the_function_again_and_pays_once(runa: RunningSandbox) -> None:
    calls = []

    @task.runa_order(currency="USD")
    def pay() -> list[dict[str, Any]]:
        calls.append(1)
        return [item(10 if len(calls) < 3 else 11)]

    runa.faults({"kind": "drop_after"})
    first = operator_of(pay, runa=runa).execute(task_context())
    assert operator_of(pay, runa=runa).execute(task_context(try_number=2)) == first
    with pytest.raises(AirflowFailException, match="pays something else"):
        operator_of(pay, runa=runa).execute(task_context(try_number=3))
    assert len(calls) == 3
    assert sum(runa.stats()["orders"].values()) == 1


def test_after_a_deferral_the_function_does_not_run_again(runa: RunningSandbox) -> None:
    calls = []

    @task.runa_order(currency="USD", wait_for_completion=True, deferrable=True)
    def pay() -> list[dict[str, Any]]:
        calls.append(1)
        return [item()]

    with pytest.raises(TaskDeferred) as caught:
        operator_of(pay).execute(task_context())
    (order_id,) = caught.value.trigger.order_ids  # type: ignore[union-attr]
    runa.advance(10)
    event = {"status": "final", "orders": {order_id: "COMPLETED"}}
    assert operator_of(pay).execute_complete(task_context(), event) == order_id
    assert len(calls) == 1


def test_recipients_are_in_no_rendered_field_and_no_log(
    runa: RunningSandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    reset_secrets_masker()

    @task.runa_order(currency="USD")
    def pay(person: str) -> list[dict[str, Any]]:
        return [item(address="grace-7311@example.com"), item(address=person)]

    found = operator_of(pay, person="{{ person }}")
    found.render_template_fields({"person": ADDRESS}, jinja2.Environment(autoescape=False))
    found.execute(task_context())
    stored = json.dumps(stored_fields(found)) + capsys.readouterr().out
    assert "op_kwargs" in stored
    assert ADDRESS not in stored or not MASKS_STORED_FIELDS  # of the function's own arguments
    assert "grace-7311" not in stored
    assert redact("to grace-7311@example.com") == "to ***"


def test_text_that_a_function_returns_is_no_template(runa: RunningSandbox) -> None:
    @task.runa_order(currency="USD")
    def pay() -> dict[str, Any]:
        return {"items": [item()], "description": "{{ 7 * 7 }}"}

    operator_of(pay).execute(task_context())
    assert runa.orders()[0]["description"].startswith("{{ 7 * 7 }} [af-")


def test_it_is_mapped_as_any_task_and_serialized() -> None:
    with DAG("rewards", schedule=None) as dag:

        @task.runa_order(currency="USD")
        def pay(amount: int) -> list[dict[str, Any]]:
            return [item(amount)]

        pay.expand(amount=[1, 2])
        pay.override(task_id="other", order_key="spring/42")(3)
    assert [found.task_id for found in dag.tasks] == ["pay", "other"]
    assert dag.get_task("other").order_key == "spring/42"
    assert ADDRESS not in json.dumps(DagSerialization.to_dict(dag))


def test_items_cannot_be_set_twice() -> None:
    with pytest.raises(TypeError, match="items"):
        operator_of(runa_order_task(currency="USD", items=[item()])(list))


def test_the_rows_that_a_function_yields_are_paid(
    runa: RunningSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = {"conn_type": "sqlite", "host": str(tmp_path / "ledger.db")}
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps(connection))

    @task.runa_payout(campaign="spring", currency="USD", ledger_conn_id="ledger", defaults={"product": "AMZ-US"})
    def winners(count: int) -> Iterator[dict[str, Any]]:
        for number in range(count):
            yield {"recipient_key": number, "face_value": 5, "email_address": f"{number}@example.com"}

    context, tomorrow = task_context(task_id="winners"), task_context(task_id="winners")
    tomorrow["ti"].run_id = "manual__2"
    assert operator_of(winners, 3, runa=runa).execute(context)["rows"] == {"paid": 3}
    assert operator_of(winners, 4, runa=runa).execute(tomorrow)["rows"] == {"paid": 4}
    assert set(runa.stats()["orders_by_recipient"].values()) == {1}
    found = operator_of(winners, 3)
    assert "rows" not in found.template_fields
    assert callable(runa_payout_task)


def test_after_a_deferral_the_order_is_compared_without_the_function(runa: RunningSandbox) -> None:
    calls = []

    @task.runa_order(currency="USD", wait_for_completion=True, deferrable=True)
    def pay() -> list[dict[str, Any]]:
        calls.append(1)
        return [item(), item(5)]

    with pytest.raises(TaskDeferred) as caught:
        operator_of(pay).execute(task_context())
    kwargs = json.loads(json.dumps(caught.value.kwargs))
    (order_id,) = caught.value.trigger.order_ids  # type: ignore[union-attr]
    runa.advance(10)
    event = {"status": "final", "orders": {order_id: "COMPLETED"}}
    assert operator_of(pay, runa=runa).execute_complete(task_context(), event, **kwargs) == order_id
    runa.lies({"kind": "item_missing", "item": 1})
    with pytest.raises(AirflowFailException, match=r"does not pay what was ordered: items\[1\]"):
        operator_of(pay, runa=runa).execute_complete(task_context(), event, **kwargs)
    assert operator_of(pay, runa=runa).execute_complete(task_context(), event) == order_id
    assert len(calls) == 1


def test_the_arguments_of_a_function_do_not_get_into_the_context(runa: RunningSandbox) -> None:
    """The context is a local variable of many frames, and error trackers send those."""

    @task.runa_order(currency="USD")
    def pay(person: str, dag_run: Any = None, **rest: Any) -> list[dict[str, Any]]:
        assert dag_run is rest["ti"] or dag_run.run_after
        return [item(address=person)]

    context = task_context()
    operator_of(pay, person=ADDRESS).execute(context)
    assert ADDRESS not in str(context)


def test_names_that_a_function_returns_are_masked(runa: RunningSandbox) -> None:
    @task.runa_order(currency="USD")
    def pay() -> dict[str, Any]:
        return {ADDRESS: 10, "b\n\x1b[31m": 1}

    with pytest.raises(AirflowFailException, match=r"the function returned \*\*\*, b \\x1b\[31m, which is not allowed"):
        operator_of(pay).execute(task_context())
