"""One sandbox and one real Airflow for all end-to-end tests, each started once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.airflow_stack import AirflowStack
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
def airflow(shared_sandbox: RunningSandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowStack]:
    dags = tmp_path_factory.mktemp("dags")
    for source in [*(ROOT / "example_dags").glob("*.py"), *(HERE / "dags").glob("*.py")]:
        shutil.copy(source, dags)
    secrets = tmp_path_factory.mktemp("secrets") / "recipients.json"
    secrets.write_text(f'{{"address": "{PLANTED_ADDRESS}", "reference": "{PLANTED_REFERENCE}"}}')
    env = {
        "AIRFLOW_CONN_RUNA_DEFAULT": shared_sandbox.connection,
        "RUNA_TEST_SECRETS": str(secrets),
        "RUNA_TEST_MARKERS": str(tmp_path_factory.mktemp("markers")),
    }
    with AirflowStack(tmp_path_factory.mktemp("airflow"), dags, env) as stack:
        yield stack
