"""One sandbox, one proxy before it and one real Airflow for all end-to-end tests, each started once."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from scripts.airflow_stack import FINISHED, AirflowStack, installed_release, wait_until
from tests.support.proxy import FaultProxy, start_proxy
from tests.support.sandbox import RunningSandbox, start_sandbox

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent

# Values that must never be seen outside of Runa. The DAGs read them on the worker.
PLANTED_ADDRESS = "planted-recipient-7311@example.com"
PLANTED_REFERENCE = "planted-reference-9921"
API_KEY = "XXplanted.api-key-secret-5542"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[RunningSandbox]:
    with start_sandbox("--api-key", API_KEY, "--processing-delay", "2") as running:
        running.api_key = API_KEY
        yield running


@pytest.fixture
def sandbox(shared_sandbox: RunningSandbox) -> RunningSandbox:
    """The sandbox, empty."""
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture(scope="session")
def shared_proxy(shared_sandbox: RunningSandbox) -> Iterator[FaultProxy]:
    with start_proxy(shared_sandbox.url) as proxy:
        yield proxy


def _connection(url: str, timeout: float) -> str:
    return json.dumps({"conn_type": "runa", "password": API_KEY, "host": url, "extra": {"timeout": timeout}})


def _make_warehouse(path: Path) -> None:
    """Write the table that the example DAGs query."""
    winners = [
        ("2026-10-01", "ada", 5),
        ("2026-10-01", "grace", 10),
        ("2026-10-01", "edsger", 7),
        ("2026-10-02", "ada", 5),
    ]
    with closing(sqlite3.connect(path)) as warehouse, warehouse:
        warehouse.execute("CREATE TABLE winners (day TEXT, customer TEXT, reward NUMERIC, email TEXT)")
        rows = [(day, customer, reward, f"{customer}@example.com") for day, customer, reward in winners]
        warehouse.executemany("INSERT INTO winners VALUES (?, ?, ?, ?)", rows)


class PatientStack(AirflowStack):
    """Asks again while Airflow's database is locked: SQLite has one writer, and Airflow answers 500 to the others."""

    def api(self, method: str, path: str, body: Any = None, missing: Any = None) -> Any:
        answers: list[Any] = []

        def answered() -> bool:
            try:
                answers.append(super(PatientStack, self).api(method, path, body, missing))
            except RuntimeError as error:
                if '"Database error"' in str(error):
                    return False
                raise
            return True

        wait_until(answered, 60, f"Airflow's database takes {method} {path}", self.tails)
        return answers[0]

    def backfill(self, dag_id: str, first: str, last: str, behaviour: str) -> list[dict[str, Any]]:
        """Run a backfill to its end, and return its runs.

        By the command line: an API server that meets a lock while it makes the runs of a backfill goes on with a
        connection to SQLite that sees the database as it was then, and finds no later run or task any more.
        """
        before = {run["dag_run_id"]: run["queued_at"] for run in self.runs(dag_id)}
        days = ("--from-date", first, "--to-date", last)

        def end_others() -> None:
            """End what is still called under way: the scheduler notes only twice a minute that all runs are done."""
            for other in self.api("GET", f"/backfills?dag_id={dag_id}")["backfills"]:
                if not other["completed_at"]:
                    with suppress(RuntimeError):  # noted meanwhile
                        self.api("PUT", f"/backfills/{other['id']}/cancel")

        def begun() -> bool:
            end_others()
            try:
                self.cli("backfill", "create", "--dag-id", dag_id, *days, "--reprocess-behavior", behaviour)
            except RuntimeError as error:
                if "database is locked" in str(error):  # and half of it may be there
                    return False
                raise
            return True

        def ended() -> list[dict[str, Any]]:
            runs = [run for run in self.runs(dag_id) if run["run_type"] == "backfill"]
            fresh = [run for run in runs if before.get(run["dag_run_id"]) != run["queued_at"]]
            return runs if len(fresh) == len(runs) and {run["state"] for run in runs} <= FINISHED else []

        def explain() -> str:
            return "\n".join(self.explain(dag_id, run["dag_run_id"]) for run in self.runs(dag_id))

        wait_until(begun, 120, "the backfill begins", explain)
        return wait_until(ended, 120, "the backfill ends", explain)


@pytest.fixture(scope="session")
def airflow(
    shared_sandbox: RunningSandbox, shared_proxy: FaultProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AirflowStack]:
    dags = tmp_path_factory.mktemp("dags")
    examples = (ROOT / "example_dags").glob("*.py") if installed_release().runs_examples else ()
    for source in [*examples, *(HERE / "dags").glob("*.py")]:
        shutil.copy(source, dags)
    secrets = tmp_path_factory.mktemp("secrets") / "recipients.json"
    secrets.write_text(f'{{"address": "{PLANTED_ADDRESS}", "reference": "{PLANTED_REFERENCE}"}}')
    databases = tmp_path_factory.mktemp("databases")
    home = tmp_path_factory.mktemp("airflow")
    _make_warehouse(databases / "warehouse.db")
    env = {
        "AIRFLOW_CONN_RUNA_DEFAULT": shared_sandbox.connection,
        "AIRFLOW_CONN_WAREHOUSE": json.dumps({"conn_type": "sqlite", "host": str(databases / "warehouse.db")}),
        "AIRFLOW_CONN_LEDGER": json.dumps({"conn_type": "sqlite", "host": str(databases / "ledger.db")}),
        "RUNA_TEST_LEDGER": str(databases / "ledger.db"),
        # Through the proxy: one that waits as long as a test may hold a request, and one that soon gives up.
        "AIRFLOW_CONN_RUNA_PROXIED": _connection(shared_proxy.url, 120),
        "AIRFLOW_CONN_RUNA_IMPATIENT": _connection(shared_proxy.url, 3),
        # What is lost with a killed process is noticed soon.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        # For DAGs that ask for it; with all it can tell of a task.
        "AIRFLOW__OPENLINEAGE__SELECTIVE_ENABLE": "True",
        "AIRFLOW__OPENLINEAGE__INCLUDE_FULL_TASK_INFO": "True",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(
            {"type": "file", "log_file_path": str(home / "lineage.jsonl"), "append": True}
        ),
        "RUNA_TEST_SECRETS": str(secrets),
        "RUNA_TEST_MARKERS": str(tmp_path_factory.mktemp("markers")),
    }
    with PatientStack(home, dags, env) as stack:
        yield stack
        stack.stop_component("triggerer", signal.SIGKILL)  # asked nicely, it takes 10 s


@pytest.fixture
def proxy(shared_proxy: FaultProxy, airflow: AirflowStack) -> Iterator[FaultProxy]:
    """The proxy, without rules; after the test nothing is held, and no run is left to meet the next test's rules."""
    shared_proxy.forget()
    yield shared_proxy
    shared_proxy.forget()
    unfinished = "/dags/~/dagRuns?state=queued&state=running"
    wait_until(lambda: not airflow.api("GET", unfinished)["total_entries"], 60, "the test's runs end", airflow.tails)
