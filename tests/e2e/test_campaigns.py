"""Campaigns on a real Airflow: the examples, an approval, a backfill that is run twice, a task killed while it pays."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

from airflow_provider_runa.campaign.ledger import Ledger
from airflow_provider_runa.campaign.tables import open_engine
from scripts.airflow_stack import AirflowStack, wait_until
from tests.e2e.conftest import PatientStack
from tests.support.proxy import FaultProxy
from tests.support.sandbox import RunningSandbox


def ledger_rows(airflow: AirflowStack, url: str, campaign: str) -> list[dict[str, Any]]:
    engine = open_engine(f"sqlite:///{Path(airflow.env['RUNA_TEST_LEDGER'])}")
    try:
        return list(Ledger(engine, url, campaign).rows())
    finally:
        engine.dispose()


def test_the_nightly_example_pays_who_won(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    dag_id = "runa_nightly_incentive_sql"
    for _ in range(2):  # the second run of the day pays nobody
        run_id = airflow.trigger(dag_id, {"day": "2026-10-01"})
        assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.explain(dag_id, run_id)
    assert sandbox.stats()["payouts"] >= 3
    rows = ledger_rows(airflow, sandbox.url, "nightly/2026-10-01")
    assert [row["state"] for row in rows] == ["paid"] * 3
    assert len({row["item_id"] for row in rows}) == 3


def test_a_person_approves_what_is_paid(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    dag_id = "runa_campaign_with_approval"
    run_id = airflow.trigger(dag_id)
    asked = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"

    def question() -> Any:
        return airflow.api("GET", asked)

    found = wait_until(question, 60, "the approval is asked for", lambda: airflow.explain(dag_id, run_id))
    assert found["body"] == "3 recipients, 60.00 USD in all."
    assert "POST /order" not in sandbox.stats()["requests"]

    def waits() -> bool:
        (task,) = (task for task in airflow.task_instances(dag_id, run_id) if task["task_id"] == "approve")
        return task["state"] in ("deferred", "awaiting_input")

    wait_until(waits, 60, "the task waits for the answer", lambda: airflow.explain(dag_id, run_id))
    # Whoever answers within about two seconds of that meets a race in Airflow's scheduler, which runs the task anew,
    # after its retry delay. A person takes longer.
    time.sleep(5)
    airflow.api("PATCH", asked, {"chosen_options": ["Approve"], "params_input": {}})
    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.explain(dag_id, run_id)
    assert sandbox.stats()["payouts"] == 3


def test_a_plan_that_a_person_rejects_is_withdrawn(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    dag_id = "runa_campaign_with_approval"
    before = sandbox.stats()["payouts"]
    run_id = airflow.trigger(dag_id)
    asked = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails"
    explain = functools.partial(airflow.explain, dag_id, run_id)
    wait_until(lambda: airflow.api("GET", asked), 60, "the approval is asked for", explain)
    time.sleep(8)  # as above
    airflow.api("PATCH", asked, {"chosen_options": ["Reject"], "params_input": {}})
    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.explain(dag_id, run_id)
    states = {task["task_id"]: task["state"] for task in airflow.task_instances(dag_id, run_id)}
    assert (states["pay"], states["withdraw"]) == ("skipped", "success")
    assert sandbox.stats()["payouts"] == before
    assert {row["state"] for row in ledger_rows(airflow, sandbox.url, "winback")} <= {"withdrawn", "paid"}


def test_a_backfill_of_a_campaign_pays_each_day_once(airflow: PatientStack, sandbox: RunningSandbox) -> None:
    dag_id = "runa_campaign_backfill"
    airflow.unpause(dag_id)  # which starts today's run as well: nobody won
    wait_until(lambda: airflow.runs(dag_id), 60, "today's run begins")
    for behaviour in ("none", "completed"):
        runs = airflow.backfill(dag_id, "2026-10-01", "2026-10-02", behaviour)
        assert [run["state"] for run in runs] == ["success"] * 2
        assert sandbox.stats()["payouts"] == 4
    rows = ledger_rows(airflow, sandbox.url, "spring-steps")
    assert Counter(row["state"] for row in rows) == {"paid": 4}


def test_a_task_killed_while_it_pays_goes_on(airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy) -> None:
    held = proxy.hold("POST", "/order", "after", skip=2)
    run_id = airflow.trigger("e2e_campaign")
    held.wait()
    (task,) = airflow.task_instances("e2e_campaign", run_id)
    os.kill(int(task["pid"]), signal.SIGKILL)
    held.drop()
    assert airflow.wait_for_run("e2e_campaign", run_id) == "success", airflow.explain("e2e_campaign", run_id)
    (task,) = airflow.task_instances("e2e_campaign", run_id)
    assert task["try_number"] == 2
    stats = sandbox.stats()
    assert stats["orders"] == {"COMPLETED": 5}
    assert stats["payouts"] == 1000
    assert set(stats["orders_by_recipient"].values()) == {1}
    assert Counter(row["state"] for row in ledger_rows(airflow, proxy.url, "killed")) == {"paid": 1000}
