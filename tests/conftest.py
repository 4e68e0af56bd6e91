"""Airflow has a home of its own in the tests, set before anything imports it; and a sandbox over real sockets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.sandbox import RunningSandbox, start_sandbox

_HOME = tempfile.mkdtemp(prefix="airflow-home-")
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": f"{_HOME}/dags",
}


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="package")
def package_sandbox() -> Iterator[RunningSandbox]:
    with start_sandbox("--processing-delay", "3") as running:
        yield running


@pytest.fixture
def runa(package_sandbox: RunningSandbox, monkeypatch: pytest.MonkeyPatch) -> RunningSandbox:
    """An empty sandbox, which the connection ``runa_default`` leads to."""
    package_sandbox.reset()
    monkeypatch.setenv("AIRFLOW_CONN_RUNA_DEFAULT", package_sandbox.connection)
    return package_sandbox
