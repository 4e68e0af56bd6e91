"""The part of a task's context that the provider uses, for tests without a scheduler; what differs between releases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow import __version__

from tests.support.sandbox import RunningSandbox

try:
    from airflow.sdk._shared.secrets_masker import redact, reset_secrets_masker
except ImportError:
    try:
        from airflow.sdk.execution_time.secrets_masker import redact, reset_secrets_masker  # Airflow 3.0
    except ImportError:  # Airflow 2
        from airflow.sensors import base
        from airflow.utils.log.secrets_masker import _secrets_masker, redact

        def reset_secrets_masker() -> None:
            vars(_secrets_masker()).update(patterns=set(), replacer=None)

        # A rescheduled sensor asks Airflow's database when it began; there is none in unit tests.
        base._orig_start_date = lambda **_: None


try:
    from airflow.sdk.execution_time.task_runner import _serialize_rendered_fields as stored_fields
except ImportError:  # Airflow 2
    from airflow.serialization.helpers import serialize_template_field

    def stored_fields(task: Any) -> dict[str, Any]:
        """Return the rendered fields of a task as Airflow stores them."""
        fields = {name: getattr(task, name) for name in task.template_fields}
        return {name: redact(serialize_template_field(value, name), name) for name, value in fields.items()}


#: Whether Airflow masks what is registered as secret in the fields that it stores.
MASKS_STORED_FIELDS = not __version__.startswith("3.0.")

__all__ = [
    "MASKS_STORED_FIELDS",
    "SharedClock",
    "TaskInstance",
    "TaskStates",
    "redact",
    "reset_secrets_masker",
    "stored_fields",
    "task_context",
]


class TaskStates:
    """Airflow's task state store, in memory; values are JSON, as there. Skips the test where Airflow has none."""

    def __init__(self) -> None:
        try:
            from airflow.sdk.execution_time.context import NEVER_EXPIRE  # noqa: F401
        except ImportError:
            pytest.skip("Airflow before 3.3 has no task state store")
        self.values: dict[str, Any] = {}
        self.retentions: set[Any] = set()

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        self.values[key] = value
        self.retentions.add(retention)


class TaskInstance:
    """A task instance: its place in Airflow, and the XComs it pushes."""

    def __init__(self, *, try_number: int = 1, map_index: int = -1, task_id: str = "pay") -> None:
        self.dag_id, self.run_id, self.task_id, self.map_index = "rewards", "manual__1", task_id, map_index
        self.try_number, self.max_tries = try_number, 0
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


class SharedClock:
    """A clock that moves only when somebody waits, and the sandbox's with it: weeks pass in no time.

    :param sandbox: ``None`` for a clock that leaves the sandbox behind, so that orders stay PROCESSING.
    """

    def __init__(self, sandbox: RunningSandbox | None) -> None:
        self.sandbox = sandbox
        self.slept = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        if self.sandbox is not None:
            self.sandbox.advance(seconds)


def task_context(*, states: TaskStates | None = None, **task: Any) -> dict[str, Any]:
    """Return the context of one attempt."""
    return {
        "ti": TaskInstance(**task),
        "dag_run": SimpleNamespace(run_after=datetime.now(UTC), logical_date=None),
        "task_state_store": states,
    }
