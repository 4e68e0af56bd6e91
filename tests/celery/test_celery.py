"""200 orders on Celery's workers while processes are killed under them: one order each, and every task green.

Everything that is done happens at a condition, not at a time: a worker is killed when an order is stored whose answer
has not reached its task, the triggerer when enough tasks wait in it, the scheduler half-way. Redis redelivers after
30 s instead of 24 h, and once while the first delivery is still at work. Run it with ``make test-celery``.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest
import sqlalchemy as sa

from scripts.airflow_stack import wait_until
from tests.celery.dags.orders import ORDERS, SLOTS
from tests.celery.stack import CeleryStack
from tests.support.proxy import FaultProxy, Held, Rule, start_proxy
from tests.support.redis import MISSING, find_program, start_redis
from tests.support.sandbox import RunningSandbox, start_sandbox

pytestmark = pytest.mark.celery

DAG_ID = "celery_orders"
#: Until an order is settled, in seconds: longer than a task polls before it defers.
PROCESSING = 20
#: Until Redis gives a message to somebody else that nobody has acknowledged, in seconds.
VISIBILITY = 30
#: The whole run may take this long, in seconds.
LONGEST_RUN = 900
#: The task whose worker is killed when its order is stored, and the one that is slow to send it.
STORED, SLOW = 45, 110


@pytest.fixture
def sandbox() -> Iterator[RunningSandbox]:
    with start_sandbox("--processing-delay", str(PROCESSING)) as running:
        yield running


@pytest.fixture
def proxy(sandbox: RunningSandbox) -> Iterator[FaultProxy]:
    with start_proxy(sandbox.url) as running:
        yield running
        running.forget()


@pytest.fixture
def broker() -> Iterator[str]:
    pytest.importorskip("airflow.providers.celery", reason="Celery's provider is not installed: use `make test-celery`")
    program = find_program()
    if program is None:
        pytest.skip(MISSING)
    with start_redis(program) as url:
        yield url


@pytest.fixture
def airflow(
    broker: str, postgres: str, sandbox: RunningSandbox, proxy: FaultProxy, tmp_path: Path
) -> Iterator[CeleryStack]:
    dags = tmp_path / "dags"
    shutil.copytree(Path(__file__).parent / "dags", dags)
    connection = {"conn_type": "runa", "password": sandbox.api_key, "host": proxy.url, "extra": {"timeout": 120}}
    env = {
        "AIRFLOW_CONN_RUNA_DEFAULT": json.dumps(connection),
        "AIRFLOW__API__MAXIMUM_PAGE_LIMIT": "1000",
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": str(VISIBILITY),
        # What is lost with a killed process is noticed soon.
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "15",
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "120",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "10",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    }
    with CeleryStack(
        tmp_path / "airflow",
        dags,
        env,
        database_url=postgres,
        broker_url=broker,
        workers=("worker-1", "worker-2"),
        concurrency=SLOTS // 2,
    ) as stack:
        yield stack


class Run:
    """The run of the DAG, and what is done to it.

    :param airflow: the Airflow it runs on.
    :param sandbox: who is paid.
    :param database: Airflow's.
    """

    def __init__(self, airflow: CeleryStack, sandbox: RunningSandbox, database: sa.Engine) -> None:
        self.database = database
        self.airflow = airflow
        self.sandbox = sandbox
        self.kills: list[str] = []
        self.began = time.monotonic()
        self.run_id = airflow.trigger(DAG_ID)

    @property
    def seconds(self) -> float:
        """For how long it has run."""
        return time.monotonic() - self.began

    def wait(self, condition: Any, what: str) -> None:
        """Wait until a condition holds."""
        wait_until(condition, LONGEST_RUN - self.seconds, what, lambda: self.airflow.explain(DAG_ID, self.run_id))

    def wait_for_orders(self, count: int) -> None:
        """Wait until so many orders are in the sandbox."""
        self.wait(lambda: sum(self.sandbox.stats()["orders"].values()) >= count, f"{count} orders are placed")

    def wait_for_deferred(self, count: int) -> None:
        """Wait until so many tasks wait in the triggerer."""
        self.wait(
            lambda: self.airflow.tasks(DAG_ID, self.run_id, "state=deferred&limit=1")["total_entries"] >= count,
            f"{count} tasks are deferred",
        )

    def kill(self, component: str) -> None:
        """Kill a component and all that it has started."""
        self.airflow.stop_component(component, signal.SIGKILL)
        self.kills.append(component)

    def worker_of(self, map_index: int) -> str:
        """Return the worker that a task runs on."""
        path = f"/dags/{DAG_ID}/dagRuns/{self.run_id}/taskInstances/order/{map_index}"
        return self.airflow.worker_of(int(self.airflow.api("GET", path)["pid"]))

    def celery_id(self, map_index: int) -> str:
        """Return what Celery calls the message of a task; only Airflow's database tells."""
        with closing(self.database.connect()) as connection:
            query = sa.text("SELECT external_executor_id FROM task_instance WHERE map_index = :index")
            return str(connection.execute(query, {"index": map_index}).scalar_one())

    def logs_with(self, text: str) -> int:
        """Return in how many logs something is written."""
        return sum(text in path.read_text(errors="replace") for path in self.airflow.log_files())


