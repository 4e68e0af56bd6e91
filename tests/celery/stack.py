"""A real Airflow with CeleryExecutor: Redis as its broker, PostgreSQL as its database, workers as processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from scripts.airflow_stack import AirflowStack


class CeleryStack(AirflowStack):
    """An Airflow whose tasks run on Celery's workers.

    :param home: as for :class:`AirflowStack`.
    :param dags: as for :class:`AirflowStack`.
    :param env: as for :class:`AirflowStack`.
    :param database_url: SQLAlchemy's URL of an empty PostgreSQL database, with ``postgresql+psycopg2``.
    :param broker_url: URL of Redis.
    :param workers: names of the workers.
    :param concurrency: how many tasks each of them runs at once.
    """

    def __init__(
        self,
        home: Path,
        dags: Path,
        env: Mapping[str, str],
        *,
        database_url: str,
        broker_url: str,
        workers: tuple[str, ...],
        concurrency: int,
    ) -> None:
        self.workers = workers
        self.concurrency = concurrency
        super().__init__(
            home,
            dags,
            {
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database_url,
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": database_url.replace("+psycopg2", "+asyncpg"),
                "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
                "AIRFLOW__CORE__PARALLELISM": "64",
                "AIRFLOW__CELERY__BROKER_URL": broker_url,
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{database_url}",
                **env,
            },
        )

    def start(self) -> None:
        """Start everything, then the workers."""
        super().start()
        for name in self.workers:
            self.start_worker(name)

    def start_worker(self, name: str) -> None:
        """Start a worker."""
        options = ("--celery-hostname", f"{name}@localhost", "--concurrency", str(self.concurrency))
        self.start_component(name, "celery", "worker", "--skip-serve-logs", *options)

    def worker_of(self, pid: int) -> str:
        """Return the name of the worker that has started a task's process."""
        ancestors = {process.pid for process in psutil.Process(pid).parents()}
        return next(name for name in self.workers if self.processes[name].pid in ancestors)

    def stop_component(self, component: str, how: int = signal.SIGTERM) -> None:
        """Stop one component and all that it has started: a task has a process group of its own."""
        started: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.processes[component].pid).children(recursive=True)
        if how == signal.SIGKILL:  # all of them at once, so that none can tell anybody of the others' end
            with suppress(ProcessLookupError):
                os.killpg(self.processes[component].pid, how)
            _kill(started)
        super().stop_component(component, how)
        _kill(started)

    def stop(self) -> None:
        """Stop everything, workers by force: asked nicely they wait for their tasks."""
        for name in self.workers:
            if name in self.processes:
                self.stop_component(name, signal.SIGKILL)
        super().stop()

    def tasks(self, dag_id: str, run_id: str, query: str = "limit=1000") -> dict[str, Any]:
        """Return the task instances of a run, and how many there are."""
        return dict(self.api("GET", f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances?{query}"))

    def explain(self, dag_id: str, run_id: str) -> str:
        """Return what is known about a run that does not go as it should: states, and what the components say."""
        tasks = self.tasks(dag_id, run_id)["task_instances"]
        states = Counter(f"{task['state']}, try {task['try_number']}" for task in tasks)
        return "\n".join([*(f"{count} tasks {state}" for state, count in states.items()), self.tails()])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
