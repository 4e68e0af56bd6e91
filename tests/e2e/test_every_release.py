"""What has to hold on every supported release of Airflow; ``make matrix`` runs it on each."""

from __future__ import annotations

import sqlite3

from airflow_provider_runa.get_provider_info import get_provider_info
from scripts.airflow_stack import AirflowStack
from tests.e2e.conftest import API_KEY, PLANTED_ADDRESS, PLANTED_REFERENCE
from tests.support.sandbox import RunningSandbox


def test_a_deferred_order_is_placed_once(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    dag_id = "e2e_every_release"
    run_id = airflow.trigger(dag_id)
    assert airflow.wait_for_run(dag_id, run_id, timeout=180) == "success", airflow.explain(dag_id, run_id)
    assert sandbox.stats()["orders"] == {"COMPLETED": 1}
    assert sandbox.stats()["requests"]["POST /order"] == 1
    logs = "".join(path.read_text(errors="replace") for path in airflow.log_files() if run_id in str(path))
    assert "DEFERRED" in logs or "deferr" in logs.lower(), "the order did not wait in the triggerer"
    lines = [line for path in airflow.log_files() for line in path.read_text(errors="replace").splitlines()]
    assert [line for line in lines if "airflow_provider_runa/" in line and "Warning" in line] == []
    with sqlite3.connect(airflow.database) as database:
        stored = "\n".join(database.iterdump())
    assert run_id in stored
    for secret in (PLANTED_ADDRESS, PLANTED_REFERENCE, API_KEY):
        assert secret not in stored, f"{secret} is in Airflow's database"
        assert not [line for line in lines if secret in line], f"{secret} is in a log"


def test_the_connection_form_is_there(airflow: AirflowStack) -> None:
    form = airflow.connection_form()
    (connection_type,) = get_provider_info()["connection-types"]
    fields = connection_type["conn-fields"]
    behaviour = connection_type["ui-field-behaviour"]
    wanted = [*fields, *(field["label"] for field in fields.values())]
    wanted += [*behaviour["relabeling"].values(), behaviour["placeholders"]["host"]]
    assert [text for text in wanted if text not in form] == []
