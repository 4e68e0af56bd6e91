"""RunaCreateOrderOperator against the sandbox over real sockets: what it sends, waits for, reports and hides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskDeferred, TaskGroup

from airflow_provider_runa.api.client import RunaClient
from airflow_provider_runa.api.errors import InvalidOrderError
from airflow_provider_runa.operators.runa import RunaCreateOrderOperator
from airflow_provider_runa.placement.errors import (
    OrderFailedError,
    OrderHeldBackError,
    RecordUnavailableError,
    StatusUnreadableError,
    StillProcessingError,
)
from airflow_provider_runa.triggers._events import EventStatus
from airflow_provider_runa.triggers.runa import RunaOrderTrigger
from tests.support.airflow import (
    MASKS_STORED_FIELDS,
    SharedClock,
    TaskStates,
    redact,
    reset_secrets_masker,
    stored_fields,
    task_context,
)
from tests.support.sandbox import RunningSandbox

ADDRESS = "ada.lovelace-7311@example.com"
ITEM: dict[str, Any] = {
    "face_value": 10,
    "distribution_method": {"type": "EMAIL", "email_address": ADDRESS},
    "products": {"type": "SINGLE", "value": "AMZ-US"},
}


def operator(runa: RunningSandbox | None = None, **values: Any) -> RunaCreateOrderOperator:
    task = RunaCreateOrderOperator(**({"task_id": "pay", "items": [ITEM], "currency": "USD"} | values))
    if runa is not None:
        task.clock = SharedClock(runa)  # type: ignore[assignment]
    return task


def render(task: RunaCreateOrderOperator, **context: Any) -> RunaCreateOrderOperator:
    task.render_template_fields(context, jinja2.Environment(autoescape=False))  # type: ignore[arg-type]
    return task


def test_it_returns_the_id_and_pushes_a_summary(runa: RunningSandbox) -> None:
    context = task_context()
    order_id = operator(runa).execute(context)
    (order,) = runa.orders()
    assert order["id"] == order_id
    assert context["ti"].xcoms["order"] == {
        "id": order_id,
        "status": "PROCESSING",
        "currency": "USD",
        "face_value": "10.00",
        "items": 1,
        "total_price": None,
        "total_discount": None,
    }


def test_without_xcoms_it_pushes_none(runa: RunningSandbox) -> None:
    context = task_context()
    operator(runa, do_xcom_push=False).execute(context)
    assert context["ti"].xcoms == {}


def test_waiting_it_ends_with_the_completed_order(runa: RunningSandbox) -> None:
    context = task_context()
    operator(runa, wait_for_completion=True).execute(context)
    summary = context["ti"].xcoms["order"]
    assert summary["status"] == "COMPLETED"
    assert summary["total_price"] is not None
    assert runa.stats()["orders"] == {"COMPLETED": 1}


def test_sync_mode_ends_with_the_completed_order(runa: RunningSandbox) -> None:
    context = task_context()
    operator(runa, execution_mode="sync").execute(context)
    assert context["ti"].xcoms["order"]["status"] == "COMPLETED"


def test_the_metadata_of_an_order_names_its_task(runa: RunningSandbox) -> None:
    operator(runa, metadata={"campaign": "spring"}, description="Spring").execute(task_context(map_index=7))
    (order,) = runa.orders()
    assert order["metadata"] | {"airflow_identity": ""} == {
        "campaign": "spring",
        "airflow_identity": "",
        "airflow_dag_id": "rewards",
        "airflow_run_id": "manual__1",
        "airflow_task_id": "pay",
        "airflow_map_index": "7",
    }
    assert order["description"].startswith("Spring [af-")


def test_another_run_with_the_same_order_key_adopts_the_order(runa: RunningSandbox) -> None:
    first = operator(runa, order_key="spring/42").execute(task_context())
    again = operator(runa, order_key="spring/42").execute(task_context(task_id="another"))
    other = operator(runa, order_key="spring/43").execute(task_context())
    assert (again == first, other == first) == (True, False)
    assert sum(runa.stats()["orders"].values()) == 2


def test_mapped_tasks_place_an_order_each(runa: RunningSandbox) -> None:
    ids = {operator(runa).execute(task_context(map_index=index)) for index in (0, 1, 0)}
    assert len(ids) == 2
    assert sum(runa.stats()["orders"].values()) == 2


def test_the_record_never_expires_and_shows_no_recipient(runa: RunningSandbox) -> None:
    states = TaskStates()
    from airflow.sdk.execution_time.context import NEVER_EXPIRE

    order_id = operator(runa).execute(task_context(states=states))
    assert states.retentions == {NEVER_EXPIRE}
    (record,) = states.values.values()
    assert record["order_id"] == order_id
    assert "lovelace" not in json.dumps(states.values)


def test_a_later_attempt_continues_from_the_record_and_sends_nothing(runa: RunningSandbox) -> None:
    states = TaskStates()
    first = operator(runa).execute(task_context(states=states))
    again = operator(runa).execute(task_context(states=states, try_number=2))
    assert again == first
    assert runa.stats()["requests"]["POST /order"] == 1


def test_a_record_that_cannot_be_read_is_ignored(runa: RunningSandbox, caplog: pytest.LogCaptureFixture) -> None:
    states = TaskStates()
    first = operator(runa).execute(task_context(states=states))
    states.values = {name: {"of": "another kind"} for name in states.values}
    assert operator(runa).execute(task_context(states=states, try_number=2)) == first
    assert "is ignored" in caplog.text


# -- input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "native"),
    [
        ("{{ rows | tojson }}", False),
        ("{{ rows }}", True),
        ([ITEM | {"face_value": "{{ amount }}"}], False),
        ([ITEM | {"face_value": "{{ amount }}"}], True),
    ],
)
def test_items_come_from_templates(runa: RunningSandbox, items: Any, native: bool) -> None:
    with DAG("rewards", schedule=None, render_template_as_native_obj=native):
        task = operator(
            runa, items=items, currency="{{ money }}", order_key="spring/{{ who }}", max_total="{{ limit }}"
        )
    task.render_template_fields({"rows": [ITEM], "amount": 10, "money": "USD", "who": 42, "limit": 10})  # type: ignore[typeddict-unknown-key]
    task.execute(task_context())
    assert runa.stats()["payouts"] == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"items": []}, "items: "),
        ({"items": "[{'face_value': 10}]"}, "not JSON; end the template with '| tojson'"),
        ({"items": {"face_value": 10}}, "items: must be a list, not dict"),
        ({"items": None}, "items: must be a list, not NoneType"),
        ({"items": [ITEM, ITEM | {"face_value": "0"}]}, r"items\[1\].face_value"),
        ({"items": [ITEM, ITEM | {"facevalue": 1}]}, r"items\[1\].*facevalue"),
        ({"currency": "dollars"}, "currency"),
        ({"description": "d" * 110}, "description: has 110 characters, 109 are allowed"),
        ({"metadata": {f"k{number}": "v" for number in range(16)}}, "metadata: has 16 pairs, 14 are allowed"),
        ({"metadata": {"airflow_identity": "mine"}}, "reserved"),
        ({"order_key": "None"}, "order_key: rendered to 'None', which looks like a missing value"),
        ({"order_key": ""}, "order_key: rendered to ''"),
        ({"order_key": 42}, "order_key: must be text, not int"),
        ({"order_key": None}, "order_key: its value is missing"),
        ({"execution_mode": "later"}, "execution_mode"),
        ({"execution_mode": "sync", "items": [ITEM, ITEM]}, "exactly one item"),
        ({"max_total": 19.99, "items": [ITEM, ITEM]}, "max_total: the items add up to 20, more than the 19.99 allowed"),
        ({"max_total": "lots"}, "max_total: must be an amount, not 'lots'"),
        ({"max_total": "NaN"}, "max_total: must be an amount"),
        ({"look_back": "a while"}, "look_back: must be a timedelta or a number of days"),
        ({"look_back": -1}, "look_back: must be"),
    ],
)
def test_bad_input_is_rejected_before_anything_is_sent(
    runa: RunningSandbox, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(AirflowFailException, match=message) as caught:
        operator(runa, **values).execute(task_context())
    assert str(caught.value).startswith("Nothing was sent in this attempt: ")
    assert str(caught.value).splitlines()[1:] == [
        "The task fails without further retries.",
        "Fix that, then clear the task.",
    ]
    assert ADDRESS not in str(caught.value)
    assert runa.stats()["requests"] == {}


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"password": ""}, "Connection 'runa_default': the API key is missing"),
        (
            {"password": "wglive.secret-5542", "host": "playground.runa.io"},
            "belongs to production, but the host",
        ),
    ],
)
def test_a_connection_that_cannot_be_used_burns_no_retries(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, connection: dict[str, str], message: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps({"conn_type": "runa"} | connection))
    with pytest.raises(AirflowFailException, match=f"Nothing was sent in this attempt: .*{message}") as caught:
        operator(runa).execute(task_context())
    assert "secret-5542" not in str(caught.value)


@pytest.mark.parametrize("field", ["order_key", "max_total", "look_back"])
def test_a_guard_whose_value_is_missing_is_rejected(runa: RunningSandbox, field: str) -> None:
    """A template or an XCom without a value must not remove the guard."""
    with DAG("rewards", schedule=None, render_template_as_native_obj=True):
        task = operator(runa, **{"order_key": "spring/42", field: "{{ missing }}"})
    task.render_template_fields({"missing": None})  # type: ignore[typeddict-unknown-key]
    assert getattr(task, field) is None
    with pytest.raises(AirflowFailException, match=f"{field}: (must be|its value is missing)"):
        task.execute(task_context())
    assert runa.stats()["requests"] == {}


@pytest.mark.parametrize("field", ["order_key", "max_total", "look_back"])
def test_a_guard_whose_value_is_missing_in_a_mapped_task_is_rejected(runa: RunningSandbox, field: str) -> None:
    """A mapped task is created with resolved values: a missing one is None."""
    with DAG("rewards", schedule=None) as dag:
        mapped = RunaCreateOrderOperator.partial(task_id="pay", currency="USD").expand_kwargs(
            [{"items": [ITEM], field: None}]
        )
    values: Any = {"dag": dag, "dag_run": SimpleNamespace(conf={}), "ti": SimpleNamespace(map_index=0)}
    values["expanded_ti_count"] = 1
    mapped.render_template_fields(values)
    with pytest.raises(AirflowFailException, match=f"{field}: (must be|its value is missing)"):
        values["task"].execute(task_context())
    assert runa.stats()["requests"] == {}


@pytest.mark.parametrize("field", ["timeout", "poll_interval"])
@pytest.mark.parametrize("value", [0, -1, "60", None, True, float("nan"), float("inf"), timedelta(0)])
def test_a_time_that_is_none_breaks_the_dag_and_not_the_wait(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: must be a timedelta or a number of seconds above zero"):
        operator(**{field: value})


def test_times_may_be_timedeltas() -> None:
    task = operator(timeout=timedelta(hours=2), poll_interval=timedelta(minutes=1))
    assert (task.timeout, task.poll_interval) == (7200.0, 60.0)


def test_the_xcoms_of_mapped_tasks_are_items(runa: RunningSandbox) -> None:
    class Collected(Sequence[Any]):
        """As Airflow hands them over: a sequence of its own, that shows none of what it holds."""

        def __getitem__(self, index: Any) -> Any:
            return [ITEM, ITEM][index]

        def __len__(self) -> int:
            return 2

    task = render(operator(runa, items=Collected()))
    assert ADDRESS not in str(task.items)
    task.execute(task_context())
    assert runa.stats()["payouts"] == 2


@pytest.mark.parametrize("look_back", [timedelta(days=90), 90, "90"])
def test_look_back_finds_the_order_of_another_run(runa: RunningSandbox, look_back: Any) -> None:
    task = operator(runa, order_key="spring/42", look_back=look_back)
    first = task.execute(task_context())
    runa.advance(60 * 86400)
    again = operator(runa, order_key="spring/42", look_back=look_back)
    again.clock.slept = 60 * 86400  # type: ignore[attr-defined]
    assert again.execute(task_context()) == first


# -- rejections and failures ------------------------------------------------------------------------------------------


def test_a_rejection_that_a_top_up_fixes_can_be_retried(runa: RunningSandbox) -> None:
    runa.balance("USD", "0")
    states = TaskStates()
    with pytest.raises(OrderHeldBackError, match="paid nobody"):
        operator(runa).execute(task_context(states=states))
    runa.balance("USD", "1000")
    operator(runa).execute(task_context(states=states, try_number=2))
    assert sum(runa.stats()["orders"].values()) == 1


def test_a_final_rejection_burns_no_retries(runa: RunningSandbox) -> None:
    unknown = ITEM | {"products": {"type": "SINGLE", "value": "GONE-US"}}
    with pytest.raises(AirflowFailException, match="Fix what Runa names"):
        operator(runa, items=[unknown]).execute(task_context())


def test_a_retry_places_a_failed_order_again(runa: RunningSandbox) -> None:
    runa.faults({"kind": "fail_order"})
    states = TaskStates()
    with pytest.raises(OrderFailedError, match="Nobody was paid"):
        operator(runa, wait_for_completion=True).execute(task_context(states=states))
    operator(runa, wait_for_completion=True).execute(task_context(states=states, try_number=2))
    assert runa.stats()["orders"] == {"FAILED": 1, "COMPLETED": 1}


def test_the_traceback_of_an_error_shows_no_recipient(runa: RunningSandbox) -> None:
    import traceback

    runa.balance("USD", "0")
    with pytest.raises(OrderHeldBackError) as caught:
        operator(runa).execute(task_context())
    assert ADDRESS not in "".join(traceback.format_exception(caught.value))


# -- waiting --------------------------------------------------------------------------------------------------------


def test_a_deferrable_task_polls_for_a_while_and_then_defers(runa: RunningSandbox) -> None:
    task = operator(runa, wait_for_completion=True, deferrable=True, timeout=600, poll_interval=30)
    task.clock = SharedClock(None)  # type: ignore[assignment]
    before = task.clock.now().timestamp()
    with pytest.raises(TaskDeferred) as caught:
        task.execute(task_context())
    deferred = caught.value
    assert isinstance(deferred.trigger, RunaOrderTrigger)
    assert (deferred.method_name, deferred.timeout) == ("execute_complete", None)
    assert 15 <= task.clock.slept < 20  # type: ignore[attr-defined]
    assert deferred.trigger.poll_interval == 30
    assert before + 599 < deferred.trigger.deadline < before + 605  # type: ignore[operator]


def test_a_deferrable_task_whose_order_is_done_soon_does_not_defer(runa: RunningSandbox) -> None:
    task = operator(runa, wait_for_completion=True, deferrable=True)
    task.execute(task_context())
    assert runa.stats()["orders"] == {"COMPLETED": 1}


@pytest.mark.parametrize("deferrable", [True, False])
def test_the_timeout_ends_the_wait(runa: RunningSandbox, deferrable: bool) -> None:
    task = operator(runa, wait_for_completion=True, deferrable=deferrable, timeout=1, poll_interval=60)
    task.clock = SharedClock(None)  # type: ignore[assignment]
    with pytest.raises(StillProcessingError, match="still PROCESSING after 1 s"):
        task.execute(task_context())
    assert task.clock.slept == pytest.approx(1, abs=0.1)  # type: ignore[attr-defined]


def placed(runa: RunningSandbox, **values: Any) -> str:
    order_id = operator(runa, **values).execute(task_context())
    runa.advance(10)
    return order_id


def test_after_the_trigger_it_fetches_the_order_again(runa: RunningSandbox) -> None:
    order_id = placed(runa)
    context = task_context()
    event = {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}}
    assert operator(runa).execute_complete(context, event) == order_id
    assert context["ti"].xcoms["order"]["status"] == "COMPLETED"


def test_after_the_trigger_a_failed_order_fails_the_task_for_any_event(runa: RunningSandbox) -> None:
    runa.faults({"kind": "fail_order"})
    order_id = placed(runa)
    with pytest.raises(OrderFailedError):
        operator(runa).execute_complete(
            task_context(), {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}}
        )


def test_after_the_trigger_an_order_that_is_final_only_in_the_list_is_waited_for(runa: RunningSandbox) -> None:
    order_id = operator(runa).execute(task_context())
    event = {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}}
    assert operator(runa).execute_complete(task_context(), event) == order_id


def test_after_the_trigger_an_unusable_connection_is_an_error_with_the_order_id(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    order_id = placed(runa)
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", '{"conn_type": "runa"}')
    with pytest.raises(StatusUnreadableError, match=f"Order {order_id} was placed, but .* the API key is missing"):
        operator(runa).execute_complete(
            task_context(), {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}}
        )


@pytest.mark.parametrize(
    ("status", "error"),
    [(EventStatus.TIMED_OUT, StillProcessingError), (EventStatus.UNREADABLE, StatusUnreadableError)],
)
def test_after_the_trigger_gave_up_the_retry_continues_with_the_order(
    runa: RunningSandbox, status: str, error: type[Exception]
) -> None:
    order_id = operator(runa).execute(task_context())
    with pytest.raises(error, match=r"The next retry .* the same order .*sends nothing"):
        operator(runa).execute_complete(task_context(), {"status": status, "orders": {order_id: "PROCESSING"}})


def test_an_order_that_ends_at_the_last_moment_is_seen(runa: RunningSandbox) -> None:
    order_id = placed(runa)
    event = {"status": EventStatus.TIMED_OUT, "orders": {order_id: "PROCESSING"}}
    assert operator(runa).execute_complete(task_context(), event) == order_id


def test_after_the_trigger_it_reports_what_was_paid_even_if_templates_changed(runa: RunningSandbox) -> None:
    order_id = placed(runa, items=[ITEM, ITEM | {"face_value": "5.50"}], max_total=20)
    context = task_context()
    later = operator(runa, items=[ITEM | {"face_value": 21}], max_total=20)
    later.execute_complete(context, {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}})
    summary = context["ti"].xcoms["order"]
    assert (summary["face_value"], summary["items"], summary["currency"]) == ("15.50", 2, "USD")


@pytest.mark.parametrize(
    "event", [None, {}, "done", {"status": "success"}, {"status": EventStatus.FINAL, "orders": {}}]
)
def test_a_missing_or_unknown_event_fails_loudly(runa: RunningSandbox, event: Any) -> None:
    with pytest.raises(ValueError, match="missing or unknown"):
        operator(runa).execute_complete(task_context(), event)


def test_on_kill_logs_that_the_order_continues(
    runa: RunningSandbox, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def logged() -> str:
        return caplog.text + capsys.readouterr().out  # the first in Airflow 2, the second in Airflow 3

    task = operator(runa)
    task.on_kill()
    assert "continues" not in logged()
    order_id = task.execute(task_context())
    task.on_kill()
    assert f"order {order_id} continues: Runa cannot cancel it" in logged()


# -- what must not be seen ------------------------------------------------------------------------------------------


ROWS = [{"distribution_method": {"email_address": "grace-7311@example.com", "recipient_reference": "reference-7311"}}]


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [
        ({"items": "{{ rows | tojson }}"}, ["grace-7311@example.com", "reference-7311"]),
        ({"items": [{"distribution_method": {"email_address": "{{ to }}"}}]}, ["hedy-7311@example.com"]),
        ({"items": "{{ quoted | tojson }}"}, ["o\\u0027brien-7311@example.com"]),
        ({"items": "to {{ to }}, {{ to }}."}, ["hedy-7311@example.com"]),
        ({"description": "for {{ to }}."}, ["hedy-7311@example.com"]),
        ({"order_key": "winback/{{ to }}"}, ["hedy-7311@example.com"]),
        ({"metadata": {"customer": "{{ to }}"}}, ["hedy-7311@example.com"]),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_recipients_are_masked_once_rendered(fields: dict[str, Any], hidden: list[str], mapped: bool) -> None:
    quoted = [{"email_address": "o'brien-7311@example.com"}]
    values: Any = {"rows": ROWS, "quoted": quoted, "to": "hedy-7311@example.com"}
    reset_secrets_masker()
    fields = {"items": []} | fields
    if mapped:
        with DAG("rewards", schedule=None) as dag:
            task = RunaCreateOrderOperator.partial(task_id="pay", currency="USD").expand_kwargs([fields])
        place = SimpleNamespace(map_index=0)
        values |= {"dag": dag, "dag_run": SimpleNamespace(conf={}), "ti": place, "expanded_ti_count": 1}
        task.render_template_fields(values)
        rendered = values["task"]
    else:
        rendered = render(operator(**fields), **values)
    shown = "\n".join(str(redact(getattr(rendered, field), field)) for field in fields)
    stored = stored_fields(rendered)
    if not MASKS_STORED_FIELDS:
        stored = {"items": stored["items"]}
    assert not [value for value in hidden if value in str(stored)]
    assert "***" in shown
    assert not [value for value in hidden if value in shown + str(redact(f"log line about {value}"))]


# -- COMPLETED is not enough ----------------------------------------------------------------------------------------


LINK = ITEM | {"face_value": "5.50", "distribution_method": {"type": "PAYOUT_LINK"}}

LIES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "item_missing", "item": 1}, r"items\[1\]: the order has no item for it"),
    ({"kind": "item_extra", "item": 0}, r"it has 1 item\(s\) that were not ordered"),
    ({"kind": "item_face_value", "item": 0, "value": "9.00"}, r"items\[0\]: the order's item differs in face_value"),
    ({"kind": "item_currency", "item": 1, "value": "EUR"}, r"items\[1\]: its amount is in EUR, not in USD"),
    ({"kind": "item_payout", "item": 1, "value": "CANCELLED"}, r"items\[1\]: its payout is CANCELLED"),
    ({"kind": "order_currency", "value": "EUR"}, r"items\[0\]: the order is in EUR, not in USD; items\[1\]"),
    ({"kind": "order_without", "value": "items"}, r"it shows no items, 2 were ordered"),
    ({"kind": "item_missing"}, r"it shows no items, 2 were ordered"),
]

#: What Runa may show otherwise although it pays what was ordered.
HARMLESS: list[dict[str, Any]] = [
    {"kind": "item_recipient", "value": "masked"},
    {"kind": "item_recipient", "value": "lower"},
    {"kind": "item_recipient", "value": "punycode"},
    {"kind": "item_payout", "value": "CLAIMED"},
    {"kind": "item_payout", "value": "EXPIRED"},
    {"kind": "item_unknown"},
    {"kind": "item_without", "value": "payout"},
    {"kind": "item_without", "value": "currency"},
    {"kind": "order_reversed"},
    {"kind": "order_without", "value": "currency"},
    {"kind": "order_without", "value": "transaction_detail"},
    {"kind": "order_without", "value": "items", "count": 2},
]


def defer(runa: RunningSandbox, **values: Any) -> tuple[dict[str, Any], Any]:
    """Run a task until it defers, and return its event once the order is final, and what it hands over."""
    task = operator(runa, wait_for_completion=True, deferrable=True, **values)
    task.clock = SharedClock(None)  # type: ignore[assignment]
    with pytest.raises(TaskDeferred) as caught:
        task.execute(task_context())
    (order_id,) = caught.value.trigger.order_ids  # type: ignore[union-attr]
    runa.advance(10)
    kwargs = json.loads(json.dumps(caught.value.kwargs))
    return {"status": EventStatus.FINAL, "orders": {order_id: "COMPLETED"}}, kwargs


def complete(runa: RunningSandbox, way: str, *lies: dict[str, Any], **values: Any) -> str:
    """Place an order and wait for it in one of the ways, while Runa says something false."""
    if way == "deferred":
        event, kwargs = defer(runa, **values)
        runa.lies(*lies)
        return operator(runa, **values).execute_complete(task_context(), event, **kwargs)
    runa.lies(*lies)
    if way == "sync":
        return operator(runa, execution_mode="sync", **values).execute(task_context())
    return operator(runa, wait_for_completion=True, **values).execute(task_context())


@pytest.mark.parametrize("way", ["inline", "deferred"])
@pytest.mark.parametrize(("lie", "told"), LIES, ids=lambda value: value["kind"] if isinstance(value, dict) else "")
def test_a_completed_order_that_does_not_pay_what_was_ordered_fails_the_task(
    runa: RunningSandbox, way: str, lie: dict[str, Any], told: str
) -> None:
    with pytest.raises(AirflowFailException, match=f"COMPLETED, but does not pay what was ordered: {told}") as caught:
        complete(runa, way, lie, items=[ITEM, LINK])
    assert str(caught.value).splitlines()[1:] == [
        "The task fails without further retries. Nothing is sent again.",
        "Compare the order with Runa's portal, and ask Runa's support.",
    ]
    assert ADDRESS not in str(caught.value)
    assert sum(runa.stats()["orders"].values()) == 1


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"kind": "item_payout", "value": "CANCELLED"}, r"items\[0\]: its payout is CANCELLED"),
        ({"kind": "order_without", "value": "items"}, "it shows no items, 1 were ordered"),
        ({"kind": "item_face_value", "value": "1.00"}, r"items\[0\]: the order's item differs in face_value"),
    ],
)
def test_sync_mode_is_no_exception(runa: RunningSandbox, lie: dict[str, Any], told: str) -> None:
    with pytest.raises(AirflowFailException, match=f"does not pay what was ordered: {told}"):
        complete(runa, "sync", lie)


@pytest.mark.parametrize("way", ["inline", "deferred"])
@pytest.mark.parametrize("lie", HARMLESS, ids=lambda lie: f"{lie['kind']}-{lie.get('value')}")
def test_an_order_that_is_shown_otherwise_completes_the_task(
    runa: RunningSandbox, way: str, lie: dict[str, Any]
) -> None:
    items = [ITEM | {"distribution_method": {"type": "EMAIL", "email_address": "Ada@Münch.example"}}, LINK]
    assert complete(runa, way, lie, items=items)


def test_an_adopted_order_that_was_cancelled_meanwhile_fails_the_task(runa: RunningSandbox) -> None:
    states = TaskStates()
    order_id = operator(runa, wait_for_completion=True).execute(task_context(states=states))
    runa.set_payout(order_id, "CANCELLED")
    with pytest.raises(AirflowFailException, match=r"items\[0\]: its payout is CANCELLED"):
        operator(runa).execute(task_context(states=states, try_number=2))
    assert sum(runa.stats()["orders"].values()) == 1


def test_an_error_lists_five_problems(runa: RunningSandbox) -> None:
    with pytest.raises(AirflowFailException, match=r"items\[4\]: its payout is CANCELLED; and 2 more\.") as caught:
        complete(runa, "inline", {"kind": "item_payout", "value": "CANCELLED"}, items=[ITEM] * 7)
    assert "items[5]" not in str(caught.value)


def test_a_deferral_hands_over_no_recipient(runa: RunningSandbox) -> None:
    _, kwargs = defer(runa, items=[ITEM, LINK])
    assert kwargs["expected"]["face_values"] == ["10", "5.5"]
    assert ADDRESS not in json.dumps(kwargs)


def test_after_a_deferral_the_order_is_compared_with_what_was_ordered_and_not_with_new_templates(
    runa: RunningSandbox,
) -> None:
    event, kwargs = defer(runa, items=[ITEM, LINK])
    later = operator(runa, items=[LINK], max_total="1")
    assert later.execute_complete(task_context(), event, **kwargs) == next(iter(event["orders"]))


@pytest.mark.parametrize("expected", [None, {}, {"currency": "USD"}, "gone"])
def test_without_what_was_ordered_a_difference_is_only_a_warning(
    runa: RunningSandbox, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], expected: Any
) -> None:
    """``dag.test()`` drops what a deferral hands over."""
    event, _ = defer(runa, items=[ITEM, LINK])
    later = operator(runa, items=[ITEM, LINK | {"face_value": 6}])
    assert later.execute_complete(task_context(), event, expected)
    assert "differs from what the task's fields are now: items[1]: the order's item" in caplog.text + (
        capsys.readouterr().out
    )
    runa.lies({"kind": "item_payout", "item": 1, "value": "CANCELLED"})
    with pytest.raises(AirflowFailException, match=r"1 of 2 payout\(s\) are CANCELLED"):
        later.execute_complete(task_context(), event, expected)


# -- identities -----------------------------------------------------------------------------------------------------


def deploy(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """Let the connection name its deployment."""
    connection = json.loads(runa.connection) | {"extra": {"deployment": name}}
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(connection))


def test_two_deployments_place_an_order_each(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {}
    for name in (None, "blue", "green"):
        deploy(runa, monkeypatch, name)
        ids[name] = [operator(runa).execute(task_context()), operator(runa).execute(task_context(try_number=2))]
    assert [len(set(found)) for found in ids.values()] == [1, 1, 1]
    named = {order["id"]: order["metadata"].get("airflow_deployment") for order in runa.orders()}
    assert named == {found[0]: name for name, found in ids.items()}


def test_deployments_share_an_order_key(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = set()
    for name in (None, "blue", "green"):
        deploy(runa, monkeypatch, name)
        ids.add(operator(runa, order_key="spring/42").execute(task_context()))
    assert len(ids) == 1
    assert "airflow_deployment" not in runa.orders()[0]["metadata"]


def test_a_task_that_began_before_its_deployment_had_a_name_continues_with_its_order(
    runa: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = TaskStates()
    first = operator(runa).execute(task_context(states=states))
    deploy(runa, monkeypatch, "blue")
    assert operator(runa).execute(task_context(states=states, try_number=2)) == first
    assert "before the connection named its deployment" in caplog.text + capsys.readouterr().out
    states.get = None  # type: ignore[method-assign, assignment]
    with pytest.raises(RecordUnavailableError, match="cannot be read"):
        operator(runa).execute(task_context(states=states, try_number=3))


def test_an_order_of_another_deployment_is_not_adopted_in_silence(
    runa: RunningSandbox,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It cannot happen: the name is part of the key. So the answer is changed."""
    deploy(runa, monkeypatch, "blue")
    fetch = RunaClient.get_order
    states = TaskStates()
    order_id = operator(runa, wait_for_completion=True).execute(task_context(states=states))

    def other(client: RunaClient, order_id: str) -> Any:
        order = fetch(client, order_id)
        return order.model_copy(update={"metadata": dict(order.metadata or {}) | {"airflow_deployment": "green"}})

    monkeypatch.setattr(RunaClient, "get_order", other)
    operator(runa).execute(task_context(states=states, try_number=2))
    logged = caplog.text + capsys.readouterr().out
    assert f"Order {order_id} was placed by deployment green, and the connection names deployment blue" in logged


