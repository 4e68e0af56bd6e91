"""RunaPayoutOperator against the sandbox over real sockets, with a ledger in a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred

from airflow_provider_runa.campaign.errors import (
    BalanceTooLowError,
    CampaignFailedError,
    CampaignStillProcessingError,
    CampaignUnfinishedError,
    OrderListUnreadableError,
)
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.pay import Paid
from airflow_provider_runa.campaign.tables import open_engine
from airflow_provider_runa.operators.payout import RunaPayoutOperator, _Progress
from airflow_provider_runa.operators.runa import INLINE_SECONDS
from airflow_provider_runa.placement.errors import StatusUnreadableError
from airflow_provider_runa.placement.place import Policy
from airflow_provider_runa.triggers.runa import RunaOrderTrigger
from tests.campaign.world import DEFAULTS, rejected_row, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox


@pytest.fixture
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite file, which the connection ``ledger`` opens."""
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return path


def operator(runa: RunningSandbox, rows: Any = None, **values: Any) -> RunaPayoutOperator:
    given = {"campaign": "spring", "currency": "USD", "ledger_conn_id": "ledger", "defaults": DEFAULTS}
    task = RunaPayoutOperator(**({"task_id": "pay", "rows": rows} | given | values))
    task.clock = SharedClock(runa)  # type: ignore[assignment]
    return task


def rows_of(runa: RunningSandbox, path: Path, *states: str) -> list[dict[str, Any]]:
    engine = open_engine(f"sqlite:///{path}")
    try:
        return list(Ledger(engine, runa.url, "spring").rows(*states))
    finally:
        engine.dispose()


def test_it_pays_every_row_once_in_orders_of_200(runa: RunningSandbox, ledger_file: Path) -> None:
    summary = operator(runa, [row(n) for n in range(450)]).execute(task_context())
    assert summary == {
        "campaign": "spring",
        "currency": "USD",
        "run": {
            "read": 450,
            "planned": 450,
            "paid": 450,
            "paid_amount": "4500.00",
            **dict.fromkeys(
                ("already_paid", "other_amount", "already_open", "open_elsewhere", "found", "left_out", "wrong"), 0
            ),
            **dict.fromkeys(("open", "failed", "rejected", "mismatch"), 0),
        },
        "rows": {"paid": 450},
        "amounts": {"paid": "4500.00"},
    }
    stats = runa.stats()
    assert stats["orders"] == {"COMPLETED": 3}
    assert stats["payouts"] == 450
    assert set(stats["orders_by_recipient"].values()) == {1}
    rows = rows_of(runa, ledger_file, "paid")
    assert len({line["item_id"] for line in rows}) == 450
    assert {line["amount"] for line in rows} == {Decimal(10)}
    assert {line["order_id"] for line in rows} == {order["id"] for order in runa.orders()}
    with contextlib.closing(sqlite3.connect(ledger_file)) as connection:
        connection.execute("VACUUM")  # SQLite keeps pieces of rows in the free space of its pages
    assert b"@example.com" not in ledger_file.read_bytes(), "a recipient's address outlives the payment"


def test_another_dag_pays_only_who_was_not_paid(runa: RunningSandbox, ledger_file: Path) -> None:
    operator(runa, [row(n) for n in range(3)]).execute(task_context())
    summary = operator(runa, [row(n) for n in range(5)], task_id="other").execute(task_context(task_id="other"))
    assert summary["rows"] == {"paid": 5}
    assert set(runa.stats()["orders_by_recipient"].values()) == {1}


def test_a_retry_sends_what_was_planned_though_the_input_has_changed(runa: RunningSandbox, ledger_file: Path) -> None:
    runa.faults({"kind": "drop_before", "count": 1000})
    task = operator(runa, [row(n) for n in range(3)])
    task.policy = Policy(budget=10)
    with pytest.raises(CampaignUnfinishedError, match="1 order"):
        task.execute(task_context())
    runa.clear_faults()
    changed = [row(0, amount=99), row(7)]
    summary = operator(runa, changed).execute(task_context(try_number=2))
    assert summary["amounts"] == {"paid": "30.00"}
    assert summary["rows"] == {"paid": 3}


def test_a_lost_answer_leaves_one_order(runa: RunningSandbox, ledger_file: Path) -> None:
    runa.faults({"kind": "drop_after"})
    operator(runa, [row(n) for n in range(3)]).execute(task_context())
    assert runa.stats()["orders"] == {"COMPLETED": 1}


