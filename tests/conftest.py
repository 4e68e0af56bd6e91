"""Airflow has a home of its own in the tests, set before anything imports it; a sandbox and PostgreSQL."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from tests.support import pgbouncer as pgbouncer_support
from tests.support.postgres import MISSING, find_programs, start_postgres
from tests.support.sandbox import RunningSandbox, start_sandbox

_numbers = itertools.count()

_HOME = tempfile.mkdtemp(prefix="airflow-home-")
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": f"{_HOME}/dags",
}

# What a test file needs of Airflow, beyond what every supported release has -> the files that need it.
_NEEDS = {
    "airflow.sdk": [
        "celery/test_celery.py",
        "operators/test_lineage.py",
        "operators/test_links_to.py",
        "test_authoring.py",
        "utils/test_assets.py",
        "utils/test_payout_links.py",
    ],
    "airflow.sdk.definitions.retry_policy": ["test_retry_policy.py"],
}


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what is above it
        return False


collect_ignore = [file for module, files in _NEEDS.items() if not _has(module) for file in files]


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


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    programs = find_programs()
    if programs is None:
        pytest.skip(MISSING)
    with start_postgres(programs) as url:
        yield url


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """URL of an empty database on it."""
    name = f"ledger{next(_numbers)}"
    server = sa.create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    server.dispose()
    return postgres_server.rpartition("/")[0] + f"/{name}"


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: str) -> Iterator[str]:
    """URL of the PostgreSQL server through PgBouncer, which hands out its connections for one transaction each."""
    program = pgbouncer_support.find_program()
    if program is None:
        pytest.skip(pgbouncer_support.MISSING)
    with pgbouncer_support.start_pgbouncer(program, postgres_server) as url:
        yield url


@pytest.fixture
def pgbouncer(pgbouncer_server: str, postgres: str) -> str:
    """URL of an empty database through PgBouncer; ``postgres`` is the same database without it."""
    url = f"{pgbouncer_server.rpartition('/')[0]}/{postgres.rpartition('/')[2]}"
    pgbouncer_support.fill_pool(url)
    return url