def test_operators_inside_one_task_need_an_order_key(runa: RunningSandbox) -> None:
    """A function of TaskFlow may create two of them: with the identity of its task, the second one would pay nobody."""
    running = task_context(task_id="function")
    for name in ("first", "second"):
        with pytest.raises(
            AirflowFailException, match=f"task_id: {name} runs inside task function.* or give each an order_key"
        ):
            operator(runa, task_id=name).execute(running)
    assert runa.stats()["requests"] == {}
    ids = {operator(runa, task_id=name, order_key=f"spring/{name}").execute(running) for name in ("first", "second")}
    assert len(ids) == 2


@pytest.mark.parametrize("mapped", [False, True])
def test_a_task_in_a_group_is_no_operator_inside_another(runa: RunningSandbox, mapped: bool) -> None:
    with DAG("rewards", schedule=None) as dag, TaskGroup("group"):
        task: Any = operator(runa)
        many = RunaCreateOrderOperator.partial(task_id="many", currency="USD").expand_kwargs([{"items": [ITEM]}])
    if mapped:
        values: Any = {"dag": dag, "dag_run": SimpleNamespace(conf={}), "ti": SimpleNamespace(map_index=0)}
        values["expanded_ti_count"] = 1
        many.render_template_fields(values)
        task = values["task"]
    task.execute(task_context(task_id="group.many" if mapped else "group.pay"))
    assert sum(runa.stats()["orders"].values()) == 1


