"""Processes die and answers get lost, on a real Airflow: each time one order is placed, and the task ends as it should.

The proxy stands between Airflow and the sandbox, so that a test can stop a request where it wants and do the damage
meanwhile. The operator under test is the real one, unless a DAG in ``dags/processes.py`` says otherwise.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import psutil
import pytest

from scripts.airflow_stack import AirflowStack, wait_until
from tests.e2e.conftest import API_KEY, PLANTED_ADDRESS, PLANTED_REFERENCE
from tests.support.proxy import FaultProxy, Rule, half, instead, still_processing
from tests.support.sandbox import RunningSandbox

PAYOUTS = 3  # of each order


@dataclass
class Run:
    """A run of a DAG that has one task, ``order``."""

    airflow: AirflowStack
    dag_id: str
    run_id: str

    @classmethod
    def start(cls, airflow: AirflowStack, name: str, conf: Mapping[str, Any] | None = None) -> Run:
        dag_id = f"process_{name}"
        return cls(airflow, dag_id, airflow.trigger(dag_id, conf))

    def task(self) -> dict[str, Any]:
        (task,) = self.airflow.task_instances(self.dag_id, self.run_id)
        return task

    def wait_for_task(self, what: str, condition: Callable[[dict[str, Any]], bool], timeout: float = 60) -> None:
        """Wait until the task instance is as wanted."""
        wait_until(lambda: condition(self.task()), timeout, f"the task {what}", self.explain)

    def pid(self) -> int:
        """Return the process that runs the operator; Airflow knows it."""
        return int(self.task()["pid"])

    def kill(self) -> None:
        """Kill the process that runs the operator, as the out-of-memory killer would."""
        os.kill(self.pid(), signal.SIGKILL)

    def records(self) -> list[dict[str, Any]]:
        """Return what the task keeps in Airflow's task state store."""
        return [entry["value"] for entry in self._api("GET", "state-store")["task_state_store"]]

    def lose_record(self) -> None:
        """Delete it, as releases of Airflow to come do when a task is cleared, and older ones never had it."""
        self._api("DELETE", "state-store")

    def returned(self) -> Any:
        """Return what the operator returned."""
        return self._api("GET", "xcomEntries/return_value")["value"]

    def clear(self) -> None:
        """Clear the task, as the UI's button does."""
        body = {"dry_run": False, "dag_run_id": self.run_id, "only_failed": False, "reset_dag_runs": True}
        self.airflow.api("POST", f"/dags/{self.dag_id}/clearTaskInstances", body)

    def ends(self, state: str, *, tries: int) -> None:
        """Wait until the run has ended, and assert how its task did."""
        self.airflow.wait_for_run(self.dag_id, self.run_id)
        task = self.task()
        assert (task["state"], task["try_number"]) == (state, tries), self.explain()

    def explain(self) -> str:
        return self.airflow.explain(self.dag_id, self.run_id)

    def _api(self, method: str, what: str) -> Any:
        return self.airflow.api(method, f"/dags/{self.dag_id}/dagRuns/{self.run_id}/taskInstances/order/{what}")


def assert_paid_once(sandbox: RunningSandbox, *runs: Run, posts: int) -> None:
    """Assert that there is one order, that it is the one the runs report, and how often it was sent."""
    (order,) = sandbox.orders()
    assert order["status"] == "COMPLETED"
    assert [run.returned() for run in runs] == [order["id"]] * len(runs)
    stats = sandbox.stats()
    assert stats["payouts"] == PAYOUTS
    assert stats["order_posts_by_key"] == {order["idempotency_key"]: posts}


# -- the task's process is killed --------------------------------------------------------------------------------------


def test_killed_before_the_intent_is_written(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    run = Run.start(airflow, "before_intent")
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=1)