def test_an_answer_that_a_gateway_blocks_is_no_rejection(runa: RunningSandbox, ledger_file: Path) -> None:
    runa.faults({"kind": "status_after", "status": 403, "typed": False})
    rows = [row(n) for n in range(3)]
    with contextlib.suppress(CampaignUnfinishedError, AirflowFailException):
        operator(runa, rows).execute(task_context())
    assert operator(runa, rows).execute(task_context(try_number=2))["rows"] == {"paid": 3}
    assert runa.stats()["payouts"] == 3


def test_a_plan_stops_before_anything_is_sent_and_is_paid_later(runa: RunningSandbox, ledger_file: Path) -> None:
    planned = operator(runa, [row(n) for n in range(3)], mode="plan").execute(task_context())
    assert planned["rows"] == {"planned": 3}
    assert planned["amounts"] == {"planned": "30.00"}
    assert "POST /order" not in runa.stats()["requests"]
    paid = operator(runa, mode="pay", task_id="approved").execute(task_context(task_id="approved"))
    assert paid["rows"] == {"paid": 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_total": 29}, r"max_total: 30(\.00)? are to be paid"),
        ({"max_recipients": 2}, "max_recipients: 3 are to be paid"),
        ({"max_per_recipient": "9.99"}, r"max_per_recipient: 10(\.00)? is planned for one"),
        ({"currency": "EUR"}, "currency: is EUR, but what is planned is in USD"),
    ],
)
def test_what_was_planned_is_paid_within_the_limits_of_who_pays(
    runa: RunningSandbox, ledger_file: Path, values: dict[str, Any], message: str
) -> None:
    operator(runa, [row(n) for n in range(3)], mode="plan").execute(task_context())
    with pytest.raises(AirflowFailException, match=message):
        operator(runa, mode="pay", **values).execute(task_context())
    assert "POST /order" not in runa.stats()["requests"]
    within = {"max_total": 30, "max_recipients": 3, "max_per_recipient": 10}
    assert operator(runa, mode="pay", **within).execute(task_context())["rows"] == {"paid": 3}


