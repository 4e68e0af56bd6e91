"""What one run of RunaPayoutOperator pays and answers for, while others plan and pay in the same campaign."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_runa.api.models import NewOrder
from airflow_provider_runa.campaign.batches import Batch
from airflow_provider_runa.campaign.errors import (
    CampaignFailedError,
    CampaignUnfinishedError,
    CatchUpInconclusiveError,
)
from airflow_provider_runa.campaign.found import Absorbed
from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.tables import open_engine
from airflow_provider_runa.hooks.runa import RunaHook
from airflow_provider_runa.operators.payout import RunaPayoutOperator
from airflow_provider_runa.placement.identity import OrderIdentity
from airflow_provider_runa.placement.place import Policy
from tests.campaign.world import DEFAULTS, row
from tests.support.airflow import SharedClock, task_context
from tests.support.sandbox import RunningSandbox

EUR = {"currency": "EUR", "defaults": {"template_id": "PT-01HQ130AHCKRRB45Z5XV2Y8W9K"}}


@pytest.fixture(autouse=True)
def ledger_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SQLite file, which the connection ``ledger`` opens."""
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("AIRFLOW_CONN_LEDGER", json.dumps({"conn_type": "sqlite", "host": str(path)}))
    return path


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Return the first line of the log with a text. Before Airflow 3, the log is one of the standard library."""

    def line_with(text: str) -> str:
        return next(line for line in (caplog.text + capsys.readouterr().out).splitlines() if text in line)

    return line_with


class Operator(RunaPayoutOperator):
    """The operator, which calls a function when it has chosen what it pays and before it sends the first order."""

    before_paying: Callable[[], object] = staticmethod(lambda: None)

    def _check_balance(self, ledger: Ledger, batches: Sequence[Batch]) -> None:
        type(self).before_paying()
        super()._check_balance(ledger, batches)


def run(
    runa: RunningSandbox,
    rows: Any = None,
    *,
    run_id: str = "monday",
    task: type[RunaPayoutOperator] = Operator,
    policy: Policy = RunaPayoutOperator.policy,
    **values: Any,
) -> dict[str, Any]:
    """Run the task once, and return its summary."""
    given = {"campaign": "spring", "currency": "USD", "ledger_conn_id": "ledger", "defaults": DEFAULTS}
    one = task(**({"task_id": "pay", "rows": rows} | given | values))
    one.clock = SharedClock(runa)  # type: ignore[assignment]
    one.policy = policy
    context = task_context(task_id=one.task_id)
    context["ti"].run_id = run_id
    return one.execute(context)


def rows_of(*numbers: int, **fields: Any) -> list[dict[str, Any]]:
    return [row(number, **fields) for number in numbers]


def paid(runa: RunningSandbox) -> set[int]:
    """Return the numbers of the recipients whom Runa has paid, each once."""
    counts = runa.stats()["orders_by_recipient"]
    assert set(counts.values()) <= {1}
    numbers = {hashlib.sha256(f"customer-{number}@example.com".encode()).hexdigest(): number for number in range(2001)}
    return {numbers[recipient] for recipient in counts}


def counts(summary: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: summary["run"][name] for name in names}


# -- a run sends what it has checked ----------------------------------------------------------------------------------


def test_what_another_task_planned_before_is_not_paid(runa: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    run(runa, rows_of(*range(1, 2001)), run_id="other", mode="plan")
    summary = run(runa, rows_of(0, 1), max_total=10, max_recipients=1)
    assert paid(runa) == {0}
    assert counts(summary, "planned", "paid", "already_open", "open_elsewhere") == {
        "planned": 1,
        "paid": 1,
        "already_open": 1,
        "open_elsewhere": 1,
    }
    assert summary["rows"] == {"paid": 1, "planned": 2000}
    assert "1 row(s) are planned by another run and not paid yet" in capsys.readouterr().out


def test_what_another_task_plans_meanwhile_is_not_paid(runa: RunningSandbox) -> None:
    class Busy(Operator):
        before_paying = staticmethod(lambda: run(runa, rows_of(*range(1, 2001)), run_id="other", mode="plan"))

    summary = run(runa, rows_of(0), task=Busy, max_total=10)
    assert paid(runa) == {0}
    assert (summary["run"]["paid"], summary["rows"]) == (1, {"paid": 1, "planned": 2000})


def test_what_is_planned_after_the_check_is_not_paid_by_a_task_that_only_pays(runa: RunningSandbox) -> None:
    run(runa, rows_of(0), mode="plan")

    class Busy(Operator):
        before_paying = staticmethod(lambda: run(runa, rows_of(1, 2), run_id="late", mode="plan"))

    summary = run(runa, task=Busy, mode="pay", task_id="approved", max_total=10)
    assert paid(runa) == {0}
    assert summary["rows"] == {"paid": 1, "planned": 2}
    assert run(runa, mode="pay", task_id="approved", max_total=20)["rows"] == {"paid": 3}


def test_rows_of_another_currency_that_were_planned_before_are_not_paid(runa: RunningSandbox) -> None:
    run(runa, rows_of(1, 2, 3), run_id="euro", mode="plan", **EUR)
    summary = run(runa, rows_of(0), max_total=10)
    assert paid(runa) == {0}
    assert summary["rows"] == {"paid": 1}, "the totals are those of the currency"
    assert run(runa, rows_of(1, 2, 3), run_id="euro", max_total=30, **EUR)["rows"] == {"paid": 3}


def test_a_run_does_not_fail_for_rows_of_others(runa: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    runa.faults({"kind": "fail_order"})
    with pytest.raises(CampaignFailedError):
        run(runa, rows_of(1))
    assert run(runa, rows_of(2), run_id="tuesday")["run"]["failed"] == 0
    assert "rows that other runs have planned were not paid: 1 failed" in capsys.readouterr().out
    assert run(runa, rows_of(1))["rows"] == {"paid": 2}


def test_a_run_takes_over_what_another_began_to_send_and_left(runa: RunningSandbox) -> None:
    runa.faults({"kind": "drop_before", "count": 1000})
    with pytest.raises(CampaignUnfinishedError):
        run(runa, rows_of(1), policy=Policy(budget=10))
    runa.clear_faults()
    with pytest.raises(AirflowFailException, match="max_recipients: 2 are to be paid"):
        later(runa, rows_of(2), run_id="tuesday", max_recipients=1)
    assert later(runa, rows_of(2), run_id="tuesday", max_recipients=2)["rows"] == {"paid": 2}
    assert paid(runa) == {1, 2}


def later(runa: RunningSandbox, rows: Any, **values: Any) -> dict[str, Any]:
    """Run the task an hour later."""

    class Later(Operator):
        def execute(self, context: Any) -> dict[str, Any]:
            self.clock.slept = 3600.0  # type: ignore[attr-defined]
            return super().execute(context)

    return run(runa, rows, task=Later, **values)


def test_two_runs_at_once_pay_everybody_once(runa: RunningSandbox) -> None:
    def pay(start: int) -> dict[str, Any]:
        with contextlib.suppress(ImportError):  # Airflow 2 lets operators run in the main thread only
            from airflow.models.baseoperator import ExecutorSafeguard

            ExecutorSafeguard._sentinel.callers = {}
        return run(runa, rows_of(*range(start, start + 600)), run_id=f"run-{start}")

    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(pay, start) for start in (0, 200)]
        summaries = [one.result() for one in work]
    assert paid(runa) == set(range(800))
    assert sum(summary["run"]["paid"] for summary in summaries) == 800


@pytest.mark.parametrize("mode", ["pay", "plan_and_pay"])
@pytest.mark.parametrize("deferrable", [False, True])
def test_a_batch_that_must_not_be_sent_yet_leaves_the_run_unfinished(
    runa: RunningSandbox, ledger_file: Path, mode: str, deferrable: bool
) -> None:
    """Also after the task has waited in the triggerer for the other order."""
    run(runa, rows_of(*range(201)), run_id="planned" if mode == "pay" else "monday", mode="plan")
    engine = open_engine(f"sqlite:///{ledger_file}")
    undecided = Ledger(engine, runa.url, "spring").batches()[0].id
    engine.dispose()

    deferred: list[str] = []

    class Undecided(Operator):
        async def _catch_up(self, ledger: Ledger) -> Absorbed:
            if deferrable:
                self.clock.sandbox = None  # type: ignore[attr-defined] # the other order stays PROCESSING
            return Absorbed(undecided={undecided})

        def defer(self, *, trigger: Any, method_name: str, kwargs: Any, **others: Any) -> None:
            deferred.append(method_name)
            runa.advance(60)
            event = {"status": "final", "orders": dict.fromkeys(trigger.order_ids, "COMPLETED")}
            context = task_context()
            context["ti"].run_id = "monday"
            getattr(self, method_name)(context, event, **kwargs)
            raise AssertionError("the run is finished after the deferral")

    values = {"mode": mode, "task": Undecided, "deferrable": deferrable}
    with pytest.raises(CampaignUnfinishedError, match=r"1 order\(s\) are not placed"):
        run(runa, rows_of(*range(201)), **values)
    assert (len(runa.orders()), bool(deferred)) == (1, deferrable)
    assert run(runa, rows_of(*range(201)), mode=mode)["rows"] == {"paid": 201}


# -- what the summary says of a run -----------------------------------------------------------------------------------


def test_the_summary_says_what_this_run_did(runa: RunningSandbox) -> None:
    first = run(runa, rows_of(1, 2, 3))
    assert counts(first, "read", "planned", "paid", "paid_amount", "already_paid") == {
        "read": 3,
        "planned": 3,
        "paid": 3,
        "paid_amount": "30.00",
        "already_paid": 0,
    }
    other = run(runa, rows_of(2, 3, 4, amount=7), run_id="tuesday")
    assert counts(other, "read", "planned", "paid", "paid_amount", "already_paid", "other_amount") == {
        "read": 3,
        "planned": 1,
        "paid": 1,
        "paid_amount": "7.00",
        "already_paid": 2,
        "other_amount": 2,
    }
    assert (other["rows"], other["amounts"]) == ({"paid": 4}, {"paid": "37.00"})


def test_a_run_that_pays_nobody_says_so(runa: RunningSandbox) -> None:
    run(runa, rows_of(1, 2))
    summary = run(runa, rows_of(1, 2), run_id="tuesday")
    assert counts(summary, "planned", "paid", "paid_amount", "already_paid") == {
        "planned": 0,
        "paid": 0,
        "paid_amount": "0.00",
        "already_paid": 2,
    }
    assert summary["rows"] == {"paid": 2}


def test_a_rerun_says_what_its_run_did_all_along(runa: RunningSandbox) -> None:
    run(runa, rows_of(1, 2))
    summary = run(runa, rows_of(1, 2))
    assert counts(summary, "planned", "paid", "already_paid") == {"planned": 2, "paid": 2, "already_paid": 2}


def test_the_summary_of_a_plan_counts_what_is_open(runa: RunningSandbox) -> None:
    summary = run(runa, rows_of(1, 2), mode="plan")
    assert counts(summary, "read", "planned", "paid", "open") == {"read": 2, "planned": 2, "paid": 0, "open": 2}


def test_an_empty_input_is_a_warning(runa: RunningSandbox, logged: Callable[[str], str]) -> None:
    assert run(runa, [])["run"]["read"] == 0
    assert "warning" in (line := logged("the input is empty, so there is nobody to pay.")).lower()
    assert "'spring'" in line
    assert run(runa, rows_of(1))["rows"] == {"paid": 1}, "an empty plan froze the run"


def test_another_amount_for_somebody_who_is_paid_is_a_warning(
    runa: RunningSandbox, logged: Callable[[str], str]
) -> None:
    run(runa, rows_of(1, 2))
    run(runa, [row(1, amount=11), row(2)], run_id="tuesday")
    assert "warning" in logged("1 row(s) are paid already, and now ask for another amount or currency.").lower()
    assert paid(runa) == {1, 2}


# -- recipients who are new in a re-run -------------------------------------------------------------------------------


def test_new_recipients_are_left_out_of_a_rerun(runa: RunningSandbox, logged: Callable[[str], str]) -> None:
    run(runa, rows_of(1))
    summary = run(runa, rows_of(1, 2, 3))
    assert (summary["run"]["left_out"], summary["rows"]) == (2, {"paid": 1})
    assert 'set new_recipients_on_rerun="pay"' in logged("2 recipient(s) are new in the input of a run")
    assert paid(runa) == {1}


def test_new_recipients_are_paid_by_a_rerun_on_request(runa: RunningSandbox) -> None:
    run(runa, rows_of(1), new_recipients_on_rerun="pay")
    summary = run(runa, rows_of(1, 2, 3), new_recipients_on_rerun="pay")
    assert counts(summary, "already_paid", "left_out", "planned", "paid") == {
        "already_paid": 1,
        "left_out": 0,
        "planned": 3,
        "paid": 3,
    }
    assert paid(runa) == {1, 2, 3}


def test_the_plan_is_frozen_while_it_is_unfinished(runa: RunningSandbox) -> None:
    runa.faults({"kind": "drop_before", "count": 1000})
    with pytest.raises(CampaignUnfinishedError):
        run(runa, rows_of(1), new_recipients_on_rerun="pay", policy=Policy(budget=10))
    runa.clear_faults()
    summary = run(runa, rows_of(1, 2), new_recipients_on_rerun="pay")
    assert (summary["run"]["left_out"], summary["rows"]) == (1, {"paid": 1})
    assert run(runa, rows_of(1, 2), new_recipients_on_rerun="pay")["rows"] == {"paid": 2}


def test_limits_of_a_rerun_count_what_it_sends(runa: RunningSandbox) -> None:
    run(runa, rows_of(1, 2), max_total=20)
    again = {"new_recipients_on_rerun": "pay", "max_total": 20}
    assert run(runa, rows_of(1, 2, 3, 4), **again)["rows"] == {"paid": 4}
    with pytest.raises(AirflowFailException, match=r"max_total: 30(\.00)? are to be paid"):
        run(runa, rows_of(5, 6, 7), **again)


# -- taking a plan back -----------------------------------------------------------------------------------------------


def test_a_plan_that_was_not_approved_is_withdrawn(runa: RunningSandbox, capsys: pytest.CaptureFixture[str]) -> None:
    run(runa, rows_of(1, 2), mode="plan")
    summary = run(runa, mode="withdraw", task_id="withdraw")
    assert (summary["run"]["withdrawn"], summary["rows"]) == (2, {"withdrawn": 2})
    assert "2 row(s), 20.00 USD, are withdrawn" in capsys.readouterr().out
    assert "POST /order" not in runa.stats()["requests"]
    assert run(runa, mode="pay", task_id="approved")["run"]["paid"] == 0
    assert paid(runa) == set()


@pytest.mark.parametrize("run_id", ["monday", "tuesday"])
def test_what_was_withdrawn_is_planned_and_paid_later(runa: RunningSandbox, run_id: str) -> None:
    run(runa, rows_of(1, 2), mode="plan")
    run(runa, mode="withdraw", task_id="withdraw")
    summary = run(runa, rows_of(1, 2, amount=25), run_id=run_id)
    assert (summary["rows"], summary["amounts"]) == ({"paid": 2}, {"paid": "50.00"})
    assert paid(runa) == {1, 2}


def test_what_was_sent_is_not_withdrawn(runa: RunningSandbox) -> None:
    runa.faults({"kind": "drop_after", "count": 1000})
    # The list is read before paying, and not when the answer was lost.
    runa.faults({"kind": "drop_before", "method": "GET", "path": "/order", "skip": 1, "count": 1000})
    with pytest.raises(CampaignUnfinishedError):
        run(runa, rows_of(1), policy=Policy(budget=5))
    runa.clear_faults()
    assert run(runa, mode="withdraw", task_id="withdraw")["run"]["withdrawn"] == 0
    assert run(runa, rows_of(1))["rows"] == {"paid": 1}
    assert paid(runa) == {1}


# -- what Runa says ---------------------------------------------------------------------------------------------------


def place_elsewhere(identity: OrderIdentity, *, description: str = "spring") -> str:
    """Place an order past the ledger, and return its id."""
    item = {
        "face_value": 10,
        "distribution_method": {"type": "EMAIL", "email_address": "customer-1@example.com"},
        "products": {"type": "SINGLE", "value": "AMZ-US"},
    }
    order = identity.seal(NewOrder.build(currency="USD", description=description, items=[item]), 0)
    return RunaHook().get_conn().create_order(order, idempotency_key=identity.idempotency_key(0)).id


def test_an_order_of_the_campaign_that_does_not_say_whom_it_pays(runa: RunningSandbox) -> None:
    order_id = place_elsewhere(OrderIdentity.from_campaign(runa.url, campaign="spring", batch="elsewhere"))
    runa.advance(60)
    with pytest.raises(
        AirflowFailException, match=f"does not know, such as {order_id}, and they do not show"
    ) as caught:
        run(runa, rows_of(2))
    assert len(str(caught.value).splitlines()) == 3
    assert len(runa.orders()) == 1


def test_an_order_of_another_operator_with_the_same_description(runa: RunningSandbox) -> None:
    place_elsewhere(OrderIdentity.from_order_key(runa.url, "spring/1"))
    place_elsewhere(OrderIdentity.from_campaign(runa.url, campaign="autumn", batch="b"))
    runa.advance(60)
    assert run(runa, rows_of(2))["rows"] == {"paid": 1}


def test_an_order_of_somebody_else_that_hides_what_it_pays(runa: RunningSandbox) -> None:
    payment = {"type": "ACCOUNT_BALANCE", "currency": "USD"}
    item = {"face_value": 1, "distribution_method": {"type": "PAYOUT_LINK"}}
    item["products"] = {"type": "SINGLE", "value": "AMZ-US"}
    order_id = runa.add_order({"payment_method": payment, "items": [item]}, status="PROCESSING")
    with pytest.raises(CatchUpInconclusiveError, match=r"1 order\(s\) in Runa's list are still processing"):
        run(runa, rows_of(1))
    assert "POST /order" not in runa.stats()["requests"]
    runa.set_status(order_id, "COMPLETED")
    assert run(runa, rows_of(1))["rows"] == {"paid": 1}


def test_another_account_than_the_one_that_paid(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    run(runa, rows_of(1))
    (order,) = runa.orders()
    other = runa.add_account("XXother.secret")
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", other.connection)
    with pytest.raises(
        AirflowFailException, match=f"order {order['id']} of campaign 'spring' is in the ledger"
    ) as caught:
        run(other, rows_of(2), run_id="tuesday")
    assert str(caught.value).splitlines()[1] == "The task fails without further retries."
    assert other.orders() == []


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"kind": "item_missing", "item": 0}, "the order has no item for it"),
        ({"kind": "item_face_value", "value": "99.00", "item": 0}, "the order's item differs in face_value"),
        ({"kind": "item_payout", "value": "CANCELLED", "item": 0}, "its payout is CANCELLED"),
    ],
)
@pytest.mark.parametrize("on_partial_failure", ["fail", "warn"])
def test_a_completed_order_that_does_not_pay_everybody_is_never_green(
    runa: RunningSandbox,
    ledger_file: Path,
    capsys: pytest.CaptureFixture[str],
    lie: dict[str, Any],
    reason: str,
    on_partial_failure: str,
) -> None:
    runa.lies(lie)
    with pytest.raises(AirflowFailException) as caught:
        run(runa, rows_of(1, 2, 3), on_partial_failure=on_partial_failure)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(
        "Campaign 'spring': 2 of 3 paid, 20.00 USD; 1 mismatch. 1 row(s) are in COMPLETED orders"
    )
    assert reason in lines[0]
    assert lines[1] == "The task fails without further retries. These rows are not paid again."
    runa.clear_lies()
    with pytest.raises(AirflowFailException, match=r"2 of 3 paid, 20\.00 USD; 1 mismatch"):
        run(runa, rows_of(1, 2, 3), on_partial_failure=on_partial_failure)
    capsys.readouterr()
    summary = run(runa, rows_of(1, 2, 3), run_id="tuesday")
    assert (summary["run"]["already_paid"], summary["rows"]) == (2, {"mismatch": 1, "paid": 2})
    assert "rows that other runs have planned were not paid: 1 mismatch" in capsys.readouterr().out
    assert len(runa.orders()) == 1
    engine = open_engine(f"sqlite:///{ledger_file}")
    (line,) = Ledger(engine, runa.url, "spring").rows("mismatch")
    engine.dispose()
    assert reason in line["error"]


# -- which installation and which task it is --------------------------------------------------------------------------


def test_two_deployments_with_one_ledger_are_two_runs(runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their task instances have the same names. The second one would find a frozen plan, and pay nobody."""
    for number, name in enumerate(("blue", "green")):
        connection = json.loads(runa.connection) | {"extra": {"deployment": name}}
        monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(connection))
        assert run(runa, rows_of(number))["run"]["paid"] == 1
    assert paid(runa) == {0, 1}


def test_an_operator_inside_another_task_is_rejected(runa: RunningSandbox) -> None:
    """Two of them would be one run, and the second one would find a frozen plan."""
    one = Operator(task_id="spring", campaign="spring", rows=rows_of(1), currency="USD", ledger_conn_id="ledger")
    with pytest.raises(AirflowFailException, match="task_id: spring runs inside task function"):
        one.execute(task_context(task_id="function"))
    assert runa.orders() == []


def test_a_key_of_production_has_one_ledger_behind_any_host(
    runa: RunningSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise everybody would be paid again through a gateway."""
    runa = runa.add_account("wgsandbox.secret")
    connection = json.loads(runa.connection)
    for host in ("127.0.0.1", "localhost"):
        there = connection | {"host": connection["host"].replace("127.0.0.1", host)}
        monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", json.dumps(there))
        summary = run(runa, rows_of(1), run_id=host)
        assert summary["rows"] == {"paid": 1}
    assert summary["run"]["already_paid"] == 1