def test_airflow_tasks_test_is_a_first_attempt(runa: RunningSandbox) -> None:
    """Its try number is 0. As a retry, it would wait and search after the rejection."""
    gone = ITEM | {"products": {"type": "SINGLE", "value": "GONE-US"}}
    task = operator(runa, items=[gone])
    with pytest.raises(AirflowFailException, match="no earlier request is known"):
        task.execute(task_context(try_number=0))
    assert task.clock.slept == 0  # type: ignore[attr-defined]
    assert runa.stats()["requests"] == {"POST /order": 1}


@pytest.mark.parametrize("metadata", [{"campaign": "spring"}, '{"campaign": "spring"}'])
def test_metadata_may_be_json(metadata: Any) -> None:
    task = RunaCreateOrderOperator(task_id="pay", items=[ITEM], currency="USD", metadata=metadata)
    assert task._build().metadata == {"campaign": "spring"}


def test_metadata_that_is_not_json_is_wrong_input() -> None:
    task = RunaCreateOrderOperator(task_id="pay", items=[ITEM], currency="USD", metadata="{'campaign': 'spring'}")
    with pytest.raises(InvalidOrderError, match="metadata: rendered to text that is not JSON"):
        task._build()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"currency": "USD", "items": [{}] * 201}, "items: has 201 entries, .* use RunaPayoutOperator"),
        ({"currency": None, "items": [{}]}, "currency: is missing; set the currency"),
    ],
)
def test_a_likely_mistake_says_what_to_do(values: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        RunaCreateOrderOperator(task_id="pay", **values).execute(task_context())  # type: ignore[arg-type]
