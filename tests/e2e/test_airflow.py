"""The provider on a real Airflow: examples, a backfill, refusals, and what must not be seen anywhere."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import httpx
import pytest

from airflow_provider_runa import __version__
from scripts.airflow_stack import AirflowStack, wait_until
from tests.e2e.conftest import API_KEY, PLANTED_ADDRESS, PLANTED_REFERENCE, PatientStack
from tests.support.sandbox import RunningSandbox


def explain(airflow: AirflowStack, dag_id: str) -> str:
    return "\n".join(airflow.explain(dag_id, run["dag_run_id"]) for run in airflow.runs(dag_id))


@pytest.mark.parametrize(
    ("dag_id", "orders", "payouts"),
    [
        ("runa_create_then_sense", 1, 1),
        ("runa_recipient_groups", 2, 3),
    ],
)
def test_the_example_dags_succeed(
    airflow: AirflowStack, sandbox: RunningSandbox, dag_id: str, orders: int, payouts: int
) -> None:
    run_id = airflow.trigger(dag_id)
    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.explain(dag_id, run_id)
    stats = sandbox.stats()
    assert stats["orders"] == {"COMPLETED": orders}
    assert stats["payouts"] == payouts


def test_the_example_checks_pays_and_starts_the_dag_of_its_asset(
    airflow: AirflowStack, sandbox: RunningSandbox
) -> None:
    airflow.unpause("runa_after_paying")
    run_id = airflow.trigger("runa_check_then_pay")
    assert airflow.wait_for_run("runa_check_then_pay", run_id) == "success", explain(airflow, "runa_check_then_pay")
    assert (sandbox.stats()["orders"], sandbox.stats()["payouts"]) == ({"COMPLETED": 1}, 2)
    (after,) = wait_until(lambda: airflow.runs("runa_after_paying"), 60, "the DAG of the asset begins")
    told_by = after["dag_run_id"]
    assert airflow.wait_for_run("runa_after_paying", told_by) == "success", explain(airflow, "runa_after_paying")
    told = airflow.api("GET", f"/dags/runa_after_paying/dagRuns/{told_by}/taskInstances/note/xcomEntries/return_value")
    (order,) = sandbox.orders()
    assert order["id"] in str(told["value"])
    assert "COMPLETED" in str(told["value"])
    with sqlite3.connect(airflow.database) as database:
        found = [line for line in database.iterdump() if "grace@example.com" in line and 'INTO "dag_code"' not in line]
    assert not found, "an address is somewhere else than in the stored file of the DAG"


def test_the_scheduled_example_pays_when_it_is_due(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    dag_id = "runa_scheduled_incentive"
    airflow.unpause(dag_id)
    (run,) = wait_until(lambda: airflow.runs(dag_id), 60, "the run that is due begins")
    assert airflow.wait_for_run(dag_id, run["dag_run_id"]) == "success", airflow.explain(dag_id, run["dag_run_id"])
    stats = sandbox.stats()
    assert stats["orders"] == {"COMPLETED": 1}
    assert stats["payouts"] == 2


def test_a_backfill_pays_each_missed_day_once_however_often_it_is_run(
    airflow: PatientStack, sandbox: RunningSandbox
) -> None:
    dag_id = "runa_backfill_missed_days"

    def backfill(behaviour: str) -> None:
        runs = airflow.backfill(dag_id, "2026-10-01", "2026-10-02", behaviour)
        assert [run["state"] for run in runs] == ["success"] * 2, explain(airflow, dag_id)

    airflow.unpause(dag_id)  # which starts today's run as well
    (today,) = wait_until(lambda: airflow.runs(dag_id), 60, "today's run begins")
    assert airflow.wait_for_run(dag_id, today["dag_run_id"]) == "success", explain(airflow, dag_id)
    backfill("none")
    paid = sandbox.stats()
    assert paid["orders"] == {"COMPLETED": 6}
    assert paid["payouts"] == 6
    backfill("completed")
    for run in airflow.runs(dag_id):
        tries = {task["try_number"] for task in airflow.task_instances(dag_id, run["dag_run_id"])}
        run_again = run["dag_run_id"] != today["dag_run_id"]
        assert (min(tries) > 1) is run_again, airflow.explain(dag_id, run["dag_run_id"])
    stats = sandbox.stats()
    assert stats["orders"] == {"COMPLETED": 6}
    assert stats["payouts"] == 6
    assert set(stats["order_posts_by_key"].values()) == {1}
    assert len({order["metadata"]["airflow_identity"] for order in sandbox.orders()}) == 6


def test_a_wrong_total_is_refused_without_retries(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    run_id = airflow.trigger("e2e_refused")
    assert airflow.wait_for_run("e2e_refused", run_id) == "failed"
    (task,) = airflow.task_instances("e2e_refused", run_id)
    assert task["try_number"] == 1
    assert "POST /order" not in sandbox.stats()["requests"]
    logs = "".join(path.read_text() for path in airflow.log_files() if run_id in str(path))
    assert "max_total: the items add up to 45, more than the 10 allowed" in logs


def test_a_balance_is_waited_for_in_the_triggerer(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    sandbox.balance("USD", "99.99")
    run_id = airflow.trigger("e2e_balance")

    def state() -> str:
        return str(airflow.task_instances("e2e_balance", run_id)[0]["state"])

    wait_until(lambda: state() == "deferred", 60, "the task waits in the triggerer", airflow.tails)
    asked = sandbox.stats()["requests"]["GET /balance"]
    wait_until(lambda: sandbox.stats()["requests"]["GET /balance"] > asked, 30, "the triggerer looks")
    assert state() == "deferred"
    sandbox.balance("USD", "100")
    assert airflow.wait_for_run("e2e_balance", run_id) == "success", airflow.explain("e2e_balance", run_id)
    (task,) = airflow.task_instances("e2e_balance", run_id)
    assert task["try_number"] == 1


def test_no_secret_is_seen_anywhere(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    sandbox.faults({"kind": "status", "status": 500})
    run_id = airflow.trigger("e2e_secrets")
    assert airflow.wait_for_run("e2e_secrets", run_id) == "success", airflow.explain("e2e_secrets", run_id)
    refused = airflow.trigger("e2e_refused")
    assert airflow.wait_for_run("e2e_refused", refused) == "failed"

    (order,) = sandbox.orders()
    headers = {"X-Api-Key": API_KEY}
    items = httpx.get(f"{sandbox.url}/order/{order['id']}", headers=headers).json()["items"]
    links = [item["payout"]["url"] for item in items]
    assert len(links) == 3
    planted = [PLANTED_ADDRESS, PLANTED_REFERENCE, API_KEY, API_KEY.partition(".")[2], *links]

    with sqlite3.connect(airflow.database) as database:
        dump = "\n".join(database.iterdump())
    assert run_id in dump
    assert order["id"] in dump
    logs = {str(path): path.read_text(errors="replace") for path in airflow.log_files()}
    assert any(order["id"] in text for text in logs.values())
    lineage = (airflow.home / "lineage.jsonl").read_text()
    assert [event for event in map(json.loads, lineage.splitlines()) if order["id"] in _datasets(event)]
    for value in planted:
        assert value not in dump, f"{value} is in Airflow's database"
        assert value not in lineage, f"{value} is in an event of OpenLineage"
        assert not [path for path, text in logs.items() if value in text], f"{value} is in a log"


def _datasets(event: dict[str, Any]) -> list[str]:
    return [dataset["name"] for dataset in event["outputs"] if event["eventType"] == "COMPLETE"]


def test_the_provider_is_found(airflow: AirflowStack) -> None:
    assert "airflow-provider-runa" in airflow.cli("providers", "list")
    assert __version__ in airflow.cli("providers", "get", "airflow-provider-runa")
    assert "airflow_provider_runa.hooks.runa.RunaHook" in airflow.cli("providers", "hooks", "--output", "json")
    assert "Connection success!" in airflow.cli("connections", "test", "runa_default")


def test_the_test_button_says_what_it_found(airflow: AirflowStack, shared_sandbox: RunningSandbox) -> None:
    connection = {"connection_id": "typed_in", "conn_type": "runa", "host": shared_sandbox.url, "password": API_KEY}
    tested = airflow.api("POST", "/connections/test", connection)
    assert tested["status"] is True
    assert tested["message"].startswith(f"Runa answered at {shared_sandbox.url}")
    refused = airflow.api("POST", "/connections/test", connection | {"password": "XXwrong.secret-8213"})
    assert refused["status"] is False
    assert refused["message"].startswith("Runa rejected the API key")
    assert "secret-8213" not in refused["message"]