@pytest.mark.parametrize(
    ("method", "path", "when", "skip", "known", "posts"),
    [
        pytest.param("POST", "/order", "before", 0, False, 1, id="intent written, nothing arrived"),
        pytest.param("POST", "/order", "after", 0, False, 2, id="order stored, no answer"),
        pytest.param("GET", "/order/*", "before", 0, True, 1, id="order id noted"),
        pytest.param("GET", "/order/*", "after", 1, True, 1, id="waiting for the order"),
    ],
)
def test_killed_at_a_request(
    airflow: AirflowStack,
    sandbox: RunningSandbox,
    proxy: FaultProxy,
    method: str,
    path: str,
    when: Literal["before", "after"],
    skip: int,
    known: bool,
    posts: int,
) -> None:
    request = proxy.hold(method, path, when, skip)
    proxy.add(Rule("GET", "/order/*", times=skip, change=still_processing))
    run = Run.start(airflow, "order")
    request.wait()
    assert [record["order_id"] is not None for record in run.records()] == [known]
    run.kill()
    request.drop()
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=posts)


def test_a_request_that_arrives_after_its_sender_was_killed_and_the_task_is_done(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    request = proxy.hold("POST", "/order")
    run = Run.start(airflow, "order")
    request.wait()
    run.kill()
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=1)
    request.release()
    assert_paid_once(sandbox, run, posts=2)


def test_an_execution_timeout_in_the_middle_of_the_request(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    request, second = proxy.hold("POST", "/order", "after"), proxy.hold("POST", "/order")
    run = Run.start(airflow, "execution_timeout")
    request.wait()
    second.wait()  # the first attempt has timed out, and another begun
    assert [record["order_id"] for record in run.records()] == [None]
    request.drop()
    second.release()
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=2)


# -- answers that are none ---------------------------------------------------------------------------------------------

HEAD_102 = b"HTTP/1.1 102 Processing\r\nContent-Type: application/json\r\n"
BODY_102 = b'{"type": "idempotency_in_progress", "message": "A request with this key is running.", "help": ""}'
FULL_102 = HEAD_102 + b"Content-Length: %d\r\n\r\n" % len(BODY_102) + BODY_102
GATEWAY_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 13\r\n\r\n<html></html>"

#: What happens to the first request of a run -> how often the sandbox is sent the order in all.
BROKEN_ANSWERS: dict[str, tuple[dict[str, Any], int]] = {
    "nothing arrived; 102 with a body": ({"serve": False, "change": instead(FULL_102)}, 1),
    "order stored; 102 with a body": ({"change": instead(FULL_102)}, 2),
    "order stored; 102 and silence": ({"change": instead(HEAD_102 + b"\r\n"), "then": "hang"}, 2),
    "order stored; 102 and the end": ({"change": instead(HEAD_102 + b"\r\n"), "then": "close"}, 2),
    "order stored; 102, then the answer": ({"change": lambda answer: HEAD_102 + b"\r\n" + answer}, 1),
    "order stored; half an answer": ({"change": half, "then": "close"}, 2),
    "order stored; half a status line": ({"change": lambda answer: answer[:10], "then": "close"}, 2),
    "nothing arrived; never an answer": ({"serve": False, "then": "hang"}, 1),
    "order stored; never an answer": ({"change": instead(b""), "then": "hang"}, 2),
    "order stored; the end": ({"change": instead(b""), "then": "close"}, 2),
    "nothing arrived; 500": ({"serve": False, "change": instead(GATEWAY_500)}, 1),
    "order stored; 500": ({"change": instead(GATEWAY_500)}, 2),
}


@pytest.fixture(scope="class")
def broken_runs(
    airflow: AirflowStack, shared_sandbox: RunningSandbox, shared_proxy: FaultProxy
) -> Iterator[dict[str, Run]]:
    """A run for each broken answer, all at once."""
    shared_sandbox.reset()
    shared_proxy.forget()
    for case, (fault, _) in BROKEN_ANSWERS.items():
        shared_proxy.add(Rule("POST", "/order", containing=case.encode(), **fault))
    yield {case: Run.start(airflow, "impatient", {"case": case}) for case in BROKEN_ANSWERS}
    shared_proxy.forget()


