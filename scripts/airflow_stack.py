"""A real Airflow on this machine: API server, scheduler, DAG processor and triggerer, each a process.

For the demo and the end-to-end tests. Everything lives below one folder, listens on free ports of the loopback
interface, and is stopped by its own process id. The metadata database is SQLite, as Airflow's default is. It is the
Airflow that is installed here, 2.11 or later; what differs between releases is in :class:`Release`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import httpx

FINISHED = {"success", "failed"}

T = TypeVar("T")


@dataclass(frozen=True)
class Release:
    """What differs between the releases of Airflow, as far as a stack is concerned; the defaults are Airflow 3's."""

    components: tuple[str, ...] = ("api-server", "dag-processor", "scheduler", "triggerer")
    api: str = "/api/v2"
    health: str = "/monitor/health"
    has_token: bool = True
    new_run: Mapping[str, Any] = field(default_factory=lambda: {"logical_date": None})
    form: str = "/ui/connections/hook_meta"
    runs_examples: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


AIRFLOW_2 = Release(
    components=("webserver", "scheduler", "triggerer"),  # the scheduler reads the DAG files
    api="/api/v1",
    health="/health",
    has_token=False,
    new_run={},
    form="/connection/add",
    runs_examples=False,  # they import airflow.sdk
    env={
        "AIRFLOW__CORE__EXECUTOR": "SequentialExecutor",  # the only one that takes SQLite
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.default",
        "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "3",
        "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__PARSING_PROCESSES": "2",
        "AIRFLOW__WEBSERVER__WORKERS": "1",
        "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
    },
    files={"webserver_config.py": 'AUTH_ROLE_PUBLIC = "Admin"\n'},
)