def test_paying_a_campaign_without_a_plan_is_an_error(runa: RunningSandbox, ledger_file: Path) -> None:
    operator(runa, [], mode="plan").execute(task_context())
    assert operator(runa, mode="pay").execute(task_context())["rows"] == {}, "a plan of nobody is a plan"
    with pytest.raises(
        AirflowFailException,
        match=r"^.*: campaign: the ledger has no campaign 'sprnig' on http.*; of 1 there are 'spring'",
    ):
        operator(runa, mode="pay", campaign="sprnig").execute(task_context())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_total": 29}, r"max_total: 30(\.00)? are to be paid, more than the 29 allowed"),
        ({"max_recipients": 2}, "max_recipients: 3 are to be paid"),
        ({"max_per_recipient": "9.99"}, r"rows\[0\]\.face_value: is 10"),
        ({"max_total": "none"}, "max_total: must be an amount"),
        ({"rows": [row(1), row(1)]}, r"rows\[1\]\.recipient_key: is the same as rows\[0\]"),
        ({"rows": "no json"}, "rows: rendered to text that is not JSON"),
        ({"rows": {"a": 1}}, "rows: must be a list, not dict"),
        ({"campaign": " "}, "campaign: is missing"),
        ({"max_total": None}, "max_total: its value is missing"),
        ({"max_recipients": None}, "max_recipients: its value is missing"),
        ({"max_per_recipient": None}, "max_per_recipient: its value is missing"),
        ({"mode": "pray"}, "mode: must be one of"),
        ({"ledger_conn_id": "elsewhere"}, "has the type 'mysql'; a ledger needs one of postgresql, sqlite"),
    ],
)
def test_bad_input_is_rejected_and_nothing_is_sent(
    runa: RunningSandbox, ledger_file: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ELSEWHERE", "mysql://localhost/ledger")
    task = operator(runa, **({"rows": [row(n) for n in range(3)]} | values))
    with pytest.raises(AirflowFailException, match=message) as caught:
        task.execute(task_context())
    assert str(caught.value).splitlines()[2] == "Fix that, then clear the task."
    assert "POST /order" not in runa.stats()["requests"]
    if ledger_file.exists():
        assert rows_of(runa, ledger_file) == []


def test_a_balance_that_is_too_low_is_seen_before_the_first_order(runa: RunningSandbox, ledger_file: Path) -> None:
    runa.balance("USD", "29.99")
    with pytest.raises(BalanceTooLowError, match=r"3 payout\(s\) of 30"):
        operator(runa, [row(n) for n in range(3)]).execute(task_context())
    assert "POST /order" not in runa.stats()["requests"]
    runa.balance("USD", "30")
    assert operator(runa, []).execute(task_context(try_number=2))["rows"] == {"paid": 3}


def test_the_balance_is_left_to_runa_when_that_is_asked_for(runa: RunningSandbox, ledger_file: Path) -> None:
    runa.balance("USD", "29.99")
    with pytest.raises(CampaignUnfinishedError, match="insufficient_funds"):
        operator(runa, [row(n) for n in range(3)], check_balance=False).execute(task_context())
    assert "POST /order" in runa.stats()["requests"]


def test_an_order_that_fails_fails_its_rows_and_the_retry_pays_them(runa: RunningSandbox, ledger_file: Path) -> None:
    runa.faults({"kind": "fail_order"})
    rows = [row(n) for n in range(250)]
    with pytest.raises(CampaignFailedError, match=r"\d+ of \d+ paid, .*; \d+ failed"):
        operator(runa, rows).execute(task_context())
    assert operator(runa, rows).execute(task_context(try_number=2))["rows"] == {"paid": 250}
    assert set(runa.stats()["orders_by_recipient"].values()) == {1}


def test_a_retry_that_only_pays_orders_again_for_an_order_that_failed(
    runa: RunningSandbox, ledger_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    operator(runa, [row(n) for n in range(250)], mode="plan").execute(task_context())
    runa.faults({"kind": "fail_order"})

    def pay(run_id: str, try_number: int) -> Any:
        context = task_context(task_id="approved", try_number=try_number)
        context["ti"].run_id = run_id
        return operator(runa, mode="pay", task_id="approved", max_total=2500).execute(context)

    with pytest.raises(CampaignFailedError, match=r"\d+ of \d+ paid, .*; \d+ failed"):
        pay("monday", 1)
    other = pay("tuesday", 1)  # nobody has approved this run's paying for them
    assert (other["run"]["paid"], other["run"]["failed"], other["rows"]["failed"] in (50, 200)) == (0, 0, True)
    assert "rows that other runs have planned were not paid" in capsys.readouterr().out
    assert pay("monday", 2)["rows"] == {"paid": 250}
    assert set(runa.stats()["orders_by_recipient"].values()) == {1}


def test_partial_failure_may_only_warn(
    runa: RunningSandbox, ledger_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runa.faults({"kind": "fail_order"})
    summary = operator(runa, [row(1)], on_partial_failure="warn").execute(task_context())
    assert summary["rows"] == {"failed": 1}
    assert "The failed rows were not paid" in capsys.readouterr().out


def test_the_rows_that_runa_rejects_are_isolated(runa: RunningSandbox, ledger_file: Path) -> None:
    rows = [rejected_row(n) if n in (7, 19) else row(n, product="AMZ-US") for n in range(20)]
    with pytest.raises(AirflowFailException, match=r"18 of 20 paid, 180\.00 USD; 2 rejected"):
        operator(runa, rows, defaults={}, isolate_rejections=True).execute(task_context())
    assert [line["recipient_key"] for line in rows_of(runa, ledger_file, "rejected")] == ["customer-19", "customer-7"]
    rows[7], rows[19] = row(7, product="AMZ-US", amount=12), row(19, product="AMZ-US", amount=13)
    summary = operator(runa, rows, defaults={}).execute(task_context(try_number=2))
    assert summary["amounts"] == {"paid": "205.00"}


def test_it_defers_once_for_all_orders_and_settles_afterwards(
    runa: RunningSandbox, ledger_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = operator(runa, [row(n) for n in range(250)], deferrable=True)
    task.clock = SharedClock(None)  # type: ignore[assignment] # the orders stay PROCESSING
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(task_context())
    trigger = deferred.value.trigger
    assert isinstance(trigger, RunaOrderTrigger)
    assert sorted(trigger.order_ids) == sorted(order["id"] for order in runa.orders())
    assert deferred.value.timeout is None
    assert not trigger.fail_fast, "the first order that FAILED would end the wait for the others"
    event = {"status": "timed_out", "orders": dict.fromkeys(trigger.order_ids, "PROCESSING")}
    with pytest.raises(CampaignStillProcessingError, match=r"2 order\(s\) are still PROCESSING"):
        operator(runa, deferrable=True).execute_complete(task_context(), event)
    runa.advance(60)
    summary = operator(runa, deferrable=True).execute_complete(task_context(), event)
    assert summary["rows"] == {"paid": 250}


def test_after_a_deferral_every_order_must_be_in_the_ledger(runa: RunningSandbox, ledger_file: Path) -> None:
    operator(runa, [row(1)]).execute(task_context())
    (order,) = runa.orders()
    event = {"status": "final", "orders": {order["id"]: "COMPLETED"}}
    assert operator(runa).execute_complete(task_context(), event)["rows"] == {"paid": 1}
    with pytest.raises(AirflowFailException, match=f"Order {order['id']} was placed by this task and continues, but"):
        operator(runa, campaign="autumn").execute_complete(task_context(), event)


def test_after_a_deferral_an_order_that_only_the_list_calls_settled_is_waited_for(
    runa: RunningSandbox, ledger_file: Path
) -> None:
    task = operator(runa, [row(1)], deferrable=True)
    task.clock = SharedClock(None)  # type: ignore[assignment] # the order stays PROCESSING
    with pytest.raises(TaskDeferred):
        task.execute(task_context())
    event = {"status": "final", "orders": {order["id"]: "COMPLETED" for order in runa.orders()}}
    assert operator(runa).execute_complete(task_context(), event)["rows"] == {"paid": 1}


def test_after_a_deferral_the_error_of_an_unusable_connection_says_that_orders_continue(
    runa: RunningSandbox, ledger_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", '{"conn_type": "runa"}')
    with pytest.raises(AirflowFailException, match=r"^The orders that were placed continue: .* the API key is missing"):
        operator(runa).execute_complete(task_context(), {"status": "final", "orders": {"O-1": "COMPLETED"}})


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, AirflowFailException, "The connection points at another account"),
        (403, StatusUnreadableError, "its status could not be read .403"),
    ],
)
def test_orders_that_cannot_be_read_are_not_called_processing(
    runa: RunningSandbox, ledger_file: Path, status: int, error: type[Exception], message: str
) -> None:
    fault = {"kind": "status", "method": "GET", "status": status, "count": 10**6}
    fault["type"] = {404: "not_found", 403: "forbidden"}[status]
    runa.faults(fault | {"path": "/order", "skip": 1}, fault | {"path": "/order/*"})  # the list is read before paying
    with pytest.raises(error, match=message):
        operator(runa, [row(1)], timeout=20, poll_interval=5).execute(task_context())


@pytest.mark.parametrize("fault", [{"kind": "status", "status": 500}, {"kind": "drop_before"}])
def test_nothing_is_sent_while_the_order_list_cannot_be_read(
    runa: RunningSandbox, ledger_file: Path, fault: dict[str, Any]
) -> None:
    runa.faults(fault | {"method": "GET", "path": "/order", "count": 10**6})
    with pytest.raises(OrderListUnreadableError, match="Runa's order list could not be read"):
        operator(runa, [row(1)]).execute(task_context())
    assert "POST /order" not in runa.stats()["requests"]
    runa.clear_faults()
    assert operator(runa, [row(1)]).execute(task_context(try_number=2))["rows"] == {"paid": 1}


def test_a_balance_that_is_too_low_does_not_hide_what_was_paid(runa: RunningSandbox, ledger_file: Path) -> None:
    task = operator(runa, [row(1)])
    task.clock = SharedClock(None)  # type: ignore[assignment]
    task.timeout = 0.1
    with pytest.raises(CampaignStillProcessingError):
        task.execute(task_context())
    runa.advance(60)
    runa.balance("USD", "5")
    with pytest.raises(BalanceTooLowError):
        operator(runa, [row(2)], task_id="more").execute(task_context(task_id="more"))
    assert [line["recipient_key"] for line in rows_of(runa, ledger_file, "paid")] == ["customer-1"]


def test_the_time_to_wait_begins_when_all_is_placed(
    runa: RunningSandbox, ledger_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = operator(runa, [row(1)], deferrable=True, timeout=100)
    task.clock = SharedClock(None)  # type: ignore[assignment]
    runa.faults({"kind": "status", "status": 503, "count": 3})
    began = task.clock.now()
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(task_context())
    waited = task.clock.slept - INLINE_SECONDS
    assert waited > 1
    assert deferred.value.trigger.deadline >= began.timestamp() + waited + 100  # type: ignore[attr-defined]


def test_progress_is_logged_while_orders_are_processing(
    runa: RunningSandbox, ledger_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = operator(runa, [row(n) for n in range(250)], timeout=100, poll_interval=30)
    task.clock = SharedClock(None)  # type: ignore[assignment]
    with pytest.raises(CampaignStillProcessingError):
        task.execute(task_context())
    assert capsys.readouterr().out.count("2 order(s) are PROCESSING.") >= 3


def test_rendered_rows_do_not_show(runa: RunningSandbox) -> None:
    task = operator(runa, "{{ people | tojson }}")
    task.render_template_fields({"people": [row(1)]}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type]
    assert "example.com" not in str(task.rows)
    assert [line["recipient_key"] for line in task.iter_rows({})] == ["customer-1"]  # type: ignore[typeddict-item]
    listed = operator(runa, [row(1), row(2)])
    listed.render_template_fields({}, jinja2.Environment(autoescape=False))  # type: ignore[arg-type]
    assert str(listed.rows) == "2 rows"


def test_links_are_kept_only_when_asked_for(runa: RunningSandbox, ledger_file: Path) -> None:
    def links() -> Sequence[str]:
        engine = open_engine(f"sqlite:///{ledger_file}")
        with engine.begin() as connection:
            found = connection.exec_driver_sql("SELECT payout_link FROM runa_ledger ORDER BY recipient_key").scalars()
            return [link for link in found if link]

    by_link = {"template_id": DEFAULTS["template_id"], "distribution_method": {"type": "PAYOUT_LINK"}}
    rows = [{"recipient_key": f"customer-{n}", "face_value": 10} for n in range(2)]
    operator(runa, rows, defaults=by_link).execute(task_context())
    assert links() == []
    more = [{"recipient_key": f"customer-{n}", "face_value": 10} for n in (8, 9)]
    operator(runa, more, defaults=by_link, store_links=True, task_id="b").execute(task_context(task_id="b"))
    assert len(set(links())) == 2


def test_it_pays_in_a_notebook_where_an_event_loop_runs(runa: RunningSandbox, ledger_file: Path) -> None:
    async def cell() -> Any:
        return operator(runa, [row(1)]).execute(task_context())

    assert asyncio.run(cell())["rows"] == {"paid": 1}


def test_the_log_says_what_is_to_be_paid_first_and_what_was_paid_last(
    runa: RunningSandbox, ledger_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = operator(runa, [row(n) for n in range(300)])
    task.execute(task_context())
    log = capsys.readouterr().out
    assert "'spring' is planned: 300 to pay, 3,000.00 USD (rows: 300 read, 300 planned)." in log
    assert "'spring', this run: 300 of 300 paid, 3,000.00 USD." in log.splitlines()[-1]
    operator(runa, [], task_id="again").execute(task_context(task_id="again"))
    assert "is planned: nobody to pay." in capsys.readouterr().out


def test_progress_is_logged_while_no_order_gets_through(
    runa: RunningSandbox, ledger_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("airflow_provider_runa.operators.payout.PROGRESS_SECONDS", 0.05)
    runa.faults({"kind": "latency", "seconds": 0.5, "count": 20})
    operator(runa, [row(n) for n in range(3)]).execute(task_context())
    assert "0 order(s) placed, 1 in flight, 0 queued." in capsys.readouterr().out


def test_the_time_to_go_keeps_to_the_rate_limit(runa: RunningSandbox) -> None:
    task = operator(runa)
    task.clock = SharedClock(None)  # type: ignore[assignment]
    progress = _Progress(task, SimpleNamespace(campaign="spring"), per_minute=60)  # type: ignore[arg-type]
    progress.note(Paid(placed=60, in_flight=16), 524)
    task.clock.slept = 30.0  # type: ignore[attr-defined]
    assert progress.text() == "60 order(s) placed, 16 in flight, 524 queued, about 510 s to go"