class TestBrokenAnswers:
    @pytest.mark.parametrize("case", BROKEN_ANSWERS)
    def test_one_order(self, broken_runs: dict[str, Run], shared_sandbox: RunningSandbox, case: str) -> None:
        run = broken_runs[case]
        run.ends("success", tries=1)
        (order,) = [order for order in shared_sandbox.orders() if order["description"].startswith(case)]
        assert order["status"] == "COMPLETED"
        assert order["items"] == PAYOUTS
        assert run.returned() == order["id"]
        assert shared_sandbox.stats()["order_posts_by_key"][order["idempotency_key"]] == BROKEN_ANSWERS[case][1]

    def test_no_order_besides(self, broken_runs: dict[str, Run], shared_sandbox: RunningSandbox) -> None:
        stats = shared_sandbox.stats()
        assert stats["orders"] == {"COMPLETED": len(broken_runs)}
        assert stats["payouts"] == PAYOUTS * len(broken_runs)
        assert len(stats["order_posts_by_key"]) == len(broken_runs)


def test_an_order_that_is_stored_but_never_answered_is_found(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    proxy.add(Rule("POST", "/order", times=None, change=instead(b""), then="hang"))
    run = Run.start(airflow, "short_budget")
    run.ends("success", tries=1)
    assert proxy.count("GET", "/order") >= 1
    assert_paid_once(sandbox, run, posts=proxy.count("POST", "/order"))


def test_an_order_that_never_arrives_is_sent_by_the_next_attempt_under_the_same_key(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    lost = proxy.add(Rule("POST", "/order", times=None, serve=False, then="hang"))
    run = Run.start(airflow, "short_budget")
    run.wait_for_task("gave up", lambda task: task["state"] == "up_for_retry" or task["try_number"] > 1)
    (record,) = run.records()
    assert sandbox.stats()["orders"] == {}
    proxy.remove(lost)
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=1)
    assert sandbox.orders()[0]["idempotency_key"] == record["idempotency_key"]


# -- Airflow's own processes go, while the request or the order is under way ------------------------------------------


@contextmanager
def killed(airflow: AirflowStack, component: str) -> Iterator[None]:
    """Kill a component with its processes, and start it again after the block."""
    airflow.stop_component(component, signal.SIGKILL)
    try:
        yield
    finally:
        airflow.start_component(component)


def test_the_worker_is_killed_and_the_orphaned_task_sends_on(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    request = proxy.hold("POST", "/order")
    run = Run.start(airflow, "order")
    request.wait()
    second = proxy.hold("POST", "/order", "after")
    orphan = psutil.Process(run.pid())
    orphan.parent().kill()
    try:
        second.wait()  # Airflow has missed the first attempt's heartbeats, and begun another
        assert not _is_gone(orphan), "the first attempt did not outlive its worker"
        request.release()
        second.release()
        run.ends("success", tries=2)
        assert_paid_once(sandbox, run, posts=2)
        wait_until(lambda: _is_gone(orphan), 30, "the orphaned task ends")
    finally:
        if not _is_gone(orphan):
            orphan.kill()


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_scheduler_is_killed_in_the_middle_of_the_request(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    request = proxy.hold("POST", "/order")
    run = Run.start(airflow, "order")
    request.wait()
    before = airflow.processes["scheduler"]
    before.kill()
    before.wait()
    try:
        airflow.start_component("scheduler")
        _wait_for_scheduler(airflow)
        request.release()
        run.ends("success", tries=1)
        assert_paid_once(sandbox, run, posts=1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(before.pid, signal.SIGKILL)  # its workers, which have outlived it


def _wait_for_scheduler(airflow: AirflowStack) -> None:
    """Wait until a scheduler that was started again is at work."""
    now = datetime.now(UTC)

    def beats() -> bool:
        health = airflow.api("GET", "/monitor/health")["scheduler"]
        return datetime.fromisoformat(health["latest_scheduler_heartbeat"]) > now

    wait_until(beats, 60, "the scheduler is at work again", airflow.tails)


def test_the_scheduler_is_stopped_in_the_middle_of_the_request(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    request = proxy.hold("POST", "/order", "after")
    run = Run.start(airflow, "order")
    request.wait()
    stopped = airflow.processes["scheduler"]
    stopped.terminate()
    request.release()
    try:
        stopped.wait(60)  # it lets its tasks finish
    finally:
        airflow.stop_component("scheduler", signal.SIGKILL)  # what is left of it
        airflow.start_component("scheduler")
    run.ends("success", tries=1)
    assert_paid_once(sandbox, run, posts=1)


def test_the_scheduler_is_killed_while_the_task_is_deferred(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    processing = proxy.add(Rule("GET", "/order/*", times=None, change=still_processing))
    run = Run.start(airflow, "deferred_soon")
    run.wait_for_task("is deferred", lambda task: task["state"] == "deferred")
    with killed(airflow, "scheduler"):
        look = proxy.hold("GET", "/order/*")
        proxy.remove(processing)
        look.wait()
        look.release()  # the trigger fires while nobody is there to take up the task
    run.ends("success", tries=1)
    assert_paid_once(sandbox, run, posts=1)


def test_the_triggerer_is_killed_in_the_middle_of_a_look_at_the_order(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    processing = proxy.add(Rule("GET", "/order/*", times=None, change=still_processing))
    run = Run.start(airflow, "deferred")
    run.wait_for_task("is deferred", lambda task: task["state"] == "deferred")
    look = proxy.hold("GET", "/order/*", "after")
    proxy.remove(processing)
    look.wait()
    with killed(airflow, "triggerer"):
        look.drop()
    run.ends("success", tries=1)
    assert_paid_once(sandbox, run, posts=1)


# -- the task is run again ---------------------------------------------------------------------------------------------


def test_clearing_a_finished_task(airflow: AirflowStack, sandbox: RunningSandbox) -> None:
    run = Run.start(airflow, "cleared_finished")
    run.ends("success", tries=1)
    _clear_by_cli(run)
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=1)
    run.lose_record()
    run.clear()
    run.ends("success", tries=3)
    assert_paid_once(sandbox, run, posts=2)


def test_clearing_a_task_in_the_middle_of_its_request(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    request, second = proxy.hold("POST", "/order"), proxy.hold("POST", "/order")
    run = Run.start(airflow, "cleared_running")
    request.wait()
    first_attempt = psutil.Process(run.pid())
    _clear_by_cli(run)
    second.wait()  # another attempt has begun
    assert _is_gone(first_attempt)
    request.release()  # but its request is still on its way
    second.release()
    run.ends("success", tries=2)
    assert_paid_once(sandbox, run, posts=2)


def _clear_by_cli(run: Run) -> None:
    def cleared() -> bool:
        try:
            run.airflow.cli("tasks", "clear", "--yes", run.dag_id)
        except RuntimeError as error:
            if "database is locked" in str(error):  # SQLite, while the scheduler writes
                return False
            raise
        return True

    wait_until(cleared, 60, "the task is cleared")


def test_two_runs_of_the_same_order_key_at_once(
    airflow: AirflowStack, sandbox: RunningSandbox, proxy: FaultProxy
) -> None:
    requests = [proxy.hold("POST", "/order"), proxy.hold("POST", "/order")]
    runs = [Run.start(airflow, "keyed", {"order_key": "spring-winback/customer-42"}) for _ in requests]
    for request in requests:
        request.wait()
    sandbox.faults({"kind": "latency", "seconds": 3})  # the first to arrive takes its time, the other must wait
    for request in requests:
        request.release(wait=False)
    for run in runs:
        run.ends("success", tries=1)
    posts = proxy.count("POST", "/order")
    assert posts > len(runs)
    assert_paid_once(sandbox, *runs, posts=posts)


# -- and what is left of all that --------------------------------------------------------------------------------------


def test_no_secret_is_left_behind_by_killed_tasks_and_broken_answers(airflow: AirflowStack) -> None:
    with sqlite3.connect(airflow.database) as database:
        texts = {"the database": "\n".join(database.iterdump())}
    texts |= {str(path): path.read_text(errors="replace") for path in airflow.log_files()}
    for value in (PLANTED_ADDRESS, PLANTED_REFERENCE, API_KEY.partition(".")[2], "/claim/"):  # as links to payouts have
        assert not [where for where, text in texts.items() if value in text], f"{value} can be seen"