def installed_release() -> Release:
    """Return what is particular to the Airflow that is installed here."""
    installed = version("apache-airflow")
    if installed.startswith("2."):
        return AIRFLOW_2
    # One of the examples has a person approve, which is new in 3.1; 3.0's DAG processor dies of its import.
    return Release(runs_examples=not installed.startswith("3.0."))


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], T], timeout: float, what: str, details: Callable[[], str] = str) -> T:
    """Wait until a condition holds, and return its value.

    :param condition: what to look at; true is enough.
    :param timeout: how long to wait, in seconds.
    :param what: what is waited for, for the error.
    :param details: more for the error.
    :raises TimeoutError: if it does not hold in time.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s\n{details()}")
        time.sleep(0.25)
    return value


class AirflowStack:
    """A real Airflow. Use it in a ``with``, or call :meth:`start` and :meth:`stop`.

    :param home: folder for everything it writes; made if it is missing.
    :param dags: folder of the DAG files.
    :param env: environment variables, such as ``AIRFLOW_CONN_RUNA_DEFAULT``.
    """

    def __init__(self, home: Path, dags: Path, env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.dags = dags
        self.release = installed_release()
        self.port = free_port()
        self.ui_url = f"http://127.0.0.1:{self.port}"
        self.database = home / "airflow.db"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._token = ""
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        self.env |= {
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "NO_PROXY": "127.0.0.1,localhost",
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.ui_url}/execution/",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.ui_url,
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(16),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_ISSUER": "airflow",  # 3.0's default is none, which today's PyJWT refuses
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "3",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "5",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "2",
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "5",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(self.port),
            "AIRFLOW__WEBSERVER__SECRET_KEY": secrets.token_hex(16),
            **self.release.env,
            **(env or {}),
        }

    def __enter__(self) -> AirflowStack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- processes --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the database, start every component and wait until each is healthy."""
        self.home.mkdir(parents=True, exist_ok=True)
        for name, text in self.release.files.items():
            (self.home / name).write_text(text)
        self.cli("db", "migrate")
        for component in self.release.components:
            self.start_component(component)
        wait_until(self._is_healthy, 120, "Airflow's components are healthy", self.tails)

    def start_component(self, component: str, *command: str) -> None:
        """Start one component.

        :param component: its name, in :attr:`processes` and of its log.
        :param command: what comes after ``airflow``. Default: the name.
        """
        log = (self.home / f"{component}.log").open("ab")
        with log:
            self.processes[component] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *(command or (component,))],
                env=self.env,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop_component(self, component: str, how: int = signal.SIGTERM) -> None:
        """Stop one component, and the processes it started."""
        process = self.processes.pop(component)
        process.send_signal(how)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)
        # Each component leads a process group, and all of the group is ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Stop everything that was started."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)  # all at once, since each takes seconds
        for component in list(self.processes):
            self.stop_component(component)

    def cli(self, *arguments: str) -> str:
        """Run an ``airflow`` command and return what it printed. Takes some seconds."""
        done = subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            start_new_session=True,
        )
        if done.returncode:
            raise RuntimeError(f"airflow {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def _is_healthy(self) -> bool:
        for component, process in self.processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{component} ended with {process.returncode}\n{self.tails()}")
        try:
            health = httpx.get(f"{self.ui_url}{self.release.api}{self.release.health}", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return False
        wanted = [name for name in self.release.components if name not in ("api-server", "webserver")]
        return all(
            (health.get(name.replace("-", "_")) or {}).get("status") == "healthy" for name in ["metadatabase", *wanted]
        )

    # -- the API ----------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, body: Any = None, missing: Any = None) -> Any:
        """Call Airflow's REST API below ``/api/v2``; return ``missing`` for 404."""
        answer = self._request(method, f"{self.release.api}{path}", body)
        if answer.status_code == 404:
            return missing
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        if self.release.has_token and not self._token:
            self._token = httpx.get(f"{self.ui_url}/auth/token", timeout=30).raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return httpx.request(method, f"{self.ui_url}{path}", json=body, headers=headers, timeout=30)

    def connection_form(self) -> str:
        """Return what the UI makes the form of a new connection from: JSON, in Airflow 2 the page itself."""
        return self._request("GET", self.release.form).raise_for_status().text

    def unpause(self, dag_id: str) -> None:
        """Let a DAG run, once its file is parsed."""
        wait_until(lambda: self.api("GET", f"/dags/{dag_id}"), 60, f"DAG {dag_id} is parsed", self._import_errors)
        self.api("PATCH", f"/dags/{dag_id}", {"is_paused": False})

    def runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Return the runs of a DAG."""
        return list(self.api("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"])

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a run of a DAG, once its file is parsed, and return the run's id."""
        self.unpause(dag_id)
        run = self.api("POST", f"/dags/{dag_id}/dagRuns", {**self.release.new_run, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = 120) -> str:
        """Wait until a run has ended and return its state."""

        def ended() -> str | None:
            state = self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}")["state"]
            return state if state in FINISHED else None

        state = wait_until(ended, timeout, f"run {run_id} of {dag_id} ends", lambda: self.explain(dag_id, run_id))
        return str(state)

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run."""
        return list(self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances")["task_instances"])

    def log_files(self) -> Iterator[Path]:
        """Yield every log file of the tasks and the components."""
        yield from self.home.glob("*.log")
        yield from (path for path in (self.home / "logs").rglob("*") if path.is_file())

    # -- explaining -------------------------------------------------------------------------------------------------

    def _import_errors(self) -> str:
        return json.dumps(self.api("GET", "/importErrors"), indent=1)[-3000:]

    def tails(self) -> str:
        """Return the end of every component's log."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted(self.home.glob("*.log"))
        )

    def explain(self, dag_id: str, run_id: str) -> str:
        """Return what is known about a run that does not go as it should."""
        states = [
            f"{task['task_id']}[{task['map_index']}] {task['state']} try {task['try_number']}"
            for task in self.task_instances(dag_id, run_id)
        ]
        logs = [
            f"--- {path}\n{path.read_text(errors='replace')[-2500:]}"
            for path in self.log_files()
            if run_id in str(path) and dag_id in str(path)
        ]
        return "\n".join([*states, *logs, self.tails()])