def hold(proxy: FaultProxy, map_index: int, when: Literal["before", "after"]) -> Held:
    """Hold the request of one task."""
    held = Held()
    proxy.add(Rule("POST", "/order", containing=b'"customer-%d@' % map_index, held=held, when=when))
    return held


def test_two_hundred_orders_while_processes_are_killed(
    airflow: CeleryStack,
    postgres: str,
    sandbox: RunningSandbox,
    proxy: FaultProxy,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, slow = hold(proxy, STORED, "after"), hold(proxy, SLOW, "before")
    run = Run(airflow, sandbox, sa.create_engine(postgres, poolclass=sa.NullPool))

    # A worker and its tasks are gone, one of them between its request and the answer.
    stored.wait(120)
    run.wait_for_orders(40)
    worker = run.worker_of(STORED)
    run.kill(worker)
    stored.drop()
    airflow.start_worker(worker)

    run.wait_for_deferred(10)
    run.kill("triggerer")
    airflow.start_component("triggerer")

    # A message is redelivered while its task is still at work.
    slow.wait(240)
    redelivered = f"[{run.celery_id(SLOW)}] Task already running elsewhere"
    run.wait(lambda: run.logs_with(redelivered), "the message of a task at work is redelivered")
    slow.release()

    run.wait_for_orders(120)
    run.kill("scheduler")
    airflow.start_component("scheduler")

    state = airflow.wait_for_run(DAG_ID, run.run_id, LONGEST_RUN - run.seconds)
    seconds = run.seconds
    tasks = airflow.tasks(DAG_ID, run.run_id)["task_instances"]
    stats = sandbox.stats()
    by_recipient = stats["orders_by_recipient"].values()
    posts = stats["order_posts_by_key"]
    figures = {
        "tasks": len(tasks),
        "green": sum(task["state"] == "success" for task in tasks),
        "tried again": sum(task["try_number"] > 1 for task in tasks),
        "deferred": run.logs_with("waiting in the triggerer"),
        "killed": run.kills,
        "orders": sum(stats["orders"].values()),
        "payouts": stats["payouts"],
        "order requests": sum(posts.values()),
        "duplicates": sum(count - 1 for count in by_recipient),
        "lost": ORDERS - len(by_recipient),
        "seconds": round(seconds),
    }
    names = ("apache-airflow", "apache-airflow-providers-celery", "celery", "redis")
    versions = {name: importlib.metadata.version(name) for name in names}
    with capsys.disabled():
        print(f"\n{json.dumps(figures)}\n{json.dumps(versions)}")

    assert state == "success", airflow.explain(DAG_ID, run.run_id)
    assert figures["tasks"] == figures["green"] == ORDERS
    assert stats["orders"] == {"COMPLETED": ORDERS}
    assert (figures["payouts"], figures["duplicates"], figures["lost"]) == (ORDERS, 0, 0)
    # And it was not for nothing that they were killed.
    assert figures["deferred"] > ORDERS / 2
    tries = {task["map_index"]: task["try_number"] for task in tasks}
    assert tries[STORED] > 1
    (key,) = [order["idempotency_key"] for order in sandbox.orders() if _map_index(order) == STORED]
    assert posts[key] > 1


def _map_index(order: dict[str, Any]) -> int:
    return int(order["metadata"]["airflow_map_index"])
